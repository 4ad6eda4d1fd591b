//! What a reader says of itself: the class descriptor (CCID 1.1, 5.1), with the values that cannot be true put right.

use std::fmt;

use super::message::{HEADER, Voltage};

/// Length of the descriptor. What follows in one that is longer is not for us.
pub const LENGTH: usize = 54;
/// bDescriptorType of the functional descriptor.
pub const TYPE: u8 = 0x21;

/// Messages of a reader that does not say how long they may be: a short APDU and its header.
const USUAL_MESSAGE: usize = HEADER + 261;
/// Longest message there is a use for: an extended APDU, both length fields, and its header.
const LONGEST_MESSAGE: usize = HEADER + 65_544;
/// IFSD where none is given (ISO 7816-3, 11.4.2).
const USUAL_IFSD: u8 = 32;

/// What a block to and from the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeLevel {
    /// Characters, as they go over the card's line.
    Character,
    /// TPDUs: the blocks of T=1, the commands of T=0.
    Tpdu,
    /// APDUs with short length fields.
    ShortApdu,
    /// APDUs with short or extended length fields.
    ExtendedApdu,
}

/// What the reader does by itself (dwFeatures).
mod feature {
    pub(super) const AUTO_PARAMETERS: u32 = 0x0000_0002;
    pub(super) const AUTO_ACTIVATION: u32 = 0x0000_0004;
    pub(super) const AUTO_VOLTAGE: u32 = 0x0000_0008;
    pub(super) const AUTO_CLOCK: u32 = 0x0000_0010;
    pub(super) const AUTO_BAUD: u32 = 0x0000_0020;
    pub(super) const AUTO_NEGOTIATION: u32 = 0x0000_0040;
    pub(super) const AUTO_PPS: u32 = 0x0000_0080;
    pub(super) const AUTO_IFSD: u32 = 0x0000_0400;
    pub(super) const TPDU: u32 = 0x0001_0000;
    pub(super) const SHORT_APDU: u32 = 0x0002_0000;
    pub(super) const EXTENDED_APDU: u32 = 0x0004_0000;
    pub(super) const LEVELS: u32 = TPDU | SHORT_APDU | EXTENDED_APDU;
}

/// Bytes that are no class descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Fewer than 54 bytes, or fewer than its own count.
    #[error("a class descriptor of {0} bytes; {LENGTH} expected")]
    Length(usize),
    /// Another descriptor.
    #[error("a descriptor of type {0:02X}; {TYPE:02X} expected")]
    Type(u8),
}

/// A reader's description of itself, as far as it can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassDescriptor {
    slots: u8,
    busy_slots: u8,
    voltage_support: u8,
    protocols: u32,
    default_clock_khz: u32,
    data_rate_bps: u32,
    max_data_rate_bps: u32,
    max_ifsd: u8,
    features: u32,
    level: ExchangeLevel,
    max_message: usize,
    pin_support: u8,
    lcd: u16,
    corrections: Vec<&'static str>,
}

