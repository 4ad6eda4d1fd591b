//! T=1 with a card of arbitrary behaviour, and the rules that hold in every case.

use claviger_apdu::Sent;

use super::{FailureReason, Step, T1, TransmissionParameters};
use crate::protocol::{
    budget::{ANSWER_BYTES, REQUESTS, RETRIES},
    parameters::ErrorDetection,
    t1::block::{Block, Control, Function},
};

/// The number of blocks sent to a card that no longer responds: an I-block and R-blocks, S(IFS), S(ABORT) and
/// S(RESYNCH).
const MAX_BLOCKS_WITHOUT_RESPONSE: usize = 1 + RETRIES as usize + 3 * REQUESTS as usize;

/// Sends two commands to a card that acts as `bytes` describe, and does not respond after their end.
///
/// ```text
/// | IFSC | form | Nc | then for each block of the interface device one of:
/// | FF |                                      no response
/// | FE |                                      the reader reports a transmission error
/// | FD | length | bytes |                     these bytes
/// | PCB | LEN | information field |           a block with a correct epilogue
/// form: bit 0: the epilogue is a CRC; bit 1: IFSD is 254, else 32
/// ```
pub fn fuzz(bytes: &[u8]) {
    let Some(([ifsc, form, nc], card)) = bytes.split_first_chunk::<3>() else {
        return;
    };
    let detection = match form & 1 {
        0 => ErrorDetection::Lrc,
        _ => ErrorDetection::Crc,
    };
    let parameters = TransmissionParameters {
        ifsc: *ifsc,
        error_detection: detection,
        ..TransmissionParameters::default()
    };
    let mut t1 = T1::new(&parameters, if form & 2 == 0 { 32 } else { 254 });
    let mut card = Card { script: card };
    for first in [0, 0x80] {
        let command: Vec<u8> = (0..=*nc).map(|byte| byte ^ first).collect();
        ExchangeChecker::new(&command, detection).follow(&mut t1, &mut card);
    }
}

struct Card<'a> {
    script: &'a [u8],
}

impl Card<'_> {
    fn respond(&mut self, t1: &mut T1, detection: ErrorDetection) -> Step {
        let mut next = || {
            let (byte, rest) = self.script.split_first()?;
            self.script = rest;
            Some(*byte)
        };
        let (kind, len) = match next() {
            None | Some(0xFF) => return t1.response_timeout(),
            Some(0xFE) => return t1.transmission_error(),
            Some(kind) => (kind, next().unwrap_or(0)),
        };
        let most = self.script.len().min(usize::from(len));
        let (given, rest) = self.script.split_at(most);
        self.script = rest;
        if kind == 0xFD {
            return t1.receive(given);
        }
        let mut block = vec![0, kind, u8::try_from(given.len()).unwrap_or(u8::MAX)];
        block.extend(given);
        block.extend(
            detection
                .code(&block)
                .get(..detection.epilogue())
                .unwrap_or(&[]),
        );
        t1.receive(&block)
    }
}

/// Checks one exchange from the card's side.
struct ExchangeChecker<'a> {
    command: &'a [u8],
    detection: ErrorDetection,
    /// The start and the end of the last I-block in the command.
    piece: Option<(usize, usize)>,
    /// Whether S(RESYNCH) has been sent after an I-block.
    is_resynchronized: bool,
}

impl<'a> ExchangeChecker<'a> {
    const fn new(command: &'a [u8], detection: ErrorDetection) -> Self {
        Self {
            command,
            detection,
            piece: None,
            is_resynchronized: false,
        }
    }

    fn follow(mut self, t1: &mut T1, card: &mut Card<'_>) {
        let mut step = t1.begin(self.command);
        let mut budget = card.script.len() + MAX_BLOCKS_WITHOUT_RESPONSE;
        while let Step::Send { block, .. } = &step {
            self.sent(block.expose());
            assert!(budget > 0, "an exchange ends");
            budget -= 1;
            step = card.respond(t1, self.detection);
        }
        match step {
            Step::Done(response) => {
                assert!(response.len() <= ANSWER_BYTES && !self.is_resynchronized);
                assert!(self.piece.is_some(), "only a command has a response");
            }
            Step::Failed(failure) => {
                assert_eq!(failure.sent == Sent::No, self.piece.is_none());
                assert_eq!(failure.needs_reset(), failure.reason == FailureReason::Lost);
            }
            Step::Send { .. } => {}
        }
    }

    /// Checks a sent block. The bytes of the command are sent in order. They are repeated only in the last block, and
    /// never after S(RESYNCH).
    fn sent(&mut self, bytes: &[u8]) {
        let block = Block::parse(bytes, self.detection);
        assert!(block.is_ok(), "only blocks are sent");
        let Ok(Block {
            control,
            information,
        }) = block
        else {
            return;
        };
        self.is_resynchronized |=
            control == Control::request(Function::Resynch) && self.piece.is_some();
        let Control::I { more, .. } = control else {
            return;
        };
        assert!(!self.is_resynchronized, "a command is not sent again");
        let (last, next) = self.piece.unwrap_or((0, 0));
        let is =
            |from: usize| self.command.get(from..from + information.len()) == Some(information);
        let from = if is(next) { next } else { last };
        assert!(is(from), "the piece that is due, or the last one");
        assert_eq!(more, from + information.len() < self.command.len());
        self.piece = Some((from, from + information.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::fuzz;

    /// The actions of a card, as [`fuzz`] parses them: valid and invalid blocks, transmission errors, no response.
    const ACTIONS: [&[u8]; 20] = [
        &[0x00, 2, 0x90, 0x00],
        &[0x40, 2, 0x90, 0x00],
        &[0x20, 1, 0xF1],
        &[0x60, 1, 0xF1],
        &[0x80, 0],
        &[0x90, 0],
        &[0x91, 0],
        &[0xC0, 0],
        &[0xE0, 0],
        &[0xC1, 1, 0x01],
        &[0xC1, 1, 0xFE],
        &[0xE1, 1, 0xFE],
        &[0xC2, 0],
        &[0xE2, 0],
        &[0xC3, 1, 0x05],
        &[0xE3, 1, 0x05],
        &[0xFD, 3, 0x00, 0x00, 0x05],
        &[0xFD, 0],
        &[0xFE],
        &[0xFF],
    ];

    #[test]
    fn every_sequence_of_four_steps_ends_and_nothing_is_sent_twice() {
        let mut sequences = 0;
        for form in [0, 2] {
            for number in 0..ACTIONS.len().pow(4) {
                let mut bytes = vec![2, form, 4];
                let mut left = number;
                for _ in 0..4 {
                    bytes.extend(ACTIONS[left % ACTIONS.len()]);
                    left /= ACTIONS.len();
                }
                fuzz(&bytes);
                sequences += 1;
            }
        }
        assert_eq!(sequences, 320_000);
    }

    #[test]
    fn long_sequences_of_steps_end_and_nothing_is_sent_twice() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 33).unwrap()
        };
        for _ in 0..20_000 {
            let ifsc = u8::try_from(random() % 256).unwrap();
            let form = u8::try_from(random() % 4).unwrap();
            let mut bytes = vec![ifsc, form, u8::try_from(random() % 256).unwrap()];
            for _ in 0..random() % 64 {
                bytes.extend(ACTIONS[random() % ACTIONS.len()]);
            }
            fuzz(&bytes);
        }
    }
}
