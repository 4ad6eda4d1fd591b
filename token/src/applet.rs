//! The interface between a token and an applet.

use std::sync::Arc;

use claviger_apdu::{CommandApdu, CommandBudget, Expected, Secret};
use cryptoki_sys::{CK_OBJECT_CLASS, CKA_CLASS, CKA_ID, CKA_LABEL, CKA_TOKEN};

use crate::{
    administration::Administration,
    application::{AppletKind, Application},
    attribute::Template,
    card::AppletTransaction,
    error::TokenError,
    mechanism::MechanismInfo,
    object::{Object, PrivateKey},
    operation::KeyInput,
    pin::{PinPurpose, PinStatus, PinTries},
};

/// The values of C_GetTokenInfo, as far as the card knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// A label that is unique among the cards of one owner.
    pub label: String,
    /// The manufacturer.
    pub manufacturer: String,
    /// The name of the applet.
    pub model: String,
    /// At most 16 characters, unique for each card.
    pub serial: String,
    /// Shortest PIN in bytes.
    pub min_pin_len: usize,
    /// Longest PIN in bytes.
    pub max_pin_len: usize,
    /// Major and minor version of the applet or card; 0.0 if unknown.
    pub version: (u8, u8),
    /// Tries of the user PIN.
    pub pin_tries: PinTries,
}

/// The objects that a search can match, so that no others are read.
#[derive(Clone, Debug, Default)]
pub struct SearchScope {
    /// CKA_CLASS, if the template names one.
    pub class: Option<CK_OBJECT_CLASS>,
    /// CKA_ID, if the template names one.
    pub id: Option<Vec<u8>>,
    /// CKA_LABEL, if the template names one.
    pub label: Option<Vec<u8>>,
    /// Whether private objects can match.
    pub private: bool,
}

/// A class that no object has. A search for session objects only uses it, so that the card is not read.
const NO_CLASS: CK_OBJECT_CLASS = CK_OBJECT_CLASS::MAX;

impl SearchScope {
    /// Returns the scope of `template`. `private` is true if a user is logged in.
    #[must_use]
    pub fn of_template(template: &Template, private: bool) -> Self {
        let session_only = template.bytes(CKA_TOKEN) == Some(&[0]);
        Self {
            class: if session_only {
                Some(NO_CLASS)
            } else {
                template.ulong(CKA_CLASS)
            },
            id: template.bytes(CKA_ID).map(<[u8]>::to_vec),
            label: template.bytes(CKA_LABEL).map(<[u8]>::to_vec),
            private,
        }
    }

    /// Returns whether the search can match an object with this class, id and label.
    #[must_use]
    pub fn includes(&self, class: CK_OBJECT_CLASS, id: &[u8], label: &str) -> bool {
        self.class.is_none_or(|wanted| wanted == class)
            && self.id.as_ref().is_none_or(|wanted| wanted == id)
            && self
                .label
                .as_ref()
                .is_none_or(|wanted| wanted == label.as_bytes())
    }
}

/// A command that owns its data.
#[derive(Debug)]
pub struct OwnedCommand {
    /// CLA INS P1 P2.
    pub header: [u8; 4],
    /// The data field.
    pub data: Secret,
    /// The response data that the command asks for.
    pub expected: Expected,
    /// The kind of work, which sets the timeout.
    pub budget: CommandBudget,
}

impl OwnedCommand {
    /// Returns the command with borrowed data.
    #[must_use]
    pub fn as_apdu(&self) -> CommandApdu<'_> {
        CommandApdu {
            header: self.header,
            data: self.data.expose(),
            expected: self.expected,
            budget: self.budget,
        }
    }
}

/// One applet of one card: the cache of what was read, and the encoding of commands and responses.
///
/// Methods with an [`AppletTransaction`] exchange commands with the card. All others only compute. The applet has no
/// login state: [`crate::token::Token`] has it.
pub trait Applet: Administration + Send {
    /// Returns how the applet is selected and recognised.
    fn application(&self) -> &'static Application;

    /// Returns the kind of the applet.
    fn kind(&self) -> AppletKind {
        self.application().kind
    }

    /// Returns the token information from the cache. Does not use the card.
    fn info(&self) -> TokenInfo;

    /// Returns the mechanisms that the card supports.
    fn mechanisms(&self) -> Vec<MechanismInfo>;

    /// Returns whether the card takes extended-length APDUs, as far as the applet or the answer to reset states it.
    fn extended_length(&self) -> bool;

    /// Returns whether the card supports command chaining (ISO 7816-4, 5.3.3), as far as the applet states it.
    fn chains(&self) -> bool;

    /// Updates the cache from the response to a probe or SELECT, which may hold PIN tries or PIN references.
    ///
    /// # Errors
    /// An error if the response does not parse and the applet cannot work without it.
    fn take_probe_answer(&mut self, response: &[u8]) -> Result<(), TokenError>;

    /// Checks `pin` against the known rules of the card, before a try is spent on it.
    ///
    /// # Errors
    /// [`TokenError::PinLength`].
    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError>;

    /// Verifies `pin`. The transaction has confirmed that this applet is selected.
    ///
    /// # Errors
    /// [`TokenError::WrongPin`] after exactly one try, [`TokenError::PinLocked`], or an error of the transport.
    fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError>;

    /// Asks the card whether the PIN for `key` is verified. Spends no try.
    ///
    /// # Errors
    /// An error if the card does not report it.
    fn pin_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &PrivateKey,
    ) -> Result<PinStatus, TokenError>;

    /// Ends the verification of the PIN on the card.
    ///
    /// # Errors
    /// An error if the card has no command for it. The PIN then stays verified until the card is reset.
    fn reset_verification(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError>;

    /// Reads the objects that `scope` may match and that are not in the cache.
    ///
    /// # Errors
    /// Errors of the transport only. An unreadable object is left out and logged, and does not hide the others.
    fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        scope: &SearchScope,
    ) -> Result<(), TokenError>;

    /// Returns whether the cache has everything that [`Applet::load`] would read for `scope`.
    fn is_loaded(&self, scope: &SearchScope) -> bool;

    /// Clears the cache of objects, so that they are read again.
    fn forget_objects(&mut self);

    /// Returns the cached objects, private ones included.
    fn objects(&self) -> Vec<Arc<Object>>;

    /// Returns the one command that uses `key` on `input`.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] if the input is too long for the card, [`TokenError::KeyFunctionNotPermitted`] if key
    /// and input do not fit.
    fn key_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError>;

    /// Converts the data of a 9000 response to [`Applet::key_command`] to Cryptoki's form: the signature, the raw RSA
    /// result or the unpadded message, or the shared secret.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    fn key_output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        response: &Secret,
    ) -> Result<Secret, TokenError>;

    /// Returns the name of a key in messages: "PIV key 9A", "OpenPGP signature key".
    fn key_name(&self, key: &PrivateKey) -> String;
}
