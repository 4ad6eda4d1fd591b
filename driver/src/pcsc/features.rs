//! Parses what a reader's driver reports about its features (PC/SC part 10, 2.2 to 2.6, version 2.02.09). The driver
//! responds to three SCardControl requests.
//!
//! ```text
//! CM_IOCTL_GET_FEATURE_REQUEST   tag | 04 | control code, big-endian       … as often as there are features
//! FEATURE_GET_TLV_PROPERTIES     tag | length | number, little-endian      … as often as there are properties
//! FEATURE_IFD_PIN_PROPERTIES     wLcdLayout | bEntryValidationCondition | bTimeOut2
//! ```
//!
//! Four rules hold for the bytes of a driver. A record that runs past the end makes the whole response invalid. A
//! record whose value has the wrong length for its tag is skipped. The first of two records with the same tag counts.
//! An unknown tag is kept.

use crate::ccid::pin_pad::{Digits, Operations};

/// How many characters of a firmware's name are kept.
const FIRMWARE: usize = 64;
/// The most data that a command of extended length can have (dwMaxAPDUDataSize).
const EXTENDED: u32 = 0x1_0000;

/// The tag of a feature (PC/SC part 10, 2.3). The tag may be unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feature(pub u8);

impl Feature {
    /// FEATURE_VERIFY_PIN_DIRECT.
    pub const VERIFY_PIN_DIRECT: Self = Self(0x06);
    /// FEATURE_MODIFY_PIN_DIRECT.
    pub const MODIFY_PIN_DIRECT: Self = Self(0x07);
    /// FEATURE_MCT_READER_DIRECT.
    pub const MCT_READER_DIRECT: Self = Self(0x08);
    /// FEATURE_IFD_PIN_PROPERTIES.
    pub const IFD_PIN_PROPERTIES: Self = Self(0x0A);
    /// FEATURE_GET_TLV_PROPERTIES.
    pub const GET_TLV_PROPERTIES: Self = Self(0x12);
    /// FEATURE_CCID_ESC_COMMAND.
    pub const CCID_ESC_COMMAND: Self = Self(0x13);
}

/// A malformed response of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// A record is longer than the bytes that are left.
    #[error("the record at byte {at} runs past the end of the response of {total} bytes")]
    Cut {
        /// The offset of the record.
        at: usize,
        /// The length of the response.
        total: usize,
    },
    /// A PIN_PROPERTIES_STRUCTURE does not have four bytes.
    #[error("the PIN properties have {0} bytes instead of 4")]
    Length(usize),
}

/// The features of a reader, with their control codes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(Vec<(Feature, u32)>);

impl Features {
    /// Parses the response to CM_IOCTL_GET_FEATURE_REQUEST.
    ///
    /// # Errors
    /// [`FeatureError::Cut`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FeatureError> {
        let codes = records(bytes)?.into_iter().filter_map(|(tag, value)| {
            let code = <[u8; 4]>::try_from(value).ok()?;
            Some((Feature(tag), u32::from_be_bytes(code)))
        });
        let mut features = Self::default();
        for (feature, code) in codes {
            if features.control_code(feature).is_none() {
                features.0.push((feature, code));
            }
        }
        Ok(features)
    }

    /// Returns the control code with which SCardControl requests `feature`, if the reader has that feature.
    #[must_use]
    pub fn control_code(&self, feature: Feature) -> Option<u32> {
        let known = self.0.iter().find(|(known, _)| *known == feature);
        known.map(|(_, code)| *code)
    }

    /// Returns all features in the order of the response.
    pub fn iter(&self) -> impl Iterator<Item = (Feature, u32)> + '_ {
        self.0.iter().copied()
    }

    /// Returns which operations the reader's PIN pad is reported to support. [`PinPad`](crate::ccid::pin_pad::PinPad)
    /// decides whether to trust it.
    #[must_use]
    pub fn pin_pad(&self) -> Operations {
        Operations {
            verify: self.control_code(Feature::VERIFY_PIN_DIRECT).is_some(),
            modify: self.control_code(Feature::MODIFY_PIN_DIRECT).is_some(),
        }
    }
}

