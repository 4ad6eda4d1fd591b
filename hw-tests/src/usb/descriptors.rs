//! The USB descriptors of a virtual reader.

#![allow(clippy::panic, reason = "a harness fails loudly")]

/// Endpoints, without their direction bit.
pub(super) const BULK_OUT: u8 = 1;
pub(super) const BULK_IN: u8 = 2;
pub(super) const INTERRUPT: u8 = 3;
/// Selects the model of every USB fixture: `token`, which is the default, or `reader`.
const MODEL: &str = "CLAVIGER_CARD_FIXTURE_MODEL";

/// The model of a virtual reader.
#[derive(Clone, Debug)]
pub struct Model {
    /// idVendor and idProduct. libccid supports only those that it lists.
    pub product: (u16, u16),
    /// The product string.
    pub name: String,
    /// Whether the reader has an interrupt endpoint, which reports its cards.
    pub interrupt: bool,
}

impl Model {
    /// The model that the environment selects.
    pub(crate) fn of_environment() -> Self {
        let model = std::env::var(MODEL).unwrap_or_else(|_| "token".to_owned());
        match model.as_str() {
            "token" => Self::token("virtual reader"),
            "reader" => Self::reader("virtual reader"),
            other => panic!("{MODEL}={other}: must be token or reader"),
        }
    }

    /// A token whose card cannot be removed, as in the tables of claviger and libccid: a Nitrokey 3.
    #[must_use]
    pub fn token(name: &str) -> Self {
        Self {
            product: (0x20A0, 0x42B2),
            name: name.to_owned(),
            interrupt: true,
        }
    }

    /// A reader with removable cards, with the numbers of a Gemalto PC Twin.
    #[must_use]
    pub fn reader(name: &str) -> Self {
        Self {
            product: (0x08E6, 0x3437),
            name: name.to_owned(),
            interrupt: true,
        }
    }

    pub(super) fn device(&self) -> Vec<u8> {
        let mut bytes = vec![18, 1, 0x00, 0x02, 0, 0, 0, 64];
        bytes.extend(self.product.0.to_le_bytes());
        bytes.extend(self.product.1.to_le_bytes());
        bytes.extend([0x00, 0x01, 1, 2, 3, 1]);
        bytes
    }

    pub(super) fn configuration(&self) -> Vec<u8> {
        let mut rest = vec![
            9,
            4,
            0,
            0,
            if self.interrupt { 3 } else { 2 },
            0x0B,
            0,
            0,
            0,
        ];
        rest.extend(class());
        rest.extend([7, 5, BULK_OUT, 2, 64, 0, 0]);
        rest.extend([7, 5, BULK_IN | 0x80, 2, 64, 0, 0]);
        if self.interrupt {
            rest.extend([7, 5, INTERRUPT | 0x80, 3, 8, 0, 16]);
        }
        let length = u16::try_from(9 + rest.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![9, 2];
        bytes.extend(length.to_le_bytes());
        bytes.extend([1, 1, 0, 0xC0, 50]);
        bytes.extend(rest);
        bytes
    }

    /// The string descriptor `index`. Number 0 is the list of languages.
    pub(super) fn string(&self, index: u8) -> Vec<u8> {
        let text = match index {
            0 => return vec![4, 3, 9, 4],
            1 => "Claviger",
            2 => &self.name,
            _ => "0001",
        };
        let mut bytes = vec![0, 3];
        bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        if let Some(first) = bytes.first_mut() {
            *first = length;
        }
        bytes
    }
}

/// The CCID class descriptor: one slot, all voltages, APDU level, messages of 3072 bytes, automatic parameters and speed.
fn class() -> Vec<u8> {
    let mut bytes = vec![54, 0x21, 0x10, 0x01, 0, 7];
    for number in [3_u32, 4000, 4000] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(0);
    for number in [9600_u32, 921_600] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.push(0);
    for number in [3062_u32, 0, 0, 0x0004_04BA, 3072] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend([0xFF, 0xFF, 0, 0, 0, 1]);
    bytes
}
