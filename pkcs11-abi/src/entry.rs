//! Runs every C function: catches panics, checks the initialisation and forks, logs the error, and gives the return code.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cryptoki_sys::{CK_RV, CKR_GENERAL_ERROR, CKR_OK};

use crate::{
    module::{self, Module},
    rv::{Failure, ReturnCode},
};

/// Runs a function that needs an initialised module.
pub(crate) fn call(
    function: &'static str,
    body: impl FnOnce(&Module) -> Result<(), Failure>,
) -> CK_RV {
    guard(function, || {
        let module = module::lifecycle()
            .enter()
            .ok_or(ReturnCode::NOT_INITIALIZED)?;
        if module.is_broken() {
            return Err(Failure::Environment(
                "the module is in an unknown state after an earlier internal error; call C_Finalize"
                    .to_owned(),
            ));
        }
        let broken = MarkOnPanic(&module);
        let result = body(&module);
        std::mem::forget(broken);
        result
    })
}

/// Runs a function that works without an initialised module.
pub(crate) fn guard(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(failure)) => {
            failure.log(function);
            failure.code()
        }
        Err(_) => {
            tracing::error!(
                "{function}: internal error; please report it with the panic message above"
            );
            CKR_GENERAL_ERROR
        }
    }
}

struct MarkOnPanic<'a>(&'a Module);

impl Drop for MarkOnPanic<'_> {
    fn drop(&mut self) {
        self.0.mark_broken();
    }
}
