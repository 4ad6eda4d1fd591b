//! Names and visibility of tokens and objects: by default, and as the configuration sets them.

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, OPENPGP_SERIAL, PIV_SERIAL,
            listing::{Entry, entries},
            openssl::Scheme,
            piv_with,
        },
    },
    over_the_socket,
    provision::{CardProfile, KeyAlgorithm, PIN, PivKey, PivPlan},
};

const NEEDED: [Needed; 3] = [
    ("pkcs11-tool", "opensc"),
    ("p11tool", "gnutls-bin"),
    ("openssl", "openssl"),
];
/// The serial number of a PIV token that is not there.
const OTHER_PIV_SERIAL: &str = "2d70697600000002";

/// Keys in 9A and in retired 1 to 6, where the schemes part.
fn with_retired_keys() -> CardProfile {
    let p256 = |reference| PivKey::new(reference, KeyAlgorithm::P256);
    let retired = 0x82..=0x87;
    CardProfile::piv(PivPlan {
        keys: std::iter::once(0x9A).chain(retired).map(p256).collect(),
    })
}

over_the_socket! { NEEDED;
    opensc_s_names_are_the_default: with_retired_keys();
    ykcs11_s_names_are_those_it_has_itself: with_retired_keys();
    a_key_is_used_by_the_id_ykcs11_gives_it: with_retired_keys();
    openpgp_has_one_scheme: CardProfile::both();
    an_object_has_the_label_the_user_gives_it: piv_with(KeyAlgorithm::P256);
    a_search_by_a_new_label_reads_no_more_than_one_by_the_old: CardProfile::piv4();
    a_key_signs_by_the_label_the_user_gives_it: piv_with(KeyAlgorithm::P256);
    a_data_object_is_renamed_too: piv_with(KeyAlgorithm::P256);
    openpgp_objects_are_renamed_too: CardProfile::both();
    a_denied_token_leaves_its_slot_empty: CardProfile::both();
    tokens_that_are_not_allowed_are_not_shown: CardProfile::both();
    a_card_of_denied_tokens_is_no_foreign_card: CardProfile::both();
    an_applet_that_is_not_wanted_has_no_slot_and_is_not_asked: CardProfile::both();
    denied_reader_has_no_slots_and_its_card_receives_no_command: CardProfile::both();
    mistakes_are_reported_by_name_file_and_line_and_the_rest_counts: CardProfile::both();
}

/// Class, label and id of the keys and certificates the default token shows its user.
fn keys(clients: &Clients<'_>) -> Vec<(String, String, String)> {
    let listing = clients
        .pkcs11_tool_logged_in(&["--list-objects"])
        .expect_success();
    let objects = entries(&listing.stdout);
    let of_keys = |entry: &&Entry| !entry.field("ID").is_empty();
    let mut keys: Vec<_> = objects
        .iter()
        .filter(of_keys)
        .map(Entry::identity)
        .collect();
    keys.sort();
    keys
}

fn sorted(keys: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    let owned = |(class, label, id): &(&str, &str, &str)| {
        ((*class).to_owned(), (*label).to_owned(), (*id).to_owned())
    };
    let mut keys: Vec<_> = keys.iter().map(owned).collect();
    keys.sort();
    keys
}

/// Those with one of these ids.
fn of(keys: &[(String, String, String)], ids: &[&str]) -> Vec<(String, String, String)> {
    let has = |key: &&(String, String, String)| ids.contains(&key.2.as_str());
    keys.iter().filter(has).cloned().collect()
}

const CERTIFICATE: &str = "Certificate Object";
const PUBLIC: &str = "Public Key Object";
const PRIVATE: &str = "Private Key Object";

