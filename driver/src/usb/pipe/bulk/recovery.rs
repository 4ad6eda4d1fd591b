//! The steps of a recovery: their limits, and the status queries that end it.

use std::time::Instant;

use claviger_apdu::Sent;

use super::{
    error::{BulkError, BulkErrorKind},
    response::SlotResponse,
    timeout::ResponseTimeout,
};
use crate::{
    ccid::{budget, message::SlotError},
    wait::StopFlag,
};

/// Sends GetSlotStatus by `query` until it is answered, [`budget::STATUS_TRIES`] times at most. A reader that answers late has
/// longer the next time.
///
/// # Errors
/// Why the last one was not answered, or that the slot runs or aborts a command.
pub(super) fn query_status(
    deadline: Instant,
    stop: &StopFlag,
    mut query: impl FnMut(ResponseTimeout) -> Result<SlotResponse, BulkError>,
) -> Result<SlotResponse, BulkError> {
    let mut timeout = budget::STATUS;
    let mut last = BulkError {
        kind: BulkErrorKind::TimedOut,
        sent: Sent::No,
    };
    for _ in 0..budget::STATUS_TRIES {
        match check_limits(deadline, stop) {
            Ok(()) => {}
            Err(error) if error.kind == BulkErrorKind::TimedOut => return Err(last),
            Err(error) => return Err(error),
        }
        match query(ResponseTimeout::per_message(timeout, deadline)) {
            Err(error) if !error.kind.is_final() => {
                if error.kind.needs_time() {
                    timeout = timeout.saturating_mul(2);
                }
                last = error;
            }
            result => return result.and_then(SlotResponse::idle),
        }
    }
    // More time does not help it.
    if last.kind == BulkErrorKind::Late && timeout > budget::STATUS * 4 {
        last.kind = BulkErrorKind::Protocol("it answers none but earlier commands");
    }
    Err(last)
}

impl SlotResponse {
    /// The same, of a slot with no command in progress.
    ///
    /// # Errors
    /// [`BulkErrorKind::SlotBusy`] when the reader says that the slot runs or aborts a command.
    pub(crate) fn idle(self) -> Result<Self, BulkError> {
        match self.error {
            Some(SlotError::SlotBusy | SlotError::Aborted) => Err(BulkError {
                kind: BulkErrorKind::SlotBusy,
                sent: Sent::No,
            }),
            _ => Ok(self),
        }
    }
}

/// Checks stop and deadline before another step of the recovery.
pub(super) fn check_limits(deadline: Instant, stop: &StopFlag) -> Result<(), BulkError> {
    let sent = Sent::No;
    if stop.is_set() {
        let kind = BulkErrorKind::Stopped;
        return Err(BulkError { kind, sent });
    }
    if Instant::now() >= deadline {
        let kind = BulkErrorKind::TimedOut;
        return Err(BulkError { kind, sent });
    }
    Ok(())
}
