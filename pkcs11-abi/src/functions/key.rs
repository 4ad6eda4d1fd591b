//! Derives, wraps, unwraps and generates secret keys of a session (PKCS #11 3.1, 5.18).

use claviger_apdu::Secret;
use claviger_token::{
    TokenError, host,
    mechanism::Scheme,
    operation::{Derivation, Unwrapping, mechanism_for, unwrap_key, wrap_key},
    session_object::{SecretKeySource, SecretKeySpec},
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKA_KEY_TYPE,
    CKA_VALUE_LEN, CKF_DERIVE, CKF_GENERATE, CKF_UNWRAP, CKF_WRAP, CKK_AES, CKK_GENERIC_SECRET,
};

use super::{
    object::check_creation,
    operation::{resolve_init, write_output},
    template::template,
};
use crate::{
    module::Module,
    parameter,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// Converts an error of a wrapping or unwrapping key. `type_inconsistent` is the function's code for a key of a wrong type.
fn as_wrapping(error: TokenError, type_inconsistent: ReturnCode) -> Failure {
    match error {
        TokenError::KeyTypeInconsistent(_) => type_inconsistent.into(),
        error => error.into(),
    }
}

fn as_wrapped(error: TokenError) -> Failure {
    match error {
        TokenError::EncryptedDataLength { .. } => ReturnCode::WRAPPED_KEY_LEN_RANGE.into(),
        TokenError::EncryptedDataInvalid | TokenError::AuthenticationTag => {
            ReturnCode::WRAPPED_KEY_INVALID.into()
        }
        error => as_wrapping(error, ReturnCode::UNWRAPPING_KEY_TYPE_INCONSISTENT),
    }
}

/// Adds the key of `plan` to the session's objects and writes its handle.
fn add(
    session: &Session,
    plan: SecretKeySpec,
    value: Secret,
    coming: SecretKeySource,
    handle: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let object = plan.finish(value, coming, session.token.is_logged_in())?;
    handle.write(session.add_object(object)?)
}

/// C_DeriveKey. Key agreement with a private key on the card.
pub(crate) fn derive(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    base: CK_OBJECT_HANDLE,
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
    handle: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    let template = template(attributes, count)?;
    handle.check()?;
    let from = resolve_init(
        &session,
        &mechanism,
        base,
        CKF_DERIVE,
        ReturnCode::KEY_HANDLE_INVALID,
    )?;
    let derivation = Derivation::new(from.mechanism, &from.parameter, &from.key)?;
    check_creation(&session, &template)?;
    let has_no_type = template.bytes(CKA_KEY_TYPE).is_none();
    let plan = SecretKeySpec::new(&template, has_no_type.then_some(CKK_GENERIC_SECRET))?;
    let len = plan.len.unwrap_or_else(|| derivation.natural_len());
    if plan.key_type() == CKK_AES && ![16, 24, 32].contains(&len) {
        return Err(missing(CKA_VALUE_LEN));
    }
    let shared = session.token.with_token(|card, token| {
        token.use_private_key(card, &derivation.key, &derivation.input(), None)
    })?;
    let value = derivation.derive(shared, len)?;
    add(&session, plan, value, SecretKeySource::Derived, handle)
}

fn missing(attribute: cryptoki_sys::CK_ATTRIBUTE_TYPE) -> Failure {
    TokenError::Template {
        fault: claviger_token::TemplateFault::Incomplete,
        attribute,
    }
    .into()
}

/// C_WrapKey. Wraps a secret key of a session. Keys on the card cannot be extracted.
pub(crate) fn wrap(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    wrapping: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    wrapped: Output<'_, u8>,
    wrapped_len: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    wrapped_len.check()?;
    let missing = ReturnCode::WRAPPING_KEY_HANDLE_INVALID;
    let from = resolve_init(&session, &mechanism, wrapping, CKF_WRAP, missing)?;
    let key = session.key(key, ReturnCode::KEY_HANDLE_INVALID)?;
    let done = wrap_key(from.mechanism, &from.parameter, &from.key, &key)
        .map_err(|error| as_wrapping(error, ReturnCode::WRAPPING_KEY_TYPE_INCONSISTENT))?;
    write_output(done.expose(), wrapped, wrapped_len).map(|_| ())
}

/// C_UnwrapKey. Unwraps with a key of the card or of a session. The unwrapped key becomes a session object.
#[allow(clippy::too_many_arguments, reason = "the standard's own")]
pub(crate) fn unwrap(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    unwrapping: CK_OBJECT_HANDLE,
    (wrapped, wrapped_len): (Input<'_, u8>, CK_ULONG),
    (attributes, count): (Input<'_, CK_ATTRIBUTE>, CK_ULONG),
    handle: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    let template = template(attributes, count)?;
    handle.check()?;
    let wrapped = wrapped.bytes(wrapped_len)?;
    let missing = ReturnCode::UNWRAPPING_KEY_HANDLE_INVALID;
    let from = resolve_init(&session, &mechanism, unwrapping, CKF_UNWRAP, missing)?;
    check_creation(&session, &template)?;
    let plan = SecretKeySpec::new(&template, None)?;
    let begun = unwrap_key(from.mechanism, &from.parameter, &from.key, wrapped);
    let value = match begun.map_err(as_wrapped)? {
        Unwrapping::Done(value) => value,
        Unwrapping::Card(mut operation) => session
            .token
            .with_token(|card, token| token.decrypt(card, &mut operation))
            .map_err(|failure| match failure {
                Failure::Token(error) => as_wrapped(error),
                failure => failure,
            })?,
    };
    // If the value's length does not suit the key type, the wrapped key is invalid.
    match add(&session, plan, value, SecretKeySource::FromOutside, handle) {
        Err(Failure::Token(TokenError::KeySize | TokenError::Template { .. })) => {
            Err(ReturnCode::WRAPPED_KEY_INVALID.into())
        }
        added => added,
    }
}

/// C_GenerateKey. Generates a random secret key of the session on the host.
pub(crate) fn generate(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
    handle: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    let template = template(attributes, count)?;
    handle.check()?;
    let known = mechanism_for(mechanism.mechanism, CKF_GENERATE)?;
    parameter::read(&mechanism, known)?;
    check_creation(&session, &template)?;
    let key_type = match known.scheme {
        Scheme::AesKeyGeneration => CKK_AES,
        _ => CKK_GENERIC_SECRET,
    };
    let plan = SecretKeySpec::new(&template, Some(key_type))?;
    let len = plan.len.ok_or_else(|| missing(CKA_VALUE_LEN))?;
    let value = host::random::random(len).map_err(|_| TokenError::NoRandom)?;
    add(
        &session,
        plan,
        value,
        SecretKeySource::Generated(known.kind),
        handle,
    )
}
