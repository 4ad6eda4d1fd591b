//! The names of objects: the scheme of their CKA_ID and CKA_LABEL, and the user's own labels.

use std::collections::BTreeMap;

use cryptoki_sys::{CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};

use crate::object::{KeyIdentity, unique_id};

/// The module whose CKA_ID and CKA_LABEL are used for the keys and certificates of a PIV card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IdScheme {
    /// OpenSC's: 01 to 24, decimal digits, "PIV AUTH key".
    #[default]
    OpenSc,
    /// ykcs11's: 1 to 24, the plain number, "Private key for PIV Authentication".
    Ykcs11,
}

/// The names of objects. The default is OpenSC's names.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Naming {
    /// The scheme for PIV. OpenPGP has one scheme only.
    pub ids: IdScheme,
    /// The user's labels. A key is the label to replace, or a CKA_UNIQUE_ID, which distinguishes the two keys of a
    /// pair.
    pub labels: BTreeMap<String, String>,
}

impl Naming {
    /// Returns the label to show for an object with the default label `label`.
    #[must_use]
    pub fn label<'a>(&'a self, label: &'a str) -> &'a str {
        self.labels.get(label).map_or(label, String::as_str)
    }

    /// Returns `identity` with the labels to show.
    pub(crate) fn apply(&self, identity: KeyIdentity) -> KeyIdentity {
        let label = |class, label: String| {
            let id = unique_id(class, identity.reference.into());
            self.labels
                .get(&id)
                .map_or_else(|| self.label(&label).to_owned(), Clone::clone)
        };
        KeyIdentity {
            certificate_label: label(CKO_CERTIFICATE, identity.certificate_label),
            public_label: label(CKO_PUBLIC_KEY, identity.public_label),
            private_label: label(CKO_PRIVATE_KEY, identity.private_label),
            ..identity
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(labels: &[(&str, &str)]) -> Naming {
        let owned = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
        Naming {
            labels: labels.iter().map(owned).collect(),
            ..Naming::default()
        }
    }

    #[test]
    fn label_without_a_setting_stays_unchanged() {
        assert_eq!(
            naming(&[("SIGN key", "mine")]).label("KEY MAN key"),
            "KEY MAN key"
        );
    }

    #[test]
    fn two_labels_can_be_exchanged() {
        let naming = naming(&[("a", "b"), ("b", "a")]);
        assert_eq!((naming.label("a"), naming.label("b")), ("b", "a"));
    }

    #[test]
    fn each_object_of_a_key_reference_has_its_own_label() {
        let identity = KeyIdentity {
            reference: 1,
            id: vec![1],
            certificate_label: "certificate".to_owned(),
            public_label: "key".to_owned(),
            private_label: "key".to_owned(),
        };
        let halves = naming(&[("2-1", "public half"), ("key", "mine")]).apply(identity.clone());
        assert_eq!(halves.public_label, "public half");
        assert_eq!(halves.private_label, "mine");
        let identity = naming(&[("key", "mine")]).apply(identity);
        assert_eq!(identity.certificate_label, "certificate");
        assert_eq!(
            (identity.public_label, identity.private_label),
            ("mine".to_owned(), "mine".to_owned())
        );
    }
}
