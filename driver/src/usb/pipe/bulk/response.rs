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
    /// What its slot holds.
    pub(crate) icc: IccStatus,
    /// bChainParameter and its like.
    pub(crate) specific: u8,
    /// Why the reader could not do it.
    pub(crate) error: Option<SlotError>,
}

impl SlotResponse {
    /// The data field.
    pub(crate) fn data(&self) -> &[u8] {
        self.message.expose().get(HEADER..).unwrap_or(&[])
    }
}

impl From<Outcome> for SlotResponse {
    /// What a token of the control pipe said, as a reader would.
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
