//! T=1 with transmission errors, and a card that follows the standard and counts the commands that it executes.

use claviger_apdu::Sent;
use claviger_driver::protocol::{Step, T1, TransmissionParameters};

use crate::notation::lrc;

/// Exchanges per error rate.
const EXCHANGES: usize = 5_000;
/// The length of a block in each direction.
const PIECE: usize = 5;

/// A card's side of T=1 (ISO 7816-3, 11.6), written for this test alone.
#[derive(Default)]
struct Card {
    /// N(S) of the card's current I-block.
    send: bool,
    /// N(S) of the I-block that the card expects.
    receive: bool,
    command: Vec<u8>,
    answer: Vec<u8>,
    /// Whether the card's current I-block is not acknowledged yet.
    outstanding: bool,
    /// Whether the card waits for the response to S(WTX).
    extending: bool,
    executed: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Card {
    fn take(&mut self, block: Option<&[u8]>) -> Vec<u8> {
        let answer = match block {
            Some(block) => self.valid(block[1], &block[3..block.len() - 1]),
            None if self.extending => self.last.clone(),
            None => self.r(1),
        };
        self.last.clone_from(&answer);
        answer
    }

    fn valid(&mut self, pcb: u8, information: &[u8]) -> Vec<u8> {
        match pcb {
            0x00..=0x7F if (pcb & 0x40 != 0) == self.receive => {
                self.command(pcb & 0x20 != 0, information)
            }
            0x80..=0xBF if self.extending => self.last.clone(),
            0x80..=0xBF => self.repetition(pcb & 0x10 != 0),
            0xE3 if self.extending => {
                self.extending = false;
                self.piece()
            }
            0xC0 => {
                *self = Self {
                    executed: std::mem::take(&mut self.executed),
                    ..Self::default()
                };
                lrc("S(RESYNCH response)")
            }
            0xC1 => lrc(&format!("S(IFS response) {:02X}", information[0])),
            _ => self.r(2),
        }
    }

    fn command(&mut self, more: bool, information: &[u8]) -> Vec<u8> {
        self.send ^= std::mem::take(&mut self.outstanding);
        self.receive = !self.receive;
        self.command.extend(information);
        if more {
            return self.r(0);
        }
        let command = std::mem::take(&mut self.command);
        self.answer = reply_to(&command);
        self.executed.push(command);
        if !self.answer[0].is_multiple_of(3) {
            return self.piece();
        }
        self.extending = true;
        lrc("S(WTX request) 02")
    }

    /// R(N(R)): the interface device requests this I-block of the card.
    fn repetition(&mut self, number: bool) -> Vec<u8> {
        let next = number != self.send;
        // The interface device has the whole response. It requests the R-block again that the card sent for a damaged
        // command.
        if !self.outstanding || next && self.answer.len() <= PIECE {
            return self.r(2);
        }
        if next {
            self.send = number;
            self.answer.drain(..PIECE);
        }
        self.piece()
    }

    fn piece(&mut self) -> Vec<u8> {
        self.outstanding = true;
        let piece = &self.answer[..self.answer.len().min(PIECE)];
        let more = u8::from(self.answer.len() > PIECE);
        let digits: String = piece.iter().map(|byte| format!("{byte:02X}")).collect();
        lrc(&format!("I({},{more}) {digits}", u8::from(self.send)))
    }

    fn r(&self, error: u8) -> Vec<u8> {
        lrc(&format!("R({}){error}", u8::from(self.receive)))
    }
}

fn reply_to(command: &[u8]) -> Vec<u8> {
    let mut answer: Vec<u8> = command.iter().rev().map(|byte| byte ^ 0x5A).collect();
    answer.extend([0x90, 0x00]);
    answer
}

/// A connection that damages or loses this many of a hundred blocks in each direction.
struct Line {
    bad: u64,
    seed: u64,
}

enum Carried {
    Whole,
    Damaged,
    Lost,
}

impl Line {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed >> 33
    }

    fn carry(&mut self) -> Carried {
        let bad = self.random() % 100 < self.bad;
        match (bad, self.random() % 2) {
            (false, _) => Carried::Whole,
            (true, 0) => Carried::Damaged,
            (true, _) => Carried::Lost,
        }
    }

    fn exchange(&mut self, t1: &mut T1, card: &mut Card, command: &[u8]) -> Step {
        let mut step = t1.begin(command);
        while let Step::Send { block, .. } = &step {
            let answer = match self.carry() {
                Carried::Whole => Some(card.take(Some(block.expose()))),
                Carried::Damaged => Some(card.take(None)),
                Carried::Lost => None,
            };
            step = match (answer, self.carry()) {
                (None, _) | (_, Carried::Lost) => t1.response_timeout(),
                (_, Carried::Damaged) => t1.transmission_error(),
                (Some(answer), Carried::Whole) => t1.receive(&answer),
            };
        }
        step
    }
}

/// Returns how many of the exchanges succeed.
fn talk(bad: u64) -> usize {
    let parameters = TransmissionParameters {
        ifsc: u8::try_from(PIECE).unwrap(),
        ..TransmissionParameters::default()
    };
    let mut line = Line {
        bad,
        seed: 0x5DEE_CE66 + bad,
    };
    let (mut t1, mut card) = (T1::new(&parameters, 254), Card::default());
    let mut answered = 0;
    for number in 0..EXCHANGES {
        let len = 1 + usize::try_from(line.random()).unwrap() % 24;
        let mut command = number.to_be_bytes()[4..].to_vec();
        command.extend((0..len).map(|at| u8::try_from(at).unwrap()));
        card.executed.clear();
        let step = line.exchange(&mut t1, &mut card, &command);
        assert!(
            card.executed.len() <= 1,
            "{command:02X?} was executed twice"
        );
        assert!(card.executed.iter().all(|executed| *executed == command));
        match step {
            Step::Done(answer) => {
                assert_eq!(answer.expose(), reply_to(&command));
                assert_eq!(card.executed.len(), 1);
                answered += 1;
            }
            Step::Failed(failure) => {
                assert!(failure.sent != Sent::No || card.executed.is_empty());
                assert!(failure.sent != Sent::Yes || card.executed.len() == 1);
            }
            Step::Send { .. } => unreachable!(),
        }
    }
    answered
}

#[test]
fn over_a_good_line_every_command_is_executed_once_and_answered() {
    assert_eq!(talk(0), EXCHANGES);
}

#[test]
fn over_a_bad_line_no_command_is_executed_twice_and_few_fail() {
    let answered = talk(5);
    assert!(answered > EXCHANGES * 99 / 100, "{answered}");
}

#[test]
fn over_a_terrible_line_no_command_is_executed_twice() {
    let answered = talk(40);
    assert!((1..EXCHANGES).contains(&answered), "{answered}");
}