/// The response to FEATURE_GET_TLV_PROPERTIES. A property is `None` if the driver does not report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// wLcdLayout: the number of lines in the high byte, the number of columns in the low byte.
    pub lcd_layout: Option<u16>,
    /// bEntryValidationCondition: the keys or limits that may end an entry.
    pub entry_validation: Option<u8>,
    /// bTimeOut2: whether the timeout after the first key is separate.
    pub timeout2: Option<u8>,
    /// bMinPINSize.
    pub min_pin_size: Option<u8>,
    /// bMaxPINSize.
    pub max_pin_size: Option<u8>,
    /// The printable ASCII characters of sFirmwareID.
    pub firmware: Option<String>,
    /// bPPDUSupport.
    pub ppdu_support: Option<u8>,
    /// dwMaxAPDUDataSize: the most data that an APDU may have, up to 65 536. 0 means short APDUs only. Values up to
    /// 256 are reserved and count as 0.
    pub max_apdu_data: Option<u32>,
    /// wIdVendor.
    pub vendor: Option<u16>,
    /// wIdProduct.
    pub product: Option<u16>,
    /// Unknown tags.
    pub unknown: Vec<u8>,
}

impl Properties {
    /// Parses the response to FEATURE_GET_TLV_PROPERTIES.
    ///
    /// # Errors
    /// [`FeatureError::Cut`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FeatureError> {
        let mut properties = Self::default();
        for (tag, value) in records(bytes)? {
            properties.set(tag, value);
        }
        Ok(properties)
    }

    fn set(&mut self, tag: u8, value: &[u8]) {
        match tag {
            0x01 => first(&mut self.lcd_layout, word(value)),
            0x02 => first(&mut self.entry_validation, byte(value)),
            0x03 => first(&mut self.timeout2, byte(value)),
            // wLcdMaxCharacters and wLcdMaxLines of older versions repeat wLcdLayout.
            0x04 | 0x05 => {}
            0x06 => first(&mut self.min_pin_size, byte(value)),
            0x07 => first(&mut self.max_pin_size, byte(value)),
            0x08 => first(&mut self.firmware, Some(printable(value))),
            0x09 => first(&mut self.ppdu_support, byte(value)),
            0x0A => first(&mut self.max_apdu_data, double_word(value).map(apdu_data)),
            0x0B => first(&mut self.vendor, word(value)),
            0x0C => first(&mut self.product, word(value)),
            unknown if !self.unknown.contains(&unknown) => self.unknown.push(unknown),
            _ => {}
        }
    }

    /// Returns whether the reader accepts extended APDUs. Returns `None` if the driver does not report it.
    #[must_use]
    pub fn takes_extended_apdus(&self) -> Option<bool> {
        self.max_apdu_data.map(|size| size > 0)
    }

    /// Returns how many digits the PIN pad accepts. Returns `None` if the driver does not report it, or reports an
    /// impossible range.
    #[must_use]
    pub fn digits(&self) -> Option<Digits> {
        let (min, max) = (self.min_pin_size?.max(1), self.max_pin_size?);
        (min <= max).then_some(Digits { min, max })
    }
}

/// The response to FEATURE_IFD_PIN_PROPERTIES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinProperties {
    /// wLcdLayout: the number of lines in the high byte, the number of columns in the low byte. 0 means no display.
    pub lcd_layout: u16,
    /// bEntryValidationCondition: the keys or limits that may end an entry.
    pub entry_validation: u8,
    /// bTimeOut2: whether the timeout after the first key is separate.
    pub timeout2: u8,
}

impl PinProperties {
    /// Parses a PIN_PROPERTIES_STRUCTURE.
    ///
    /// # Errors
    /// [`FeatureError::Length`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FeatureError> {
        let [low, high, entry_validation, timeout2] = *bytes else {
            return Err(FeatureError::Length(bytes.len()));
        };
        Ok(Self {
            lcd_layout: u16::from_le_bytes([low, high]),
            entry_validation,
            timeout2,
        })
    }
}

/// Splits the bytes into tags and values. Every byte must belong to a record.
fn records(bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, FeatureError> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let record = match rest {
            [tag, length, more @ ..] => more
                .split_at_checked(usize::from(*length))
                .map(|(value, after)| (*tag, value, after)),
            _ => None,
        };
        let (at, total) = (bytes.len() - rest.len(), bytes.len());
        let (tag, value, after) = record.ok_or(FeatureError::Cut { at, total })?;
        records.push((tag, value));
        rest = after;
    }
    Ok(records)
}

/// Sets `known` to `value` unless `known` has a value already.
fn first<T>(known: &mut Option<T>, value: Option<T>) {
    if known.is_none() {
        *known = value;
    }
}

