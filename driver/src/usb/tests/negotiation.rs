//! Behaviour of real readers that broke other drivers.
//!
//! Other modules test more of it: `ccid::descriptor` and `ccid::configuration` test wrong descriptors; the parent module tests
//! late responses, omitted empty packets, whole packets and messages in parts; `ccid::notification`, `interrupt` and `watch` test
//! notifications; `short` tests truncated commands; `faults` tests every fault at every step.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    SHORT, STEP_TIMEOUT, answered, command, exchange,
    fixture::{FakeMachine, connect, echo, holds_card, single_reader, token},
    powered,
    script::{ATR, Got, Scripted},
    watch::WatchThread,
};
use crate::{
    ccid::message::IccStatus,
    stop::StopHandle as _,
    usb::host::{
        fake::{
            Event, FakeReader, Fault,
            reader::{FakeCard, ReaderConfig},
        },
        transfer::EndpointAddress,
    },
    wait::StopFlag,
};

/// A token whose responses to commands for the card are modified.
fn spoiling(mut how: impl FnMut(&Got, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) -> Scripted {
    Scripted::powered(ReaderConfig::extended(), true, move |got| {
        (got.kind == 0x6F).then(|| how(got, got.good()))
    })
}

/// The command ends with `kind`, was sent once and may have reached the card.
#[track_caller]
fn fails(mut reader: Scripted, kind: TransportErrorKind, what: &str) {
    let started = Instant::now();
    let error = exchange(&mut reader.device, b"data", SHORT).unwrap_err();
    assert_eq!((error.kind, error.sent), (kind, Sent::Maybe), "{error}");
    assert!(error.what.contains(what), "{error}");
    assert!(started.elapsed() < STEP_TIMEOUT);
    assert_eq!(reader.heard.kinds(), [0x6F], "nothing is sent again");
}

fn changed(mut message: Vec<u8>, at: usize, to: u8) -> Vec<u8> {
    message[at] = to;
    message
}

#[test]
fn response_of_another_type_slot_or_sequence_is_ignored() {
    for (at, to) in [(0, 0x82), (0, 0x83), (5, 1), (5, 0xFF), (6, 0xEE)] {
        let reader = spoiling(move |_, good| vec![changed(good, at, to)]);
        fails(reader, TransportErrorKind::TimedOut, "in time");
        let mut reader = spoiling(move |_, good| vec![changed(good.clone(), at, to), good]);
        let answer = exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"data"), "the right one after it is");
    }
}

#[test]
fn response_of_unknown_type_or_status_ends_the_command() {
    for (at, to) in [(0, 0x6F), (0, 0x00), (7, 0x03), (7, 0xC0)] {
        let reader = spoiling(move |_, good| vec![changed(good, at, to)]);
        fails(reader, TransportErrorKind::Protocol, "malformed");
    }
}

#[test]
fn response_with_a_wrong_length_field_ends_the_command() {
    for length in [0_u32, 5, 7, 100, 65_546, u32::MAX] {
        let reader = spoiling(move |_, mut good| {
            good[1..5].copy_from_slice(&length.to_le_bytes());
            vec![good]
        });
        fails(reader, TransportErrorKind::Protocol, "malformed");
    }
    for length in 1..10 {
        let reader = spoiling(move |_, good| vec![good[..length].to_vec()]);
        fails(reader, TransportErrorKind::Protocol, "malformed");
    }
}

#[test]
fn response_longer_than_the_longest_message_ends_the_command() {
    let reader = Scripted::powered(
        ReaderConfig {
            max_message: 64,
            ..ReaderConfig::extended()
        },
        true,
        |got| (got.kind == 0x6F).then(|| vec![got.reply(0, 0, 0, &[0x5A; 300])]),
    );
    fails(reader, TransportErrorKind::Protocol, "malformed");
}

#[test]
fn oversized_message_without_zlp_is_read_up_to_the_longest_response() {
    let mut config = ReaderConfig::extended();
    config.layout.zlp = false;
    let mut round = 0;
    let mut reader = Scripted::powered(config, true, move |got| {
        if got.kind != 0x6F {
            return None;
        }
        round += 1;
        if round == 1 {
            return None;
        }
        let mut endless = got.reply(0, 0, 0, &[0x5A; 300_000]);
        endless[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        Some(vec![endless])
    });
    // The response fills a packet. Only the deadline shows that no empty packet follows.
    let data = vec![0x5A; 52];
    let answer = exchange(&mut reader.device, &data, SHORT).unwrap();
    assert_eq!(answer, answered(&data));
    reader.bus.forget();
    let error = exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::Maybe)
    );
    let events = reader.bus.events();
    let asked = events.iter().map(|event| match event {
        Event::SubmitIn(_, length) => *length,
        _ => 0,
    });
    let asked: usize = asked.sum();
    assert!(asked < 65_538 + 4096, "{asked} bytes were asked for");
}

