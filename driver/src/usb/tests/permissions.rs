//! Permissions of device nodes that are granted after the device came.

use std::{
    fs::Permissions,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    sync::{Arc, atomic::Ordering},
};

use claviger_apdu::TransportErrorKind;

use super::{
    fixture::{Machine, holds_card, only},
    watch::{Followed, key, until},
};
use crate::usb::discovery::sysfs::Told;

/// Grants the rights of a node after they were missed, which has the devices listed or not.
#[track_caller]
fn grant_later(machine: &Machine, told: Told, is_listed: bool) {
    let rights = |mode: u32| -> Permissions { PermissionsExt::from_mode(mode) };
    let (reader, config) = key();
    machine.plug_at("3-1", 7, &reader, &config);
    let node = machine.folder().join("dev/003/007");
    std::fs::set_permissions(&node, rights(0o000)).unwrap();
    let told = Arc::new(told);
    let program = machine.program_on(machine.bus().told(Arc::clone(&told)));
    let followed = Followed::new(&program);
    let picture = followed.picture();
    assert!(picture.readers.is_empty());
    assert_eq!(picture.trouble.unwrap().kind, TransportErrorKind::Denied);
    let lists = told.lists.load(Ordering::SeqCst);
    std::fs::set_permissions(&node, rights(0o600)).unwrap();
    assert!(holds_card(only(&followed.picture())));
    let listings = || told.lists.load(Ordering::SeqCst) - lists;
    if is_listed {
        until(|| listings() > 0);
    } else {
        assert_eq!(listings(), 0);
    }
}

#[test]
fn rights_that_are_granted_later_are_noticed() {
    // A device of which nobody tells may have become ready meanwhile, too.
    grant_later(&Machine::new("rights"), Told::default(), true);
}

#[test]
fn rights_that_are_granted_later_have_nothing_listed_where_udev_tells_of_devices() {
    let (_udev, messages) = UnixDatagram::pair().unwrap();
    let told = Told {
        messages: Some(messages.into()),
        nodes: true,
        ..Told::default()
    };
    grant_later(&Machine::new("rights-told"), told, false);
}
