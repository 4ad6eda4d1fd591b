//! The corpora of the fuzz targets, with every truncation and every flipped bit, end without a panic.

#[path = "../../fuzz/corpora.rs"]
mod corpora;

use claviger_driver::{ccid, socket};
use corpora::{EVERY, feed};

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
