//! OpenSC's module and this module show the same objects, labels and ids of a card.
//!
//! These differ on purpose and are not compared:
//! - Slots and token labels. OpenSC has one slot for each PIN, and one applet for each card. This module has one slot for each
//!   applet. OpenSC names a PIV token after its first certificate. This module uses the applet and the serial number.
//! - Data objects. OpenSC lists them even if the card does not have them. OpenSC also keeps the outer tag 53 in their values,
//!   and omits the tag of CKA_OBJECT_ID.
//! - Profile objects, which PKCS #11 3.0 has introduced.
//! - Usage and origin. OpenSC has a usage of its own, non-repudiation. It reports every PIV key as local and never
//!   extractable, though the card does not report the origin of a key.

use std::collections::BTreeSet;

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        clients::{
            Clients, Needed, all_installed,
            listing::{Entry, entries},
            openpgp_with,
        },
    },
    paths,
    provision::{CardProfile, CertificateForm, KeyAlgorithm, OpenPgpPlan, PIN, PivKey, PivPlan},
    skip,
};

const NEEDED: [Needed; 1] = [("pkcs11-tool", "opensc")];
const LOGIN: [&str; 3] = ["--login", "--pin", PIN];
/// What an object is, and all of it that a listing shows and both modules must agree on.
const COMPARED: [&str; 6] = ["label", "ID", "subject", "serial", "EC_POINT", "EC_PARAMS"];

/// Makes two tests of one profile with this number of certificates and keys. They compare this module, over pcscd and over the
/// socket reader, with OpenSC's module over pcscd.
macro_rules! same_as_opensc {
    ($($rule:ident: $count:literal of $profile:expr;)*) => {$(
        mod $rule {
            use super::*;

            #[test]
            fn over_pcscd() {
                let Some((fixture, opensc)) = opensc($profile) else { return };
                agree(&opensc, &Clients::of(&fixture), $count);
            }

            #[test]
            fn over_the_socket_reader() {
                let Some((_fixture, opensc)) = opensc($profile) else { return };
                agree(&opensc, &Clients::of(&CardFixture::socket($profile)), $count);
            }
        }
    )*};
}

same_as_opensc! {
    piv: 12 of CardProfile::piv4();
    piv_p384: 3 of CardProfile::piv(PivPlan::authentication(KeyAlgorithm::P384));
    piv_with_retired_keys: 15 of piv_with_keys(&[0x9A, 0x9D, 0x82, 0x83, 0x84], CertificateForm::Plain);
    piv_without_a_certificate: 3 of piv_with_keys(&[0x9A, 0x9C], CertificateForm::Absent);
    openpgp: 7 of CardProfile::pgp3();
    openpgp_p256: 7 of openpgp_with(KeyAlgorithm::P256);
    openpgp_rsa: 7 of CardProfile::openpgp(OpenPgpPlan::rsa());
}

/// A PIV card with P-256 keys; the certificate of the last is in this form, the others are plain.
fn piv_with_keys(references: &[u8], last: CertificateForm) -> CardProfile {
    let keys = references
        .iter()
        .map(|reference| PivKey::new(*reference, KeyAlgorithm::P256));
    let mut keys: Vec<PivKey> = keys.collect();
    if let Some(key) = keys.last_mut() {
        key.certificate = last;
    }
    CardProfile::piv(PivPlan { keys })
}

/// The objects that OpenSC's module finds, without and with a login, and its card fixture.
fn opensc(profile: CardProfile) -> Option<(CardFixture, Found)> {
    if !all_installed(&NEEDED) {
        return None;
    }
    let Some(module) = paths::opensc_module_path() else {
        skip::because("OpenSC's module is not installed (Debian: opensc-pkcs11)");
        return None;
    };
    let fixture = CardFixture::pcscd(profile)?;
    let found = found(&Clients::with_module(&fixture, module));
    Some((fixture, found))
}

fn agree(opensc: &Found, ours: &Clients<'_>, count: usize) {
    let ours = found(ours);
    assert_eq!(
        ours.public, opensc.public,
        "ours and OpenSC's, without a login"
    );
    assert_eq!(ours.all, opensc.all, "ours and OpenSC's, with a login");
    assert_eq!(ours.all.len(), count);
    assert!(
        ours.public.len() < count,
        "private keys come with the login"
    );
}

/// Certificates and keys, sorted, each with its [`COMPARED`] fields.
struct Found {
    public: Vec<Vec<String>>,
    /// With a login.
    all: Vec<Vec<String>>,
}

fn found(clients: &Clients<'_>) -> Found {
    let compared = |object: &Entry| {
        let fields = COMPARED.map(|name| object.field(name).to_owned());
        [vec![object.headline.trim().to_owned()], fields.to_vec()].concat()
    };
    let [public, all] = [&[][..], &LOGIN].map(|login| {
        let mut objects = objects(clients, login);
        objects.retain(|object| !["Data object", "Profile object"].contains(&object.class()));
        let mut objects: Vec<_> = objects.iter().map(compared).collect();
        objects.sort();
        objects
    });
    Found { public, all }
}

/// The objects of all tokens together.
fn objects(clients: &Clients<'_>, login: &[&str]) -> Vec<Entry> {
    let slots = clients
        .pkcs11_tool(&["--list-slots"])
        .expect_success()
        .stdout;
    let tokens = entries(&slots).into_iter().skip(1).enumerate();
    let tokens = tokens.filter(|(_, slot)| !slot.field("token label").is_empty());
    tokens
        .flat_map(|(index, _)| {
            let slot = ["--slot-index", &index.to_string(), "--list-objects"].map(str::to_owned);
            let login = login.iter().map(ToString::to_string);
            let arguments: Vec<String> = slot.into_iter().chain(login).collect();
            entries(&clients.pkcs11_tool(&arguments).expect_success().stdout)
        })
        .collect()
}

fn data_labels(objects: &[Entry]) -> BTreeSet<String> {
    let data = objects
        .iter()
        .filter(|object| object.class() == "Data object");
    data.map(|object| object.field("label").to_owned())
        .collect()
}

/// The data objects OpenSC lists and can read.
fn existing_data(opensc: &Clients<'_>) -> BTreeSet<String> {
    let can_be_read = |label: &String| {
        let read = [
            "--read-object",
            "--type",
            "data",
            "--application-label",
            label,
        ];
        opensc.pkcs11_tool(&[&LOGIN[..], &read].concat()).success()
    };
    data_labels(&objects(opensc, &LOGIN))
        .into_iter()
        .filter(can_be_read)
        .collect()
}

#[test]
fn piv_data_objects_are_those_of_opensc_that_exist() {
    let Some(module) = paths::opensc_module_path().filter(|_| all_installed(&NEEDED)) else {
        return skip::because("OpenSC's module is not installed (Debian: opensc-pkcs11)");
    };
    let Some(fixture) = CardFixture::pcscd(CardProfile::piv4()) else {
        return;
    };
    let opensc = Clients::with_module(&fixture, module);
    let (listed, existing) = (
        data_labels(&objects(&opensc, &LOGIN)),
        existing_data(&opensc),
    );
    assert!(
        existing.len() < listed.len(),
        "OpenSC lists absent ones: {listed:?}"
    );
    assert!(existing.contains("Card Holder Unique Identifier"));
    let socket = CardFixture::socket(CardProfile::piv4());
    for fixture in [&fixture, &socket] {
        let ours = data_labels(&objects(&Clients::of(fixture), &LOGIN));
        assert_eq!(ours, existing);
    }
}
