//! Slot events of fake backends, whose readers a test sets.

mod demands;

use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    os::fd::AsFd as _,
    sync::{
        Condvar,
        atomic::{AtomicU64, AtomicUsize},
    },
    thread,
};

use claviger_apdu::{Call, Transport, TransportError, TransportErrorKind};
use claviger_driver::{
    Pollable, Presence, ReaderId, ReaderSnapshot, ReaderState, Stopped, Watch, pollable::WaitSet,
    usb::discovery::precedence::AllowedReaders,
};

use super::*;
use crate::{
    idle::{IdleCards, IdleTimeouts},
    sources::FIRST_SNAPSHOT_TIMEOUT,
};

/// Timeout of every step; only a hang exceeds it.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// A return timeout that expires during a test, and one that does not.
const BRIEF: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(3600);

/// A fake backend. It reports the readers that a test sets.
#[derive(Debug)]
pub(crate) struct FakeBackend {
    name: &'static str,
    shown: Arc<FakeState>,
}

#[derive(Debug)]
struct FakeState {
    readers: Mutex<ReaderSnapshot>,
    /// Counts the changes of `readers`.
    version: AtomicU64,
    changed: Condvar,
    /// A pipe with one byte for each change.
    wakeups: (PipeReader, PipeWriter),
    /// The precedence that limits the readers of a fake `usb` backend.
    precedence: Option<Arc<PcscdPrecedence>>,
    stopped: AtomicBool,
    queries: AtomicUsize,
    steps: AtomicUsize,
}

impl FakeBackend {
    pub(crate) fn new(name: &'static str, readers: ReaderSnapshot) -> Arc<Self> {
        Self::behind(None, name, readers)
    }

    /// Returns a fake `usb` backend.
    pub(crate) fn usb(precedence: &Arc<PcscdPrecedence>, names: &[&str]) -> Arc<Self> {
        Self::behind(Some(Arc::clone(precedence)), "usb", with(0, names))
    }

    fn behind(
        precedence: Option<Arc<PcscdPrecedence>>,
        name: &'static str,
        readers: ReaderSnapshot,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            shown: Arc::new(FakeState {
                readers: Mutex::new(readers),
                version: AtomicU64::new(0),
                changed: Condvar::new(),
                wakeups: pipe().unwrap(),
                precedence,
                stopped: AtomicBool::new(false),
                queries: AtomicUsize::new(0),
                steps: AtomicUsize::new(0),
            }),
        })
    }

    fn show(&self, readers: ReaderSnapshot) {
        let mut shown = self.shown.readers.lock().unwrap();
        *shown = readers;
        self.shown.version.fetch_add(1, Ordering::SeqCst);
        self.shown.wake();
    }

    fn queries(&self) -> usize {
        self.shown.queries.load(Ordering::SeqCst)
    }

    fn steps(&self) -> usize {
        self.shown.steps.load(Ordering::SeqCst)
    }
}

impl FakeState {
    fn wake(&self) {
        self.changed.notify_all();
        (&self.wakeups.1).write_all(&[0]).unwrap();
    }
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        self.name
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(FakeWatch {
            show: Arc::clone(&self.shown),
            allowed: (AllowedReaders::All, 0),
            seen: None,
        })
    }

    fn connect(&self, _: &ReaderId, _: Call) -> Result<Box<dyn Transport>, TransportError> {
        let kind = TransportErrorKind::NoReader;
        Err(TransportError::before_card(kind, "a fake backend"))
    }

    fn abort_calls(&self) {}

    fn begin_shutdown(&self) {}
}

/// The watch of a [`FakeBackend`].
struct FakeWatch {
    show: Arc<FakeState>,
    allowed: (AllowedReaders, u32),
    /// The versions of the readers and of the precedence in the last snapshot.
    seen: Option<(u64, u32)>,
}

impl FakeWatch {
    fn check_precedence(&mut self) {
        if let Some(precedence) = &self.show.precedence {
            precedence.clear();
            self.allowed = precedence.allowed_readers();
            precedence.mark_seen(self.allowed.1);
        }
    }

    fn is_new(&mut self) -> bool {
        self.check_precedence();
        let now = (self.show.version.load(Ordering::SeqCst), self.allowed.1);
        self.seen != Some(now)
    }

    fn present(&mut self) -> ReaderSnapshot {
        let mut readers = self.show.readers.lock().unwrap().clone();
        let version = self.show.version.load(Ordering::SeqCst);
        for _ in self.seen.map_or(0, |seen| seen.0)..version {
            (&self.show.wakeups.0).read_exact(&mut [0]).unwrap();
        }
        self.seen = Some((version, self.allowed.1));
        if self.allowed.0 != AllowedReaders::All {
            readers.readers.retain(|reader| reader.name == MARKED);
        }
        readers
    }

    fn is_stopped(&self) -> bool {
        self.show.stopped.load(Ordering::SeqCst)
    }
}

