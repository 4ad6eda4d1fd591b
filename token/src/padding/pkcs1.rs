//! PKCS #1 v1.5: EMSA-PKCS1-v1_5 and RSAES-PKCS1-v1_5 (RFC 8017, 9.2 and 7.2), with implicit rejection.

use std::sync::OnceLock;

use claviger_apdu::Secret;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeLess};
use zeroize::Zeroizing;

use super::{PaddingError, sealed};
use crate::{
    digest::Hash,
    host::{mac::Mac, random},
};

/// Overhead of a block: 00, the type of block, at least eight bytes of padding, 00.
const OVERHEAD: usize = 11;

/// Returns T of EMSA-PKCS1-v1_5: `digest` in a DigestInfo (RFC 8017, 9.2, note 1).
#[must_use]
pub fn digest_info(hash: Hash, digest: &[u8]) -> Secret {
    let mut info = Secret::copy_from(digest_info_prefix(hash));
    info.extend(digest);
    info
}

const fn digest_info_prefix(hash: Hash) -> &'static [u8] {
    match hash {
        Hash::Sha1 => &[
            0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2B, 0x0E, 0x03, 0x02, 0x1A, 0x05, 0x00, 0x04,
            0x14,
        ],
        Hash::Sha224 => const { &sha2_prefix(0x04, 0x1C) },
        Hash::Sha256 => const { &sha2_prefix(0x01, 0x20) },
        Hash::Sha384 => const { &sha2_prefix(0x02, 0x30) },
        Hash::Sha512 => const { &sha2_prefix(0x03, 0x40) },
    }
}

const fn sha2_prefix(arc: u8, len: u8) -> [u8; 19] {
    let mut prefix = [
        0x30, 0x11, 0x30, 0x0D, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x00,
        0x05, 0x00, 0x04, 0x00,
    ];
    prefix[1] += len;
    prefix[14] = arc;
    prefix[18] = len;
    prefix
}

/// Returns the block `00 01 FF .. FF 00 T` of `len` bytes, or `None` if T leaves no space for eight bytes of padding.
#[must_use]
pub fn pkcs1_sign(t: &[u8], len: usize) -> Option<Secret> {
    let padding = len
        .checked_sub(t.len())?
        .checked_sub(3)
        .filter(|len| *len >= 8)?;
    let mut block = Vec::with_capacity(len);
    block.extend_from_slice(&[0x00, 0x01]);
    block.resize(2 + padding, 0xFF);
    block.push(0x00);
    block.extend_from_slice(t);
    Some(Secret::new(block))
}

/// Returns T from the block of a signature. The block is public, so the time is not constant.
#[must_use]
pub fn pkcs1_recover(block: &[u8]) -> Option<&[u8]> {
    let rest = block.strip_prefix(&[0x00, 0x01])?;
    let padding = rest.iter().take_while(|byte| **byte == 0xFF).count();
    let (_, rest) = rest.split_at_checked(padding).filter(|_| padding >= 8)?;
    rest.strip_prefix(&[0x00])
}

/// Returns the block `00 02 PS 00 M` of `len` bytes. The padding PS is random and has no zeros.
///
/// # Errors
///
/// An error if the message leaves no space for eight bytes of padding, or if there are no random numbers.
pub fn pkcs1_encrypt(message: &[u8], len: usize) -> Result<Secret, PaddingError> {
    let max = len.saturating_sub(OVERHEAD);
    if len < OVERHEAD || message.len() > max {
        return Err(PaddingError::TooLong { max });
    }
    let mut block = Zeroizing::new(vec![0; len]);
    if let Some((head, tail)) = block.split_at_mut_checked(len - message.len()) {
        tail.copy_from_slice(message);
        if let [_, kind, padding @ .., _] = head {
            *kind = 0x02;
            fill_nonzero(padding)?;
        }
    }
    Ok(sealed(block))
}

fn fill_nonzero(padding: &mut [u8]) -> Result<(), PaddingError> {
    random::fill(padding)?;
    for byte in padding {
        while *byte == 0 {
            random::fill(std::slice::from_mut(byte))?;
        }
    }
    Ok(())
}

