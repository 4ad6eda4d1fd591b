//! Parses a reader's class descriptor (CCID 1.1, 5.1), and corrects values that are impossible.

use std::fmt;

use super::message::{HEADER, Voltage};

/// The length of the descriptor. Further bytes are ignored.
pub const LENGTH: usize = 54;
/// bDescriptorType of the functional descriptor.
pub const TYPE: u8 = 0x21;

/// The assumed maximum message length of a reader that states an impossible one: a short APDU and its header.
const USUAL_MESSAGE: usize = HEADER + 261;
/// The longest message of any use: an extended APDU with both length fields, and its header.
const LONGEST_MESSAGE: usize = HEADER + 65_544;
/// The IFSD of a reader that states none (ISO 7816-3, 11.4.2).
const USUAL_IFSD: u8 = 32;

/// The unit in which data is exchanged with the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeLevel {
    /// Characters, as the card transmits them.
    Character,
    /// TPDUs: the blocks of T=1, the commands of T=0.
    Tpdu,
    /// APDUs with short length fields.
    ShortApdu,
    /// APDUs with short or extended length fields.
    ExtendedApdu,
}

/// Functions that the reader performs automatically (dwFeatures).
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

/// A malformed class descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// It has fewer than 54 bytes, or states a length below 54.
    #[error("the class descriptor has {0} bytes instead of {LENGTH}")]
    Length(usize),
    /// It is another descriptor.
    #[error("the descriptor has type {0:02X} instead of {TYPE:02X}")]
    Type(u8),
}

/// A reader's class descriptor, with impossible values corrected.
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
    /// Parses a descriptor. Ignores bytes after the first 54.
    ///
    /// # Errors
    /// [`DescriptorError`]. Impossible values are no error. They are corrected and listed in
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

    /// Returns the descriptor of a token with which the driver itself exchanges T=0 steps. Such a token accepts whole
    /// short APDUs from the upper layers, whatever level its descriptor states.
    #[must_use]
    pub(super) fn given_short_apdus(self) -> Self {
        Self {
            level: ExchangeLevel::ShortApdu,
            max_message: self.max_message.max(USUAL_MESSAGE),
            ..self
        }
    }

    /// Returns the number of slots, 1 to 255.
    #[must_use]
    pub const fn slots(&self) -> u8 {
        self.slots
    }

    /// Returns how many slots may process a command at the same time.
    #[must_use]
    pub const fn busy_slots(&self) -> u8 {
        self.busy_slots
    }

    /// Returns the exchange level.
    #[must_use]
    pub const fn exchange_level(&self) -> ExchangeLevel {
        self.level
    }

    /// Returns the maximum message length in bytes, including the header of ten bytes.
    #[must_use]
    pub const fn max_message_length(&self) -> usize {
        self.max_message
    }

    /// Returns the longest information field of a T=1 block to the reader, 1 to 254.
    #[must_use]
    pub const fn max_ifsd(&self) -> u8 {
        self.max_ifsd
    }

    /// Returns whether the reader supports T=`protocol`, which is 0 or 1.
    #[must_use]
    pub const fn supports_protocol(&self, protocol: u8) -> bool {
        protocol < 2 && self.protocols & (1 << protocol) != 0
    }

    /// Returns the supported voltages, the lowest first (ISO 7816-3, 6.2.4).
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

    /// Returns whether the reader selects the voltage automatically.
    #[must_use]
    pub const fn selects_voltage(&self) -> bool {
        self.has(feature::AUTO_VOLTAGE) || self.has(feature::AUTO_ACTIVATION)
    }

    /// Returns whether the reader activates an inserted card automatically.
    #[must_use]
    pub const fn activates_automatically(&self) -> bool {
        self.has(feature::AUTO_ACTIVATION)
    }

    /// Returns whether the reader sets its parameters automatically from the answer to reset.
    #[must_use]
    pub const fn sets_parameters(&self) -> bool {
        self.has(feature::AUTO_PARAMETERS)
    }

    /// Returns whether the reader negotiates with the card and sets all parameters automatically. The driver then
    /// sends neither PPS nor SetParameters.
    #[must_use]
    pub const fn negotiates_parameters(&self) -> bool {
        self.has(feature::AUTO_NEGOTIATION)
    }

    /// Returns whether the reader sends the PPS, with the parameters from the driver.
    #[must_use]
    pub const fn sends_pps(&self) -> bool {
        self.has(feature::AUTO_PPS) || self.negotiates_parameters()
    }

    /// Returns whether the reader sends its IFSD to a T=1 card automatically.
    #[must_use]
    pub const fn sends_ifsd(&self) -> bool {
        self.has(feature::AUTO_IFSD)
    }

    /// Returns whether the reader changes clock and data rate automatically.
    #[must_use]
    pub const fn changes_rates(&self) -> bool {
        self.has(feature::AUTO_CLOCK) && self.has(feature::AUTO_BAUD)
    }

    /// Returns the default clock of the card, in kHz.
    #[must_use]
    pub const fn default_clock_khz(&self) -> u32 {
        self.default_clock_khz
    }

    /// Returns the default and the maximum data rate, in bit/s.
    #[must_use]
    pub const fn data_rates(&self) -> (u32, u32) {
        (self.data_rate_bps, self.max_data_rate_bps)
    }

    /// Returns whether the reader's PIN pad can verify a PIN, and whether it can change a PIN.
    #[must_use]
    pub const fn pin_pad(&self) -> (bool, bool) {
        (self.pin_support & 1 != 0, self.pin_support & 2 != 0)
    }

    /// Returns the lines and columns of the display. Both are 0 without a display.
    #[must_use]
    pub const fn display(&self) -> (u8, u8) {
        let [columns, lines] = self.lcd.to_le_bytes();
        (lines, columns)
    }

    /// Returns the corrections that were made.
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

fn max_message(stated: u32, corrections: &mut Vec<&'static str>) -> usize {
    let stated = usize::try_from(stated).unwrap_or(usize::MAX);
    if stated <= HEADER {
        corrections.push("messages too short for a byte of data; 271 bytes assumed");
        return USUAL_MESSAGE;
    }
    if stated > LONGEST_MESSAGE {
        corrections.push("messages longer than any APDU; 65554 bytes are enough");
    }
    stated.min(LONGEST_MESSAGE)
}

fn max_ifsd(stated: u32, features: u32, corrections: &mut Vec<&'static str>) -> u8 {
    match u8::try_from(stated) {
        Ok(0) => USUAL_IFSD,
        Ok(255) => 254,
        Ok(ifsd) => ifsd,
        Err(_) => {
            // A reader of the APDU levels is never sent a T=1 block.
            if features & (feature::SHORT_APDU | feature::EXTENDED_APDU) == 0 {
                corrections.push("an IFSD above 254; 254 is used");
            }
            254
        }
    }
}

fn protocols(stated: u32, corrections: &mut Vec<&'static str>) -> u32 {
    if stated & 0x03 != 0 {
        return stated & 0x03;
    }
    corrections.push("neither T=0 nor T=1; both are assumed");
    0x03
}

fn busy_slots(stated: u8, slots: u8, corrections: &mut Vec<&'static str>) -> u8 {
    if stated == 0 {
        corrections.push("no slot may be busy; one is assumed");
    }
    stated.clamp(1, slots)
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

/// Parses arbitrary bytes, for the fuzz target `ccid_descriptor`.
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
