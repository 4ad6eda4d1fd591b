//! X.509 certificates as far as Cryptoki attributes and public keys need them.

use sha1::{Digest, Sha1};

use crate::algorithm::PublicKey;

/// A certificate cut into the pieces its object's attributes are made of; each is the card's own DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The whole.
    pub der: Vec<u8>,
    /// Name of the subject, DER.
    pub subject: Vec<u8>,
    /// Name of the issuer, DER.
    pub issuer: Vec<u8>,
    /// The serial number as DER INTEGER, tag and length included.
    pub serial_number: Vec<u8>,
    /// CK_DATE "YYYYMMDD", or empty.
    pub not_before: Vec<u8>,
    /// CK_DATE "YYYYMMDD", or empty.
    pub not_after: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
    /// The key in it, when it is of a kind we know.
    pub public_key: Option<PublicKey>,
}

impl Certificate {
    /// CKA_CHECK_VALUE: the first three bytes of the SHA-1 of the whole.
    #[must_use]
    pub fn check_value(&self) -> [u8; 3] {
        let [a, b, c, ..]: [u8; 20] = Sha1::digest(&self.der).into();
        [a, b, c]
    }
}
