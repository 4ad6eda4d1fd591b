//! By what a token is told from others: its label, manufacturer, model and serial number stay with its card.

use std::time::{Duration, Instant};

use claviger_hw_tests::{
    fixture::{
        card_fixture::Rig,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL, all_installed,
            listing::{Entry, entries},
        },
    },
    over_the_socket,
    provision::{PIN, Plan},
};

const NEEDED: [Needed; 2] = [("pkcs11-tool", "opensc"), ("p11tool", "gnutls-bin")];
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(30);
/// The serial numbers of the tokens of a second card.
const OTHER_PIV_SERIAL: &str = "2d70697600000002";
const OTHER_OPENPGP_SERIAL: &str = "000f00000002";

over_the_socket! { NEEDED;
    the_names_of_a_token_stay_when_its_card_comes_back: Plan::both();
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
fn urls_once_they_are(rig: &Rig, expected: &[String]) -> Vec<String> {
    let deadline = Instant::now() + HANG;
    loop {
        let urls = urls(&Clients::of(rig));
        if urls == expected || Instant::now() > deadline {
            return urls;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn the_names_of_a_token_stay_when_its_card_comes_back(rig: &Rig) {
    let clients = Clients::of(rig);
    let before = urls(&clients);
    assert_eq!(before.len(), 2);
    rig.remove();
    assert_eq!(urls(&clients).len(), 0);
    rig.insert();
    rig.settle();
    assert_eq!(urls(&clients), before, "after it was pulled and put in");
    rig.reset();
    assert_eq!(urls(&clients), before, "after a reset");
}

/// Each token's key 01 is the one its serial number says, and no other's.
fn each_key_has_a_url_of_its_own(rig: &Rig) {
    let clients = Clients::of(rig);
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
fn a_token_is_found_by_its_label(rig: &Rig) {
    let clients = Clients::of(rig);
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
        let only = Clients::with_settings(rig, &format!("tokens.allow = [\"{serial}\"]"));
        assert_eq!(tokens(&only).1, [serial]);
    }
}

fn two_cards() -> [Plan; 2] {
    [Plan::both(), Plan::both().serial(2)]
}

#[test]
fn two_cards_are_distinguished_over_the_socket_reader_also_after_a_restart() {
    if all_installed(&NEEDED) {
        let mut rig = Rig::socket_cards(&two_cards());
        each_key_has_a_url_of_its_own(&rig);
        a_token_is_found_by_its_label(&rig);
        let before = urls(&Clients::of(&rig));
        rig.restart_service();
        assert_eq!(urls(&Clients::of(&rig)), before);
    }
}

#[test]
fn two_cards_are_distinguished_over_pcscd_also_after_a_swap() {
    if !all_installed(&NEEDED) {
        return;
    }
    let Some(mut rig) = Rig::pcscd_cards(&two_cards()) else {
        return;
    };
    each_key_has_a_url_of_its_own(&rig);
    a_token_is_found_by_its_label(&rig);
    let mut swapped = urls(&Clients::of(&rig));
    let of_one_card = swapped.len() / 2;
    swapped.rotate_left(of_one_card);
    rig.swap();
    let after = urls_once_they_are(&rig, &swapped);
    assert_eq!(after, swapped, "each card took its names along");
    rig.restart_service();
    each_key_has_a_url_of_its_own(&rig);
}

#[test]
fn denied_reader_is_hidden_over_pcscd() {
    if !all_installed(&NEEDED) {
        return;
    }
    let Some(rig) = Rig::pcscd_cards(&two_cards()) else {
        return;
    };
    let settings = format!("readers.deny = [\"{}\"]", rig.card_at(0).name());
    let (slots, all) = tokens(&Clients::of(&rig));
    assert_eq!(all.len(), 4);
    let second = [OTHER_PIV_SERIAL, OTHER_OPENPGP_SERIAL].map(str::to_owned);
    let shown = tokens(&Clients::with_settings(&rig, &settings));
    assert_eq!(shown, (slots - 2, second.to_vec()));
}
