//! The socket server keeps the rules of `docs/socket-reader.md` about several users of one card.

use std::io::Write as _;

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{Refusal, Request, VERSION};
use claviger_hw_tests::{
    fixture::socket_reader::{
        Bench, Client, NOT_SELECTED, PIV_SELECTED, SELECT_PIV, Said, VERIFY_STATUS,
    },
    reader::Event,
};

#[test]
fn connections_share_one_card_and_connecting_never_resets_it() {
    let bench = Bench::new();
    let (mut a, mut b) = (bench.user(), bench.user());
    a.transmit(&SELECT_PIV);
    assert_eq!(
        b.transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
    let mut c = bench.user();
    assert_eq!(
        c.transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
    assert_eq!(bench.reader.counts().power_ups, 1);
}

#[test]
fn a_connection_closed_and_made_again_finds_the_card_as_it_was() {
    let bench = Bench::new();
    bench.user().transmit(&SELECT_PIV);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
}

#[test]
fn while_one_holds_the_card_the_others_are_refused_at_once_and_not_executed() {
    let bench = Bench::new();
    let (mut holder, mut other) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    assert_eq!(other.transmit(&SELECT_PIV), Said::Refused(Refusal::Busy));
    assert_eq!(other.ask(&Request::Reset), Said::Refused(Refusal::Busy));
    assert_eq!(
        holder.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
    assert_eq!(bench.reader.counts().apdus, 1);
    assert_eq!(holder.ask(&Request::End), Said::Ended);
    assert!(matches!(other.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn holds_are_given_in_order_of_arrival() {
    let bench = Bench::new();
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    let mut waiters: Vec<Client> = (0..4).map(|_| bench.user()).collect();
    for waiter in &mut waiters {
        waiter.say(&Request::Begin);
        assert!(waiter.is_silent());
    }
    assert_eq!(holder.ask(&Request::End), Said::Ended);
    for n in 0..4 {
        assert_eq!(waiters[n].hear(), Said::Begun);
        for later in &mut waiters[n + 1..] {
            assert!(later.is_silent(), "one at a time");
        }
        assert_eq!(waiters[n].ask(&Request::End), Said::Ended);
    }
}

#[test]
fn closing_the_connection_gives_the_card_back() {
    let bench = Bench::new();
    let (mut holder, mut waiter) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    drop(holder);
    assert_eq!(waiter.hear(), Said::Begun);
}

#[test]
fn a_wait_for_the_card_ends_with_its_removal_or_reset() {
    let bench = Bench::new();
    let (mut holder, mut waiter) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    assert!(waiter.is_silent());
    assert!(matches!(holder.ask(&Request::Reset), Said::Connected(_)));
    assert_eq!(waiter.hear(), Said::Refused(Refusal::CardReset));
    assert!(matches!(waiter.ask(&Request::Connect), Said::Connected(_)));
    waiter.say(&Request::Begin);
    assert!(
        waiter.is_silent(),
        "the one that reset the card still holds it"
    );
    bench.reader.remove();
    assert_eq!(waiter.hear(), Said::Refused(Refusal::CardRemoved));
}

#[test]
fn a_hold_outlives_a_reset_by_the_test() {
    let bench = Bench::new();
    let (mut holder, mut other) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    bench.reader.reset();
    assert_eq!(
        holder.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    assert!(matches!(holder.ask(&Request::Connect), Said::Connected(_)));
    assert_eq!(
        other.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    assert!(matches!(other.ask(&Request::Connect), Said::Connected(_)));
    assert_eq!(other.transmit(&VERIFY_STATUS), Said::Refused(Refusal::Busy));
    assert_eq!(holder.ask(&Request::End), Said::Ended);
}

#[test]
fn a_request_out_of_order_ends_the_connection() {
    let frame = || Request::Transmit(Secret::copy_from(&VERIFY_STATUS));
    let bench = Bench::new();
    let refused_and_closed = |mut client: Client, request: &Request| {
        assert_eq!(
            client.ask(request),
            Said::Refused(Refusal::Protocol),
            "{request:?}"
        );
        assert_eq!(client.hear(), Said::Closed, "{request:?}");
    };
    refused_and_closed(bench.stranger(), &Request::Connect);
    refused_and_closed(
        bench.stranger(),
        &Request::Hello {
            version: VERSION + 1,
        },
    );
    refused_and_closed(bench.guest(), &Request::Hello { version: VERSION });
    refused_and_closed(bench.guest(), &frame());
    refused_and_closed(bench.guest(), &Request::Begin);
    refused_and_closed(bench.user(), &Request::Watch);
    refused_and_closed(bench.user(), &Request::End);
    let mut watcher = bench.watcher();
    assert!(matches!(watcher.hear(), Said::State(..)));
    refused_and_closed(watcher, &Request::Connect);
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    refused_and_closed(holder, &Request::Begin);
    let mut told = bench.user();
    bench.reader.reset();
    assert_eq!(
        told.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    refused_and_closed(told, &frame());
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_and_nothing_else() {
    let bench = Bench::new();
    let mut user = bench.user();
    for garbage in [
        &[0, 0, 0, 0][..],
        &[0xFF; 64],
        &[0, 0, 0, 1, 0x77],
        &[0, 0, 0, 2, 0x03, 0x00],
    ] {
        let mut client = bench.guest();
        client.0.write_all(garbage).unwrap();
        assert_eq!(client.hear(), Said::Refused(Refusal::Protocol));
        assert_eq!(client.hear(), Said::Closed);
    }
    for short in [&[][..], &[0x00], &[0x00, 0xA4, 0x04]] {
        assert!(
            matches!(user.transmit(short), Said::Response(answer) if answer.len() == 2),
            "{short:?}"
        );
    }
    assert!(
        matches!(user.transmit(&[0xA5; 4000]), Said::Response(answer) if answer == [0x67, 0x00])
    );
    assert!(matches!(user.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn counts_are_exact() {
    let bench = Bench::new();
    let mut user = bench.user();
    bench.reader.zero();
    user.ask(&Request::Connect);
    user.ask(&Request::Begin);
    let Said::Response(answer) = user.transmit(&SELECT_PIV) else {
        panic!("no answer")
    };
    user.transmit(&VERIFY_STATUS);
    user.ask(&Request::End);
    user.ask(&Request::Reset);
    bench.reader.remove();
    bench.reader.insert();
    bench.reader.mark("here");
    let counts = bench.reader.counts();
    assert_eq!((counts.apdus, counts.command_bytes), (2, 15 + 4));
    assert_eq!(counts.response_bytes, answer.len() as u64 + 2);
    assert_eq!(
        (counts.connects, counts.begins, counts.ends, counts.resets),
        (1, 1, 1, 1)
    );
    assert_eq!(
        (counts.insertions, counts.removals, counts.power_ups),
        (1, 1, 0)
    );
    let exchanges = bench.reader.exchanges();
    assert_eq!(exchanges[0].command, SELECT_PIV);
    assert_eq!(exchanges[0].response, answer);
    assert_eq!(
        (exchanges[1].header(), exchanges[1].status()),
        (&VERIFY_STATUS[..], 0x63C3)
    );
    assert_eq!(
        bench.reader.entries().last().unwrap().event,
        Event::Mark("here".into())
    );
}

#[test]
fn a_log_file_has_a_line_for_each_event() {
    let bench = Bench::new();
    let log = bench.folder.path().join("log");
    bench.reader.log_to(&log).unwrap();
    let mut user = bench.user();
    user.transmit(&VERIFY_STATUS);
    bench.reader.mark("done");
    let lines = std::fs::read_to_string(log).unwrap();
    let tails: Vec<&str> = lines.lines().map(|line| line[13..].trim_start()).collect();
    assert_eq!(tails[..2], ["1 Connect", "1 PowerUp"]);
    assert!(tails[2].starts_with("1 00200080 > 6A82 ("), "{}", tails[2]);
    assert_eq!(tails[3], "0 # done");
}

#[test]
fn eight_users_that_hold_the_card_in_turn_never_meet() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let mut user = bench.user();
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(user.ask(&Request::Begin), Said::Begun);
                    for _ in 0..3 {
                        assert!(matches!(user.transmit(&VERIFY_STATUS), Said::Response(_)));
                    }
                    assert_eq!(user.ask(&Request::End), Said::Ended);
                }
            });
        }
    });
    let mut holder = None;
    for entry in bench.reader.entries() {
        match entry.event {
            Event::Begin => assert_eq!(holder.replace(entry.user), None),
            Event::End => assert_eq!(holder.take(), Some(entry.user)),
            Event::Exchange(_) => assert_eq!(holder, Some(entry.user)),
            _ => {}
        }
    }
    assert_eq!(bench.reader.counts().begins, 400);
}
