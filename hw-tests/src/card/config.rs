//! The configuration of a virtual card.

use super::State;

/// The Nitrokey 3's answer to reset.
pub const NITROKEY_3_ATR: [u8; 19] = [
    0x3B, 0x8F, 0x01, 0x80, 0x5D, 0x4E, 0x69, 0x74, 0x72, 0x6F, 0x6B, 0x65, 0x79, 0, 0, 0, 0, 0,
    0x6A,
];

/// The configuration of a virtual card.
#[derive(Clone, Debug)]
pub struct CardConfig {
    /// Whether the card has the PIV applet.
    pub piv: bool,
    /// Whether the card has the OpenPGP applet.
    pub openpgp: bool,
    /// The OpenPGP serial number. The PIV GUID is derived from it.
    pub serial: u32,
    /// The seed of the keys: equal seeds and commands give equal keys. `None` uses the system's random numbers.
    pub seed: Option<u64>,
    /// The memory of the card.
    pub state: State,
    /// Whether the dispatcher is as lenient as a YubiKey's: it selects PIV by its 5-byte RID and adds a missing Le.
    /// `yubico-piv-tool` and ykcs11 need that.
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
    /// The card's GUID, as in its CHUID. Each serial number has another.
    #[must_use]
    pub fn guid(&self) -> [u8; 16] {
        let mut guid = *b"claviger-piv\0\0\0\0";
        for (byte, from) in guid.iter_mut().skip(12).zip(self.serial.to_be_bytes()) {
            *byte = from;
        }
        guid
    }
}
