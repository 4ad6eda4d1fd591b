//! Parses the interface bytes of an answer to reset (ISO 7816-3, 8.3) leniently.

use std::time::Duration;

use claviger_apdu::Atr;

/// How many groups of TA TB TC TD are read. An answer to reset cannot hold more.
const ROUNDS: usize = 4;
/// The clock cycles of one etu before any negotiation, Fd.
const DEFAULT_CYCLES: u64 = 372;

/// A transmission protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Characters, half duplex.
    T0,
    /// Blocks, half duplex.
    T1,
    /// A reserved or proprietary protocol, 2 to 14.
    Other(u8),
}

impl Protocol {
    /// Returns the protocol of the number T. 15 is no protocol.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::T0),
            1 => Some(Self::T1),
            2..=14 => Some(Self::Other(number)),
            _ => None,
        }
    }

    /// Returns the number T.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::T0 => 0,
            Self::T1 => 1,
            Self::Other(number) => number,
        }
    }
}

/// A pair of clock rate conversion and baud rate adjustment integers, coded as in TA1 and PPS1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate(u8);

impl Rate {
    /// Fd = 372, Dd = 1: the rate until another one is agreed.
    pub const DEFAULT: Self = Self(0x11);

    /// Returns the pair of a TA1. Returns `None` if one half is reserved (ISO 7816-3, tables 7 and 8).
    #[must_use]
    pub fn of(ta1: u8) -> Option<Self> {
        (conversion(ta1 >> 4).is_some() && adjustment(ta1 & 0x0F).is_some()).then_some(Self(ta1))
    }

    /// Returns the byte.
    #[must_use]
    pub const fn ta1(self) -> u8 {
        self.0
    }

    /// Returns Fi, the clock cycles per etu at Di = 1.
    #[must_use]
    pub fn fi(self) -> u16 {
        conversion(self.0 >> 4).map_or(372, |(fi, _)| fi)
    }

    /// Returns the highest clock in kHz at which the card works with this Fi.
    #[must_use]
    pub fn max_khz(self) -> u32 {
        conversion(self.0 >> 4).map_or(5_000, |(_, max)| max)
    }

    /// Returns Di.
    #[must_use]
    pub fn di(self) -> u8 {
        adjustment(self.0 & 0x0F).unwrap_or(1)
    }

    /// Returns the bits per second at a clock of `khz`.
    #[must_use]
    pub fn bits_per_second(self, khz: u32) -> u32 {
        let bits = u64::from(khz) * 1000 * u64::from(self.di()) / u64::from(self.fi());
        u32::try_from(bits).unwrap_or(u32::MAX)
    }
}

/// Returns Fi and f(max) in kHz for FI (ISO 7816-3, table 7).
const fn conversion(fi: u8) -> Option<(u16, u32)> {
    Some(match fi {
        0 => (372, 4_000),
        1 => (372, 5_000),
        2 => (558, 6_000),
        3 => (744, 8_000),
        4 => (1116, 12_000),
        5 => (1488, 16_000),
        6 => (1860, 20_000),
        9 => (512, 5_000),
        10 => (768, 7_500),
        11 => (1024, 10_000),
        12 => (1536, 15_000),
        13 => (2048, 20_000),
        _ => return None,
    })
}

/// Returns Di for DI (ISO 7816-3, table 8).
const fn adjustment(di: u8) -> Option<u8> {
    Some(match di {
        1 => 1,
        2 => 2,
        3 => 4,
        4 => 8,
        5 => 16,
        6 => 32,
        7 => 64,
        8 => 12,
        9 => 20,
        _ => return None,
    })
}

/// Specific mode, announced by TA2: the card uses one protocol and negotiates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecificMode {
    /// The protocol of the card.
    pub protocol: Option<Protocol>,
    /// The rate is not the rate of TA1 but one that both sides know (b5).
    pub implicit_rate: bool,
    /// A warm reset may switch the card to negotiable mode (b8 is 0).
    pub can_change: bool,
}

/// The error detection code of T=1 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorDetection {
    /// One byte, the exclusive or of the others.
    #[default]
    Lrc,
    /// Two bytes (ISO/IEC 13239).
    Crc,
}