fn opensc_s_names_are_the_default(fixture: &CardFixture) {
    let expected = sorted(&[
        (CERTIFICATE, "Certificate for PIV Authentication", "01"),
        (PUBLIC, "PIV AUTH pubkey", "01"),
        (PRIVATE, "PIV AUTH key", "01"),
        (
            CERTIFICATE,
            "Retired Certificate for Key Management 1",
            "05",
        ),
        (PUBLIC, "Retired KEY MAN 1", "05"),
        (PRIVATE, "Retired KEY MAN 1", "05"),
        (
            CERTIFICATE,
            "Retired Certificate for Key Management 6",
            "10",
        ),
        (PUBLIC, "Retired KEY MAN 6", "10"),
        (PRIVATE, "Retired KEY MAN 6", "10"),
    ]);
    let listed = keys(&Clients::of(fixture));
    assert_eq!(listed.len(), 7 * 3);
    assert_eq!(of(&listed, &["01", "05", "10"]), expected);
    assert_eq!(
        keys(&Clients::with_settings(fixture, "ids = \"opensc\"")),
        listed
    );
}

fn ykcs11_s_names_are_those_it_has_itself(fixture: &CardFixture) {
    let clients = Clients::with_settings(fixture, "ids = \"ykcs11\"");
    let expected = sorted(&[
        (
            CERTIFICATE,
            "X.509 Certificate for PIV Authentication",
            "01",
        ),
        (PUBLIC, "Public key for PIV Authentication", "01"),
        (PRIVATE, "Private key for PIV Authentication", "01"),
        (CERTIFICATE, "X.509 Certificate for Retired Key 1", "05"),
        (PUBLIC, "Public key for Retired Key 1", "05"),
        (PRIVATE, "Private key for Retired Key 1", "05"),
        (CERTIFICATE, "X.509 Certificate for Retired Key 6", "0a"),
        (PUBLIC, "Public key for Retired Key 6", "0a"),
        (PRIVATE, "Private key for Retired Key 6", "0a"),
    ]);
    let listed = keys(&clients);
    assert_eq!(listed.len(), 7 * 3);
    assert_eq!(of(&listed, &["01", "05", "0a"]), expected);
}

/// The certificate that a search finds, in DER.
fn certificate(clients: &Clients<'_>, by: [&str; 2]) -> Option<Vec<u8>> {
    let file = clients.path("found.der");
    let _ = std::fs::remove_file(&file);
    let read = ["--read-object", "--type", "cert", "--output-file"];
    let file_name = [file.to_str().unwrap()];
    let output = clients.pkcs11_tool(&[&read[..], &file_name, &by].concat());
    output
        .success()
        .then(|| std::fs::read(&file).ok())
        .flatten()
}

fn a_key_is_used_by_the_id_ykcs11_gives_it(fixture: &CardFixture) {
    let opensc = Clients::of(fixture);
    assert_eq!(
        certificate(&opensc, ["--id", "10"]).as_deref(),
        Some(fixture.certificate("piv-87"))
    );
    assert_eq!(certificate(&opensc, ["--id", "0a"]), None);
    let ykcs11 = Clients::with_settings(fixture, "ids = \"ykcs11\"");
    assert_eq!(
        certificate(&ykcs11, ["--id", "0a"]).as_deref(),
        Some(fixture.certificate("piv-87"))
    );
    assert_eq!(certificate(&ykcs11, ["--id", "10"]), None);
    let label = ["--label", "X.509 Certificate for Retired Key 6"];
    assert_eq!(
        certificate(&ykcs11, label).as_deref(),
        Some(fixture.certificate("piv-87"))
    );
}

fn openpgp_keys(clients: &Clients<'_>) -> Vec<(String, String, String)> {
    let token = ["--list-objects", "--token-label", "OpenPGP 00000001"];
    let listing = clients.pkcs11_tool(&token).expect_success();
    entries(&listing.stdout)
        .iter()
        .map(Entry::identity)
        .filter(|(class, ..)| class != "Profile object")
        .collect()
}

fn openpgp_has_one_scheme(fixture: &CardFixture) {
    let listed = openpgp_keys(&Clients::of(fixture));
    assert!(!listed.is_empty());
    assert_eq!(
        openpgp_keys(&Clients::with_settings(fixture, "ids = \"ykcs11\"")),
        listed
    );
}

