//! Power for the card, and what is agreed before its first command.

use std::{thread, time::Duration};

use claviger_apdu::{Call, Sent, TransportErrorKind};

use super::{
    STEP_TIMEOUT, answered, blocks, exchange, kinds, powered, powered_card, raw, script::Scripted,
    with_card,
};
use crate::{
    ccid::quirks::Quirks,
    usb::{
        host::fake::{
            FakeReader,
            reader::{FakeCard, Pps, Protocol, ReaderConfig, echo},
        },
        reader::slot::CcidSlot,
    },
};

const POWER_ON: u8 = 0x62;
const POWER_OFF: u8 = 0x63;
const BLOCK: u8 = 0x6F;
const SET: u8 = 0x61;
const GET: u8 = 0x6C;

/// T=1, IFSC 254, BWI 4, CWI 5, at the rate of TA1.
fn t1_at(ta1: u8) -> FakeCard {
    FakeCard::echo().with_atr(&[0x3B, 0x90, ta1, 0x81, 0x31, 0xFE, 0x45])
}

/// T=0 first, then T=1.
fn dual() -> FakeCard {
    FakeCard::echo_t0().with_atr(&[0x3B, 0x80, 0x80, 0x31, 0xFE, 0x45])
}

/// In specific mode: T=1 at the rate of TA1.
fn specific(ta1: u8) -> FakeCard {
    FakeCard::echo()
        .with_atr(&[0x3B, 0x90, ta1, 0x91, 0x81, 0x31, 0xFE, 0x45])
        .at_rate(ta1)
}

/// An ATR of T=1 that announces its voltages.
fn classes(voltages: u8) -> FakeCard {
    FakeCard::echo().with_atr(&[0x3B, 0x80, 0x81, 0xB1, 0xFE, 0x45, 0x1F, voltages])
}

fn tpdu_with(features: u32) -> ReaderConfig {
    ReaderConfig {
        features,
        ..ReaderConfig::tpdu()
    }
}

/// Returns the parameters of SetParameters.
fn told(reader: &FakeReader) -> Vec<(u8, Vec<u8>)> {
    let heard = reader.heard();
    let set = heard.into_iter().filter(|(kind, ..)| *kind == SET);
    set.map(|(_, [protocol, ..], data)| (protocol, data))
        .collect()
}

/// The requests for another protocol or rate that the host sent.
fn requests(reader: &FakeReader) -> Vec<Vec<u8>> {
    let blocks = blocks(reader).into_iter().map(|(.., data)| data);
    blocks.filter(|data| data.first() == Some(&0xFF)).collect()
}

/// bPowerSelect of each IccPowerOn.
fn voltages(reader: &FakeReader) -> Vec<u8> {
    let heard = reader.heard();
    let power = heard.into_iter().filter(|(kind, ..)| *kind == POWER_ON);
    power.map(|(_, [select, ..], _)| select).collect()
}

#[track_caller]
fn works(device: &mut CcidSlot) {
    assert_eq!(
        exchange(device, b"data", STEP_TIMEOUT).unwrap(),
        answered(b"data")
    );
}

#[test]
fn fastest_common_rate_is_negotiated_and_set_in_the_reader() {
    // At 4 MHz: 97 is 500 kbit/s, and the reader has 344 at most, which is 16.
    for (ta1, agreed) in [(0x96, 0x96), (0x97, 0x16), (0x18, 0x18)] {
        let (reader, mut device) = powered_card(ReaderConfig::tpdu(), t1_at(ta1));
        assert_eq!(kinds(&reader), [POWER_ON, BLOCK, SET]);
        assert_eq!(requests(&reader), [vec![0xFF, 0x11, agreed, 0xEE ^ agreed]]);
        let parameters = vec![agreed, 0x10, 0x00, 0x45, 0x00, 0xFE, 0x00];
        assert_eq!(told(&reader), [(1, parameters)]);
        works(&mut device);
    }
}

#[test]
fn reader_with_a_rate_limit_quirk_is_asked_for_a_lower_rate() {
    let quirks = Quirks {
        max_bps: Some(200_000),
        ..Quirks::default()
    };
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), quirks, t1_at(0x96));
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(requests(&reader), [vec![0xFF, 0x11, 0x15, 0xFB]]);
    works(&mut device);
}

#[test]
fn card_with_one_protocol_and_rate_gets_no_pps() {
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), FakeCard::echo());
    assert_eq!(kinds(&reader), [POWER_ON, SET]);
    works(&mut device);
    let (reader, _) = powered_card(ReaderConfig::tpdu(), FakeCard::echo_t0());
    assert_eq!(told(&reader), [(0, vec![0x11, 0, 0, 10, 0])]);
}

