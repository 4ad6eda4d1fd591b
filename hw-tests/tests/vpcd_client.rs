//! The card side of vpcd, against a vpcd that is this test.

#![allow(clippy::expect_used, reason = "helpers of a test fail loudly")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    card::{CardConfig, NITROKEY_3_ATR, VirtualCard},
    reader::{Fate, Reader},
    vpcd::VpcdClient,
};

const SELECT_PIV: [u8; 15] = [
    0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00, 0x00,
];
const VERIFY_STATUS: [u8; 4] = [0x00, 0x20, 0x00, 0x80];
const POWER_OFF: u8 = 0;
const POWER_ON: u8 = 1;
const RESET: u8 = 2;
const ATR: u8 = 4;

struct Bench {
    reader: Reader,
    vpcd: TcpListener,
    client: VpcdClient,
}

impl Bench {
    fn new() -> Self {
        let card = VirtualCard::power_up(CardConfig::default()).expect("a card in RAM");
        let reader = Reader::new("Virtual reader", card);
        let vpcd = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = vpcd.local_addr().expect("an address").port();
        let client = VpcdClient::start(port, &reader).expect("a thread");
        Self {
            reader,
            vpcd,
            client,
        }
    }

    fn inserted(&self) -> Slot {
        let (stream, _) = self.vpcd.accept().expect("the card comes");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        Slot(stream)
    }
}

struct Slot(TcpStream);

impl Slot {
    /// In two segments, as vpcd does it.
    fn put(&mut self, message: &[u8]) {
        let len = u16::try_from(message.len()).expect("a short message");
        self.0
            .write_all(&len.to_be_bytes())
            .expect("the card reads");
        self.0.write_all(message).expect("the card reads");
    }

    fn get(&mut self) -> Vec<u8> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length).expect("the card answers");
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0
            .read_exact(&mut message)
            .expect("the card answers in full");
        message
    }

    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.put(message);
        self.get()
    }

    fn is_empty(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

#[test]
fn the_card_answers_vpcd_and_forgets_with_its_power() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    slot.put(&[POWER_ON]);
    assert_eq!(slot.ask(&[ATR]), NITROKEY_3_ATR);
    for power in [&[POWER_OFF, POWER_ON][..], &[RESET]] {
        slot.ask(&SELECT_PIV);
        assert_eq!(slot.ask(&VERIFY_STATUS), [0x63, 0xC3]);
        power.iter().for_each(|signal| slot.put(&[*signal]));
        assert_eq!(slot.ask(&VERIFY_STATUS), [0x6A, 0x82]);
    }
    let counts = bench.reader.counts();
    assert_eq!((counts.connects, counts.apdus), (1, 6));
    assert_eq!(
        (counts.power_ups, counts.power_downs, counts.resets),
        (2, 1, 1)
    );
}

#[test]
fn a_card_without_power_sees_no_frame() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    slot.put(&[POWER_OFF]);
    assert_eq!(slot.ask(&VERIFY_STATUS), [0x6F, 0x00]);
    assert_eq!(bench.reader.counts().apdus, 0);
    slot.put(&[POWER_ON]);
    assert_eq!(slot.ask(&VERIFY_STATUS), [0x6A, 0x82]);
}

#[test]
fn removal_cuts_the_connection_and_insertion_makes_another() {
    let bench = Bench::new();
    for _ in 0..3 {
        let mut slot = bench.inserted();
        slot.put(&[POWER_ON]);
        slot.ask(&SELECT_PIV);
        bench.reader.remove();
        assert!(slot.is_empty());
        bench.reader.insert();
    }
    let mut slot = bench.inserted();
    assert_eq!(
        slot.ask(&VERIFY_STATUS),
        [0x6A, 0x82],
        "another insertion, another session"
    );
}

#[test]
fn a_card_pulled_with_a_frame_on_its_way_gives_no_answer() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    bench.reader.on_frame(|_| Fate::PullAfter);
    slot.put(&SELECT_PIV);
    assert!(slot.is_empty());
    assert_eq!(bench.reader.counts().apdus, 1);
}

#[test]
fn a_reset_by_the_test_is_not_announced() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    slot.ask(&SELECT_PIV);
    bench.reader.reset();
    assert_eq!(slot.ask(&VERIFY_STATUS), [0x6A, 0x82]);
}

#[test]
fn frames_in_two_segments_cost_no_delayed_acknowledgement() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    let frame = |_| {
        let start = Instant::now();
        slot.ask(&VERIFY_STATUS);
        start.elapsed()
    };
    // A busy machine may be late with some; a delayed acknowledgement is 40 ms late with each.
    let best = (0..50).map(frame).min().unwrap();
    assert!(best < Duration::from_millis(39), "{best:?} at best");
}

#[test]
fn dropping_the_client_takes_the_card_away_at_once() {
    let bench = Bench::new();
    let mut slot = bench.inserted();
    slot.ask(&SELECT_PIV);
    let start = Instant::now();
    drop(bench.client);
    assert!(slot.is_empty());
    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(
        bench.reader.is_present(),
        "the card is still in its own reader"
    );
}
