//! Alone in its process, so that the threads counted are its own.

use std::time::{Duration, Instant};

use claviger_hw_tests::card::{CardConfig, VirtualCard};

#[test]
fn a_dropped_card_leaves_no_thread() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    let card = VirtualCard::power_up(CardConfig::default()).unwrap();
    card.transmit(&[0x00, 0xA4, 0x04, 0x00]);
    assert_eq!(threads(), before + 1);
    drop(card);
    // A joined thread leaves /proc a moment later.
    let deadline = Instant::now() + Duration::from_secs(2);
    while threads() != before {
        assert!(
            Instant::now() < deadline,
            "{} threads left",
            threads() - before
        );
        std::thread::yield_now();
    }
}