fn byte(value: &[u8]) -> Option<u8> {
    <[u8; 1]>::try_from(value).ok().map(|[byte]| byte)
}

fn word(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_le_bytes)
}

fn double_word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_le_bytes)
}

/// Returns the size, with reserved values replaced by 0.
fn apdu_data(size: u32) -> u32 {
    match size {
        0..=256 => 0,
        _ => size.min(EXTENDED),
    }
}

/// Returns the printable characters, up to [`FIRMWARE`] of them.
fn printable(value: &[u8]) -> String {
    let printable = |byte: &&u8| byte.is_ascii_graphic() || **byte == b' ';
    let shown = value.iter().filter(printable).take(FIRMWARE);
    shown.map(|byte| char::from(*byte)).collect()
}

/// Parses arbitrary bytes as each of the three responses, for the fuzz target `part10_tlv`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    use std::fmt::Write as _;

    let features = Features::parse(bytes);
    let properties = Properties::parse(bytes);
    assert_eq!(
        features.is_ok(),
        properties.is_ok(),
        "both are made of records"
    );
    if let (Ok(features), Ok(properties)) = (features, properties) {
        assert!(features.0.len() * 6 <= bytes.len(), "six bytes a feature");
        for (feature, code) in features.iter() {
            assert_eq!(features.control_code(feature), Some(code), "each tag once");
        }
        let size = properties.max_apdu_data.unwrap_or(0);
        assert!(size == 0 || (257..=EXTENDED).contains(&size));
        let shown = properties
            .firmware
            .iter()
            .all(|name| name.len() <= FIRMWARE);
        assert!(shown, "a name that can be shown");
        assert!(
            properties
                .digits()
                .is_none_or(|digits| digits.min <= digits.max)
        );
    }
    let mut printed = String::new();
    let _ = write!(printed, "{:?}", PinProperties::parse(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The response of pcsc-lite's CCID driver for a reader with a PIN pad.
    const LIBCCID: [u8; 30] = [
        0x06, 0x04, 0x42, 0x33, 0x00, 0x06, // FEATURE_VERIFY_PIN_DIRECT
        0x07, 0x04, 0x42, 0x33, 0x00, 0x07, // FEATURE_MODIFY_PIN_DIRECT
        0x0A, 0x04, 0x42, 0x33, 0x00, 0x0A, // FEATURE_IFD_PIN_PROPERTIES
        0x12, 0x04, 0x42, 0x33, 0x00, 0x12, // FEATURE_GET_TLV_PROPERTIES
        0x20, 0x04, 0x42, 0x33, 0x00, 0x20, // FEATURE_EXECUTE_PACE
    ];

    #[test]
    fn control_codes_are_big_endian_and_unknown_tags_are_kept() {
        let features = Features::parse(&LIBCCID).unwrap();
        let code = features.control_code(Feature::VERIFY_PIN_DIRECT);
        assert_eq!(code, Some(0x4233_0006));
        assert_eq!(features.control_code(Feature(0x20)), Some(0x4233_0020));
        assert_eq!(features.control_code(Feature::MCT_READER_DIRECT), None);
        assert_eq!(features.iter().count(), 5);
        let (verify, modify) = (true, true);
        assert_eq!(features.pin_pad(), Operations { verify, modify });
    }

    #[test]
    fn reader_without_features_has_no_pin_pad() {
        let features = Features::parse(&[]).unwrap();
        assert_eq!(features.pin_pad(), Operations::default());
        let features = Features::parse(&LIBCCID[12..24]).unwrap();
        assert_eq!(features.pin_pad(), Operations::default());
    }

    #[test]
    fn truncated_feature_list_is_refused_whole() {
        let (at, total) = (24, 29);
        let cut = Err(FeatureError::Cut { at, total });
        assert_eq!(Features::parse(&LIBCCID[..29]), cut);
        let (at, total) = (0, 1);
        assert_eq!(
            Features::parse(&[0x06]),
            Err(FeatureError::Cut { at, total })
        );
        let lie = [0x06, 0xFF, 0x42, 0x33, 0x00, 0x06];
        let (at, total) = (0, 6);
        let cut = FeatureError::Cut { at, total };
        assert_eq!(Features::parse(&lie), Err(cut));
        assert_eq!(Properties::parse(&lie), Err(cut));
    }

    #[test]
    fn feature_code_of_wrong_length_is_ignored_and_the_first_duplicate_counts() {
        let bytes = [
            0x06, 0x02, 0x00, 0x06, // two bytes
            0x07, 0x04, 0x00, 0x00, 0x00, 0x01, //
            0x07, 0x04, 0x00, 0x00, 0x00, 0x02, // again
            0x08, 0x00, // none
        ];
        let features = Features::parse(&bytes).unwrap();
        let all: Vec<_> = features.iter().collect();
        assert_eq!(all, [(Feature::MODIFY_PIN_DIRECT, 1)]);
        // A record that is too short does not shadow a later one.
        let features = Features::parse(&[&bytes[..4], &LIBCCID[..6]].concat()).unwrap();
        assert!(features.pin_pad().verify);
    }

    #[test]
    fn properties_are_little_endian() {
        let bytes = [
            &[0x01, 0x02, 0x10, 0x02][..], // wLcdLayout: 2 lines of 16
            &[0x02, 0x01, 0x07],           // bEntryValidationCondition
            &[0x03, 0x01, 0x00],           // bTimeOut2
            &[0x06, 0x01, 0x04],           // bMinPINSize
            &[0x07, 0x01, 0x08],           // bMaxPINSize
            &[0x08, 0x05, b'1', b'.', b'0', 0x00, 0x1B],
            &[0x09, 0x01, 0x01],                   // bPPDUSupport
            &[0x0A, 0x04, 0x00, 0x00, 0x01, 0x00], // dwMaxAPDUDataSize 10000
            &[0x0B, 0x02, 0xE6, 0x08],             // wIdVendor 08E6
            &[0x0C, 0x02, 0x78, 0x34],             // wIdProduct 3478
            &[0x7F, 0x01, 0x00],
        ]
        .concat();
        let properties = Properties::parse(&bytes).unwrap();
        let expected = Properties {
            lcd_layout: Some(0x0210),
            entry_validation: Some(7),
            timeout2: Some(0),
            min_pin_size: Some(4),
            max_pin_size: Some(8),
            firmware: Some("1.0".to_owned()),
            ppdu_support: Some(1),
            max_apdu_data: Some(0x1_0000),
            vendor: Some(0x08E6),
            product: Some(0x3478),
            unknown: vec![0x7F],
        };
        assert_eq!(properties, expected);
        assert_eq!(properties.digits(), Some(Digits { min: 4, max: 8 }));
    }

    #[test]
    fn extended_apdus_are_used_only_where_the_driver_reports_them() {
        let extended = |size: u32| {
            let bytes = [&[0x0A, 0x04][..], &size.to_le_bytes()].concat();
            let properties = Properties::parse(&bytes).unwrap();
            (properties.takes_extended_apdus(), properties.max_apdu_data)
        };
        assert_eq!(extended(0), (Some(false), Some(0)));
        assert_eq!(extended(256), (Some(false), Some(0)), "reserved");
        assert_eq!(extended(257), (Some(true), Some(257)));
        assert_eq!(extended(0x1_0000), (Some(true), Some(0x1_0000)));
        assert_eq!(extended(u32::MAX), (Some(true), Some(0x1_0000)));
        let silent = Properties::parse(&[]).unwrap();
        assert_eq!(silent.takes_extended_apdus(), None);
        let short = Properties::parse(&[0x0A, 0x02, 0x00, 0x01]).unwrap();
        assert_eq!(short.takes_extended_apdus(), None, "two bytes");
    }

    #[test]
    fn impossible_pin_sizes_are_ignored() {
        let digits = |min, max| {
            let bytes = [0x06, 0x01, min, 0x07, 0x01, max];
            Properties::parse(&bytes).unwrap().digits()
        };
        assert_eq!(digits(0, 0), None);
        assert_eq!(digits(8, 4), None);
        assert_eq!(digits(0, 8), Some(Digits { min: 1, max: 8 }));
    }

    #[test]
    fn pin_properties_have_four_bytes() {
        let properties = PinProperties::parse(&[0x10, 0x02, 0x02, 0x00]);
        let expected = PinProperties {
            lcd_layout: 0x0210,
            entry_validation: 2,
            timeout2: 0,
        };
        assert_eq!(properties, Ok(expected));
        for length in [0, 3, 5, 8] {
            let bytes = vec![0; length];
            let refused = Err(FeatureError::Length(length));
            assert_eq!(PinProperties::parse(&bytes), refused);
        }
    }
}
