//! T=0 by TPDUs (ISO 7816-3, 10 and 12.2), on the side of the interface device.
//!
//! | APDU | command TPDU |
//! |---|---|
//! | case 1: header | header, P3 = 0 |
//! | case 2: header, Le | the same: P3 = Le |
//! | case 3: header, Lc, data | the same: P3 = Lc |
//! | case 4: header, Lc, data, Le | the TPDU of case 3; a separate GET RESPONSE fetches the response |
//!
//! 61xx and 6Cxx are returned unchanged. `claviger_apdu::Exchange` handles them in the same way for every protocol:
//! it sends GET RESPONSE or the corrected length as a separate APDU. One case is invisible to `Exchange`: a card may
//! respond 9000 to a case 4 command without data. This module then sends GET RESPONSE (12.2.5, case 4S.2). That is
//! harmless: a card that rejects it has no data, and the 9000 is returned. A 6Cxx to this GET RESPONSE is handled
//! here too, because `Exchange` would repeat the *command*.
//!
//! Extended APDUs are rejected. No applet uses them if the limits show that the card uses T=0.

use claviger_apdu::{Secret, Sent};

use super::{Failure, FailureReason, Step};

/// The longest response TPDU: 256 bytes of data and the status word.
const MAX_RESPONSE: usize = 258;
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
    /// The command has been sent. For case 4, this holds CLA and Le of the GET RESPONSE.
    Command(Option<(u8, u8)>),
    /// GET RESPONSE has been sent. Its length may be corrected once.
    Fetching { cla: u8, corrected: bool },
}

impl T0 {
    /// Makes the idle state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the exchange of the short APDU `apdu`. Discards a running exchange; the reader must not be waiting for
    /// it any more.
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

    /// Processes the response to the last TPDU: data and status word.
    pub fn receive(&mut self, response: &[u8]) -> Step {
        let Some((data, status)) = response.split_last_chunk::<2>() else {
            return self.transmission_error();
        };
        if response.len() > MAX_RESPONSE
            || !matches!(status[0] & 0xF0, 0x60 | 0x90)
            || status[0] == 0x60
        {
            return self.transmission_error();
        }
        match (std::mem::take(&mut self.phase), *status) {
            (Phase::Idle, _) => {
                self.failed(FailureReason::Unsuitable("no command is running"), Sent::No)
            }
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
            _ => Step::Done(Secret::copy_from(response)),
        }
    }

    /// Processes a transmission error: wrong parity, an overrun, or no procedure byte.
    pub fn transmission_error(&mut self) -> Step {
        self.failed(FailureReason::Damaged, self.sent())
    }

    /// Processes a timeout: the work waiting time passed without a response.
    pub fn response_timeout(&mut self) -> Step {
        self.failed(FailureReason::Silent, self.sent())
    }

    fn fetch(&mut self, cla: u8, le: u8, corrected: bool) -> Step {
        self.phase = Phase::Fetching { cla, corrected };
        Step::send(Secret::new(vec![cla & 0x0F, GET_RESPONSE, 0, 0, le]))
    }

    /// Returns whether the card received the running command, or No without one. T=0 repeats no blocks: the reader
    /// repeats characters.
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

/// Returns whether the card rejected GET RESPONSE.
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

/// Exchanges a command with a card that returns `bytes`, for the fuzz target `t0`. Each piece is a length byte and
/// that many bytes. The length 255 means a timeout, 254 a transmission error.
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
        let (response, after) = after.split_at(after.len().min(usize::from(*len)));
        rest = after;
        step = match len {
            255 => t0.response_timeout(),
            254 => t0.transmission_error(),
            _ => t0.receive(response),
        };
    }
    match step {
        Step::Done(response) => assert!((2..=MAX_RESPONSE).contains(&response.len())),
        Step::Failed(failure) => assert!(failure.sent != Sent::No && failure.needs_reset()),
        Step::Send { .. } => assert!(rest.is_empty(), "the exchange waits for the card"),
    }
}
