//! The card's description of itself: the application related data and the objects in it (OpenPGP card 3.4, 4.4).

use claviger_apdu::tlv::{self, Cursor};

use crate::{
    algorithm::{Curve, ED25519_OID, KeyAlgorithm, X25519_OID},
    error::TokenError,
    object::KeyOrigin,
    openpgp::key::{KeyRole, PerKey},
};

/// The application identifier (AID) up to its version (4.2.1).
pub(super) const AID: &[u8] = &[0xD2, 0x76, 0x00, 0x01, 0x24, 0x01];

/// Tag of the application related data.
pub(super) const APPLICATION_DATA: u8 = 0x6E;
/// Tag of the PW status bytes.
pub(super) const PASSWORD_STATUS: u8 = 0xC4;
/// Tag of the key derivation function.
pub(super) const KDF: u8 = 0xF9;

const APPLICATION_IDENTIFIER: u32 = 0x4F;
const HISTORICAL_BYTES: u32 = 0x5F52;
const EXTENDED_LENGTH: u32 = 0x7F66;
const DISCRETIONARY: u32 = 0x73;
const EXTENDED_CAPABILITIES: u32 = 0xC0;
const FINGERPRINTS: u32 = 0xC5;
const KEY_INFORMATION: u32 = 0xDE;
/// Tag of the cardholder certificate.
pub(super) const CERTIFICATE: u32 = 0x7F21;

/// Content octets of Ed25519's object identifier in OpenPGP before RFC 8410.
pub(super) const ED25519_OLD_OID: &[u8] = &[0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01];
/// Content octets of Curve25519's object identifier in OpenPGP before RFC 8410.
pub(super) const X25519_OLD_OID: &[u8] =
    &[0x2B, 0x06, 0x01, 0x04, 0x01, 0x97, 0x55, 0x01, 0x05, 0x01];

/// The application related data (6E), as far as a token needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApplicationData {
    /// The identity of the card.
    pub(super) identifier: Identifier,
    /// Whether the card has a key derivation object (C0).
    pub(super) kdf: bool,
    /// Whether the card takes extended length, if the historical bytes report it.
    pub(super) extended_length: Option<bool>,
    /// Whether the card supports command chaining, if the historical bytes report it.
    pub(super) chains: Option<bool>,
    /// Longest command frame in bytes that the card takes (7F66), if the card reports it.
    pub(super) max_command: Option<usize>,
    /// Most random bytes of one GET CHALLENGE (C0); `None` if the card does not support it.
    pub(super) max_challenge: Option<usize>,
    /// Whether algorithm attributes can be changed (C0).
    pub(super) changeable: bool,
    /// Longest cardholder certificate in bytes (C0), if the card reports it.
    pub(super) max_certificate: Option<usize>,
    /// Lengths and tries of the passwords.
    pub(super) password: PasswordStatus,
    /// The record of each key.
    pub(super) keys: PerKey<KeyRecord>,
}

/// Version, manufacturer and serial number from the AID (4.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identifier {
    /// Version of the specification that the card follows.
    pub(super) version: (u8, u8),
    /// The manufacturer's number, assigned by FSF Europe.
    pub(super) manufacturer: u16,
    /// The serial number, unique for each manufacturer.
    pub(super) serial: u32,
}

/// The PW status bytes (C4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PasswordStatus {
    /// Whether one verification of PW1 holds for several signatures.
    pub(super) several_signatures: bool,
    /// Longest PW1 in bytes.
    pub(super) max_len: usize,
    /// Whether PINs are sent in PIN block 2 format.
    pub(super) pin_block_2: bool,
    /// Tries left for PW1.
    pub(super) tries: u8,
    /// Longest PW3 in bytes.
    pub(super) admin_max_len: usize,
    /// Tries left for PW3.
    pub(super) admin_tries: u8,
}

