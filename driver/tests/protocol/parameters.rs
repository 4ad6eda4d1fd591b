//! The parameters of answers to reset.

use std::time::Duration;

use claviger_apdu::Atr;
use claviger_driver::protocol::{
    Protocol, Rate, TransmissionParameters,
    parameters::{ClockStop, ErrorDetection, SpecificMode, Voltages},
};

use crate::notation::hex;

fn parameters(atr: &str) -> TransmissionParameters {
    TransmissionParameters::of(&Atr::parse(&hex(atr)).unwrap())
}

/// Parses an answer to reset to which TCK is added.
fn checked(atr: &str) -> TransmissionParameters {
    let mut bytes = hex(atr);
    bytes.push(bytes[1..].iter().fold(0, |sum, byte| sum ^ byte));
    TransmissionParameters::of(&Atr::parse(&bytes).unwrap())
}

fn rate(ta1: u8) -> Rate {
    Rate::of(ta1).unwrap()
}

#[test]
fn a_yubikey_5() {
    let got = parameters("3BFD1300008131FE158073C021C057597562694B657940");
    let expected = TransmissionParameters {
        rate: rate(0x13),
        offered: vec![Protocol::T1],
        ifsc: 254,
        block_waiting_integer: 1,
        character_waiting_integer: 5,
        ..TransmissionParameters::default()
    };
    assert_eq!(got, expected);
    assert_eq!(got.default_protocol(), Protocol::T1);
    assert_eq!(got.initial_rate(), Rate::DEFAULT);
}

#[test]
fn an_openpgp_card_2_1() {
    let got = parameters("3BDA18FF81B1FE751F030031C573C001400090000C");
    let expected = TransmissionParameters {
        rate: rate(0x18),
        extra_guard_time: 255,
        offered: vec![Protocol::T1],
        ifsc: 254,
        block_waiting_integer: 7,
        character_waiting_integer: 5,
        voltages: Some(Voltages {
            v5: true,
            v3: true,
            v1_8: false,
        }),
        ..TransmissionParameters::default()
    };
    assert_eq!(got, expected);
}

#[test]
fn a_piv_card_of_t0() {
    let got = parameters("3BDB9600801F030031C064B0F31000079000 80");
    let expected = TransmissionParameters {
        rate: rate(0x96),
        voltages: Some(Voltages {
            v5: true,
            v3: true,
            v1_8: false,
        }),
        ..TransmissionParameters::default()
    };
    assert_eq!(got, expected);
    assert_eq!(got.default_protocol(), Protocol::T0);
}

#[test]
fn atr_without_interface_bytes_gives_default_parameters() {
    let expected = TransmissionParameters::default();
    assert_eq!(parameters("3B021450"), expected);
    assert_eq!(
        parameters("3F021450"),
        TransmissionParameters {
            inverse: true,
            ..expected
        }
    );
}

#[test]
fn protocols_in_the_order_offered_without_repetition() {
    let got = checked("3B 80 80 81 0E");
    let offered = [Protocol::T0, Protocol::T1, Protocol::Other(14)];
    assert_eq!(got.offered, offered);
    assert_eq!(checked("3B 80 81 81 0F").offered, [Protocol::T1]);
    for protocol in offered {
        assert_eq!(Protocol::of(protocol.number()), Some(protocol));
    }
}

#[test]
fn specific_mode() {
    for (ta2, rate_after_reset, mode) in [
        (0x01, rate(0x95), (Some(Protocol::T1), false, true)),
        (0x80, rate(0x95), (Some(Protocol::T0), false, false)),
        (0x91, Rate::DEFAULT, (Some(Protocol::T1), true, false)),
        (0x0F, rate(0x95), (None, false, true)),
    ] {
        let got = checked(&format!("3B 90 95 91 {ta2:02X} 00"));
        let (protocol, implicit_rate, can_change) = mode;
        assert_eq!(
            got.specific_mode,
            Some(SpecificMode {
                protocol,
                implicit_rate,
                can_change
            })
        );
        assert_eq!(got.initial_rate(), rate_after_reset, "{ta2:02X}");
        assert_eq!(got.default_protocol(), protocol.unwrap_or(Protocol::T1));
    }
}

#[test]
fn waiting_integer_of_t0() {
    assert_eq!(parameters("3B 80 40 14").waiting_integer, 0x14);
    let zero = parameters("3B 80 40 00");
    assert_eq!(zero.waiting_integer, 10);
    assert_eq!(zero.defects, ["TC2 is 0"]);
}

#[test]
fn t1_parameters_are_of_its_first_group_only() {
    let got = checked("3B 80 80 F1 20 45 01 71 FE 99 00");
    assert_eq!(got.ifsc, 0x20);
    assert_eq!(
        (got.block_waiting_integer, got.character_waiting_integer),
        (4, 5)
    );
    assert_eq!(got.error_detection, ErrorDetection::Crc);
    assert_eq!(got.defects, [""; 0]);
}

