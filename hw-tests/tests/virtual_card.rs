//! The card in this process: real firmware, no reader.

#![allow(clippy::expect_used, reason = "helpers of a test fail loudly")]

use claviger_hw_tests::card::{CardConfig, State, VirtualCard};

const SELECT_PIV: [u8; 15] = [
    0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00, 0x00,
];
const SELECT_PIV_BY_RID: [u8; 11] = [0x00, 0xA4, 0x04, 0x00, 5, 0xA0, 0, 0, 0x03, 0x08, 0x00];
const SELECT_OPENPGP: [u8; 12] = [
    0x00, 0xA4, 0x04, 0x00, 6, 0xD2, 0x76, 0x00, 0x01, 0x24, 0x01, 0x00,
];
const VERIFY_STATUS: [u8; 4] = [0x00, 0x20, 0x00, 0x80];
const VERIFY_PIN: [u8; 13] = [
    0x00, 0x20, 0x00, 0x80, 8, b'1', b'2', b'3', b'4', b'5', b'6', 0xFF, 0xFF,
];
const VERIFY_WRONG_PIN: [u8; 13] = [
    0x00, 0x20, 0x00, 0x80, 8, b'6', b'5', b'4', b'3', b'2', b'1', 0xFF, 0xFF,
];

fn card(config: CardConfig) -> VirtualCard {
    VirtualCard::power_up(config).expect("a card in RAM needs nothing")
}

fn status(answer: &[u8]) -> [u8; 2] {
    *answer
        .last_chunk()
        .expect("every answer ends in a status word")
}

#[test]
fn both_applets_answer_by_their_identifiers() {
    let card = card(CardConfig::default());
    assert_eq!(
        status(&card.transmit(&VERIFY_STATUS)),
        [0x6A, 0x82],
        "nothing is selected yet"
    );
    let piv = card.transmit(&SELECT_PIV);
    assert_eq!((piv[0], status(&piv)), (0x61, [0x90, 0x00]));
    assert_eq!(card.transmit(&SELECT_OPENPGP), [0x90, 0x00]);
    assert_eq!(
        card.transmit(&[0x00, 0xA4, 0x04, 0x00, 5, 1, 2, 3, 4, 5, 0]),
        [0x6A, 0x82]
    );
}

#[test]
fn an_applet_left_out_is_not_found() {
    let card = card(CardConfig {
        openpgp: false,
        ..CardConfig::default()
    });
    assert_eq!(card.transmit(&SELECT_OPENPGP), [0x6A, 0x82]);
    assert_eq!(status(&card.transmit(&SELECT_PIV)), [0x90, 0x00]);
}

#[test]
fn a_short_identifier_selects_piv_only_where_a_yubikey_would() {
    assert_eq!(
        card(CardConfig::default()).transmit(&SELECT_PIV_BY_RID),
        [0x6A, 0x82]
    );
    let yubi = card(CardConfig {
        yubi: true,
        ..CardConfig::default()
    });
    assert_eq!(status(&yubi.transmit(&SELECT_PIV_BY_RID)), [0x90, 0x00]);
}

#[test]
fn a_power_cycle_forgets_the_pin_and_the_selection() {
    let card = card(CardConfig::default());
    for _ in 0..3 {
        card.transmit(&SELECT_PIV);
        assert_eq!(card.transmit(&VERIFY_STATUS), [0x63, 0xC3]);
        assert_eq!(card.transmit(&VERIFY_PIN), [0x90, 0x00]);
        assert_eq!(card.transmit(&VERIFY_STATUS), [0x90, 0x00]);
        card.reset();
        assert_eq!(
            card.transmit(&VERIFY_STATUS),
            [0x6A, 0x82],
            "PIV is no longer selected"
        );
    }
}

#[test]
fn power_cycles_leave_nothing_in_memory() {
    let card = card(CardConfig::default());
    for cycle in 0..300 {
        card.transmit(&SELECT_PIV);
        assert_eq!(card.transmit(&VERIFY_PIN), [0x90, 0x00], "cycle {cycle}");
        card.reset();
    }
}

#[test]
fn a_wrong_pin_costs_a_try_that_a_power_cycle_does_not_give_back() {
    let card = card(CardConfig::default());
    card.transmit(&SELECT_PIV);
    assert_eq!(card.transmit(&VERIFY_WRONG_PIN), [0x63, 0xC2]);
    card.reset();
    card.transmit(&SELECT_PIV);
    assert_eq!(card.transmit(&VERIFY_STATUS), [0x63, 0xC2]);
}

#[test]
fn a_folder_keeps_the_card_and_a_copy_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spend_a_try = |state: State| {
        let card = card(CardConfig {
            state,
            ..CardConfig::default()
        });
        card.transmit(&SELECT_PIV);
        card.transmit(&VERIFY_WRONG_PIN)
    };
    assert_eq!(
        spend_a_try(State::Folder(folder.path().into())),
        [0x63, 0xC2]
    );
    assert_eq!(
        spend_a_try(State::CopyOf(folder.path().into())),
        [0x63, 0xC1]
    );
    assert_eq!(
        spend_a_try(State::CopyOf(folder.path().into())),
        [0x63, 0xC1],
        "the copy was not written back"
    );
    assert_eq!(
        spend_a_try(State::Folder(folder.path().into())),
        [0x63, 0xC1]
    );
    assert_eq!(
        spend_a_try(State::CopyOf(folder.path().into())),
        [0x69, 0x83],
        "the last try was spent"
    );
}

#[test]
fn a_state_that_is_no_card_is_an_error_and_not_a_fresh_card() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("int.bin"), b"short").unwrap();
    let config = CardConfig {
        state: State::CopyOf(folder.path().into()),
        ..CardConfig::default()
    };
    assert!(VirtualCard::power_up(config).is_err());
}

#[test]
fn the_same_seed_makes_the_same_challenge() {
    let challenge = |seed| {
        let card = card(CardConfig {
            seed,
            ..CardConfig::default()
        });
        card.transmit(&SELECT_OPENPGP);
        card.transmit(&[0x00, 0x84, 0x00, 0x00, 0x10])
    };
    assert_eq!(challenge(Some(7)), challenge(Some(7)));
    assert_ne!(challenge(Some(7)), challenge(Some(8)));
    assert_ne!(challenge(None), challenge(None));
}