/// The application related data on one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRecord {
    /// The algorithm that the key reference is set to, if it is known here.
    pub(super) algorithm: Option<KeyAlgorithm>,
    /// The algorithm attributes, as the card reports them (C1 to C3).
    pub(super) attributes: Vec<u8>,
    /// Fingerprint over the key and its time of generation; zeros if there is none.
    fingerprint: [u8; 20],
    /// 0 no key, 1 generated, 2 imported (DE). Older cards do not report it.
    status: Option<u8>,
}

impl ApplicationData {
    /// Parses the response to GET DATA 6E, with or without that tag. The AID and the PW status bytes are required.
    pub(super) fn parse(response: &[u8]) -> Result<Self, TokenError> {
        let mut objects = ApplicationDataParser::default();
        objects.read(value_of(response, APPLICATION_DATA.into()), true)?;
        let missing = |tag| TokenError::malformed(THING, format!("object {tag} is missing"));
        let third = card_capabilities(objects.historical).map(|[_, _, third]| third);
        Ok(Self {
            identifier: Identifier::parse(objects.aid.ok_or_else(|| missing("4F"))?)?,
            kdf: has(objects.capabilities, HAS_KDF),
            extended_length: third.map(|third| third & 0x40 != 0),
            chains: third.map(|third| third & 0x80 != 0),
            max_command: max_command(objects.extended_length),
            max_challenge: size(objects.capabilities, 2)
                .filter(|_| has(objects.capabilities, CAN_CHALLENGE)),
            changeable: has(objects.capabilities, CAN_CHANGE_ATTRIBUTES),
            max_certificate: size(objects.capabilities, 4),
            password: PasswordStatus::parse(objects.password.ok_or_else(|| missing("C4"))?)?,
            keys: objects.keys,
        })
    }
}

const THING: &str = "OpenPGP application related data";

/// Flag in the first byte of the extended capabilities (4.4.3.7): the card supports GET CHALLENGE.
const CAN_CHALLENGE: u8 = 0x40;
/// Flag: the algorithm attributes can be changed.
const CAN_CHANGE_ATTRIBUTES: u8 = 0x04;
/// Flag: the card has a key derivation object.
const HAS_KDF: u8 = 0x01;

fn has(capabilities: &[u8], capability: u8) -> bool {
    capabilities
        .first()
        .is_some_and(|first| first & capability != 0)
}

/// Returns the two-byte size at offset `at` of the extended capabilities, unless it is zero.
fn size(capabilities: &[u8], at: usize) -> Option<usize> {
    let bytes = capabilities.get(at..)?.first_chunk::<2>()?;
    Some(usize::from(u16::from_be_bytes(*bytes))).filter(|size| *size > 0)
}

/// Collects the required objects from 6E and from the 73 inside it.
#[derive(Default)]
struct ApplicationDataParser<'a> {
    aid: Option<&'a [u8]>,
    historical: &'a [u8],
    extended_length: &'a [u8],
    capabilities: &'a [u8],
    password: Option<&'a [u8]>,
    keys: PerKey<KeyRecord>,
}

