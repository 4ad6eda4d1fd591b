//! A temporary certificate authority.

use std::{str::FromStr as _, time::Duration};

use p256::{
    ecdsa::{DerSignature, SigningKey},
    elliptic_curve::Generate as _,
};
use x509_cert::{
    TbsCertificate,
    builder::{self, Builder as _, CertificateBuilder, profile::BuilderProfile},
    der::{Encode as _, asn1::Ia5String, flagset::FlagSet},
    ext::{
        Extension, ToExtension as _,
        pkix::{BasicConstraints, KeyUsage, KeyUsages, SubjectAltName, name::GeneralName},
    },
    name::Name,
    serial_number::SerialNumber,
    spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef},
    time::Validity,
};

use super::{ProvisionError, PublicKey};

/// Validity of the certificates, from now.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
const AUTHORITY: &str = "CN=Claviger Test CA,O=Claviger";

/// Signs certificates with a key that is never stored.
pub(super) struct Issuer {
    key: SigningKey,
    certificate: Vec<u8>,
}

impl Issuer {
    pub(super) fn new() -> Result<Self, ProvisionError> {
        let key = SigningKey::generate();
        let spki = SubjectPublicKeyInfoOwned::from_key(key.verifying_key())
            .map_err(builder::Error::from)?;
        let profile = Profile {
            subject: Name::from_str(AUTHORITY)?,
            usage: KeyUsages::KeyCertSign | KeyUsages::CRLSign,
            authority: true,
        };
        let certificate = sign(&key, profile, 1, spki)?;
        Ok(Self { key, certificate })
    }

    /// The authority's own certificate, in DER.
    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Issues a certificate in DER for `key`.
    pub(super) fn certify(
        &self,
        common_name: &str,
        serial: u32,
        key: &PublicKey,
        usage: FlagSet<KeyUsages>,
    ) -> Result<Vec<u8>, ProvisionError> {
        let subject = Name::from_str(&format!("CN={common_name},O=Claviger"))?;
        sign(
            &self.key,
            Profile {
                subject,
                usage,
                authority: false,
            },
            serial,
            key.spki()?,
        )
    }
}

fn sign(
    key: &SigningKey,
    profile: Profile,
    serial: u32,
    spki: SubjectPublicKeyInfoOwned,
) -> Result<Vec<u8>, ProvisionError> {
    let validity = Validity::from_now(VALIDITY)?;
    let builder = CertificateBuilder::new(profile, SerialNumber::from(serial), validity, spki)?;
    Ok(builder.build::<_, DerSignature>(key)?.to_der()?)
}

struct Profile {
    subject: Name,
    usage: FlagSet<KeyUsages>,
    authority: bool,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _: &Name) -> Name {
        Name::from_str(AUTHORITY).unwrap_or_default()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = tbs.subject();
        let mut extensions = Vec::new();
        let constraints = BasicConstraints {
            ca: self.authority,
            path_len_constraint: None,
        };
        extensions.push(constraints.to_extension(subject, &extensions)?);
        extensions.push(KeyUsage(self.usage).to_extension(subject, &extensions)?);
        if !self.authority {
            let host = GeneralName::DnsName(Ia5String::new("localhost")?);
            extensions.push(SubjectAltName(vec![host]).to_extension(subject, &extensions)?);
        }
        Ok(extensions)
    }
}
