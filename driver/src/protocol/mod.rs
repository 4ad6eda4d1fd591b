//! Transmission protocols between reader and card (ISO 7816-3): what an answer to reset announces, how it is
//! negotiated, T=0 and T=1. Values only: blocks go in and out, nothing is sent and no clock is read here.
//!
//! ```text
//! Atr ──► Parameters ──► Proposal ──► T0 | T1        begin(APDU) ──► Step ──► the reader
//!                          PPS                       receive(block), damaged(), silent() ──► Step
//! ```
//!
//! A reader of the character level gets the same blocks through [`character`], which says how many bytes it is
//! to wait for. How long to wait is said by [`TransmissionParameters`]; who waits is the caller.

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

/// What the interface device does next.
#[derive(Debug)]
pub enum Step {
    /// Send `block` and hand over what comes back.
    Send {
        /// A T=1 block with its epilogue, or a T=0 command TPDU: five bytes of header and perhaps data.
        block: Secret,
        /// How many times the block (T=1) or work (T=0) waiting time the card may take over its answer to
        /// this one block: 1, or what it asked for by S(WTX). CCID calls it bBWI.
        waiting_time_multiplier: u8,
    },
    /// The answer is complete: data and status word.
    Done(Secret),
    /// There will be no answer.
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

/// Why an APDU got no answer, and whether the card may have executed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What happened.
    pub reason: FailureReason,
    /// Whether the card has seen the command.
    pub sent: Sent,
}

impl Failure {
    /// Whether card and interface device no longer agree where they are: the card has to be reset before the next command.
    #[must_use]
    pub const fn needs_reset(&self) -> bool {
        matches!(
            self.reason,
            FailureReason::Lost | FailureReason::Silent | FailureReason::Damaged
        )
    }
}

/// What ended an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FailureReason {
    /// The APDU is none that this protocol can carry; nothing was sent.
    #[error("the APDU cannot be sent: {0}")]
    Unsuitable(&'static str),
    /// T=1: blocks were lost, and S(RESYNCH) has brought both sides back to their beginning (ISO 7816-3, rule 6).
    /// The card is usable; nobody knows what became of the command.
    #[error("the card lost the thread of its command; both sides have begun again")]
    Resynchronised,
    /// T=1: the card ended the exchange by S(ABORT).
    #[error("the card aborted the exchange")]
    Aborted,
    /// The answer took more of what [`budget`] counts than one command may.
    #[error("the answer exceeds {0}")]
    Budget(&'static str),
    /// T=1: not even S(RESYNCH) was answered.
    #[error("the card does not answer S(RESYNCH)")]
    Lost,
    /// T=0: the work waiting time passed.
    #[error("the card is silent")]
    Silent,
    /// T=0: what came is no procedure byte or response, or its parity was wrong.
    #[error("the card's answer is damaged")]
    Damaged,
}
