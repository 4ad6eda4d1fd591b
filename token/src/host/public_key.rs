//! Operations with a public key.

use std::ops::Add;

use crypto_bigint::{
    BoxedUint, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use ecdsa::{
    EcdsaCurve, Signature, SignatureSize,
    elliptic_curve::{
        CurveArithmetic, FieldBytesSize,
        array::ArraySize,
        sec1::{FromSec1Point, ModulusSize, ToSec1Point},
    },
    hazmat,
};

use crate::algorithm::{Curve, KeyAlgorithm, PublicKey};

/// Lengths of the moduli that the host computes with, in bytes: 512 to 16 384 bits.
const MODULUS_LEN: std::ops::RangeInclusive<usize> = 64..=2048;
/// Longest public exponent, in bytes. The cost of an operation grows with it.
const MAX_EXPONENT_LEN: usize = 8;

/// Runs the same expression with the type of each curve that the host supports. `$other` is for a curve that it does
/// not support.
macro_rules! with_curve {
    ($curve:expr, $type:ident => $body:expr, $other:expr) => {
        match $curve {
            Curve::P256 => {
                type $type = p256::NistP256;
                $body
            }
            Curve::P384 => {
                type $type = p384::NistP384;
                $body
            }
            Curve::P521 => {
                type $type = p521::NistP521;
                $body
            }
            Curve::Secp256k1 => {
                type $type = k256::Secp256k1;
                $body
            }
            Curve::BrainpoolP256 => {
                type $type = bp256::BrainpoolP256r1;
                $body
            }
            Curve::BrainpoolP384 => {
                type $type = bp384::BrainpoolP384r1;
                $body
            }
            Curve::BrainpoolP512 => $other,
        }
    };
}

/// Returns whether the host verifies signatures of such keys. It does not support brainpoolP512r1.
#[must_use]
pub fn verifiable(algorithm: KeyAlgorithm) -> bool {
    match algorithm {
        KeyAlgorithm::Rsa { bits } => MODULUS_LEN.contains(&usize::from(bits).div_ceil(8)),
        KeyAlgorithm::Ec(curve) => !matches!(curve, Curve::BrainpoolP512),
        KeyAlgorithm::Ed25519 => true,
        KeyAlgorithm::X25519 => false,
    }
}

/// Returns whether `point`, 04 X Y, is on `curve` and not its neutral element. Returns `None` if the host does not
/// support the curve.
#[must_use]
pub fn is_on_curve(curve: Curve, point: &[u8]) -> Option<bool> {
    let formed = PublicKey::ec(curve, point).is_some();
    with_curve!(curve, C => Some(formed && decode_point::<C>(point).is_some()), None)
}

impl PublicKey {
    /// Returns m^e mod n for a block m as long as the modulus. The result has the same length.
    ///
    /// Returns `None` for other keys, for another length, for a number that is not below the modulus, and for a modulus
    /// or exponent that no RSA key has (even, an exponent of 1) or that would take long.
    #[must_use]
    pub fn rsa_raw(&self, block: &[u8]) -> Option<Vec<u8>> {
        let Self::Rsa { modulus, exponent } = self else {
            return None;
        };
        let fits = is_modulus(modulus)
            && is_exponent(exponent)
            && block.len() == modulus.len()
            && block < modulus.as_slice();
        if !fits {
            return None;
        }
        let number = BoxedUint::from_be_slice_vartime;
        let modulus = Odd::new(number(modulus)).into_option()?;
        let parameters = BoxedMontyParams::new_vartime(modulus);
        let base = BoxedMontyForm::new(number(block), &parameters);
        let exponent = number(exponent);
        let power = base
            .pow_bounded_exp(&exponent, exponent.bit_width_vartime())
            .retrieve()
            .to_be_bytes();
        // The power has whole limbs: more bytes than the modulus, with zeros in front.
        Some(power.get(power.len() - block.len()..)?.to_vec())
    }

    /// Returns whether `r_s`, r and s side by side, signs `digest`. Only its leftmost bits count, as many as the order
    /// has.
    ///
    /// Both s and -s are accepted. An empty digest has no signature.
    #[must_use]
    pub fn verify_ecdsa(&self, digest: &[u8], r_s: &[u8]) -> bool {
        let Self::Ec { curve, point } = self else {
            return false;
        };
        let z = leftmost(digest, usize::from(curve.bits()));
        !digest.is_empty()
            && with_curve!(*curve, C => verify_on::<C>(point, &z, r_s).is_some(), false)
    }

    /// Returns whether `signature` signs `message` (RFC 8032, 5.1.7). Keys and R of small order are refused, because
    /// they sign every message.
    #[must_use]
    pub fn verify_eddsa(&self, message: &[u8], signature: &[u8]) -> bool {
        let Self::Ed25519(key) = self else {
            return false;
        };
        let signature = ed25519_dalek::Signature::from_slice(signature);
        let key = ed25519_dalek::VerifyingKey::from_bytes(key);
        matches!((key, signature), (Ok(key), Ok(signature))
            if key.verify_strict(message, &signature).is_ok())
    }
}

fn is_modulus(modulus: &[u8]) -> bool {
    MODULUS_LEN.contains(&modulus.len())
        && modulus.first().is_some_and(|first| *first != 0)
        && modulus.last().is_some_and(|last| last % 2 == 1)
}

/// Returns whether the exponent is odd and not 1.
fn is_exponent(exponent: &[u8]) -> bool {
    exponent.len() <= MAX_EXPONENT_LEN
        && exponent.last().is_some_and(|last| last % 2 == 1)
        && exponent.iter().map(|byte| u32::from(*byte)).sum::<u32>() > 1
}

/// Returns the leftmost `bits` of `digest` as a number (FIPS 186-5, 6.4.2, step 2). A shorter digest is used whole.
fn leftmost(digest: &[u8], bits: usize) -> Vec<u8> {
    let len = bits.div_ceil(8);
    let Some(kept) = digest.get(..len) else {
        return digest.to_vec();
    };
    let shift = len * 8 - bits;
    let before = std::iter::once(&0).chain(kept);
    before
        .zip(kept)
        .map(|(high, low)| (u16::from_be_bytes([*high, *low]) >> shift).to_be_bytes()[1])
        .collect()
}

fn decode_point<C>(point: &[u8]) -> Option<ecdsa::elliptic_curve::PublicKey<C>>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    C::AffinePoint: FromSec1Point<C> + ToSec1Point<C>,
{
    ecdsa::elliptic_curve::PublicKey::from_sec1_bytes(point).ok()
}

fn verify_on<C>(point: &[u8], z: &[u8], r_s: &[u8]) -> Option<()>
where
    C: EcdsaCurve + CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    C::AffinePoint: FromSec1Point<C> + ToSec1Point<C>,
    SignatureSize<C>: ArraySize,
    <FieldBytesSize<C> as Add>::Output: Add<ecdsa::der::MaxOverhead> + ArraySize,
{
    let key = decode_point::<C>(point)?;
    // Some curves accept only the low s by convention. (r, -s) is as valid as (r, s), so the low one is passed on.
    let signature = Signature::<C>::from_slice(r_s).ok()?.normalize_s();
    hazmat::verify_prehashed(&key.to_projective(), z, &signature).ok()
}
