//! Protocol and parameters selection (PPS; ISO 7816-3, 9): negotiates another protocol or a faster rate with the card
//! than those after its reset.
//!
//! ```text
//! | PPSS = FF | PPS0: b5 PPS1 follows, T | PPS1: FI DI | PCK, the exclusive or of all is 0 |
//! ```

use std::time::Duration;

use claviger_apdu::Secret;

use super::parameters::{Protocol, Rate, TransmissionParameters, etu};

const PPSS: u8 = 0xFF;
/// The initial waiting time in etu, which also holds for the response (ISO 7816-3, 9.1).
const WAITING_TIME: u64 = 9_600;
/// In PPS0: PPS1 follows.
const PPS1: u8 = 0x10;
/// How far, in bits per second, a rate of the reader's table may differ from the exact one. Tables are rounded.
const TOLERANCE: u32 = 2;

/// The clock and the rates of a reader, as its descriptor states them.
#[derive(Clone, Copy, Debug)]
pub struct ReaderRates<'a> {
    /// dwDefaultClock.
    pub khz: u32,
    /// dwMaxDataRate, in bits per second.
    pub most: u32,
    /// The rates of GET_DATA_RATES, in bits per second. An empty list allows every rate up to the highest.
    pub rates: &'a [u32],
}

impl ReaderRates<'_> {
    fn includes(&self, rate: Rate) -> bool {
        let wanted = rate.bits_per_second(self.khz);
        let listed = |listed: &u32| listed.abs_diff(wanted) <= TOLERANCE;
        self.khz <= rate.max_khz()
            && wanted <= self.most.saturating_add(TOLERANCE)
            && (self.rates.is_empty() || self.rates.iter().any(listed))
    }
}

/// The protocol and the rate that both sides use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgreedParameters {
    /// The protocol.
    pub protocol: Protocol,
    /// The rate.
    pub rate: Rate,
}

/// How to switch to a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PpsPlan {
    /// The protocol is in use already. No PPS is sent.
    AlreadyActive(AgreedParameters),
    /// This PPS request has to be sent to the card.
    Negotiate(PpsRequest),
    /// The card does not support the protocol.
    Unsupported,
}

/// Plans the switch to `protocol` at the fastest rate that card and reader have in common.
///
/// A card in specific mode is sent no PPS, because it announced its only protocol. If the reader does not support the
/// rate of TA1, slower rates of the same clock rate conversion are tried, then rates of the default conversion.
#[must_use]
pub fn plan(
    parameters: &TransmissionParameters,
    protocol: Protocol,
    reader: &ReaderRates<'_>,
) -> PpsPlan {
    let present = AgreedParameters {
        protocol: parameters.default_protocol(),
        rate: parameters.initial_rate(),
    };
    if parameters.specific_mode.is_some() {
        return if present.protocol == protocol {
            PpsPlan::AlreadyActive(present)
        } else {
            PpsPlan::Unsupported
        };
    }
    if !parameters.offered.contains(&protocol) {
        return PpsPlan::Unsupported;
    }
    let wanted = AgreedParameters {
        protocol,
        rate: fastest(parameters.rate, reader),
    };
    if wanted == present {
        PpsPlan::AlreadyActive(wanted)
    } else {
        PpsPlan::Negotiate(PpsRequest(wanted))
    }
}

/// Returns the fastest rate of the reader that is not faster than `offered`. Returns the default rate, which every
/// reader supports, if there is no other.
fn fastest(offered: Rate, reader: &ReaderRates<'_>) -> Rate {
    let speed = |rate: &Rate| rate.bits_per_second(reader.khz);
    let conversions = [offered.ta1() & 0xF0, Rate::DEFAULT.ta1() & 0xF0];
    conversions
        .into_iter()
        .flat_map(|fi| (1..=9).filter_map(move |di| Rate::of(fi | di)))
        .filter(|rate| rate.di() <= offered.di() && speed(rate) <= speed(&offered))
        .filter(|rate| speed(rate) > speed(&Rate::DEFAULT) && reader.includes(*rate))
        .max_by_key(|rate| (speed(rate), *rate == offered))
        .unwrap_or(Rate::DEFAULT)
}

