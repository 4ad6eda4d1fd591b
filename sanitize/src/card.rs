//! A PIV card in one function: one P-256 key, any PIN, the same signature each time.

use claviger_apdu::tlv;

/// An answer to reset that promises nothing.
pub(crate) const ATR: [u8; 4] = [0x3B, 0x02, 0x14, 0x50];

const CERTIFICATE: &[u8] = include_bytes!("../../token/tests/data/p256.der");
const PIV: [u8; 9] = [0xA0, 0x00, 0x00, 0x03, 0x08, 0x00, 0x00, 0x10, 0x00];
const CHUID: [u8; 20] =
    *b"\x53\x12\x34\x10\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xAA\xBB\xCC\xDD\xEE\xFF";
const DISCOVERY: [u8; 20] =
    *b"\x7E\x12\x4F\x0B\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x01\x00\x5F\x2F\x02\x40\x10";
const NOT_FOUND: [u8; 2] = [0x6A, 0x82];
/// Most bytes of a short answer.
const SHORT: usize = 256;

/// One connection's view of the card.
#[derive(Debug, Default)]
pub(crate) struct Card {
    /// What GET RESPONSE will give.
    rest: Vec<u8>,
}

impl Card {
    /// The answer to one frame.
    pub(crate) fn answer(&mut self, frame: &[u8]) -> Vec<u8> {
        match frame {
            [_, 0xC0, ..] => {}
            [_, 0xA4, _, _, 9, aid @ ..] if aid.starts_with(&PIV) => self.rest = Vec::new(),
            [_, 0xCB, 0x3F, 0xFF, _, 0x5C, tag @ ..] => match data_object(tag) {
                Some(data) => self.rest = data,
                None => return NOT_FOUND.to_vec(),
            },
            // Is the PIN verified? Never, so that each login is asked for its own.
            [_, 0x20, 0x00, _] | [_, 0x20, 0x00, _, 0x00] => return vec![0x63, 0xC3],
            [_, 0x20, ..] => return vec![0x90, 0x00],
            [_, 0x87, ..] => self.rest = signature(),
            [_, 0xF7, ..] => return vec![0x6D, 0x00],
            _ => return NOT_FOUND.to_vec(),
        }
        self.next_part()
    }

    fn next_part(&mut self) -> Vec<u8> {
        let later = self.rest.split_off(self.rest.len().min(SHORT));
        let mut answer = std::mem::replace(&mut self.rest, later);
        match u8::try_from(self.rest.len()) {
            Ok(0) => answer.extend([0x90, 0x00]),
            more => answer.extend([0x61, more.unwrap_or(0)]),
        }
        answer
    }
}

fn data_object(tag: &[u8]) -> Option<Vec<u8>> {
    match tag {
        [3, 0x5F, 0xC1, 0x02, ..] => Some(CHUID.to_vec()),
        [1, 0x7E, ..] => Some(DISCOVERY.to_vec()),
        [3, 0x5F, 0xC1, 0x05, ..] => Some(tlv::encode(0x53, &tlv::encode(0x70, CERTIFICATE))),
        _ => None,
    }
}

/// An ECDSA signature by its form.
fn signature() -> Vec<u8> {
    let number = tlv::encode(0x02, &[0x11; 32]);
    tlv::encode(
        0x7C,
        &tlv::encode(0x82, &tlv::encode(0x30, &number.repeat(2))),
    )
}
