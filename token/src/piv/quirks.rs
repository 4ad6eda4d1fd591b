//! Differences between cards that the standard gives no way to query: named behaviours, and the cards that have them.

use claviger_apdu::Atr;

/// A behaviour that code can query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    /// The card takes extended-length APDUs and does not announce it in its answer to reset.
    ExtendedLength,
    /// The card responds to GET METADATA of most keys with success and no data.
    MetadataEmpty,
    /// The card may have the data objects of Yubico's tools.
    YubicoObjects,
}

/// Historical bytes of the answer to reset, and the behaviours of cards that have them.
const TABLE: [(&[u8], &[Quirk]); 4] = [
    // Nitrokey 3 with piv-authenticator 0.3 to 0.7; seen 2024.
    (b"Nitrokey", &[Quirk::ExtendedLength, Quirk::MetadataEmpty]),
    // YubiKey 4; seen 2016.
    (b"Yubikey4", &[Quirk::ExtendedLength, Quirk::YubicoObjects]),
    // YubiKey NEO: short APDUs only; seen 2014.
    (b"YubikeyNEO", &[Quirk::YubicoObjects]),
    // YubiKey 5, whose answer to reset announces extended length; seen 2018.
    (b"YubiKey", &[Quirk::YubicoObjects]),
];

/// The behaviours of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quirks(&'static [Quirk]);

impl Quirks {
    /// Returns the behaviours of the card with this answer to reset.
    pub(super) fn of(atr: &Atr) -> Self {
        let historical = atr.historical();
        let has = |name: &[u8]| historical.windows(name.len()).any(|part| part == name);
        Self(
            TABLE
                .iter()
                .find(|(name, _)| has(name))
                .map_or(&[], |(_, quirks)| quirks),
        )
    }

    /// Returns whether the card has this behaviour.
    pub(super) fn contains(self, quirk: Quirk) -> bool {
        self.0.contains(&quirk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quirks(historical: &[u8]) -> Quirks {
        let t0 = u8::try_from(historical.len()).unwrap();
        Quirks::of(&Atr::parse(&[&[0x3B, t0], historical].concat()).unwrap())
    }

    #[test]
    fn quirks_are_found_by_historical_bytes() {
        let nitrokey = quirks(b"\x80\x5DNitrokey\0\0\0\0\0");
        assert!(nitrokey.contains(Quirk::MetadataEmpty));
        assert!(nitrokey.contains(Quirk::ExtendedLength));
        assert!(!nitrokey.contains(Quirk::YubicoObjects));
        assert!(quirks(b"Yubikey4").contains(Quirk::ExtendedLength));
        assert!(!quirks(b"YubikeyNEOr3").contains(Quirk::ExtendedLength));
        assert!(quirks(b"\x80\x73\xC0\x21\xC0\x57YubiKey").contains(Quirk::YubicoObjects));
    }

    #[test]
    fn unknown_card_has_no_quirks() {
        assert_eq!(quirks(b"ID-ONE PIV"), Quirks(&[]));
        assert_eq!(quirks(b""), Quirks(&[]));
    }
}