/// The state in which the card allows its clock to be stopped (ISO 7816-3, table 9), numbered as in CCID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClockStop {
    /// The clock must not be stopped.
    #[default]
    Never = 0,
    /// The clock may be stopped low.
    Low = 1,
    /// The clock may be stopped high.
    High = 2,
    /// The clock may be stopped low or high.
    Any = 3,
}

/// Classes of operating conditions (ISO 7816-3, table 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voltages {
    /// Class A, 5 V.
    pub v5: bool,
    /// Class B, 3 V.
    pub v3: bool,
    /// Class C, 1.8 V.
    pub v1_8: bool,
}

/// The transmission parameters of an answer to reset. Missing and invalid values are replaced by their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransmissionParameters {
    /// The inverse convention: TS is 3F.
    pub inverse: bool,
    /// TA1: the fastest rate of the card, or the rate of specific mode.
    pub rate: Rate,
    /// TC1: N, the extra guard time in etu at this rate. 255 means the shortest time that the protocol allows.
    pub extra_guard_time: u8,
    /// The protocols in the order in which the card offers them. The list is never empty. The first protocol is the
    /// default.
    pub offered: Vec<Protocol>,
    /// TA2.
    pub specific_mode: Option<SpecificMode>,
    /// T=0: WI, the waiting time integer (first TC for T=0).
    pub waiting_integer: u8,
    /// T=1: IFSC, the longest information field that the card accepts, 1 to 254.
    pub ifsc: u8,
    /// T=1: BWI, 0 to 9.
    pub block_waiting_integer: u8,
    /// T=1: CWI, 0 to 15.
    pub character_waiting_integer: u8,
    /// T=1: first TC.
    pub error_detection: ErrorDetection,
    /// First TA for T=15. A card without it does not announce its voltages, and works with the voltage of its reset.
    pub voltages: Option<Voltages>,
    /// First TA for T=15.
    pub clock_stop: ClockStop,
    /// Invalid values, as texts for a person.
    pub defects: Vec<&'static str>,
}

impl Default for TransmissionParameters {
    /// Returns the parameters of a card that announces nothing (ISO 7816-3, 8.3).
    fn default() -> Self {
        Self {
            inverse: false,
            rate: Rate::DEFAULT,
            extra_guard_time: 0,
            offered: vec![Protocol::T0],
            specific_mode: None,
            waiting_integer: 10,
            ifsc: 32,
            block_waiting_integer: 4,
            character_waiting_integer: 13,
            error_detection: ErrorDetection::Lrc,
            voltages: None,
            clock_stop: ClockStop::Never,
            defects: Vec::new(),
        }
    }
}

impl TransmissionParameters {
    /// Parses the interface bytes of `atr`.
    #[must_use]
    pub fn of(atr: &Atr) -> Self {
        let mut parameters = Self::default();
        parameters.defects.extend(atr.defect());
        let [ts, t0, rest @ ..] = atr.bytes() else {
            return parameters;
        };
        parameters.inverse = *ts != 0x3B;
        InterfaceByteParser {
            parameters,
            offered: Vec::new(),
            has_group: [false; 2],
        }
        .all(*t0, rest)
    }

    /// Returns the protocol in use unless another one is negotiated: the protocol of specific mode, else the first
    /// one offered.
    #[must_use]
    pub fn default_protocol(&self) -> Protocol {
        self.specific_mode
            .and_then(|mode| mode.protocol)
            .or_else(|| self.offered.first().copied())
            .unwrap_or(Protocol::T0)
    }

    /// Returns the rate in use after the answer to reset, before any negotiation.
    #[must_use]
    pub fn initial_rate(&self) -> Rate {
        match self.specific_mode {
            Some(mode) if !mode.implicit_rate => self.rate,
            _ => Rate::DEFAULT,
        }
    }

