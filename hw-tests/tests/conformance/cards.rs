//! The cards the rules are played on, in pairs: a PIV card and an OpenPGP card of the same abilities.

use claviger_hw_tests::provision::{KeyAlgorithm, OpenPgpPlan, PivKey, PivPlan, Plan};

/// Four keys, four certificates, data objects; 9C wants the PIN each time.
pub fn piv() -> Plan {
    Plan::piv4()
}

/// Ed25519, X25519 and P-256 with a certificate; the first wants the PIN each time.
pub fn openpgp() -> Plan {
    Plan::pgp3()
}

/// Both on one card.
pub fn both() -> Plan {
    Plan::both()
}

/// RSA keys to sign (9A), to sign with a PIN each time (9C) and to decrypt (9D).
pub fn piv_rsa() -> Plan {
    keys(&[0x9A, 0x9C, 0x9D], KeyAlgorithm::Rsa2048)
}

/// RSA keys to sign (AUT), to sign with a PIN each time (SIG) and to decrypt (DEC).
pub fn openpgp_rsa() -> Plan {
    Plan::openpgp(OpenPgpPlan::rsa())
}

/// P-256 keys to sign (9A), to sign with a PIN each time (9C) and to agree (9D).
pub fn piv_ec() -> Plan {
    keys(&[0x9A, 0x9C, 0x9D], KeyAlgorithm::P256)
}

/// P-256 keys to sign (AUT), to sign with a PIN each time (SIG) and to agree (DEC).
pub fn openpgp_ec() -> Plan {
    Plan::openpgp(OpenPgpPlan {
        keys: Some([KeyAlgorithm::P256; 3]),
    })
}

fn keys(references: &[u8], algorithm: KeyAlgorithm) -> Plan {
    let key = |reference: &u8| PivKey::new(*reference, algorithm);
    Plan::piv(PivPlan {
        keys: references.iter().map(key).collect(),
    })
}