const RENAMED: &str = r#"[labels]
"Certificate for PIV Authentication" = "testrsa-cert"
"PIV AUTH pubkey" = "testrsa-pub"
"PIV AUTH key" = "testrsa"
"Card Holder Unique Identifier" = "who"
"Signature key" = "git"
"#;

fn an_object_has_the_label_the_user_gives_it(fixture: &CardFixture) {
    let clients = Clients::with_settings(fixture, RENAMED);
    let expected = sorted(&[
        (CERTIFICATE, "testrsa-cert", "01"),
        (PUBLIC, "testrsa-pub", "01"),
        (PRIVATE, "testrsa", "01"),
    ]);
    assert_eq!(keys(&clients), expected);
    assert_eq!(
        certificate(&clients, ["--label", "testrsa-cert"]).as_deref(),
        Some(fixture.certificate("piv-9A"))
    );
    let old = ["--label", "Certificate for PIV Authentication"];
    assert_eq!(
        certificate(&clients, old),
        None,
        "the old label names nothing"
    );
    let url = format!("pkcs11:serial={PIV_SERIAL};object=testrsa-pub;type=public");
    let found = clients
        .p11tool(Some(PIN), &["--login", "--list-all", &url])
        .expect_success();
    assert_eq!(
        found.stdout.matches("Label: testrsa-pub").count(),
        1,
        "{found}"
    );
    assert_eq!(found.stdout.matches("Object ").count(), 1, "{found}");
}

fn a_search_by_a_new_label_reads_no_more_than_one_by_the_old(fixture: &CardFixture) {
    let apdus = |clients: &Clients<'_>, label: &str, found: bool| {
        fixture.card().zero();
        let is_found = certificate(clients, ["--label", label]).is_some();
        assert_eq!(is_found, found, "{label}");
        fixture.card().counts().apdus
    };
    let before = Clients::of(fixture);
    let old = apdus(&before, "Certificate for PIV Authentication", true);
    let none = apdus(&before, "no such label", false);
    let after = Clients::with_settings(fixture, RENAMED);
    assert_eq!(apdus(&after, "testrsa-cert", true), old);
    assert_eq!(
        apdus(&after, "Certificate for PIV Authentication", false),
        none
    );
    println!("{old} APDUs in all by a label, {none} by one that is nobody's");
    assert!(none < old);
}

fn a_key_signs_by_the_label_the_user_gives_it(fixture: &CardFixture) {
    let clients = Clients::with_settings(fixture, RENAMED);
    let message = clients.file("message", "signed by its new name");
    let signature = clients.path("signature");
    let sign = "--sign --label testrsa --mechanism ECDSA-SHA256 --signature-format openssl";
    let mut sign: Vec<&str> = sign.split(' ').collect();
    sign.extend(["--input-file", message.to_str().unwrap()]);
    sign.extend(["--output-file", signature.to_str().unwrap()]);
    clients.pkcs11_tool_logged_in(&sign).expect_success();
    let key = clients.public_key_of("piv-9A");
    clients.check(&key, Scheme::Hashed("sha256"), &message, &signature);
}

fn a_data_object_is_renamed_too(fixture: &CardFixture) {
    let clients = Clients::with_settings(fixture, RENAMED);
    let listing = clients
        .pkcs11_tool(&["--list-objects", "--type", "data"])
        .expect_success();
    let objects = entries(&listing.stdout);
    let chuid = objects
        .iter()
        .find(|object| object.headline.contains("'who'") || object.field("label") == "who");
    let application = chuid.map(|object| object.field("application"));
    assert_eq!(
        application,
        Some("Card Holder Unique Identifier"),
        "the application stays\n{listing}"
    );
}

