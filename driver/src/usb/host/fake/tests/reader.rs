//! The fake reader does what CCID 1.1 requires at its exchange level.

use std::time::Duration;

use claviger_apdu::Secret;

use super::{ABORT, IN, NOTIFY, OUT, exchange, of, pipes};
use crate::usb::host::{
    fake::{
        FakeReader,
        reader::{FakeCard, ReaderConfig, echo},
    },
    transfer::TransferError,
};

fn command(kind: u8, sequence: u8, specific: [u8; 3], data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    message.extend([0, sequence]);
    message.extend(specific);
    message.extend(data);
    message
}

#[test]
fn a_reader_powers_its_card_and_passes_apdus_in_one_message_or_chained() {
    for max_message in [3072, 64] {
        let config = ReaderConfig {
            max_message,
            ..ReaderConfig::extended()
        };
        let reader = FakeReader::with_card(config, FakeCard::echo());
        let mut pipes = pipes(reader.device());
        let atr = exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
        assert_eq!(atr[..2], [0x80, 15 - 4]);
        assert!(reader.powered(0));
        let apdu: Vec<u8> = [&[0, 0x2A, 0, 0, 200][..], &[5; 200]].concat();
        let mut response = Vec::new();
        let room = usize::try_from(max_message).unwrap() - 10;
        let parts: Vec<&[u8]> = apdu.chunks(room).collect();
        let mut answer = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let level = match (at == 0, at + 1 == parts.len()) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            answer = exchange(&mut *pipes, &command(0x6F, 1, [0, level, 0], part)).unwrap();
        }
        for _ in 0..8 {
            response.extend_from_slice(&answer[10..]);
            if matches!(answer[9], 0 | 2) {
                break;
            }
            answer = exchange(&mut *pipes, &command(0x6F, 2, [0, 0x10, 0], &[])).unwrap();
        }
        assert_eq!(response, echo(&apdu));
        assert_eq!(reader.card_commands(0), 1);
    }
}

#[test]
fn tpdu_reader_passes_t1_blocks_and_chains_at_the_negotiated_size() {
    let reader = FakeReader::with_card(ReaderConfig::tpdu(), FakeCard::echo());
    let mut pipes = pipes(reader.device());
    let unpowered = exchange(&mut *pipes, &command(0x6F, 0, [0; 3], &[0, 0xC0, 0, 0xC0]));
    assert_eq!(unpowered.unwrap()[7..9], [0x41, 0xFE]);
    exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
    // The reader uses T=0 until its parameters are set.
    let parameters = [0x11, 0x10, 0, 0x45, 0, 0xFE, 0];
    exchange(&mut *pipes, &command(0x61, 0, [1, 0, 0], &parameters)).unwrap();
    let mut block = |bytes: &[u8]| {
        let check = bytes.iter().fold(0, |sum, byte| sum ^ byte);
        let whole = [bytes, &[check]].concat();
        exchange(&mut *pipes, &command(0x6F, 1, [0; 3], &whole)).unwrap()[10..].to_vec()
    };
    assert_eq!(block(&[0, 0xC1, 1, 64])[..4], [0, 0xE1, 1, 64]);
    let first = block(&[0, 0x00, 5, 0, 0xB0, 0, 0, 100]);
    assert_eq!(first[..3], [0, 0x20, 64], "more is to come");
    let wrong = block(&[0, 0x80, 0]);
    assert_eq!(wrong, first, "the same block again");
    let last = block(&[0, 0x90, 0]);
    assert_eq!(last[..3], [0, 0x40, 38]);
    assert_eq!(last[39..41], [0x90, 0x00]);
    assert_eq!(
        block(&[0, 0x00, 1, 1])[..2],
        [0, 0x92],
        "the number expected is 1"
    );
}

#[test]
fn a_tpdu_reader_passes_commands_of_t0_and_their_responses_are_fetched() {
    let reader = FakeReader::with_card(ReaderConfig::tpdu(), FakeCard::echo_t0());
    let mut pipes = pipes(reader.device());
    exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
    let mut tpdu = |bytes: &[u8]| {
        exchange(&mut *pipes, &command(0x6F, 1, [0; 3], bytes)).unwrap()[10..].to_vec()
    };
    assert_eq!(tpdu(&[0, 0x20, 0, 0, 3, 1, 2, 3]), [0x61, 3]);
    assert_eq!(tpdu(&[0, 0xC0, 0, 0, 9]), [0x6C, 3]);
    assert_eq!(tpdu(&[0, 0xC0, 0, 0, 3]), [1, 2, 3, 0x90, 0]);
    assert_eq!(tpdu(&[0, 0xB0, 0, 0, 4]), [0, 0, 0, 0, 0x90, 0]);
}

