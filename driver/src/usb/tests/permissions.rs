//! Permissions of device nodes that are granted after the device came.

use std::{
    fs::Permissions,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    sync::{Arc, atomic::Ordering},
};

use claviger_apdu::TransportErrorKind;

use super::{
    fixture::{FakeMachine, holds_card, single_reader},
    watch::{WatchThread, key, wait_until},
};
use crate::usb::discovery::sysfs::TestEvents;

/// Grants the rights of a node after they were missed, which has the devices listed or not.
#[track_caller]
fn grant_later(machine: &FakeMachine, told: TestEvents, is_listed: bool) {
    let rights = |mode: u32| -> Permissions { PermissionsExt::from_mode(mode) };
    let (reader, config) = key();
    machine.plug_at("3-1", 7, &reader, &config);
    let node = machine.folder().join("dev/003/007");
    std::fs::set_permissions(&node, rights(0o000)).unwrap();
    let told = Arc::new(told);
    let program = machine.new_backend_on(machine.bus().with_test_events(Arc::clone(&told)));
    let followed = WatchThread::new(&program);
    let snapshot = followed.snapshot();
    assert!(snapshot.readers.is_empty());
    assert_eq!(snapshot.error.unwrap().kind, TransportErrorKind::Denied);
    let lists = told.lists.load(Ordering::SeqCst);
    std::fs::set_permissions(&node, rights(0o600)).unwrap();
    assert!(holds_card(single_reader(&followed.snapshot())));
    let listings = || told.lists.load(Ordering::SeqCst) - lists;
    if is_listed {
        wait_until(|| listings() > 0);
    } else {
        assert_eq!(listings(), 0);
    }
}

#[test]
fn access_granted_later_is_noticed() {
    // A device without messages may have become ready meanwhile, too.
    grant_later(&FakeMachine::new("rights"), TestEvents::default(), true);
}

#[test]
fn access_granted_later_causes_no_listing_where_udev_reports_devices() {
    let (_udev, messages) = UnixDatagram::pair().unwrap();
    let told = TestEvents {
        messages: Some(messages.into()),
        nodes: true,
        ..TestEvents::default()
    };
    grant_later(&FakeMachine::new("rights-told"), told, false);
}
