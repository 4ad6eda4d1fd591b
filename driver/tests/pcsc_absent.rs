//! PC/SC where pcscd is absent, appears, or refuses every client.
//!
//! libpcsclite reads the path of pcscd's socket once, so each case runs in its own process: the test starts this
//! program again with the case's name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod common;

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Sent, TransportErrorKind};
use claviger_driver::{Backend, ReaderId, Stopped, Watch, pcsc::PcscBackend};
use common::Folder;
use common::HANG;

const SOCKET: &str = "PCSCLITE_CSOCK_NAME";

/// Runs the ignored test `case` in its own process, where libpcsclite looks for pcscd at `socket`.
fn in_a_process_of_its_own(case: &str) {
    let folder = Folder::new(case);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", case, "--ignored", "--nocapture"])
        .env(SOCKET, folder.join("pcscd.comm"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{output:?}"
    );
}

/// Returns the path of pcscd's socket if this process was started for a case.
fn socket() -> Option<PathBuf> {
    std::env::var_os(SOCKET).map(PathBuf::from)
}

fn soon() -> Call {
    Call::within(Duration::from_secs(1))
}

/// Starts a pcscd that accepts connections and closes them. Returns the count of connections.
fn refusing(path: PathBuf) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            counting.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    count
}

/// Waits in `next_snapshot` for `time`, then stops the wait. Returns how long the stop took.
fn stopped_after(mut watch: Box<dyn Watch>, time: Duration) -> Duration {
    let stop_handle = watch.stop_handle();
    let (sender, stopped) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let ended = loop {
            if let Err(ended) = watch.next_snapshot() {
                break ended;
            }
        };
        sender.send(Instant::now()).unwrap();
        ended
    });
    thread::sleep(time);
    assert!(!waiter.is_finished());
    let begun = Instant::now();
    stop_handle.stop();
    let took = stopped.recv().unwrap() - begun;
    assert_eq!(waiter.join().unwrap(), Stopped);
    took
}

#[test]
fn without_pcscd_the_snapshot_is_empty_at_once_and_names_the_reason() {
    in_a_process_of_its_own("absent");
}

#[test]
#[ignore = "run by without_pcscd_the_snapshot_is_empty_at_once_and_names_the_reason"]
fn absent() {
    if socket().is_none() {
        return;
    }
    let begun = Instant::now();
    let mut watch = PcscBackend::new(true).watch();
    for readers in [watch.snapshot(soon()), watch.snapshot(soon())] {
        assert!(readers.readers.is_empty());
        let error = readers.error.unwrap();
        assert_eq!(error.kind, TransportErrorKind::NoService);
        assert!(error.what.contains("pcscd does not run"), "{error}");
    }
    let first = PcscBackend::new(true).watch().next_snapshot().unwrap();
    assert!(
        first.readers.is_empty(),
        "without an earlier snapshot the call does not wait"
    );
    let error = PcscBackend::new(true)
        .connect(&ReaderId::new("pcsc", "R"), soon())
        .err()
        .unwrap();
    assert_eq!(
        (error.kind, error.sent),
        (TransportErrorKind::NoService, Sent::No)
    );
    assert!(begun.elapsed() < HANG, "{:?}", begun.elapsed());
}

#[test]
fn a_wait_for_pcscd_ends_with_its_stop() {
    in_a_process_of_its_own("stop");
}

#[test]
#[ignore = "run by a_wait_for_pcscd_ends_with_its_stop"]
fn stop() {
    if socket().is_none() {
        return;
    }
    let mut took: Vec<_> = (0..20)
        .map(|n| stopped_after(PcscBackend::new(true).watch(), Duration::from_millis(5 * n)))
        .collect();
    took.sort_unstable();
    println!(
        "stopped after {:?} in the median, {:?} at worst",
        took[10], took[19]
    );
    assert!(took[19] < HANG, "{took:?}");
    let mut watch = PcscBackend::new(true).watch();
    watch.stop_handle().stop();
    assert_eq!(
        watch.next_snapshot().unwrap_err(),
        Stopped,
        "a stop before the wait is not lost"
    );
    assert_eq!(watch.next_snapshot().unwrap_err(), Stopped, "for good");
}

#[test]
fn pcscd_that_appears_is_queried_at_once() {
    in_a_process_of_its_own("appears");
}

#[test]
#[ignore = "run by pcscd_that_appears_is_queried_at_once"]
fn appears() {
    let Some(socket) = socket() else { return };
    let mut watch = PcscBackend::new(true).watch();
    assert!(watch.snapshot(soon()).readers.is_empty());
    let stop_handle = watch.stop_handle();
    thread::scope(|scope| {
        scope.spawn(|| watch.next_snapshot());
        thread::sleep(Duration::from_millis(300));
        let connections = refusing(socket);
        let begun = Instant::now();
        // An absent pcscd is not polled, so only the folder watch can cause a connection.
        while connections.load(Ordering::SeqCst) == 0 && begun.elapsed() < HANG {
            thread::sleep(Duration::from_millis(1));
        }
        stop_handle.stop();
        assert_ne!(
            connections.load(Ordering::SeqCst),
            0,
            "after {:?}",
            begun.elapsed()
        );
    });
}

#[test]
fn refusing_pcscd_is_retried_with_delays() {
    in_a_process_of_its_own("refuses");
}

#[test]
#[ignore = "run by refusing_pcscd_is_retried_with_delays"]
fn refuses() {
    let Some(socket) = socket() else { return };
    let connections = refusing(socket);
    let mut watch = PcscBackend::new(true).watch();
    let readers = watch.snapshot(soon());
    assert!(readers.readers.is_empty() && readers.error.is_some());
    let took = stopped_after(watch, Duration::from_secs(2));
    assert!(took < HANG, "{took:?}");
    let connections = connections.load(Ordering::SeqCst);
    assert!(
        (2..=20).contains(&connections),
        "{connections} connections in two seconds"
    );
}

#[test]
fn waiting_for_pcscd_makes_no_wakeups() {
    in_a_process_of_its_own("idle");
}

#[test]
#[ignore = "run by waiting_for_pcscd_makes_no_wakeups"]
fn idle() {
    if socket().is_none() {
        return;
    }
    let mut watch = PcscBackend::new(true).watch();
    watch.snapshot(soon());
    let stop_handle = watch.stop_handle();
    let (sender, tid) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            watch.next_snapshot()
        });
        let tid = tid.recv().unwrap();
        let sleeps = common::sleeps_for(Duration::from_secs(1), tid);
        stop_handle.stop();
        assert!(sleeps);
    });
}
