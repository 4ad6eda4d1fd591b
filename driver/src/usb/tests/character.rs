//! Readers that take characters.

use super::{
    STEP_TIMEOUT, answered, blocks, exchange, kinds, powered_card, raw,
    tpdu::is_silent_and_then_reset,
};
use crate::usb::{
    host::fake::reader::{Disturbance, FakeCard, Pps, ReaderConfig, echo},
    reader::slot::CcidSlot,
};

fn crc() -> FakeCard {
    FakeCard::echo()
        .with_atr(&[0x3B, 0x80, 0x81, 0x71, 0xFE, 0x45, 0x01])
        .with_crc()
}

fn fast() -> FakeCard {
    FakeCard::echo().with_atr(&[0x3B, 0x90, 0x96, 0x81, 0x31, 0xFE, 0x45])
}

#[track_caller]
fn carries(device: &mut CcidSlot, len: usize) {
    let data = vec![0x5A; len];
    assert_eq!(
        exchange(device, &data, STEP_TIMEOUT).unwrap(),
        answered(&data),
        "{len} bytes"
    );
}

#[test]
fn t1_blocks_are_requested_by_their_prologue_and_then_by_their_length() {
    let (reader, mut device) = powered_card(ReaderConfig::character(), FakeCard::echo());
    carries(&mut device, 10);
    let asked: Vec<_> = blocks(&reader)
        .into_iter()
        .map(|(_, level, data)| (data.len(), level))
        .collect();
    // S(IFS) and its response of five bytes, then the command and its response of sixteen.
    assert_eq!(asked, [(5, 3), (0, 2), (19, 3), (0, 13)]);
}

#[test]
fn commands_of_any_length_go_in_characters() {
    for card in [FakeCard::echo, crc, fast] {
        for max_message in [271, 64] {
            let config = ReaderConfig {
                max_message,
                ..ReaderConfig::character()
            };
            let (_reader, mut device) = powered_card(config, card());
            for len in [1, 100, 255, 256, 1000] {
                carries(&mut device, len);
            }
        }
    }
}

#[test]
fn t0_data_is_sent_as_the_procedure_bytes_request() {
    for slowly in [false, true] {
        let card = FakeCard::t0(|frame| match frame {
            [_, 0xCA, ..] => echo(frame),
            _ => vec![0x90, 0x00],
        });
        let card = if slowly { card.slowly(3) } else { card };
        let (_reader, mut device) = powered_card(ReaderConfig::character(), card);
        let read = raw(&mut device, &[0, 0xCA, 0, 0, 200]).unwrap();
        assert_eq!(read, answered(&[0; 200]));
        let written = raw(&mut device, &[0, 0xDB, 0, 0, 3, 1, 2, 3]).unwrap();
        assert_eq!(written, [0x90, 0x00]);
        assert_eq!(raw(&mut device, &[0, 0x20, 0, 1]).unwrap(), [0x90, 0x00]);
    }
}

#[test]
fn a_pps_is_answered_in_as_many_characters_as_it_says() {
    for (pps, kinds_after) in [
        (Pps::Agrees, &[0x62, 0x6F, 0x6F, 0x61][..]),
        (Pps::AgreesSlowly, &[0x62, 0x6F, 0x61]),
        (Pps::Silent, &[0x62, 0x6F, 0x63, 0x62, 0x61]),
    ] {
        let (reader, mut device) = powered_card(ReaderConfig::character(), fast().with_pps(pps));
        assert_eq!(kinds(&reader), kinds_after, "{pps:?}");
        carries(&mut device, 10);
    }
}

#[test]
fn lost_or_damaged_block_is_repeated_by_a_character_reader() {
    use Disturbance::{Corrupt, Lose, Parity, Swallow, Wtx};
    for disturbance in [Lose, Swallow, Parity, Corrupt, Wtx(3)] {
        for step in 0..3 {
            let card = FakeCard::echo().disturbed(step, disturbance);
            let (_reader, mut device) = powered_card(ReaderConfig::character(), card);
            carries(&mut device, 20);
            carries(&mut device, 21);
        }
    }
}

#[test]
fn t0_card_that_sends_too_little_in_characters_is_reset_before_the_next_command() {
    is_silent_and_then_reset(ReaderConfig::character());
}
