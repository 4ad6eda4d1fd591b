//! The key pair that the templates of C_GenerateKeyPair describe: its algorithm and its key reference on the card.

use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_ULONG, CKA_CLASS, CKA_EC_PARAMS, CKA_EXTRACTABLE, CKA_ID, CKA_KEY_TYPE,
    CKA_MODULUS_BITS, CKA_PRIVATE, CKA_PUBLIC_EXPONENT, CKA_SENSITIVE, CKA_TOKEN, CKK_RSA,
    CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

use crate::{
    algorithm::KeyAlgorithm,
    attribute::{Template, Value},
    attribute_table::{self, fault},
    error::{TemplateFault, TokenError},
    mechanism::{Mechanism, Scheme},
    named_curve::{NamedCurve, curve_of},
};

/// The public exponent of every key that a card generates.
const F4: &[u8] = &[1, 0, 1];

/// A key pair to generate on the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairSpec {
    /// The algorithm.
    pub algorithm: KeyAlgorithm,
    /// CKA_ID, which names the key reference on the card.
    pub id: Vec<u8>,
}

impl KeyPairSpec {
    /// Reads the two templates. The card has no space for labels and permissions: those of the key reference apply, and
    /// those in the templates are accepted without effect.
    ///
    /// # Errors
    /// A fault of a template, CURVE_NOT_SUPPORTED, or DOMAIN_PARAMS_INVALID.
    pub fn new(
        mechanism: Mechanism,
        public: &Template,
        private: &Template,
    ) -> Result<Self, TokenError> {
        let key_type = key_type(mechanism)?;
        let halves = [
            (
                CKO_PUBLIC_KEY,
                attribute_table::read(public, CKO_PUBLIC_KEY)?,
            ),
            (
                CKO_PRIVATE_KEY,
                attribute_table::read(private, CKO_PRIVATE_KEY)?,
            ),
        ];
        for (class, values) in &halves {
            for (kind, value) in values {
                check(*kind, value, *class, key_type)?;
            }
        }
        let [(_, public), (_, private)] = &halves;
        let algorithm = if key_type == CKK_RSA {
            rsa(public)?
        } else {
            curve(public, key_type)?
        };
        let id = match (bytes(private, CKA_ID), bytes(public, CKA_ID)) {
            (Some(one), Some(other)) if one != other => {
                return Err(fault(TemplateFault::Inconsistent, CKA_ID));
            }
            (Some(id), _) | (None, Some(id)) => id.to_vec(),
            (None, None) => return Err(fault(TemplateFault::Incomplete, CKA_ID)),
        };
        Ok(Self { algorithm, id })
    }
}

type Values = [(CK_ATTRIBUTE_TYPE, Value)];

fn bytes(values: &Values, kind: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
    values.iter().find_map(|(given, value)| match value {
        Value::Bytes(bytes) if *given == kind => Some(bytes.as_slice()),
        _ => None,
    })
}

fn key_type(mechanism: Mechanism) -> Result<CK_ULONG, TokenError> {
    match mechanism.scheme {
        Scheme::KeyPairGeneration(key_type) => Ok(key_type),
        _ => Err(TokenError::MechanismInvalid(mechanism.kind)),
    }
}

/// Refuses attribute values that no key of a card can have.
fn check(
    kind: CK_ATTRIBUTE_TYPE,
    value: &Value,
    class: CK_ULONG,
    key_type: CK_ULONG,
) -> Result<(), TokenError> {
    let is_private = class == CKO_PRIVATE_KEY;
    let fits = match (kind, value) {
        (CKA_CLASS, Value::Ulong(said)) => *said == class,
        (CKA_KEY_TYPE, Value::Ulong(said)) => *said == key_type,
        (CKA_TOKEN | CKA_SENSITIVE, said) => *said == Value::Bool(true),
        (CKA_EXTRACTABLE, said) => *said == Value::Bool(false),
        (CKA_PRIVATE, Value::Bool(said)) => *said == is_private,
        _ => true,
    };
    if fits {
        Ok(())
    } else {
        Err(fault(TemplateFault::Inconsistent, kind))
    }
}

