//! Blocks in the notation of ISO 7816-3, and helpers for steps.

use claviger_driver::protocol::{Failure, Step, parameters::ErrorDetection};

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Parses a whole block: `I(0,1) 0102`, `R(1)2`, `S(WTX request) 10`.
pub(crate) fn block(text: &str, detection: ErrorDetection) -> Vec<u8> {
    let (head, tail) = text.split_once(')').unwrap();
    let (kind, inside) = head.split_once('(').unwrap();
    let bit = |at: usize| inside.as_bytes()[at] - b'0';
    let (pcb, information) = match kind {
        "I" => (bit(0) << 6 | bit(2) << 5, hex(tail)),
        "R" => (
            0x80 | bit(0) << 4 | tail.trim().parse().unwrap_or(0),
            Vec::new(),
        ),
        "S" => (supervisory(inside), hex(tail)),
        _ => panic!("{text}"),
    };
    let mut bytes = vec![0, pcb, u8::try_from(information.len()).unwrap()];
    bytes.extend(information);
    match detection {
        ErrorDetection::Lrc => bytes.push(bytes.iter().fold(0, |sum, byte| sum ^ byte)),
        ErrorDetection::Crc => bytes.extend(crc(&bytes).to_be_bytes()),
    }
    bytes
}

fn supervisory(inside: &str) -> u8 {
    let (function, direction) = inside.split_once(' ').unwrap();
    let function = ["RESYNCH", "IFS", "ABORT", "WTX"]
        .iter()
        .position(|name| *name == function)
        .unwrap();
    let response = match direction {
        "request" => 0x00,
        "response" => 0x20,
        _ => panic!("{inside}"),
    };
    0xC0 | response | u8::try_from(function).unwrap()
}

/// CRC-16/MCRF4XX, written differently from the tested code: most significant bit first, on reversed bits.
fn crc(bytes: &[u8]) -> u16 {
    let mut crc = 0xFFFF_u16;
    for byte in bytes {
        crc ^= u16::from(byte.reverse_bits()) << 8;
        for _ in 0..8 {
            let carry = crc & 0x8000 != 0;
            crc <<= 1;
            if carry {
                crc ^= 0x1021;
            }
        }
    }
    crc.reverse_bits()
}

/// Returns a block with an LRC.
pub(crate) fn lrc(text: &str) -> Vec<u8> {
    block(text, ErrorDetection::Lrc)
}

/// Returns the bytes that a step sends.
pub(crate) fn sent(step: Step) -> Vec<u8> {
    match step {
        Step::Send { block, .. } => block.expose().to_vec(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn done(step: Step) -> Vec<u8> {
    match step {
        Step::Done(answer) => answer.expose().to_vec(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn failed(step: Step) -> Failure {
    match step {
        Step::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}
