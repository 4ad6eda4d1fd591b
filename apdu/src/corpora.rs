//! Feeds the corpora of the fuzz targets, with every truncation and every flipped bit. No input may cause a panic.

#[path = "../../fuzz/corpora.rs"]
mod seeds;

use self::seeds::{EVERY, feed};
use crate::{atr, fuzz, tlv};

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