#[test]
fn reader_without_rate_change_stays_at_the_default_rate() {
    for features in [0x00, 0x10, 0x20] {
        let (reader, mut device) = powered_card(tpdu_with(features), t1_at(0x96));
        assert_eq!(kinds(&reader), [POWER_ON, SET], "{features:02X}");
        works(&mut device);
    }
}

#[test]
fn t1_is_preferred_where_card_and_reader_support_it() {
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), dual());
    assert_eq!(requests(&reader), [vec![0xFF, 0x01, 0xFE]]);
    assert_eq!(told(&reader)[0].0, 1);
    works(&mut device);
    let only_t0 = ReaderConfig {
        protocols: 1,
        ..ReaderConfig::tpdu()
    };
    let (reader, mut device) = powered_card(only_t0, dual());
    assert_eq!(kinds(&reader), [POWER_ON, SET]);
    assert_eq!(told(&reader)[0].0, 0);
    assert_eq!(raw(&mut device, &[0, 0xEC, 0, 0, 1, 7]).unwrap(), [0x61, 1]);
}

#[test]
fn specific_mode_card_gets_no_pps_and_its_own_parameters() {
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), specific(0x95));
    assert_eq!(kinds(&reader), [POWER_ON, SET]);
    assert_eq!(told(&reader)[0].1[0], 0x95);
    works(&mut device);
}

#[test]
fn card_and_reader_without_common_protocol_give_an_error_that_names_it() {
    let only_t0 = ReaderConfig {
        protocols: 1,
        ..ReaderConfig::tpdu()
    };
    for card in [FakeCard::echo(), specific(0x95)] {
        let (_reader, mut device) = with_card(only_t0.clone(), Quirks::default(), card);
        let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::NoCard, Sent::No)
        );
        assert!(error.what.contains("T=1"), "{error}");
    }
}

#[test]
fn a_refused_pps_is_followed_by_a_cold_reset_and_never_tried_again() {
    for pps in [Pps::Silent, Pps::Nonsense] {
        let (reader, mut device) = powered_card(ReaderConfig::tpdu(), t1_at(0x96).with_pps(pps));
        let resets = [POWER_ON, BLOCK, POWER_OFF, POWER_ON, SET];
        assert_eq!(kinds(&reader), resets, "{pps:?}");
        assert_eq!(told(&reader)[0].1[0], 0x11);
        works(&mut device);
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        works(&mut device);
        assert_eq!(requests(&reader).len(), 1, "{pps:?}");
    }
}

#[test]
fn unanswered_pps_leaves_the_card_at_its_first_protocol() {
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), dual().with_pps(Pps::Silent));
    assert_eq!(told(&reader), [(0, vec![0x11, 0, 0, 10, 0])]);
    assert_eq!(raw(&mut device, &[0, 0xEC, 0, 0, 1, 7]).unwrap(), [0x61, 1]);
}

#[test]
fn t1_only_reader_retries_pps_at_the_default_rate() {
    let only_t1 = ReaderConfig {
        protocols: 2,
        ..ReaderConfig::tpdu()
    };
    let card = || FakeCard::echo_t0().with_atr(&[0x3B, 0x90, 0x96, 0x80, 0x31, 0xFE, 0x45]);
    let card = card().with_pps(Pps::Nonsense);
    let (reader, mut device) = with_card(only_t1, Quirks::default(), card);
    let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoCard, "{error}");
    let asked = [vec![0xFF, 0x11, 0x96, 0x78], vec![0xFF, 0x01, 0xFE]];
    assert_eq!(requests(&reader), asked);
}

#[test]
fn pps_response_without_a_rate_keeps_the_default_rate() {
    let card = t1_at(0x96).with_pps(Pps::AgreesSlowly);
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), card);
    assert_eq!(kinds(&reader), [POWER_ON, BLOCK, SET]);
    assert_eq!(told(&reader)[0].1[0], 0x11);
    works(&mut device);
}

