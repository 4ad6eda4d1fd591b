//! Defects of other T=1 drivers, one test each.

use claviger_apdu::Sent;
use claviger_driver::protocol::{
    FailureReason, Step, T1, TransmissionParameters, parameters::ErrorDetection,
};

use crate::notation::{block, done, failed, lrc, sent};

fn parameters(ifsc: u8) -> TransmissionParameters {
    TransmissionParameters {
        ifsc,
        ..TransmissionParameters::default()
    }
}

fn t1(ifsc: u8) -> T1 {
    T1::new(&parameters(ifsc), 32)
}

/// Lets timeouts pass until S(RESYNCH) is sent.
fn until_resynchronisation(t1: &mut T1) {
    for _ in 0..3 {
        sent(t1.response_timeout());
    }
    assert_eq!(sent(t1.response_timeout()), lrc("S(RESYNCH request)"));
}

#[test]
fn a_chain_is_not_resumed_in_the_middle_after_resynchronisation() {
    let mut t1 = t1(2);
    assert_eq!(sent(t1.begin(&[1, 2, 3, 4, 5, 6])), lrc("I(0,1) 0102"));
    assert_eq!(sent(t1.receive(&lrc("R(1)"))), lrc("I(1,1) 0304"));
    until_resynchronisation(&mut t1);
    let failure = failed(t1.receive(&lrc("S(RESYNCH response)")));
    assert_eq!(
        (failure.reason, failure.sent),
        (FailureReason::Resynchronised, Sent::Maybe)
    );
    assert!(!failure.needs_reset());
    assert_eq!(sent(t1.begin(&[7, 8])), lrc("I(0,0) 0708"));
}

#[test]
fn an_r_block_with_a_crc_is_repeated_whole() {
    let crc = |text| block(text, ErrorDetection::Crc);
    let mut t1 = T1::new(
        &TransmissionParameters {
            error_detection: ErrorDetection::Crc,
            ..TransmissionParameters::default()
        },
        32,
    );
    sent(t1.begin(&[1, 2]));
    let first = sent(t1.receive(&crc("I(0,1) F1")));
    assert_eq!(first, crc("R(1)"));
    assert_eq!(first.len(), 5);
    assert_eq!(sent(t1.response_timeout()), first);
}

#[test]
fn time_extension_multiplies_the_waiting_time_of_one_block_only() {
    let multiplier = |step: Step| match step {
        Step::Send {
            waiting_time_multiplier,
            ..
        } => waiting_time_multiplier,
        other => panic!("{other:?}"),
    };
    for after in [
        None,
        Some(lrc("R(1)")),
        Some(lrc("I(0,1) F1")),
        Some(vec![0]),
    ] {
        let mut t1 = t1(32);
        assert_eq!(multiplier(t1.begin(&[1, 2])), 1);
        let extended = multiplier(t1.receive(&lrc("S(WTX request) 07")));
        assert_eq!(extended, 7);
        let next = match &after {
            None => multiplier(t1.response_timeout()),
            Some(bytes) => multiplier(t1.receive(bytes)),
        };
        // R(1) means that the card waits for the response, which grants the same time again.
        let repeated = after == Some(lrc("R(1)"));
        assert_eq!(next, if repeated { 7 } else { 1 }, "{after:02X?}");
    }
}

#[test]
fn an_abort_in_the_middle_of_a_chain_ends_the_command() {
    let mut t1 = t1(2);
    sent(t1.begin(&[1, 2, 3, 4]));
    let response = sent(t1.receive(&lrc("S(ABORT request)")));
    assert_eq!(response, lrc("S(ABORT response)"));
    let failure = failed(t1.receive(&lrc("R(1)")));
    assert_eq!(
        (failure.reason, failure.sent),
        (FailureReason::Aborted, Sent::Maybe)
    );
    assert_eq!(sent(t1.begin(&[5])), lrc("I(1,0) 05"));
}