impl Watch for FakeWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.show.queries.fetch_add(1, Ordering::SeqCst);
        self.check_precedence();
        while self.allowed.0 == AllowedReaders::None
            && Instant::now() < call.deadline
            && !self.is_stopped()
        {
            thread::sleep(Duration::from_millis(1));
            self.check_precedence();
        }
        self.present()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        // As with the real backend, the first snapshot waits until the precedence is known.
        while (!self.is_new() || self.allowed.0 == AllowedReaders::None) && !self.is_stopped() {
            // A change of the precedence does not notify `changed`, so this waits in short steps.
            let readers = self.show.readers.lock().unwrap();
            let attempt_end = Duration::from_millis(2);
            drop(
                self.show
                    .changed
                    .wait_timeout(readers, attempt_end)
                    .unwrap(),
            );
        }
        if self.is_stopped() {
            return Err(Stopped);
        }
        Ok(self.present())
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        let blocks = self.show.readers.lock().unwrap().service_instance == Some(BLOCKS);
        if blocks { None } else { Some(self) }
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        Arc::new(FakeStopHandle(Arc::clone(&self.show)))
    }
}

impl Pollable for FakeWatch {
    fn begin(&mut self) {}

    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
        self.show.steps.fetch_add(1, Ordering::SeqCst);
        if self.is_stopped() {
            return Err(Stopped);
        }
        Ok(self.is_new().then(|| self.present()))
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let mut set = WaitSet::default();
        set.readable([self.show.wakeups.0.as_fd()]);
        if let Some(precedence) = &self.show.precedence {
            set.readable(precedence.descriptor());
            set.due(precedence.due());
        }
        set
    }
}

struct FakeStopHandle(Arc<FakeState>);

impl StopHandle for FakeStopHandle {
    fn stop(&self) {
        let _readers = self.0.readers.lock().unwrap();
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.wake();
    }
}

/// An instance of a service that is not pollable, as pcscd.
const BLOCKS: u32 = 77;
/// The name of a reader that pcscd ignores.
const MARKED: &str = "marked";

/// Returns a snapshot of the instance `service` with these readers.
fn with(service: u32, names: &[&str]) -> ReaderSnapshot {
    let state = |name: &&str| ReaderState {
        id: ReaderId::new("test", name),
        name: (*name).to_owned(),
        presence: Presence::Empty,
        change_count: 0,
        stable_name: (*name).to_owned(),
    };
    ReaderSnapshot {
        readers: names.iter().map(state).collect(),
        error: None,
        service_instance: Some(service),
    }
}

pub(crate) fn absent() -> ReaderSnapshot {
    let kind = TransportErrorKind::NoService;
    ReaderSnapshot {
        error: Some(TransportError::before_card(kind, "pcscd does not run")),
        ..ReaderSnapshot::default()
    }
}

#[derive(Debug)]
pub(crate) struct NoCards;

impl IdleCards for NoCards {
    fn release_idle(&self, _: Instant) -> Option<Instant> {
        None
    }
}

fn events(
    backends: &[Arc<dyn Backend>],
    threads: bool,
    precedence: Option<&Arc<PcscdPrecedence>>,
) -> SlotEvents {
    let idle = Arc::new(IdleReleaser::new(
        Arc::new(NoCards),
        IdleTimeouts::default(),
        threads,
    ));
    SlotEvents::new(
        backends,
        threads,
        &idle,
        Arc::default(),
        precedence.cloned(),
    )
}

/// Returns the number of slots in a new list.
fn slots(events: &SlotEvents) -> usize {
    let mut table = events.table();
    table.refresh_list();
    table.listed().len()
}

/// Waits for one event while `change` runs. Returns the slot of the event.
fn event_during(events: &SlotEvents, change: impl FnOnce()) -> CK_SLOT_ID {
    thread::scope(|scope| {
        let waiter = scope.spawn(|| events.wait(true));
        change();
        waiter.join().unwrap().unwrap()
    })
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + STEP_TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "the condition does not hold in time");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn watch_thread_follows_readers_from_its_first_snapshot() {
    let one = FakeBackend::new("one", with(1, &["reader"]));
    let backends: [Arc<dyn Backend>; 1] = [Arc::clone(&one) as _];
    let events = events(&backends, true, None);
    events.refresh();
    assert_eq!(slots(&events), 2);
    assert_eq!(one.queries(), 0, "a card could be replaced after a query");
    events.stop();
}

#[test]
fn without_threads_several_backends_are_waited_for_at_once_without_wakeups() {
    let (one, other) = (
        FakeBackend::new("one", with(1, &[])),
        FakeBackend::new("other", with(1, &[])),
    );
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&one) as _, Arc::clone(&other) as _];
    let events = events(&backends, false, None);
    let slot = event_during(&events, || {
        wait_until(|| one.steps() > 0 && other.steps() > 0);
        let (steps, queries) = (one.steps(), one.queries());
        thread::sleep(PCSC_QUERY_INTERVAL * 3);
        assert_eq!((one.steps(), one.queries()), (steps, queries));
        other.show(with(1, &["A"]));
    });
    assert_eq!(slot, 0);
    events.stop();
    assert!(events.wait(true).is_err());
}