    /// T=1: returns BWT, the time in which a card must begin its response: 11 etu + 2^BWI · 960 · 372 / f (ISO
    /// 7816-3, 11.4.3).
    #[must_use]
    pub fn block_waiting_time(&self, rate: Rate, khz: u32) -> Duration {
        let block = (960 * DEFAULT_CYCLES) << self.block_waiting_integer.min(9);
        etu(11, rate, khz) + cycles(block, khz)
    }

    /// T=1: returns CWT, the longest time between two characters of a block: (11 + 2^CWI) etu.
    #[must_use]
    pub fn character_waiting_time(&self, rate: Rate, khz: u32) -> Duration {
        etu(
            11 + (1 << self.character_waiting_integer.min(15)),
            rate,
            khz,
        )
    }

    /// T=0: returns WT, the longest time between two characters: WI · 960 · Fi / f (ISO 7816-3, 10.2).
    #[must_use]
    pub fn work_waiting_time(&self, rate: Rate, khz: u32) -> Duration {
        let cycles_each = 960 * u64::from(rate.fi());
        cycles(u64::from(self.waiting_integer) * cycles_each, khz)
    }

    /// Returns the transfer time of `count` characters: 12 etu each, and the extra guard time (ISO 7816-3, 7.2 and
    /// 8.3).
    #[must_use]
    pub fn transfer_time(&self, count: u16, rate: Rate, khz: u32) -> Duration {
        let extra = match self.extra_guard_time {
            255 => 0,
            extra => u64::from(extra),
        };
        etu(u64::from(count) * (12 + extra), rate, khz)
    }
}

/// Returns the duration of `count` elementary time units: F / (D · f) each.
pub(super) fn etu(count: u64, rate: Rate, khz: u32) -> Duration {
    cycles(
        (count * u64::from(rate.fi())).div_ceil(u64::from(rate.di())),
        khz,
    )
}

/// Returns the duration of `count` cycles of a clock of `khz`. A clock of 0 counts as 1 MHz, the slowest clock that a
/// card must support.
fn cycles(count: u64, khz: u32) -> Duration {
    let khz = if khz == 0 { 1_000 } else { u64::from(khz) };
    Duration::from_nanos(count.saturating_mul(1_000_000) / khz)
}

/// Parses the groups of TA TB TC TD.
struct InterfaceByteParser {
    parameters: TransmissionParameters,
    offered: Vec<Protocol>,
    /// Whether the first group for T=1 and the first group for T=15 have been read.
    has_group: [bool; 2],
}

/// TA, TB and TC of one group, as far as they are present.
#[derive(Clone, Copy)]
struct InterfaceBytes {
    ta: Option<u8>,
    tb: Option<u8>,
    tc: Option<u8>,
}

impl InterfaceByteParser {
    fn all(mut self, t0: u8, mut rest: &[u8]) -> TransmissionParameters {
        let mut indicator = t0;
        for round in 1..=ROUNDS {
            let Some((group, td)) = group(indicator, &mut rest) else {
                break;
            };
            match round {
                1 => self.global(group),
                2 => self.second(group),
                _ => self.specific(group, indicator & 0x0F),
            }
            let Some(td) = td else { break };
            self.offer(td & 0x0F);
            indicator = td;
        }
        if !self.offered.is_empty() {
            self.parameters.offered = self.offered;
        }
        self.parameters
    }

    fn offer(&mut self, number: u8) {
        if let Some(protocol) = Protocol::of(number)
            && !self.offered.contains(&protocol)
        {
            self.offered.push(protocol);
        }
    }

    /// Processes TA1 and TC1. TB1 describes a programming voltage that no card uses any more.
    fn global(&mut self, group: InterfaceBytes) {
        if let Some(ta1) = group.ta {
            match Rate::of(ta1) {
                Some(rate) => self.parameters.rate = rate,
                None => self.add_defect("TA1 is reserved"),
            }
        }
        self.parameters.extra_guard_time = group.tc.unwrap_or(0);
    }

