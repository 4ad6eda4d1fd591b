//! The scripted card: its rules, and the assertions about the commands that reach it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Sent, StatusWord, Transmit, Transport,
    TransportError, TransportErrorKind,
};

use super::CardLedger;
use crate::{
    application::{AppletKind, Application},
    openpgp, piv,
};

/// Most commands of one session, GET RESPONSE apart: more than a card with every object needs.
const MAX_COMMANDS: u32 = 2_000;
/// The pattern for the beginning of a transaction. No instruction has this number.
const BEGIN: [u8; 1] = [0x00];

/// A card that responds by rules.
pub(super) struct ScriptedCard {
    atr: Atr,
    rules: Vec<Rule>,
    /// The rule to try first.
    next: usize,
    epoch: u64,
    commands: u32,
    /// The command whose response is pending. GET RESPONSE does not change it.
    current: Command,
    /// The applet confirmed to be selected since this transaction began.
    confirmed: Option<AppletKind>,
    ledger: Arc<CardLedger>,
}

/// The response to frames that begin with the pattern after their CLA.
struct Rule {
    pattern: Vec<u8>,
    response: Response,
}

#[derive(Clone)]
enum Response {
    Frame(Vec<u8>),
    Fault(TransportErrorKind),
}

/// A command, as far as the assertions distinguish it.
#[derive(Clone, Copy)]
enum Command {
    /// A probe or SELECT: its success confirms the applet.
    Probe(AppletKind),
    /// VERIFY, CHANGE REFERENCE DATA or RESET RETRY COUNTER with a PIN, and the applet if the command shows it.
    Pin(Option<AppletKind>),
    /// A command that changes the card, or authenticates for changes.
    Write(AppletKind),
    /// A command that uses a private key.
    Use,
    Other,
}

impl ScriptedCard {
    pub(super) fn read(bytes: &[u8], ledger: Arc<CardLedger>) -> Option<Self> {
        let (atr, mut rest) = split(bytes, 1)?;
        let mut rules = Vec::new();
        while let Some((rule, after)) = Rule::split(rest) {
            rules.push(rule);
            rest = after;
        }
        Some(Self {
            atr: Atr::parse(atr)
                .or_else(|_| Atr::parse(&[0x3B, 0x00]))
                .ok()?,
            rules,
            next: 0,
            epoch: 0,
            commands: 0,
            current: Command::Other,
            confirmed: None,
            ledger,
        })
    }

    /// Returns the response of the next rule for `event`. The search begins after the rule used last.
    fn rule(&mut self, event: &[u8]) -> Option<Response> {
        let order = (self.next..self.rules.len()).chain(0..self.next);
        let (at, rule) = order
            .filter_map(|at| Some((at, self.rules.get(at)?)))
            .find(|(_, rule)| rule.is_for(event))?;
        self.next = at + 1;
        Some(rule.response.clone())
    }

    /// Checks the command in `frame` and keeps it as the current one.
    fn observe(&mut self, frame: &[u8]) {
        let Some(command) = Command::of(frame) else {
            return;
        };
        self.commands += 1;
        assert!(self.commands <= MAX_COMMANDS, "the session ends");
        self.current = command;
        if is_select(frame) {
            self.confirmed = None;
        }
        match command {
            Command::Pin(None) => {
                assert!(self.confirmed.is_some(), "a PIN reaches a confirmed applet");
            }
            Command::Pin(kind) => {
                assert_eq!(self.confirmed, kind, "a PIN reaches a confirmed applet");
            }
            Command::Write(kind) => {
                assert_eq!(
                    self.confirmed,
                    Some(kind),
                    "writes reach a confirmed applet"
                );
            }
            Command::Probe(_) | Command::Use | Command::Other => {}
        }
    }

    /// Updates the ledger at the end of a command.
    fn conclude(&mut self, status: Option<StatusWord>) {
        let ok = status.is_some_and(StatusWord::is_ok);
        match self.current {
            Command::Probe(kind) if ok => self.confirmed = Some(kind),
            Command::Pin(_) if !ok => count(&self.ledger.tries),
            Command::Use if !status.is_some_and(AppletKind::may_be_other_applet) => {
                count(&self.ledger.uses);
            }
            _ => {}
        }
    }

    fn fail(&mut self, kind: TransportErrorKind) -> TransportError {
        let sent = match kind {
            TransportErrorKind::CardReset | TransportErrorKind::Busy => Sent::No,
            _ => Sent::Maybe,
        };
        if kind == TransportErrorKind::CardReset {
            self.epoch += 1;
            self.confirmed = None;
        }
        if sent == Sent::Maybe {
            self.conclude(None);
        }
        TransportError {
            kind,
            sent,
            what: format!("the script says {kind:?}"),
        }
    }
}

