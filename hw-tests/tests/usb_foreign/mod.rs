//! Another driver uses a reader between two claims of ours.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Epoch, Secret};
use claviger_driver::{
    Backend as _, ReaderId,
    usb::{
        backend::{UsbBackend, UsbOptions},
        host::{
            open::{self, UsbLibrary},
            transfer::{EndpointAddress, EndpointQueue},
        },
    },
};
use claviger_hw_tests::{
    fixture::card_fixture::CardFixture,
    provision::CardProfile,
    usb::{UsbAccess, obstacle},
};

use super::{PATIENCE, select};

/// PC_to_RDR_GetSlotStatus (CCID 1.1, 6.1.3).
const GET_SLOT_STATUS: [u8; 10] = [0x65, 0, 0, 0, 0, 0, 1, 0, 0, 0];
/// The virtual reader's endpoints.
const BULK_OUT: EndpointAddress = EndpointAddress(0x01);
const BULK_IN: EndpointAddress = EndpointAddress(0x82);

/// The node of the one device that is no hub.
fn node() -> PathBuf {
    let devices = fs::read_dir("/sys/bus/usb/devices").unwrap().flatten();
    let number = |folder: &PathBuf, name: &str| -> u32 {
        let text = fs::read_to_string(folder.join(name)).unwrap();
        text.trim().parse().unwrap()
    };
    let mut nodes = devices.map(|device| device.path()).filter_map(|folder| {
        let vendor = fs::read_to_string(folder.join("idVendor")).ok()?;
        let (bus, device) = (number(&folder, "busnum"), number(&folder, "devnum"));
        (vendor.trim() == "20a0").then(|| format!("/dev/bus/usb/{bus:03}/{device:03}"))
    });
    nodes.next().unwrap().into()
}

/// Waits for one transfer to end.
fn ended(pipes: &mut dyn EndpointQueue) {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = pipes.next_completion() {
            assert_eq!(completion.result, Ok(()));
            return;
        }
        assert!(Instant::now() < end, "the transfer does not end");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks the reader what its slot holds, with no lock and no record.
fn use_by_another(library: UsbLibrary) {
    let interface = open::open(&node(), 0, library).unwrap();
    let mut pipes = interface.open_queue(&[BULK_IN, BULK_OUT]).unwrap();
    pipes.submit_in(BULK_IN, 512);
    pipes.submit_out(BULK_OUT, Secret::new(GET_SLOT_STATUS.to_vec()));
    ended(&mut *pipes);
    ended(&mut *pipes);
}

/// A connection, one command, and the card's epoch then.
fn epoch_after_use(backend: &UsbBackend, reader: &ReaderId) -> Epoch {
    let mut card = backend.connect(reader, Call::within(PATIENCE)).unwrap();
    select(&mut *card);
    card.epoch()
}

fn use_by_another_driver_is_noticed_and_our_own_is_not(library: UsbLibrary, access: UsbAccess) {
    assert_eq!(obstacle(), None);
    let fixture = CardFixture::usb(CardProfile::piv4(), access);
    for locks in [vec![fixture.folder().join("locks")], Vec::new()] {
        let backend = UsbBackend::new(&UsbOptions {
            library,
            has_watch_thread: true,
            lock_folders: locks,
        });
        let mut watch = backend.watch();
        let readers = watch.snapshot(Call::within(PATIENCE));
        let reader = &readers.readers.first().unwrap().id;
        let mut before = epoch_after_use(&backend, reader);
        for _ in 0..5 {
            // Longer than a tick of the kernel's clock. Two uses within one tick have the same time.
            thread::sleep(Duration::from_millis(20));
            let after = epoch_after_use(&backend, reader);
            assert_eq!(after, before, "no other driver used the reader");
        }
        for other in [UsbLibrary::Nusb, UsbLibrary::Rusb] {
            thread::sleep(Duration::from_millis(20));
            use_by_another(other);
            let after = epoch_after_use(&backend, reader);
            assert!(after > before, "{other:?} used the reader");
            before = after;
        }
        assert_eq!(epoch_after_use(&backend, reader), before);
    }
}

#[test]
#[ignore = "run by make test-usb"]
fn nusb_notices_use_by_another_driver() {
    use_by_another_driver_is_noticed_and_our_own_is_not(UsbLibrary::Nusb, UsbAccess::Nusb);
}

#[test]
#[ignore = "run by make test-usb"]
fn rusb_notices_use_by_another_driver() {
    use_by_another_driver_is_noticed_and_our_own_is_not(UsbLibrary::Rusb, UsbAccess::Rusb);
}