#[test]
fn without_threads_a_stop_ends_the_wait_for_several_backends() {
    let backends: [Arc<dyn Backend>; 2] = [
        FakeBackend::new("one", with(1, &[])),
        FakeBackend::new("other", with(1, &[])),
    ];
    let events = events(&backends, false, None);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| events.wait(true));
        thread::sleep(PCSC_QUERY_INTERVAL);
        events.stop();
        assert!(waiter.join().unwrap().is_err());
    });
}

#[test]
fn without_threads_only_pcscd_is_watched_while_it_has_all_usb_readers() {
    let precedence = PcscdPrecedence::new(LONG);
    let pcscd = FakeBackend::new("pcsc", with(BLOCKS, &[]));
    let usb = FakeBackend::usb(&precedence, &["A"]);
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&usb) as _, Arc::clone(&pcscd) as _];
    let events = events(&backends, false, Some(&precedence));
    let slot = event_during(&events, || {
        wait_until(|| pcscd.queries() > 0 && usb.queries() > 0);
        thread::sleep(PCSC_QUERY_INTERVAL * 3);
        let counts = (pcscd.queries(), usb.queries(), usb.steps());
        assert_eq!(counts, (1, 1, 0), "once each");
        events.refresh();
        assert_eq!(
            (pcscd.queries(), usb.queries()),
            (1, 2),
            "another call queries"
        );
        pcscd.show(with(BLOCKS, &["A"]));
    });
    assert_eq!(slot, 0);
}

#[test]
fn without_threads_readers_left_by_pcscd_are_watched_beside_it() {
    let precedence = PcscdPrecedence::new(LONG);
    let pcscd = FakeBackend::new("pcsc", with(BLOCKS, &[]));
    let usb = FakeBackend::usb(&precedence, &[MARKED]);
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&pcscd) as _, Arc::clone(&usb) as _];
    let events = events(&backends, false, Some(&precedence));
    events.refresh();
    assert_eq!(slots(&events), 2);
    let of_pcscd = [(); 2].map(|()| event_during(&events, || pcscd.show(with(BLOCKS, &["A"]))));
    assert_eq!(of_pcscd, [2, 3]);
    assert_eq!(event_during(&events, || usb.show(with(0, &[]))), 0);
}

#[test]
fn first_snapshot_waits_for_no_absent_pcscd_and_includes_usb_readers() {
    for threads in [true, false] {
        for (pcscd, shown) in [(absent(), 2), (with(BLOCKS, &[]), 0)] {
            let precedence = PcscdPrecedence::new(LONG);
            let backends: [Arc<dyn Backend>; 2] = [
                FakeBackend::usb(&precedence, &["U"]),
                FakeBackend::new("pcsc", pcscd),
            ];
            let events = events(&backends, threads, Some(&precedence));
            let begun = Instant::now();
            events.refresh();
            assert!(begun.elapsed() < FIRST_SNAPSHOT_TIMEOUT);
            assert_eq!(slots(&events), shown);
            assert!(
                events.table().take_event().is_none(),
                "the first snapshots raise no event"
            );
            events.stop();
        }
    }
}

/// Returns whether the reader of a slot is connected.
fn is_there(events: &SlotEvents, slot: CK_SLOT_ID) -> bool {
    let mut table = events.table();
    table.slot(slot, Instant::now()).unwrap().1.connected
}

#[test]
fn reader_moves_between_pcscd_and_usb_and_is_never_listed_twice() {
    for threads in [true, false] {
        let precedence = PcscdPrecedence::new(BRIEF);
        let pcscd = FakeBackend::new("pcsc", with(BLOCKS, &["A"]));
        let usb = FakeBackend::usb(&precedence, &["U"]);
        let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&pcscd) as _, usb];
        let events = events(&backends, threads, Some(&precedence));
        events.refresh();
        assert_eq!(slots(&events), 2);
        for _ in 0..2 {
            let gone = Instant::now();
            let first = event_during(&events, || pcscd.show(absent()));
            assert!(
                gone.elapsed() >= BRIEF,
                "the slots of pcscd stay until then"
            );
            assert!(first < 4 && !is_there(&events, 0) && is_there(&events, 2));
            for _ in 0..3 {
                event_during(&events, || {});
            }
            event_during(&events, || pcscd.show(with(BLOCKS, &["A"])));
            let both = || is_there(&events, 0) && is_there(&events, 2);
            wait_until(|| {
                assert!(!both());
                is_there(&events, 0)
            });
            while events.table().take_event().is_some() {}
        }
        events.stop();
    }
}

#[test]
fn pcscd_is_queried_before_usb_whatever_the_configured_order() {
    let precedence = PcscdPrecedence::new(LONG);
    let backends: [Arc<dyn Backend>; 3] = [
        FakeBackend::usb(&precedence, &[]),
        FakeBackend::new("socket", with(1, &[])),
        FakeBackend::new("pcsc", absent()),
    ];
    let numbers = |precedence| {
        let sources = BackendWatcher::of(&backends, precedence);
        let numbers = sources.iter().map(|source| source.backend);
        numbers.collect::<Vec<usize>>()
    };
    assert_eq!(numbers(Some(&precedence)), [2, 1, 0]);
    assert_eq!(numbers(None), [0, 1, 2]);
}
