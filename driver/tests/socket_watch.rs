//! The watch of socket readers, against servers that start, stop, die, stall or send malformed frames.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod common;

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportErrorKind};
use claviger_driver::{
    Backend, Presence, ReaderSnapshot, ReaderState, Stopped, Watch, socket::SocketBackend,
};
use common::{ATR, Folder, HANG, Peer, Server, sleeps_for, soon, time_of};

fn watch(paths: &[&PathBuf]) -> Box<dyn Watch> {
    SocketBackend::new(paths.iter().map(|path| (*path).clone()).collect()).watch()
}

/// Calls `next_snapshot` in another thread and runs `act`. Returns the snapshot and the time since `act`.
fn next_after(
    watch: &mut Box<dyn Watch>,
    act: impl FnOnce(),
) -> (Result<ReaderSnapshot, Stopped>, Duration) {
    thread::scope(|scope| {
        let waiter = scope.spawn(|| watch.next_snapshot());
        thread::sleep(Duration::from_millis(100));
        assert!(!waiter.is_finished(), "next_snapshot waits for a change");
        let begun = Instant::now();
        act();
        (waiter.join().unwrap(), begun.elapsed())
    })
}

fn only(readers: &ReaderSnapshot) -> &ReaderState {
    assert_eq!(readers.readers.len(), 1, "{readers:?}");
    &readers.readers[0]
}

fn kind(readers: &ReaderSnapshot) -> Option<TransportErrorKind> {
    readers.error.as_ref().map(|trouble| trouble.kind)
}

#[test]
fn without_a_server_there_is_no_reader_and_the_reason_is_reported() {
    let folder = Folder::new("none");
    let path = folder.join("socket");
    let readers = watch(&[&path]).next_snapshot().unwrap();
    assert!(readers.readers.is_empty());
    let trouble = readers.error.unwrap();
    assert_eq!(trouble.kind, TransportErrorKind::NoService);
    assert!(trouble.what.contains(path.to_str().unwrap()), "{trouble}");
}

#[test]
fn reader_has_the_servers_sanitized_name_and_its_card() {
    let folder = Folder::new("name");
    let path = folder.join("socket");
    let _server = Server::start(&path, |peer| {
        peer.welcome("A\u{1b}[31m reader\n");
        peer.serve();
    });
    let readers = watch(&[&path]).snapshot(soon());
    let reader = only(&readers);
    assert_eq!(reader.name, "A[31m reader");
    assert_eq!(reader.id.to_string(), format!("socket:{}", path.display()));
    assert!(matches!(&reader.presence, Presence::Card(atr) if atr.bytes() == ATR));
    assert!(readers.error.is_none());
}

#[test]
fn server_started_later_is_found() {
    let folder = Folder::new("later");
    let path = folder.join("socket");
    let mut watch = watch(&[&path]);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let mut server = None;
    let (readers, took) = next_after(&mut watch, || {
        server = Some(Server::start(&path, Peer::serve));
    });
    only(&readers.unwrap());
    assert!(took < HANG, "{took:?}");
}

#[test]
fn server_in_a_folder_created_later_is_found() {
    let folder = Folder::new("folder");
    let path = folder.join("not/yet/socket");
    let mut watch = watch(&[&path]);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let mut server = None;
    let (readers, took) = next_after(&mut watch, || {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        server = Some(Server::start(&path, Peer::serve));
    });
    only(&readers.unwrap());
    assert!(took < HANG, "{took:?}");
}

#[test]
fn dead_server_removes_its_reader_and_its_restart_restores_it() {
    let folder = Folder::new("dies");
    let path = folder.join("socket");
    let server = Server::start(&path, Peer::serve);
    let mut watch = watch(&[&path]);
    let before = only(&watch.next_snapshot().unwrap()).clone();
    let (gone, took) = next_after(&mut watch, || drop(server));
    let gone = gone.unwrap();
    assert!(gone.readers.is_empty() && kind(&gone) == Some(TransportErrorKind::NoService));
    assert!(took < HANG, "{took:?}");
    let mut server = None;
    let (back, took) = next_after(&mut watch, || {
        server = Some(Server::start(&path, Peer::serve));
    });
    let back = back.unwrap();
    assert_eq!(
        (&only(&back).id, &only(&back).presence),
        (&before.id, &before.presence)
    );
    assert!(back.error.is_none());
    assert!(took < HANG, "{took:?}");
}

