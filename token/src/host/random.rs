//! The operating system's random numbers.

use claviger_apdu::Secret;
use zeroize::Zeroizing;

/// The operating system gives no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random numbers")]
pub struct NoRandom;

/// Returns `len` random bytes.
///
/// # Errors
///
/// [`NoRandom`] if the operating system gives no random numbers.
pub fn random(len: usize) -> Result<Secret, NoRandom> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    fill(&mut bytes)?;
    Ok(Secret::new(std::mem::take(&mut *bytes)))
}

/// Fills all of `target` with random bytes.
///
/// # Errors
///
/// [`NoRandom`] if the operating system gives no random numbers. The content of `target` must then not be used.
pub fn fill(target: &mut [u8]) -> Result<(), NoRandom> {
    getrandom::fill(target).map_err(|error| {
        tracing::error!(%error, "the operating system gives no random numbers");
        NoRandom
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_are_as_many_as_asked_for_and_differ_each_time() {
        for len in [0, 1, 31, 1 << 16] {
            assert_eq!(random(len).unwrap().len(), len);
        }
        let (first, second) = (random(32).unwrap(), random(32).unwrap());
        assert_ne!(first.expose(), second.expose());
    }

    #[test]
    fn random_fill_reaches_every_byte() {
        let mut seen = [0u8; 64];
        for _ in 0..32 {
            let mut target = [0; 64];
            fill(&mut target).unwrap();
            seen.iter_mut()
                .zip(target)
                .for_each(|(seen, byte)| *seen |= byte);
        }
        assert!(seen.iter().all(|byte| *byte != 0));
    }
}
