//! What an applet must know for its token to be administered: PINs changed, keys made, objects written.

use std::time::SystemTime;

use claviger_apdu::Secret;

use crate::{
    algorithm::{KeyAlgorithm, PublicKey},
    card::AppletTransaction,
    error::TokenError,
    pin::{PinStatus, PinTries},
};

/// What the security officer is about to do; a card may want another secret for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoPurpose {
    /// Give the user a new PIN.
    Pin,
    /// Make keys and write objects.
    Contents,
}

/// The administration of one applet.
///
/// The security officer's secret (*SO PIN*) is the PUK or the management key of PIV, and the admin PIN of OpenPGP.
/// Every [`AppletTransaction`] has proved the applet; for [`Administration::generate`] and what writes, the security
/// officer was verified in this very conversation. A change makes the applet forget what it knows of the place.
pub trait Administration {
    /// Holds `so` to the rules the card is known to have, before a try is spent on it.
    ///
    /// # Errors
    /// [`TokenError::SoPinForm`].
    fn check_so_pin(&self, so: &Secret) -> Result<(), TokenError>;

    /// Tries of the security officer as last heard.
    fn so_tries(&self) -> PinTries;

    /// Proves `so` to the card: one try, where the card counts any.
    ///
    /// # Errors
    /// [`TokenError::WrongSoPin`], [`TokenError::SoPinLocked`], or of the transport.
    fn so_verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError>;

    /// Asks whether `so` is still verified for `work`; spends no try.
    ///
    /// # Errors
    /// [`TokenError::NotLoggedIn`] when `work` needs another secret than `so`.
    fn so_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        work: SoPurpose,
    ) -> Result<PinStatus, TokenError>;

    /// Makes the card forget that `so` was verified.
    ///
    /// # Errors
    /// When the card knows no way to, which leaves it verified until it is reset.
    fn so_unverify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
    ) -> Result<(), TokenError>;

    /// Gives the user who knows `old` the PIN `new`. `old` is verified by itself before anything is changed, and
    /// may stay so, also when `new` is refused.
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`] before a PIN is sent, [`TokenError::WrongPin`] after one try,
    /// [`TokenError::PinLocked`], [`TokenError::NewPinInvalid`], or of the transport.
    fn change_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// Gives the security officer who knows `old` the secret `new` of the same kind.
    ///
    /// # Errors
    /// As [`Administration::change_user_pin`], with the errors of the security officer.
    fn change_so_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        old: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// Gives the user the PIN `new` and all tries back. `so` is logged in for [`SoPurpose::PinState`].
    ///
    /// # Errors
    /// [`TokenError::NewPinLength`] before a PIN is sent, [`TokenError::NewPinInvalid`],
    /// [`TokenError::WrongSoPin`], [`TokenError::SoPinLocked`], or of the transport.
    fn init_user_pin(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        so: &Secret,
        new: &Secret,
    ) -> Result<(), TokenError>;

    /// The keys the card can make in one place or another, as far as it is known.
    fn generatable_algorithms(&self) -> Vec<KeyAlgorithm>;

    /// The key reference whose objects have this CKA_ID.
    fn key_reference_of(&self, id: &[u8]) -> Option<u8>;

    /// Makes a key in a number, over the one that is there. `created` becomes its date where the card keeps one.
    ///
    /// # Errors
    /// [`TokenError::KeyNotGenerable`] before anything is changed; any other leaves the place with the old key,
    /// the new one or none.
    fn generate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        algorithm: KeyAlgorithm,
        created: SystemTime,
    ) -> Result<PublicKey, TokenError>;

    /// Writes the certificate of a number, or with `None` removes it.
    ///
    /// # Errors
    /// [`TokenError::NoSpace`], [`TokenError::ValueInvalid`] when there is no such number, or of the transport.
    fn put_certificate(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        reference: u8,
        der: Option<&[u8]>,
    ) -> Result<(), TokenError>;

    /// Writes a data object, CKA_VALUE as it is, or with `None` removes it. `place` is its
    /// [`crate::object::ObjectId::place`].
    ///
    /// # Errors
    /// As [`Administration::put_certificate`].
    fn put_data(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        number: u32,
        content: Option<&[u8]>,
    ) -> Result<(), TokenError>;

    /// The places data objects can be written to: [`crate::object::ObjectId::place`] and the content octets of
    /// the object identifier, which may be empty.
    fn writable_data_objects(&self) -> Vec<(u32, Vec<u8>)>;

    /// Whether [`Administration::random`] gives any.
    fn has_random(&self) -> bool;

    /// `len` bytes of the card's randomness; `None` where the card gives none.
    ///
    /// # Errors
    /// Of the transport, or when the card gives other than it was asked for.
    fn random(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        len: usize,
    ) -> Result<Option<Secret>, TokenError>;
}
