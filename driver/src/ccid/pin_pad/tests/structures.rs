//! Bytes derived by hand from CCID 1.1, 6.1.11, and PC/SC part 10, 2.5.

use super::*;
use crate::ccid::{message::Command, pin_pad::fuzz::Structure};

#[test]
fn verification_of_a_piv_pin() {
    let data = plain(PIV_VERIFY).ccid();
    let head = [
        0x00, // bPINOperation: verification
        0x00, // bTimeOut: the reader's
        0x82, // bmFormatString: bytes, at 0, left, ASCII
        0x08, // bmPINBlockString: no length, a block of 8
        0x00, // bmPINLengthFormat
        0x08, 0x06, // wPINMaxExtraDigit 0608
        0x02, // bEntryValidationCondition: the key
        0x01, // bNumberMessage
        0x09, 0x04, // wLangId 0409
        0x00, // bMsgIndex
        0x00, 0x00, 0x00, // bTeoPrologue
        0x00, 0x20, 0x00, 0x80, 0x08,
    ];
    assert_eq!(data, [&head[..], &FF].concat());
}

#[test]
fn modification_of_a_piv_pin() {
    let data = plain(PIV_CHANGE).ccid();
    let head = [
        0x01, // bPINOperation: modification
        0x00, 0x82, 0x08, 0x00, //
        0x00, // bInsertionOffsetOld
        0x08, // bInsertionOffsetNew
        0x08, 0x06, // wPINMaxExtraDigit
        0x03, // bConfirmPIN: the old one, the new one twice
        0x02, // bEntryValidationCondition
        0x03, // bNumberMessage
        0x09, 0x04, // wLangId
        0x00, 0x01, 0x02, // bMsgIndex1, 2, 3
        0x00, 0x00, 0x00, // bTeoPrologue
        0x00, 0x24, 0x00, 0x80, 0x10,
    ];
    assert_eq!(data, [&head[..], &FF, &FF].concat());
}

#[test]
fn verification_of_an_openpgp_pin_leaves_lc_to_the_reader() {
    let data = plain(OPENPGP_VERIFY).ccid();
    let bytes = [
        0x00, 0x00, 0x82, 0x00, 0x00, 0x40, 0x06, 0x02, 0x01, 0x09, 0x04, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x20, 0x00, 0x82, 0x00,
    ];
    assert_eq!(data, bytes);
}

#[test]
fn modification_of_an_openpgp_pin_leaves_lc_to_the_reader() {
    let data = plain(OPENPGP_CHANGE).ccid();
    let bytes = [
        0x01, 0x00, 0x82, 0x00, 0x00, 0x00, 0x00, 0x40, 0x06, 0x03, 0x02, 0x03, 0x09, 0x04, 0x00,
        0x01, 0x02, 0x00, 0x00, 0x00, 0x00, 0x24, 0x00, 0x81, 0x00,
    ];
    assert_eq!(data, bytes);
}

#[test]
fn pin_change_without_the_old_pin_has_two_messages_and_two_indexes() {
    // RESET RETRY COUNTER of an OpenPGP card after the admin PIN: 00 2C 02 81.
    let request = PinRequest {
        header: [0x00, 0x2C, 0x02, 0x81],
        purpose: Purpose::Change {
            old: false,
            twice: true,
        },
        ..OPENPGP_CHANGE
    };
    let bytes = [
        0x01, 0x00, 0x82, 0x00, 0x00, 0x00, 0x00, 0x40, 0x06, 0x01, 0x02, 0x02, 0x09, 0x04, 0x01,
        0x02, 0x00, 0x00, 0x00, 0x00, 0x2C, 0x02, 0x81, 0x00,
    ];
    assert_eq!(plain(request).ccid(), bytes);
}

#[test]
fn structures_of_part_10_for_a_piv_card() {
    let request = PinRequest {
        timeout: 30,
        ..PIV_VERIFY
    };
    let head = [
        0x1E, 0x1E, // bTimeOut, bTimeOut2
        0x82, 0x08, 0x00, // bmFormatString, bmPINBlockString, bmPINLengthFormat
        0x08, 0x06, // wPINMaxExtraDigit
        0x02, 0x01, // bEntryValidationCondition, bNumberMessage
        0x09, 0x04, 0x00, // wLangId, bMsgIndex
        0x00, 0x00, 0x00, // bTeoPrologue
        0x0D, 0x00, 0x00, 0x00, // ulDataLength: 13
        0x00, 0x20, 0x00, 0x80, 0x08,
    ];
    assert_eq!(plain(request).part10(), [&head[..], &FF].concat());
    let head = [
        0x00, 0x00, 0x82, 0x08, 0x00, //
        0x00, 0x08, // bInsertionOffsetOld, bInsertionOffsetNew
        0x08, 0x06, 0x03, 0x02,
        0x03, // digits, bConfirmPIN, bEntryValidationCondition, number
        0x09, 0x04, 0x00, 0x01, 0x02, // wLangId, bMsgIndex1, 2, 3
        0x00, 0x00, 0x00, //
        0x15, 0x00, 0x00, 0x00, // ulDataLength: 21
        0x00, 0x24, 0x00, 0x80, 0x10,
    ];
    assert_eq!(plain(PIV_CHANGE).part10(), [&head[..], &FF, &FF].concat());
}