    /// Processes TA2 and TC2. TC2 belongs to T=0, whatever TD1 is. TB2 is obsolete like TB1.
    fn second(&mut self, group: InterfaceBytes) {
        if let Some(ta2) = group.ta {
            self.parameters.specific_mode = Some(SpecificMode {
                protocol: Protocol::of(ta2 & 0x0F),
                implicit_rate: ta2 & 0x10 != 0,
                can_change: ta2 & 0x80 == 0,
            });
        }
        match group.tc {
            Some(0) => self.add_defect("TC2 is 0"),
            Some(wi) => self.parameters.waiting_integer = wi,
            None => {}
        }
    }

    /// Processes a third or later group. It belongs to the protocol of the TD before it. The first group of each
    /// protocol counts.
    fn specific(&mut self, group: InterfaceBytes, number: u8) {
        let [t1, t15] = &mut self.has_group;
        match number {
            1 if !std::mem::replace(t1, true) => self.t1(group),
            15 if !std::mem::replace(t15, true) => self.t15(group),
            _ => {}
        }
    }

    fn t1(&mut self, group: InterfaceBytes) {
        match group.ta {
            Some(0) => self.add_defect("IFSC is 0"),
            Some(255) => {
                self.parameters.ifsc = 254;
                self.add_defect("IFSC is 255");
            }
            Some(ifsc) => self.parameters.ifsc = ifsc,
            None => {}
        }
        if let Some(tb) = group.tb {
            self.parameters.character_waiting_integer = tb & 0x0F;
            if tb >> 4 > 9 {
                self.add_defect("BWI is reserved");
            }
            self.parameters.block_waiting_integer = (tb >> 4).min(9);
        }
        if group.tc.is_some_and(|tc| tc & 1 != 0) {
            self.parameters.error_detection = ErrorDetection::Crc;
        }
    }

    fn t15(&mut self, group: InterfaceBytes) {
        let Some(ta) = group.ta else { return };
        self.parameters.clock_stop = match ta >> 6 {
            0 => ClockStop::Never,
            1 => ClockStop::Low,
            2 => ClockStop::High,
            _ => ClockStop::Any,
        };
        let voltages = Voltages {
            v5: ta & 1 != 0,
            v3: ta & 2 != 0,
            v1_8: ta & 4 != 0,
        };
        if ta & 7 == 0 {
            self.add_defect("no operating conditions are announced");
        } else {
            self.parameters.voltages = Some(voltages);
        }
    }

    fn add_defect(&mut self, what: &'static str) {
        self.parameters.defects.push(what);
    }
}

/// Splits the group that `indicator` announces off `rest`, with its TD. Returns `None` if it is truncated.
fn group(indicator: u8, rest: &mut &[u8]) -> Option<(InterfaceBytes, Option<u8>)> {
    let mut next = |bit: u8| -> Option<Option<u8>> {
        if indicator & bit == 0 {
            return Some(None);
        }
        let (byte, after) = rest.split_first()?;
        *rest = after;
        Some(Some(*byte))
    };
    let (ta, tb, tc) = (next(0x10)?, next(0x20)?, next(0x40)?);
    Some((InterfaceBytes { ta, tb, tc }, next(0x80)?))
}

/// Parses arbitrary bytes as an answer to reset, for the fuzz target `atr_parameters`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(atr) = Atr::parse(bytes) else { return };
    let parameters = TransmissionParameters::of(&atr);
    assert!((1..=254).contains(&parameters.ifsc));
    assert!(parameters.block_waiting_integer <= 9 && parameters.character_waiting_integer <= 15);
    assert!(parameters.waiting_integer > 0);
    assert!(!parameters.offered.is_empty() && parameters.offered.len() <= ROUNDS);
    assert!(atr.defect().is_none() || !parameters.defects.is_empty());
    let rate = parameters.initial_rate();
    assert_eq!(Rate::of(rate.ta1()), Some(rate), "never a reserved rate");
    for khz in [0, 1, 3_580, 20_000, u32::MAX] {
        let slowest = parameters.block_waiting_time(rate, khz);
        assert!(slowest < Duration::from_secs(200_000), "{slowest:?}");
        let _ = parameters.character_waiting_time(rate, khz);
        let _ = parameters.work_waiting_time(rate, khz);
        let _ = parameters.transfer_time(u16::MAX, rate, khz);
    }
}
