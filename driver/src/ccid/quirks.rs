//! Quirks of readers that no descriptor reveals. The table is `udev/readers.txt`, from which the udev rules are
//! generated too.

use std::sync::OnceLock;

use super::pin_pad::PadQuirks;

/// The table, as it is in the repository.
const TABLE: &str = include_str!("../../../udev/readers.txt");

/// A model of a USB device: idVendor, idProduct and bcdDevice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsbModel {
    /// idVendor.
    pub vendor: u16,
    /// idProduct.
    pub product: u16,
    /// bcdDevice, the firmware's release.
    pub release: u16,
}

/// How a reader differs from its descriptor. The default is a reader without differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// The device is a USB token, whose card cannot be removed.
    pub card_fixed: bool,
    /// Its interface has the vendor class FF but is a CCID interface.
    pub vendor_class: bool,
    /// It fails after autosuspend.
    pub awake: bool,
    /// It deadlocks when two of its interfaces process a command at the same time.
    pub one_at_a_time: bool,
    /// It accepts APDUs in parts, whatever exchange level it announces.
    pub chains: bool,
    /// It accepts no extended APDU, whatever exchange level it announces.
    pub short: bool,
    /// Its PIN pad may be used: the PIN reaches only the card.
    pub pin_pad: bool,
    /// Its PIN pad must not be used.
    pub no_pin_pad: bool,
    /// How its PIN pad differs from the standard.
    pub pad: PadQuirks,
    /// IFSD must not be negotiated.
    pub no_ifsd: bool,
    /// The longest block that it accepts.
    pub ifsd: Option<u8>,
    /// The fastest data rate that works, in bit/s.
    pub max_bps: Option<u32>,
    /// The factor by which its timeouts are multiplied.
    pub patience: Option<u32>,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) vendor: u16,
    pub(super) product: u16,
    releases: std::ops::RangeInclusive<u16>,
    pub(super) quirks: Quirks,
    pub(super) name: String,
}

impl Row {
    fn is_of(&self, model: UsbModel) -> bool {
        (self.vendor, self.product) == (model.vendor, model.product)
            && self.releases.contains(&model.release)
    }
}

/// Returns the quirks of a model. The first line that matches counts.
#[must_use]
pub fn for_model(model: UsbModel) -> Quirks {
    let row = rows().iter().find(|row| row.is_of(model));
    row.map_or_else(Quirks::default, |row| row.quirks)
}

/// Returns the rows of the table in order. Malformed lines are skipped; a test ensures that there are none.
pub(super) fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    ROWS.get_or_init(|| lines(TABLE).filter_map(|line| parse(line).ok()).collect())
}

fn lines(table: &str) -> impl Iterator<Item = &str> {
    let is_row = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
    table.lines().filter(is_row)
}

/// Parses `vendor:product [first-last] words # name`.
fn parse(line: &str) -> Result<Row, String> {
    let (fields, name) = line.split_once('#').ok_or("no name")?;
    let mut words = fields.split_whitespace().peekable();
    let model = words.next().ok_or("no model")?;
    let (vendor, product) = model.split_once(':').ok_or("no product")?;
    let releases = match words.peek().and_then(|word| releases(word)) {
        Some(releases) => {
            words.next();
            releases
        }
        None => 0..=u16::MAX,
    };
    let mut quirks = Quirks::default();
    for word in words {
        set(&mut quirks, word)?;
    }
    if quirks == Quirks::default() {
        return Err("no words".to_owned());
    }
    if quirks.pin_pad && quirks.no_pin_pad {
        return Err("both pin-pad and no-pin-pad".to_owned());
    }
    Ok(Row {
        vendor: hex(vendor)?,
        product: hex(product)?,
        releases,
        quirks,
        name: name.trim().to_owned(),
    })
}

fn releases(word: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = word.split_once('-')?;
    Some(hex(first).ok()?..=hex(last).ok()?)
}

fn hex(digits: &str) -> Result<u16, String> {
    match u16::from_str_radix(digits, 16) {
        Ok(number) if digits.len() == 4 => Ok(number),
        _ => Err(format!("{digits}: four hexadecimal digits expected")),
    }
}