/// The synthetic message of a block with bad padding (draft-irtf-cfrg-rsa-guidance, 7). It is derived from the
/// ciphertext and a secret, so that it does not reveal whether the padding was good.
///
/// The draft derives the secret from the private exponent, which no card reveals. This secret is random and lasts as
/// long as the process. Within that time the same ciphertext has the same message.
#[derive(Debug)]
pub struct ImplicitRejection(Secret);

impl ImplicitRejection {
    /// Derives the rejection for this ciphertext under the key with this modulus.
    ///
    /// # Errors
    ///
    /// An error if there are no random numbers.
    pub fn new(modulus: &[u8], ciphertext: &[u8]) -> Result<Self, PaddingError> {
        static SECRET: OnceLock<Secret> = OnceLock::new();
        let secret = match SECRET.get() {
            Some(secret) => secret,
            None => {
                let fresh = random::random(32)?;
                SECRET.get_or_init(|| fresh)
            }
        };
        Ok(Self::under(secret, modulus, ciphertext))
    }

    /// Derives KDK = HMAC-SHA256(secret, SHA-256(modulus) || ciphertext).
    fn under(secret: &Secret, modulus: &[u8], ciphertext: &[u8]) -> Self {
        let mut mac = Mac::new(Hash::Sha256, secret);
        mac.update(Hash::Sha256.digest(&[modulus]).expose());
        mac.update(ciphertext);
        Self(mac.finish())
    }

    /// IRPRF (7.1): returns `len` bytes. Each block is HMAC-SHA256(KDK, number || label || total bits).
    fn stream(&self, label: &[u8], len: usize) -> Secret {
        let bits = u16::try_from(len * 8).unwrap_or(u16::MAX).to_be_bytes();
        let mut stream = Secret::default();
        for number in (0u16..).take(len.div_ceil(32)) {
            let mut mac = Mac::new(Hash::Sha256, &self.0);
            mac.update(&number.to_be_bytes());
            mac.update(label);
            mac.update(&bits);
            stream.extend(mac.finish().expose());
        }
        stream.truncate(len);
        stream
    }

    /// Returns the message's length (7.2, steps 4 to 8): the last of 128 numbers that fits a block of `len` bytes.
    fn message_len(&self, len: usize) -> u32 {
        // The draft's max_sep_offset. A longer message would leave too little padding.
        let limit = u32::try_from(len.saturating_sub(10)).unwrap_or(u32::MAX);
        let mask = limit
            .checked_next_power_of_two()
            .unwrap_or(0)
            .wrapping_sub(1);
        let mask = mask | limit;
        let candidates = self.stream(b"length", 256);
        let (pairs, _) = candidates.expose().as_chunks::<2>();
        pairs.iter().fold(0, |chosen, pair| {
            let candidate = u32::from(u16::from_be_bytes(*pair)) & mask;
            u32::conditional_select(&chosen, &candidate, candidate.ct_lt(&limit))
        })
    }
}

/// Returns the message of a decrypted block `00 02 PS 00 M`. Any other block gives the message of `rejection`.
///
/// Neither the time nor an error shows which of the two messages it is. The caller sees only the length.
#[must_use]
pub fn pkcs1_decrypt(block: &Secret, rejection: &ImplicitRejection) -> Secret {
    let block = block.expose();
    let synthetic = rejection.stream(b"message", block.len());
    let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
    let (good, real) = separator(block);
    let rejected = len - rejection.message_len(block.len());
    let from = u32::conditional_select(&rejected, &real, good);
    let mut message = Zeroizing::new(Vec::with_capacity(block.len()));
    for (real, synthetic) in block.iter().zip(synthetic.expose()) {
        message.push(u8::conditional_select(synthetic, real, good));
    }
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    Secret::copy_from(message.get(from..).unwrap_or_default())
}

/// Returns whether the block is well padded, and the offset of its message.
fn separator(block: &[u8]) -> (Choice, u32) {
    let byte = |at: usize| block.get(at).copied().unwrap_or(0xFF);
    let mut found = Choice::from(0);
    let mut from = 0u32;
    for (next, byte) in (1u32..).zip(block).skip(2) {
        let here = byte.ct_eq(&0) & !found;
        from.conditional_assign(&next, here);
        found |= here;
    }
    let first = u32::try_from(OVERHEAD).unwrap_or(u32::MAX);
    let good = byte(0).ct_eq(&0) & byte(1).ct_eq(&2) & found & !from.ct_lt(&first);
    (good, from)
}

