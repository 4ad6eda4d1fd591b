//! The results of earlier calls: slots, sessions, and objects with the operations that they allow.

use cryptoki_sys::*;

/// What an object is to a mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    Rsa,
    Ec,
    Edwards,
    Montgomery,
    Generic,
    Aes,
    /// A certificate, data, or no object.
    Nothing,
    /// A key that is to be.
    Birth,
}

impl Nature {
    pub(crate) fn of(class: CK_OBJECT_CLASS, key_type: CK_KEY_TYPE) -> Self {
        match (class, key_type) {
            (CKO_PRIVATE_KEY | CKO_PUBLIC_KEY, CKK_RSA) => Self::Rsa,
            (CKO_PRIVATE_KEY | CKO_PUBLIC_KEY, CKK_EC) => Self::Ec,
            (CKO_PRIVATE_KEY | CKO_PUBLIC_KEY, CKK_EC_EDWARDS) => Self::Edwards,
            (CKO_PRIVATE_KEY | CKO_PUBLIC_KEY, CKK_EC_MONTGOMERY) => Self::Montgomery,
            (CKO_SECRET_KEY, CKK_AES) => Self::Aes,
            (CKO_SECRET_KEY, _) => Self::Generic,
            _ => Self::Nothing,
        }
    }

    pub(crate) const fn mechanisms(self) -> &'static [CK_MECHANISM_TYPE] {
        match self {
            Self::Rsa => &[
                CKM_RSA_PKCS,
                CKM_RSA_X_509,
                CKM_SHA1_RSA_PKCS,
                CKM_SHA256_RSA_PKCS,
                CKM_SHA512_RSA_PKCS,
                CKM_RSA_PKCS_OAEP,
                CKM_RSA_PKCS_PSS,
                CKM_SHA256_RSA_PKCS_PSS,
                CKM_SHA384_RSA_PKCS_PSS,
            ],
            Self::Ec => &[
                CKM_ECDSA,
                CKM_ECDSA_SHA1,
                CKM_ECDSA_SHA256,
                CKM_ECDSA_SHA384,
                CKM_ECDSA_SHA512,
                CKM_ECDH1_DERIVE,
                CKM_ECDH1_COFACTOR_DERIVE,
            ],
            Self::Edwards => &[CKM_EDDSA],
            Self::Montgomery => &[CKM_ECDH1_DERIVE, CKM_ECDH1_COFACTOR_DERIVE],
            Self::Generic => &[
                CKM_SHA_1_HMAC,
                CKM_SHA256_HMAC,
                CKM_SHA512_HMAC,
                CKM_SHA_1_HMAC_GENERAL,
                CKM_SHA256_HMAC_GENERAL,
                CKM_SHA384_HMAC_GENERAL,
            ],
            Self::Aes => &[
                CKM_AES_ECB,
                CKM_AES_CBC,
                CKM_AES_CBC_PAD,
                CKM_AES_CTR,
                CKM_AES_GCM,
                CKM_AES_KEY_WRAP,
                CKM_AES_KEY_WRAP_KWP,
            ],
            Self::Nothing => &[CKM_SHA_1, CKM_SHA224, CKM_SHA256, CKM_SHA384, CKM_SHA512],
            Self::Birth => &[CKM_AES_KEY_GEN, CKM_GENERIC_SECRET_KEY_GEN],
        }
    }
}

/// How many handles of a kind are remembered.
const MANY: usize = 48;

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) slots: Vec<usize>,
    pub(crate) sessions: Vec<usize>,
    pub(crate) objects: Vec<(usize, Nature)>,
    /// Handles of what is gone.
    pub(crate) stale: Vec<usize>,
    last: Option<usize>,
}

impl Known {
    pub(crate) fn last_session(&self) -> Option<usize> {
        self.last.filter(|last| self.sessions.contains(last))
    }

    pub(crate) const fn use_session(&mut self, session: usize) {
        self.last = Some(session);
    }

    pub(crate) fn add_session(&mut self, session: usize) {
        // More sessions than this only make each one less used.
        if self.sessions.len() == 6 {
            self.stale.push(self.sessions.remove(0));
        }
        self.sessions.push(session);
        self.last = Some(session);
    }

    pub(crate) fn learn_slots(&mut self, slots: &[usize]) {
        for slot in slots {
            if !self.slots.contains(slot) && self.slots.len() < MANY {
                self.slots.push(*slot);
            }
        }
    }

    pub(crate) fn add_object(&mut self, object: usize, nature: Nature) {
        self.objects.retain(|(known, _)| *known != object);
        if self.objects.len() == MANY {
            self.stale.push(self.objects.remove(0).0);
        }
        self.objects.push((object, nature));
    }

    /// Nothing is there any more: the generation has ended.
    pub(crate) fn forget(&mut self) {
        self.stale.append(&mut self.sessions);
        self.stale
            .extend(self.objects.drain(..).map(|(object, _)| object));
        self.slots.clear();
        self.last = None;
        let most = self.stale.len().saturating_sub(MANY);
        self.stale.drain(..most);
    }
}
