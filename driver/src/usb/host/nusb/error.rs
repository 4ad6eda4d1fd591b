//! nusb's errors as ours.

use ::nusb::{Error, ErrorKind, transfer};
use rustix::io::Errno;

use crate::usb::host::transfer::{OpenError, TransferError};

/// Converts the error of a transfer.
pub(super) fn transfer(error: transfer::TransferError) -> TransferError {
    use transfer::TransferError as Theirs;
    match error {
        Theirs::Cancelled => TransferError::Cancelled,
        Theirs::Stall => TransferError::Stall,
        Theirs::Disconnected => TransferError::Disconnected,
        Theirs::Fault => fault(Errno::PROTO),
        Theirs::InvalidArgument => fault(Errno::INVAL),
        Theirs::Unknown(number) => TransferError::Fault(i32::try_from(number).unwrap_or(0)),
    }
}

/// A call other than a transfer.
pub(super) fn call(error: &Error) -> TransferError {
    match error.kind() {
        ErrorKind::Disconnected => TransferError::Disconnected,
        ErrorKind::Busy => fault(Errno::BUSY),
        ErrorKind::NotFound => fault(Errno::NOENT),
        _ => {
            let number = error
                .os_error()
                .and_then(|number| i32::try_from(number).ok());
            number.map_or(fault(Errno::IO), TransferError::Fault)
        }
    }
}

/// Converts the error of opening a device or claiming its interface. The caller looks for the owner.
pub(super) fn open(error: &Error) -> OpenError {
    match error.kind() {
        ErrorKind::Disconnected => OpenError::Disconnected,
        ErrorKind::Busy => OpenError::Busy(String::new()),
        ErrorKind::NotFound => OpenError::Failed("the device has no such interface".to_owned()),
        _ => OpenError::Failed(error.to_string()),
    }
}

pub(super) fn fault(errno: Errno) -> TransferError {
    TransferError::Fault(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use ::nusb::transfer::TransferError as Theirs;

    use super::*;

    #[test]
    fn each_nusb_transfer_error_is_mapped() {
        for (theirs, ours) in [
            (Theirs::Cancelled, TransferError::Cancelled),
            (Theirs::Stall, TransferError::Stall),
            (Theirs::Disconnected, TransferError::Disconnected),
            (Theirs::Fault, TransferError::Fault(71)),
            (Theirs::InvalidArgument, TransferError::Fault(22)),
            (Theirs::Unknown(5), TransferError::Fault(5)),
            (Theirs::Unknown(u32::MAX), TransferError::Fault(0)),
        ] {
            assert_eq!(transfer(theirs), ours);
        }
    }
}
