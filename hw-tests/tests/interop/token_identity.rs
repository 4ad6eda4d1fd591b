//! The identity of a token: its label, manufacturer, model and serial number stay with its card.

use std::time::{Duration, Instant};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL, all_installed,
            listing::{Entry, entries},
        },
    },
    over_the_socket,
    provision::{CardProfile, PIN},
};

const NEEDED: [Needed; 2] = [("pkcs11-tool", "opensc"), ("p11tool", "gnutls-bin")];
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(30);
/// The serial numbers of the tokens of a second card.
const OTHER_PIV_SERIAL: &str = "2d70697600000002";
const OTHER_OPENPGP_SERIAL: &str = "000f00000002";

over_the_socket! { NEEDED;
    token_urls_stay_after_reinsertion_and_reset: CardProfile::both();
}

/// Slots in all, and the serial numbers of the tokens in them.
fn tokens(clients: &Clients<'_>) -> (usize, Vec<String>) {
    let listing = clients.pkcs11_tool(&["--list-slots"]);
    if listing.stderr.contains("No slots.") {
        return (0, Vec::new());
    }
    let listing = listing.expect_success();
    let slots = entries(&listing.stdout);
    let slots = slots
        .iter()
        .filter(|entry| entry.headline.starts_with("Slot "));
    let slots: Vec<&Entry> = slots.collect();
    let serials = slots.iter().map(|slot| slot.field("serial num").to_owned());
    (
        slots.len(),
        serials.filter(|serial| !serial.is_empty()).collect(),
    )
}

/// The URLs p11tool gives the tokens.
fn urls(clients: &Clients<'_>) -> Vec<String> {
    let listing = clients.p11tool(None, &["--list-tokens"]).expect_success();
    let url = |line: &str| line.trim().strip_prefix("URL: ").map(str::to_owned);
    listing.stdout.lines().filter_map(url).collect()
}

/// pcscd sees a moment later that cards have moved, of one reader after the other, also in the middle of a listing.
fn urls_once_they_are(fixture: &CardFixture, expected: &[String]) -> Vec<String> {
    let deadline = Instant::now() + HANG;
    loop {
        let urls = urls(&Clients::of(fixture));
        if urls == expected || Instant::now() > deadline {
            return urls;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn token_urls_stay_after_reinsertion_and_reset(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let before = urls(&clients);
    assert_eq!(before.len(), 2);
    fixture.remove();
    assert_eq!(urls(&clients).len(), 0);
    fixture.insert();
    fixture.wait_until_seen();
    assert_eq!(urls(&clients), before, "after it was pulled and put in");
    fixture.reset();
    assert_eq!(urls(&clients), before, "after a reset");
}

/// The URL with a token's serial number leads to the key of that token.
fn each_key_has_a_url_of_its_own(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let tokens = urls(&clients);
    let mut unique = tokens.clone();
    unique.dedup();
    assert_eq!((tokens.len(), unique.len()), (4, 4), "{tokens:?}");
    let mut keys = Vec::new();
    for serial in [
        PIV_SERIAL,
        OTHER_PIV_SERIAL,
        OPENPGP_SERIAL,
        OTHER_OPENPGP_SERIAL,
    ] {
        for kind in ["private", "public"] {
            let url = format!("pkcs11:serial={serial};id=%01;type={kind}");
            let found = clients
                .p11tool(Some(PIN), &["--login", "--list-all", &url])
                .expect_success();
            assert_eq!(found.stdout.matches("Object ").count(), 1, "{found}");
            assert!(
                found.stdout.contains(&format!("serial={serial};")),
                "{found}"
            );
            assert!(found.stdout.contains("ID: 01"), "{found}");
        }
        let url = format!("pkcs11:serial={serial};id=%01");
        let export = ["--login", "--export-pubkey", &url];
        let key = clients.p11tool(Some(PIN), &export).expect_success().stdout;
        assert!(
            key.contains("BEGIN PUBLIC KEY") && !keys.contains(&key),
            "{serial}: {key}"
        );
        keys.push(key);
    }
}

/// A token is found by its label where its card was put second.
fn a_token_is_found_by_its_label(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    for (label, serial) in [
        ("PIV 00000002", OTHER_PIV_SERIAL),
        ("OpenPGP 00000002", OTHER_OPENPGP_SERIAL),
    ] {
        let token = [
            "--list-objects",
            "--type",
            "pubkey",
            "--id",
            "01",
            "--token-label",
            label,
        ];
        let output = clients.pkcs11_tool_logged_in(&token).expect_success();
        assert!(output.stdout.contains("Public Key Object"), "{output}");
        let only = Clients::with_settings(fixture, &format!("tokens.allow = [\"{serial}\"]"));
        assert_eq!(tokens(&only).1, [serial]);
    }
}

fn two_cards() -> [CardProfile; 2] {
    [CardProfile::both(), CardProfile::both().serial(2)]
}

#[test]
fn two_cards_are_distinguished_over_the_socket_reader_also_after_a_restart() {
    if all_installed(&NEEDED) {
        let mut fixture = CardFixture::socket_cards(&two_cards());
        each_key_has_a_url_of_its_own(&fixture);
        a_token_is_found_by_its_label(&fixture);
        let before = urls(&Clients::of(&fixture));
        fixture.restart_service();
        assert_eq!(urls(&Clients::of(&fixture)), before);
    }
}

#[test]
fn two_cards_are_distinguished_over_pcscd_also_after_a_swap() {
    if !all_installed(&NEEDED) {
        return;
    }
    let Some(mut fixture) = CardFixture::pcscd_cards(&two_cards()) else {
        return;
    };
    each_key_has_a_url_of_its_own(&fixture);
    a_token_is_found_by_its_label(&fixture);
    let mut swapped = urls(&Clients::of(&fixture));
    let of_one_card = swapped.len() / 2;
    swapped.rotate_left(of_one_card);
    fixture.swap_cards();
    let after = urls_once_they_are(&fixture, &swapped);
    assert_eq!(after, swapped, "each card took its names along");
    fixture.restart_service();
    each_key_has_a_url_of_its_own(&fixture);
}

#[test]
fn denied_reader_is_hidden_over_pcscd() {
    if !all_installed(&NEEDED) {
        return;
    }
    let Some(fixture) = CardFixture::pcscd_cards(&two_cards()) else {
        return;
    };
    let settings = format!("readers.deny = [\"{}\"]", fixture.card_at(0).name());
    let (slots, all) = tokens(&Clients::of(&fixture));
    assert_eq!(all.len(), 4);
    let second = [OTHER_PIV_SERIAL, OTHER_OPENPGP_SERIAL].map(str::to_owned);
    let shown = tokens(&Clients::with_settings(&fixture, &settings));
    assert_eq!(shown, (slots - 2, second.to_vec()));
}