impl Rule {
    fn is_for(&self, event: &[u8]) -> bool {
        match event == BEGIN {
            true => self.pattern == BEGIN,
            false => event.starts_with(&self.pattern),
        }
    }

    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (pattern, rest) = split(bytes, 1)?;
        let fault = |kind, rest| Some((Response::Fault(kind), rest));
        let (response, rest) = match rest {
            [0xFF, 0x01, rest @ ..] => fault(TransportErrorKind::CardReset, rest),
            [0xFF, 0x02, rest @ ..] => fault(TransportErrorKind::Busy, rest),
            [0xFF, 0x03, rest @ ..] => fault(TransportErrorKind::CardRemoved, rest),
            [0xFF, 0x04, rest @ ..] => fault(TransportErrorKind::TimedOut, rest),
            _ => split(rest, 2).map(|(response, rest)| (Response::Frame(response.to_vec()), rest)),
        }?;
        let pattern = pattern.to_vec();
        Some((Self { pattern, response }, rest))
    }
}

/// Splits off as many bytes as a length of `size` bytes announces, or all that are left. Returns `None` at the end.
fn split(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_at_checked(size)?;
    let len = len
        .iter()
        .fold(0, |len, byte| len << 8 | usize::from(*byte));
    Some(rest.split_at(len.min(rest.len())))
}

impl Command {
    /// Returns the kind of command in `frame`, or `None` for GET RESPONSE, which continues the command before.
    fn of(frame: &[u8]) -> Option<Self> {
        let [cla, ins, p1, ..] = frame else {
            return Some(Self::Other);
        };
        Some(match ins {
            0xC0 => return None,
            // A frame of a chain that is not the last one.
            _ if cla & 0x10 != 0 => Self::Other,
            0x20 if *p1 == 0 && frame.len() > 5 => Self::Pin(match frame.get(3) {
                Some(0x81..=0x83) => Some(AppletKind::OpenPgp),
                _ => Some(AppletKind::Piv),
            }),
            0x24 | 0x2C => Self::Pin(match frame.get(3) {
                // The PUK of PIV and PW1 have the same number.
                Some(0x81) => None,
                Some(0x83) => Some(AppletKind::OpenPgp),
                _ => Some(AppletKind::Piv),
            }),
            0x87 if frame.get(3) == Some(&0x9B) => Self::Write(AppletKind::Piv),
            0xDB | 0xFF => Self::Write(AppletKind::Piv),
            0xDA => Self::Write(AppletKind::OpenPgp),
            0x47 if *p1 == 0x00 => Self::Write(AppletKind::Piv),
            0x47 if *p1 == 0x80 => Self::Write(AppletKind::OpenPgp),
            0x87 | 0x2A | 0x88 => Self::Use,
            _ => [&piv::APPLICATION, &openpgp::APPLICATION]
                .into_iter()
                .find(|application| is_probe(application, frame))
                .map_or(Self::Other, |application| Self::Probe(application.kind)),
        })
    }
}

fn is_select(frame: &[u8]) -> bool {
    frame.get(1) == Some(&0xA4)
}

/// Returns whether the success of `frame` confirms that `application` is selected.
fn is_probe(application: &Application, frame: &[u8]) -> bool {
    let probe = &application.probe;
    let has = |data: &[u8]| data.is_empty() || frame.windows(data.len()).any(|part| part == data);
    frame.starts_with(&probe.header) && has(probe.data) || is_select(frame) && has(application.aid)
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Transmit for ScriptedCard {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        _: Call,
    ) -> Result<(), TransportError> {
        self.observe(frame);
        let rule = self.rule(frame.get(1..).unwrap_or(&[]));
        let sent = match rule.unwrap_or_else(|| Response::Frame(vec![0x6A, 0x82])) {
            Response::Frame(frame) => frame,
            Response::Fault(kind) => return Err(self.fail(kind)),
        };
        match sent.as_slice() {
            [.., 0x61 | 0x6C, _] => {}
            [.., sw1, sw2] => self.conclude(Some(StatusWord(u16::from_be_bytes([*sw1, *sw2])))),
            _ => self.conclude(None),
        }
        // A length of two bytes is below the capacity of the buffer.
        response.set(&sent).unwrap_or_default();
        Ok(())
    }
}

impl Transport for ScriptedCard {
    fn atr(&self) -> &Atr {
        &self.atr
    }

    fn limits(&self) -> Limits {
        Limits::EXTENDED
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    fn transact(
        &mut self,
        _: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        self.current = Command::Other;
        if let Some(Response::Fault(kind)) = self.rule(&BEGIN) {
            let error = self.fail(kind);
            if kind != TransportErrorKind::CardReset {
                return Err(TransportError::before_card(kind, error.what));
            }
        }
        body(self);
        self.confirmed = None;
        Ok(())
    }
}
