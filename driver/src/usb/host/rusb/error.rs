//! Converts libusb's error numbers.

use std::ffi::c_int;

use ::rusb::constants;
use rustix::io::Errno;

use crate::usb::host::transfer::{OpenError, TransferError};

/// Converts the status of a transfer (`libusb_transfer_status`). libusb does not report the errno.
pub(super) fn status(status: c_int) -> Result<(), TransferError> {
    match status {
        constants::LIBUSB_TRANSFER_COMPLETED => Ok(()),
        constants::LIBUSB_TRANSFER_TIMED_OUT | constants::LIBUSB_TRANSFER_CANCELLED => {
            Err(TransferError::Cancelled)
        }
        constants::LIBUSB_TRANSFER_STALL => Err(TransferError::Stall),
        constants::LIBUSB_TRANSFER_NO_DEVICE => Err(TransferError::Disconnected),
        constants::LIBUSB_TRANSFER_OVERFLOW => Err(TransferError::Overflow),
        _ => Err(fault(Errno::PROTO)),
    }
}

/// Converts the error of a submission (`libusb_error`).
pub(super) fn submission(code: c_int) -> TransferError {
    match code {
        constants::LIBUSB_ERROR_NO_DEVICE => TransferError::Disconnected,
        constants::LIBUSB_ERROR_PIPE => TransferError::Stall,
        constants::LIBUSB_ERROR_INVALID_PARAM | constants::LIBUSB_ERROR_NOT_SUPPORTED => invalid(),
        constants::LIBUSB_ERROR_NO_MEM => no_memory(),
        constants::LIBUSB_ERROR_BUSY => fault(Errno::BUSY),
        _ => fault(Errno::IO),
    }
}

/// A call of libusb's that failed. A control transfer's limit is an end like a cancel.
pub(super) fn transfer(error: ::rusb::Error) -> TransferError {
    use ::rusb::Error;
    match error {
        Error::NoDevice | Error::NotFound => TransferError::Disconnected,
        Error::Timeout | Error::Interrupted => TransferError::Cancelled,
        Error::Pipe => TransferError::Stall,
        Error::Overflow => TransferError::Overflow,
        Error::InvalidParam | Error::NotSupported => invalid(),
        Error::NoMem => no_memory(),
        Error::Busy => fault(Errno::BUSY),
        Error::Access => fault(Errno::ACCESS),
        Error::Io | Error::BadDescriptor | Error::Other => fault(Errno::IO),
    }
}

/// Converts the error of opening a device or claiming its interface. The caller looks for the owner.
pub(super) fn open(error: ::rusb::Error) -> OpenError {
    use ::rusb::Error;
    match error {
        Error::NoDevice => OpenError::Disconnected,
        Error::Busy => OpenError::Busy(String::new()),
        Error::NotFound => OpenError::Failed("the device has no such interface".to_owned()),
        other => OpenError::Failed(format!("libusb: {other}")),
    }
}

pub(super) fn invalid() -> TransferError {
    fault(Errno::INVAL)
}

pub(super) fn no_memory() -> TransferError {
    fault(Errno::NOMEM)
}

pub(super) fn fault(errno: Errno) -> TransferError {
    TransferError::Fault(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_libusb_transfer_status_is_mapped() {
        let expected = [
            Ok(()),
            Err(TransferError::Fault(71)),
            Err(TransferError::Cancelled),
            Err(TransferError::Cancelled),
            Err(TransferError::Stall),
            Err(TransferError::Disconnected),
            Err(TransferError::Overflow),
            Err(TransferError::Fault(71)),
        ];
        let mapped: Vec<_> = (0..8).map(status).collect();
        assert_eq!(mapped, expected);
    }

    #[test]
    fn every_libusb_code_for_a_missing_device_means_disconnected() {
        assert_eq!(submission(-4), TransferError::Disconnected);
        assert_eq!(
            transfer(::rusb::Error::NoDevice),
            TransferError::Disconnected
        );
        assert_eq!(open(::rusb::Error::NoDevice), OpenError::Disconnected);
        assert_eq!(submission(-9), TransferError::Stall);
        assert_eq!(submission(-77), TransferError::Fault(5));
    }
}
