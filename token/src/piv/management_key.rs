//! The management key 9B: authentication with it (SP 800-73-4 part 2, appendix A.1), and its change.
//!
//! ```text
//! mutual   00 87 algorithm 9B   7C { 80 (empty) }                      →  7C { 80 witness, enciphered }
//!                               7C { 80 witness, 81 host challenge }   →  7C { 82 host challenge, enciphered }
//! single   00 87 algorithm 9B   7C { 81 (empty) }                      →  7C { 81 challenge }
//!                               7C { 82 challenge, enciphered }
//! ```

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use claviger_apdu::{CommandApdu, Expected, Secret, StatusWord, tlv};
use des::TdesEde3;
use subtle::ConstantTimeEq;

use super::pin::tries_left;
use crate::{card::AppletTransaction, error::TokenError};

const REFERENCE: u8 = 0x9B;
const THING: &str = "response to PIV GENERAL AUTHENTICATE with the management key";
const OPERATION: &str = "PIV GENERAL AUTHENTICATE with the management key";

/// Cryptographic algorithm identifiers of management keys (SP 800-78-4, table 6-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyCipher {
    /// 3DES, by the number that the oldest cards use.
    DefaultTdes = 0x00,
    /// 3DES with three keys.
    Tdes = 0x03,
    /// AES-128.
    Aes128 = 0x08,
    /// AES-192.
    Aes192 = 0x0A,
    /// AES-256.
    Aes256 = 0x0C,
}

impl KeyCipher {
    const ALL: [Self; 5] = [
        Self::Tdes,
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::DefaultTdes,
    ];