impl<'a> ApplicationDataParser<'a> {
    fn read(&mut self, bytes: &'a [u8], outer: bool) -> Result<(), TokenError> {
        let mut cursor = Cursor::new(bytes);
        while let Some((tag, value)) = cursor.next_object().map_err(TokenError::tlv(THING))? {
            match tag {
                DISCRETIONARY if outer => self.read(value, false)?,
                _ => self.take(tag, value)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, tag: u32, value: &'a [u8]) -> Result<(), TokenError> {
        match tag {
            APPLICATION_IDENTIFIER => self.aid = Some(value),
            HISTORICAL_BYTES => self.historical = value,
            EXTENDED_LENGTH => self.extended_length = value,
            EXTENDED_CAPABILITIES => self.capabilities = value,
            FINGERPRINTS => self.take_fingerprints(value),
            KEY_INFORMATION => self.take_key_information(value)?,
            _ if tag == u32::from(PASSWORD_STATUS) => self.password = Some(value),
            _ => {
                let mut keys = KeyRole::ALL.into_iter();
                if let Some(key) = keys.find(|key| key.attributes_tag() == tag) {
                    let record = self.keys.get_mut(key);
                    record.algorithm = algorithm(value);
                    record.attributes = value.to_vec();
                }
            }
        }
        Ok(())
    }

    /// Takes the three fingerprints of twenty bytes. A vendor's fourth may follow.
    fn take_fingerprints(&mut self, value: &[u8]) {
        for (key, fingerprint) in KeyRole::ALL.into_iter().zip(value.chunks_exact(20)) {
            self.keys
                .get_mut(key)
                .fingerprint
                .copy_from_slice(fingerprint);
        }
    }

    fn take_key_information(&mut self, value: &[u8]) -> Result<(), TokenError> {
        let (pairs, rest) = value.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(TokenError::malformed(
                THING,
                "key information DE has an odd length",
            ));
        }
        for [reference, status] in pairs {
            if let Some(key) = KeyRole::from_reference(*reference) {
                self.keys.get_mut(key).status = Some(*status);
            }
        }
        Ok(())
    }
}

impl Identifier {
    fn parse(aid: &[u8]) -> Result<Self, TokenError> {
        let fields = aid.strip_prefix(AID);
        let Some([major, minor, m1, m2, s1, s2, s3, s4, ..]) = fields else {
            return Err(TokenError::malformed(THING, "4F is not an OpenPGP AID"));
        };
        Ok(Self {
            version: (bcd(*major), bcd(*minor)),
            manufacturer: u16::from_be_bytes([*m1, *m2]),
            serial: u32::from_be_bytes([*s1, *s2, *s3, *s4]),
        })
    }

    /// Returns manufacturer and serial number as twelve digits, as OpenSC does.
    pub(super) fn serial_number(&self) -> String {
        format!("{:04x}{:08x}", self.manufacturer, self.serial)
    }
}

impl PasswordStatus {
    /// Parses the response to GET DATA C4, with or without that tag.
    pub(super) fn parse(response: &[u8]) -> Result<Self, TokenError> {
        let [mode, len, _, admin_len, tries, _, admin_tries] =
            value_of(response, PASSWORD_STATUS.into())
        else {
            return Err(TokenError::malformed(
                "OpenPGP PW status bytes C4",
                "they do not have seven bytes",
            ));
        };
        Ok(Self {
            several_signatures: *mode != 0,
            max_len: usize::from(len & 0x7F),
            pin_block_2: len & 0x80 != 0,
            tries: *tries,
            admin_max_len: usize::from(admin_len & 0x7F),
            admin_tries: *admin_tries,
        })
    }
}

impl KeyRecord {
    /// Returns whether the key may exist. If the card does not report that, the key must be read to find out.
    pub(super) fn may_exist(&self) -> bool {
        self.fingerprint != [0; 20] || self.status.is_none_or(|status| status != 0)
    }

    /// Returns the origin of the key.
    pub(super) const fn origin(&self) -> KeyOrigin {
        match self.status {
            Some(1) => KeyOrigin::Generated,
            Some(2) => KeyOrigin::Imported,
            _ => KeyOrigin::Unknown,
        }
    }
}

/// Returns whether `response` is application related data of an OpenPGP application.
pub(super) fn is_application_data(response: &[u8]) -> bool {
    let mut objects = ApplicationDataParser::default();
    let parsed = objects.read(value_of(response, APPLICATION_DATA.into()), true);
    parsed.is_ok() && objects.aid.is_some_and(|aid| aid.starts_with(AID))
}

/// Returns the value in a response to GET DATA. Cards send it with or without its tag and length.
pub(super) fn value_of(response: &[u8], tag: u32) -> &[u8] {
    tlv::only(response, tag).unwrap_or(response)
}

/// Returns the number that two BCD digits in one byte give. Other digits count with their binary value.
const fn bcd(byte: u8) -> u8 {
    (byte >> 4) * 10 + (byte & 0x0F)
}

/// Finds the card capabilities in the historical bytes (ISO 7816-4, 12.1.1.8): compact TLV after the category indicator
/// 00, before three status bytes.
fn card_capabilities(historical: &[u8]) -> Option<[u8; 3]> {
    let [0x00, objects @ .., _, _, _] = historical else {
        return None;
    };
    let mut rest = objects;
    while let [tag_and_len, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(tag_and_len & 0x0F))?;
        if *tag_and_len == 0x73 {
            return value.try_into().ok();
        }
        rest = next;
    }
    None
}