#[test]
fn unexpected_response_chaining_ends_the_command() {
    for chain in [0x02, 0x03, 0x04, 0x10, 0x11, 0xFF] {
        let reader = spoiling(move |_, good| vec![changed(good, 9, chain)]);
        fails(reader, TransportErrorKind::Protocol, "bChainParameter");
    }
}

#[test]
fn endless_response_parts_end_the_command() {
    let mut reader = spoiling(|got, good| {
        let chain = if got.specific == [0, 0, 0] { 1 } else { 3 };
        vec![changed(good, 9, chain)]
    });
    let error = exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::Protocol);
    assert!(error.what.contains("parts"), "{error}");
    let commands = reader.heard.commands();
    let whole = commands.iter().filter(|got| got.specific == [0, 0, 0]);
    assert_eq!(whole.count(), 1, "the command itself went once");
    assert!(commands.len() <= 2050, "{}", commands.len());
}

#[test]
fn endless_responses_to_other_commands_end_the_command() {
    let reader = spoiling(|_, good| vec![changed(good, 6, 0xEE); 40]);
    fails(reader, TransportErrorKind::Protocol, "other commands");
}

#[test]
fn endless_empty_transfers_end_the_command_and_a_few_do_not() {
    let reader = spoiling(|_, _| vec![Vec::new(); 40]);
    fails(reader, TransportErrorKind::Protocol, "empty transfers");
    let mut reader = spoiling(|_, good| vec![Vec::new(), Vec::new(), Vec::new(), good]);
    let answer = exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap();
    assert_eq!(answer, answered(b"data"));
}

#[test]
fn endless_time_requests_end_the_command() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.device().inject(Fault::EndlessTimeExtension, 0);
    let error = exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::Maybe)
    );
    assert!(error.what.contains("more time"), "{error}");
    assert_eq!(reader.card_commands(0), 1);
}

#[test]
fn time_extension_of_another_command_is_ignored() {
    let reader = spoiling(|got, _| {
        let mut more = got.reply(0x80, 1, 0, &[]);
        more[6] = more[6].wrapping_sub(1);
        vec![more]
    });
    fails(reader, TransportErrorKind::TimedOut, "in time");
}

#[test]
fn sequence_number_wraps_without_mixing_up_responses() {
    let mut reader = spoiling(|_, good| {
        let older = changed(good.clone(), 6, good[6].wrapping_sub(1));
        let newer = changed(good.clone(), 6, good[6].wrapping_add(1));
        vec![older, newer, good]
    });
    for round in 0..600_u16 {
        let data = round.to_be_bytes();
        let answer = exchange(&mut reader.device, &data, STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(&data), "{round}");
    }
    let sequences: Vec<u8> = reader
        .heard
        .commands()
        .iter()
        .map(|got| got.sequence)
        .collect();
    assert!(
        sequences
            .windows(2)
            .all(|pair| pair[1] == pair[0].wrapping_add(1))
    );
}

#[test]
fn apdu_power_on_waits_through_time_extensions() {
    let mut reader = Scripted::new(ReaderConfig::extended(), true, |got| {
        let more = got.reply(0x80, 10, 0, &[]);
        (got.kind == 0x62).then(|| vec![more.clone(), more.clone(), more, got.good()])
    });
    reader.power().unwrap();
    assert_eq!(reader.device.atr().unwrap().bytes(), ATR);
    assert_eq!(reader.heard.kinds(), [0x62]);
}

#[test]
fn mute_card_is_power_cycled_once_more() {
    let mut first = true;
    let mut reader = Scripted::new(ReaderConfig::extended(), true, move |got| {
        let fails = got.kind == 0x62 && std::mem::take(&mut first);
        fails.then(|| vec![got.reply(0x40, 0xFE, 0, &[])])
    });
    reader.power().unwrap();
    assert_eq!(reader.heard.kinds(), [0x62, 0x63, 0x62]);
    let mut mute = Scripted::new(ReaderConfig::extended(), true, |got| {
        (got.kind == 0x62).then(|| vec![got.reply(0x41, 0xFE, 0, &[])])
    });
    let error = mute.power().unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoCard, Sent::No)
    );
    assert_eq!(
        mute.heard.kinds(),
        [0x62, 0x63, 0x62, 0x63],
        "and then left off"
    );
}

