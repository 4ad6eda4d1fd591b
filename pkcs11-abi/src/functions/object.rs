//! Object management (PKCS #11 2.40, 5.7).

use std::sync::Arc;

use claviger_token::{Object, Template, Value};
use cryptoki_sys::{CK_ATTRIBUTE, CK_OBJECT_HANDLE, CK_SESSION_HANDLE, CK_ULONG};

use crate::{
    module::Module,
    pointer::{In, Out, attribute_bytes, attribute_room},
    rv::{Failure, Rule},
    sessions::{Search, Session},
};

/// CK_UNAVAILABLE_INFORMATION.
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;
/// More attributes than Cryptoki defines are no template.
const MAX_ATTRIBUTES: CK_ULONG = 1024;

fn object(session: &Session, handle: CK_OBJECT_HANDLE) -> Result<Arc<Object>, Failure> {
    let object = session.reader.object(session.card, session.applet, handle);
    object.ok_or_else(|| Rule::OBJECT_HANDLE_INVALID.into())
}

fn attributes(
    template: In<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<Vec<CK_ATTRIBUTE>, Failure> {
    if count > MAX_ATTRIBUTES {
        return Err(Rule::ARGUMENTS_BAD.into());
    }
    template.list(count)
}

/// C_GetAttributeValue: every entry is processed, whatever happens to the others.
pub(crate) fn attribute_value(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    template: Out<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let mut entries = attributes(template.as_in(), count)?;
    let object = object(&session, handle)?;
    let mut first = Ok(());
    for entry in &mut entries {
        let answered = answer(&object, entry);
        entry.ulValueLen = *answered.as_ref().unwrap_or(&UNAVAILABLE);
        first = first.and(answered.map(|_| ()));
    }
    if !entries.is_empty() {
        template.put_all(&entries)?;
    }
    Ok(first?)
}

/// Copies one value to its room and returns its length.
fn answer(object: &Object, entry: &CK_ATTRIBUTE) -> Result<CK_ULONG, Rule> {
    let value = object
        .get(entry.type_)
        .ok_or(Rule::ATTRIBUTE_TYPE_INVALID)?;
    let bytes = value.encode().ok_or(Rule::ATTRIBUTE_SENSITIVE)?;
    let len = CK_ULONG::try_from(bytes.len()).unwrap_or(UNAVAILABLE);
    let room = attribute_room(entry);
    if room.is_null() {
        return Ok(len);
    }
    if entry.ulValueLen < len {
        return Err(Rule::BUFFER_TOO_SMALL);
    }
    room.put_all(&bytes).map_err(|_| Rule::ARGUMENTS_BAD)?;
    Ok(len)
}

/// C_GetObjectSize: the bytes of its values.
pub(crate) fn size(
    module: &Module,
    session: CK_SESSION_HANDLE,
    handle: CK_OBJECT_HANDLE,
    size: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    size.check()?;
    let bytes: usize = object(&session, handle)?
        .values()
        .filter_map(Value::encode)
        .map(|value| value.len())
        .sum();
    size.put(CK_ULONG::try_from(bytes).unwrap_or(UNAVAILABLE))
}

/// C_FindObjectsInit: the whole answer is found here, as of now.
pub(crate) fn find_init(
    module: &Module,
    session: CK_SESSION_HANDLE,
    template: In<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    let entries = attributes(template, count)?;
    let mut operations = session.operations();
    if operations.search.is_some() {
        return Err(Rule::OPERATION_ACTIVE.into());
    }
    let entry = |entry: &CK_ATTRIBUTE| Ok((entry.type_, attribute_bytes(entry)?));
    let template = Template(entries.iter().map(entry).collect::<Result<_, Failure>>()?);
    let mut rest = session
        .reader
        .find(session.card, session.applet, &template)?;
    rest.reverse();
    operations.search = Some(Search { rest });
    Ok(())
}

/// C_FindObjects.
pub(crate) fn find(
    module: &Module,
    session: CK_SESSION_HANDLE,
    list: Out<'_, CK_OBJECT_HANDLE>,
    max: CK_ULONG,
    count: Out<'_, CK_ULONG>,
) -> Result<(), Failure> {
    let session = module.session(session)?;
    count.check()?;
    if max > 0 {
        list.check()?;
    }
    let mut operations = session.operations();
    let search = operations
        .search
        .as_mut()
        .ok_or(Rule::OPERATION_NOT_INITIALIZED)?;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let at = search.rest.len().saturating_sub(max);
    let given: Vec<CK_OBJECT_HANDLE> = search.rest.split_off(at).into_iter().rev().collect();
    if !given.is_empty() {
        list.put_all(&given)?;
    }
    count.put(CK_ULONG::try_from(given.len()).unwrap_or(UNAVAILABLE))
}

/// C_FindObjectsFinal.
pub(crate) fn find_final(module: &Module, session: CK_SESSION_HANDLE) -> Result<(), Failure> {
    let session = module.session(session)?;
    let search = session.operations().search.take();
    search
        .map(|_| ())
        .ok_or_else(|| Rule::OPERATION_NOT_INITIALIZED.into())
}
