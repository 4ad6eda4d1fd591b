//! X.509 certificates, as far as Cryptoki attributes and public keys need them.

use der::{
    Decode, Reader, SliceReader, Tag, TagMode, TagNumber,
    asn1::{AnyRef, BitStringRef, OctetStringRef, SequenceRef, UintRef},
};
use sha1::{Digest, Sha1};

use crate::{
    algorithm::{Curve, EC_PUBLIC_KEY_OID, ED25519_OID, PublicKey, RSA_ENCRYPTION_OID, X25519_OID},
    error::TokenError,
};

/// Content octets of id-ce-keyUsage (RFC 5280, 4.2.1.3).
const KEY_USAGE_OID: &[u8] = &[0x55, 0x1D, 0x0F];

/// A certificate split into the parts for the attributes of its object. Each part is the unchanged DER of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The whole certificate.
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
    /// The public key, if its algorithm is known here.
    pub public_key: Option<PublicKey>,
    /// The keyUsage extension, if present.
    pub key_usage: Option<KeyUsage>,
}

/// The purposes that a certificate allows for its key (RFC 5280, 4.2.1.3). Bit n of the standard is `1 << n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage(pub u16);

impl KeyUsage {
    /// digitalSignature.
    pub const DIGITAL_SIGNATURE: u16 = 1 << 0;
    /// nonRepudiation, also called contentCommitment.
    pub const NON_REPUDIATION: u16 = 1 << 1;
    /// keyEncipherment.
    pub const KEY_ENCIPHERMENT: u16 = 1 << 2;
    /// dataEncipherment.
    pub const DATA_ENCIPHERMENT: u16 = 1 << 3;
    /// keyAgreement.
    pub const KEY_AGREEMENT: u16 = 1 << 4;
    /// keyCertSign.
    pub const KEY_CERT_SIGN: u16 = 1 << 5;
    /// cRLSign.
    pub const CRL_SIGN: u16 = 1 << 6;
    /// encipherOnly.
    pub const ENCIPHER_ONLY: u16 = 1 << 7;

    /// Returns whether any of `bits` is set.
    #[must_use]
    pub const fn any(self, bits: u16) -> bool {
        self.0 & bits != 0
    }
}

impl Certificate {
    /// Splits `der`, which must be exactly one certificate. Names, dates and extensions are not validated.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(der: &[u8]) -> Result<Self, TokenError> {
        Self::split(der).map_err(|fault| TokenError::malformed("X.509 certificate", fault))
    }

    fn split(der: &[u8]) -> der::Result<Self> {
        let mut reader = SliceReader::new(der)?;
        let certificate = reader.sequence(|fields| {
            let certificate = fields.sequence(|fields| Self::split_fields(fields, der))?;
            element(fields, Tag::Sequence)?;
            fields.decode::<BitStringRef<'_>>()?;
            der::Result::Ok(certificate)
        })?;
        reader.finish()?;
        Ok(certificate)
    }

    /// Reads the fields of TBSCertificate (RFC 5280, 4.1).
    fn split_fields(fields: &mut SliceReader<'_>, der: &[u8]) -> der::Result<Self> {
        fields.context_specific::<UintRef<'_>>(TagNumber(0), TagMode::Explicit)?;
        let serial_number = element(fields, Tag::Integer)?;
        element(fields, Tag::Sequence)?;
        let issuer = element(fields, Tag::Sequence)?;
        let validity = fields.sequence(|times| Ok::<_, der::Error>([date(times)?, date(times)?]));
        let [not_before, not_after] = validity?;
        let subject = element(fields, Tag::Sequence)?;
        let public_key_info = element(fields, Tag::Sequence)?;
        for unique_identifier in [TagNumber(1), TagNumber(2)] {
            fields.context_specific::<BitStringRef<'_>>(unique_identifier, TagMode::Implicit)?;
        }
        let extensions =
            fields.context_specific::<&SequenceRef>(TagNumber(3), TagMode::Explicit)?;
        let key_usage = extensions.map_or(Ok(None), |list| key_usage(list.as_bytes()))?;
        Ok(Self {
            der: der.to_vec(),
            subject: subject.to_vec(),
            issuer: issuer.to_vec(),
            serial_number: serial_number.to_vec(),
            not_before,
            not_after,
            public_key: public_key(public_key_info).ok().flatten(),
            public_key_info: public_key_info.to_vec(),
            key_usage,
        })
    }

    /// Returns CKA_CHECK_VALUE: the first three bytes of the SHA-1 of the whole certificate.
    #[must_use]
    pub fn check_value(&self) -> [u8; 3] {
        let [a, b, c, ..]: [u8; 20] = Sha1::digest(&self.der).into();
        [a, b, c]
    }
}

