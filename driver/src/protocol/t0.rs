//! T=0 by TPDUs (ISO 7816-3, 10 and 12.2), as the interface device speaks it.
//!
//! | APDU | command TPDU |
//! |---|---|
//! | case 1: header | header, P3 = 0 |
//! | case 2: header, Le | the same: P3 = Le |
//! | case 3: header, Lc, data | the same: P3 = Lc |
//! | case 4: header, Lc, data, Le | case 3's; the answer is asked for in its own right |
//!
//! 61xx and 6Cxx go up as they come: to `claviger_apdu::Exchange` they mean the same in every protocol, and it sends GET
//! RESPONSE or the corrected length as an APDU of its own. What it cannot see is done here: a card that takes a case 4
//! command with 9000 has its answer asked for with GET RESPONSE (12.2.5, case 4S.2). That is harmless; a card that refuses has none, and its
//! 9000 goes up. A 6Cxx to this GET RESPONSE is answered here too, because above it would bring the *command* again.
//!
//! Extended APDUs are refused: no applet uses them where the limits say that a card speaks T=0.

use claviger_apdu::{Secret, Sent};

use super::{Failure, FailureReason, Step};

/// Longest answer TPDU: 256 bytes of data and the status word.
const ANSWER: usize = 258;
/// GET RESPONSE (ISO 7816-4, 7.6.1).
const GET_RESPONSE: u8 = 0xC0;

/// The interface device's side of T=0.
#[derive(Debug, Default)]
pub struct T0 {
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// The command is out. For case 4, what GET RESPONSE will ask for: CLA and Le.
    Command(Option<(u8, u8)>),
    /// GET RESPONSE is out; its length may be corrected once.
    Fetching { cla: u8, corrected: bool },
}

impl T0 {
    /// Nothing under way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the exchange of `apdu`, a short one. One under way is given up: the reader must not be waiting for it.
    pub fn begin(&mut self, apdu: &[u8]) -> Step {
        match tpdu(apdu) {
            Ok((tpdu, fetch)) => {
                self.phase = Phase::Command(fetch);
                Step::send(tpdu)
            }
            Err(why) => Step::Failed(Failure {
                reason: FailureReason::Unsuitable(why),
                sent: Sent::No,
            }),
        }
    }

    /// Takes the answer to the TPDU last sent: data and status word.
    pub fn receive(&mut self, answer: &[u8]) -> Step {
        let Some((data, status)) = answer.split_last_chunk::<2>() else {
            return self.transmission_error();
        };
        if answer.len() > ANSWER || !matches!(status[0] & 0xF0, 0x60 | 0x90) || status[0] == 0x60 {
            return self.transmission_error();
        }
        match (std::mem::take(&mut self.phase), *status) {
            (Phase::Idle, _) => self.failed(
                FailureReason::Unsuitable("no command is under way"),
                Sent::No,
            ),
            (Phase::Command(Some((cla, le))), [0x90, 0x00]) if data.is_empty() => {
                self.fetch(cla, le, false)
            }
            (
                Phase::Fetching {
                    cla,
                    corrected: false,
                },
                [0x6C, le],
            ) => self.fetch(cla, le, true),
            (Phase::Fetching { .. }, status) if refuses(status) => {
                Step::Done(Secret::new(vec![0x90, 0x00]))
            }
            _ => Step::Done(Secret::copy_from(answer)),
        }
    }

    /// Takes note that what came was damaged on the way: parity, an overrun, no procedure byte.
    pub fn transmission_error(&mut self) -> Step {
        self.failed(FailureReason::Damaged, self.sent())
    }

    /// Takes note that the work waiting time passed and nothing came.
    pub fn response_timeout(&mut self) -> Step {
        self.failed(FailureReason::Silent, self.sent())
    }

    fn fetch(&mut self, cla: u8, le: u8, corrected: bool) -> Step {
        self.phase = Phase::Fetching { cla, corrected };
        Step::send(Secret::new(vec![cla & 0x0F, GET_RESPONSE, 0, 0, le]))
    }

    /// Whether the card has seen the command under way; No when none is. T=0 has no block to ask for again: characters
    /// are repeated below, by the reader.
    #[must_use]
    pub const fn sent(&self) -> Sent {
        match self.phase {
            Phase::Idle => Sent::No,
            Phase::Command(_) => Sent::Maybe,
            Phase::Fetching { .. } => Sent::Yes,
        }
    }

    fn failed(&mut self, reason: FailureReason, sent: Sent) -> Step {
        self.phase = Phase::Idle;
        Step::Failed(Failure { reason, sent })
    }
}

/// Whether GET RESPONSE was not executed.
const fn refuses([sw1, sw2]: [u8; 2]) -> bool {
    !matches!(sw1, 0x61..=0x63) && (sw1 != 0x90 || sw2 != 0)
}

/// A command TPDU, and for case 4 the CLA and Le of its GET RESPONSE.
type Mapped = (Secret, Option<(u8, u8)>);

fn tpdu(apdu: &[u8]) -> Result<Mapped, &'static str> {
    let Some(([cla, ins, p1, p2], body)) = apdu.split_first_chunk::<4>() else {
        return Err("it is shorter than a header");
    };
    if matches!(ins & 0xF0, 0x60 | 0x90) {
        return Err("T=0 cannot carry an instruction 6x or 9x");
    }
    let mut tpdu = Secret::new(Vec::with_capacity(5 + body.len()));
    tpdu.extend(&[*cla, *ins, *p1, *p2]);
    let fetch = match body {
        [] => {
            tpdu.extend(&[0]);
            None
        }
        [_le] => {
            tpdu.extend(body);
            None
        }
        [0, _, ..] => return Err("T=0 carries no extended APDU"),
        [lc, rest @ ..] => {
            let (data, le) = rest
                .split_at_checked(usize::from(*lc))
                .ok_or("its data is shorter than Lc")?;
            tpdu.extend(&[*lc]);
            tpdu.extend(data);
            match le {
                [] => None,
                [le] => Some((*cla, *le)),
                _ => return Err("it is longer than its Lc and Le"),
            }
        }
    };
    Ok((tpdu, fetch))
}

/// A card that answers as `bytes` say: pieces of a length byte and as many bytes; 255 is silence, 254 damage.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let mut t0 = T0::new();
    let mut rest = bytes;
    let mut sent = 0;
    let mut step = t0.begin(&[0, 0xCB, 0x3F, 0xFF, 3, 0x5C, 1, 0x7E, 0]);
    while let (Step::Send { block, .. }, Some((len, after))) = (&step, rest.split_first()) {
        assert!(
            block.len() >= 5 && sent < 3,
            "a command, and GET RESPONSE twice at most"
        );
        assert!(sent == 0 || block.expose().get(1) == Some(&GET_RESPONSE));
        sent += 1;
        let (answer, after) = after.split_at(after.len().min(usize::from(*len)));
        rest = after;
        step = match len {
            255 => t0.response_timeout(),
            254 => t0.transmission_error(),
            _ => t0.receive(answer),
        };
    }
    match step {
        Step::Done(answer) => assert!((2..=ANSWER).contains(&answer.len())),
        Step::Failed(failure) => assert!(failure.sent != Sent::No && failure.needs_reset()),
        Step::Send { .. } => assert!(rest.is_empty(), "the card is waited for"),
    }
}
