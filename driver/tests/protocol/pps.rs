//! When PPS is sent, with which protocol and rate, and how the response is interpreted.

use claviger_driver::protocol::{
    Protocol, Rate, TransmissionParameters,
    parameters::SpecificMode,
    pps::{AgreedParameters, PpsPlan, PpsRefused, PpsRequest, ReaderRates, plan},
};

use crate::notation::hex;

/// A reader of 4 MHz that supports every rate.
const ANY: ReaderRates<'static> = ReaderRates {
    khz: 4_000,
    most: 1_000_000,
    rates: &[],
};

fn card(ta1: u8, offered: &[Protocol]) -> TransmissionParameters {
    TransmissionParameters {
        rate: Rate::of(ta1).unwrap(),
        offered: offered.to_vec(),
        ..TransmissionParameters::default()
    }
}

fn asked(
    parameters: &TransmissionParameters,
    protocol: Protocol,
    reader: &ReaderRates<'_>,
) -> PpsRequest {
    match plan(parameters, protocol, reader) {
        PpsPlan::Negotiate(proposal) => proposal,
        other => panic!("{other:?}"),
    }
}

fn request(ta1: u8, protocol: Protocol, reader: &ReaderRates<'_>) -> Vec<u8> {
    let both = card(ta1, &[Protocol::T0, Protocol::T1]);
    asked(&both, protocol, reader).request().expose().to_vec()
}

#[test]
fn protocol_already_active_needs_no_pps() {
    let slow = card(0x11, &[Protocol::T1]);
    let settled = PpsPlan::AlreadyActive(AgreedParameters {
        protocol: Protocol::T1,
        rate: Rate::DEFAULT,
    });
    assert_eq!(plan(&slow, Protocol::T1, &ANY), settled);
    // FI 0 equals the default conversion, so PPS would gain nothing.
    assert_eq!(
        plan(&card(0x01, &[Protocol::T1]), Protocol::T1, &ANY),
        settled
    );
}

#[test]
fn pps_requests_name_a_rate_a_protocol_or_both() {
    assert_eq!(request(0x95, Protocol::T0, &ANY), hex("FF 10 95 7A"));
    assert_eq!(request(0x11, Protocol::T1, &ANY), hex("FF 01 FE"));
    assert_eq!(request(0x95, Protocol::T1, &ANY), hex("FF 11 95 7B"));
}

#[test]
fn protocol_not_offered_by_the_card_is_unsupported() {
    let card = card(0x95, &[Protocol::T0]);
    assert_eq!(plan(&card, Protocol::T1, &ANY), PpsPlan::Unsupported);
}

#[test]
fn specific_mode_needs_no_pps_and_excludes_other_protocols() {
    let specific = |implicit_rate| TransmissionParameters {
        specific_mode: Some(SpecificMode {
            protocol: Some(Protocol::T1),
            implicit_rate,
            can_change: true,
        }),
        ..card(0x95, &[Protocol::T0, Protocol::T1])
    };
    for (implicit, ta1) in [(false, 0x95), (true, 0x11)] {
        let parameters = specific(implicit);
        let settled = PpsPlan::AlreadyActive(AgreedParameters {
            protocol: Protocol::T1,
            rate: Rate::of(ta1).unwrap(),
        });
        assert_eq!(plan(&parameters, Protocol::T1, &ANY), settled);
        assert_eq!(plan(&parameters, Protocol::T0, &ANY), PpsPlan::Unsupported);
    }
}

#[test]
fn fastest_rate_common_to_card_and_reader_is_chosen() {
    let found = |ta1, reader: ReaderRates<'_>| {
        let both = card(ta1, &[Protocol::T0, Protocol::T1]);
        let ta1 = asked(&both, Protocol::T1, &reader).agreement().rate.ta1();
        format!("{ta1:02X}")
    };
    // 97 is 500 000, 96 is 250 000, 95 is 125 000 bit/s at 4 MHz.
    assert_eq!(found(0x97, ANY), "97");
    assert_eq!(
        found(
            0x97,
            ReaderRates {
                most: 300_000,
                ..ANY
            }
        ),
        "96"
    );
    let rates = &[10_752, 125_001, 344_086];
    assert_eq!(
        found(0x97, ReaderRates { rates, ..ANY }),
        "16",
        "344 086 bit/s with the default Fi"
    );
    let rates = &[10_752, 125_001];
    assert_eq!(
        found(0x97, ReaderRates { rates, ..ANY }),
        "95",
        "one bit per second off"
    );
    let rates = &[10_752, 125_003];
    assert_eq!(
        found(0x97, ReaderRates { rates, ..ANY }),
        "11",
        "three bits per second are too many"
    );
    assert_eq!(found(0x97, ReaderRates { most: 0, ..ANY }), "11");
}

#[test]
fn clock_above_the_limit_of_a_conversion_excludes_its_rate() {
    let khz = 6_000;
    let found = |ta1| {
        let both = card(ta1, &[Protocol::T0, Protocol::T1]);
        let reader = ReaderRates { khz, ..ANY };
        asked(&both, Protocol::T1, &reader).agreement().rate.ta1()
    };
    assert_eq!(found(0x95), 0x11, "512 up to 5 MHz");
    assert_eq!(found(0xA5), 0xA5, "768 up to 7.5 MHz");
}

#[test]
fn negotiated_rate_is_never_faster_than_the_card_offered() {
    for ta1 in (0..=255).filter(|ta1| Rate::of(*ta1).is_some()) {
        let offered = Rate::of(ta1).unwrap();
        for khz in [3_580, 4_000, 4_800, 8_000] {
            let reader = ReaderRates { khz, ..ANY };
            let parameters = card(ta1, &[Protocol::T0, Protocol::T1]);
            let rate = asked(&parameters, Protocol::T1, &reader).agreement().rate;
            let faster = rate.bits_per_second(khz) > offered.bits_per_second(khz);
            assert!(!faster || rate == Rate::DEFAULT, "{ta1:02X} {rate:?}");
        }
    }
}

#[test]
fn echoed_pps_is_agreement_and_a_missing_rate_means_the_default() {
    let both = card(0x95, &[Protocol::T0, Protocol::T1]);
    let proposal = asked(&both, Protocol::T1, &ANY);
    assert_eq!(
        proposal.accept(&hex("FF 11 95 7B")),
        Ok(proposal.agreement())
    );
    let slower = AgreedParameters {
        protocol: Protocol::T1,
        rate: Rate::DEFAULT,
    };
    assert_eq!(proposal.accept(&hex("FF 01 FE")), Ok(slower));
}

#[test]
fn malformed_pps_response_is_a_refusal() {
    let both = card(0x95, &[Protocol::T0, Protocol::T1]);
    let proposal = asked(&both, Protocol::T1, &ANY);
    for answer in [
        "",
        "FF",
        "FF 11 95",
        "FF 11 95 7A",
        "FF 11 95 7B 00",
        "FF 10 95 7A",
        "FF 11 94 7A",
        "FF 00 FF",
        "FF 31 95 00 5B",
        "3B 11 95 BF",
    ] {
        assert_eq!(proposal.accept(&hex(answer)), Err(PpsRefused), "{answer}");
    }
}