/// Returns the next element with tag and length. The element must have `tag`.
fn element<'a>(reader: &mut SliceReader<'a>, tag: Tag) -> der::Result<&'a [u8]> {
    Tag::peek(reader)?.assert_eq(tag)?;
    reader.tlv_bytes()
}

/// Reads a UTCTime or GeneralizedTime as "YYYYMMDD" (RFC 5280, 4.1.2.5). Any other type gives an empty date.
fn date(reader: &mut SliceReader<'_>) -> der::Result<Vec<u8>> {
    let time: AnyRef<'_> = reader.decode()?;
    let digits = match (der::Tagged::tag(&time), time.value()) {
        (Tag::UtcTime, value @ [b'0'..=b'4', ..]) => [b"20", value].concat(),
        (Tag::UtcTime, value) => [b"19", value].concat(),
        (Tag::GeneralizedTime, value) => value.to_vec(),
        _ => Vec::new(),
    };
    let day = digits.get(..8).unwrap_or(&[]);
    Ok(if day.iter().all(u8::is_ascii_digit) {
        day.to_vec()
    } else {
        Vec::new()
    })
}

/// Returns keyUsage, if the extensions in `list` have it.
fn key_usage(list: &[u8]) -> der::Result<Option<KeyUsage>> {
    let mut reader = SliceReader::new(list)?;
    let mut found = None;
    while !reader.is_finished() {
        let (oid, value) = reader.sequence(|extension| {
            let oid: AnyRef<'_> = extension.decode()?;
            if Tag::peek(extension)? == Tag::Boolean {
                element(extension, Tag::Boolean)?;
            }
            let value: &OctetStringRef = extension.decode()?;
            der::Result::Ok((oid, value))
        })?;
        if oid.value() == KEY_USAGE_OID && found.is_none() {
            let bits = BitStringRef::from_der(value.as_bytes())?;
            let set = bits.bits().take(16).enumerate().filter(|(_, set)| *set);
            found = Some(KeyUsage(set.fold(0, |usage, (bit, _)| usage | 1 << bit)));
        }
    }
    Ok(found)
}

