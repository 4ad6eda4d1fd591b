//! Entries at readers of the TPDU level, for cards with T=1.

use claviger_apdu::{Sent, StatusWord};

use super::*;
use crate::{ccid::message::SlotError, protocol::parameters::ErrorDetection};

const START: Numbers = Numbers {
    send: true,
    receive: false,
};

fn t1(request: PinRequest) -> T1Entry {
    T1Entry::new(&plain(request), START, ErrorDetection::Lrc)
}

/// Returns how an entry ends with this response.
fn ended(entry: &mut T1Entry, answer: Result<&[u8], SlotError>) -> (PinOutcome, Option<Numbers>) {
    match entry.receive(answer) {
        T1Step::Ended { outcome, numbers } => (outcome, numbers),
        step @ T1Step::Send { .. } => panic!("{step:?}"),
    }
}

#[test]
fn pin_entry_of_a_tpdu_reader_gets_the_prologue_of_the_next_block() {
    let entry = t1(PIV_VERIFY);
    // NAD, PCB with N(S) = 1, LEN 13.
    assert_eq!(entry.data()[12..15], [0x00, 0x40, 0x0D]);
    assert_eq!(entry.data()[15..20], [0x00, 0x20, 0x00, 0x80, 0x08]);
    let first = Numbers {
        send: false,
        ..START
    };
    let entry = T1Entry::new(&plain(PIV_CHANGE), first, ErrorDetection::Crc);
    assert_eq!(entry.data()[17..20], [0x00, 0x00, 0x15]);
}

#[test]
fn both_sequence_numbers_advance_when_the_card_has_responded() {
    let mut entry = t1(PIV_VERIFY);
    let (outcome, numbers) = ended(&mut entry, Ok(&[0x00, 0x00, 0x02, 0x90, 0x00, 0x92]));
    assert_eq!(outcome.end, PinEnd::Card(StatusWord::OK));
    assert_eq!(outcome.sent, Sent::Yes);
    let (send, receive) = (false, true);
    assert_eq!(numbers, Some(Numbers { send, receive }));
}

#[test]
fn the_toggle_is_undone_when_no_block_was_sent() {
    for (error, end) in [
        (SlotError::PinCancelled, PinEnd::Cancelled),
        (SlotError::PinTimeout, PinEnd::TimedOut),
        (SlotError::Parameter(12), PinEnd::Rejected),
    ] {
        let (outcome, numbers) = ended(&mut t1(PIV_VERIFY), Err(error));
        assert_eq!((outcome.end, outcome.sent), (end, Sent::No));
        assert_eq!(numbers, Some(START));
    }
}

#[test]
fn maybe_sent_pin_entry_is_neither_repeated_nor_counted() {
    let wrong_number = [0x00, 0x40, 0x02, 0x90, 0x00, 0xD2];
    let wrong_code = [0x00, 0x00, 0x02, 0x90, 0x00, 0x93];
    let wants_it_again = [0x00, 0x91, 0x00, 0x91];
    let more_to_come = [0x00, 0x20, 0x02, 0x90, 0x00, 0xB2];
    for block in [
        &wrong_number[..],
        &wrong_code,
        &wants_it_again,
        &more_to_come,
        &[0x64, 0x01],
        &[],
    ] {
        let (outcome, numbers) = ended(&mut t1(PIV_VERIFY), Ok(block));
        assert!(matches!(outcome.end, PinEnd::Malformed(_)), "{block:02X?}");
        assert_eq!((outcome.sent, numbers), (Sent::Maybe, None), "{block:02X?}");
    }
    let (outcome, numbers) = ended(&mut t1(PIV_VERIFY), Err(SlotError::Parity));
    assert_eq!((outcome.sent, numbers), (Sent::Maybe, None));
}

#[test]
fn a_card_that_asks_for_time_gets_it() {
    let mut entry = t1(PIV_VERIFY);
    let T1Step::Send {
        block,
        waiting_time_multiplier,
    } = entry.receive(Ok(&[0x00, 0xC3, 0x01, 0x05, 0xC7]))
    else {
        panic!("no step");
    };
    assert_eq!(block.expose(), [0x00, 0xE3, 0x01, 0x05, 0xE7]);
    assert_eq!(waiting_time_multiplier, 5);
    let (outcome, numbers) = ended(&mut entry, Ok(&[0x00, 0x00, 0x02, 0x63, 0xC2, 0xA3]));
    assert_eq!(outcome.end, PinEnd::Card(StatusWord(0x63C2)));
    assert!(numbers.is_some());
}

#[test]
fn pin_entry_cancelled_after_card_traffic_counts_as_maybe_sent() {
    let mut entry = t1(PIV_VERIFY);
    let step = entry.receive(Ok(&[0x00, 0xC3, 0x01, 0x01, 0xC3]));
    assert!(matches!(step, T1Step::Send { .. }));
    let (outcome, numbers) = ended(&mut entry, Err(SlotError::PinCancelled));
    assert_eq!((outcome.sent, numbers), (Sent::Maybe, None));
}

#[test]
fn ifs_request_during_pin_entry_makes_resynchronisation_necessary() {
    let mut entry = t1(PIV_VERIFY);
    let step = entry.receive(Ok(&[0x00, 0xC1, 0x01, 0x40, 0x80]));
    let T1Step::Send { block, .. } = step else {
        panic!("{step:?}");
    };
    assert_eq!(block.expose(), [0x00, 0xE1, 0x01, 0x40, 0xA0]);
    let (outcome, numbers) = ended(&mut entry, Ok(&[0x00, 0x00, 0x02, 0x90, 0x00, 0x92]));
    assert_eq!((outcome.sent, numbers), (Sent::Yes, None));
}

#[test]
fn endless_requests_of_the_card_end_the_pin_entry() {
    let mut entry = t1(PIV_VERIFY);
    let mut asked = 0;
    while let T1Step::Send { .. } = entry.receive(Ok(&[0x00, 0xC1, 0x01, 0x40, 0x80])) {
        asked += 1;
        assert!(asked < 100);
    }
    let mut entry = t1(PIV_VERIFY);
    let mut asked = 0;
    while let T1Step::Send { .. } = entry.receive(Ok(&[0x00, 0xC3, 0x01, 0x01, 0xC3])) {
        asked += 1;
        assert!(asked < 100_000);
    }
}
