//! Fuzz targets: commands, and exchanges with a card that responds with arbitrary bytes. The parsers' fuzz targets are
//! in the parsers' own files.

use crate::{
    command::{CommandApdu, Expected, Limits, TooLong},
    exchange::{Exchange, MAX_RESPONSE, MAX_ROUNDS, Step},
    secret::Secret,
};

/// Splits a command into frames and parses the frames as a card does.
///
/// ```text
/// | form | Ne - 1, 2 bytes | reader's limit - 261, 2 bytes | Nc, 2 bytes | CLA INS P1 P2 | data, repeated |
/// form: bits 0 and 1: no response, all of it, up to Ne (2 and 3); bit 2: extended length
/// ```
pub fn command(bytes: &[u8]) {
    let Some(([form, n1, n2, m1, m2, c1, c2, header @ ..], pattern)) =
        bytes.split_first_chunk::<11>()
    else {
        return;
    };
    let number = |high: &u8, low: &u8| u16::from_be_bytes([*high, *low]);
    let len = usize::from(number(c1, c2));
    let data: Vec<u8> = pattern.iter().copied().cycle().take(len).collect();
    let [cla, ins, p1, p2] = *header;
    let command = CommandApdu {
        data: &data,
        expected: match form & 0b11 {
            0 => Expected::Nothing,
            1 => Expected::All,
            _ => Expected::UpTo(u32::from(number(n1, n2)) + 1),
        },
        ..CommandApdu::header([cla & !CommandApdu::CHAINING, ins, p1, p2])
    };
    let limits = Limits {
        extended: form & 0b100 != 0,
        command: 7 + usize::from(number(m1, m2)),
        ..Limits::EXTENDED
    };
    match command.frames(limits) {
        Ok(frames) => assert_same(&command, limits, &frames),
        Err(TooLong { len }) => assert!(len == data.len() && len > Limits::CHAINED_DATA),
    }
}

/// Asserts that a card that parses `frames` gets exactly `command`.
fn assert_same(command: &CommandApdu<'_>, limits: Limits, frames: &[Secret]) {
    let read: Vec<Frame<'_>> = frames.iter().filter_map(Frame::read).collect();
    assert_eq!(read.len(), frames.len(), "every frame is an APDU");
    assert!(frames.iter().all(|frame| frame.len() <= limits.command));
    let data: Vec<&[u8]> = read.iter().map(|frame| frame.data).collect();
    assert!(data.concat() == command.data, "the data comes whole");
    let Some((last, chained)) = read.split_last() else {
        return assert!(!frames.is_empty(), "there is a frame");
    };
    let [cla, ins, p1, p2] = command.header;
    for frame in chained {
        let header = [cla | CommandApdu::CHAINING, ins, p1, p2];
        assert_eq!((frame.header, frame.ne), (header, None));
    }
    let largest = if last.extended { 65_536 } else { 256 };
    let ne = match command.expected {
        Expected::Nothing => None,
        Expected::UpTo(n) => Some(n.min(largest)),
        Expected::All => Some(largest),
    };
    assert_eq!((last.header, last.ne), (command.header, ne));
}

/// Responds to one command with arbitrary frames, which repeat until the exchange ends.
///
/// ```text
/// | form | length of the data, in 13 bytes | then, to the end: length, 2 bytes | response |
/// form: bit 0: extended length; bit 1: a response is asked for
/// ```
pub fn exchange(bytes: &[u8]) {
    let Some(([form, len], script)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let limits = match form & 0b01 {
        0 => Limits::SHORT,
        _ => Limits::EXTENDED,
    };
    let expected = match form & 0b10 {
        0 => Expected::Nothing,
        _ => Expected::All,
    };
    let data = vec![0xDA; usize::from(*len) * 13];
    let command = CommandApdu {
        data: &data,
        expected,
        ..CommandApdu::header([0x00, 0xCB, 0x3F, 0xFF])
    };
    let Ok(mut exchange) = Exchange::new(&command, limits) else {
        return assert!(data.len() > Limits::CHAINED_DATA);
    };
    // A chain with one wrong Le, then the same twice for each round.
    let budget = data.len() / 255 + 2 + 2 * MAX_ROUNDS as usize;
    for (frame, response) in responses(script).iter().cycle().enumerate() {
        assert!(frame <= budget, "an exchange ends");
        assert!(Frame::parse(exchange.frame()).is_some(), "it sends APDUs");
        match exchange.receive(response) {
            Ok(Step::Send) => {}
            Ok(Step::Done(response)) => return assert!(response.data.len() <= MAX_RESPONSE),
            Err(_) => return,
        }
    }
}

fn responses(mut script: &[u8]) -> Vec<&[u8]> {
    let mut responses = Vec::new();
    while let Some((len, rest)) = script.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len));
        let (response, after) = rest.split_at(len.min(rest.len()));
        responses.push(response);
        script = after;
    }
    responses
}

/// A command frame as a card parses it (ISO 7816-4, 5.1).
struct Frame<'a> {
    header: [u8; 4],
    data: &'a [u8],
    ne: Option<u32>,
    extended: bool,
}

impl<'a> Frame<'a> {
    fn read(frame: &'a Secret) -> Option<Self> {
        Self::parse(frame.expose())
    }

    fn parse(frame: &'a [u8]) -> Option<Self> {
        let (header, body) = frame.split_first_chunk::<4>()?;
        let (nc, rest, extended) = match body {
            [] | [_] => (None, body, false),
            [0, le @ ..] if le.len() == 2 => (None, le, true),
            [0, hi, lo, rest @ ..] => (Some(u16::from_be_bytes([*hi, *lo])), rest, true),
            [nc, rest @ ..] => (Some(u16::from(*nc)), rest, false),
        };
        if nc == Some(0) {
            return None;
        }
        let (data, le) = rest.split_at_checked(nc.map_or(0, usize::from))?;
        let ne = match (le, extended) {
            ([], _) => None,
            ([le], false) => Some(zero_is(256, u32::from(*le))),
            ([hi, lo], true) => Some(zero_is(65_536, u16::from_be_bytes([*hi, *lo]).into())),
            _ => return None,
        };
        Some(Self {
            header: *header,
            data,
            ne,
            extended,
        })
    }
}

const fn zero_is(largest: u32, le: u32) -> u32 {
    if le == 0 { largest } else { le }
}
