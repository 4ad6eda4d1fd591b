//! A card: an answer to reset and a closure from command to response APDU.

use std::{collections::VecDeque, fmt};

/// The protocol of the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ISO 7816-3, 10.
    T0,
    /// ISO 7816-3, 11.
    T1,
}

/// A disturbance of one of the blocks to a T=1 card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// It does not hear the block.
    Lose,
    /// The card receives the block, and its response is lost.
    Swallow,
    /// The reader receives a parity error instead of the response.
    Parity,
    /// The response has a wrong bit.
    Corrupt,
    /// The card first requests so many waiting times.
    Wtx(u8),
    /// The card first requests another information field size.
    Ifs(u8),
    /// The card aborts the exchange instead.
    Abort,
    /// It hears nothing from here on.
    Deaf,
}

/// The response of a card to a PPS request (ISO 7816-3, 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pps {
    /// It agrees.
    Agrees,
    /// It agrees to the protocol, and to no other rate.
    AgreesSlowly,
    /// The card sends no response.
    Silent,
    /// The card sends another response.
    Nonsense,
}

/// The behaviour of a card.
#[derive(Clone, Debug)]
pub(super) struct Manners {
    pub(super) crc: bool,
    /// Longest information field it takes.
    pub(super) ifsc: usize,
    pub(super) pps: Pps,
    /// The rate it has after a reset, as in TA1.
    pub(super) rate: u8,
    /// The bPowerSelect values at which the card sends an answer to reset.
    pub(super) voltages: Vec<u8>,
    /// T=0: the number of NULL bytes before each procedure byte, and whether the card requests its data byte by byte.
    pub(super) nulls: usize,
    pub(super) one_by_one: bool,
    /// The disturbances of the next blocks.
    disturbances: VecDeque<Option<Disturbance>>,
}

impl Manners {
    /// Returns the disturbance of the current block.
    pub(super) fn next(&mut self) -> Option<Disturbance> {
        if self.disturbances.front() == Some(&Some(Disturbance::Deaf)) {
            return Some(Disturbance::Deaf);
        }
        self.disturbances.pop_front().flatten()
    }
}

/// From a command APDU to its response.
pub(super) type Apdu = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// A card to put into a slot.
pub struct FakeCard {
    pub(super) atr: Vec<u8>,
    pub(super) protocol: Protocol,
    pub(super) apdu: Apdu,
    pub(super) reset: Box<dyn FnMut() + Send>,
    pub(super) manners: Manners,
}

impl FakeCard {
    /// A card of T=1 with information fields of 254 bytes and LRC.
    #[must_use]
    pub fn t1(apdu: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        // TD1 and TD2: T=1; TA3: IFSC; TB3: CWI 4, BWI 5; the historical bytes are "fake".
        let atr = with_tck(&[0x3B, 0x84, 0x81, 0x31, 0xFE, 0x45, b'f', b'a', b'k', b'e']);
        Self::new(atr, Protocol::T1, apdu)
    }

    /// A card of T=0.
    #[must_use]
    pub fn t0(apdu: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        let atr = vec![0x3B, 0x04, b'f', b'a', b'k', b'e'];
        Self::new(atr, Protocol::T0, apdu)
    }

    /// Makes a card with the given answer to reset, which is not checked.
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
            manners: Manners {
                crc: false,
                ifsc: 254,
                pps: Pps::Agrees,
                rate: 0x11,
                voltages: vec![1, 2, 3],
                nulls: 0,
                one_by_one: false,
                disturbances: VecDeque::new(),
            },
        }
    }

    /// A card with this answer to reset, but for its TCK, which is added.
    #[must_use]
    pub fn with_atr(mut self, atr: &[u8]) -> Self {
        self.atr = with_tck(atr);
        self
    }

    /// Checks its blocks by CRC.
    #[must_use]
    pub fn with_crc(mut self) -> Self {
        self.manners.crc = true;
        self
    }

    /// Takes information fields of `ifsc` bytes only.
    #[must_use]
    pub fn with_ifsc(mut self, ifsc: usize) -> Self {
        self.manners.ifsc = ifsc;
        self
    }

    /// Answers a PPS like this.
    #[must_use]
    pub fn with_pps(mut self, pps: Pps) -> Self {
        self.manners.pps = pps;
        self
    }

    /// Uses its own rate, like a card in specific mode, and does not respond to PPS.
    #[must_use]
    pub fn at_rate(mut self, ta1: u8) -> Self {
        self.manners.rate = ta1;
        self.with_pps(Pps::Silent)
    }

    /// Answers its reset only at these voltages: 1 for 5 V, 2 for 3 V, 3 for 1.8 V.
    #[must_use]
    pub fn at_voltages(mut self, voltages: &[u8]) -> Self {
        self.manners.voltages = voltages.to_vec();
        self
    }

    /// Sends NULL bytes before each procedure byte, and takes its data byte by byte.
    #[must_use]
    pub fn slowly(mut self, nulls: usize) -> Self {
        self.manners.nulls = nulls;
        self.manners.one_by_one = true;
        self
    }

    /// Disturbs the block that comes after `before` others, counted from the last disturbance or from its first power.
    #[must_use]
    pub fn disturbed(mut self, before: usize, disturbance: Disturbance) -> Self {
        let disturbances = &mut self.manners.disturbances;
        disturbances.extend(std::iter::repeat_n(None, before));
        disturbances.push_back(Some(disturbance));
        self
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
