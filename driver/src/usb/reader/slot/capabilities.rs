//! The capabilities of a reader: its descriptor, corrected by its quirks.

use std::time::Duration;

use claviger_apdu::Limits;

use crate::{
    ccid::{
        budget,
        descriptor::{ClassDescriptor, ExchangeLevel},
        message::{HEADER, Voltage},
        quirks::Quirks,
    },
    protocol::{
        Protocol,
        parameters::{ErrorDetection, Voltages},
        pps::ReaderRates,
        t1::block::{MAX_INFORMATION, PROLOGUE},
    },
};

/// The clocks at which a card works, in kHz (ISO 7816-3, 5.2.3 and table 7). A reader that states another clock does not really
/// have it.
const CLOCK_RANGE: std::ops::RangeInclusive<u32> = 1_000..=20_000;
/// The card's maximum information field before an IFS request (ISO 7816-3, 11.4.2).
const DEFAULT_IFSD: u8 = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct Capabilities {
    pub(super) class: ClassDescriptor,
    quirks: Quirks,
}

impl Capabilities {
    pub(crate) const fn new(class: ClassDescriptor, quirks: Quirks) -> Self {
        Self { class, quirks }
    }

    /// Returns the exchange level. A reader that accepts APDUs in parts is sent APDUs, whatever level it announces.
    pub(super) const fn level(&self) -> ExchangeLevel {
        if self.quirks.chains {
            return ExchangeLevel::ExtendedApdu;
        }
        self.class.exchange_level()
    }

    /// Returns whether the reader handles the protocol with the card.
    pub(super) const fn takes_apdus(&self) -> bool {
        matches!(
            self.level(),
            ExchangeLevel::ShortApdu | ExchangeLevel::ExtendedApdu
        )
    }

    /// Returns whether the reader takes an APDU longer than its messages in parts (CCID 1.1, 6.1.4). Many readers that announce
    /// extended APDUs ignore wLevelParameter, and the card executes the first part. A reader whose messages do not hold a short
    /// APDU has no other way: Gnuk, with messages of 64 bytes.
    fn takes_parts(&self) -> bool {
        self.quirks.chains
            || (self.level() == ExchangeLevel::ExtendedApdu
                && self.max_block() < Limits::SHORT.command)
    }

    /// The frame lengths that reach a card with `protocol`, as far as known. T=0 carries no extended APDU here, T=1 carries any in
    /// blocks. Of a reader that takes APDUs, its level and its message length count; a longer APDU may go in parts, as CCID
    /// defines. Whether the card takes it depends on its applet.
    pub(super) fn limits(&self, protocol: Option<Protocol>) -> Limits {
        let extended = match self.level() {
            ExchangeLevel::ShortApdu => false,
            ExchangeLevel::ExtendedApdu => protocol != Some(Protocol::T0),
            ExchangeLevel::Tpdu | ExchangeLevel::Character => protocol == Some(Protocol::T1),
        };
        let limits = match self.level() {
            ExchangeLevel::ExtendedApdu if self.takes_parts() => Limits::EXTENDED,
            ExchangeLevel::ExtendedApdu => Limits::extended_known_to(self.max_block()),
            ExchangeLevel::Tpdu | ExchangeLevel::Character if extended => Limits::EXTENDED,
            // T=0 sends no Le after data.
            ExchangeLevel::Tpdu | ExchangeLevel::Character => {
                unchained_limits(self.max_block().saturating_add(1))
            }
            ExchangeLevel::ShortApdu => unchained_limits(self.max_block()),
        };
        if extended && !self.quirks.short {
            limits
        } else {
            limits.short()
        }
    }

    /// Longest block.
    pub(super) fn max_block(&self) -> usize {
        self.class.max_message_length().saturating_sub(HEADER)
    }

    pub(super) const fn supports_protocol(&self, protocol: Protocol) -> bool {
        self.class.supports_protocol(protocol.number())
    }

    /// The voltages to try: automatic where the reader chooses, else the lowest first (ISO 7816-3, 6.2.4).
    pub(super) fn voltages(&self) -> Vec<Voltage> {
        let offered = self.class.voltages();
        if self.class.selects_voltage() || offered.is_empty() {
            return vec![Voltage::Automatic];
        }
        offered
    }

    /// Returns the clock for waiting times, in kHz. This is the slowest possible clock if the reader states an impossible one.
    pub(super) fn khz(&self) -> u32 {
        let said = self.class.default_clock_khz();
        if CLOCK_RANGE.contains(&said) {
            said
        } else {
            *CLOCK_RANGE.start()
        }
    }

    /// Returns the rates of the reader. A reader that does not change its rate itself, or whose clock is unknown, has only the
    /// default rate.
    pub(super) fn reach(&self) -> ReaderRates<'static> {
        let khz = self.class.default_clock_khz();
        let changes = self.class.changes_rates() && CLOCK_RANGE.contains(&khz);
        let (_, said) = self.class.data_rates();
        let most = said.min(self.quirks.max_bps.unwrap_or(u32::MAX));
        ReaderRates {
            khz,
            most: if changes { most } else { 0 },
            rates: &[],
        }
    }

    /// Returns the rates of a reader that only uses the default rate.
    pub(super) fn default_reach(&self) -> ReaderRates<'static> {
        ReaderRates {
            most: 0,
            ..self.reach()
        }
    }

    /// Returns the timeout for an action that usually takes up to `usual`.
    pub(super) fn scaled_timeout(&self, usual: Duration) -> Duration {
        let wanted = usual.saturating_mul(self.quirks.patience.unwrap_or(1));
        wanted.min(budget::MESSAGE)
    }

    /// The IFSD to request from a T=1 card. 32, without a request, where the reader requests it itself or the card must get no
    /// request. A whole block must fit in a message.
    pub(super) fn ifsd(&self, detection: ErrorDetection) -> u8 {
        if self.quirks.no_ifsd || self.class.sends_ifsd() {
            return DEFAULT_IFSD;
        }
        let most = self.quirks.ifsd.unwrap_or(MAX_INFORMATION);
        most.min(self.class.max_ifsd())
            .min(self.longest_information(detection))
            .max(1)
    }

    /// Returns the longest information field whose block fits in a message.
    pub(super) fn longest_information(&self, detection: ErrorDetection) -> u8 {
        let frame = PROLOGUE + detection.epilogue();
        let room = self.max_block().saturating_sub(frame);
        u8::try_from(room)
            .unwrap_or(MAX_INFORMATION)
            .clamp(1, MAX_INFORMATION)
    }
}

/// Frames of up to `most` bytes. Longer ones are not sent.
const fn unchained_limits(most: usize) -> Limits {
    Limits {
        unchained: most,
        ..Limits::extended_known_to(most)
    }
}

/// Returns whether a card that announces `voltages` works at `voltage`. A card that announces none works at any voltage at which
/// it sends an answer to reset.
pub(super) fn suits_voltage(voltages: Option<Voltages>, voltage: Voltage) -> bool {
    let Some(Voltages { v5, v3, v1_8 }) = voltages else {
        return true;
    };
    match voltage {
        Voltage::Automatic => true,
        Voltage::V5 => v5,
        Voltage::V3 => v3,
        Voltage::V18 => v1_8,
    }
}
