//! What an applet must know of itself for a token to work with it.

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

/// What C_GetTokenInfo says, as far as the card knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Unique among the cards of one owner.
    pub label: String,
    /// Who made it.
    pub manufacturer: String,
    /// Which applet it is.
    pub model: String,
    /// At most 16 characters, unique per card.
    pub serial: String,
    /// Shortest PIN in bytes.
    pub min_pin_len: usize,
    /// Longest PIN in bytes.
    pub max_pin_len: usize,
    /// Major and minor version of the applet or card, 0.0 when unknown.
    pub version: (u8, u8),
    /// Tries of the user PIN.
    pub pin_tries: PinTries,
}

/// What a search can be about, so that nothing else is read.
#[derive(Clone, Debug, Default)]
pub struct SearchScope {
    /// CKA_CLASS, when the template names one.
    pub class: Option<CK_OBJECT_CLASS>,
    /// CKA_ID, when the template names one.
    pub id: Option<Vec<u8>>,
    /// CKA_LABEL, when the template names one.
    pub label: Option<Vec<u8>>,
    /// Whether private objects count.
    pub private: bool,
}

/// The class of no object: what a search for objects of sessions alone wants of a card.
const NO_CLASS: CK_OBJECT_CLASS = CK_OBJECT_CLASS::MAX;

impl SearchScope {
    /// What `template` can match; `private` when a user is logged in.
    #[must_use]
    pub fn of_template(template: &Template, private: bool) -> Self {
        let nothing = template.bytes(CKA_TOKEN) == Some(&[0]);
        Self {
            class: if nothing {
                Some(NO_CLASS)
            } else {
                template.ulong(CKA_CLASS)
            },
            id: template.bytes(CKA_ID).map(<[u8]>::to_vec),
            label: template.bytes(CKA_LABEL).map(<[u8]>::to_vec),
            private,
        }
    }

    /// Whether an object with this class, id and label can be wanted.
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

/// A command whose data lives as long as itself.
#[derive(Debug)]
pub struct OwnedCommand {
    /// CLA INS P1 P2.
    pub header: [u8; 4],
    /// The data field.
    pub data: Secret,
    /// The response asked for.
    pub expected: Expected,
    /// How long it may take.
    pub budget: CommandBudget,
}

impl OwnedCommand {
    /// The command itself.
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

/// One applet of one card: what it has read so far and how it says things.
///
/// Methods with a [`AppletTransaction`] talk; all others compute. The applet keeps no login state: a
/// [`crate::token::Token`] does.
pub trait Applet: Administration + Send {
    /// How the applet is selected and recognised.
    fn application(&self) -> &'static Application;

    /// Which applet it is.
    fn kind(&self) -> AppletKind {
        self.application().kind
    }

    /// What is known of the token, without asking the card.
    fn info(&self) -> TokenInfo;

    /// The mechanisms the card can do.
    fn mechanisms(&self) -> Vec<MechanismInfo>;

    /// Whether the card takes extended-length APDUs, as far as applet or ATR say.
    fn extended_length(&self) -> bool;

    /// Whether the card takes a command in a chain of several (ISO 7816-4, 5.3.3), as far as the applet says.
    fn chains(&self) -> bool;

    /// Takes note of a probe's or SELECT's answer, which may carry PIN tries or references.
    ///
    /// # Errors
    /// When it does not parse and nothing can be done without it.
    fn take_probe_answer(&mut self, response: &[u8]) -> Result<(), TokenError>;

    /// Holds `pin` to the rules the card is known to have, before a try is spent on it.
    ///
    /// # Errors
    /// [`TokenError::PinLength`].
    fn check_pin(&self, pin: &Secret) -> Result<(), TokenError>;

    /// Verifies `pin`. The conversation has proved that this applet is selected.
    ///
    /// # Errors
    /// [`TokenError::WrongPin`] after exactly one try, [`TokenError::PinLocked`], or of the transport.
    fn verify(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        pin: &Secret,
        purpose: PinPurpose,
    ) -> Result<(), TokenError>;

    /// Asks whether the PIN for `key` is verified; spends no try.
    ///
    /// # Errors
    /// When the card does not say.
    fn pin_status(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: &PrivateKey,
    ) -> Result<PinStatus, TokenError>;

    /// Makes the card forget that the PIN was verified.
    ///
    /// # Errors
    /// When the card knows no way to, which leaves it verified until it is reset.
    fn reset_verification(&mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError>;

    /// Reads what `wanted` may match and is not read yet.
    ///
    /// # Errors
    /// Of the transport only: one unreadable object never hides the others, it is left out and logged.
    fn load(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        wanted: &SearchScope,
    ) -> Result<(), TokenError>;

    /// Whether [`Applet::load`] would have nothing to ask the card.
    fn is_loaded(&self, wanted: &SearchScope) -> bool;

    /// Forgets all objects, so that they are read again.
    fn forget_objects(&mut self);

    /// The objects read so far, private ones included.
    fn objects(&self) -> Vec<Arc<Object>>;

    /// The one command that uses `key` on `input`.
    ///
    /// # Errors
    /// [`TokenError::DataLength`] when the card cannot take so much, [`TokenError::KeyFunctionNotPermitted`] when key and
    /// input do not go together.
    fn key_command(&self, key: &PrivateKey, input: &KeyInput) -> Result<OwnedCommand, TokenError>;

    /// What a 9000 answer to [`Applet::key_command`] gives, in Cryptoki's form: the signature; the bare number or the
    /// message; the shared secret.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    fn key_output(
        &self,
        key: &PrivateKey,
        input: &KeyInput,
        response: &Secret,
    ) -> Result<Secret, TokenError>;

    /// What to call a key in messages: "PIV key 9A", "OpenPGP signature key".
    fn key_name(&self, key: &PrivateKey) -> String;
}