/// A PPS request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PpsRequest(AgreedParameters);

impl PpsRequest {
    /// Returns the parameters in use if the card accepts the whole request.
    #[must_use]
    pub const fn agreement(&self) -> AgreedParameters {
        self.0
    }

    /// Returns the bytes to send before anything else after a reset. If there is no response within
    /// [`PpsRequest::waiting_time`], the card has refused.
    #[must_use]
    pub fn request(&self) -> Secret {
        let number = self.0.protocol.number();
        let mut bytes = if self.0.rate == Rate::DEFAULT {
            vec![PPSS, number]
        } else {
            vec![PPSS, PPS1 | number, self.0.rate.ta1()]
        };
        bytes.push(check(&bytes));
        Secret::new(bytes)
    }

    /// Returns how long the card may take for each character of its response, at a clock of `khz`.
    #[must_use]
    pub fn waiting_time(khz: u32) -> Duration {
        etu(WAITING_TIME, Rate::DEFAULT, khz)
    }

    /// Returns the parameters that the card accepted by `response`: all of the request, or the protocol at the
    /// default rate if PPS1 is missing.
    ///
    /// # Errors
    /// [`PpsRefused`] for any other response.
    pub fn accept(&self, response: &[u8]) -> Result<AgreedParameters, PpsRefused> {
        if response == self.request().expose() {
            return Ok(self.0);
        }
        let slower = Self(AgreedParameters {
            rate: Rate::DEFAULT,
            ..self.0
        });
        if response == slower.request().expose() {
            return Ok(slower.0);
        }
        Err(PpsRefused)
    }
}

/// The card did not accept the request. It has to be reset by a power cycle, and then used with its default protocol
/// and rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the card did not accept the protocol and rate")]
pub struct PpsRefused;

fn check(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum ^ byte)
}

/// Negotiates with a card and a reader of arbitrary behaviour, for the fuzz target `pps`.
///
/// ```text
/// | TA1 | T | clock in kHz, 2 bytes | highest rate, 4 bytes | count | rates, 4 bytes each | the card's response |
/// ```
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some(([ta1, number, k1, k2, m1, m2, m3, m4, count], rest)) = bytes.split_first_chunk::<9>()
    else {
        return;
    };
    let len = rest.len().min(usize::from(*count) * 4);
    let (table, response) = rest.split_at(len);
    let rates: Vec<u32> = table
        .chunks_exact(4)
        .filter_map(|rate| rate.try_into().ok().map(u32::from_be_bytes))
        .collect();
    let reader = ReaderRates {
        khz: u32::from(u16::from_be_bytes([*k1, *k2])),
        most: u32::from_be_bytes([*m1, *m2, *m3, *m4]),
        rates: &rates,
    };
    let parameters = TransmissionParameters {
        rate: Rate::of(*ta1).unwrap_or(Rate::DEFAULT),
        offered: vec![Protocol::T0, Protocol::T1],
        ..TransmissionParameters::default()
    };
    let protocol = Protocol::of(number & 0x0F).unwrap_or(Protocol::T1);
    let request = match plan(&parameters, protocol, &reader) {
        PpsPlan::AlreadyActive(agreement) => {
            assert_eq!(
                (agreement.protocol, agreement.rate),
                (Protocol::T0, Rate::DEFAULT)
            );
            return;
        }
        PpsPlan::Unsupported => return assert!(!parameters.offered.contains(&protocol)),
        PpsPlan::Negotiate(request) => request,
    };
    let rate = request.agreement().rate;
    let speed = |rate: Rate| rate.bits_per_second(reader.khz);
    assert!(rate == Rate::DEFAULT || reader.includes(rate));
    assert!(speed(rate) <= speed(parameters.rate) || rate == Rate::DEFAULT);
    let bytes = request.request();
    assert!(bytes.len() <= 4 && check(bytes.expose()) == 0);
    assert_eq!(request.accept(bytes.expose()), Ok(request.agreement()));
    if let Ok(agreement) = request.accept(response) {
        assert_eq!(agreement.protocol, protocol);
        assert!(agreement.rate == rate || agreement.rate == Rate::DEFAULT);
    }
}
