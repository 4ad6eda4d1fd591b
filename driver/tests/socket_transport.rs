//! Transports to a socket reader's card, against servers that refuse, stall, disconnect or send malformed frames.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod common;

use std::time::{Duration, Instant};

use claviger_apdu::{Call, Epoch, Limits, ResponseBuffer, Secret, Sent, TransportErrorKind};
use claviger_driver::{
    Backend, ReaderId,
    socket::{
        SocketBackend,
        frame::{Refusal, Reply, Request},
    },
};
use common::{
    ATR, Folder, HANG, Peer, Server, connect, misbehaving, recording, send, soon, try_connect,
};

#[test]
fn command_and_response_pass_the_socket_transport() {
    let folder = Folder::new("command");
    let path = folder.join("socket");
    let (server, requests) = recording(&path);
    let mut card = connect(&path);
    assert_eq!(card.atr().bytes(), ATR);
    assert_eq!(card.limits(), Limits::EXTENDED);
    assert_eq!(card.epoch(), Epoch(0));
    assert_eq!(send(&mut *card, soon()).unwrap(), [0x90, 0x00]);
    drop(card);
    drop(server);
    assert_eq!(
        *requests.lock().unwrap(),
        ["Hello", "Connect", "Transmit", "closed"]
    );
}

#[test]
fn longest_command_and_longest_response_pass_whole() {
    let folder = Folder::new("longest");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, request| {
        let Request::Transmit(command) = request else {
            panic!("a command")
        };
        assert_eq!(command.len(), Limits::EXTENDED.command);
        let answer: Vec<u8> = (0..=250).cycle().take(ResponseBuffer::MAX).collect();
        peer.reply(&Reply::Response(Secret::new(answer)));
    });
    let mut response = ResponseBuffer::new();
    let command = vec![7; Limits::EXTENDED.command];
    connect(&path)
        .transmit(&command, &mut response, soon())
        .unwrap();
    assert_eq!(response.frame().len(), ResponseBuffer::MAX);
    assert!(
        response
            .frame()
            .iter()
            .copied()
            .eq((0..=250).cycle().take(ResponseBuffer::MAX))
    );
}

#[test]
fn command_too_long_for_a_frame_is_refused_unsent() {
    let folder = Folder::new("too-long");
    let path = folder.join("socket");
    let _server = Server::start(&path, Peer::serve);
    let mut card = connect(&path);
    let error = card
        .transmit(&vec![0; 70_000], &mut ResponseBuffer::new(), soon())
        .unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Protocol, Sent::No)
    );
    assert!(send(&mut *card, soon()).is_ok());
}

#[test]
fn failed_connect_names_what_is_missing() {
    let folder = Folder::new("missing");
    let path = folder.join("socket");
    let fails = |kind| {
        let error = try_connect(&path, soon()).err().unwrap();
        assert_eq!((error.kind, error.sent), (kind, Sent::No), "{error}");
        assert!(error.what.contains(path.to_str().unwrap()), "{error}");
    };
    fails(TransportErrorKind::NoService);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    fails(TransportErrorKind::NoService);
    let server = Server::start(&path, |peer| {
        peer.welcome("R");
        peer.next();
        peer.refuse(Refusal::NoCard);
    });
    fails(TransportErrorKind::NoCard);
    drop(server);
    let server = Server::start(&path, |peer| {
        peer.welcome("R");
        peer.next();
        peer.reply(&Reply::Connected { atr: vec![1, 2, 3] });
    });
    fails(TransportErrorKind::NoCard);
    drop(server);
    let _server = Server::start(&path, |peer| {
        peer.next();
        peer.raw(&[0, 0, 0, 2, 0x81, 2]);
    });
    fails(TransportErrorKind::Protocol);
    let unknown = ReaderId::new("socket", "/somewhere/else");
    let error = SocketBackend::new(vec![path.clone()])
        .connect(&unknown, soon())
        .err()
        .unwrap();
    assert_eq!(error.kind, TransportErrorKind::NoReader);
}

#[test]
fn server_silent_on_connect_costs_no_more_than_the_calls_timeout() {
    let folder = Folder::new("mute-server");
    let path = folder.join("socket");
    let _server = Server::start(&path, |peer| while peer.next().is_some() {});
    let begun = Instant::now();
    let error = try_connect(&path, Call::within(Duration::from_millis(200)))
        .err()
        .unwrap();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::No)
    );
    assert!(begun.elapsed() < HANG);
}

#[test]
fn card_held_by_another_client_gives_busy_and_keeps_the_transport() {
    let folder = Folder::new("busy");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| peer.refuse(Refusal::Busy));
    let mut card = connect(&path);
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::Busy, Sent::No)
    );
    assert!(error.what.contains("(refused bythe test)"), "{error}");
    assert!(send(&mut *card, soon()).is_ok());
    assert_eq!(card.epoch(), Epoch(0));
}

