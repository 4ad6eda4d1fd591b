//! How the module reaches a reader on the USB.

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

/// Has every rig with a socket put its cards on the USB instead: `nusb`, `rusb` or `libccid`.
const RIG: &str = "CLAVIGER_CARD_FIXTURE";
/// How long a reader may take to be seen.
const LIMIT: Duration = Duration::from_secs(60);

/// How the module reaches a reader on the USB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsbAccess {
    /// By itself, over nusb.
    Nusb,
    /// By itself, over libusb.
    Rusb,
    /// Through the machine's pcscd and libccid.
    Libccid,
}

impl UsbAccess {
    /// The way that [`RIG`] names, which all rigs with a socket take then instead.
    pub(crate) fn of_environment() -> Option<Self> {
        match env::var(RIG).ok()?.as_str() {
            "nusb" => Some(Self::Nusb),
            "rusb" => Some(Self::Rusb),
            "libccid" => Some(Self::Libccid),
            other => panic!("{RIG}={other}: nusb, rusb and libccid are ways"),
        }
    }

    pub(crate) const fn environment(self) -> (&'static str, &'static str) {
        match self {
            Self::Nusb => ("usb", "nusb"),
            Self::Rusb => ("usb", "rusb"),
            Self::Libccid => ("pcsc", "nusb"),
        }
    }

    /// Waits until there are so many cards, and no reader beside them.
    pub(crate) fn wait_for_cards(self, cards: usize) {
        let mut watch = match self {
            Self::Libccid => PcscBackend::new(true).watch(),
            _ => any_usb().watch(),
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            let readers = watch.snapshot(Call::within(LIMIT)).readers;
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

/// A way to the readers on the USB that does not touch a token another has told of.
fn any_usb() -> UsbBackend {
    UsbBackend::new(&UsbOptions {
        library: UsbLibrary::Rusb,
        has_watch_thread: false,
        lock_folders: Vec::new(),
    })
}
