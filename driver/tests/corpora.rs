//! The corpora of the fuzz targets, with every truncation and every flipped bit, end without a panic.

#[path = "../../fuzz/corpora.rs"]
mod corpora;

use claviger_driver::{protocol, socket};
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
