//! T=0 by TPDUs (ISO 7816-3, 10 and 12.2).

use claviger_apdu::{Secret, Sent};

use super::{Failure, Reason, Step};

/// The interface device's side of T=0: one APDU, one command TPDU, one answer.
#[derive(Debug, Default)]
pub struct T0 {}

impl T0 {
    /// Nothing under way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the exchange of `apdu`, a short one.
    pub fn begin(&mut self, apdu: &[u8]) -> Step {
        Step::send(Secret::copy_from(apdu))
    }

    /// Takes the answer to the TPDU last sent: data and status word.
    pub fn receive(&mut self, _answer: &[u8]) -> Step {
        self.damaged()
    }

    /// Takes note that what came was damaged on the way (parity).
    pub fn damaged(&mut self) -> Step {
        Step::Failed(Failure {
            reason: Reason::Damaged,
            sent: Sent::Maybe,
        })
    }

    /// Takes note that the work waiting time passed and nothing came.
    pub fn silent(&mut self) -> Step {
        Step::Failed(Failure {
            reason: Reason::Silent,
            sent: Sent::Maybe,
        })
    }
}
