//! A card for each kind of key. opcard makes no key on a brainpool curve or on secp256k1, though it lists them.

use claviger_hw_tests::provision::{KeyAlgorithm, OpenPgpPlan, PivKey, PivPlan, Plan};

pub fn piv_rsa_2048() -> Plan {
    piv(KeyAlgorithm::Rsa2048, KeyAlgorithm::Rsa2048)
}

/// RSA-4096 to sign, RSA-3072 to decrypt.
pub fn piv_rsa_large() -> Plan {
    piv(KeyAlgorithm::Rsa4096, KeyAlgorithm::Rsa3072)
}

pub fn piv_p256() -> Plan {
    piv(KeyAlgorithm::P256, KeyAlgorithm::P256)
}

pub fn piv_p384() -> Plan {
    piv(KeyAlgorithm::P384, KeyAlgorithm::P384)
}

pub fn openpgp_rsa_2048() -> Plan {
    openpgp([KeyAlgorithm::Rsa2048; 3])
}

/// RSA-3072 and RSA-4096 to sign, RSA-3072 to decrypt.
pub fn openpgp_rsa_large() -> Plan {
    openpgp([
        KeyAlgorithm::Rsa3072,
        KeyAlgorithm::Rsa3072,
        KeyAlgorithm::Rsa4096,
    ])
}

pub fn openpgp_p256() -> Plan {
    openpgp([KeyAlgorithm::P256; 3])
}

pub fn openpgp_p384() -> Plan {
    openpgp([KeyAlgorithm::P384; 3])
}

pub fn openpgp_p521() -> Plan {
    openpgp([KeyAlgorithm::P521; 3])
}

pub fn openpgp_25519() -> Plan {
    openpgp([
        KeyAlgorithm::Ed25519,
        KeyAlgorithm::X25519,
        KeyAlgorithm::Ed25519,
    ])
}

/// A key to sign in 9A and one to decrypt or to agree in 9D.
fn piv(signs: KeyAlgorithm, opens: KeyAlgorithm) -> Plan {
    Plan::piv(PivPlan {
        keys: vec![PivKey::new(0x9A, signs), PivKey::new(0x9D, opens)],
    })
}

const fn openpgp(keys: [KeyAlgorithm; 3]) -> Plan {
    Plan::openpgp(OpenPgpPlan { keys: Some(keys) })
}
