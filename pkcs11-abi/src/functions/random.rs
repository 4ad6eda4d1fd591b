//! Random numbers (PKCS #11 2.40, 5.15).

use cryptoki_sys::CK_SESSION_HANDLE;

use crate::{
    module::Module,
    rv::{Failure, Rule},
};

/// C_SeedRandom and C_GenerateRandom: no token has CKF_RNG so far, and callers take this answer for that.
pub(crate) fn none(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    module.session(session)?;
    Err(Rule::RANDOM_NO_RNG.into())
}
