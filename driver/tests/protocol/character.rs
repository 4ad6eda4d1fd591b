//! The character level: the bytes sent, and the number of bytes that the reader has to wait for.

use claviger_apdu::Secret;
use claviger_driver::protocol::{
    budget::{NULL_BYTES, SHORT_READS},
    character::{CharacterExchange, CharacterStep},
    parameters::ErrorDetection,
};

use crate::notation::{block, hex};

/// Plays lines of `(bytes that must be sent, bytes to wait for, bytes that the reader returns)`. Returns the last
/// step.
fn play(
    (mut characters, mut turn): (CharacterExchange, CharacterStep),
    lines: &[(&str, u16, &str)],
) -> CharacterStep {
    for (number, (out, count, back)) in lines.iter().enumerate() {
        match turn {
            CharacterStep::Exchange { bytes, expected } => {
                assert_eq!(bytes.expose(), hex(out), "line {number}");
                assert_eq!(expected, *count, "line {number}");
                turn = characters.receive(&hex(back));
            }
            end => panic!("{end:?} before line {number}"),
        }
    }
    turn
}

fn t0(tpdu: &str, lines: &[(&str, u16, &str)]) -> CharacterStep {
    play(CharacterExchange::t0(&hex(tpdu)), lines)
}

fn done(turn: CharacterStep) -> Vec<u8> {
    match turn {
        CharacterStep::Done(answer) => answer.expose().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn is_damage(turn: &CharacterStep) -> bool {
    matches!(turn, CharacterStep::Damaged)
}

const READ: &str = "00CA006E04";
const WRITE: &str = "00DA006E03 010203";

#[test]
fn t0_status_word_instead_of_a_procedure_byte_ends_the_command() {
    for tpdu in [READ, "00200080 00"] {
        assert_eq!(done(t0(tpdu, &[(tpdu, 2, "6982")])), hex("6982"));
    }
    let header = &WRITE[..10];
    assert_eq!(
        done(t0(WRITE, &[(header, 1, "6A"), ("", 1, "80")])),
        hex("6A80")
    );
}

#[test]
fn procedure_byte_for_all_data_moves_it_at_once() {
    let lines = [(READ, 2, "CA01"), ("", 5, "020304 9000")];
    assert_eq!(done(t0(READ, &lines)), hex("01020304 9000"));
    let lines = [("00DA006E03", 1, "DA"), ("010203", 2, "9000")];
    assert_eq!(done(t0(WRITE, &lines)), hex("9000"));
}

#[test]
fn byte_by_byte() {
    let lines = [
        (READ, 2, "3501"),
        ("", 2, "3502"),
        ("", 2, "CA03"),
        ("", 3, "04 9000"),
    ];
    assert_eq!(done(t0(READ, &lines)), hex("01020304 9000"));
    let lines = [
        ("00DA006E03", 1, "25"),
        ("01", 1, "25"),
        ("02", 1, "25"),
        ("03", 2, "9000"),
    ];
    assert_eq!(done(t0(WRITE, &lines)), hex("9000"));
}

#[test]
fn null_procedure_bytes_are_skipped_everywhere() {
    let lines = [
        (READ, 2, "6060"),
        ("", 2, "60CA"),
        ("", 6, "01020304 6060"),
        ("", 2, "6090"),
        ("", 1, "00"),
    ];
    assert_eq!(done(t0(READ, &lines)), hex("01020304 9000"));
    let lines = [
        ("00DA006E03", 1, "60"),
        ("", 1, "60"),
        ("", 1, "25"),
        ("01", 1, "60"),
        ("", 1, "DA"),
        ("0203", 2, "6090"),
        ("", 1, "00"),
    ];
    assert_eq!(done(t0(WRITE, &lines)), hex("9000"));
}

#[test]
fn t0_status_word_between_data_ends_the_command() {
    let lines = [(READ, 2, "3501"), ("", 2, "6281")];
    assert_eq!(done(t0(READ, &lines)), hex("01 6281"));
    let lines = [("00DA006E03", 1, "25"), ("01", 1, "67"), ("", 1, "00")];
    assert_eq!(done(t0(WRITE, &lines)), hex("6700"));
}

#[test]
fn more_data_and_a_corrected_length_are_status_words() {
    for status in ["6104", "6C04"] {
        assert_eq!(done(t0(READ, &[(READ, 2, status)])), hex(status));
    }
}

#[test]
fn lowest_bit_of_a_procedure_byte_is_ignored() {
    let lines = [(READ, 2, "CB01"), ("", 5, "020304 9000")];
    assert_eq!(done(t0(READ, &lines)), hex("01020304 9000"));
    let lines = [(READ, 2, "3401"), ("", 2, "9000")];
    assert_eq!(done(t0(READ, &lines)), hex("01 9000"));
}

#[test]
fn p3_of_0_is_256_bytes_when_the_card_sends_them() {
    let header = "00CA006E00";
    let data = "AA".repeat(255);
    let lines = [(header, 2, "CAAA"), ("", 257, &(data + "9000"))];
    assert_eq!(done(t0(header, &lines)).len(), 258);
}

#[test]
fn unknown_procedure_byte_is_a_protocol_violation() {
    for byte in 0..=255u8 {
        let known =
            matches!(byte, 0x60..=0x6F | 0x90..=0x9F) || matches!(byte ^ 0xDA, 0 | 1 | 0xFE | 0xFF);
        let turn = t0(WRITE, &[("00DA006E03", 1, &format!("{byte:02X}"))]);
        assert_eq!(is_damage(&turn), !known, "{byte:02X}");
    }
}

#[test]
fn excess_bytes_are_a_protocol_violation() {
    assert!(is_damage(&t0(READ, &[(READ, 2, "900000")])));
    assert!(is_damage(&t0(
        READ,
        &[(READ, 2, "CA01"), ("", 5, "020304CA01")]
    )));
    let all_sent = [("00DA006E03", 1, "DA"), ("010203", 2, "DA90")];
    assert!(is_damage(&t0(WRITE, &all_sent)));
}

#[test]
fn endless_null_procedure_bytes_end_the_command() {
    let (mut characters, mut turn) = CharacterExchange::t0(&hex(READ));
    let mut pairs = 0;
    while let CharacterStep::Exchange { .. } = turn {
        turn = characters.receive(&[0x60, 0x60]);
        pairs += 1;
        assert!(pairs <= NULL_BYTES);
    }
    assert!(is_damage(&turn));
    assert_eq!(pairs, NULL_BYTES / 2 + 1);
}

#[test]
fn a_t1_block_is_read_in_two_pieces() {
    for (detection, left) in [(ErrorDetection::Lrc, 3), (ErrorDetection::Crc, 4)] {
        let command = block("I(0,0) 0102", detection);
        let answer = block("I(0,0) 9000", detection);
        let (mut characters, turn) = CharacterExchange::t1(Secret::copy_from(&command), detection);
        let CharacterStep::Exchange { bytes, expected: 3 } = turn else {
            panic!("{turn:?}");
        };
        assert_eq!(bytes.expose(), command);
        let turn = characters.receive(&answer[..3]);
        let CharacterStep::Exchange { bytes, expected } = turn else {
            panic!("{turn:?}");
        };
        assert!(bytes.is_empty());
        assert_eq!(expected, left);
        assert_eq!(done(characters.receive(&answer[3..])), answer);
    }
}

#[test]
fn a_block_of_a_reserved_length_is_not_waited_for() {
    let block = Secret::copy_from(&[0, 0, 1, 7, 6]);
    let (mut characters, _) = CharacterExchange::t1(block, ErrorDetection::Lrc);
    assert_eq!(done(characters.receive(&[0, 0, 255])), [0, 0, 255]);
}

#[test]
fn short_character_reads_are_repeated_a_few_times() {
    let lines = [
        (READ, 2, "CA"),
        ("", 6, "0102"),
        ("", 4, ""),
        ("", 4, "03049000"),
    ];
    assert_eq!(done(t0(READ, &lines)), hex("01020304 9000"));
    let (mut characters, mut turn) = CharacterExchange::t0(&hex(READ));
    let mut reads = 0;
    while let CharacterStep::Exchange { .. } = turn {
        turn = characters.receive(&[]);
        reads += 1;
    }
    assert!(is_damage(&turn));
    assert_eq!(reads, SHORT_READS + 1);
}

#[test]
fn pps_response_length_follows_from_its_format_byte() {
    let request = [0xFF, 0x11, 0x18, 0xF6];
    let begin = || {
        let (characters, turn) = CharacterExchange::pps(Secret::copy_from(&request));
        let CharacterStep::Exchange { bytes, expected } = turn else {
            panic!("{turn:?}")
        };
        assert_eq!((bytes.expose(), expected), (&request[..], 3));
        characters
    };
    let mut characters = begin();
    let CharacterStep::Exchange { bytes, expected } = characters.receive(&request[..3]) else {
        panic!("a byte is missing")
    };
    assert_eq!((bytes.len(), expected), (0, 1));
    assert_eq!(done(characters.receive(&request[3..])), request);
    // Without PPS1, no more bytes may be awaited.
    let slower = [0xFF, 0x01, 0xFE];
    assert_eq!(done(begin().receive(&slower)), slower);
}
