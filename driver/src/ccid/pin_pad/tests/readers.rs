//! Which PIN pads are used, and how they differ.

use std::time::Duration;

use super::*;

#[test]
fn pin_entry_uses_only_operations_the_reader_offers() {
    let quirks = Quirks {
        pin_pad: true,
        ..Quirks::default()
    };
    let verify_only = Operations {
        verify: true,
        modify: false,
    };
    let pad = PinPad::new(verify_only, &quirks, Trust::Table).unwrap();
    assert!(pad.entry(&PIV_VERIFY).is_ok());
    assert_eq!(pad.entry(&PIV_CHANGE), Err(RequestError::NotOffered));
}

#[test]
fn only_listed_or_user_trusted_pin_pads_are_used() {
    let nothing_known = Quirks::default();
    let pad = |quirks, trust| PinPad::new(BOTH, &quirks, trust).err();
    assert_eq!(pad(nothing_known, Trust::Table), Some(NoPinPad::Unknown));
    assert_eq!(pad(nothing_known, Trust::User), None);
    let leaks = Quirks {
        no_pin_pad: true,
        ..Quirks::default()
    };
    assert_eq!(pad(leaks, Trust::Table), Some(NoPinPad::Unsafe));
    assert_eq!(pad(leaks, Trust::User), Some(NoPinPad::Unsafe));
    let none = PinPad::new(Operations::default(), &nothing_known, Trust::User);
    assert_eq!(none.err(), Some(NoPinPad::NotThere));
}

#[test]
fn pin_pad_table_lists_usable_and_unusable_readers() {
    for (vendor, product) in [
        (0x04E6, 0xE003),
        (0x046A, 0x003E),
        (0x08E6, 0x3478),
        (0x0982, 0x0008),
        (0x0C4B, 0x0504),
        (0x0D46, 0x3002),
        (0x1A44, 0x0920),
    ] {
        let pad = model(vendor, product);
        assert!(pad.is_ok(), "{vendor:04x}:{product:04x}");
    }
    for (vendor, product) in [
        (0x03F0, 0x0036),
        (0x03F0, 0x1024),
        (0x04F2, 0x1469),
        (0x0BF8, 0x1017),
        (0x0BF8, 0x1024),
        (0x046A, 0x00A7),
        (0x076B, 0x3031),
        (0x076B, 0x3A21),
        (0x076B, 0x6632),
        (0x0783, 0x0006),
    ] {
        let pad = model(vendor, product).err();
        assert_eq!(pad, Some(NoPinPad::Unsafe), "{vendor:04x}:{product:04x}");
    }
    let vendor_and_product = [(0x413C, 0x2100), (0x413C, 0x2101), (0x046A, 0x0010)];
    for (vendor, product) in vendor_and_product {
        let pad = model(vendor, product).err();
        assert_eq!(pad, Some(NoPinPad::Unknown), "{vendor:04x}:{product:04x}");
    }
}

#[test]
fn one_firmware_of_the_minilector_has_no_pad() {
    let at = |release| {
        let (vendor, product) = (0x25DD, 0x3111);
        let model = UsbModel {
            vendor,
            product,
            release,
        };
        for_model(model).no_pin_pad
    };
    assert!(at(0x0111) && !at(0x0110) && !at(0x0112));
}

#[test]
fn gempc_pinpad_has_one_message_and_validates_by_key_only() {
    let pad = model(0x08E6, 0x3478).unwrap();
    let digits = Digits { min: 8, max: 8 };
    let eight = PinRequest {
        digits,
        ..PIV_VERIFY
    };
    let data = pad.entry(&eight).unwrap().ccid();
    assert_eq!(data[7..9], [0x02, 0x01]);
    // All indexes are present although there are two messages, so that bMsgIndex3 is not taken for NAD.
    let new_only = PinRequest {
        purpose: Purpose::Change {
            old: false,
            twice: true,
        },
        ..PIV_CHANGE
    };
    let data = pad.entry(&new_only).unwrap().ccid();
    assert_eq!(data[10..17], [0x02, 0x02, 0x09, 0x04, 0x01, 0x02, 0x00]);
    assert_eq!(data[17..25], [0, 0, 0, 0x00, 0x24, 0x00, 0x80, 0x08]);
}

#[test]
fn gempc_pinpad_refuses_a_pin_of_variable_length() {
    let pad = model(0x08E6, 0x3478).unwrap();
    assert_eq!(pad.entry(&OPENPGP_VERIFY), Err(RequestError::FixedOnly));
}

