//! A watch with devices that cannot be listed, with releases, and with messages that never come.

use std::{fs, thread, time::Duration};

use claviger_apdu::Call;

use super::{
    answered,
    events::{Tale, wait_for},
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, single_reader, take_snapshot,
        token,
    },
    watch::{WatchThread, key, wait_until, with_key},
};
use crate::{backend::Backend as _, usb::host::fake::FakeReader};

/// B1: C_Finalize ends the watch before it logs out.
#[test]
fn b1_reader_can_be_used_after_its_watch_has_ended() {
    let (machine, _reader) = with_key("b1");
    let program = machine.new_backend();
    let mut watch = program.watch();
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    drop(watch);
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"bye").unwrap(), answered(b"bye"));
    machine.unplug("3-1");
    drop(card);
    let gone = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
    assert!(gone.is_err(), "it has left since");
}

/// B8: the end of this process's own claim is reported like the end of any other.
#[test]
fn b8_release_of_our_own_claim_causes_no_new_claim() {
    let tale = Tale::new("b8");
    let empty = FakeReader::new(token());
    tale.machine.plug("3-1", &empty, &token());
    let bus = tale
        .machine
        .bus()
        .with_test_events(std::sync::Arc::clone(&tale.told));
    let program = tale.machine.new_backend_without_locks(bus);
    let followed = WatchThread::new(&program);
    followed.snapshot();
    wait_until(|| !empty.device().claimed());
    let before = empty.messages().len();
    for _ in 0..3 {
        let looks = tale.looks();
        tale.tell("unbind", "3-1/3-1:1.0");
        wait_until(|| tale.looks() > looks);
        wait_until(|| !empty.device().claimed());
    }
    assert_eq!(empty.messages().len(), before, "nothing was asked of it");
}

/// B10: in a container the socket opens, and no message ever comes.
#[test]
fn b10_busy_reader_is_tried_again_without_any_message() {
    let (tale, reader) = Tale::with_key("b10");
    let theirs = reader.device().claim().unwrap();
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().error.is_some());
    drop(theirs);
    let snapshot = wait_for(&followed, |snapshot| !snapshot.readers.is_empty());
    assert!(holds_card(single_reader(&snapshot)));
}

/// B10: a machine, or a container, that gets its first bus later.
#[test]
fn b10_device_folder_created_later_is_watched() {
    let machine = FakeMachine::new("b10-folder");
    fs::remove_dir_all(machine.folder().join("dev")).unwrap();
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    fs::create_dir_all(machine.folder().join("dev/003")).unwrap();
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let snapshot = wait_for(&followed, |snapshot| !snapshot.readers.is_empty());
    assert!(holds_card(single_reader(&snapshot)));
}

/// B12: EMFILE while the devices are listed, for one.
#[test]
fn b12_error_in_listing_removes_no_reader_and_ends_with_its_cause() {
    let (tale, _reader) = Tale::with_key("b12");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    let before = single_reader(&followed.snapshot()).clone();
    let (sys, away) = (
        tale.machine.folder().join("sys"),
        tale.machine.folder().join("away"),
    );
    fs::rename(&sys, &away).unwrap();
    fs::write(&sys, b"no folder").unwrap();
    tale.tell("change", "3-1");
    let snapshot = wait_for(&followed, |snapshot| snapshot.error.is_some());
    assert_eq!(
        single_reader(&snapshot),
        &before,
        "the reader, and the same card"
    );
    fs::remove_file(&sys).unwrap();
    fs::rename(&away, &sys).unwrap();
    let snapshot = wait_for(&followed, |snapshot| snapshot.error.is_none());
    assert_eq!(single_reader(&snapshot), &before);
}

/// B12: of one device.
#[test]
fn b12_device_unreadable_for_a_moment_is_not_removed() {
    let (tale, _reader) = Tale::with_key("b12-device");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    let before = single_reader(&followed.snapshot()).clone();
    let number = tale.machine.folder().join("sys/3-1/bConfigurationValue");
    fs::remove_file(&number).unwrap();
    fs::create_dir(&number).unwrap();
    tale.tell("change", "3-1");
    let snapshot = wait_for(&followed, |snapshot| snapshot.error.is_some());
    assert_eq!(single_reader(&snapshot), &before);
    fs::remove_dir(&number).unwrap();
    fs::write(&number, b"1\n").unwrap();
    let snapshot = wait_for(&followed, |snapshot| snapshot.error.is_none());
    assert_eq!(single_reader(&snapshot), &before);
}

/// B22: most attributes of a device take its lock in the kernel; a disk in a reset would delay the slot list.
#[test]
fn b22_only_descriptors_are_read_of_a_device_that_is_no_reader() {
    let (machine, _reader) = with_key("b22");
    let disk = machine.folder().join("sys/3-2");
    fs::create_dir(&disk).unwrap();
    // Only a device descriptor, without an interface.
    let mut descriptor = [0_u8; 18];
    descriptor[..2].copy_from_slice(&[18, 1]);
    fs::write(disk.join("descriptors"), descriptor).unwrap();
    for name in [
        "devnum",
        "bConfigurationValue",
        "manufacturer",
        "product",
        "serial",
    ] {
        // A thread that opens it for reading waits for a writer for ever.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            disk.join(name),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
    }
    let (done, ended) = std::sync::mpsc::channel();
    let program = machine.new_backend();
    thread::spawn(move || done.send(take_snapshot(&mut *program.watch()).readers.len()));
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(1));
}
