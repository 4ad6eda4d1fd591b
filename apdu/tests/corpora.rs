//! The corpora of the fuzz targets, with every truncation and every flipped bit, end without a panic.

#[path = "../../fuzz/corpora.rs"]
mod corpora;

use claviger_apdu::{atr, fuzz, tlv};
use corpora::{EVERY, feed};

#[test]
fn atr() {
    feed("atr", EVERY, atr::fuzz);
}

#[test]
fn command() {
    feed("command", EVERY, fuzz::command);
}

#[test]
fn exchange() {
    feed("exchange", 500, fuzz::exchange);
}

#[test]
fn tlv() {
    feed("tlv", EVERY, tlv::fuzz);
}
