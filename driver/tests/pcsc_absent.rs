//! PC/SC where pcscd is not there, comes, or sends everybody away.
//!
//! libpcsclite reads the place of pcscd's socket once, so each case runs in a process of its own: the test
//! starts this program again with the case's name.
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

/// Where this process looks for pcscd, if it was started for a case.
fn socket() -> Option<PathBuf> {
    std::env::var_os(SOCKET).map(PathBuf::from)
}

fn soon() -> Call {
    Call::within(Duration::from_secs(1))
}

/// A pcscd that takes connections and closes them, counting.
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

/// Waits in `next` for `time`, then stops it; how long the stop took to be answered.
fn stopped_after(mut watch: Box<dyn Watch>, time: Duration) -> Duration {
    let waker = watch.stop_handle();
    let (tell, told) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let ended = loop {
            if let Err(ended) = watch.next_snapshot() {
                break ended;
            }
        };
        tell.send(Instant::now()).unwrap();
        ended
    });
    thread::sleep(time);
    assert!(!waiter.is_finished());
    let begun = Instant::now();
    waker.stop();
    let took = told.recv().unwrap() - begun;
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
        let trouble = readers.error.unwrap();
        assert_eq!(trouble.kind, TransportErrorKind::NoService);
        assert!(trouble.what.contains("pcscd does not run"), "{trouble}");
    }
    let first = PcscBackend::new(true).watch().next_snapshot().unwrap();
    assert!(
        first.readers.is_empty(),
        "without an earlier picture next does not wait"
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
        "wake before wait is not lost"
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
    let waker = watch.stop_handle();
    thread::scope(|scope| {
        scope.spawn(|| watch.next_snapshot());
        thread::sleep(Duration::from_millis(300));
        let asked = refusing(socket);
        let begun = Instant::now();
        // Nobody would ask without being told: an absent pcscd is not looked for from time to time.
        while asked.load(Ordering::SeqCst) == 0 && begun.elapsed() < HANG {
            thread::sleep(Duration::from_millis(1));
        }
        waker.stop();
        assert_ne!(
            asked.load(Ordering::SeqCst),
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
    let asked = refusing(socket);
    let mut watch = PcscBackend::new(true).watch();
    let readers = watch.snapshot(soon());
    assert!(readers.readers.is_empty() && readers.error.is_some());
    let took = stopped_after(watch, Duration::from_secs(2));
    assert!(took < HANG, "{took:?}");
    let asked = asked.load(Ordering::SeqCst);
    assert!(
        (2..=20).contains(&asked),
        "{asked} connections in two seconds"
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
    let waker = watch.stop_handle();
    let (tell, tid) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            watch.next_snapshot()
        });
        let tid = tid.recv().unwrap();
        let sleeps = common::sleeps_for(Duration::from_secs(1), tid);
        waker.stop();
        assert!(sleeps);
    });
}