#[test]
fn dell_keyboard_has_no_message_swapped_digits_and_a_pause() {
    let entry = trusted_by_user(0x413C, 0x2100).entry(&PIV_VERIFY).unwrap();
    let data = entry.ccid();
    assert_eq!(data[5..9], [0x06, 0x08, 0x02, 0x00]);
    assert_eq!(entry.pause(), Duration::from_millis(250));
    // The driver behind PC/SC swaps the bytes.
    assert_eq!(entry.part10()[5..9], [0x08, 0x06, 0x02, 0x01]);
    let newer = trusted_by_user(0x413C, 0x2101).entry(&PIV_VERIFY).unwrap();
    assert_eq!(newer.ccid()[5..9], [0x08, 0x06, 0x02, 0x00]);
    assert_eq!(plain(PIV_VERIFY).pause(), Duration::ZERO);
}

#[test]
fn the_spr532_appends_a_pin_of_variable_length_after_an_escape() {
    let pad = model(0x04E6, 0xE003).unwrap();
    let entry = pad.entry(&OPENPGP_VERIFY).unwrap();
    assert_eq!(entry.escape(), Some(&[0x80, 0x02, 0x00][..]));
    assert_eq!(entry.ccid()[3..7], [0x00, 0x00, 25, 6]);
    assert_eq!(entry.template(), [0x00, 0x20, 0x00, 0x82]);
    let part10 = entry.part10();
    assert_eq!(
        part10[15..],
        [0x04, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x82]
    );
    let entry = pad.entry(&PIV_VERIFY).unwrap();
    assert_eq!((entry.escape(), entry.template().len()), (None, 13));
}

#[test]
fn reader_without_a_display_has_no_message_but_three_modification_indexes() {
    for (vendor, product) in [(0x04E6, 0xE003), (0x046A, 0x003E)] {
        let pad = model(vendor, product).unwrap();
        let data = pad.entry(&PIV_CHANGE).unwrap().ccid();
        assert_eq!(data[10..17], [0x02, 0x00, 0x09, 0x04, 0x00, 0x00, 0x00]);
        assert_eq!(data[17..25], [0, 0, 0, 0x00, 0x24, 0x00, 0x80, 0x10]);
    }
}

#[test]
fn cherry_xx44_has_three_modification_messages_and_no_crashing_condition() {
    let pad = trusted_by_user(0x046A, 0x0010);
    let new_only = PinRequest {
        purpose: Purpose::Change {
            old: false,
            twice: false,
        },
        ..PIV_CHANGE
    };
    let data = pad.entry(&new_only).unwrap().ccid();
    assert_eq!(data[11..17], [0x03, 0x09, 0x04, 0x00, 0x01, 0x02]);
    for min in 1..=8 {
        let digits = Digits { min, max: 8 };
        let request = PinRequest {
            digits,
            ..PIV_VERIFY
        };
        let condition = pad.entry(&request).unwrap().ccid()[7];
        assert!((1..=7).contains(&condition), "{condition:02X}");
    }
}

#[test]
fn no_message_in_a_modification_leaves_one_index() {
    let quirks = PadQuirks {
        no_message: true,
        ..PadQuirks::default()
    };
    let data = pad(quirks).entry(&PIV_CHANGE).unwrap().ccid();
    assert_eq!(data[11..18], [0x00, 0x09, 0x04, 0x00, 0x00, 0x00, 0x00]);
    assert_eq!(data[18..23], [0x00, 0x24, 0x00, 0x80, 0x10]);
}

#[test]
fn pin_entry_digits_are_those_of_both_pad_and_card() {
    let limited = pad(PadQuirks::default()).limited(Digits { min: 4, max: 12 });
    let data = limited.entry(&OPENPGP_VERIFY).unwrap().ccid();
    assert_eq!(data[5..7], [12, 6]);
    let apart = pad(PadQuirks::default()).limited(Digits { min: 1, max: 5 });
    let card = OPENPGP_VERIFY.digits;
    let error = RequestError::Apart {
        card,
        pad: Digits { min: 1, max: 5 },
    };
    assert_eq!(apart.entry(&OPENPGP_VERIFY), Err(error));
}

#[test]
fn reader_timeout_exceeds_that_of_the_user() {
    assert_eq!(plain(PIV_VERIFY).timeout(), Duration::from_secs(90));
    let timeout = 255;
    let slow = PinRequest {
        timeout,
        ..PIV_VERIFY
    };
    assert_eq!(plain(slow).timeout(), Duration::from_secs(265));
}
