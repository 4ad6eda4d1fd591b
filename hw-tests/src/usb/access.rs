//! How the module reaches a reader on the USB: by its own `usb` backend, or through pcscd and libccid.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{
    env,
    time::{Duration, Instant},
};

use claviger_apdu::Call;
use claviger_driver::{
    Backend as _, Presence, ReaderState,
    pcsc::PcscBackend,
    usb::{
        backend::{UsbBackend, UsbOptions},
        host::open::UsbLibrary,
    },
};

/// Makes every socket fixture put its cards on the USB instead: `nusb`, `rusb` or `libccid`.
const VARIABLE: &str = "CLAVIGER_CARD_FIXTURE";
/// Timeout for readers and cards to be reported.
const READER_TIMEOUT: Duration = Duration::from_secs(60);

/// How the module reaches a reader on the USB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbAccess {
    /// The USB backend, over nusb.
    Nusb,
    /// The USB backend, over libusb.
    Rusb,
    /// Through the machine's pcscd and libccid.
    Libccid,
}

impl UsbAccess {
    /// The access that [`VARIABLE`] selects for socket fixtures, if it is set.
    pub(crate) fn of_environment() -> Option<Self> {
        match env::var(VARIABLE).ok()?.as_str() {
            "nusb" => Some(Self::Nusb),
            "rusb" => Some(Self::Rusb),
            "libccid" => Some(Self::Libccid),
            other => panic!("{VARIABLE}={other}: must be nusb, rusb or libccid"),
        }
    }

    pub(crate) const fn environment(self) -> (&'static str, &'static str) {
        match self {
            Self::Nusb => ("usb", "nusb"),
            Self::Rusb => ("usb", "rusb"),
            Self::Libccid => ("pcsc", "nusb"),
        }
    }

    /// Waits until this number of cards is present, and no reader without a card.
    pub(crate) fn wait_for_cards(self, cards: usize) {
        let mut watch = match self {
            Self::Libccid => PcscBackend::new(true).watch(),
            _ => any_usb().watch(),
        };
        let deadline = Instant::now() + READER_TIMEOUT;
        loop {
            let readers = watch.snapshot(Call::within(READER_TIMEOUT)).readers;
            let has_card = |reader: &&ReaderState| matches!(reader.presence, Presence::Card(_));
            if readers.iter().filter(has_card).count() == cards && readers.len() == cards {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{cards} cards expected: {readers:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A USB backend that watches readers. Without lock folders it claims none.
fn any_usb() -> UsbBackend {
    UsbBackend::new(&UsbOptions {
        library: UsbLibrary::Rusb,
        has_watch_thread: false,
        lock_folders: Vec::new(),
    })
}