#[test]
fn each_kind_of_block_is_repeated_unchanged() {
    let mut t1 = T1::new(&parameters(32), 254);
    let request = sent(t1.begin(&[1, 2]));
    assert_eq!(request, lrc("S(IFS request) FE"));
    assert_eq!(sent(t1.response_timeout()), request);
    let command = sent(t1.receive(&lrc("S(IFS response) FE")));
    assert_eq!(sent(t1.receive(&lrc("R(0)1"))), command);
    let response = sent(t1.receive(&lrc("S(WTX request) 02")));
    assert_eq!(sent(t1.receive(&lrc("R(1)1"))), response);
    assert_eq!(sent(t1.receive(&lrc("S(WTX request) 02"))), response);
    let acknowledgement = sent(t1.receive(&lrc("I(0,1) F1")));
    assert_eq!(sent(t1.receive(&lrc("R(1)1"))), acknowledgement);
    assert_eq!(done(t1.receive(&lrc("I(1,0) F2"))), [0xF1, 0xF2]);
}

#[test]
fn block_with_a_wrong_checksum_is_requested_again() {
    let mut t1 = t1(32);
    sent(t1.begin(&[1, 2]));
    let mut answer = lrc("I(0,0) 9000");
    *answer.last_mut().unwrap() ^= 1;
    assert_eq!(sent(t1.receive(&answer)), lrc("R(0)1"));
}

#[test]
fn t1_length_field_must_match_the_received_bytes() {
    let answer = lrc("I(0,0) F19000");
    let short = [&answer[..4], &[answer[6]]].concat();
    let long = [&answer[..], &[0]].concat();
    let mut lies = answer.clone();
    lies[2] = 200;
    lies[6] ^= 200 ^ 3;
    for bytes in [&short, &long, &lies, &vec![], &vec![0], &vec![0, 0]] {
        let mut t1 = t1(32);
        sent(t1.begin(&[1, 2]));
        assert_eq!(sent(t1.receive(bytes)), lrc("R(0)2"), "{bytes:02X?}");
    }
}

#[test]
fn a_small_ifsc_is_used_and_not_refused() {
    let mut t1 = t1(1);
    assert_eq!(sent(t1.begin(&[1, 2, 3])), lrc("I(0,1) 01"));
    assert_eq!(sent(t1.receive(&lrc("R(1)"))), lrc("I(1,1) 02"));
    assert_eq!(sent(t1.receive(&lrc("R(0)"))), lrc("I(0,0) 03"));
}

#[test]
fn ifsd_too_large_for_one_byte_is_requested_as_254() {
    let mut t1 = T1::new(&parameters(32), 255);
    assert_eq!(sent(t1.begin(&[1, 2])), lrc("S(IFS request) FE"));
}

#[test]
fn t1_block_for_another_node_address_is_not_accepted() {
    let mut t1 = t1(32);
    sent(t1.begin(&[1, 2]));
    for nad in [0x12, 0x21, 0x01, 0x80] {
        let mut answer = lrc("I(0,0) 9000");
        answer[0] = nad;
        answer[5] ^= nad;
        let again = t1.receive(&answer);
        assert!(matches!(again, Step::Send { .. }), "{again:?}");
    }
}

#[test]
fn response_to_the_previous_command_is_not_taken_for_the_current_one() {
    let mut t1 = t1(32);
    sent(t1.begin(&[1, 2]));
    assert_eq!(done(t1.receive(&lrc("I(0,0) 9000"))), [0x90, 0x00]);
    sent(t1.begin(&[3, 4]));
    assert_eq!(sent(t1.receive(&lrc("I(0,0) 9000"))), lrc("R(1)2"));
    assert_eq!(done(t1.receive(&lrc("I(1,0) 6982"))), [0x69, 0x82]);
}

#[test]
fn unfinished_t1_command_is_resynchronised_before_the_next() {
    let mut t1 = t1(2);
    sent(t1.begin(&[1, 2, 3, 4]));
    assert_eq!(sent(t1.begin(&[5, 6])), lrc("S(RESYNCH request)"));
    let next = sent(t1.receive(&lrc("S(RESYNCH response)")));
    assert_eq!(next, lrc("I(0,0) 0506"));
}

#[test]
fn t1_sends_nothing_for_an_invalid_command_or_without_one() {
    let mut t1 = t1(32);
    for step in [
        t1.begin(&[]),
        t1.begin(&vec![0; 65_545]),
        t1.receive(&lrc("I(0,0) 9000")),
        t1.response_timeout(),
        t1.transmission_error(),
    ] {
        assert_eq!(failed(step).sent, Sent::No);
    }
    assert_eq!(sent(t1.begin(&[1, 2])), lrc("I(0,0) 0102"));
}