#[test]
fn structures_of_part_10_for_an_openpgp_card() {
    let bytes = [
        0x00, 0x00, 0x82, 0x00, 0x00, 0x40, 0x06, 0x02, 0x01, 0x09, 0x04, 0x00, 0x00, 0x00, 0x00,
        0x05, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x82, 0x00,
    ];
    assert_eq!(plain(OPENPGP_VERIFY).part10(), bytes);
    let bytes = [
        0x00, 0x00, 0x82, 0x00, 0x00, 0x00, 0x00, 0x40, 0x06, 0x03, 0x02, 0x03, 0x09, 0x04, 0x00,
        0x01, 0x02, 0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x00, 0x24, 0x00, 0x81, 0x00,
    ];
    assert_eq!(plain(OPENPGP_CHANGE).part10(), bytes);
}

#[test]
fn pin_entry_is_the_data_of_a_secure_command() {
    let entry = plain(PIV_VERIFY);
    let (bwi, level_parameter, data) = (0, 0, &entry.ccid()[..]);
    let command = Command::Secure {
        bwi,
        level_parameter,
        data,
    };
    let message = command.message(0, 5);
    let header = [0x69, 28, 0, 0, 0, 0, 5, 0, 0, 0];
    assert_eq!(message.expose()[..10], header);
    assert_eq!(&message.expose()[10..], data);
}

#[test]
fn every_pin_structure_is_read_back_as_requested() {
    let purposes = [(true, true), (true, false), (false, true), (false, false)];
    let changes = purposes.map(|(old, twice)| Purpose::Change { old, twice });
    for purpose in changes.into_iter().chain([Purpose::Verify]) {
        for (block, min, max) in [(0, 1, 127), (1, 1, 1), (8, 6, 8), (15, 4, 12)] {
            let padding = 0x20;
            let form = match block {
                0 => PinForm::Variable,
                _ => PinForm::Padded { block, padding },
            };
            let request = PinRequest {
                purpose,
                form,
                digits: Digits { min, max },
                timeout: 17,
                language: 0x0407,
                ..PIV_VERIFY
            };
            let entry = plain(request);
            let (data, part10) = (entry.ccid(), entry.part10());
            let ccid = Structure::of_ccid(&data, false).unwrap();
            let change = purpose != Purpose::Verify;
            let part10 = Structure::of_part10(&part10, change).unwrap();
            assert_eq!(ccid.template, part10.template);
            assert_eq!(ccid.places, [0x82, block, 0]);
            assert_eq!((ccid.digits, part10.digits), ([max, min], [max, min]));
            assert_eq!((ccid.timeout, ccid.language), (17, 0x0407));
            assert_eq!(ccid.end_of_entry, if min == max { 3 } else { 2 });
            let confirmation = match purpose {
                Purpose::Verify => None,
                Purpose::Change { old, twice } => Some(u8::from(old) * 2 + u8::from(twice)),
            };
            assert_eq!(ccid.confirmation, confirmation);
            assert!(data.len() <= LONGEST);
        }
    }
}

#[test]
fn longest_pin_entry_has_the_stated_length() {
    let form = PinForm::Padded {
        block: 15,
        padding: 0,
    };
    let request = PinRequest { form, ..PIV_CHANGE };
    assert_eq!(plain(request).ccid().len(), LONGEST);
}

#[test]
fn impossible_pin_requests_are_refused_unsent() {
    let with = |min, max, block| PinRequest {
        digits: Digits { min, max },
        form: PinForm::Padded { block, padding: 0 },
        ..PIV_VERIFY
    };
    let digits = |min, max| RequestError::Digits(Digits { min, max });
    assert_eq!(with(0, 8, 8).check(), Err(digits(0, 8)));
    assert_eq!(with(8, 6, 8).check(), Err(digits(8, 6)));
    assert_eq!(with(1, 1, 0).check(), Err(RequestError::Block(0)));
    assert_eq!(with(1, 8, 16).check(), Err(RequestError::Block(16)));
    let (max, block) = (9, 8);
    let overflow = RequestError::Overflow { max, block };
    assert_eq!(with(6, 9, 8).check(), Err(overflow));
    let digits = Digits { min: 6, max: 128 };
    let two = PinRequest {
        digits,
        ..OPENPGP_CHANGE
    };
    assert_eq!(two.check(), Err(RequestError::CommandTooLong(128)));
    let one = PinRequest {
        digits,
        ..OPENPGP_VERIFY
    };
    assert_eq!(one.check(), Ok(()));
    let refused = pad(PadQuirks::default()).entry(&two);
    assert_eq!(refused, Err(RequestError::CommandTooLong(128)));
}
