//! The Card Holder Unique Identifier (CHUID; SP 800-73-4 part 1, table 9). The token's serial number comes from it.

use claviger_apdu::tlv;

use crate::error::TokenError;

/// The identity of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chuid {
    /// Federal Agency Smart Credential Number, unless it is all zeros.
    fasc_n: Option<[u8; 25]>,
    /// Card UUID, unless it is all zeros.
    guid: Option<[u8; 16]>,
}

impl Chuid {
    /// Parses the content of the object's 53.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub(super) fn parse(content: &[u8]) -> Result<Self, TokenError> {
        let field = |tag| tlv::find(content, tag).map_err(TokenError::tlv("PIV CHUID"));
        Ok(Self {
            fasc_n: field(0x30)?.and_then(not_zero),
            guid: field(0x34)?.and_then(not_zero),
        })
    }

    /// Returns the last 16 digits of OpenSC's serial number. It comes from the FASC-N, or from the GUID if the FASC-N
    /// shows that no agency issued the card. Without both it is eight zeros.
    pub(super) fn serial(&self) -> String {
        let bytes = match (&self.fasc_n, &self.guid) {
            (Some(fasc_n), None) => fasc_n.as_slice(),
            (Some(fasc_n), Some(_)) if is_of_an_agency(fasc_n) => fasc_n.as_slice(),
            (_, Some(guid)) => guid.as_slice(),
            (None, None) => &[0; 4],
        };
        bytes
            .get(bytes.len().saturating_sub(8)..)
            .unwrap_or(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Returns whether a federal agency issued the card. FIPS 201 alone then determines the use of its keys.
    pub(super) fn is_federal(&self) -> bool {
        self.fasc_n.as_ref().is_some_and(is_of_an_agency)
    }
}

fn not_zero<const LEN: usize>(field: &[u8]) -> Option<[u8; LEN]> {
    let field: [u8; LEN] = field.try_into().ok()?;
    field.iter().any(|byte| *byte != 0).then_some(field)
}

/// Returns whether the FASC-N has an agency code other than 9999, which means none. With 9999 the FASC-N, five bits a
/// digit, begins with D4 E7 39 and a set bit.
const fn is_of_an_agency(fasc_n: &[u8; 25]) -> bool {
    !matches!(fasc_n, [0xD4, 0xE7, 0x39, 0x80..=0xFF, ..])
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(chuid) = Chuid::parse(bytes) {
        let serial = chuid.serial();
        assert!(matches!(serial.len(), 8 | 16), "{serial}");
        assert!(serial.is_ascii());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_AGENCY: [u8; 25] = [
        0xD4, 0xE7, 0x39, 0xDA, 0x73, 0x9C, 0xED, 0x39, 0xCE, 0x73, 0x9D, 0x83, 0x68, 0x58, 0x21,
        0x08, 0x42, 0x10, 0x84, 0x21, 0xC8, 0x42, 0x10, 0xC3, 0xEB,
    ];
    const GUID: [u8; 16] = [0xA1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xFF];

    fn chuid(fasc_n: &[u8], guid: &[u8]) -> Chuid {
        let content = [
            tlv::encode(0x30, fasc_n),
            tlv::encode(0x34, guid),
            tlv::encode(0x35, b"20401231"),
            tlv::encode(0x3E, &[]),
            tlv::encode(0xFE, &[]),
        ]
        .concat();
        Chuid::parse(&content).unwrap()
    }

    #[test]
    fn the_serial_is_the_guid_unless_an_agency_issued_the_card() {
        assert_eq!(chuid(&NO_AGENCY, &GUID).serial(), "090a0b0c0d0e0fff");
        assert_eq!(chuid(&NO_AGENCY, &[0; 16]).serial(), "108421c84210c3eb");
        let agency = [&[0xD0], &NO_AGENCY[1..]].concat();
        assert_eq!(chuid(&agency, &GUID).serial(), "108421c84210c3eb");
        assert_eq!(chuid(&[0; 25], &GUID).serial(), "090a0b0c0d0e0fff");
        assert_eq!(chuid(&[0; 25], &[0; 16]).serial(), "00000000");
    }

    #[test]
    fn only_an_agency_number_makes_a_card_federal() {
        assert!(!chuid(&NO_AGENCY, &GUID).is_federal());
        assert!(!chuid(&[0; 25], &GUID).is_federal());
        assert!(chuid(&[&[0xD0], &NO_AGENCY[1..]].concat(), &GUID).is_federal());
    }

    #[test]
    fn chuid_with_a_field_of_wrong_length_gives_serial_zero() {
        assert_eq!(chuid(&NO_AGENCY[1..], &GUID[1..]).serial(), "00000000");
        assert!(Chuid::parse(&[0x30, 0x19, 1]).is_err());
    }
}
