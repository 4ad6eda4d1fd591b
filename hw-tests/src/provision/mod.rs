//! Provisions a card by APDUs: generates keys on the card, and certificates of a temporary authority.
//!
//! A [`CardProfile`] describes the content of the card. The PINs stay at the factory values ([`PIN`], [`ADMIN_PIN`]).

mod applet_channel;
mod certificate;
mod issued_certificates;
mod openpgp;
mod pins;
mod piv;
mod profile;
mod public_key;

use std::{fs, path::Path};

pub use self::{
    applet_channel::ProvisionError,
    issued_certificates::IssuedCertificates,
    pins::{ADMIN_PIN, PIN},
    piv::MANAGEMENT_KEY,
    profile::{CardProfile, CertificateForm, KeyAlgorithm, OpenPgpPlan, PivKey, PivPlan},
    public_key::PublicKey,
};
use crate::card::{State, VirtualCard};

/// Writes the content of `profile` to `card`, and power-cycles it. Each RSA key takes seconds.
///
/// # Errors
/// [`ProvisionError`] names the step that failed.
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

/// Powers up the card of `profile` whose memory is in `folder`, and provisions it if that was not done before. Changes are
/// saved.
///
/// Two processes must not do this at once for one folder.
///
/// # Errors
/// As [`provision`], or if the folder cannot be used.
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