fn set(quirks: &mut Quirks, word: &str) -> Result<(), String> {
    let number = |digits: &str| {
        let number = digits.parse::<u32>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{word}: a number above 0 expected"))
    };
    match word.split_once('=') {
        None => match word {
            "card-fixed" => quirks.card_fixed = true,
            "vendor-class" => quirks.vendor_class = true,
            "awake" => quirks.awake = true,
            "one-at-a-time" => quirks.one_at_a_time = true,
            "chains" => quirks.chains = true,
            "short" => quirks.short = true,
            "pin-pad" => quirks.pin_pad = true,
            "no-pin-pad" => quirks.no_pin_pad = true,
            "no-ifsd" => quirks.no_ifsd = true,
            _ => return pad_word(quirks, word),
        },
        Some(("ifsd", digits)) => {
            let ifsd = u8::try_from(number(digits)?).map_err(|_| format!("{word}: above 254"))?;
            quirks.ifsd = Some(ifsd.min(254));
        }
        Some(("max-bps", digits)) => quirks.max_bps = Some(number(digits)?),
        Some(("patience", digits)) => quirks.patience = Some(number(digits)?),
        Some(_) => return pad_word(quirks, word),
    }
    Ok(())
}

fn pad_word(quirks: &mut Quirks, word: &str) -> Result<(), String> {
    let known = quirks.pad.set(word);
    known.ok_or_else(|| format!("{word}: unknown word or malformed range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn model(vendor: u16, product: u16, release: u16) -> UsbModel {
        UsbModel {
            vendor,
            product,
            release,
        }
    }

    #[test]
    fn every_line_of_the_quirk_table_is_parsed() {
        for line in lines(TABLE) {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        assert!(rows().len() > 40, "{} rows", rows().len());
    }

    #[test]
    fn no_model_is_listed_twice() {
        for (number, row) in rows().iter().enumerate() {
            let again = rows().iter().skip(number + 1).find(|other| {
                (other.vendor, other.product) == (row.vendor, row.product)
                    && other.releases.contains(row.releases.start())
            });
            assert_eq!(again, None, "{:04x}:{:04x}", row.vendor, row.product);
        }
    }

    #[test]
    fn unlisted_reader_has_no_quirks() {
        assert_eq!(for_model(model(0xFFFF, 0xFFFF, 0x0100)), Quirks::default());
    }

    #[test]
    fn quirks_of_listed_tokens_and_readers_are_found() {
        assert!(for_model(model(0x1050, 0x0407, 0x0543)).card_fixed);
        assert!(for_model(model(0x04E6, 0xE003, 0x0504)).vendor_class);
        assert_eq!(
            for_model(model(0x058F, 0x9540, 0x0120)).max_bps,
            Some(200_000)
        );
        assert_eq!(for_model(model(0x072F, 0x2200, 0x0207)).patience, Some(10));
        assert!(for_model(model(0x076B, 0x5422, 0x0100)).one_at_a_time);
    }

    #[test]
    fn quirk_line_may_name_a_firmware_range() {
        let row = parse("04e6:e001 0100-0524 ifsd=48 no-pin-pad  # SCR331, old").unwrap();
        assert_eq!(row.quirks.ifsd, Some(48));
        assert_eq!(row.name, "SCR331, old");
        assert!(row.is_of(model(0x04E6, 0xE001, 0x0524)));
        assert!(!row.is_of(model(0x04E6, 0xE001, 0x0525)));
        assert!(!row.is_of(model(0x04E6, 0xE003, 0x0524)));
    }

    #[test]
    fn malformed_quirk_lines_are_refused() {
        for line in [
            "1050:0407 card-fixed",
            "1050 card-fixed # no product",
            "1050:407 card-fixed # three digits",
            "1050:0407 # no words",
            "1050:0407 card-fixt # misspelt",
            "1050:0407 ifsd=0 # nothing",
            "1050:0407 ifsd=many # no number",
            "1050:0407 ifsd=300 # too many",
            "1050:0407 colour=red # unknown",
            "08e6:3478 pad-digits=8-4 # upside down",
            "08e6:3478 pin-pad no-pin-pad # both",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
