//! Personalising a card over plain APDUs: keys generated on the card, certificates of a throw-away authority.
//!
//! A [`CardProfile`] says what the card shall hold. PINs stay as the factory set them ([`PIN`], [`ADMIN_PIN`]).

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