#[test]
fn reader_features_decide_what_the_host_negotiates() {
    for (features, card, expected) in [
        // It negotiates.
        (0x40, FakeCard::echo(), vec![POWER_ON]),
        (0xF2, FakeCard::echo(), vec![POWER_ON]),
        // It negotiates, and it is not plain with which result.
        (0x40, dual(), vec![POWER_ON, GET]),
        // It sets parameters, and there is nothing to choose.
        (0x32, FakeCard::echo(), vec![POWER_ON]),
        (0xB2, specific(0x95), vec![POWER_ON]),
        (0x32, t1_at(0x96), vec![POWER_ON, BLOCK, SET]),
        // It sends PPS by the parameters it is given.
        (0xB0, t1_at(0x96), vec![POWER_ON, SET]),
        (0xB2, t1_at(0x96), vec![POWER_ON, SET]),
        (0xB2, dual(), vec![POWER_ON, SET]),
    ] {
        let what = format!("{features:02X} {card:?}");
        let (reader, mut device) = powered_card(tpdu_with(features), card);
        assert_eq!(kinds(&reader), expected, "{what}");
        let answer = raw(&mut device, &[0, 0xB0, 0, 0, 2]).unwrap();
        assert_eq!(answer, [0, 0, 0x90, 0x00], "{what}");
    }
}

#[test]
fn apdu_reader_gets_parameters_unless_it_sets_them_itself() {
    let with = |features, base| ReaderConfig { features, ..base };
    for (config, card, expected) in [
        (with(0x02, ReaderConfig::short()), t1_at(0x96), None),
        (with(0x40, ReaderConfig::extended()), dual(), None),
        (with(0xB2, ReaderConfig::extended()), t1_at(0x96), None),
        (
            with(0xB0, ReaderConfig::short()),
            t1_at(0x96),
            Some((1, 0x96)),
        ),
        (
            with(0xB0, ReaderConfig::extended()),
            dual(),
            Some((1, 0x11)),
        ),
        (
            with(0x80, ReaderConfig::extended()),
            t1_at(0x96),
            Some((1, 0x11)),
        ),
        (
            with(0x30, ReaderConfig::short()),
            t1_at(0x96),
            Some((1, 0x11)),
        ),
        (with(0x30, ReaderConfig::short()), dual(), Some((0, 0x11))),
    ] {
        let (reader, mut device) = powered_card(config, card);
        let said = told(&reader)
            .first()
            .map(|(protocol, data)| (*protocol, data[0]));
        assert_eq!(said, expected);
        assert!(requests(&reader).is_empty());
        works(&mut device);
    }
}

#[test]
fn reader_that_sets_parameters_itself_may_refuse_ours() {
    let (reader, mut device) = with_card(tpdu_with(0xB2), Quirks::default(), t1_at(0x96));
    reader.refuse_parameters(Some(10));
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(kinds(&reader), [POWER_ON, SET, GET]);
    works(&mut device);
    // T=0 is what it chose for a card of both.
    let (reader, mut device) = with_card(tpdu_with(0xB2), Quirks::default(), dual());
    reader.refuse_parameters(Some(10));
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    assert_eq!(raw(&mut device, &[0, 0xEC, 0, 0, 1, 7]).unwrap(), [0x61, 1]);
}

#[test]
fn reader_that_refuses_parameters_and_sets_none_fails_after_a_second_try() {
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), Quirks::default(), t1_at(0x96));
    reader.refuse_parameters(Some(10));
    let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoCard, Sent::No)
    );
    let twice = [POWER_ON, BLOCK, SET, POWER_OFF, POWER_ON, SET];
    assert_eq!(kinds(&reader), twice);
    reader.refuse_parameters(None);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    works(&mut device);
}

#[test]
fn lowest_voltage_common_to_reader_and_card_is_used() {
    for (offered, card, expected) in [
        (7, FakeCard::echo(), vec![3]),
        (3, FakeCard::echo(), vec![2]),
        // The card sends no answer to reset at 1.8 V.
        (7, FakeCard::echo().at_voltages(&[1, 2]), vec![3, 2]),
        (7, FakeCard::echo().at_voltages(&[1]), vec![3, 2, 1]),
        // The card sends an answer to reset, which announces other voltages only.
        (7, classes(0x03), vec![3, 2]),
        (7, classes(0x01), vec![3, 1]),
        (7, classes(0x04), vec![3]),
        // The reader has none of them. The card did send an answer to reset.
        (2, classes(0x01), vec![2]),
        (0, FakeCard::echo(), vec![0]),
    ] {
        let config = ReaderConfig {
            voltages: offered,
            ..ReaderConfig::tpdu()
        };
        let (reader, mut device) = powered_card(config, card);
        assert_eq!(voltages(&reader), expected);
        works(&mut device);
    }
}

#[test]
fn a_card_that_answers_at_no_voltage_is_mute() {
    let card = FakeCard::echo().at_voltages(&[]);
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), Quirks::default(), card);
    let error = device.power_on(Call::within(STEP_TIMEOUT)).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoCard, Sent::No)
    );
    assert_eq!(voltages(&reader), [3, 2, 1, 1]);
}

