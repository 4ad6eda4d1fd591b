//! Transactions with a socket reader's card. Each begins once and always ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod common;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use claviger_apdu::{Call, Epoch, Sent, TransportErrorKind};
use claviger_driver::socket::frame::{Refusal, Request};
use common::{Folder, Server, connect, misbehaving, recording, send, soon};

#[test]
fn reset_found_at_transaction_begin_advances_the_epoch_without_an_error() {
    let folder = Folder::new("reset-begin");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| peer.refuse(Refusal::CardReset));
    let mut card = connect(&path);
    let mut responses = Vec::new();
    card.transact(soon(), &mut |transaction| {
        responses.push(send(transaction, soon()).unwrap());
    })
    .unwrap();
    assert_eq!(responses, [[0x90, 0x00]]);
    assert_eq!(card.epoch(), Epoch(1));
}

#[test]
fn endless_resets_at_transaction_begin_give_busy() {
    let folder = Folder::new("resets");
    let path = folder.join("socket");
    let _server = Server::start(&path, |peer| {
        while let Some(request) = peer.next() {
            match request {
                Request::Begin => peer.refuse(Refusal::CardReset),
                other => peer.answer(&other),
            }
        }
    });
    let error = connect(&path)
        .transact(soon(), &mut |_| panic!("never begun"))
        .unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Busy, Sent::No)
    );
}

#[test]
fn a_transaction_begins_runs_once_and_ends() {
    let folder = Folder::new("transaction");
    let path = folder.join("socket");
    let (server, requests) = recording(&path);
    let mut card = connect(&path);
    let mut runs = 0;
    card.transact(soon(), &mut |transaction| {
        runs += 1;
        send(transaction, soon()).unwrap();
        send(transaction, soon()).unwrap();
    })
    .unwrap();
    assert_eq!(runs, 1);
    drop(card);
    drop(server);
    let expected = [
        "Hello", "Connect", "Begin", "Transmit", "Transmit", "End", "closed",
    ];
    assert_eq!(*requests.lock().unwrap(), expected);
}

#[test]
fn a_transaction_ends_when_its_body_panics() {
    let folder = Folder::new("panics");
    let path = folder.join("socket");
    let (server, requests) = recording(&path);
    let mut card = connect(&path);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _ = card.transact(soon(), &mut |_| panic!("the panic of the test"));
    }));
    assert!(panicked.is_err());
    assert!(send(&mut *card, soon()).is_ok(), "usable afterwards");
    drop(card);
    drop(server);
    let expected = ["Hello", "Connect", "Begin", "End", "Transmit", "closed"];
    assert_eq!(*requests.lock().unwrap(), expected);
}

#[test]
fn transaction_not_granted_in_time_runs_nothing_and_leaves_the_queue() {
    let folder = Folder::new("queue");
    let path = folder.join("socket");
    let (sender, closed) = std::sync::mpsc::channel();
    let _server = misbehaving(&path, 1, move |peer, _| {
        assert!(peer.next().is_none(), "the client hangs up");
        sender.send(()).unwrap();
    });
    let mut card = connect(&path);
    let call = Call::within(Duration::from_millis(100));
    let error = card
        .transact(call, &mut |_| panic!("never begun"))
        .unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::No)
    );
    closed.recv_timeout(Duration::from_secs(1)).unwrap();
}

#[test]
fn unconfirmed_transaction_end_closes_the_connection() {
    let folder = Folder::new("no-end");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 2, |peer, _| {
        peer.refuse(Refusal::Busy);
        assert!(peer.next().is_none(), "the client hangs up");
    });
    let mut card = connect(&path);
    card.transact(soon(), &mut |_| {}).unwrap();
    assert!(
        send(&mut *card, soon())
            .unwrap_err()
            .what
            .contains("connection was closed")
    );
}
