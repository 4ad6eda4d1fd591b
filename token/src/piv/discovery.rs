//! The Discovery Object and the Key History Object (SP 800-73-4 part 1, tables 18 and 19).

use claviger_apdu::tlv;

use super::key_reference::RetiredNumber;
use crate::error::TokenError;

/// NIST's registered identifier, the beginning of every PIV application identifier.
const RID: &[u8] = &[0xA0, 0x00, 0x00, 0x03, 0x08];
/// P2 of VERIFY for the PIV card application PIN.
pub(super) const PIV_PIN: u8 = 0x80;
/// P2 of VERIFY for the global PIN.
pub(super) const GLOBAL_PIN: u8 = 0x00;

/// The Discovery Object: which PIN the card requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Discovery {
    /// P2 of VERIFY.
    pub(super) pin_reference: u8,
}

impl Discovery {
    /// Parses the whole response, template 7E included.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], also if the object belongs to another application.
    pub(super) fn parse(response: &[u8]) -> Result<Self, TokenError> {
        const THING: &str = "PIV discovery object";
        let fault = TokenError::tlv(THING);
        let content = tlv::only(response, 0x7E).map_err(&fault)?;
        let aid = tlv::find(content, 0x4F).map_err(&fault)?;
        if !aid.is_some_and(|aid| aid.starts_with(RID)) {
            return Err(TokenError::malformed(THING, "not of a PIV application"));
        }
        let policy = tlv::find(content, 0x5F2F).map_err(&fault)?;
        Ok(Self {
            pin_reference: match policy {
                // The global PIN satisfies the access rules and is the cardholder's primary PIN.
                Some([satisfies, 0x20]) if satisfies & 0x20 != 0 => GLOBAL_PIN,
                _ => PIV_PIN,
            },
        })
    }
}

/// The number of retired keys. They occupy the lowest key references.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct KeyHistory {
    keys: u8,
    /// Whether some certificates are kept elsewhere. The object must then name their address.
    off_card: bool,
}

impl KeyHistory {
    /// Parses the content of the object's 53.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], also if it counts more keys than there are key references.
    pub(super) fn parse(content: &[u8]) -> Result<Self, TokenError> {
        const THING: &str = "PIV key history object";
        let count = |tag| match tlv::find(content, tag).map_err(TokenError::tlv(THING))? {
            None => Ok(0),
            Some([count]) => Ok(*count),
            Some(_) => Err(TokenError::malformed(
                THING,
                "a count of more than one byte",
            )),
        };
        let off_card = count(0xC2)?;
        let keys = count(0xC1)?.saturating_add(off_card);
        if keys > RetiredNumber::MAX {
            return Err(TokenError::malformed(THING, format!("{keys} retired keys")));
        }
        Ok(Self {
            keys,
            off_card: off_card > 0,
        })
    }

    /// Returns a history that also counts retired key `number`. Returns `None` if this history counts it already, or if
    /// its issuer keeps certificates elsewhere. Such a history is not changed.
    pub(super) fn counting(self, number: RetiredNumber) -> Option<Self> {
        let keys = number.get();
        (!self.has(number) && !self.off_card).then_some(Self {
            keys,
            off_card: false,
        })
    }

    /// Returns the content of the object's 53, for a history without certificates elsewhere.
    pub(super) const fn content(self) -> [u8; 8] {
        [0xC1, 1, self.keys, 0xC2, 1, 0, 0xFE, 0]
    }

    /// Returns whether the history counts retired key `number`.
    pub(super) const fn has(self, number: RetiredNumber) -> bool {
        number.get() <= self.keys
    }
}

/// Parses arbitrary bytes as both objects. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(discovery) = Discovery::parse(bytes) {
        assert!(matches!(discovery.pin_reference, PIV_PIN | GLOBAL_PIN));
    }
    if let Ok(history) = KeyHistory::parse(bytes) {
        assert!(history.keys <= RetiredNumber::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery(policy: [u8; 2]) -> Vec<u8> {
        let aid = [RID, &[0, 0, 0x10, 0, 1, 0]].concat();
        tlv::encode(
            0x7E,
            &[tlv::encode(0x4F, &aid), tlv::encode(0x5F2F, &policy)].concat(),
        )
    }

    #[test]
    fn global_pin_is_used_when_it_is_present_and_primary() {
        let reference = |policy| Discovery::parse(&discovery(policy)).unwrap().pin_reference;
        assert_eq!(reference([0x40, 0x10]), PIV_PIN);
        assert_eq!(reference([0x40, 0x00]), PIV_PIN);
        assert_eq!(reference([0x60, 0x10]), PIV_PIN);
        assert_eq!(reference([0x60, 0x20]), GLOBAL_PIN);
        assert_eq!(reference([0x40, 0x20]), PIV_PIN);
    }

    #[test]
    fn discovery_object_of_another_application_is_refused() {
        let other = tlv::encode(0x7E, &tlv::encode(0x4F, &[0xD2, 0x76, 0, 1, 0x24, 1]));
        assert!(Discovery::parse(&other).is_err());
        assert!(Discovery::parse(&[discovery([0x40, 0]), vec![0]].concat()).is_err());
        assert!(Discovery::parse(&[]).is_err());
    }

    #[test]
    fn key_history_counts_keys_with_certificates_on_and_off_the_card() {
        let has = |content: &[u8], n| {
            KeyHistory::parse(content)
                .unwrap()
                .has(RetiredNumber::new(n).unwrap())
        };
        let two_and_one = [0xC1, 1, 2, 0xC2, 1, 1, 0xF3, 1, b'x', 0xFE, 0];
        assert!(has(&two_and_one, 3));
        assert!(!has(&two_and_one, 4));
        assert!(!has(&[0xFE, 0], 1));
        let none = KeyHistory::default();
        let third = none.counting(RetiredNumber::new(3).unwrap()).unwrap();
        assert_eq!(KeyHistory::parse(&third.content()).unwrap(), third);
        assert!(third.counting(RetiredNumber::new(2).unwrap()).is_none());
        let elsewhere = KeyHistory::parse(&two_and_one).unwrap();
        assert!(elsewhere.counting(RetiredNumber::new(9).unwrap()).is_none());
        assert!(KeyHistory::parse(&[0xC1, 1, 20, 0xC2, 1, 1]).is_err());
        assert!(KeyHistory::parse(&[0xC1, 2, 0, 1]).is_err());
        assert!(KeyHistory::parse(&[0xC1, 1]).is_err());
    }
}
