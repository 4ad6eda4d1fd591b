//! T=0 at the level of TPDUs: the TPDUs of an APDU, and the layer that handles each status word.

use claviger_apdu::{
    Call, CommandApdu, Expected, Limits, ResponseBuffer, Sent, Transaction, Transmit,
    TransportError,
};
use claviger_driver::protocol::{FailureReason, Step, T0};

use crate::notation::{done, failed, hex, sent};

/// Plays lines of `(bytes that must be sent, response of the card)` after `apdu`. Returns the last step.
fn play(apdu: &str, lines: &[(&str, &str)]) -> Step {
    let mut t0 = T0::new();
    let mut step = t0.begin(&hex(apdu));
    for (expected, answer) in lines {
        assert_eq!(sent(step), hex(expected), "for {apdu}");
        step = t0.receive(&hex(answer));
    }
    step
}

#[test]
fn the_four_cases() {
    for (apdu, tpdu, answer) in [
        ("00200080", "0020008000", "63C3"),
        ("00CA006E05", "00CA006E05", "01020304059000"),
        ("00CA006E00", "00CA006E00", "01029000"),
        ("00A4040002 3F00", "00A4040002 3F00", "9000"),
        ("00A4040002 3F00 00", "00A4040002 3F00", "6110"),
        ("00A4040002 3F00 00", "00A4040002 3F00", "6A82"),
    ] {
        assert_eq!(done(play(apdu, &[(tpdu, answer)])), hex(answer), "{apdu}");
    }
}

#[test]
fn command_t0_cannot_carry_is_refused_unsent() {
    for apdu in [
        "",
        "00CA00",
        "00600000",
        "006F000000",
        "00900000",
        "009A9E9A",
        "00CA006E 00 0000",
        "00DB3FFF 00 0002 0102",
        "00A4040003 3F00",
        "00A4040001 3F 00 00",
    ] {
        let failure = failed(T0::new().begin(&hex(apdu)));
        assert!(
            matches!(failure.reason, FailureReason::Unsuitable(_)),
            "{apdu}"
        );
        assert_eq!(failure.sent, Sent::No);
        assert!(!failure.needs_reset());
    }
}

#[test]
fn more_data_and_a_corrected_length_are_left_to_the_layer_above() {
    for answer in ["6105", "6C05", "01026103"] {
        let lines = [("00CA006E00", answer)];
        assert_eq!(done(play("00CA006E00", &lines)), hex(answer));
    }
}

#[test]
fn t0_case_4_command_accepted_without_data_is_followed_by_get_response() {
    let select = ("00A4040002 3F00", "9000");
    for (lines, answer) in [
        (vec![("00C0000010", "01029000")], "01029000"),
        (vec![("00C0000010", "01026105")], "01026105"),
        (
            vec![("00C0000010", "6C02"), ("00C0000002", "01029000")],
            "01029000",
        ),
        (vec![("00C0000010", "6985")], "9000"),
        (vec![("00C0000010", "6C02"), ("00C0000002", "6C03")], "9000"),
        (vec![("00C0000010", "9000")], "9000"),
    ] {
        let lines = [vec![select], lines].concat();
        let step = play("00A4040002 3F00 10", &lines);
        assert_eq!(done(step), hex(answer), "{lines:?}");
    }
}

#[test]
fn get_response_keeps_the_logical_channel_and_drops_the_chaining_bit() {
    let lines = [("93A4040002 3F00", "9000"), ("03C0000000", "019000")];
    assert_eq!(done(play("93A4040002 3F00 00", &lines)), hex("019000"));
}

