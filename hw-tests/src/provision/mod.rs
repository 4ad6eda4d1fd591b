//! Personalising a card over plain APDUs: keys generated on the card, certificates of a throw-away authority.
//!
//! A [`CardProfile`] says what the card shall hold. PINs stay as the factory set them ([`PIN`], [`ADMIN_PIN`]).

mod applet_channel;
mod certificate;
mod openpgp;
mod piv;
mod profile;
mod public_key;

use std::{collections::BTreeMap, fs, io, path::Path};

pub use self::{
    applet_channel::ProvisionError,
    piv::MANAGEMENT_KEY,
    profile::{CardProfile, CertificateForm, KeyAlgorithm, OpenPgpPlan, PivKey, PivPlan},
    public_key::PublicKey,
};
use crate::card::{State, VirtualCard};

/// The user PIN of both applets.
pub const PIN: &str = "123456";
/// The PIV PUK and the OpenPGP admin PIN.
pub const ADMIN_PIN: &str = "12345678";

/// What was issued: certificates in DER by name, `ca`, `piv-9A`, `openpgp-03` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedCertificates(BTreeMap<String, Vec<u8>>);

impl IssuedCertificates {
    const SUFFIX: &str = ".der";

    /// The certificate called `name`.
    #[must_use]
    pub fn certificate(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Writes each certificate to `folder`, as `NAME.der`.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|(name, der)| fs::write(folder.join(name.clone() + Self::SUFFIX), der))
    }

    /// Reads what [`IssuedCertificates::write`] wrote.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut issued = Self::default();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(Self::SUFFIX))
            {
                issued.0.insert(name.to_owned(), fs::read(entry.path())?);
            }
        }
        Ok(issued)
    }

    fn add(&mut self, name: impl Into<String>, der: Vec<u8>) {
        self.0.insert(name.into(), der);
    }
}

/// Makes `card` hold what `plan` says, and power-cycles it. RSA keys take seconds each.
///
/// # Errors
/// [`ProvisionError`] names the step the card refused.
pub fn provision(
    card: &VirtualCard,
    profile: &CardProfile,
) -> Result<IssuedCertificates, ProvisionError> {
    let issuer = certificate::Issuer::new()?;
    let mut issued = IssuedCertificates::default();
    issued.add("ca", issuer.certificate().to_vec());
    if let Some(piv) = &profile.piv {
        piv::provision(card, piv, &issuer, &mut issued)?;
    }
    if let Some(openpgp) = &profile.openpgp {
        openpgp::provision(card, openpgp, &issuer, &mut issued)?;
    }
    card.reset();
    Ok(issued)
}

/// The card of `plan` with its memory in `folder`, provisioned there unless that was done before; changes last.
///
/// Two processes must not do so at once for one folder.
///
/// # Errors
/// As [`provision`], or when the folder cannot be used.
pub fn provisioned(
    folder: &Path,
    profile: &CardProfile,
) -> Result<(VirtualCard, IssuedCertificates), ProvisionError> {
    let card = VirtualCard::power_up(profile.card(State::Folder(folder.to_owned())))?;
    let done = folder.join(profile.folder_name());
    if done.try_exists()? {
        return Ok((card, IssuedCertificates::read(folder)?));
    }
    let issued = provision(&card, profile)?;
    issued.write(folder)?;
    fs::write(done, [])?;
    Ok((card, issued))
}