#[test]
fn illegal_t1_values_are_replaced_and_reported() {
    for (ifsc, tb, expected, defects) in [
        (0x00, 0x4D, (32, 4), vec!["IFSC is 0"]),
        (0xFF, 0x4D, (254, 4), vec!["IFSC is 255"]),
        (0x80, 0xAD, (128, 9), vec!["BWI is reserved"]),
        (0x01, 0x9D, (1, 9), vec![]),
    ] {
        let got = checked(&format!("3B 80 81 31 {ifsc:02X} {tb:02X}"));
        assert_eq!((got.ifsc, got.block_waiting_integer), expected);
        assert_eq!(got.defects, defects);
    }
}

#[test]
fn voltages_and_clock_stop() {
    for (ta, stop, classes) in [
        (0x07, ClockStop::Never, [true, true, true]),
        (0x44, ClockStop::Low, [false, false, true]),
        (0x83, ClockStop::High, [true, true, false]),
        (0xC2, ClockStop::Any, [false, true, false]),
    ] {
        let got = checked(&format!("3B 80 80 1F {ta:02X}"));
        let voltages = got.voltages.unwrap();
        assert_eq!([voltages.v5, voltages.v3, voltages.v1_8], classes);
        assert_eq!(got.clock_stop, stop);
    }
    let none = checked("3B 80 80 1F 40");
    assert_eq!(none.voltages, None);
    assert_eq!(none.defects, ["no operating conditions are announced"]);
}

#[test]
fn every_ta1_is_a_rate_or_reserved() {
    let known = (0..=255u8).filter_map(Rate::of).count();
    assert_eq!(known, 12 * 9);
    for (ta1, fi, di, max) in [
        (0x01, 372, 1, 4_000),
        (0x11, 372, 1, 5_000),
        (0x38, 744, 12, 8_000),
        (0x69, 1860, 20, 20_000),
        (0x97, 512, 64, 5_000),
        (0xD6, 2048, 32, 20_000),
    ] {
        let rate = rate(ta1);
        assert_eq!((rate.fi(), rate.di(), rate.max_khz()), (fi, di, max));
    }
    let reserved = parameters("3B 10 7F");
    assert_eq!(reserved.rate, Rate::DEFAULT);
    assert_eq!(reserved.defects, ["TA1 is reserved"]);
    assert_eq!(rate(0x96).bits_per_second(4_000), 250_000);
}

#[test]
fn truncated_atr_keeps_what_precedes_the_cut() {
    let got = parameters("3B F0 95");
    assert_eq!(got.rate, Rate::DEFAULT, "a truncated group is not read");
    assert_eq!(got.defects, ["interface characters truncated"]);
    let got = parameters("3B 90 95 81");
    assert_eq!(
        (got.rate, &got.offered[..]),
        (rate(0x95), &[Protocol::T1][..])
    );
}

#[test]
fn block_waiting_time_is_eleven_etu_and_its_power_of_two() {
    // 2^4 · 960 · 372 / 4 MHz = 1.42848 s, 11 · 372 / 4 MHz = 1.023 ms
    let got = TransmissionParameters::default();
    let expected = Duration::from_micros(1_428_480 + 1_023);
    assert_eq!(got.block_waiting_time(Rate::DEFAULT, 4_000), expected);
    // Only the etu follow the rate: 11 · 512 / 32 = 176 cycles.
    let faster = Duration::from_micros(1_428_480 + 44);
    assert_eq!(got.block_waiting_time(rate(0x96), 4_000), faster);
    let longest = TransmissionParameters {
        block_waiting_integer: 9,
        ..got
    };
    let expected = Duration::from_nanos(512 * 960 * 372 * 1_000 / 4 + 1_023_000);
    assert_eq!(longest.block_waiting_time(Rate::DEFAULT, 4_000), expected);
}

#[test]
fn character_waiting_time_is_eleven_etu_and_its_power_of_two() {
    let got = TransmissionParameters {
        character_waiting_integer: 5,
        ..TransmissionParameters::default()
    };
    // 43 etu of 93 µs
    let expected = Duration::from_micros(43 * 93);
    assert_eq!(got.character_waiting_time(Rate::DEFAULT, 4_000), expected);
}

#[test]
fn work_waiting_time_follows_fi_and_not_di() {
    let got = TransmissionParameters::default();
    // 10 · 960 · 372 / 3.72 MHz
    let expected = Duration::from_millis(960);
    assert_eq!(got.work_waiting_time(Rate::DEFAULT, 3_720), expected);
    let expected = Duration::from_nanos(10 * 960 * 512 * 1_000 / 4);
    for ta1 in [0x91, 0x96] {
        assert_eq!(got.work_waiting_time(rate(ta1), 4_000), expected);
    }
}

#[test]
fn clock_of_0_gives_a_finite_waiting_time() {
    let got = TransmissionParameters::default();
    let slowest = got.block_waiting_time(Rate::DEFAULT, 1_000);
    assert_eq!(got.block_waiting_time(Rate::DEFAULT, 0), slowest);
}

#[test]
fn a_character_takes_twelve_etu_and_the_extra_guard_time() {
    let time = |extra_guard_time, count| {
        let parameters = TransmissionParameters {
            extra_guard_time,
            ..TransmissionParameters::default()
        };
        parameters.transfer_time(count, Rate::DEFAULT, 3_720)
    };
    // One etu is 100 µs.
    assert_eq!(time(0, 10), Duration::from_micros(12_000));
    assert_eq!(time(255, 10), time(0, 10));
    assert_eq!(time(8, 10), Duration::from_micros(20_000));
}