#[test]
fn t0_command_may_have_been_sent_after_a_timeout_or_transmission_error() {
    for (end, reason) in [
        (
            T0::response_timeout as fn(&mut T0) -> Step,
            FailureReason::Silent,
        ),
        (T0::transmission_error, FailureReason::Damaged),
    ] {
        let mut t0 = T0::new();
        sent(t0.begin(&hex("0020008001 31")));
        let failure = failed(end(&mut t0));
        assert_eq!((failure.reason, failure.sent), (reason, Sent::Maybe));
        assert!(failure.needs_reset());

        sent(t0.begin(&hex("00A4040002 3F00 00")));
        sent(t0.receive(&hex("9000")));
        assert_eq!(failed(end(&mut t0)).sent, Sent::Yes);
    }
}

#[test]
fn malformed_t0_response_is_a_transmission_error() {
    let long = "00".repeat(257) + "9000";
    for answer in ["", "90", "0000", "6000", "A000", "0102", &long] {
        let mut t0 = T0::new();
        sent(t0.begin(&hex("00CA006E00")));
        let failure = failed(t0.receive(&hex(answer)));
        assert_eq!(failure.reason, FailureReason::Damaged, "{answer}");
    }
    let mut t0 = T0::new();
    sent(t0.begin(&hex("00CA006E00")));
    let longest = "00".repeat(256) + "9000";
    assert_eq!(done(t0.receive(&hex(&longest))).len(), 258);
}

/// A card with T=0, defined by a table of TPDUs and responses.
struct Card {
    t0: T0,
    table: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Transmit for Card {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        _: Call,
    ) -> Result<(), TransportError> {
        let mut step = self.t0.begin(frame);
        loop {
            match step {
                Step::Send { block, .. } => {
                    let (tpdu, answer) = self.table.remove(0);
                    assert_eq!(block.expose(), tpdu);
                    step = self.t0.receive(&answer);
                }
                Step::Done(answer) => {
                    response.set(answer.expose()).unwrap();
                    return Ok(());
                }
                Step::Failed(failure) => panic!("{failure}"),
            }
        }
    }
}

/// Returns the whole response to `command`. Checks that the card received each line of the table once.
fn exchange(command: &CommandApdu<'_>, table: &[(&str, &str)]) -> (Vec<u8>, u16) {
    let mut card = Card {
        t0: T0::new(),
        table: table
            .iter()
            .map(|(tpdu, answer)| (hex(tpdu), hex(answer)))
            .collect(),
    };
    let response = Transaction::new(&mut card, Limits::SHORT)
        .exchange(command)
        .unwrap();
    assert!(card.table.is_empty(), "{} lines are left", card.table.len());
    (response.data.expose().to_vec(), response.status.0)
}

#[test]
fn t0_and_apdu_layer_together_fetch_and_correct_once() {
    let read = CommandApdu {
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0xCA, 0x00, 0x6E])
    };
    let lines = [
        ("00CA006E00", "6C03"),
        ("00CA006E03", "0102036102"),
        ("00C0000002", "04059000"),
    ];
    assert_eq!(exchange(&read, &lines), (vec![1, 2, 3, 4, 5], 0x9000));

    let sign = CommandApdu {
        data: &[7; 3],
        expected: Expected::All,
        ..CommandApdu::header([0x00, 0x2A, 0x9E, 0x9A])
    };
    let command = "002A9E9A03070707";
    let more = [
        (command, "6104"),
        ("00C0000004", "6C02"),
        ("00C0000002", "0A0B9000"),
    ];
    assert_eq!(exchange(&sign, &more), (vec![0x0A, 0x0B], 0x9000));
    // The command is not sent again if only GET RESPONSE had a wrong length.
    let quiet = [
        (command, "9000"),
        ("00C0000000", "6C02"),
        ("00C0000002", "0A0B9000"),
    ];
    assert_eq!(exchange(&sign, &quiet), (vec![0x0A, 0x0B], 0x9000));

    let verify = CommandApdu {
        data: &[0x31; 6],
        ..CommandApdu::header([0x00, 0x20, 0x00, 0x81])
    };
    let lines = [("0020008106313131313131", "63C2")];
    assert_eq!(exchange(&verify, &lines), (vec![], 0x63C2));
}
