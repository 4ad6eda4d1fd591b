//! One of several commands in progress.

use std::sync::Arc;

use super::{error::BulkErrorKind, pending::PendingCommand, response::SlotResponse};
use crate::usb::host::event_fd::EventFd;

/// A command in progress. Its sequence number is unique.
#[derive(Debug)]
pub(super) struct ActiveCommand {
    pub(super) sequence: u8,
    pub(super) exchange: PendingCommand,
    pub(super) result: Option<Result<SlotResponse, BulkErrorKind>>,
    pub(super) wakeup: Option<Arc<EventFd>>,
}

impl ActiveCommand {
    pub(super) fn end(&mut self, result: Result<SlotResponse, BulkErrorKind>) {
        if self.result.is_none() {
            self.result = Some(result);
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(wakeup) = &self.wakeup {
            wakeup.notify();
        }
    }
}