#[test]
fn failed_warm_reset_is_followed_by_a_power_cycle() {
    for config in [ReaderConfig::extended(), ReaderConfig::tpdu()] {
        let (reader, mut device) = powered_card(config, FakeCard::echo());
        let before = kinds(&reader).len();
        reader.fail_warm_resets(1);
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        let resets = [POWER_ON, POWER_OFF, POWER_ON];
        assert_eq!(kinds(&reader)[before..][..3], resets);
        let powered = voltages(&reader);
        assert!(powered.iter().all(|one| *one == powered[0]), "{powered:?}");
        works(&mut device);
    }
}

#[test]
fn tpdu_power_on_waits_through_time_extensions() {
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), Quirks::default(), FakeCard::echo());
    reader.extend_time(100);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    works(&mut device);
}

/// A T=1 card whose block waiting time is a tenth of a second.
fn quick() -> FakeCard {
    FakeCard::echo().with_atr(&[0x3B, 0x80, 0x81, 0x31, 0xFE, 0x05])
}

/// Longer than that card may take, with what is added for the reader.
const TOO_LONG: Duration = Duration::from_millis(2_500);

/// Returns the result of a command whose response the reader holds for [`TOO_LONG`].
fn held(
    quirks: Quirks,
    meanwhile: impl FnOnce(&FakeReader),
) -> Result<Vec<u8>, TransportErrorKind> {
    let (reader, mut device) = with_card(ReaderConfig::tpdu(), quirks, quick());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    works(&mut device);
    let before = reader.card_commands(0);
    reader.hold();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| exchange(&mut device, b"slow", STEP_TIMEOUT));
        while reader.card_commands(0) == before {
            thread::sleep(Duration::from_millis(1));
        }
        meanwhile(&reader);
        thread::sleep(TOO_LONG);
        reader.release();
        waiter.join().unwrap().map_err(|error| error.kind)
    })
}

#[test]
fn block_timeout_grows_with_time_requests_and_the_patience_quirk() {
    let patient = Quirks {
        patience: Some(5),
        ..Quirks::default()
    };
    thread::scope(|scope| {
        let late = scope.spawn(|| held(Quirks::default(), |_| {}));
        let asked = scope.spawn(|| held(Quirks::default(), |reader| reader.ask_for_time(5)));
        let patient = scope.spawn(|| held(patient, |_| {}));
        assert_eq!(late.join().unwrap(), Err(TransportErrorKind::TimedOut));
        assert_eq!(asked.join().unwrap(), Ok(answered(b"slow")));
        assert_eq!(patient.join().unwrap(), Ok(answered(b"slow")));
    });
}

#[test]
fn apdu_reader_decides_how_long_the_card_may_take() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.hold();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| exchange(&mut device, b"slow", STEP_TIMEOUT));
        thread::sleep(TOO_LONG);
        reader.release();
        assert_eq!(waiter.join().unwrap().unwrap(), answered(b"slow"));
    });
}

#[test]
fn card_with_a_minimal_atr_is_used_with_default_parameters() {
    let bare = FakeCard::new(vec![0x3F, 0x00], Protocol::T0, echo);
    let (reader, mut device) = powered_card(ReaderConfig::tpdu(), bare);
    assert_eq!(told(&reader), [(0, vec![0x11, 0x02, 0, 10, 0])]);
    assert_eq!(
        raw(&mut device, &[0, 0xB0, 0, 0, 2]).unwrap(),
        [0, 0, 0x90, 0]
    );
}

/// A reader whose first `busy` responses to IccPowerOn report that it is activating the card automatically.
fn activating(busy: usize) -> Scripted {
    let mut left = busy;
    Scripted::new(ReaderConfig::extended(), true, move |got| {
        let is_busy = got.kind == 0x62 && left > 0;
        left -= usize::from(is_busy);
        is_busy.then(|| vec![got.reply(0x41, 0xF2, 0, &[])])
    })
}

#[test]
fn b27_power_on_is_repeated_while_the_reader_activates_the_card() {
    let mut reader = activating(2);
    reader.power().unwrap();
    assert_eq!(reader.heard.count(0x62), 3);
    assert_eq!(reader.heard.count(0x63), 0, "the card is not mute");
}

#[test]
fn b27_card_whose_activation_never_ends_is_mute() {
    let mut reader = activating(usize::MAX);
    let error = reader.power().unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoCard, "{error}");
}
