//! What a virtual card is made of.

use super::State;

/// The Nitrokey 3's answer to reset.
pub const NITROKEY_3_ATR: [u8; 19] = [
    0x3B, 0x8F, 0x01, 0x80, 0x5D, 0x4E, 0x69, 0x74, 0x72, 0x6F, 0x6B, 0x65, 0x79, 0, 0, 0, 0, 0,
    0x6A,
];

/// What card to make.
#[derive(Clone, Debug)]
pub struct CardConfig {
    /// Whether it has the PIV applet.
    pub piv: bool,
    /// Whether it has the OpenPGP applet.
    pub openpgp: bool,
    /// The OpenPGP serial number; the PIV GUID follows from it.
    pub serial: u32,
    /// The same seed makes the same keys from the same commands; `None` takes the system's randomness.
    pub seed: Option<u64>,
    /// Where its memory comes from.
    pub state: State,
    /// Whether the dispatcher is as lenient as a YubiKey's: PIV selected by its 5-byte RID, Le implied.
    /// `yubico-piv-tool` and ykcs11 need it.
    pub yubi: bool,
    /// The answer to reset.
    pub atr: Vec<u8>,
}

impl Default for CardConfig {
    fn default() -> Self {
        Self {
            piv: true,
            openpgp: true,
            serial: 1,
            seed: None,
            state: State::Fresh,
            yubi: false,
            atr: NITROKEY_3_ATR.to_vec(),
        }
    }
}

impl CardConfig {
    /// The card's GUID, as its CHUID has it: another for each serial number.
    #[must_use]
    pub fn guid(&self) -> [u8; 16] {
        let mut guid = *b"claviger-piv\0\0\0\0";
        for (byte, from) in guid.iter_mut().skip(12).zip(self.serial.to_be_bytes()) {
            *byte = from;
        }
        guid
    }
}
