//! Requests of PIV and OpenPGP cards, and readers that carry them out.

mod readers;
mod structures;
mod t1;

use super::*;
use crate::ccid::quirks::{Quirks, UsbModel, for_model};

const BOTH: Operations = Operations {
    verify: true,
    modify: true,
};

/// PIV, SP 800-73-4 part 2, 3.2.1: eight bytes, padded with FF.
const PIV_VERIFY: PinRequest = PinRequest {
    form: PinForm::Padded {
        block: 8,
        padding: 0xFF,
    },
    ..PinRequest::new(
        [0x00, 0x20, 0x00, 0x80],
        Purpose::Verify,
        Digits { min: 6, max: 8 },
    )
};
/// PIV, 3.2.2: the old PIN and the new one.
const PIV_CHANGE: PinRequest = PinRequest {
    header: [0x00, 0x24, 0x00, 0x80],
    purpose: Purpose::Change {
        old: true,
        twice: true,
    },
    ..PIV_VERIFY
};
/// OpenPGP card 3.4, 7.2.2: the PIN as it is.
const OPENPGP_VERIFY: PinRequest = PinRequest::new(
    [0x00, 0x20, 0x00, 0x82],
    Purpose::Verify,
    Digits { min: 6, max: 64 },
);
/// OpenPGP card 3.4, 7.2.3: the old PIN and the new one at once.
const OPENPGP_CHANGE: PinRequest = PinRequest {
    header: [0x00, 0x24, 0x00, 0x81],
    purpose: Purpose::Change {
        old: true,
        twice: true,
    },
    ..OPENPGP_VERIFY
};

const FF: [u8; 8] = [0xFF; 8];

fn pad(quirks: PadQuirks) -> PinPad {
    let quirks = Quirks {
        pin_pad: true,
        pad: quirks,
        ..Quirks::default()
    };
    PinPad::new(BOTH, &quirks, Trust::Table).unwrap()
}

fn plain(request: PinRequest) -> PinEntry {
    pad(PadQuirks::default()).entry(&request).unwrap()
}

/// Returns the PIN pad of a model in the table.
fn model(vendor: u16, product: u16) -> Result<PinPad, NoPinPad> {
    let release = 0x0100;
    let quirks = for_model(UsbModel {
        vendor,
        product,
        release,
    });
    PinPad::new(BOTH, &quirks, Trust::Table)
}

/// Returns the PIN pad of a model in the table, for a user who trusts it.
fn trusted_by_user(vendor: u16, product: u16) -> PinPad {
    let release = 0x0100;
    let quirks = for_model(UsbModel {
        vendor,
        product,
        release,
    });
    PinPad::new(BOTH, &quirks, Trust::User).unwrap()
}
