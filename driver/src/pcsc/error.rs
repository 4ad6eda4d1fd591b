//! What libpcsclite's return values mean, in one place.

use ::pcsc::Error;
use claviger_apdu::{Sent, TransportError, TransportErrorKind};

use super::library;

/// What the caller can act on; `Protocol` for whatever is not foreseen.
pub(super) const fn kind(error: Error) -> TransportErrorKind {
    match error {
        // Also what a client is told of a handle or context that died with its pcscd.
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

/// Whether a command that failed with `error` may have reached the card.
pub(super) const fn sent(error: Error) -> Sent {
    match error {
        // pcscd finds these before it hands the command to the reader's driver.
        Error::ResetCard | Error::SharingViolation | Error::InvalidHandle => Sent::No,
        Error::InsufficientBuffer => Sent::Yes,
        _ => Sent::Maybe,
    }
}

/// The cure, where there is a usual one.
fn cure(error: Error) -> &'static str {
    match error {
        Error::SharingViolation => {
            "; another program uses the card exclusively. If it is GnuPG's scdaemon, `gpgconf --kill scdaemon` \
             frees the card and `pcsc-shared` in scdaemon.conf keeps it free (docs/pcscd.md)"
        }
        Error::SecurityViolation | Error::NoAccess => {
            "; pcscd refused access (polkit): allow org.debian.pcsc-lite.access_pcsc and .access_card for this \
             user (docs/pcscd.md), or stop pcscd and set `transports = [\"usb\"]` (docs/configuration.md)"
        }
        Error::NoService => library::cure(),
        Error::NotTransacted => "; the reader could not complete the exchange: was the card moved?",
        Error::ServiceStopped => "; libpcsclite and pcscd may be of versions that do not match",
        Error::UnresponsiveCard => "; the card does not answer its reset",
        Error::UnpoweredCard => {
            "; another program left the card without power, and it could not be powered up"
        }
        _ => "",
    }
}

/// The error of `operation`, on `reader` if it was on one.
pub(super) fn about(
    operation: &str,
    reader: Option<&str>,
    error: Error,
    sent: Sent,
) -> TransportError {
    let place = reader.map_or_else(String::new, |reader| format!(" on {reader}"));
    let number = error as u32;
    let what = format!(
        "PC/SC {operation}{place}: {error} ({number:08X}){}",
        cure(error)
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
