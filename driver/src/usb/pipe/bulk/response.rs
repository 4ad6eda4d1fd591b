//! The response to a command, of one slot.

use claviger_apdu::Secret;

use crate::ccid::{
    iccd::Outcome,
    message::{HEADER, IccStatus, SlotError},
};

/// The response to a command.
#[derive(Debug)]
pub(crate) struct SlotResponse {
    /// The whole message.
    pub(super) message: Secret,
    /// The state of the card in the slot.
    pub(crate) icc: IccStatus,
    /// bChainParameter or the corresponding byte.
    pub(crate) specific: u8,
    /// Why the command failed.
    pub(crate) error: Option<SlotError>,
}

impl SlotResponse {
    /// The data field.
    pub(crate) fn data(&self) -> &[u8] {
        self.message.expose().get(HEADER..).unwrap_or(&[])
    }
}

impl From<Outcome> for SlotResponse {
    /// Converts the outcome of a token of the control pipe to a response of a reader.
    fn from(outcome: Outcome) -> Self {
        let mut message = Secret::new(Vec::with_capacity(HEADER + outcome.data.len()));
        message.extend(&[0; HEADER]);
        message.extend(outcome.data.expose());
        Self {
            message,
            icc: outcome.icc,
            specific: outcome.chain,
            error: outcome.error,
        }
    }
}