#[test]
fn a_reset_advances_the_epoch_and_reconnects() {
    let folder = Folder::new("reset");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| peer.refuse(Refusal::CardReset));
    let mut card = connect(&path);
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::CardReset, Sent::No)
    );
    assert_eq!(card.epoch(), Epoch(1));
    assert!(send(&mut *card, soon()).is_ok());
}

#[test]
fn card_removed_during_a_command_may_have_received_it() {
    let folder = Folder::new("removed");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| peer.refuse(Refusal::CardRemoved));
    let mut card = connect(&path);
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::CardRemoved, Sent::Maybe)
    );
    let later = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (later.kind, later.sent),
        (TransportErrorKind::CardRemoved, Sent::No)
    );
    let later = card
        .transact(soon(), &mut |_| panic!("no card to hold"))
        .unwrap_err();
    assert_eq!(later.kind, TransportErrorKind::CardRemoved);
}

#[test]
fn timeout_closes_the_connection_so_that_no_late_response_is_used() {
    let folder = Folder::new("timeout");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| {
        std::thread::sleep(Duration::from_millis(300));
        peer.reply(&Reply::Response(Secret::copy_from(&[0x6F, 0x00])));
    });
    let mut card = connect(&path);
    let begun = Instant::now();
    let error = send(&mut *card, Call::within(Duration::from_millis(100))).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::Maybe)
    );
    assert!(begun.elapsed() < HANG);
    std::thread::sleep(Duration::from_millis(300));
    let later = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (later.kind, later.sent),
        (TransportErrorKind::TimedOut, Sent::No)
    );
    assert!(later.what.contains("connection was closed"), "{later}");
}

#[test]
fn past_deadline_sends_nothing_and_keeps_the_transport_usable() {
    let folder = Folder::new("past");
    let path = folder.join("socket");
    let (_server, requests) = recording(&path);
    let mut card = connect(&path);
    let error = send(&mut *card, Call::within(Duration::ZERO)).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::No)
    );
    assert_eq!(*requests.lock().unwrap(), ["Hello", "Connect"]);
    assert!(send(&mut *card, soon()).is_ok());
}

#[test]
fn server_that_dies_during_a_command_is_a_missing_service() {
    let folder = Folder::new("dies-in-the-middle");
    let path = folder.join("socket");
    let server = Server::start(&path, |peer| {
        peer.welcome("R");
        peer.next();
        peer.reply(&Reply::Connected { atr: ATR.to_vec() });
        peer.next();
    });
    let mut card = connect(&path);
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoService, Sent::Maybe)
    );
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoService, Sent::No)
    );
    drop(server);
}

#[test]
fn server_lost_between_two_commands_leaves_the_second_unsent() {
    let folder = Folder::new("gone-between");
    let path = folder.join("socket");
    let server = Server::start(&path, Peer::serve);
    let mut card = connect(&path);
    assert!(send(&mut *card, soon()).is_ok());
    drop(server);
    let error = send(&mut *card, soon()).unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoService, Sent::No)
    );
}

#[test]
fn malformed_frames_are_a_protocol_error_and_close_the_connection() {
    let response = Reply::Response(Secret::copy_from(&[0x90, 0x00]))
        .encode()
        .expose()
        .to_vec();
    let babble: [(&str, Vec<u8>); 7] = [
        ("length 0", vec![0, 0, 0, 0]),
        ("length over the limit", vec![0, 1, 0, 0x13, 0x84]),
        ("length 4 GiB", vec![0xFF; 100_000]),
        ("unknown kind", vec![0, 0, 0, 1, 0x77]),
        ("malformed body", vec![0, 0, 0, 2, 0x85, 0]),
        ("another request's answer", vec![0, 0, 0, 1, 0x85]),
        (
            "two answers to one request",
            [response.clone(), response].concat(),
        ),
    ];
    for (what, bytes) in babble {
        let folder = Folder::new("babble-transport");
        let path = folder.join("socket");
        let _server = misbehaving(&path, 1, move |peer, _| peer.raw(&bytes));
        let mut card = connect(&path);
        let error = send(&mut *card, soon()).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::Protocol, Sent::Maybe),
            "{what}"
        );
        let later = send(&mut *card, soon()).unwrap_err();
        assert_eq!(
            (later.kind, later.sent),
            (TransportErrorKind::Protocol, Sent::No),
            "{what}"
        );
    }
}

#[test]
fn response_in_single_bytes_is_assembled_and_a_truncated_one_times_out() {
    let folder = Folder::new("trickle");
    let path = folder.join("socket");
    let _server = misbehaving(&path, 1, |peer, _| {
        for byte in Reply::Response(Secret::copy_from(&[0x61, 0x10]))
            .encode()
            .expose()
        {
            peer.raw(&[*byte]);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    assert_eq!(send(&mut *connect(&path), soon()).unwrap(), [0x61, 0x10]);
    let _server = misbehaving(&path, 1, |peer, _| peer.raw(&[0, 0, 0, 3, 0x84, 0x90]));
    let error = send(
        &mut *connect(&path),
        Call::within(Duration::from_millis(100)),
    )
    .unwrap_err();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::TimedOut, Sent::Maybe)
    );
}
