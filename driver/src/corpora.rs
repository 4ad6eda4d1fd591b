//! The corpora of the fuzz targets, with every truncation and every flipped bit, end without a panic.

#[path = "../../fuzz/corpora.rs"]
mod seeds;

use self::seeds::{EVERY, feed};
use crate::{ccid, pcsc, protocol, socket, usb};

#[test]
fn socket_frame() {
    feed("socket_frame", EVERY, socket::frame::fuzz);
}

#[test]
fn socket_inbox() {
    feed("socket_inbox", EVERY, socket::fuzz_inbox);
}

#[test]
fn ccid_chaining() {
    feed("ccid_chaining", EVERY, ccid::apdu_level::fuzz);
}

#[test]
fn ccid_descriptor() {
    feed("ccid_descriptor", EVERY, ccid::descriptor::fuzz);
}

#[test]
fn ccid_message() {
    feed("ccid_message", EVERY, ccid::message::fuzz);
}

#[test]
fn ccid_notification() {
    feed("ccid_notification", EVERY, ccid::notification::fuzz);
}

#[test]
fn ccid_configuration() {
    feed("ccid_configuration", EVERY, ccid::configuration::fuzz);
}

#[test]
fn ccid_protocol_data() {
    feed("ccid_protocol_data", EVERY, ccid::protocol_data::fuzz);
}

#[test]
fn iccd() {
    feed("iccd", EVERY, ccid::iccd::fuzz);
}

#[test]
fn atr_parameters() {
    feed("atr_parameters", EVERY, protocol::parameters::fuzz);
}

#[test]
fn pps() {
    feed("pps", EVERY, protocol::pps::fuzz);
}

#[test]
fn t1() {
    feed("t1", EVERY, protocol::t1::fuzz::fuzz);
}

#[test]
fn t0() {
    feed("t0", EVERY, protocol::t0::fuzz);
}

#[test]
fn character() {
    feed("character", EVERY, protocol::character::fuzz);
}

#[test]
fn part10_tlv() {
    feed("part10_tlv", EVERY, pcsc::features::fuzz);
}

#[test]
fn pin_pad() {
    feed("pin_pad", EVERY, ccid::pin_pad::fuzz::fuzz);
}

#[test]
fn uevent() {
    feed("uevent", EVERY, usb::discovery::uevent::fuzz);
}

#[test]
fn usb_record() {
    feed("usb_record", EVERY, usb::claim::record::fuzz);
}

#[test]
fn usb_port() {
    feed("usb_port", EVERY, usb::discovery::sysfs::fuzz);
}

#[test]
fn udev_data() {
    feed("udev_data", EVERY, usb::discovery::udev_data::fuzz);
}
