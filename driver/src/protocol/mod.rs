//! Transmission protocols between reader and card (ISO 7816-3): the parameters in an answer to reset, their
//! negotiation, T=0 and T=1. This module only computes the blocks to send and interprets the received ones. It sends
//! nothing and reads no clock.
//!
//! ```text
//! Atr ──► TransmissionParameters ──► PpsPlan ──► T0 | T1   begin(APDU) ──► Step ──► the reader
//!                                      PPS                 receive(block), transmission_error(), response_timeout() ──► Step
//! ```
//!
//! A reader of the character level gets the same blocks through [`character`], which computes how many bytes the
//! reader has to wait for. [`TransmissionParameters`] computes how long to wait. The caller does the waiting.

pub mod budget;
pub mod character;
pub mod parameters;
pub mod pps;
pub mod t0;
pub mod t1;

use claviger_apdu::{Secret, Sent};

pub use parameters::{Protocol, Rate, TransmissionParameters};
pub use t0::T0;
pub use t1::T1;

/// The next action of the interface device.
#[derive(Debug)]
pub enum Step {
    /// Send `block` and pass on the response.
    Send {
        /// A T=1 block with its epilogue, or a T=0 command TPDU: five bytes of header and perhaps data.
        block: Secret,
        /// How many block (T=1) or work (T=0) waiting times the card may take to respond to this block: 1, or the
        /// number that the card requested by S(WTX). CCID calls it bBWI.
        waiting_time_multiplier: u8,
    },
    /// The response is complete: data and status word.
    Done(Secret),
    /// There will be no response.
    Failed(Failure),
}

impl Step {
    fn send(block: Secret) -> Self {
        Self::Send {
            block,
            waiting_time_multiplier: 1,
        }
    }
}

/// Why an APDU got no response, and whether the card may have executed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What happened.
    pub reason: FailureReason,
    /// Whether the card received the command.
    pub sent: Sent,
}

impl Failure {
    /// Returns whether the card must be reset before the next command, because card and interface device may disagree
    /// about the protocol state.
    #[must_use]
    pub const fn needs_reset(&self) -> bool {
        matches!(
            self.reason,
            FailureReason::Lost | FailureReason::Silent | FailureReason::Damaged
        )
    }
}

/// Why an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FailureReason {
    /// The protocol cannot carry the APDU. Nothing was sent.
    #[error("the APDU cannot be sent: {0}")]
    Unsuitable(&'static str),
    /// T=1: blocks were lost, and S(RESYNCH) has reset both sides to their initial state (ISO 7816-3, rule 6). The
    /// card is usable. It is unknown whether the card executed the command.
    #[error("blocks were lost; reader and card have been resynchronized")]
    Resynchronised,
    /// T=1: the card ended the exchange by S(ABORT).
    #[error("the card aborted the exchange")]
    Aborted,
    /// The response exceeded a limit of [`budget`].
    #[error("the response exceeds the limit of {0}")]
    Budget(&'static str),
    /// T=1: the card did not respond to S(RESYNCH) either.
    #[error("the card does not respond to S(RESYNCH)")]
    Lost,
    /// T=0: the work waiting time passed.
    #[error("the card did not respond in time")]
    Silent,
    /// T=0: the card sent neither a procedure byte nor a response, or there was a parity error.
    #[error("the card's response is malformed or had a parity error")]
    Damaged,
}
