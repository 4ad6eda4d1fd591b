//! The requests to a token and the meaning of its responses, as transcripts.

use super::*;
use crate::ccid::message::Voltage;

const POWER_ON: Command<'static> = Command::IccPowerOn {
    voltage: Voltage::Automatic,
};

fn xfr(level_parameter: u16, data: &[u8]) -> Command<'_> {
    Command::XfrBlock {
        bwi: 0,
        level_parameter,
        data,
    }
}

/// Returns the requests of a command, one a line, and how the command ended. Its reads return `responses`.
fn transcript(
    version: Version,
    command: &Command<'_>,
    responses: &[&[u8]],
) -> (Vec<String>, Result<Outcome, Nonsense>) {
    let mut exchange = Exchange::new(version, command);
    let mut responses = responses.iter();
    let mut lines = Vec::new();
    let mut step = exchange.begin();
    loop {
        step = match step {
            Err(nonsense) => return (lines, Err(nonsense)),
            Ok(Step::Done(outcome)) => {
                assert_eq!(responses.next(), None, "{lines:?}");
                return (lines, Ok(outcome));
            }
            Ok(Step::Write { request, data }) => {
                let Request {
                    request_type,
                    request,
                    value,
                } = request;
                let data: String = data
                    .expose()
                    .iter()
                    .map(|byte| format!("{byte:02X}"))
                    .collect();
                lines.push(format!(
                    "{request_type:02X} {request:02X} {value:04X} {data}"
                ));
                exchange.wrote()
            }
            Ok(Step::Wait(delay)) => {
                lines.push(format!("{delay:?}"));
                Ok(exchange.waited())
            }
            Ok(Step::Read { request, room }) => {
                lines.push(format!(
                    "{:02X} {:02X} {room}",
                    request.request_type, request.request
                ));
                exchange.read(responses.next().expect("another response"))
            }
        };
    }
}

#[test]
fn iccd_version_a_token_is_powered_off_and_on_and_gives_its_atr() {
    let (lines, outcome) = transcript(
        Version::A,
        &POWER_ON,
        &[&[0x40], &[0x00], &[0x3B, 0x01, 0x11]],
    );
    assert_eq!(
        lines,
        ["21 63 0000 ", "A1 A0 1", "10ms", "A1 A0 1", "A1 62 34"]
    );
    assert_eq!(outcome.unwrap().data.expose(), [0x3B, 0x01, 0x11]);
}

#[test]
fn iccd_version_b_token_is_powered_off_and_on_and_asked_for_its_atr() {
    let responses: [&[u8]; 3] = [
        &[0x40, 0x01, 0x00],
        &[0x80, 0x02, 0x00],
        &[0x00, 0x3B, 0x01, 0x11],
    ];
    let (lines, outcome) = transcript(Version::B, &POWER_ON, &responses);
    assert_eq!(
        lines,
        [
            "21 63 0000 ",
            "A1 81 3",
            "21 62 0001 ",
            "A1 6F 35",
            "20ms",
            "A1 6F 35"
        ]
    );
    assert_eq!(outcome.unwrap().data.expose(), [0x3B, 0x01, 0x11]);
}

#[test]
fn version_a_takes_a_command_in_the_steps_of_t0() {
    // Case 4: header, data, status word; then GET RESPONSE: header, data, status word.
    let command = [0x00, 0xA4, 0x04, 0x00, 0x02, 0x3F, 0x00, 0x05];
    let responses: [&[u8]; 7] = [
        &[0x10],
        &[0x20],
        &[0x90, 0x00],
        &[0x10],
        &[1, 2, 3, 4, 5],
        &[0x20],
        &[0x90, 0x00],
    ];
    let (lines, outcome) = transcript(Version::A, &xfr(0, &command), &responses);
    let expected = [
        "21 65 0000 00A4040002",
        "A1 A0 1",
        "21 65 0000 3F00",
        "A1 A0 1",
        "A1 6F 2",
        "21 65 0000 00C0000005",
        "A1 A0 1",
        "A1 6F 257",
        "A1 A0 1",
        "A1 6F 2",
    ];
    assert_eq!(lines, expected);
    assert_eq!(outcome.unwrap().data.expose(), [1, 2, 3, 4, 5, 0x90, 0x00]);
}

