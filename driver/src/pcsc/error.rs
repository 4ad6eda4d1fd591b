//! The meaning of libpcsclite's return values.

use ::pcsc::Error;
use claviger_apdu::{Sent, TransportError, TransportErrorKind};

use super::library;

/// Returns the kind of error that the caller can act on. An unexpected error is a `Protocol` error.
pub(super) const fn kind(error: Error) -> TransportErrorKind {
    match error {
        // libpcsclite also returns these for a handle or context whose pcscd has ended.
        Error::NoService
        | Error::ServiceStopped
        | Error::CommError
        | Error::InvalidHandle
        | Error::Shutdown
        | Error::ServerTooBusy => TransportErrorKind::NoService,
        Error::UnknownReader
        | Error::ReaderUnavailable
        | Error::NoReadersAvailable
        | Error::InvalidValue => TransportErrorKind::NoReader,
        Error::NoSmartcard | Error::UnresponsiveCard | Error::UnpoweredCard => {
            TransportErrorKind::NoCard
        }
        Error::RemovedCard => TransportErrorKind::CardRemoved,
        Error::ResetCard => TransportErrorKind::CardReset,
        Error::SharingViolation => TransportErrorKind::Busy,
        Error::SecurityViolation | Error::NoAccess => TransportErrorKind::Denied,
        Error::Timeout => TransportErrorKind::TimedOut,
        Error::Cancelled | Error::SystemCancelled | Error::CancelledByUser => {
            TransportErrorKind::Cancelled
        }
        _ => TransportErrorKind::Protocol,
    }
}

/// Returns whether a command that failed with `error` may have reached the card.
pub(super) const fn sent(error: Error) -> Sent {
    match error {
        // pcscd detects these before it passes the command to the reader's driver.
        Error::ResetCard | Error::SharingViolation | Error::InvalidHandle => Sent::No,
        Error::InsufficientBuffer => Sent::Yes,
        _ => Sent::Maybe,
    }
}

/// Returns a hint how to solve the error, if there is a common solution.
fn hint(error: Error) -> &'static str {
    match error {
        Error::SharingViolation => {
            "; another program uses the card exclusively. If it is GnuPG's scdaemon, `gpgconf --kill scdaemon` \
             frees the card and `pcsc-shared` in scdaemon.conf keeps it free (docs/pcscd.md)"
        }
        Error::SecurityViolation | Error::NoAccess => {
            "; pcscd refused access (polkit): allow org.debian.pcsc-lite.access_pcsc and .access_card for this \
             user (docs/pcscd.md), or stop pcscd and set `transports = [\"usb\"]` (docs/configuration.md)"
        }
        Error::NoService => library::hint(),
        Error::NotTransacted => {
            "; the reader could not complete the exchange: check that the card sits firmly in the reader"
        }
        Error::ServiceStopped => "; the versions of libpcsclite and pcscd may not match",
        Error::UnresponsiveCard => "; the card sends no answer to reset",
        Error::UnpoweredCard => {
            "; another program left the card without power, and it could not be powered up"
        }
        _ => "",
    }
}

/// Makes the error of `operation`, which ran on `reader` if there is one.
pub(super) fn about(
    operation: &str,
    reader: Option<&str>,
    error: Error,
    sent: Sent,
) -> TransportError {
    let location = reader.map_or_else(String::new, |reader| format!(" on {reader}"));
    let number = error as u32;
    let what = format!(
        "PC/SC {operation}{location}: {error} ({number:08X}){}",
        hint(error)
    );
    TransportError {
        kind: kind(error),
        sent,
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_reader_number_and_cure() {
        let error = about(
            "SCardConnect",
            Some("Reader 00 00"),
            Error::SharingViolation,
            Sent::No,
        );
        assert_eq!(error.kind, TransportErrorKind::Busy);
        for part in ["SCardConnect", "Reader 00 00", "8010000B", "scdaemon"] {
            assert!(error.what.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn only_errors_found_by_pcscd_before_the_driver_count_as_not_sent() {
        assert_eq!(sent(Error::ResetCard), Sent::No);
        assert_eq!(sent(Error::SharingViolation), Sent::No);
        for error in [
            Error::RemovedCard,
            Error::NotTransacted,
            Error::CommError,
            Error::NoService,
        ] {
            assert_eq!(sent(error), Sent::Maybe, "{error}");
        }
    }
}
