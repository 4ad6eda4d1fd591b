//! Liveness check: whether a reader that sends nothing during a command still responds.

use std::time::Instant;

use crate::{
    ccid::budget,
    usb::host::transfer::{SetupPacket, TransferError, UsbInterface},
};

/// The state of the check during one command, or several at a time.
#[derive(Debug)]
pub(super) struct LivenessCheck {
    pub(super) due: Instant,
    failures: usize,
}

impl LivenessCheck {
    pub(super) fn start() -> Self {
        Self {
            due: Instant::now() + budget::SILENCE,
            failures: 0,
        }
    }

    /// Returns whether to check now.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Lets no other thread check meanwhile.
    pub(super) fn postpone(&mut self) {
        self.due = Instant::now() + budget::SILENCE;
    }

    /// Records whether the device responded. Returns whether to give the reader up.
    pub(super) fn record(&mut self, is_there: bool) -> bool {
        let unanswered = if is_there { 0 } else { self.failures + 1 };
        *self = Self {
            failures: unanswered,
            ..Self::start()
        };
        unanswered >= budget::SILENCES
    }
}

/// Returns whether the device responds to GET_STATUS (USB 2.0, 9.4.5). A stall is a response, too. Firmware that hangs sends none.
pub(super) fn is_responsive(interface: &dyn UsbInterface) -> bool {
    let setup = SetupPacket {
        request_type: 0x80,
        request: 0,
        value: 0,
        index: 0,
    };
    let asked = interface.control(setup, &mut [0; 2], budget::CONTROL);
    asked != Err(TransferError::Cancelled)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::usb::host::fake::{FakeReader, reader::ReaderConfig};

    #[test]
    fn b18_reader_is_given_up_after_two_unanswered_requests_in_a_row() {
        let mut liveness = LivenessCheck::start();
        for is_there in [true, false, true, false] {
            assert!(!liveness.record(is_there));
        }
        assert!(liveness.record(false), "in seconds, whatever the deadline");
        let longest = (budget::SILENCE + budget::CONTROL) * 2;
        assert!(longest < Duration::from_secs(15));
    }

    #[test]
    fn reader_that_stalls_the_liveness_request_is_responsive() {
        let reader = FakeReader::new(ReaderConfig::extended());
        let interface = reader.device().claim().unwrap();
        assert!(is_responsive(&*interface));
    }
}
