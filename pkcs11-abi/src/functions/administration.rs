//! Changes PINs, generates key pairs and writes objects on the token (PKCS #11 3.1, 5.5.8, 5.5.9, 5.7 and 5.18.2).

use std::{sync::Arc, time::SystemTime};

use claviger_token::{
    Object, Template, TokenError, Value, key_pair_spec::KeyPairSpec, operation::mechanism_for,
};
use cryptoki_sys::{
    CK_ATTRIBUTE, CK_MECHANISM, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG, CKA_CLASS, CKA_ID,
    CKA_OBJECT_ID, CKA_VALUE, CKF_GENERATE_KEY_PAIR, CKO_CERTIFICATE, CKO_DATA, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
};

use super::{session::read_pin, template::template};
use crate::{
    card::LoginState,
    module::Module,
    parameter,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// C_SetPIN. Changes the security officer's PIN if the security officer is logged in, otherwise the user's PIN.
pub(crate) fn set_pin(
    module: &Module,
    session: CK_SESSION_HANDLE,
    (old, old_len): (Input<'_, u8>, CK_ULONG),
    (new, new_len): (Input<'_, u8>, CK_ULONG),
) -> Result<(), Failure> {
    let session = module.session(session)?;
    if !session.read_write {
        return Err(ReturnCode::SESSION_READ_ONLY.into());
    }
    let (old, new) = (read_pin(old, old_len)?, read_pin(new, new_len)?);
    session
        .token
        .with_token(|card, token| token.set_pin(card, &old, &new))
}

/// C_InitPIN. The security officer sets the user's PIN.
pub(crate) fn init_pin(
    module: &Module,
    session: CK_SESSION_HANDLE,
    (pin, len): (Input<'_, u8>, CK_ULONG),
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let pin = read_pin(pin, len)?;
    require_so_login(&session)?;
    session
        .token
        .with_token(|card, token| token.init_pin(card, &pin))
}

/// Checks that the security officer is logged in and the session is read/write. Changes of the token need this.
///
/// # Errors
/// SESSION_READ_ONLY, USER_NOT_LOGGED_IN.
pub(super) fn require_so_login(session: &Session) -> Result<(), Failure> {
    match (session.read_write, session.token.login_state()) {
        (false, _) => Err(ReturnCode::SESSION_READ_ONLY.into()),
        (true, LoginState::SecurityOfficer) => Ok(()),
        (true, LoginState::LoggedOut | LoginState::User) => {
            Err(ReturnCode::USER_NOT_LOGGED_IN.into())
        }
    }
}

/// C_GenerateKeyPair. The card generates the key at the key reference of CKA_ID and overwrites the key that is there.
pub(crate) fn generate_key_pair(
    module: &Module,
    session: CK_SESSION_HANDLE,
    mechanism: Input<'_, CK_MECHANISM>,
    (public, public_count): (Input<'_, CK_ATTRIBUTE>, CK_ULONG),
    (private, private_count): (Input<'_, CK_ATTRIBUTE>, CK_ULONG),
    (public_key, private_key): (Output<'_, CK_OBJECT_HANDLE>, Output<'_, CK_OBJECT_HANDLE>),
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mechanism = mechanism.get()?;
    let public = template(public, public_count)?;
    let private = template(private, private_count)?;
    public_key.check()?;
    private_key.check()?;
    let known = mechanism_for(mechanism.mechanism, CKF_GENERATE_KEY_PAIR)?;
    parameter::read(&mechanism, known)?;
    let plan = KeyPairSpec::new(known, &public, &private)?;
    require_so_login(&session)?;
    let made = session.token.with_token(|card, token| {
        let key_reference = token
            .key_reference_of(&plan.id)
            .ok_or_else(|| no_key_reference(&plan.id))?;
        token.generate_key(card, key_reference, plan.algorithm, SystemTime::now())?;
        token.objects_of(card, &plan.id)
    })?;
    let public = handle_of(&session, &made, CKO_PUBLIC_KEY)?;
    let private = handle_of(&session, &made, CKO_PRIVATE_KEY)?;
    public_key.write(public)?;
    private_key.write(private)
}

/// Returns the handle of the object with this class. The handle of a private key is valid only while the user is logged in.
fn handle_of(
    session: &Session,
    objects: &[Arc<Object>],
    class: CK_ULONG,
) -> Result<CK_OBJECT_HANDLE, Failure> {
    let object = objects.iter().find(|object| object.id.class == class);
    let object =
        object.ok_or_else(|| TokenError::malformed("the card", "the new object was not found"))?;
    session
        .token
        .with_handles(|handles| handles.handle(Arc::clone(object)))
}

fn no_key_reference(id: &[u8]) -> TokenError {
    TokenError::value(format!(
        "the card has no key reference for CKA_ID {id:02X?}"
    ))
}

/// Writes an object of C_CreateObject on the token: a certificate at the key reference of CKA_ID, or the data object with
/// this CKA_OBJECT_ID.
pub(super) fn create(session: &Session, template: &Template) -> Result<CK_OBJECT_HANDLE, Failure> {
    let class = template.ulong(CKA_CLASS);
    if !matches!(class, Some(CKO_CERTIFICATE | CKO_DATA)) {
        return Err(ReturnCode::TEMPLATE_INCONSISTENT.into());
    }
    // Reading a certificate from a card needs no login, so a certificate cannot be private.
    if class == Some(CKO_CERTIFICATE) && template.wants_private() == Some(true) {
        return Err(ReturnCode::TEMPLATE_INCONSISTENT.into());
    }
    // Checks all rules of the class before the card is used.
    let object = claviger_token::session_object::create(template, false)?;
    require_so_login(session)?;
    let value = bytes(&object, CKA_VALUE);
    let written = if object.id.class == CKO_CERTIFICATE {
        let id = bytes(&object, CKA_ID);
        session.token.with_token(|card, token| {
            let key_reference = token
                .key_reference_of(&id)
                .ok_or_else(|| no_key_reference(&id))?;
            token.put_certificate(card, key_reference, Some(&value))?;
            token.objects_of(card, &id)
        })?
    } else {
        let oid = bytes(&object, CKA_OBJECT_ID);
        session.token.with_token(|card, token| {
            let number = data_object_number(&token.writable_data_objects(), &oid)?;
            token.put_data(card, number, Some(&value))?;
            let template = Template(vec![
                (CKA_CLASS, CKO_DATA.to_ne_bytes().to_vec()),
                (CKA_OBJECT_ID, oid.clone()),
            ]);
            token.find(card, &template)
        })?
    };
    handle_of(session, &written, object.id.class)
}

/// Returns the number of the data object with this CKA_OBJECT_ID, which is in DER.
fn data_object_number(writable: &[(u32, Vec<u8>)], oid: &[u8]) -> Result<u32, TokenError> {
    let content = claviger_apdu::tlv::only(oid, 0x06).unwrap_or_default();
    let mine = |(_, other): &&(u32, Vec<u8>)| !content.is_empty() && other == content;
    writable
        .iter()
        .find(mine)
        .map(|(number, _)| *number)
        .ok_or_else(|| {
            TokenError::value("the card has no data object with this CKA_OBJECT_ID".to_owned())
        })
}

fn bytes(object: &Object, kind: cryptoki_sys::CK_ATTRIBUTE_TYPE) -> Vec<u8> {
    match object.get(kind) {
        Some(Value::Bytes(bytes)) => bytes.clone(),
        _ => Vec::new(),
    }
}

/// Deletes an object from the token.
pub(super) fn destroy(
    session: &Session,
    handle: CK_OBJECT_HANDLE,
    object: &Arc<Object>,
) -> Result<(), Failure> {
    if !session.read_write {
        return Err(ReturnCode::SESSION_READ_ONLY.into());
    }
    if !object.is_destroyable() {
        return Err(ReturnCode::ACTION_PROHIBITED.into());
    }
    require_so_login(session)?;
    let number = object.id.number;
    session
        .token
        .with_token(|card, token| match u8::try_from(number) {
            Ok(key_reference) if object.id.class == CKO_CERTIFICATE => {
                token.put_certificate(card, key_reference, None)
            }
            _ => token.put_data(card, number, None),
        })?;
    session
        .token
        .with_handles(|handles| handles.remove_object(handle))
}
