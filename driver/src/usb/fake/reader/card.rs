//! A card: an answer to reset and a closure from command to response APDU.

use std::fmt;

/// How the card wants its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ISO 7816-3, 10.
    T0,
    /// ISO 7816-3, 11.
    T1,
}

/// From a command APDU to its response.
pub(super) type Apdu = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// A card to put into a slot.
pub struct FakeCard {
    pub(super) atr: Vec<u8>,
    pub(super) protocol: Protocol,
    pub(super) apdu: Apdu,
    pub(super) reset: Box<dyn FnMut() + Send>,
}

impl FakeCard {
    /// A card of T=1 with information fields of 254 bytes and LRC.
    #[must_use]
    pub fn t1(apdu: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        // TD1 and TD2: T=1; TA3: IFSC; TB3: CWI 4, BWI 5; the historical bytes say "fake".
        let atr = with_tck(&[0x3B, 0x84, 0x81, 0x31, 0xFE, 0x45, b'f', b'a', b'k', b'e']);
        Self::new(atr, Protocol::T1, apdu)
    }

    /// A card of T=0.
    #[must_use]
    pub fn t0(apdu: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let atr = vec![0x3B, 0x04, b'f', b'a', b'k', b'e'];
        Self::new(atr, Protocol::T0, apdu)
    }

    /// A card with an answer to reset of its own, which is not looked into.
    #[must_use]
    pub fn new(
        atr: Vec<u8>,
        protocol: Protocol,
        apdu: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static,
    ) -> Self {
        Self {
            atr,
            protocol,
            apdu: Box::new(apdu),
            reset: Box::new(|| {}),
        }
    }

    /// Calls `reset` whenever the card loses its power or is reset.
    #[must_use]
    pub fn on_reset(mut self, reset: impl FnMut() + Send + 'static) -> Self {
        self.reset = Box::new(reset);
        self
    }

    /// A card of T=1 that returns the data of each command, or as many zeros as the command expects, and 9000.
    #[must_use]
    pub fn echo() -> Self {
        Self::t1(echo)
    }

    /// The same for T=0.
    #[must_use]
    pub fn echo_t0() -> Self {
        Self::t0(echo)
    }
}

impl fmt::Debug for FakeCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeCard({:?})", self.protocol)
    }
}

/// The response of [`FakeCard::echo`], by the lengths of ISO 7816-3, 12.1.
#[must_use]
pub fn echo(command: &[u8]) -> Vec<u8> {
    let body = command.get(4..).unwrap_or_default();
    let mut response = match body {
        [] => Vec::new(),
        [le] => vec![0; expected(u16::from(*le), 256)],
        [0, high, low] => vec![0; expected(u16::from_be_bytes([*high, *low]), 65536)],
        [0, high, low, data @ ..] => sent(data, u16::from_be_bytes([*high, *low])),
        [lc, data @ ..] => sent(data, u16::from(*lc)),
    };
    response.extend([0x90, 0x00]);
    response
}

fn expected(le: u16, most: usize) -> usize {
    if le == 0 { most } else { usize::from(le) }
}

fn sent(data: &[u8], lc: u16) -> Vec<u8> {
    data.get(..usize::from(lc)).unwrap_or(data).to_vec()
}

/// The answer to reset with the byte that makes its exclusive-or from T0 on zero (ISO 7816-3, 8.2.5).
fn with_tck(atr: &[u8]) -> Vec<u8> {
    let mut atr = atr.to_vec();
    let check = atr.iter().skip(1).fold(0, |sum, byte| sum ^ byte);
    atr.push(check);
    atr
}
