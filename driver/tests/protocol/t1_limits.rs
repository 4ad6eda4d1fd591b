//! The limits of T=1 exchanges, and that every exchange ends.

use claviger_apdu::Sent;
use claviger_driver::protocol::{
    FailureReason, Step, T1, TransmissionParameters,
    budget::{ANSWER_BLOCKS, ANSWER_BYTES, SUPERVISORY_BLOCKS, WAITING_TIME_EXTENSIONS},
};

use crate::notation::{done, failed, lrc, sent};

fn t1() -> T1 {
    T1::new(&TransmissionParameters::default(), 32)
}

/// Sends `count` I-blocks of a chain. Returns the step after the last one, and the number of the next block.
fn chain(t1: &mut T1, information: &str, count: usize) -> (Step, u8) {
    let mut number = 0;
    let mut step = t1.begin(&[1, 2]);
    for _ in 0..count {
        sent(step);
        step = t1.receive(&lrc(&format!("I({number},1) {information}")));
        number ^= 1;
    }
    (step, number)
}

#[test]
fn longest_t1_response_is_accepted() {
    let mut t1 = t1();
    let (step, number) = chain(&mut t1, &"F1".repeat(254), 258);
    sent(step);
    let last = lrc(&format!("I({number},0) {}", "9000".repeat(3)));
    assert_eq!(done(t1.receive(&last)).len(), ANSWER_BYTES);
}

#[test]
fn overlong_t1_response_is_aborted_and_the_next_command_works() {
    let mut t1 = t1();
    let (step, _) = chain(&mut t1, &"F1".repeat(254), 259);
    assert_eq!(sent(step), lrc("S(ABORT request)"));
    let failure = failed(t1.receive(&lrc("S(ABORT response)")));
    assert_eq!(failure.reason, FailureReason::Budget("bytes"));
    assert_eq!(failure.sent, Sent::Yes);
    assert_eq!(sent(t1.begin(&[3])), lrc("S(RESYNCH request)"));
    assert_eq!(
        sent(t1.receive(&lrc("S(RESYNCH response)"))),
        lrc("I(0,0) 03")
    );
}

#[test]
fn unanswered_t1_abort_is_followed_by_resynchronisation() {
    let mut t1 = t1();
    let (step, _) = chain(&mut t1, &"F1".repeat(254), 259);
    assert_eq!(sent(step), lrc("S(ABORT request)"));
    assert_eq!(sent(t1.response_timeout()), lrc("S(ABORT request)"));
    let more = lrc("I(1,1) F1");
    assert_eq!(sent(t1.receive(&more)), lrc("S(ABORT request)"));
    assert_eq!(sent(t1.receive(&more)), lrc("S(RESYNCH request)"));
    let failure = failed(t1.receive(&lrc("S(RESYNCH response)")));
    assert_eq!(failure.reason, FailureReason::Budget("bytes"));
}

#[test]
fn endless_empty_t1_blocks_are_aborted() {
    let mut t1 = t1();
    let (step, _) = chain(&mut t1, "", ANSWER_BLOCKS as usize + 1);
    assert_eq!(sent(step), lrc("S(ABORT request)"));
}

#[test]
fn endless_time_extensions_end_the_t1_command() {
    let mut t1 = t1();
    let mut step = t1.begin(&[1, 2]);
    for _ in 0..=WAITING_TIME_EXTENSIONS {
        sent(step);
        step = t1.receive(&lrc("S(WTX request) 01"));
    }
    assert_eq!(sent(step), lrc("S(RESYNCH request)"));
    let failure = failed(t1.receive(&lrc("S(RESYNCH response)")));
    assert_eq!(
        failure.reason,
        FailureReason::Budget("waiting time extensions")
    );
    assert_eq!(failure.sent, Sent::Maybe);
}

#[test]
fn repeated_requests_of_the_card_end_in_resynchronisation() {
    for request in ["S(IFS request) 20", "S(ABORT request)"] {
        let mut t1 = t1();
        let mut step = t1.begin(&[1, 2]);
        for _ in 0..=SUPERVISORY_BLOCKS {
            sent(step);
            step = t1.receive(&lrc(request));
        }
        assert_eq!(sent(step), lrc("S(RESYNCH request)"));
    }
}

#[test]
fn no_block_is_longer_than_the_reader_can_send() {
    let parameters = TransmissionParameters {
        ifsc: 254,
        ..TransmissionParameters::default()
    };
    let mut t1 = T1::new(&parameters, 32).sending_at_most(3);
    assert_eq!(sent(t1.begin(&[1, 2, 3, 4, 5])), lrc("I(0,1) 010203"));
    assert_eq!(
        sent(t1.receive(&lrc("S(IFS request) FE"))),
        lrc("S(IFS response) FE")
    );
    assert_eq!(sent(t1.receive(&lrc("R(1)"))), lrc("I(1,0) 0405"));
}

#[test]
fn t1_knows_at_each_step_whether_the_command_was_sent() {
    let mut t1 = T1::new(&TransmissionParameters::default(), 254);
    assert_eq!(t1.sent(), Sent::No);
    assert_eq!(sent(t1.begin(&[1, 2])), lrc("S(IFS request) FE"));
    assert_eq!(t1.sent(), Sent::No);
    sent(t1.receive(&lrc("S(IFS response) FE")));
    assert_eq!(t1.sent(), Sent::Maybe);
    sent(t1.receive(&lrc("I(0,1) 90")));
    assert_eq!(t1.sent(), Sent::Yes);
    assert_eq!(done(t1.receive(&lrc("I(1,0) 00"))), [0x90, 0x00]);
    sent(t1.begin(&[1, 2]));
    assert_eq!(t1.sent(), Sent::Maybe);
}
