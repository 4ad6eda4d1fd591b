//! The profiles of PKCS #11 Profiles 3.2 that every token here conforms to.

use std::sync::{Arc, LazyLock};

use cryptoki_sys::{
    CK_ULONG, CKA_PROFILE_ID, CKO_PROFILE, CKP_AUTHENTICATION_TOKEN, CKP_BASELINE_PROVIDER,
    CKP_EXTENDED_PROVIDER, CKP_PUBLIC_CERTIFICATES_TOKEN,
};

use crate::{attribute::Value, object::Object};

/// Returns the profile objects.
pub(crate) fn all() -> impl Iterator<Item = Arc<Object>> {
    static PROFILES: LazyLock<[Arc<Object>; 4]> = LazyLock::new(|| {
        [
            CKP_BASELINE_PROVIDER,
            CKP_EXTENDED_PROVIDER,
            CKP_AUTHENTICATION_TOKEN,
            CKP_PUBLIC_CERTIFICATES_TOKEN,
        ]
        .map(|id| Arc::new(profile(id)))
    });
    PROFILES.iter().cloned()
}

/// Builds the object of a profile that every token conforms to (PKCS #11 Profiles 3.2). By the text it is not a storage
/// object, but NSS searches for one with CKA_TOKEN.
fn profile(id: CK_ULONG) -> Object {
    let number = u32::try_from(id).unwrap_or(u32::MAX);
    let mut object = Object::new(CKO_PROFILE, number, "", false);
    object.set([(CKA_PROFILE_ID, Value::Ulong(id))]);
    object
}
