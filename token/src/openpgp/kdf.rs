//! The key derivation function between a PIN and the value that the card compares (OpenPGP card 3.4, 4.3.2).

use claviger_apdu::{Secret, tlv};
use sha2::{Digest, Sha256, Sha512};

use crate::{
    error::TokenError,
    openpgp::data_object::{KDF, value_of},
};

/// The conversion of a PIN to the data of VERIFY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kdf {
    /// The PIN itself.
    Plain,
    /// Iterated and salted S2K (RFC 4880, 3.7.1.3).
    Iterated {
        /// The hash.
        hash: KdfHash,
        /// Number of octets to hash.
        count: u32,
        /// Salt of PW1.
        salt: [u8; 8],
        /// Salt of PW3.
        admin_salt: [u8; 8],
    },
}

/// The password to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Password {
    /// PW1, the user's PIN.
    User,
    /// PW3, the PIN of the security officer.
    Admin,
}

/// Hash algorithms with their OpenPGP numbers (RFC 4880, 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KdfHash {
    /// 8
    Sha256,
    /// 10
    Sha512,
}

/// The largest count that RFC 4880 can express. A card with a larger count would only take up computing time.
const MAX_COUNT: u32 = 65_011_712;
const THING: &str = "OpenPGP key derivation object F9";

impl Kdf {
    /// Parses the response to GET DATA F9, with or without that tag. An empty response means that there is no function.
    ///
    /// # Errors
    /// [`TokenError::Malformed`] for any other content that is not understood. No PIN must then be sent: an unconverted
    /// PIN would be wrong and cost a try.
    pub(super) fn parse(response: &[u8]) -> Result<Self, TokenError> {
        let objects = value_of(response, KDF.into());
        if objects.is_empty() {
            return Ok(Self::Plain);
        }
        let object = |tag| tlv::find(objects, tag).map_err(TokenError::tlv(THING));
        match object(0x81)? {
            Some([0x00]) => Ok(Self::Plain),
            Some([0x03]) => {
                let salts = [object(0x84)?, object(0x86)?];
                Self::iterated(object(0x82)?, object(0x83)?, salts)
            }
            _ => Err(TokenError::malformed(
                THING,
                "its algorithm is unknown, so no PIN is sent",
            )),
        }
    }

    fn iterated(
        hash: Option<&[u8]>,
        count: Option<&[u8]>,
        [salt, admin_salt]: [Option<&[u8]>; 2],
    ) -> Result<Self, TokenError> {
        let hash = match hash {
            Some([0x08]) => Some(KdfHash::Sha256),
            Some([0x0A]) => Some(KdfHash::Sha512),
            _ => None,
        };
        let count = count
            .and_then(|count| count.try_into().ok())
            .map(u32::from_be_bytes)
            .filter(|count| (1..=MAX_COUNT).contains(count));
        // A card with one salt uses it for every password.
        let admin_salt = admin_salt.or(salt);
        let [salt, admin_salt] = [salt, admin_salt].map(|salt| salt?.try_into().ok());
        match (hash, count, salt.zip(admin_salt)) {
            (Some(hash), Some(count), Some((salt, admin_salt))) => Ok(Self::Iterated {
                hash,
                count,
                salt,
                admin_salt,
            }),
            _ => Err(TokenError::malformed(
                THING,
                "its hash, count or salt is unknown, so no PIN is sent",
            )),
        }
    }

    /// Returns the data of VERIFY for the `pin` of `password`.
    pub(super) fn derive(&self, pin: &Secret, password: Password) -> Secret {
        match self {
            Self::Plain => pin.duplicate(),
            Self::Iterated {
                hash,
                count,
                salt,
                admin_salt,
            } => {
                let mut unit = Secret::copy_from(match password {
                    Password::User => salt,
                    Password::Admin => admin_salt,
                });
                unit.extend(pin.expose());
                let count = usize::try_from(*count).unwrap_or(usize::MAX);
                match hash {
                    KdfHash::Sha256 => iterate(Sha256::new(), &unit, count),
                    KdfHash::Sha512 => iterate(Sha512::new(), &unit, count),
                }
            }
        }
    }
}