    /// Returns the cipher with this identifier.
    fn from_identifier(identifier: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|cipher| *cipher as u8 == identifier)
    }

    const fn key_len(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::DefaultTdes | Self::Tdes | Self::Aes192 => 24,
            Self::Aes256 => 32,
        }
    }

    const fn block_len(self) -> usize {
        match self {
            Self::DefaultTdes | Self::Tdes => 8,
            Self::Aes128 | Self::Aes192 | Self::Aes256 => 16,
        }
    }

    /// Enciphers or deciphers the block. Returns `None` if key or block do not have the cipher's lengths.
    fn apply(self, key: &ManagementKey, direction: Direction, block: &[u8]) -> Option<Secret> {
        let key = key.0.expose();
        match self {
            Self::DefaultTdes | Self::Tdes => apply::<TdesEde3>(key, direction, block),
            Self::Aes128 => apply::<Aes128>(key, direction, block),
            Self::Aes192 => apply::<Aes192>(key, direction, block),
            Self::Aes256 => apply::<Aes256>(key, direction, block),
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encipher,
    Decipher,
}

fn apply<C>(key: &[u8], direction: Direction, block: &[u8]) -> Option<Secret>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt,
{
    let cipher = C::new_from_slice(key).ok()?;
    let mut output = block.to_vec();
    let one = output.as_mut_slice().try_into().ok()?;
    match direction {
        Direction::Encipher => cipher.encrypt_block(one),
        Direction::Decipher => cipher.decrypt_block(one),
    }
    Some(Secret::new(output))
}

/// A management key.
pub(super) struct ManagementKey(Secret);

impl ManagementKey {
    /// Possible lengths in hexadecimal digits.
    const DIGITS: [usize; 3] = [32, 48, 64];

    /// Reads a key of 32, 48 or 64 hexadecimal digits. Returns `None` for any other text.
    pub(super) fn from_hex(digits: &Secret) -> Option<Self> {
        if !Self::DIGITS.contains(&digits.len()) {
            return None;
        }
        let (pairs, _) = digits.expose().as_chunks::<2>();
        let mut key = Secret::new(Vec::with_capacity(pairs.len()));
        for [high, low] in pairs {
            key.extend(&[nibble(*high)? << 4 | nibble(*low)?]);
        }
        Some(Self(key))
    }

    /// Returns the ciphers that the key's length allows, the most likely first. `known` comes first: the card reported
    /// it, or it worked before.
    fn ciphers(&self, known: Option<KeyCipher>) -> Vec<KeyCipher> {
        let fits = |cipher: &KeyCipher| cipher.key_len() == self.0.len();
        let mut ciphers: Vec<KeyCipher> = known
            .into_iter()
            .chain(KeyCipher::ALL)
            .filter(fits)
            .collect();
        let mut seen = Vec::new();
        ciphers.retain(|cipher| {
            let first = !seen.contains(cipher);
            seen.push(*cipher);
            first
        });
        ciphers
    }

    /// Authenticates with the key. If the card supports mutual authentication, it must also show that it has the key.
    ///
    /// # Errors
    /// [`TokenError::WrongSoPin`], [`TokenError::SoPinLocked`], or an error of the transport.
    pub(super) fn authenticate(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
        known: Option<KeyCipher>,
    ) -> Result<KeyCipher, TokenError> {
        let ciphers = self.ciphers(known);
        for begin in [Self::mutual, Self::single] {
            for cipher in &ciphers {
                if begin(self, tx, *cipher)? {
                    return Ok(*cipher);
                }
            }
        }
        // The card began no authentication with any of these ciphers, so its key is another one.
        Err(TokenError::WrongSoPin { tries_left: None })
    }

    /// Authenticates mutually. Returns `false` if the card does not begin that with this cipher.
    fn mutual(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
        cipher: KeyCipher,
    ) -> Result<bool, TokenError> {
        let Some(enciphered) = request_block(tx, cipher, 0x80)? else {
            return Ok(false);
        };
        let witness = self.apply(cipher, Direction::Decipher, enciphered.expose())?;
        let challenge = challenge(cipher.block_len())?;
        let mut fields = Secret::new(tlv::encode(0x80, witness.expose()));
        fields.extend(&tlv::encode(0x81, &challenge));
        let response = send_proof(tx, cipher, &fields, Expected::UpTo(256))?;
        let proof = field(response.expose(), 0x82)?;
        let expected = self.apply(cipher, Direction::Encipher, &challenge)?;
        if bool::from(expected.expose().ct_eq(proof.expose())) {
            Ok(true)
        } else {
            Err(TokenError::malformed(
                THING,
                "the card accepts the management key but does not have it",
            ))
        }
    }

    /// Authenticates in one direction. Returns `false` if the card does not begin that with this cipher.
    fn single(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
        cipher: KeyCipher,
    ) -> Result<bool, TokenError> {
        let Some(challenge) = request_block(tx, cipher, 0x81)? else {
            return Ok(false);
        };
        let proof = self.apply(cipher, Direction::Encipher, challenge.expose())?;
        let fields = Secret::new(tlv::encode(0x82, proof.expose()));
        send_proof(tx, cipher, &fields, Expected::Nothing).map(|_| true)
    }

    fn apply(
        &self,
        cipher: KeyCipher,
        direction: Direction,
        block: &[u8],
    ) -> Result<Secret, TokenError> {
        cipher
            .apply(self, direction, block)
            .ok_or_else(|| TokenError::malformed(THING, "not one block of the cipher"))
    }

    /// Sends SET MANAGEMENT KEY (Yubico, FF) with this key. The card has accepted a key for `current` in this
    /// transaction.
    ///
    /// # Errors
    /// [`TokenError::NewPinInvalid`] if the card does not take such a key, or an error of the transport.
    pub(super) fn set(
        &self,
        tx: &mut AppletTransaction<'_, '_>,
        current: KeyCipher,
    ) -> Result<KeyCipher, TokenError> {
        let cipher = match self.0.len() {
            len if current.key_len() == len => current,
            16 => KeyCipher::Aes128,
            24 => KeyCipher::Aes192,
            _ => KeyCipher::Aes256,
        };
        // SET MANAGEMENT KEY does not accept the old number of 3DES.
        let cipher = match cipher {
            KeyCipher::DefaultTdes => KeyCipher::Tdes,
            cipher => cipher,
        };
        let len = u8::try_from(self.0.len()).unwrap_or(u8::MAX);
        let mut data = Secret::new(Vec::with_capacity(3 + self.0.len()));
        data.extend(&[cipher as u8, REFERENCE, len]);
        data.extend(self.0.expose());
        let status = tx
            .exchange(&CommandApdu {
                data: data.expose(),
                ..CommandApdu::header([0x00, 0xFF, 0xFF, 0xFF])
            })?
            .status;
        match status {
            StatusWord::OK => Ok(cipher),
            StatusWord::INCORRECT_DATA
            | StatusWord::CONDITIONS_NOT_SATISFIED
            | StatusWord::WRONG_LENGTH => Err(TokenError::NewPinInvalid {
                what: format!("PIV SET MANAGEMENT KEY: {status}"),
            }),
            _ => Err(TokenError::refused("PIV SET MANAGEMENT KEY", status)),
        }
    }
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Returns random bytes for the card to encipher.
fn challenge(len: usize) -> Result<Vec<u8>, TokenError> {
    let mut challenge = vec![0; len];
    getrandom::fill(&mut challenge)
        .map_err(|fault| TokenError::malformed("the system's random numbers", fault))?;
    Ok(challenge)
}

/// Requests the field `tag` with one block. Returns `None` if the card does not give the field for this cipher. The
/// card compares nothing yet, so this spends no try.
fn request_block(
    tx: &mut AppletTransaction<'_, '_>,
    cipher: KeyCipher,
    tag: u8,
) -> Result<Option<Secret>, TokenError> {
    let response = tx.exchange(&CommandApdu {
        data: &[0x7C, 0x02, tag, 0x00],
        expected: Expected::UpTo(256),
        ..CommandApdu::header([0x00, 0x87, cipher as u8, REFERENCE])
    })?;
    match response.status {
        StatusWord::OK => field(response.data.expose(), tag.into()).map(Some),
        StatusWord::INCORRECT_DATA
        | StatusWord::FUNCTION_NOT_SUPPORTED
        | StatusWord::INCORRECT_P1_P2
        | StatusWord::REFERENCE_NOT_FOUND
        | StatusWord::CONDITIONS_NOT_SATISFIED
        | StatusWord::WRONG_P1_P2 => Ok(None),
        StatusWord::AUTHENTICATION_BLOCKED => Err(TokenError::SoPinLocked),
        status => Err(TokenError::refused(OPERATION, status)),
    }
}

/// Sends the fields that authenticate with the key, and returns the response data.
fn send_proof(
    tx: &mut AppletTransaction<'_, '_>,
    cipher: KeyCipher,
    fields: &Secret,
    expected: Expected,
) -> Result<Secret, TokenError> {
    let data = Secret::new(tlv::encode(0x7C, fields.expose()));
    let response = tx.exchange(&CommandApdu {
        data: data.expose(),
        expected,
        ..CommandApdu::header([0x00, 0x87, cipher as u8, REFERENCE])
    })?;
    match (response.status, tries_left(response.status)) {
        (StatusWord::OK, _) => Ok(response.data),
        (_, Some(0)) => Err(TokenError::SoPinLocked),
        (_, Some(left)) => Err(TokenError::WrongSoPin {
            tries_left: Some(left),
        }),
        (
            StatusWord::SECURITY_STATUS_NOT_SATISFIED
            | StatusWord::INCORRECT_DATA
            | StatusWord::COMPARISON_FAILED,
            None,
        ) => Err(TokenError::WrongSoPin { tries_left: None }),
        (status, None) => Err(TokenError::refused(OPERATION, status)),
    }
}

/// Returns the field `tag` in `7C { tag value }`.
fn field(response: &[u8], tag: u32) -> Result<Secret, TokenError> {
    let fields = tlv::only(response, 0x7C).map_err(TokenError::tlv(THING))?;
    tlv::find(fields, tag)
        .map_err(TokenError::tlv(THING))?
        .map(Secret::copy_from)
        .ok_or_else(|| TokenError::malformed(THING, format!("no field {tag:02X} in it")))
}

/// GET METADATA (Yubico, F7) of the management key.
pub(super) const GET_METADATA: CommandApdu<'static> = CommandApdu {
    expected: Expected::UpTo(256),
    ..CommandApdu::header([0x00, 0xF7, 0x00, REFERENCE])
};

/// Returns the cipher in a response to [`GET_METADATA`], if the response has one.
pub(super) fn cipher(metadata: &[u8]) -> Option<KeyCipher> {
    match tlv::find(metadata, 0x01) {
        Ok(Some([identifier])) => KeyCipher::from_identifier(*identifier),
        _ => None,
    }
}

/// Parses arbitrary bytes as each response. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let key = |len| ManagementKey(Secret::new(vec![0x5A; len]));
    for cipher in KeyCipher::ALL {
        let key = key(cipher.key_len());
        for tag in [0x80, 0x81, 0x82] {
            let Ok(block) = field(bytes, tag) else {
                continue;
            };
            let output = key.apply(cipher, Direction::Decipher, block.expose());
            assert_eq!(output.is_ok(), block.len() == cipher.block_len());
        }
    }
    if let Some(cipher) = cipher(bytes) {
        assert!(key(cipher.key_len()).ciphers(Some(cipher)).first() == Some(&cipher));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digits: &str) -> Option<ManagementKey> {
        ManagementKey::from_hex(&Secret::copy_from(digits.as_bytes()))
    }

    #[test]
    fn a_management_key_is_32_48_or_64_hexadecimal_digits() {
        assert_eq!(hex(&"0f".repeat(24)).unwrap().0.expose(), [0x0F; 24]);
        assert_eq!(hex(&"Aa".repeat(16)).unwrap().0.expose(), [0xAA; 16]);
        for none in ["12345678", &"0f".repeat(20), &"0g".repeat(24), ""] {
            assert!(hex(none).is_none(), "{none}");
        }
    }

    #[test]
    fn announced_cipher_comes_first_if_the_key_has_its_length() {
        let key = hex(&"01".repeat(24)).unwrap();
        let all = [KeyCipher::Tdes, KeyCipher::Aes192, KeyCipher::DefaultTdes];
        assert_eq!(key.ciphers(None), all);
        assert_eq!(key.ciphers(Some(KeyCipher::Aes192))[0], KeyCipher::Aes192);
        assert_eq!(key.ciphers(Some(KeyCipher::Aes192)).len(), 3);
        assert_eq!(key.ciphers(Some(KeyCipher::Aes256)), all);
    }

    /// Each number must select the right cipher, and deciphering must undo enciphering. SP 800-67 and FIPS 197 are
    /// tested by their libraries.
    #[test]
    fn each_cipher_number_selects_its_cipher() {
        let fips_197 = "000102030405060708090a0b0c0d0e0f1011121314151617\
                        18191a1b1c1d1e1f";
        let plain: Vec<u8> = (0..16).map(|n| n << 4 | n).collect();
        for (cipher, first) in [
            (KeyCipher::Aes128, [0x69, 0xC4]),
            (KeyCipher::Aes192, [0xDD, 0xA9]),
            (KeyCipher::Aes256, [0x8E, 0xA2]),
        ] {
            let key = hex(&fips_197[..2 * cipher.key_len()]).unwrap();
            let output = key.apply(cipher, Direction::Encipher, &plain).unwrap();
            assert_eq!(output.expose()[..2], first, "{cipher:?}");
            let back = key.apply(cipher, Direction::Decipher, output.expose());
            assert_eq!(back.unwrap().expose(), plain);
        }
        // A key of three equal parts makes 3DES single DES: FIPS 81's "Now is t".
        let key = hex(&"0123456789abcdef".repeat(3)).unwrap();
        let output = key.apply(KeyCipher::Tdes, Direction::Encipher, b"Now is t");
        assert_eq!(
            output.unwrap().expose(),
            [0x3F, 0xA4, 0x0E, 0x8A, 0x98, 0x4D, 0x48, 0x15]
        );
    }

    #[test]
    fn a_block_of_another_length_is_refused() {
        let key = hex(&"01".repeat(24)).unwrap();
        for len in [0, 7, 9, 16] {
            let refused = key.apply(KeyCipher::Tdes, Direction::Decipher, &vec![0; len]);
            assert!(matches!(refused, Err(TokenError::Malformed { .. })));
        }
    }
}