/// Reads the key of a SubjectPublicKeyInfo. Returns `None` for unknown algorithms and curves.
fn public_key(info: &[u8]) -> der::Result<Option<PublicKey>> {
    let mut reader = SliceReader::new(info)?;
    let (oid, parameters, bits) = reader.sequence(|info| {
        let (oid, parameters) = info.sequence(|algorithm| {
            let oid: AnyRef<'_> = algorithm.decode()?;
            let parameters: Option<AnyRef<'_>> = algorithm.decode()?;
            der::Result::Ok((oid, parameters))
        })?;
        der::Result::Ok((oid, parameters, info.decode::<BitStringRef<'_>>()?))
    })?;
    let key = bits.as_bytes().unwrap_or(&[]);
    Ok(match oid.value() {
        RSA_ENCRYPTION_OID => rsa_public_key(key)?,
        EC_PUBLIC_KEY_OID => parameters
            .filter(|named| der::Tagged::tag(named) == Tag::ObjectIdentifier)
            .and_then(|named| Curve::from_oid(named.value()))
            .and_then(|curve| PublicKey::ec(curve, key)),
        ED25519_OID => key.try_into().ok().map(PublicKey::Ed25519),
        X25519_OID => key.try_into().ok().map(PublicKey::X25519),
        _ => None,
    })
}

/// Reads an RSAPublicKey (RFC 8017, A.1.1).
fn rsa_public_key(key: &[u8]) -> der::Result<Option<PublicKey>> {
    let mut reader = SliceReader::new(key)?;
    let (modulus, exponent) = reader.sequence(|numbers| {
        let modulus: UintRef<'_> = numbers.decode()?;
        let exponent: UintRef<'_> = numbers.decode()?;
        der::Result::Ok((modulus, exponent))
    })?;
    reader.finish()?;
    Ok(PublicKey::rsa(modulus.as_bytes(), exponent.as_bytes()))
}

/// Splits arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(certificate) = Certificate::parse(bytes) {
        assert_eq!(certificate.der, bytes, "all bytes are the certificate's");
        assert!(matches!(certificate.not_before.len(), 0 | 8));
        for part in [&certificate.subject, &certificate.public_key_info] {
            assert_eq!(part.first(), Some(&0x30), "parts keep their tags");
        }
        let _ = certificate.public_key.map(|key| key.info());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::KeyAlgorithm;

    const P256: &[u8] = include_bytes!("../tests/data/p256.der");
    const RSA: &[u8] = include_bytes!("../tests/data/rsa2048.der");
    const ED25519: &[u8] = include_bytes!("../tests/data/ed25519.der");

    #[test]
    fn certificate_fields_are_slices_of_its_own_bytes() {
        let certificate = Certificate::parse(P256).unwrap();
        assert_eq!(certificate.der, P256);
        for part in [
            &certificate.subject,
            &certificate.issuer,
            &certificate.serial_number,
            &certificate.public_key_info,
        ] {
            assert!(P256.windows(part.len()).any(|window| window == part));
        }
        assert_eq!(certificate.serial_number, [0x02, 0x02, 0x10, 0x9A]);
        assert!(certificate.subject.ends_with(b"Claviger Test 9A"));
        assert!(certificate.issuer.ends_with(b"Claviger Test CA"));
        assert_eq!(certificate.not_before, b"20240131");
        assert_eq!(certificate.not_after, b"20541231");
    }

    #[test]
    fn the_public_key_info_is_the_one_the_key_encodes_to() {
        for (der, algorithm) in [
            (P256, KeyAlgorithm::Ec(Curve::P256)),
            (RSA, KeyAlgorithm::Rsa { bits: 2048 }),
            (ED25519, KeyAlgorithm::Ed25519),
        ] {
            let certificate = Certificate::parse(der).unwrap();
            let key = certificate.public_key.unwrap();
            assert_eq!(key.algorithm(), algorithm);
            assert_eq!(key.info(), certificate.public_key_info);
        }
    }

    #[test]
    fn key_usage_is_read_bit_by_bit_and_is_none_when_absent() {
        let usage = |der| Certificate::parse(der).unwrap().key_usage;
        assert_eq!(usage(P256), Some(KeyUsage(KeyUsage::DIGITAL_SIGNATURE)));
        let both = KeyUsage::KEY_ENCIPHERMENT | KeyUsage::DATA_ENCIPHERMENT;
        assert_eq!(usage(RSA), Some(KeyUsage(both)));
        assert_eq!(usage(ED25519), None);
    }

    #[test]
    fn a_byte_too_many_or_too_few_is_refused() {
        assert!(Certificate::parse(&[P256, &[0]].concat()).is_err());
        for len in 0..P256.len() {
            assert!(Certificate::parse(&P256[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_survived() {
        for der in [P256, RSA] {
            for bit in 0..der.len() * 8 {
                let mut flipped = der.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fuzz(&flipped);
            }
        }
    }
}