impl ClassDescriptor {
    /// Reads a descriptor; bytes after its 54 are left alone.
    ///
    /// # Errors
    /// [`DescriptorError`]. Values that cannot be true are put right and named in
    /// [`ClassDescriptor::corrections`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let fields: &[u8; LENGTH] = bytes
            .first_chunk()
            .ok_or(DescriptorError::Length(bytes.len()))?;
        let byte = |at: usize| fields.get(at).copied().unwrap_or(0);
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|more| byte(at + more)));
        if byte(1) != TYPE {
            return Err(DescriptorError::Type(byte(1)));
        }
        if usize::from(byte(0)) < LENGTH {
            return Err(DescriptorError::Length(usize::from(byte(0))));
        }
        let mut corrections = Vec::new();
        Ok(Self {
            slots: byte(4).saturating_add(1),
            busy_slots: busy_slots(byte(53), byte(4).saturating_add(1), &mut corrections),
            voltage_support: byte(5) & 0x07,
            protocols: protocols(word(6), &mut corrections),
            default_clock_khz: word(10),
            data_rate_bps: word(19),
            max_data_rate_bps: word(23),
            max_ifsd: max_ifsd(word(28), word(40), &mut corrections),
            features: word(40),
            level: level(word(40), &mut corrections),
            max_message: max_message(word(44), &mut corrections),
            pin_support: byte(52) & 0x03,
            lcd: u16::from_le_bytes([byte(50), byte(51)]),
            corrections,
        })
    }

    /// The description of a token whose driver speaks T=0 with it, step by step: it is given short APDUs, whole ones,
    /// whatever level it says.
    #[must_use]
    pub(super) fn given_short_apdus(self) -> Self {
        Self {
            level: ExchangeLevel::ShortApdu,
            max_message: self.max_message.max(USUAL_MESSAGE),
            ..self
        }
    }

    /// How many cards fit in, 1 to 255.
    #[must_use]
    pub const fn slots(&self) -> u8 {
        self.slots
    }

    /// How many slots may be at work at the same time.
    #[must_use]
    pub const fn busy_slots(&self) -> u8 {
        self.busy_slots
    }

    /// What a block is.
    #[must_use]
    pub const fn exchange_level(&self) -> ExchangeLevel {
        self.level
    }

    /// Longest message in bytes, its header of ten included.
    #[must_use]
    pub const fn max_message_length(&self) -> usize {
        self.max_message
    }

    /// Longest information field of a T=1 block to the reader, 1 to 254.
    #[must_use]
    pub const fn max_ifsd(&self) -> u8 {
        self.max_ifsd
    }

    /// Whether it speaks T=0 or T=1 with the card.
    #[must_use]
    pub const fn supports_protocol(&self, protocol: u8) -> bool {
        protocol < 2 && self.protocols & (1 << protocol) != 0
    }

    /// The voltages it says it has, the lowest first (ISO 7816-3, 6.2.4).
    #[must_use]
    pub fn voltages(&self) -> Vec<Voltage> {
        let all = [
            (0x04, Voltage::V18),
            (0x02, Voltage::V3),
            (0x01, Voltage::V5),
        ];
        let offered = all
            .iter()
            .filter(|(bit, _)| self.voltage_support & bit != 0);
        offered.map(|(_, voltage)| *voltage).collect()
    }

    /// Whether it chooses the voltage itself.
    #[must_use]
    pub const fn selects_voltage(&self) -> bool {
        self.has(feature::AUTO_VOLTAGE) || self.has(feature::AUTO_ACTIVATION)
    }

    /// Whether it powers a card that is inserted.
    #[must_use]
    pub const fn activates_automatically(&self) -> bool {
        self.has(feature::AUTO_ACTIVATION)
    }

    /// Whether it sets its parameters from the answer to reset.
    #[must_use]
    pub const fn sets_parameters(&self) -> bool {
        self.has(feature::AUTO_PARAMETERS)
    }

    /// Whether it negotiates with the card and sets all parameters itself: neither PPS nor SetParameters is for us.
    #[must_use]
    pub const fn negotiates_parameters(&self) -> bool {
        self.has(feature::AUTO_NEGOTIATION)
    }

    /// Whether it sends the PPS itself, with the parameters it was given.
    #[must_use]
    pub const fn sends_pps(&self) -> bool {
        self.has(feature::AUTO_PPS) || self.negotiates_parameters()
    }

    /// Whether it tells a T=1 card its IFSD itself.
    #[must_use]
    pub const fn sends_ifsd(&self) -> bool {
        self.has(feature::AUTO_IFSD)
    }

    /// Whether it changes clock and data rate itself.
    #[must_use]
    pub const fn changes_rates(&self) -> bool {
        self.has(feature::AUTO_CLOCK) && self.has(feature::AUTO_BAUD)
    }

    /// The clock the card gets, in kHz.
    #[must_use]
    pub const fn default_clock_khz(&self) -> u32 {
        self.default_clock_khz
    }

    /// Default and highest data rate, in bit/s.
    #[must_use]
    pub const fn data_rates(&self) -> (u32, u32) {
        (self.data_rate_bps, self.max_data_rate_bps)
    }

    /// Whether a PIN can be verified, and changed, at the reader.
    #[must_use]
    pub const fn pin_pad(&self) -> (bool, bool) {
        (self.pin_support & 1 != 0, self.pin_support & 2 != 0)
    }

    /// Lines and columns of its display; 0 and 0 where it has none.
    #[must_use]
    pub const fn display(&self) -> (u8, u8) {
        let [columns, lines] = self.lcd.to_le_bytes();
        (lines, columns)
    }

    /// What was not as it should be.
    #[must_use]
    pub fn corrections(&self) -> &[&'static str] {
        &self.corrections
    }

    const fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }
}