#[test]
fn an_abort_frees_a_slot_that_is_busy_unless_the_reader_ignores_it() {
    let reader = FakeReader::with_card(ReaderConfig::extended(), FakeCard::echo());
    let interface = reader.device().claim().unwrap();
    let mut pipes = interface.open_queue(&[IN, OUT]).unwrap();
    exchange(&mut *pipes, &command(0x62, 5, [0; 3], &[])).unwrap();
    reader.hold();
    assert_eq!(
        exchange(&mut *pipes, &command(0x6F, 6, [0; 3], &[0; 4])),
        None
    );
    pipes.submit_out(OUT, Secret::new(command(0x65, 9, [0; 3], &[])));
    let busy = of(&mut *pipes, IN).unwrap();
    assert_eq!(busy.buffer.expose()[7..9], [0x40, 0xE0]);
    reader.honour_abort(false);
    let second = Duration::from_secs(1);
    assert_eq!(
        interface.control(ABORT, &mut [], second),
        Err(TransferError::Stall)
    );
    reader.honour_abort(true);
    assert_eq!(interface.control(ABORT, &mut [], second), Ok(0));
    let status = exchange(&mut *pipes, &command(0x72, 7, [0; 3], &[])).unwrap();
    assert_eq!(status[..9], [0x81, 0, 0, 0, 0, 0, 7, 0, 0]);
    reader.release();
    let answer = exchange(&mut *pipes, &command(0x6F, 8, [0; 3], &[0; 4])).unwrap();
    assert_eq!((answer[6], &answer[10..]), (8, &[0x90, 0][..]));
    assert_eq!(reader.messages().last(), Some(&(0x6F, 8)));
}

#[test]
fn card_changes_are_reported_on_the_interrupt_pipe() {
    let config = ReaderConfig {
        slots: 5,
        ..ReaderConfig::extended()
    };
    let reader = FakeReader::new(config);
    let mut pipes = pipes(reader.device());
    let mut told = |change: &dyn Fn()| {
        pipes.submit_in(NOTIFY, 64);
        change();
        of(&mut *pipes, NOTIFY).unwrap().buffer.expose().to_vec()
    };
    assert_eq!(told(&|| reader.insert(4, FakeCard::echo())), [0x50, 0, 3]);
    assert_eq!(
        told(&|| reader.insert(1, FakeCard::echo())),
        [0x50, 0x0C, 1]
    );
    assert_eq!(told(&|| reader.swap(1, FakeCard::echo())), [0x50, 0x0C, 1]);
    assert_eq!(told(&|| reader.remove(4)), [0x50, 0x04, 2]);
    assert_eq!(told(&|| reader.hardware_error(1, 9, 1)), [0x51, 1, 9, 1]);
}

#[test]
fn fake_reader_requests_time_as_often_as_configured() {
    let reader = FakeReader::with_card(ReaderConfig::short(), FakeCard::echo());
    reader.extend_time(2);
    let mut pipes = pipes(reader.device());
    let first = exchange(&mut *pipes, &command(0x62, 1, [0; 3], &[])).unwrap();
    assert_eq!(first, [0x80, 0, 0, 0, 0, 0, 1, 0x80, 1, 0]);
    pipes.submit_in(IN, 64);
    assert_eq!(of(&mut *pipes, IN).unwrap().buffer.expose(), first);
    pipes.submit_in(IN, 320);
    assert_eq!(of(&mut *pipes, IN).unwrap().buffer.expose()[10], 0x3B);
}

#[test]
fn fake_reader_descriptors_have_their_stated_lengths() {
    for interrupt in [Some(NOTIFY), None] {
        let mut config = ReaderConfig::extended();
        config.layout.interrupt = interrupt;
        let bytes = FakeReader::new(config).descriptors();
        let total = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        assert_eq!(bytes.len(), 18 + total);
        let mut at = 0;
        let mut kinds = Vec::new();
        while at < bytes.len() {
            kinds.push(bytes[at + 1]);
            at += usize::from(bytes[at]);
        }
        assert_eq!(at, bytes.len());
        let expected = [1, 2, 4, 0x21, 5, 5, 5];
        assert_eq!(kinds, expected[..6 + usize::from(interrupt.is_some())]);
    }
}
