//! A transport that plays a script and fails the test at the first deviation from it.

#![allow(
    dead_code,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test double, compiled into each test that uses a part of it"
)]

pub(crate) mod piv;
pub(crate) mod signing;

use std::collections::VecDeque;

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Sent, Transmit, Transport, TransportError,
    TransportErrorKind,
};

/// The script of one card session:
///
/// ```text
/// @ 3B 8F 01 80 …          the answer to reset; 3B 00 without this line
/// ~ 300                    longest command frame that is known to arrive; without this line any length
/// # a comment, also at the end of any line
/// > 00 20 00 80            a frame that must be sent
/// < 63 C2                  the card's response, status word last
///   00 11 22               a line of digits alone continues the frame above it
/// [                        a transaction begins
/// ]                        the transaction ends
/// ! reset                  the error of the next frame, or of the begin of a transaction:
/// ! busy                   reset (the epoch advances; no error at the begin of a transaction), busy, removed
/// ```
///
/// If a script has brackets, the transactions must match them. Otherwise they are not checked. Dropping the card before
/// the end of the script fails the test.
pub(crate) struct Script {
    atr: Atr,
    lines: VecDeque<Line>,
    brackets: bool,
    epoch: u64,
    limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Command(Vec<u8>),
    Response(Vec<u8>),
    Begin,
    End,
    Fault(TransportErrorKind),
}

impl Script {
    /// Returns the card of the script `text`.
    pub(crate) fn card(text: &str) -> Box<dyn Transport> {
        Box::new(Self::read(text))
    }

    fn read(text: &str) -> Self {
        let mut script = Self {
            atr: Atr::parse(&[0x3B, 0x00]).unwrap(),
            lines: VecDeque::new(),
            brackets: false,
            epoch: 0,
            limits: Limits::EXTENDED,
        };
        for line in text.lines() {
            script.read_line(line.split('#').next().unwrap().trim());
        }
        script.brackets = script.lines.contains(&Line::Begin);
        script
    }

    fn read_line(&mut self, line: &str) {
        let Some(marker) = line.chars().next() else {
            return;
        };
        let rest = line[1..].trim();
        let next = match marker {
            '@' => {
                self.atr = Atr::parse(&hex(rest)).expect("the script's answer to reset");
                return;
            }
            '~' => {
                self.limits = Limits::extended_known_to(rest.parse().unwrap());
                return;
            }
            '>' => Line::Command(hex(rest)),
            '<' => Line::Response(hex(rest)),
            '[' => Line::Begin,
            ']' => Line::End,
            '!' => Line::Fault(match rest {
                "reset" => TransportErrorKind::CardReset,
                "busy" => TransportErrorKind::Busy,
                "removed" => TransportErrorKind::CardRemoved,
                other => panic!("the script says \"! {other}\""),
            }),
            _ => {
                let (Some(Line::Command(frame)) | Some(Line::Response(frame))) =
                    self.lines.back_mut()
                else {
                    panic!("no frame is continued by \"{line}\"");
                };
                frame.extend(hex(line));
                return;
            }
        };
        self.lines.push_back(next);
    }

    /// Takes the fault that comes next in the script, if any.
    fn fault(&mut self) -> Option<TransportErrorKind> {
        let Some(Line::Fault(kind)) = self.lines.front().cloned() else {
            return None;
        };
        self.lines.pop_front();
        self.epoch += u64::from(kind == TransportErrorKind::CardReset);
        Some(kind)
    }

    fn bracket(&mut self, bracket: &Line) {
        if self.brackets {
            let next = self.lines.pop_front();
            assert_eq!(next.as_ref(), Some(bracket), "transactions differ");
        }
    }
}

impl Transmit for Script {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        _: Call,
    ) -> Result<(), TransportError> {
        if let Some(kind) = self.fault() {
            let sent = match kind {
                TransportErrorKind::CardRemoved => Sent::Maybe,
                _ => Sent::No,
            };
            let what = format!("the script says {kind:?}");
            return Err(TransportError { kind, sent, what });
        }
        let sent = text(frame);
        match self.lines.pop_front() {
            Some(Line::Command(expected)) => assert_eq!(
                sent,
                text(&expected),
                "\n  left: the frame sent, right: the script's"
            ),
            other => panic!("{sent} was sent; the script continues with {other:?}"),
        }
        match self.lines.pop_front() {
            Some(Line::Response(bytes)) => response.set(&bytes).unwrap(),
            other => panic!("the script has no response to {sent} but {other:?}"),
        }
        Ok(())
    }
}

impl Transport for Script {
    fn atr(&self) -> &Atr {
        &self.atr
    }

    fn limits(&self) -> Limits {
        self.limits
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
        if let Some(kind) = self.fault()
            && kind != TransportErrorKind::CardReset
        {
            return Err(TransportError::before_card(
                kind,
                format!("the script says {kind:?}"),
            ));
        }
        self.bracket(&Line::Begin);
        body(self);
        self.bracket(&Line::End);
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.lines.is_empty(),
                "the script continues with {:?}",
                self.lines
            );
        }
    }
}

/// Returns the bytes of hexadecimal `text`. Spaces are skipped.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "odd digits in {text:?}");
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex digits"))
        .collect()
}

/// Returns `bytes` in hexadecimal, for a script.
pub(crate) fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
