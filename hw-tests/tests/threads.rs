//! Counts threads and descriptors. It is a program of its own, so that no other test adds any.

use std::{
    fs,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    card::{CardConfig, VirtualCard},
    fixture::card_fixture::CardFixture,
    provision::CardProfile,
};

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A joined thread leaves /proc a moment later.
fn comes_to(what: &str, now: impl Fn() -> usize, expected: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while now() != expected {
        assert!(
            Instant::now() < deadline,
            "{} {what}, {expected} expected",
            now()
        );
        std::thread::yield_now();
    }
}

#[test]
fn cards_and_fixtures_leave_no_thread_and_no_descriptor() {
    // The resources that the harness keeps exist after the first fixture.
    drop(CardFixture::pcscd(CardProfile::factory()));
    let before = (threads(), descriptors());

    let card = VirtualCard::power_up(CardConfig::default()).unwrap();
    card.transmit(&[0x00, 0xA4, 0x04, 0x00]);
    comes_to("threads", threads, before.0 + 1);
    drop(card);
    comes_to("threads", threads, before.0);

    let fixture = CardFixture::socket(CardProfile::factory());
    let client = UnixStream::connect(fixture.socket_path()).unwrap();
    comes_to(
        "threads: card, acceptor and connection",
        threads,
        before.0 + 3,
    );
    drop(fixture);
    drop(client);
    drop(CardFixture::pcscd(CardProfile::factory()));
    comes_to("threads", threads, before.0);
    comes_to("descriptors", descriptors, before.1);
}
