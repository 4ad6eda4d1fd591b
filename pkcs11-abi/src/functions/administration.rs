//! PINs changed, keys made and objects written on the token (PKCS #11 3.1, 5.5.8, 5.5.9, 5.7 and 5.18.2).

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

/// C_SetPIN: of whoever is logged in, or else of the user.
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

/// C_InitPIN: the security officer gives the user a PIN.
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

/// What is on the token only the security officer changes, who has no sessions that may not write.
pub(super) fn require_so_login(session: &Session) -> Result<(), Failure> {
    match (session.read_write, session.token.login_state()) {
        (false, _) => Err(ReturnCode::SESSION_READ_ONLY.into()),
        (true, LoginState::SecurityOfficer) => Ok(()),
        (true, LoginState::LoggedOut | LoginState::User) => {
            Err(ReturnCode::USER_NOT_LOGGED_IN.into())
        }
    }
}

/// C_GenerateKeyPair: on the card, in the place CKA_ID names, over the key that is there.
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
        let place = token
            .key_reference_of(&plan.id)
            .ok_or_else(|| no_key_reference(&plan.id))?;
        token.generate_key(card, place, plan.algorithm, SystemTime::now())?;
        token.objects_of(card, &plan.id)
    })?;
    let public = handle_of(&session, &made, CKO_PUBLIC_KEY)?;
    let private = handle_of(&session, &made, CKO_PRIVATE_KEY)?;
    public_key.write(public)?;
    private_key.write(private)
}

/// The handle of the one of `objects` with this class; a private key's is good for as long as its user is logged in.
fn handle_of(
    session: &Session,
    objects: &[Arc<Object>],
    class: CK_ULONG,
) -> Result<CK_OBJECT_HANDLE, Failure> {
    let object = objects.iter().find(|object| object.id.class == class);
    let object = object.ok_or_else(|| {
        TokenError::malformed(
            "the card",
            "what was just made is not there when looked for",
        )
    })?;
    session
        .token
        .with_handles(|handles| handles.handle(Arc::clone(object)))
}

fn no_key_reference(id: &[u8]) -> TokenError {
    TokenError::value(format!("the card has no place with CKA_ID {id:02X?}"))
}

/// An object on the token by C_CreateObject: a certificate where CKA_ID says, or a data object where CKA_OBJECT_ID says.
pub(super) fn create(session: &Session, template: &Template) -> Result<CK_OBJECT_HANDLE, Failure> {
    let class = template.ulong(CKA_CLASS);
    if !matches!(class, Some(CKO_CERTIFICATE | CKO_DATA)) {
        return Err(ReturnCode::TEMPLATE_INCONSISTENT.into());
    }
    // A certificate on a card is for everyone who has the card.
    if class == Some(CKO_CERTIFICATE) && template.wants_private() == Some(true) {
        return Err(ReturnCode::TEMPLATE_INCONSISTENT.into());
    }
    // Held to all the rules of its class before the card sees it.
    let object = claviger_token::session_object::create(template, false)?;
    require_so_login(session)?;
    let value = bytes(&object, CKA_VALUE);
    let written = if object.id.class == CKO_CERTIFICATE {
        let id = bytes(&object, CKA_ID);
        session.token.with_token(|card, token| {
            let place = token
                .key_reference_of(&id)
                .ok_or_else(|| no_key_reference(&id))?;
            token.put_certificate(card, place, Some(&value))?;
            token.objects_of(card, &id)
        })?
    } else {
        let oid = bytes(&object, CKA_OBJECT_ID);
        session.token.with_token(|card, token| {
            let place = data_place(&token.writable_data_objects(), &oid)?;
            token.put_data(card, place, Some(&value))?;
            let template = Template(vec![
                (CKA_CLASS, CKO_DATA.to_ne_bytes().to_vec()),
                (CKA_OBJECT_ID, oid.clone()),
            ]);
            token.find(card, &template)
        })?
    };
    handle_of(session, &written, object.id.class)
}

/// The place of a data object with this CKA_OBJECT_ID, DER.
fn data_place(places: &[(u32, Vec<u8>)], oid: &[u8]) -> Result<u32, TokenError> {
    let content = claviger_apdu::tlv::only(oid, 0x06).unwrap_or_default();
    let mine = |(_, other): &&(u32, Vec<u8>)| !content.is_empty() && other == content;
    places
        .iter()
        .find(mine)
        .map(|(place, _)| *place)
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

/// Takes an object off the token.
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
    let place = object.id.number;
    session
        .token
        .with_token(|card, token| match u8::try_from(place) {
            Ok(place) if object.id.class == CKO_CERTIFICATE => {
                token.put_certificate(card, place, None)
            }
            _ => token.put_data(card, place, None),
        })?;
    session
        .token
        .with_handles(|handles| handles.remove_object(handle))
}