#[test]
fn unobserved_server_restart_counts_as_a_change() {
    let folder = Folder::new("restart");
    let path = folder.join("socket");
    let server = Server::start(&path, Peer::serve);
    let mut watch = watch(&[&path]);
    let before = only(&watch.snapshot(soon())).clone();
    drop(server);
    let _server = Server::start(&path, Peer::serve);
    let after = watch.snapshot(soon());
    assert_eq!(only(&after).presence, before.presence);
    assert_ne!(only(&after).change_count, before.change_count);
}

#[test]
fn stale_socket_file_is_no_service_and_does_not_hide_the_next_server() {
    let folder = Folder::new("stale");
    let path = folder.join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut watch = watch(&[&path]);
    assert_eq!(
        kind(&watch.next_snapshot().unwrap()),
        Some(TransportErrorKind::NoService)
    );
    let mut server = None;
    let (readers, took) = next_after(&mut watch, || {
        server = Some(Server::start(&path, Peer::serve));
    });
    only(&readers.unwrap());
    assert!(took < HANG, "{took:?}");
}

#[test]
fn server_slow_between_bind_and_listen_is_found() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let folder = Folder::new("bind");
    let path = folder.join("socket");
    let mut watch = watch(&[&path]);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let mut server = None;
    let (readers, _) = next_after(&mut watch, || {
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        thread::sleep(Duration::from_millis(250));
        rustix::net::listen(&socket, 5).unwrap();
        server = Some(thread::spawn(|| {
            let socket = rustix::net::accept(socket).unwrap();
            Peer::from(std::os::unix::net::UnixStream::from(socket)).serve();
        }));
    });
    only(&readers.unwrap());
    drop(watch);
    server.unwrap().join().unwrap();
}

#[test]
fn insertion_removal_and_a_mute_card_are_reported() {
    let folder = Folder::new("states");
    let path = folder.join("socket");
    let (to_server, states) = mpsc::channel::<(Vec<u8>, u32)>();
    let states = std::sync::Mutex::new(states);
    let server = Server::start(&path, move |peer| {
        peer.welcome("R");
        peer.next();
        peer.state(&[], 0);
        for (atr, changes) in states.lock().unwrap().iter() {
            peer.state(&atr, changes);
        }
    });
    let mut watch = watch(&[&path]);
    assert_eq!(
        only(&watch.next_snapshot().unwrap()).presence,
        Presence::Empty
    );
    let mut told = |atr: &[u8], changes| {
        let (readers, _) = next_after(&mut watch, || {
            to_server.send((atr.to_vec(), changes)).unwrap();
        });
        let reader = only(&readers.unwrap()).clone();
        (reader.presence, reader.change_count)
    };
    assert!(matches!(told(&ATR, 1), (Presence::Card(_), 1)));
    assert!(
        matches!(told(&ATR, 3), (Presence::Card(_), 3)),
        "out and in again"
    );
    assert!(matches!(told(&[0x00, 0x01], 5), (Presence::Mute, 5)));
    assert!(matches!(told(&[], 6), (Presence::Empty, 6)));
    drop(to_server);
    drop(server);
}

#[test]
fn readers_are_sorted_by_path_and_the_error_of_one_hides_no_other() {
    let folder = Folder::new("order");
    let (one, two, three) = (folder.join("one"), folder.join("two"), folder.join("three"));
    let _three = Server::start(&three, Peer::serve);
    let _one = Server::start(&one, Peer::serve);
    let readers = watch(&[&one, &two, &three]).snapshot(soon());
    let names: Vec<_> = readers
        .readers
        .iter()
        .map(|reader| reader.id.name())
        .collect();
    assert_eq!(names, [one.to_str().unwrap(), three.to_str().unwrap()]);
    assert!(readers.error.unwrap().what.contains(two.to_str().unwrap()));
}

#[test]
fn silent_server_costs_a_query_no_more_than_its_timeout() {
    let folder = Folder::new("silent");
    let (silent, good) = (folder.join("silent"), folder.join("good"));
    let _silent = Server::start(&silent, |peer| while peer.next().is_some() {});
    let _good = Server::start(&good, Peer::serve);
    let mut watch = watch(&[&silent, &good]);
    let begun = Instant::now();
    let readers = watch.snapshot(Call::within(Duration::from_millis(200)));
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < HANG,
        "{took:?}"
    );
    assert_eq!(only(&readers).id.name(), good.to_str().unwrap());
    assert_eq!(kind(&readers), Some(TransportErrorKind::TimedOut));
}

