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

/// Sends GetSlotStatus by `query` until there is a response, up to [`budget::STATUS_TRIES`] times. The timeout grows after each
/// late response.
///
/// # Errors
/// Why the last query failed, or that the slot runs or aborts a command.
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
        last.kind = BulkErrorKind::Protocol("it responds only to earlier commands");
    }
    Err(last)
}

impl SlotResponse {
    /// Returns the same response if the slot has no command in progress.
    ///
    /// # Errors
    /// [`BulkErrorKind::SlotBusy`] if the reader reports that the slot runs or aborts a command.
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
