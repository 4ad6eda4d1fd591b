//! The outcome of a PIN entry.

use claviger_apdu::{Sent, StatusWord};

use crate::ccid::message::SlotError;

/// How a PIN entry ended, and whether the card received a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinOutcome {
    /// How the entry ended.
    pub end: PinEnd,
    /// Whether the command reached the card. [`Sent::Maybe`] means that a try may have been spent.
    pub sent: Sent,
}

/// How a PIN entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinEnd {
    /// The card responded.
    #[error("the card responded {0}")]
    Card(StatusWord),
    /// The user pressed the cancel key (bError EF, status 6401).
    #[error("the PIN entry was cancelled at the reader")]
    Cancelled,
    /// No PIN was typed in time (bError F0, status 6400).
    #[error("no PIN was typed in time")]
    TimedOut,
    /// The two new PINs differ (status 6402).
    #[error("the new PIN differed when it was typed again")]
    Different,
    /// The PIN is shorter or longer than allowed (status 6403).
    #[error("the PIN typed is too short or too long")]
    Length,
    /// The reader rejected the request: a byte of it, or all of it (status 6B80).
    #[error("the reader rejected the PIN entry; type the PIN at the computer")]
    Rejected,
    /// The reader failed.
    #[error("the PIN entry failed: {0}")]
    Failed(SlotError),
    /// The response is no status word, or no block of T=1.
    #[error("the response of {0} bytes to the PIN entry is malformed")]
    Malformed(usize),
}

impl PinOutcome {
    /// Interprets the response to a Secure command: its data, or the reader's error. [`super::T1Entry`] does this at
    /// the TPDU level for T=1.
    #[must_use]
    pub fn of_ccid(response: Result<&[u8], SlotError>) -> Self {
        match response {
            Ok(data) => Self::of_status(data),
            Err(error) => Self::of_error(error),
        }
    }

    /// Interprets the data that SCardControl or a reader returned. The status words of PC/SC part 10, 2.5 may come
    /// from the reader or from the card, so it is unclear whether the card received a PIN.
    #[must_use]
    pub fn of_status(data: &[u8]) -> Self {
        let Ok(status) = <[u8; 2]>::try_from(data).map(u16::from_be_bytes) else {
            return Self::maybe(PinEnd::Malformed(data.len()));
        };
        match status {
            0x6400 => Self::maybe(PinEnd::TimedOut),
            0x6401 => Self::maybe(PinEnd::Cancelled),
            0x6402 => Self::maybe(PinEnd::Different),
            0x6403 => Self::maybe(PinEnd::Length),
            0x6B80 => Self::maybe(PinEnd::Rejected),
            _ => Self {
                end: PinEnd::Card(StatusWord(status)),
                sent: Sent::Yes,
            },
        }
    }

    fn of_error(error: SlotError) -> Self {
        let end = match error {
            SlotError::PinCancelled => PinEnd::Cancelled,
            SlotError::PinTimeout => PinEnd::TimedOut,
            SlotError::NotSupported | SlotError::Parameter(_) => PinEnd::Rejected,
            SlotError::SlotBusy => PinEnd::Failed(error),
            // After parity, overrun, mute and aborted errors, the card may have received the PIN.
            _ => return Self::maybe(PinEnd::Failed(error)),
        };
        Self {
            end,
            sent: Sent::No,
        }
    }

    pub(super) const fn maybe(end: PinEnd) -> Self {
        Self {
            end,
            sent: Sent::Maybe,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(end: PinEnd, sent: Sent) -> PinOutcome {
        PinOutcome { end, sent }
    }

    #[test]
    fn pin_entry_refused_by_the_reader_was_not_sent() {
        for (error, end) in [
            (SlotError::PinCancelled, PinEnd::Cancelled),
            (SlotError::PinTimeout, PinEnd::TimedOut),
            (SlotError::NotSupported, PinEnd::Rejected),
            (SlotError::Parameter(21), PinEnd::Rejected),
            (SlotError::SlotBusy, PinEnd::Failed(SlotError::SlotBusy)),
        ] {
            assert_eq!(PinOutcome::of_ccid(Err(error)), of(end, Sent::No));
        }
    }

    #[test]
    fn other_pin_entry_errors_may_have_spent_a_try() {
        for error in [
            SlotError::Parity,
            SlotError::Aborted,
            SlotError::IccMute,
            SlotError::Overrun,
            SlotError::Hardware,
            SlotError::Other(0xC0),
        ] {
            let outcome = PinOutcome::of_ccid(Err(error));
            assert_eq!(outcome, of(PinEnd::Failed(error), Sent::Maybe));
        }
    }

    #[test]
    fn card_status_word_is_passed_on_unchanged() {
        for status in [0x9000, 0x63C2, 0x6983, 0x6982, 0x6700] {
            let outcome = PinOutcome::of_ccid(Ok(&u16::to_be_bytes(status)));
            assert_eq!(outcome, of(PinEnd::Card(StatusWord(status)), Sent::Yes));
        }
    }

    #[test]
    fn part_10_error_status_counts_as_maybe_sent() {
        for (status, end) in [
            ([0x64, 0x00], PinEnd::TimedOut),
            ([0x64, 0x01], PinEnd::Cancelled),
            ([0x64, 0x02], PinEnd::Different),
            ([0x64, 0x03], PinEnd::Length),
            ([0x6B, 0x80], PinEnd::Rejected),
        ] {
            assert_eq!(PinOutcome::of_status(&status), of(end, Sent::Maybe));
        }
    }

    #[test]
    fn pin_entry_response_of_wrong_length_is_malformed() {
        for data in [&[][..], &[0x90], &[0x00, 0x90, 0x00]] {
            let end = PinEnd::Malformed(data.len());
            assert_eq!(PinOutcome::of_ccid(Ok(data)), of(end, Sent::Maybe));
        }
    }
}
