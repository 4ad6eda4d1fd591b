//! Session management (PKCS #11 2.40, 5.6).

use claviger_apdu::Secret;
use cryptoki_sys::{
    CK_FLAGS, CK_SESSION_HANDLE, CK_SESSION_INFO, CK_SESSION_VALIDATION_FLAGS_TYPE, CK_SLOT_ID,
    CK_STATE, CK_ULONG, CK_USER_TYPE, CKF_RW_SESSION, CKF_SERIAL_SESSION, CKS_LAST_VALIDATION_OK,
    CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS, CKS_RW_PUBLIC_SESSION, CKS_RW_SO_FUNCTIONS,
    CKS_RW_USER_FUNCTIONS, CKU_CONTEXT_SPECIFIC, CKU_SO, CKU_USER,
};

use crate::{
    card::LoginState,
    module::Module,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// CKF_ASYNC_SESSION of PKCS #11 3.2, 3.3.
const ASYNC_SESSION: CK_FLAGS = 8;

/// C_OpenSession. The application's pointer and callback are never used.
pub(crate) fn open(
    module: &Module,
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    handle: Output<'_, CK_SESSION_HANDLE>,
) -> Result<(), Failure> {
    module.events.refresh();
    module.slot(slot)?;
    if flags & CKF_SERIAL_SESSION == 0 {
        return Err(ReturnCode::SESSION_PARALLEL_NOT_SUPPORTED.into());
    }
    if flags & ASYNC_SESSION != 0 {
        return Err(ReturnCode::SESSION_ASYNC_NOT_SUPPORTED.into());
    }
    handle.check()?;
    let token = module.token_ref(slot)?;
    token.cached()?;
    let read_write = flags & CKF_RW_SESSION != 0;
    if !read_write && token.login_state() == LoginState::SecurityOfficer {
        return Err(ReturnCode::SESSION_READ_WRITE_SO_EXISTS.into());
    }
    let session = Session::new(slot, token, read_write);
    handle.write(module.sessions.add(session))
}

/// C_CloseSession.
pub(crate) fn close(module: &Module, handle: CK_SESSION_HANDLE) -> Result<(), Failure> {
    module.close_session(handle)
}

/// C_CloseAllSessions. Succeeds also if the slot has no session.
pub(crate) fn close_all(module: &Module, slot: CK_SLOT_ID) -> Result<(), Failure> {
    module.slot(slot)?;
    for handle in module.sessions.on_slot(slot) {
        // An error means that the card was removed or another thread closed the session: in both cases the session is closed.
        drop(module.close_session(handle));
    }
    Ok(())
}

/// C_GetSessionInfo. Touches no card, because a command could end a context login.
pub(crate) fn info(
    module: &Module,
    handle: CK_SESSION_HANDLE,
    info: Output<'_, CK_SESSION_INFO>,
) -> Result<(), Failure> {
    let session = module.session(handle)?;
    info.write(CK_SESSION_INFO {
        slotID: session.slot,
        state: state(&session),
        flags: CKF_SERIAL_SESSION
            | if session.read_write {
                CKF_RW_SESSION
            } else {
                0
            },
        ulDeviceError: 0,
    })
}

fn state(session: &Session) -> CK_STATE {
    match (session.token.login_state(), session.read_write) {
        (LoginState::LoggedOut, false) => CKS_RO_PUBLIC_SESSION,
        (LoginState::LoggedOut, true) => CKS_RW_PUBLIC_SESSION,
        (LoginState::User, false) => CKS_RO_USER_FUNCTIONS,
        (LoginState::User, true) => CKS_RW_USER_FUNCTIONS,
        (LoginState::SecurityOfficer, _) => CKS_RW_SO_FUNCTIONS,
    }
}

/// C_Login, as the user, as the security officer, or as a context login.
pub(crate) fn login(
    module: &Module,
    handle: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: Input<'_, u8>,
    len: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(handle)?;
    match (user, session.token.login_state()) {
        (CKU_CONTEXT_SPECIFIC, _) => return context_login(&session, pin, len),
        (CKU_USER, LoginState::User) | (CKU_SO, LoginState::SecurityOfficer) => {
            return Err(ReturnCode::USER_ALREADY_LOGGED_IN.into());
        }
        (CKU_USER, LoginState::SecurityOfficer) | (CKU_SO, LoginState::User) => {
            return Err(ReturnCode::USER_ANOTHER_ALREADY_LOGGED_IN.into());
        }
        (CKU_USER, LoginState::LoggedOut) => {}
        (CKU_SO, LoginState::LoggedOut) => {
            let (all, read_write) = module.sessions.count(session.slot, session.token.insertion);
            if all > read_write {
                return Err(ReturnCode::SESSION_READ_ONLY_EXISTS.into());
            }
        }
        _ => return Err(ReturnCode::USER_TYPE_INVALID.into()),
    }
    let pin = read_pin(pin, len)?;
    session.token.with_token(|card, token| {
        if user == CKU_SO {
            token.so_login(card, &pin)
        } else {
            token.login(card, &pin)
        }
    })?;
    // If another thread has closed the session meanwhile, possibly no session is left that could log out.
    if module.sessions.get(handle).is_none() {
        session.token.logout()?;
        return Err(ReturnCode::SESSION_HANDLE_INVALID.into());
    }
    Ok(())
}

/// Logs in with CKU_CONTEXT_SPECIFIC. The PIN is for the operation that waits for it.
fn context_login(session: &Session, pin: Input<'_, u8>, len: CK_ULONG) -> Result<(), Failure> {
    let mut operations = session.operations();
    let waiting = operations.awaiting_context_login();
    let (key, context_pin) = waiting.ok_or(ReturnCode::OPERATION_NOT_INITIALIZED)?;
    let pin = read_pin(pin, len)?;
    session
        .token
        .with_token(|card, token| token.context_login(card, &key, &pin))?;
    *context_pin = Some(pin);
    Ok(())
}

/// C_LoginUser. Users have no names, so a name is ARGUMENTS_BAD. Without a name the function is C_Login.
pub(crate) fn login_user(
    module: &Module,
    handle: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    (pin, len): (Input<'_, u8>, CK_ULONG),
    name_len: CK_ULONG,
) -> Result<(), Failure> {
    if name_len != 0 {
        module.session(handle)?;
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    login(module, handle, user, pin, len)
}

/// C_SessionCancel. Ends the operations that `flags` name. Flags of inactive operations are ignored.
pub(crate) fn cancel(
    module: &Module,
    handle: CK_SESSION_HANDLE,
    flags: CK_FLAGS,
) -> Result<(), Failure> {
    let session = module.session(handle)?;
    session.operations().cancel(flags);
    Ok(())
}

/// C_GetSessionValidationFlags. Always gives 0: the module has no validations (PKCS #11 3.2, 5.6.12).
pub(crate) fn validation_flags(
    module: &Module,
    handle: CK_SESSION_HANDLE,
    kind: CK_SESSION_VALIDATION_FLAGS_TYPE,
    flags: Output<'_, CK_FLAGS>,
) -> Result<(), Failure> {
    module.session(handle)?;
    flags.check()?;
    if kind != CKS_LAST_VALIDATION_OK {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    flags.write(0)
}

/// The limit for the length of a PIN. Every applet rejects a PIN of this length.
const MAX_PIN: usize = 1024;

/// Copies a PIN. A null PIN is ARGUMENTS_BAD, because no token has a PIN pad. A PIN of `MAX_PIN` bytes or more is not read. A
/// dummy of that length stands in, and every applet rejects it.
pub(super) fn read_pin(pin: Input<'_, u8>, len: CK_ULONG) -> Result<Secret, Failure> {
    if pin.is_null() {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    match usize::try_from(len) {
        Ok(0..MAX_PIN) => Ok(Secret::copy_from(pin.bytes(len)?)),
        _ => Ok(Secret::new(vec![0; MAX_PIN])),
    }
}

/// C_Logout. Logs out in the module and on the card.
pub(crate) fn logout(module: &Module, handle: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(handle)?;
    if session.token.login_state() == LoginState::LoggedOut {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    module.end_private_operations(&session);
    session.token.logout()
}

/// C_GetFunctionStatus and C_CancelFunction. Functions have not run in parallel since version 2.0 of the standard.
pub(crate) fn not_parallel(module: &Module, handle: CK_SESSION_HANDLE) -> Result<(), Failure> {
    module.session(handle)?;
    Err(ReturnCode::FUNCTION_NOT_PARALLEL.into())
}