#[test]
fn version_a_may_refuse_a_command_before_its_data() {
    let command = [0x00, 0xD6, 0x00, 0x00, 0x02, 0xAB, 0xCD];
    let (lines, outcome) = transcript(Version::A, &xfr(0, &command), &[&[0x20], &[0x6D, 0x00]]);
    assert_eq!(lines, ["21 65 0000 00D6000002", "A1 A0 1", "A1 6F 2"]);
    assert_eq!(outcome.unwrap().data.expose(), [0x6D, 0x00]);
}

#[test]
fn version_b_chains_as_bulk_pipes_do() {
    let (lines, outcome) = transcript(Version::B, &xfr(0x0001, &[1, 2, 3]), &[&[0x10]]);
    assert_eq!(lines, ["21 65 0100 010203", "A1 6F 4096"]);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.chain, outcome.data.len()), (0x10, 0));
    let (lines, outcome) = transcript(Version::B, &xfr(0x0010, &[]), &[&[0x03, 9, 9]]);
    assert_eq!(lines, ["21 65 1000 ", "A1 6F 4096"]);
    let outcome = outcome.unwrap();
    assert_eq!((outcome.chain, outcome.data.expose()), (0x03, &[9, 9][..]));
}

#[test]
fn iccd_failure_gives_the_error_and_the_card_status() {
    let (_, outcome) = transcript(Version::B, &xfr(0, &[0; 5]), &[&[0x40, 0x41, 0xFE]]);
    let outcome = outcome.unwrap();
    assert_eq!(
        (outcome.icc, outcome.error),
        (IccStatus::Inactive, Some(SlotError::IccMute))
    );
    let (_, outcome) = transcript(Version::A, &xfr(0, &[0; 5]), &[&[0x80]]);
    assert_eq!(outcome.unwrap().error, Some(SlotError::IccMute));
    let (lines, outcome) = transcript(Version::A, &Command::Escape(&[1]), &[]);
    assert!(lines.is_empty());
    assert_eq!(outcome.unwrap().error, Some(SlotError::NotSupported));
}

#[test]
fn iccd_slot_status_gives_the_card_status() {
    for (status, icc) in [
        (0, IccStatus::Active),
        (1, IccStatus::Inactive),
        (2, IccStatus::Absent),
    ] {
        for kind in [0x40, 0x00] {
            let (_, outcome) =
                transcript(Version::B, &Command::GetSlotStatus, &[&[kind, status, 0]]);
            assert_eq!(outcome.unwrap().icc, icc);
        }
    }
    for (status, icc) in [(0x00, IccStatus::Active), (0x80, IccStatus::Inactive)] {
        let (_, outcome) = transcript(Version::A, &Command::GetSlotStatus, &[&[status]]);
        assert_eq!(outcome.unwrap().icc, icc);
    }
}

#[test]
fn malformed_iccd_responses_end_the_command() {
    let b: [&[u8]; 5] = [
        &[],
        &[0x80],
        &[0x40, 0x00],
        &[0x40, 0x00, 0x00],
        &[0x55, 1, 2],
    ];
    for response in b {
        let (_, outcome) = transcript(Version::B, &xfr(0, &[0; 5]), &[response]);
        assert!(outcome.is_err(), "{response:02X?}");
    }
    let a: [&[u8]; 3] = [&[], &[0x00], &[0x20, 0x20]];
    for response in a {
        let (_, outcome) = transcript(Version::A, &xfr(0, &[0; 5]), &[response]);
        assert!(outcome.is_err(), "{response:02X?}");
    }
    let (_, long) = transcript(Version::A, &xfr(0, &[0; 5]), &[&[0x10], &[0; 257]]);
    assert!(long.is_err());
}

#[test]
fn endlessly_busy_iccd_token_is_given_up() {
    let command = xfr(0, &[0; 5]);
    let mut exchange = Exchange::new(Version::B, &command);
    exchange.begin().unwrap();
    exchange.wrote().unwrap();
    let polls = (0..)
        .take_while(|_| exchange.read(&[0x80, 0, 0]).is_ok())
        .count();
    assert_eq!(polls, budget::ICCD_POLLS);
}
