//! Copies the caller's templates to values (PKCS #11 3.1, 4.1).

use claviger_token::Template;
use cryptoki_sys::{CK_ATTRIBUTE, CK_ULONG};

use crate::{
    pointer::{Input, attribute_bytes},
    rv::{Failure, ReturnCode},
};

/// The limit for the attributes of a template. Cryptoki defines fewer.
const MAX_ATTRIBUTES: CK_ULONG = 1024;

/// Copies the attributes of a template, with the caller's pointers.
///
/// # Errors
/// ARGUMENTS_BAD.
pub(super) fn attributes(
    template: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<Vec<CK_ATTRIBUTE>, Failure> {
    if count > MAX_ATTRIBUTES {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    template.list(count)
}

/// Copies a template with its values.
///
/// # Errors
/// ARGUMENTS_BAD. ATTRIBUTE_VALUE_INVALID for a null value with a length, or an impossible length.
pub(super) fn template(
    attributes: Input<'_, CK_ATTRIBUTE>,
    count: CK_ULONG,
) -> Result<Template, Failure> {
    let entries = self::attributes(attributes, count)?;
    let mut template = Template::default();
    for entry in &entries {
        template.0.push((entry.type_, attribute_bytes(entry)?));
    }
    Ok(template)
}