#[test]
fn malformed_frames_are_a_protocol_error_and_retried_with_delays() {
    let babble: [(&str, Vec<u8>); 6] = [
        ("length 0", vec![0, 0, 0, 0, 0]),
        ("length 4 GiB", vec![0xFF; 64]),
        ("kind", vec![0, 0, 0, 1, 0x99]),
        ("body", vec![0, 0, 0, 2, 0x82, 1]),
        ("order", vec![0, 0, 0, 5, 0x82, 0, 0, 0, 1]),
        ("version", vec![0, 0, 0, 2, 0x81, 9]),
    ];
    for (what, bytes) in babble {
        let folder = Folder::new("babble");
        let path = folder.join("socket");
        let server = Server::start(&path, move |peer| {
            peer.next();
            peer.raw(&bytes);
            peer.next();
        });
        let begun = Instant::now();
        let mut watch = watch(&[&path]);
        let readers = watch.snapshot(soon());
        assert!(readers.readers.is_empty(), "{what}");
        assert_eq!(
            kind(&readers),
            Some(TransportErrorKind::Protocol),
            "{what}: {readers:?}"
        );
        let third = thread::scope(|scope| {
            let waker = watch.stop_handle();
            scope.spawn(|| watch.next_snapshot());
            let third = time_of(3, || server.accepted(), begun);
            waker.stop();
            third
        });
        // The delays were 0.1 and 0.2 seconds.
        assert!(
            third >= Some(Duration::from_millis(300)),
            "{what}: {third:?}"
        );
    }
}

#[test]
fn server_that_accepts_and_dies_repeatedly_is_retried_with_delays() {
    let folder = Folder::new("flap");
    let path = folder.join("socket");
    let server = Server::start(&path, |peer| {
        peer.welcome("R");
        peer.next();
        peer.state(&ATR, 1);
    });
    let begun = Instant::now();
    let mut watch = watch(&[&path]);
    let waker = watch.stop_handle();
    let seventh = thread::scope(|scope| {
        scope.spawn(move || while watch.next_snapshot().is_ok() {});
        let seventh = time_of(7, || server.accepted(), begun);
        waker.stop();
        seventh
    });
    assert!(seventh >= Some(Duration::from_secs(1)), "{seventh:?}");
}

#[test]
fn stop_before_the_wait_is_not_lost() {
    let folder = Folder::new("before");
    let mut watch = watch(&[&folder.join("socket")]);
    watch.snapshot(soon());
    watch.stop_handle().stop();
    let begun = Instant::now();
    assert_eq!(watch.next_snapshot().unwrap_err(), Stopped);
    assert_eq!(watch.next_snapshot().unwrap_err(), Stopped, "for good");
    assert!(begun.elapsed() < HANG);
}

#[test]
fn stop_during_the_wait_ends_it_at_once() {
    let folder = Folder::new("during");
    let path = folder.join("socket");
    let _server = Server::start(&path, Peer::serve);
    for paths in [vec![&path], vec![]] {
        let mut watch = watch(&paths);
        watch.snapshot(soon());
        let waker = watch.stop_handle();
        let (ended, took) = next_after(&mut watch, || waker.stop());
        assert_eq!(ended.unwrap_err(), Stopped);
        assert!(took < HANG, "{took:?}");
    }
}

/// Returns whether a thread in `next_snapshot` on `path` sleeps.
fn idles(path: &PathBuf) -> bool {
    let mut watch = watch(&[path]);
    watch.snapshot(soon());
    let waker = watch.stop_handle();
    let (tell, tid) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            let _ = watch.next_snapshot();
        });
        let tid = tid.recv().unwrap();
        let idles = sleeps_for(Duration::from_secs(1), tid);
        waker.stop();
        idles
    })
}

#[test]
fn idle_socket_watch_makes_no_wakeups() {
    let folder = Folder::new("idle");
    let path = folder.join("socket");
    let server = Server::start(&path, Peer::serve);
    assert!(idles(&path), "with a server");
    drop(server);
    assert!(idles(&path), "without a server");
    assert!(idles(&folder.join("not/yet/socket")), "without a folder");
}

#[test]
fn stale_socket_file_is_finally_watched_without_polling() {
    let folder = Folder::new("given-up");
    let path = folder.join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let mut watch = watch(&[&path]);
    watch.snapshot(soon());
    let (mut server, mut sleeps) = (None, false);
    thread::scope(|scope| {
        let (tell, tid) = mpsc::channel();
        let waiter = scope.spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            watch.next_snapshot()
        });
        let tid = tid.recv().unwrap();
        // This is longer than any delay between two attempts.
        sleeps = sleeps_for(Duration::from_secs(3), tid);
        server = Some(Server::start(&path, Peer::serve));
        only(&waiter.join().unwrap().unwrap());
    });
    assert!(sleeps);
}