fn rsa(public: &Values) -> Result<KeyAlgorithm, TokenError> {
    if bytes(public, CKA_PUBLIC_EXPONENT).is_some_and(|exponent| {
        let zeros = exponent.iter().take_while(|byte| **byte == 0).count();
        exponent.get(zeros..) != Some(F4)
    }) {
        return Err(fault(TemplateFault::ValueInvalid, CKA_PUBLIC_EXPONENT));
    }
    let bits = public.iter().find_map(|(kind, value)| match value {
        Value::Ulong(bits) if *kind == CKA_MODULUS_BITS => Some(*bits),
        _ => None,
    });
    let bits = bits.ok_or_else(|| fault(TemplateFault::Incomplete, CKA_MODULUS_BITS))?;
    u16::try_from(bits)
        .map(|bits| KeyAlgorithm::Rsa { bits })
        .map_err(|_| TokenError::KeySize)
}

fn curve(public: &Values, key_type: CK_ULONG) -> Result<KeyAlgorithm, TokenError> {
    let parameters = bytes(public, CKA_EC_PARAMS)
        .ok_or_else(|| fault(TemplateFault::Incomplete, CKA_EC_PARAMS))?;
    Ok(match curve_of(key_type, parameters)? {
        NamedCurve::Prime(curve) => KeyAlgorithm::Ec(curve),
        NamedCurve::Ed25519 => KeyAlgorithm::Ed25519,
        NamedCurve::X25519 => KeyAlgorithm::X25519,
    })
}

#[cfg(test)]
mod tests {
    use cryptoki_sys::{CKF_GENERATE_KEY_PAIR, CKM_EC_KEY_PAIR_GEN, CKM_RSA_PKCS_KEY_PAIR_GEN};

    use super::*;
    use crate::{algorithm::Curve, operation::mechanism_for};

    fn spec(
        kind: CK_ULONG,
        public: &[(CK_ATTRIBUTE_TYPE, &[u8])],
        private: &[(CK_ATTRIBUTE_TYPE, &[u8])],
    ) -> Result<KeyPairSpec, TokenError> {
        let template = |entries: &[(CK_ATTRIBUTE_TYPE, &[u8])]| {
            Template(
                entries
                    .iter()
                    .map(|(kind, value)| (*kind, value.to_vec()))
                    .collect(),
            )
        };
        let mechanism = mechanism_for(kind, CKF_GENERATE_KEY_PAIR)?;
        KeyPairSpec::new(mechanism, &template(public), &template(private))
    }

    #[test]
    fn key_pair_spec_takes_size_or_curve_and_id_from_the_templates() {
        let bits = 2048u64.to_ne_bytes();
        let made = spec(
            CKM_RSA_PKCS_KEY_PAIR_GEN,
            &[
                (CKA_MODULUS_BITS, &bits),
                (CKA_PUBLIC_EXPONENT, &[0, 1, 0, 1]),
            ],
            &[(CKA_ID, &[1])],
        );
        let expected = KeyPairSpec {
            algorithm: KeyAlgorithm::Rsa { bits: 2048 },
            id: vec![1],
        };
        assert_eq!(made.unwrap(), expected);
        let oid = claviger_apdu::tlv::encode(0x06, Curve::P256.oid());
        let made = spec(
            CKM_EC_KEY_PAIR_GEN,
            &[(CKA_EC_PARAMS, &oid), (CKA_ID, &[3])],
            &[],
        );
        assert_eq!(made.unwrap().algorithm, KeyAlgorithm::Ec(Curve::P256));
    }

    type Entries<'a> = &'a [(CK_ATTRIBUTE_TYPE, &'a [u8])];

    fn faulty(public: Entries<'_>, private: Entries<'_>) -> TemplateFault {
        match spec(CKM_RSA_PKCS_KEY_PAIR_GEN, public, private) {
            Err(TokenError::Template { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn incomplete_or_inconsistent_key_pair_template_is_refused() {
        let bits = 2048u64.to_ne_bytes();
        let good = (CKA_MODULUS_BITS, &bits[..]);
        assert_eq!(
            faulty(&[good], &[]),
            TemplateFault::Incomplete,
            "no key reference"
        );
        assert_eq!(faulty(&[], &[(CKA_ID, &[1])]), TemplateFault::Incomplete);
        let id: (CK_ATTRIBUTE_TYPE, &[u8]) = (CKA_ID, &[1]);
        assert_eq!(
            faulty(&[good, (CKA_PUBLIC_EXPONENT, &[3])], &[id]),
            TemplateFault::ValueInvalid
        );
        for (kind, value) in [(CKA_TOKEN, 0), (CKA_SENSITIVE, 0), (CKA_EXTRACTABLE, 1)] {
            assert_eq!(
                faulty(&[good], &[id, (kind, &[value])]),
                TemplateFault::Inconsistent
            );
        }
        assert_eq!(
            faulty(&[good, (CKA_ID, &[2])], &[id]),
            TemplateFault::Inconsistent
        );
    }
}