/// Returns the first of two numbers in 7F66: the longest command.
fn max_command(extended_length: &[u8]) -> Option<usize> {
    match Cursor::new(extended_length).next_object() {
        Ok(Some((0x02, [high, low]))) => Some(usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// Converts algorithm attributes (4.4.3.9) to a key algorithm. Returns `None` for an unknown one.
pub(super) fn algorithm(attributes: &[u8]) -> Option<KeyAlgorithm> {
    match attributes {
        [0x01, high, low, _, _, ..] => Some(KeyAlgorithm::Rsa {
            bits: u16::from_be_bytes([*high, *low]),
        }),
        [0x12 | 0x13 | 0x16, oid @ ..] => curve(oid).or_else(|| match oid {
            // The byte after the identifier shows whether an import contains the public key.
            [oid @ .., 0x00 | 0xFF] => curve(oid),
            _ => None,
        }),
        _ => None,
    }
}

fn curve(oid: &[u8]) -> Option<KeyAlgorithm> {
    match oid {
        ED25519_OLD_OID | ED25519_OID => Some(KeyAlgorithm::Ed25519),
        X25519_OLD_OID | X25519_OID => Some(KeyAlgorithm::X25519),
        _ => Curve::from_oid(oid).map(KeyAlgorithm::Ec),
    }
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(data) = ApplicationData::parse(bytes) {
        assert!(
            is_application_data(bytes),
            "what parses is recognised as the probe's response"
        );
        assert_eq!(data.identifier.serial_number().len(), 12);
        assert!(data.password.max_len <= 127);
    }
    if let Ok(status) = PasswordStatus::parse(bytes) {
        assert!(status.max_len <= 127);
    }
    if let Some(algorithm) = algorithm(bytes) {
        assert!(algorithm.signature_len() <= 8192);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::hex;

    /// A Nitrokey 3: no outer tag, P-256 to sign, X25519 to decrypt, RSA-2048 to authenticate.
    const NITROKEY: &str = "4F10 D276000124010304 000F 12345678 0000
        5F520A 00 31F5 73C00180 05 9000  7F6608 02021DB9 02021DB9  7F7403 810120
        7381AB C00A 3F000400040004000001
          C109 13 2A8648CE3D030107  C20B 12 2B060104019755010501  C306 01 0800 0020 00
          C407 01 7F7F7F 03 00 03
          C53C 1111111111111111111111111111111111111111 0000000000000000000000000000000000000000
               0000000000000000000000000000000000000000
          C60C 000000000000000000000000  CD0C 000000000000000000000000
          DE06 0101 0202 0300";

    fn nitrokey() -> Vec<u8> {
        let mut bytes = hex(NITROKEY);
        // 73 comes last, so its length is the rest.
        let at = bytes
            .windows(2)
            .position(|pair| pair == [0x73, 0x81])
            .unwrap();
        bytes[at + 2] = u8::try_from(bytes.len() - at - 3).unwrap();
        bytes
    }

    #[test]
    fn application_data_is_read_with_and_without_its_tag() {
        let bare = nitrokey();
        let data = ApplicationData::parse(&bare).unwrap();
        assert_eq!(data.identifier.version, (3, 4));
        assert_eq!(data.identifier.serial_number(), "000f12345678");
        assert!(data.kdf);
        assert_eq!(data.extended_length, Some(false));
        assert_eq!(data.chains, Some(true));
        assert_eq!(data.max_command, Some(0x1DB9));
        assert!(data.password.several_signatures);
        assert_eq!((data.password.max_len, data.password.tries), (127, 3));
        let admin = (data.password.admin_max_len, data.password.admin_tries);
        assert_eq!(admin, (127, 3));
        assert_eq!(
            (data.max_challenge, data.max_certificate),
            (None, Some(0x400))
        );
        assert!(data.changeable);
        let of = |key| data.keys.get(key);
        assert_eq!(
            KeyRole::ALL.map(|key| of(key).algorithm),
            [
                Some(KeyAlgorithm::Ec(Curve::P256)),
                Some(KeyAlgorithm::X25519),
                Some(KeyAlgorithm::Rsa { bits: 2048 }),
            ]
        );
        assert_eq!(of(KeyRole::Signature).origin(), KeyOrigin::Generated);
        assert_eq!(of(KeyRole::Decryption).origin(), KeyOrigin::Imported);
        assert!(
            of(KeyRole::Decryption).may_exist(),
            "without a fingerprint too"
        );
        assert!(!of(KeyRole::Authentication).may_exist());
        let tagged = tlv::encode(0x6E, &bare);
        assert_eq!(ApplicationData::parse(&tagged).unwrap(), data);
    }

    #[test]
    fn objects_may_stand_outside_the_discretionary_ones() {
        let flat = hex("4F10 D276000124010101 0005 00000001 0000 C407 00 202020 03 00 03");
        let data = ApplicationData::parse(&flat).unwrap();
        assert_eq!(data.identifier.version, (1, 1));
        assert!(!data.password.several_signatures);
        assert_eq!(data.extended_length, None);
        assert!(
            data.keys.get(KeyRole::Signature).may_exist(),
            "a card that does not say has to be asked"
        );
    }

    #[test]
    fn every_truncation_is_malformed() {
        let whole = nitrokey();
        for len in 0..whole.len() {
            let cut = ApplicationData::parse(&whole[..len]);
            assert!(cut.is_err(), "{len} bytes pass as whole");
            fuzz(&whole[..len]);
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fuzz(&flipped);
        }
    }

    #[test]
    fn response_of_another_application_is_not_application_data() {
        assert!(is_application_data(&nitrokey()));
        assert!(is_application_data(&tlv::encode(0x6E, &nitrokey())));
        assert!(!is_application_data(&hex("4F06 A00000030800")));
        assert!(!is_application_data(&hex("7E12 4F06 A00000030800")));
        assert!(!is_application_data(&[]));
    }

    #[test]
    fn capabilities_are_found_among_the_historical_bytes() {
        assert_eq!(
            card_capabilities(&hex("00 31C5 73C00140 05 9000")),
            Some([0xC0, 0x01, 0x40])
        );
        assert_eq!(card_capabilities(&hex("00 7FC0 05 9000")), None);
        assert_eq!(card_capabilities(&hex("80 73C00140 9000")), None);
        assert_eq!(card_capabilities(&[]), None);
    }

    #[test]
    fn curves_are_known_by_their_old_and_new_names() {
        for (attributes, expected) in [
            ("16 2B06010401DA470F01", Some(KeyAlgorithm::Ed25519)),
            ("16 2B06010401DA470F01 FF", Some(KeyAlgorithm::Ed25519)),
            ("16 2B6570", Some(KeyAlgorithm::Ed25519)),
            ("12 2B656E 00", Some(KeyAlgorithm::X25519)),
            ("13 2B81040023 FF", Some(KeyAlgorithm::Ec(Curve::P521))),
            ("13 2B81040099", None),
            ("01 1000 0020", Some(KeyAlgorithm::Rsa { bits: 4096 })),
            ("01 10", None),
            ("02 2B6570", None),
            ("", None),
        ] {
            assert_eq!(algorithm(&hex(attributes)), expected, "{attributes}");
        }
    }

    #[test]
    fn password_status_is_seven_bytes_with_or_without_its_tag() {
        let status = PasswordStatus::parse(&hex("C407 00 A0202003 0003")).unwrap();
        assert_eq!((status.max_len, status.pin_block_2), (32, true));
        assert_eq!(status.tries, 3);
        assert!(PasswordStatus::parse(&hex("00 202020 03 00")).is_err());
    }
}