fn level(features: u32, corrections: &mut Vec<&'static str>) -> ExchangeLevel {
    let levels = features & feature::LEVELS;
    if levels.count_ones() > 1 {
        corrections.push("several exchange levels; the highest is used");
    }
    match levels {
        0 => ExchangeLevel::Character,
        _ if levels & feature::EXTENDED_APDU != 0 => ExchangeLevel::ExtendedApdu,
        _ if levels & feature::SHORT_APDU != 0 => ExchangeLevel::ShortApdu,
        _ => ExchangeLevel::Tpdu,
    }
}

fn max_message(said: u32, corrections: &mut Vec<&'static str>) -> usize {
    let said = usize::try_from(said).unwrap_or(usize::MAX);
    if said <= HEADER {
        corrections.push("messages too short for a byte of data; 271 bytes assumed");
        return USUAL_MESSAGE;
    }
    if said > LONGEST_MESSAGE {
        corrections.push("messages longer than any APDU; 65554 bytes are enough");
    }
    said.min(LONGEST_MESSAGE)
}

fn max_ifsd(said: u32, features: u32, corrections: &mut Vec<&'static str>) -> u8 {
    match u8::try_from(said) {
        Ok(0) => USUAL_IFSD,
        Ok(255) => 254,
        Ok(ifsd) => ifsd,
        Err(_) => {
            // To a reader that takes APDUs no T=1 block is ever sent.
            if features & (feature::SHORT_APDU | feature::EXTENDED_APDU) == 0 {
                corrections.push("an IFSD above 254; 254 is used");
            }
            254
        }
    }
}

fn protocols(said: u32, corrections: &mut Vec<&'static str>) -> u32 {
    if said & 0x03 != 0 {
        return said & 0x03;
    }
    corrections.push("neither T=0 nor T=1; both are assumed");
    0x03
}

fn busy_slots(said: u8, slots: u8, corrections: &mut Vec<&'static str>) -> u8 {
    if said == 0 {
        corrections.push("no slot may be busy; one is assumed");
    }
    said.clamp(1, slots)
}

impl fmt::Display for ClassDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            ExchangeLevel::Character => "characters",
            ExchangeLevel::Tpdu => "TPDU",
            ExchangeLevel::ShortApdu => "short APDU",
            ExchangeLevel::ExtendedApdu => "extended APDU",
        };
        let protocols = match (self.supports_protocol(0), self.supports_protocol(1)) {
            (true, false) => "T=0",
            (false, true) => "T=1",
            _ => "T=0 and T=1",
        };
        write!(
            f,
            "{level}, {protocols}, messages of {} bytes, IFSD {}, {} of {} slots at a time",
            self.max_message, self.max_ifsd, self.busy_slots, self.slots
        )?;
        match self.pin_pad() {
            (false, false) => {}
            (verify, modify) => {
                let can = [(verify, "verify"), (modify, "change")];
                let can = can.iter().filter(|(has, _)| *has).map(|(_, what)| *what);
                write!(f, ", PIN pad ({})", can.collect::<Vec<_>>().join(", "))?;
            }
        }
        self.corrections
            .iter()
            .try_for_each(|correction| write!(f, "; {correction}"))
    }
}

/// Reads arbitrary bytes; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(class) = ClassDescriptor::parse(bytes) {
        assert!(class.slots() >= 1, "a reader has a slot");
        assert!((1..=class.slots()).contains(&class.busy_slots()));
        assert!((1..=254).contains(&class.max_ifsd()));
        assert!((HEADER + 1..=LONGEST_MESSAGE).contains(&class.max_message_length()));
        assert!(class.supports_protocol(0) || class.supports_protocol(1));
        assert!(!class.to_string().is_empty());
    }
}

#[cfg(test)]
mod tests;
