//! Administration of a token: what an applet implements to change PINs, generate keys and write objects.

use std::time::SystemTime;

use claviger_apdu::Secret;

use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    card::AppletTransaction,
    error::TokenError,
    pin::{PinStatus, PinTries},
};

/// The task of the security officer (SO). A card may want another secret for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoPurpose {
    /// Give the user a new PIN.
    Pin,
    /// Generate keys and write objects.
    Contents,
}

/// The administration of one applet.
///
/// The SO PIN is the PUK or the management key of PIV, and the admin PIN of OpenPGP. In every [`AppletTransaction`]
/// passed here, except to [`Administration::random`], the applet is confirmed to be selected. Before
/// [`Administration::generate`] and the methods that write, the SO was also verified in the same transaction. A change
/// drops the cached objects of its key reference.
pub trait Administration {
    /// Checks `so` against the known rules of the card, before a try is spent on it.
    ///
    /// # Errors
    /// [`TokenError::SoPinForm`].
    fn check_so_pin(&self, so: &Secret) -> Result<(), TokenError>;

    /// Returns the tries of the SO PIN, as the card last reported them.
    fn so_tries(&self) -> PinTries;

    /// Sends `so` to the card for verification. This costs one try if the card counts tries.
    ///
    /// # Errors
    /// [`TokenError::WrongSoPin`], [`TokenError::SoPinLocked`], or an error of the transport.
    fn so_verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError>;

    /// Returns whether `so` is still verified for `purpose`, as far as the card reports it. Spends no try.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`] if `purpose` needs another secret than `so`.
    fn so_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        purpose: SoPurpose,
    ) -> Result<PinStatus, TokenError>;

    /// Ends the verification of `so` on the card.
    ///
    /// # Errors
    /// An error if the card has no command for it. `so` then stays verified until the card is reset.
    fn so_unverify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError>;

    /// Changes the user's PIN from `old` to `new`. The card verifies `old` by itself before anything is changed. The PIN
    /// may stay verified, even if the card refuses `new`.
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`] before a PIN is sent, [`TokenError::WrongPin`] after one try,
    /// [`TokenError::PinLocked`], [`TokenError::NewPinInvalid`], or an error of the transport.
    fn change_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// Changes the SO PIN from `old` to `new`, a secret of the same kind.
    ///
    /// # Errors
    /// As [`Administration::change_user_pin`], with the errors for the SO PIN.
    fn change_so_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// Sets the user's PIN to `new` and restores all its tries. `so` is logged in for [`SoPurpose::Pin`].
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`] before a PIN is sent, [`TokenError::NewPinInvalid`], [`TokenError::WrongSoPin`],
    /// [`TokenError::SoPinLocked`], or an error of the transport.
    fn init_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// Returns the algorithms for which the card can generate a key in at least one key reference, as far as known.
    fn generatable_algorithms(&self) -> Vec<KeyAlgorithm>;

    /// Returns the key reference whose objects have this CKA_ID.
    fn key_reference_of(&self, id: &[u8]) -> Option<u8>;

    /// Generates a key in `reference` and replaces the present one. `created` is stored if the card keeps a date.
    ///
    /// # Errors
    /// [`TokenError::KeyNotGenerable`] before anything is changed. After any other error the key reference holds the
    /// old key, the new key or no key.
    fn generate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        algorithm: KeyAlgorithm,
        created: SystemTime,
    ) -> Result<PublicKey, TokenError>;

    /// Writes the certificate of `reference`. `None` removes the certificate.
    ///
    /// # Errors
    /// [`TokenError::NoSpace`], [`TokenError::ValueInvalid`] if there is no such key reference, or an error of the
    /// transport.
    fn put_certificate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError>;

    /// Writes `content`, an unchanged CKA_VALUE, to a data object. `None` removes the content. `number` is the object's
    /// [`crate::object::ObjectId::number`].
    ///
    /// # Errors
    /// As [`Administration::put_certificate`].
    fn put_data(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        number: u32,
        content: Option<&[u8]>,
    ) -> Result<(), TokenError>;

    /// Returns the data objects that can be written: [`crate::object::ObjectId::number`] and the content octets of the
    /// object identifier, which may be empty.
    fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)>;

    /// Returns whether [`Administration::random`] gives random bytes.
    fn has_random(&self) -> bool;

    /// Returns `len` random bytes from the card, or `None` if the card gives none.
    ///
    /// # Errors
    /// An error of the transport, or an error if the card gives another number of bytes.
    fn random(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        len: usize,
    ) -> Result<Option<Secret>, TokenError>;
}