#[test]
fn power_begins_with_the_lowest_voltage_the_reader_offers() {
    let config = ReaderConfig {
        features: 0x0000_0040,
        ..ReaderConfig::extended()
    };
    let mut reader = Scripted::new(config, true, |got| {
        let works = got.specific[0] == 1;
        (got.kind == 0x62 && !works).then(|| vec![got.reply(0x41, 0xFE, 0, &[])])
    });
    reader.power().unwrap();
    let commands = reader.heard.commands();
    let powers = commands.iter().filter(|got| got.kind == 0x62);
    // bPowerSelect: 1.8 V, 3 V, 5 V (CCID 1.1, 6.1.1).
    assert_eq!(
        powers.map(|got| got.specific[0]).collect::<Vec<_>>(),
        [3, 2, 1]
    );
    assert_eq!(reader.heard.count(0x63), 2, "off between two of them");
}

#[test]
fn empty_slot_is_reported_as_such_whatever_the_error() {
    let mut reader = Scripted::new(ReaderConfig::extended(), true, |got| {
        (got.kind == 0x62).then(|| vec![got.reply(0x42, 0xFE, 0, &[])])
    });
    let error = reader.power().unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoCard);
    assert_eq!(reader.heard.kinds(), [0x62], "no other voltage is tried");
}

#[test]
fn first_response_damaged_by_stale_data_is_requested_again() {
    let mut first = true;
    let mut reader = Scripted::new(ReaderConfig::extended(), false, move |got| {
        let lost = got.kind == 0x65 && std::mem::take(&mut first);
        // The command that ran when the other driver ended.
        lost.then(|| vec![changed(got.good(), 6, 0x77)])
    });
    let icc = reader.device.status(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(icc, IccStatus::Active);
    assert_eq!(reader.heard.count(0x65), 2);
}

#[test]
fn unanswered_slot_status_is_queried_four_times_at_most() {
    for answers in [Vec::new(), vec![vec![0x81; 3]]] {
        let mut reader = Scripted::new(ReaderConfig::extended(), true, move |_| {
            Some(answers.clone())
        });
        let started = Instant::now();
        let call = Call::within(Duration::from_millis(300));
        let error = reader.device.status(call).unwrap_err();
        assert_eq!(error.sent, Sent::No, "{error}");
        assert!(started.elapsed() < STEP_TIMEOUT / 2);
        assert!(reader.heard.count(0x65) <= 4, "{:?}", reader.heard.kinds());
        assert!(reader.heard.count(0x72) <= 1, "{:?}", reader.heard.kinds());
    }
}

#[test]
fn stalled_pipe_is_cleared_before_the_next_command_without_resending() {
    for (step, stalled) in [0x82, 0x02].map(EndpointAddress).into_iter().enumerate() {
        let (reader, mut device) = powered(ReaderConfig::extended());
        reader.device().inject(Fault::Stall, step);
        let error = exchange(&mut device, b"first", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::Protocol, "{error}");
        assert!(error.sent != Sent::No || reader.card_commands(0) == 0);
        reader.device().forget();
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No)
        );
        let events = reader.device().events();
        let cleared = events
            .iter()
            .filter(|event| matches!(event, Event::ClearHalt(_)));
        let cleared: Vec<&Event> = cleared.collect();
        assert_eq!(cleared, [&Event::ClearHalt(stalled)], "and no other");
        assert!(!events.contains(&Event::Reset), "the device needed none");
        let answer = exchange(&mut device, b"third", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"third"));
        assert!(reader.card_commands(0) <= 2, "neither was sent again");
    }
}

#[test]
fn stall_of_a_status_query_is_cleared_and_the_query_repeated() {
    for step in 0..2 {
        let (reader, mut device) = powered(ReaderConfig::extended());
        reader.device().inject(Fault::Stall, step);
        let icc = device.status(Call::within(STEP_TIMEOUT)).unwrap();
        assert_eq!(icc, IccStatus::Active);
        assert!(reader.device().fault_struck());
    }
}

/// Which parts of an Abort the reader accepts: the control part and the bulk part.
fn aborting(control: bool, bulk: bool) -> Scripted {
    let mut is_held = true;
    Scripted::powered(ReaderConfig::extended(), control, move |got| {
        match got.kind {
            0x6F if std::mem::take(&mut is_held) => Some(Vec::new()),
            0x72 if !bulk => Some(Vec::new()),
            _ => None,
        }
    })
}

