//! The control half of Abort (CCID 1.1, 5.3.1).

use std::time::{Duration, Instant};

use crate::{ccid::budget, usb::host::transfer::SetupPacket};

/// ABORT, a class request to an interface.
const ABORT: (u8, u8) = (0x21, 0x01);

/// Timeout of the request. Not zero, which some take for no timeout.
pub(super) fn abort_timeout(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.clamp(Duration::from_millis(1), budget::ABORT)
}

/// The request.
pub(super) fn abort_request(number: u8, slot: u8, sequence: u8) -> SetupPacket {
    SetupPacket {
        request_type: ABORT.0,
        request: ABORT.1,
        value: u16::from_be_bytes([sequence, slot]),
        index: u16::from(number),
    }
}