/// Hashes `unit` again and again until `count` octets are hashed, but at least once as a whole.
fn iterate<H: Digest>(mut hash: H, unit: &Secret, count: usize) -> Secret {
    let unit = unit.expose();
    let mut left = count.max(unit.len());
    while let Some(after) = left.checked_sub(unit.len())
        && left > 0
    {
        hash.update(unit);
        left = after;
    }
    hash.update(unit.get(..left).unwrap_or(unit));
    Secret::copy_from(&hash.finalize())
}

/// Parses arbitrary bytes. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(Kdf::Iterated { count, .. }) = Kdf::parse(bytes) {
        assert!((1..=MAX_COUNT).contains(&count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256_object(count: u32) -> Vec<u8> {
        [
            &[0x81, 1, 3, 0x82, 1, 8, 0x83, 4][..],
            &count.to_be_bytes(),
            &[0x84, 8],
            b"12345678",
            &[0x85, 8],
            b"abcdefgh",
        ]
        .concat()
    }

    #[test]
    fn missing_empty_and_none_kdf_objects_leave_the_pin_plain() {
        for plain in [&[][..], &[0x81, 1, 0], &[0xF9, 3, 0x81, 1, 0]] {
            assert_eq!(Kdf::parse(plain).unwrap(), Kdf::Plain);
        }
        let pin = Secret::copy_from(b"123456");
        assert_eq!(Kdf::Plain.derive(&pin, Password::User).expose(), b"123456");
    }

    #[test]
    fn kdf_hashes_exactly_count_octets() {
        let kdf = Kdf::parse(&sha256_object(40)).unwrap();
        let pin = Secret::copy_from(b"123456");
        // 14 octets of salt and PIN: two whole units and 12 octets of the third.
        let expected = Sha256::digest(b"12345678123456".repeat(3).get(..40).unwrap());
        assert_eq!(
            kdf.derive(&pin, Password::User).expose(),
            expected.as_slice()
        );
        // A count below one unit hashes it once as a whole (RFC 4880, 3.7.1.3).
        let kdf = Kdf::parse(&sha256_object(1)).unwrap();
        let expected = Sha256::digest(b"12345678123456");
        assert_eq!(
            kdf.derive(&pin, Password::User).expose(),
            expected.as_slice()
        );
        // A whole number of units.
        let kdf = Kdf::parse(&sha256_object(28)).unwrap();
        let expected = Sha256::digest(b"1234567812345612345678123456");
        assert_eq!(
            kdf.derive(&pin, Password::User).expose(),
            expected.as_slice()
        );
    }

    #[test]
    fn password_salts_are_separate_or_shared() {
        let pin = Secret::copy_from(b"12345678");
        let one = Kdf::parse(&sha256_object(16)).unwrap();
        let user = one.derive(&pin, Password::User);
        assert_eq!(one.derive(&pin, Password::Admin).expose(), user.expose());
        let admin_salt = tlv::encode(0x86, b"ABCDEFGH");
        let two = Kdf::parse(&[sha256_object(16), admin_salt].concat()).unwrap();
        assert_eq!(two.derive(&pin, Password::User).expose(), user.expose());
        let expected = Sha256::digest(b"ABCDEFGH12345678");
        assert_eq!(
            two.derive(&pin, Password::Admin).expose(),
            expected.as_slice()
        );
        let short = [sha256_object(16), tlv::encode(0x86, b"ABC")].concat();
        assert!(Kdf::parse(&short).is_err());
    }

    #[test]
    fn kdf_outer_tag_is_optional() {
        let bare = sha256_object(0x0078_0000);
        let tagged = tlv::encode(0xF9, &bare);
        assert_eq!(Kdf::parse(&bare).unwrap(), Kdf::parse(&tagged).unwrap());
    }

    #[test]
    fn unknown_kdf_object_is_refused() {
        let good = sha256_object(100_000);
        for (at, value) in [(2, 1), (2, 2), (5, 9), (8, 0xFF), (7, 3), (13, 7)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Kdf::parse(&bad).is_err(), "byte {at} as {value:02X}");
        }
        assert!(Kdf::parse(&good[..6]).is_err(), "no count");
        assert!(Kdf::parse(&sha256_object(0)).is_err());
        assert!(Kdf::parse(&[0x82, 1, 8]).is_err(), "no algorithm");
        for len in 1..good.len() - 10 {
            assert!(Kdf::parse(&good[..len]).is_err(), "{len} bytes");
            fuzz(&good[..len]);
        }
    }
}
