//! Object management (PKCS #11 2.40, 5.7).

use claviger_token::{Object, Template, Value, session_object};
use cryptoki_sys::{CK_ATTRIBUTE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};

use super::{
    administration,
    template::{attributes, template},
};
use crate::{
    module::Module,
    operations::{ActiveOperation, Search},
    pointer::{Input, Output, attribute_room},
    rv::{Failure, ReturnCode},
    sessions::Session,
};

/// CK_UNAVAILABLE_INFORMATION.
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

/// Checks that `session` may create a session object with this template.
///
/// # Errors
/// For a token object: SESSION_READ_ONLY, or TEMPLATE_INCONSISTENT in a read/write session. USER_NOT_LOGGED_IN for a private
/// object.
pub(super) fn check_creation(session: &Session, template: &Template) -> Result<(), Failure> {
    if template.wants_token_object() {
        return Err(if session.read_write {
            ReturnCode::TEMPLATE_INCONSISTENT.into()
        } else {
            ReturnCode::SESSION_READ_ONLY.into()
        });
    }
    if template.wants_private() == Some(true) && !session.token.is_logged_in() {
        return Err(ReturnCode::USER_NOT_LOGGED_IN.into());
    }
    Ok(())
}

/// C_CreateObject. Creates a public key, secret key, certificate or data object in the session, or a certificate or data
/// object on the token.
pub(crate) fn create(
    module: &Module,
    session: CK_SESSION_HANDLE,
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
    handle: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let template = template(attributes, count)?;
    handle.check()?;
    if template.wants_token_object() {
        return handle.write(administration::create(&session, &template)?);
    }
    check_creation(&session, &template)?;
    let object = session_object::create(&template, session.token.is_logged_in())?;
    handle.write(session.add_object(object)?)
}

/// C_CopyObject. The copy is a session object.
pub(crate) fn copy(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
    copy: Output<'_, CK_OBJECT_HANDLE>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let template = template(attributes, count)?;
    copy.check()?;
    let object = session.object(handle, ReturnCode::OBJECT_HANDLE_INVALID)?;
    check_creation(&session, &template)?;
    let copied = object.copy_with(&template)?;
    copy.write(session.add_object(copied)?)
}

/// C_DestroyObject. Destroys a session object, or a certificate or data object on the token.
pub(crate) fn destroy(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let object = session.object(handle, ReturnCode::OBJECT_HANDLE_INVALID)?;
    if object.is_on_token() {
        return administration::destroy(&session, handle, &object);
    }
    if !object.is_destroyable() {
        return Err(ReturnCode::ACTION_PROHIBITED.into());
    }
    Ok(session
        .token
        .with_handles(|handles| handles.replace(handle, None))??)
}

/// C_SetAttributeValue. Applies the whole template or nothing.
pub(crate) fn set_attribute_value(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let template = template(attributes, count)?;
    let object = session.object(handle, ReturnCode::OBJECT_HANDLE_INVALID)?;
    check_change(&session, &object)?;
    let changed = object.with_changes(&template)?;
    Ok(session
        .token
        .with_handles(|handles| handles.replace(handle, Some(changed)))??)
}

/// Checks that the object may be changed. Token objects never change.
///
/// # Errors
/// For a token object: SESSION_READ_ONLY, or ACTION_PROHIBITED in a read/write session.
fn check_change(session: &Session, object: &Object) -> Result<(), Failure> {
    match (object.is_on_token(), session.read_write) {
        (true, false) => Err(ReturnCode::SESSION_READ_ONLY.into()),
        (true, true) => Err(ReturnCode::ACTION_PROHIBITED.into()),
        (false, _) => Ok(()),
    }
}

/// C_GetAttributeValue. Processes every entry, also after an error in another entry. Returns the first error.
pub(crate) fn attribute_value(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    template: Output<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut entries = attributes(template.as_in(), count)?;
    let object = session.object(handle, ReturnCode::OBJECT_HANDLE_INVALID)?;
    let mut first = Ok(());
    for entry in &mut entries {
        let copied = copy_value(&object, entry);
        entry.ulValueLen = *copied.as_ref().unwrap_or(&UNAVAILABLE);
        first = first.and(copied.map(|_| ()));
    }
    if !entries.is_empty() {
        template.put_all(&entries)?;
    }
    Ok(first?)
}

/// Copies one value to the buffer of its entry, if there is one. Returns the length of the value.
fn copy_value(object: &Object, entry: &CK_ATTRIBUTE) -> Result<CK_ULONG, ReturnCode> {
    let value = object
        .get(entry.type_)
        .ok_or(ReturnCode::ATTRIBUTE_TYPE_INVALID)?;
    let bytes = value.encode().ok_or(ReturnCode::ATTRIBUTE_SENSITIVE)?;
    let len = CK_ULONG::try_from(bytes.len()).unwrap_or(UNAVAILABLE);
    let room = attribute_room(entry);
    if room.is_null() {
        return Ok(len);
    }
    if entry.ulValueLen < len {
        return Err(ReturnCode::BUFFER_TOO_SMALL);
    }
    room.put_all(&bytes)
        .map_err(|_| ReturnCode::ARGUMENTS_BAD)?;
    Ok(len)
}

/// C_GetObjectSize. The size is the sum of the lengths of the readable values.
pub(crate) fn size(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    size: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    size.check()?;
    let bytes: usize = session
        .object(handle, ReturnCode::OBJECT_HANDLE_INVALID)?
        .values()
        .filter_map(Value::encode)
        .map(|value| value.len())
        .sum();
    size.write(CK_ULONG::try_from(bytes).unwrap_or(UNAVAILABLE))
}

/// C_FindObjectsInit. Finds all matching objects now. C_FindObjects returns their handles.
pub(crate) fn find_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    template: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let template = super::template::template(template, count)?;
    let state = &mut session.operations().search;
    state.begin(|| {
        let mut rest = session.token.find(&template)?;
        rest.reverse();
        Ok(ActiveOperation::new(Search { rest }, false))
    })
}

/// C_FindObjects.
pub(crate) fn find(
    module: &Module,
    session: CK_SESSION_HANDLE,
    list: Output<'_, CK_OBJECT_HANDLE>,
    max: CK_ULONG,
    count: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    count.check()?;
    if max > 0 {
        list.check()?;
    }
    let mut operations = session.operations();
    let search = &mut operations.search.active()?.operation;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let at = search.rest.len().saturating_sub(max);
    let given: Vec<CK_OBJECT_HANDLE> = search.rest.split_off(at).into_iter().rev().collect();
    if !given.is_empty() {
        list.put_all(&given)?;
    }
    count.write(CK_ULONG::try_from(given.len()).unwrap_or(UNAVAILABLE))
}

/// C_FindObjectsFinal.
pub(crate) fn find_final(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    session.operations().search.final_part(|_| Ok(()))
}
