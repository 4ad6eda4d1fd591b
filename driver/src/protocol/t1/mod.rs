//! T=1, the block protocol (ISO 7816-3, 11), as the interface device speaks it.

pub mod block;

use super::{Failure, Parameters, Reason, Step};
use claviger_apdu::Sent;

/// The interface device's side of T=1 with one card, from its reset to its next.
#[derive(Debug)]
pub struct T1 {}

impl T1 {
    /// The state after a reset of the card that announced `parameters`; the interface device takes
    /// information fields of `ifsd` bytes (1 to 254), which the first command tells the card unless it is 32.
    #[must_use]
    pub fn new(_parameters: &Parameters, _ifsd: u8) -> Self {
        Self {}
    }

    /// Begins the exchange of `apdu`, of any length. An exchange under way is given up, and the card is brought to
    /// its beginning by S(RESYNCH) first; the caller has to know that the reader waits for nothing.
    pub fn begin(&mut self, _apdu: &[u8]) -> Step {
        self.damaged()
    }

    /// Takes what the card sent: one block, epilogue included.
    pub fn receive(&mut self, _block: &[u8]) -> Step {
        self.damaged()
    }

    /// Takes note that something came that is no block: the reader reported a parity error or an overrun.
    pub fn damaged(&mut self) -> Step {
        self.silent()
    }

    /// Takes note that the block waiting time, multiplied as said, passed and nothing came.
    pub fn silent(&mut self) -> Step {
        Step::Failed(Failure {
            reason: Reason::Lost,
            sent: Sent::Maybe,
        })
    }
}