fn openpgp_objects_are_renamed_too(fixture: &CardFixture) {
    let listed = openpgp_keys(&Clients::with_settings(fixture, RENAMED));
    let labels: Vec<&str> = listed.iter().map(|(_, label, _)| label.as_str()).collect();
    assert!(labels.contains(&"git"), "{labels:?}");
    assert!(!labels.contains(&"Signature key"), "{labels:?}");
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

fn a_denied_token_leaves_its_slot_empty(fixture: &CardFixture) {
    let denying = |serial: &str| {
        let settings = format!("tokens.deny = [\"{serial}\"]");
        tokens(&Clients::with_settings(fixture, &settings))
    };
    assert_eq!(denying(PIV_SERIAL), (2, vec![OPENPGP_SERIAL.to_owned()]));
    assert_eq!(
        denying(&OPENPGP_SERIAL.to_uppercase()),
        (2, vec![PIV_SERIAL.to_owned()])
    );
    assert_eq!(denying(OTHER_PIV_SERIAL).1.len(), 2, "another's number");
}

fn tokens_that_are_not_allowed_are_not_shown(fixture: &CardFixture) {
    let settings = format!("[tokens]\nallow = [\"{OPENPGP_SERIAL}\", \"{OTHER_PIV_SERIAL}\"]");
    let shown = tokens(&Clients::with_settings(fixture, &settings));
    assert_eq!(shown, (2, vec![OPENPGP_SERIAL.to_owned()]));
}

fn a_card_of_denied_tokens_is_no_foreign_card(fixture: &CardFixture) {
    let clients = Clients::with_settings(fixture, "tokens.allow = []");
    let listing = clients.pkcs11_tool(&["--list-slots"]).expect_success();
    assert_eq!(listing.stdout.matches("(empty)").count(), 2, "{listing}");
    assert!(!listing.stdout.contains("not recognized"), "{listing}");
}

fn an_applet_that_is_not_wanted_has_no_slot_and_is_not_asked(fixture: &CardFixture) {
    for (applet, serial, other) in [
        ("piv", PIV_SERIAL, &[0xD2, 0x76, 0x00, 0x01][..]),
        ("openpgp", OPENPGP_SERIAL, &[0xA0, 0x00, 0x00, 0x03][..]),
    ] {
        fixture.card().zero();
        let clients = Clients::with_settings(fixture, &format!("applets = [\"{applet}\"]"));
        assert_eq!(tokens(&clients), (1, vec![serial.to_owned()]));
        let listing = clients.pkcs11_tool(&["--list-slots"]).expect_success();
        let name = format!(
            "{} {}",
            fixture.card().name(),
            if applet == "piv" { "PIV" } else { "OpenPGP" }
        );
        assert!(listing.stdout.contains(&name), "{listing}");
        let exchanges = fixture.card().exchanges();
        assert!(!exchanges.is_empty());
        let selects_other = exchanges
            .iter()
            .any(|exchange| exchange.command.windows(4).any(|part| part == other));
        assert!(!selects_other, "{applet}: {exchanges:?}");
    }
}

fn denied_reader_has_no_slots_and_its_card_receives_no_command(fixture: &CardFixture) {
    fixture.card().zero();
    for settings in [
        "readers.deny = [\"VIRTUAL\"]",
        "readers.allow = [\"other\"]",
    ] {
        assert_eq!(
            tokens(&Clients::with_settings(fixture, settings)),
            (0, Vec::new())
        );
    }
    assert_eq!(fixture.card().counts().apdus, 0);
    let shown = tokens(&Clients::with_settings(
        fixture,
        "readers.allow = [\"Claviger\"]",
    ));
    assert_eq!(shown.1.len(), 2);
}

fn mistakes_are_reported_by_name_file_and_line_and_the_rest_counts(fixture: &CardFixture) {
    let settings = format!(
        "ids = \"pkcs15\"\napplet = [\"piv\"]\n[tokens]\nonly = [\"1\"]\ndeny = [\"{PIV_SERIAL}\"]\n"
    );
    let clients = Clients::with_settings(fixture, &settings);
    let listing = clients.pkcs11_tool(&["--list-slots"]).expect_success();
    let file = clients.path("claviger.toml");
    for mistake in ["line 1: ids: ", "line 2: applet: ", "line 4: tokens.only: "] {
        let complaint = format!("{}, {mistake}", file.display());
        assert_eq!(
            listing.stderr.matches(&complaint).count(),
            1,
            "{complaint}\n{listing}"
        );
    }
    assert_eq!(tokens(&clients), (2, vec![OPENPGP_SERIAL.to_owned()]));
}
