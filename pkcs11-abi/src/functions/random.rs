//! Random numbers (PKCS #11 3.1, 5.19).

use claviger_token::{TokenError, host};
use cryptoki_sys::{CK_SESSION_HANDLE, CK_ULONG};

use crate::{
    module::Module,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// The largest number of bytes that one request to the card or the operating system asks for.
const PIECE: usize = 4096;

/// C_SeedRandom. Always fails: the operating system's generator needs no seed.
pub(crate) fn seed(
    module: &Module,
    session: CK_SESSION_HANDLE,
    seed: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    module.session(session)?;
    seed.bytes(len)?;
    Err(ReturnCode::RANDOM_SEED_NOT_SUPPORTED.into())
}

/// C_GenerateRandom. The bytes come from the card if the token has CKF_RNG, otherwise from the operating system.
pub(crate) fn generate(
    module: &Module,
    session: CK_SESSION_HANDLE,
    random: Output<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let pieces = random.pieces(len, PIECE)?;
    let cache = session.token.cached()?;
    for (piece, len) in pieces {
        let by_card = if cache.has_random {
            session
                .token
                .with_token(|card, token| token.random(card, len))?
        } else {
            None
        };
        let bytes = match by_card {
            Some(bytes) => bytes,
            None => host::random::random(len).map_err(|_| TokenError::NoRandom)?,
        };
        piece.put_all(bytes.expose())?;
    }
    Ok(())
}