/// Decodes any block to a message, always the same one. Returns whether the block was well padded.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) -> bool {
    let block = Secret::copy_from(bytes);
    let rejection =
        ImplicitRejection::under(&Secret::copy_from(b"of a fuzzer"), &[0xC1; 64], bytes);
    let message = pkcs1_decrypt(&block, &rejection);
    assert!(message.len() <= bytes.len().saturating_sub(OVERHEAD));
    assert_eq!(pkcs1_decrypt(&block, &rejection).expose(), message.expose());
    let padding = bytes.iter().skip(2).take_while(|byte| **byte != 0).count();
    let good = bytes.starts_with(&[0, 2]) && padding >= 8;
    let own = bytes.get(3 + padding..).filter(|_| good);
    if let Some(own) = own {
        assert_eq!(message.expose(), own);
    }
    if let Some(t) = pkcs1_recover(bytes) {
        let again = pkcs1_sign(t, bytes.len());
        assert_eq!(again.as_ref().map(Secret::expose), Some(bytes));
    }
    own.is_some()
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    /// Returns a block with a message after `padding` bytes of padding.
    fn block(padding: usize, message: &[u8]) -> Vec<u8> {
        [&[0, 2][..], &vec![0xA5; padding], &[0], message].concat()
    }

    fn decrypted(block: &[u8]) -> Vec<u8> {
        let rejection =
            ImplicitRejection::under(&Secret::copy_from(b"secret"), &[0xC1; 64], &[7; 64]);
        let message = pkcs1_decrypt(&Secret::copy_from(block), &rejection);
        message.expose().to_vec()
    }

    #[test]
    fn digest_info_states_the_length_that_follows() {
        for hash in Hash::ALL {
            let digest = hash.digest(&[]);
            let whole = digest_info(hash, digest.expose());
            let body = claviger_apdu::tlv::only(whole.expose(), 0x30).unwrap();
            let mut cursor = claviger_apdu::tlv::Cursor::new(body);
            cursor.expect(0x30).unwrap();
            assert_eq!(cursor.expect(0x04).unwrap(), digest.expose());
            cursor.finish().unwrap();
        }
    }

    #[test]
    fn a_block_of_a_signature_has_eight_bytes_of_padding_at_least() {
        assert_eq!(
            pkcs1_sign(&[7; 2], 13).unwrap().expose(),
            hex!("0001ffffffffffffffff000707")
        );
        assert!(pkcs1_sign(&[7; 3], 13).is_none());
        assert!(pkcs1_sign(&[], 0).is_none());
        assert!(pkcs1_sign(&[7; 14], 13).is_none());
        assert_eq!(pkcs1_sign(&[], 11).unwrap().len(), 11);
    }

    #[test]
    fn digest_info_is_recovered_from_well_formed_blocks_only() {
        let good = hex!("0001ffffffffffffffff000707");
        assert_eq!(pkcs1_recover(&good), Some(&[7, 7][..]));
        assert_eq!(pkcs1_recover(&good[..11]), Some(&[][..]));
        for bad in [
            &hex!("0001ffffffffffffff00070707")[..],
            &hex!("0101ffffffffffffffff000707"),
            &hex!("0002ffffffffffffffff000707"),
            &hex!("0001fffffffffeffffff000707"),
            &hex!("0001ffffffffffffffffff0707"),
            &hex!("0001ffffffffffffffffffffff"),
            &good[..10],
            &good[1..],
            &[],
        ] {
            assert_eq!(pkcs1_recover(bad), None, "{bad:02x?}");
        }
    }

    #[test]
    fn well_padded_block_gives_its_message_at_any_length() {
        for len in 0..=117 {
            let message: Vec<u8> = (0..len).collect();
            let padding = 128 - 3 - message.len();
            assert_eq!(decrypted(&block(padding, &message)), message);
        }
        assert_eq!(decrypted(&block(8, &[0, 0, 5])), [0, 0, 5]);
    }

    #[test]
    fn badly_padded_block_always_gives_the_same_synthetic_message() {
        let good = block(125 - 48, &[0x4D; 48]);
        let expected = decrypted(&[0; 128]);
        assert!(expected.len() <= 117);
        let mut bad = vec![
            block(7, &[0x4D; 118]),
            block(0, &[0x4D; 125]),
            vec![0xFF; 128],
        ];
        for (at, byte) in [(0, 1), (1, 1), (1, 0), (2, 0), (9, 0), (79, 0xA5)] {
            let mut other = good.clone();
            other[at] = byte;
            bad.push(other);
        }
        for bad in bad {
            assert_eq!(bad.len(), 128);
            assert_eq!(decrypted(&bad), expected, "{bad:02x?}");
        }
    }

    /// draft-irtf-cfrg-rsa-guidance, 7. OpenSSL 4.0 made the vectors with keys of 1024 bits: KDK, and the decrypted
    /// message.
    #[test]
    fn synthetic_message_matches_the_draft() {
        for (kdk, message) in [
            (
                hex!("db33ab89e61dd3509f93cde21daa88657a6ccdf73e1b7756d757e20457b67a06"),
                &hex!(
"ad09f0ee1919ce1e6d0f2278a2d0acb51fc3b9a22e006dddd95b60691906ab8fa3cb551f89857a33
5c931f71224746bc068803d9dd36cf4fb508e2bb0e896a1fd3c28555f5b6f15cf43b46fd187b23df
503a4ea45103617e65d29495054ea62a"
)[..],
            ),
            (
                hex!("ea043396f74e1f692901b2e377144c00830a262a6d5e66705b2323c9a86915fe"),
                &hex!(
"d514738d14d916df34d0c0c136ea6f887996a08e383ea5c421968b70e4471d5df9b9eedc84563390
a0eb53dff8dfb990e9c772ce136832f5c73ee068381a76c127828b944f3a680a329907245c9ec116
45c86574aa0da781af0bae7699ee2a0e23f63d75"
),
            ),
            (
                hex!("bb37c95f679af4a80880fcf03e50cd43afa783e54bcc4772970dee5cc1ceb7c0"),
                &hex!("725dd3c441"),
            ),
            (
                hex!("6eb7538baeaae332cda78abc62c46ffd507254d3fe98e3268f0468de60c95518"),
                &hex!(
"3d7e41bf25ad3ce081707ffa2f43a043c2b4f90c51ad423a040b9956dcff3bd8014436e629ad75b8
f26f62cb7feb2b9a686ce6c4c10b01ff1a5c78dd1c59232030f4252d48e1266130e917f6ccbb5e5b
c0f931972bc4"
),
            ),
        ] {
            let rejection = ImplicitRejection(Secret::copy_from(&kdk));
            let synthetic = pkcs1_decrypt(&Secret::new(vec![0x33; 128]), &rejection);
            assert_eq!(synthetic.expose(), message);
        }
    }

    #[test]
    fn synthetic_messages_have_all_lengths_that_real_ones_have() {
        for len in [64, 128, 129, 256, 266, 267, 512] {
            let lengths =
                (0..200u8).map(|n| ImplicitRejection(Secret::new(vec![n])).message_len(len));
            let longest = lengths.map(|len| usize::try_from(len).unwrap()).max();
            let longest = longest.unwrap();
            assert!(
                (len * 9 / 10 - 10..len - 10).contains(&longest),
                "{longest} of {len}"
            );
        }
    }

    #[test]
    fn the_same_ciphertext_is_rejected_with_the_same_message() {
        let kdk = |modulus: &[u8], ciphertext: &[u8]| {
            let rejection = ImplicitRejection::new(modulus, ciphertext).unwrap();
            rejection.0.expose().to_vec()
        };
        let first = kdk(&[0xC1; 64], &[7; 64]);
        assert_eq!(first, kdk(&[0xC1; 64], &[7; 64]));
        assert_ne!(first, kdk(&[0xC1; 64], &[8; 64]));
        assert_ne!(first, kdk(&[0xC3; 64], &[7; 64]));
    }

    #[test]
    fn block_shorter_than_its_padding_decrypts_to_an_empty_message() {
        for len in 0..11 {
            assert_eq!(decrypted(&vec![0; len]), []);
            let start: Vec<u8> = [0, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0][..len].to_vec();
            assert_eq!(decrypted(&start), []);
        }
    }
}