#[test]
fn an_abort_that_is_ignored_in_either_half_is_tried_once_with_one_number() {
    for (control, bulk) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut reader = aborting(control, bulk);
        let what = format!("control {control}, bulk {bulk}");
        let error = exchange(&mut reader.device, b"first", SHORT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::TimedOut, Sent::Maybe)
        );
        let started = Instant::now();
        let error = exchange(&mut reader.device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardReset, "{what}: {error}");
        assert_eq!(error.sent, Sent::No);
        assert!(
            started.elapsed() < STEP_TIMEOUT / 2,
            "{what}: {:?}",
            started.elapsed()
        );
        let requests = reader.heard.requests();
        assert_eq!(requests.len(), 1, "{what}");
        let aborts: Vec<Got> = reader.heard.commands();
        let aborts: Vec<&Got> = aborts.iter().filter(|got| got.kind == 0x72).collect();
        assert!(
            aborts.len() <= 1,
            "{what}: sequence numbers are not tried out"
        );
        for abort in aborts {
            let value = u16::from_be_bytes([abort.sequence, abort.slot]);
            assert_eq!(requests[0].value, value, "{what}: one number");
        }
        let answer = exchange(&mut reader.device, b"third", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"third"), "{what}");
        let sent = reader.heard.commands();
        let sent = |data: &[u8]| sent.iter().filter(|got| got.data == command(data)).count();
        assert_eq!(
            (sent(b"first"), sent(b"second"), sent(b"third")),
            (1, 0, 1),
            "{what}"
        );
    }
}

#[test]
fn slot_busy_error_means_the_command_was_not_sent() {
    let mut reader = spoiling(|got, _| vec![got.reply(0x40, 0xE0, 0, &[])]);
    let error = exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Busy, Sent::No)
    );
}

#[test]
fn any_error_of_a_slot_ends_the_command_and_is_named() {
    for code in [
        0x01_u8, 0x7F, 0x80, 0xBB, 0xEF, 0xF0, 0xF5, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF,
    ] {
        let reader = spoiling(move |got, _| vec![got.reply(0x40, code, 0, &[])]);
        fails(reader, TransportErrorKind::Protocol, "the command failed");
    }
}

#[test]
fn power_loss_of_the_card_advances_the_epoch() {
    let mut reader = spoiling(|got, _| vec![got.reply(0x41, 0xFE, 0, &[])]);
    let epoch = reader.device.epoch();
    exchange(&mut reader.device, b"data", STEP_TIMEOUT).unwrap_err();
    assert!(reader.device.epoch() > epoch);
}

#[test]
fn token_gets_no_optional_command_from_its_first_query_to_its_last_command() {
    let machine = FakeMachine::new("optional");
    let slot = FakeReader::with_card(token(), FakeCard::echo());
    machine.plug("3-1", &slot, &token());
    let program = machine.new_backend();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"data").unwrap(), answered(b"data"));
    drop(card);
    // No Escape, Secure, parameters, rates or clock; no control request, no reset, no SET_INTERFACE.
    let kinds: Vec<u8> = slot.messages().iter().map(|(kind, _)| *kind).collect();
    assert!(
        kinds.iter().all(|kind| [0x62, 0x65, 0x6F].contains(kind)),
        "{kinds:02X?}"
    );
    assert_eq!(slot.device().counts().control, 0);
    assert!(!slot.device().events().contains(&Event::Reset));
}

#[test]
fn stop_after_a_response_changes_nothing_and_stop_before_a_command_ends_it() {
    let reader = FakeReader::with_card(ReaderConfig::extended(), FakeCard::echo());
    let stop = Arc::new(StopFlag::new());
    let layout = ReaderConfig::extended().layout;
    let mut device = super::claimed(&reader, layout, &stop);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    let answer = exchange(&mut device, b"before", STEP_TIMEOUT).unwrap();
    stop.stop();
    assert_eq!(answer, answered(b"before"));
    reader.hold();
    let started = Instant::now();
    for data in [&b"first"[..], b"second"] {
        let error = exchange(&mut device, data, STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::Cancelled, "{error}");
    }
    assert!(
        started.elapsed() < STEP_TIMEOUT / 2,
        "{:?}",
        started.elapsed()
    );
    assert!(reader.card_commands(0) <= 2);
}
