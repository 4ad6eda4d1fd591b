//! The socket server keeps the rules of `docs/socket-reader.md` about cards and clients that come and go.

use std::os::unix::net::UnixStream;

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{Refusal, Request};
use claviger_hw_tests::{
    card::NITROKEY_3_ATR,
    fixture::socket_reader::{Bench, MOMENT, NOT_SELECTED, SELECT_PIV, Said, VERIFY_STATUS},
    reader::Fate,
    server::SocketServer,
};

#[test]
fn a_watch_hears_of_each_change_in_order() {
    let bench = Bench::new();
    let mut watcher = bench.watcher();
    let atr = NITROKEY_3_ATR.to_vec();
    assert_eq!(watcher.hear(), Said::State(atr.clone(), 0));
    bench.reader.remove();
    bench.reader.remove();
    bench.reader.insert();
    bench.reader.insert();
    bench.reader.remove();
    assert_eq!(watcher.hear(), Said::State(Vec::new(), 1));
    assert_eq!(watcher.hear(), Said::State(atr, 2));
    assert_eq!(watcher.hear(), Said::State(Vec::new(), 3));
    bench.reader.reset();
    assert!(
        watcher.is_silent(),
        "a reset is neither an insertion nor a removal"
    );
    assert_eq!(
        bench.watcher().hear(),
        Said::State(Vec::new(), 3),
        "a later watch begins with the present"
    );
}

#[test]
fn a_reader_without_a_card_refuses_until_one_comes() {
    let bench = Bench::new();
    bench.reader.remove();
    let mut user = bench.guest();
    assert_eq!(user.ask(&Request::Connect), Said::Refused(Refusal::NoCard));
    bench.reader.insert();
    assert_eq!(
        user.ask(&Request::Connect),
        Said::Connected(NITROKEY_3_ATR.to_vec())
    );
}

#[test]
fn removal_answers_every_later_request_also_when_a_card_is_back() {
    let bench = Bench::new();
    let mut user = bench.user();
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    bench.reader.remove();
    assert_eq!(
        user.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    bench.reader.insert();
    for _ in 0..2 {
        assert_eq!(
            user.transmit(&VERIFY_STATUS),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Connect),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Begin),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Reset),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            holder.ask(&Request::End),
            Said::Refused(Refusal::CardRemoved)
        );
    }
    let mut newcomer = bench.user();
    assert_eq!(
        newcomer.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec()),
        "removal ended the hold"
    );
}

#[test]
fn a_card_put_back_has_forgotten_everything() {
    let bench = Bench::new();
    bench.user().transmit(&SELECT_PIV);
    bench.reader.remove();
    bench.reader.insert();
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_reset_is_told_once_to_each_of_the_others() {
    let bench = Bench::new();
    let (mut a, mut b) = (bench.user(), bench.user());
    a.transmit(&SELECT_PIV);
    assert_eq!(
        a.ask(&Request::Reset),
        Said::Connected(NITROKEY_3_ATR.to_vec())
    );
    assert_eq!(
        a.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
    assert_eq!(b.transmit(&SELECT_PIV), Said::Refused(Refusal::CardReset));
    assert_eq!(
        a.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec()),
        "b's frame was not executed"
    );
    assert!(matches!(b.ask(&Request::Connect), Said::Connected(_)));
    assert!(matches!(b.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn a_server_that_stops_closes_its_connections_whatever_they_wait_for() {
    let mut bench = Bench::new();
    let (mut holder, mut waiter, mut watcher) = (bench.user(), bench.user(), bench.watcher());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    assert!(matches!(watcher.hear(), Said::State(..)));
    bench.reader.on_frame(|_| Fate::Silence);
    holder.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(holder.is_silent());
    drop(bench.server.take());
    assert_eq!(watcher.hear(), Said::Closed);
    for mut client in [holder, waiter] {
        while client.hear() != Said::Closed {}
    }
    let path = bench.folder.path().join("reader");
    assert!(UnixStream::connect(&path).is_err());
    bench.reader.heal();
    bench.server = Some(SocketServer::start(&path, &bench.reader).unwrap());
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_socket_in_use_is_not_taken_over_and_a_stale_one_is() {
    let bench = Bench::new();
    let path = bench.folder.path().join("reader");
    assert!(SocketServer::start(&path, &bench.reader).is_err());
    assert!(matches!(
        bench.user().transmit(&SELECT_PIV),
        Said::Response(_)
    ));
    let stale = bench.folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(SocketServer::start(&stale, &bench.reader).is_ok());
    let file = bench.folder.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    assert!(SocketServer::start(&file, &bench.reader).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn a_scripted_fate_delays_forges_silences_and_pulls() {
    let bench = Bench::new();
    let mut user = bench.user();
    bench.reader.on_frame(|_| Fate::Forge(vec![0x6F, 0x42]));
    assert_eq!(
        user.transmit(&VERIFY_STATUS),
        Said::Response(vec![0x6F, 0x42])
    );
    assert_eq!(bench.reader.counts().apdus, 0, "the card saw nothing");
    bench.reader.on_frame(|_| Fate::Delay(MOMENT));
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    let before = std::time::Instant::now();
    assert_eq!(user.hear(), Said::Response(NOT_SELECTED.to_vec()));
    assert!(before.elapsed() >= MOMENT);
    bench.reader.on_frame(|_| Fate::Silence);
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(user.is_silent());
    bench.reader.reset();
    assert_eq!(user.hear(), Said::Refused(Refusal::CardReset));
    user.ask(&Request::Connect);
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(user.is_silent());
    bench.reader.remove();
    assert_eq!(user.hear(), Said::Refused(Refusal::CardRemoved));
    bench.reader.insert();
    bench.reader.zero();
    bench.reader.on_frame(|_| Fate::Pull);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    assert_eq!(
        (bench.reader.counts().apdus, bench.reader.is_present()),
        (0, false)
    );
    bench.reader.insert();
    bench.reader.on_frame(|_| Fate::PullAfter);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    assert_eq!(
        (bench.reader.counts().apdus, bench.reader.is_present()),
        (1, false)
    );
    bench.reader.insert();
    bench.reader.heal();
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut patient = bench.user();
    patient.ask(&Request::Begin);
    let mut waiter = bench.user();
    waiter.say(&Request::Begin);
    assert!(waiter.is_silent());
    drop(waiter);
    std::thread::sleep(MOMENT);
    assert_eq!(patient.ask(&Request::End), Said::Ended);
    assert_eq!(
        bench.reader.counts().begins,
        1,
        "nobody got the hold the other had left waiting for"
    );
    bench.reader.on_frame(|_| Fate::Silence);
    let mut impatient = bench.user();
    impatient.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(impatient.is_silent());
    drop(impatient);
    bench.reader.heal();
    assert_eq!(
        patient.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}
