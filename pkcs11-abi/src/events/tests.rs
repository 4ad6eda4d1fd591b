//! Events over backends that do as they are told.

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

/// What only a hang exceeds.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// A grace that passes in a test, and one that does not.
const BRIEF: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(3600);

/// A backend that shows what it is told to.
#[derive(Debug)]
pub(crate) struct Puppet {
    name: &'static str,
    shown: Arc<Show>,
}

#[derive(Debug)]
struct Show {
    readers: Mutex<ReaderSnapshot>,
    /// Counts the changes.
    version: AtomicU64,
    changed: Condvar,
    /// A byte for each.
    told: (PipeReader, PipeWriter),
    /// What keeps its readers from being shown.
    precedence: Option<Arc<PcscdPrecedence>>,
    stopped: AtomicBool,
    queries: AtomicUsize,
    steps: AtomicUsize,
}

impl Puppet {
    pub(crate) fn new(name: &'static str, readers: ReaderSnapshot) -> Arc<Self> {
        Self::behind(None, name, readers)
    }

    /// Readers on the USB.
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
            shown: Arc::new(Show {
                readers: Mutex::new(readers),
                version: AtomicU64::new(0),
                changed: Condvar::new(),
                told: pipe().unwrap(),
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

impl Show {
    fn wake(&self) {
        self.changed.notify_all();
        (&self.told.1).write_all(&[0]).unwrap();
    }
}

impl Backend for Puppet {
    fn name(&self) -> &'static str {
        self.name
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Strings {
            show: Arc::clone(&self.shown),
            ours: (AllowedReaders::All, 0),
            seen: None,
        })
    }

    fn connect(&self, _: &ReaderId, _: Call) -> Result<Box<dyn Transport>, TransportError> {
        let kind = TransportErrorKind::NoReader;
        Err(TransportError::before_card(kind, "a puppet"))
    }

    fn abort_calls(&self) {}

    fn begin_shutdown(&self) {}
}

/// The watch of a [`Puppet`].
struct Strings {
    show: Arc<Show>,
    ours: (AllowedReaders, u32),
    /// What the last picture was of.
    seen: Option<(u64, u32)>,
}

impl Strings {
    fn look_at_the_gate(&mut self) {
        if let Some(precedence) = &self.show.precedence {
            precedence.clear();
            self.ours = precedence.allowed_readers();
            precedence.mark_seen(self.ours.1);
        }
    }

    fn is_new(&mut self) -> bool {
        self.look_at_the_gate();
        let now = (self.show.version.load(Ordering::SeqCst), self.ours.1);
        self.seen != Some(now)
    }

    fn present(&mut self) -> ReaderSnapshot {
        let mut readers = self.show.readers.lock().unwrap().clone();
        let version = self.show.version.load(Ordering::SeqCst);
        for _ in self.seen.map_or(0, |seen| seen.0)..version {
            (&self.show.told.0).read_exact(&mut [0]).unwrap();
        }
        self.seen = Some((version, self.ours.1));
        if self.ours.0 != AllowedReaders::All {
            readers.readers.retain(|reader| reader.name == MARKED);
        }
        readers
    }

    fn is_stopped(&self) -> bool {
        self.show.stopped.load(Ordering::SeqCst)
    }
}

impl Watch for Strings {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.show.queries.fetch_add(1, Ordering::SeqCst);
        self.look_at_the_gate();
        while self.ours.0 == AllowedReaders::None
            && Instant::now() < call.deadline
            && !self.is_stopped()
        {
            thread::sleep(Duration::from_millis(1));
            self.look_at_the_gate();
        }
        self.present()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        // As that of the bus, the first picture waits until it is known whose the readers are.
        while (!self.is_new() || self.ours.0 == AllowedReaders::None) && !self.is_stopped() {
            // The gate tells nobody here.
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
        Arc::new(Cut(Arc::clone(&self.show)))
    }
}

impl Pollable for Strings {
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
        set.readable([self.show.told.0.as_fd()]);
        if let Some(precedence) = &self.show.precedence {
            set.readable(precedence.descriptor());
            set.due(precedence.due());
        }
        set
    }
}

struct Cut(Arc<Show>);

impl StopHandle for Cut {
    fn stop(&self) {
        let _readers = self.0.readers.lock().unwrap();
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.wake();
    }
}

/// The life of a service that is waited for by blocking, as pcscd is.
const BLOCKS: u32 = 77;
/// A reader that pcscd leaves to us.
const MARKED: &str = "marked";

/// A service with these readers.
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

/// The slots that are shown now.
fn slots(events: &SlotEvents) -> usize {
    let mut table = events.table();
    table.refresh_list();
    table.listed().len()
}

/// Waits for one event while `then` happens.
fn told(events: &SlotEvents, then: impl FnOnce()) -> CK_SLOT_ID {
    thread::scope(|scope| {
        let waiter = scope.spawn(|| events.wait(true));
        then();
        waiter.join().unwrap().unwrap()
    })
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + STEP_TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "it never was");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn watch_thread_follows_readers_from_its_first_snapshot() {
    let one = Puppet::new("one", with(1, &["reader"]));
    let backends: [Arc<dyn Backend>; 1] = [Arc::clone(&one) as _];
    let events = events(&backends, true, None);
    events.refresh();
    assert_eq!(slots(&events), 2);
    assert_eq!(one.queries(), 0, "what is only looked at may change unseen");
    events.stop();
}

#[test]
fn without_threads_several_backends_are_waited_for_at_once_without_wakeups() {
    let (one, other) = (
        Puppet::new("one", with(1, &[])),
        Puppet::new("other", with(1, &[])),
    );
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&one) as _, Arc::clone(&other) as _];
    let events = events(&backends, false, None);
    let slot = told(&events, || {
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
        Puppet::new("one", with(1, &[])),
        Puppet::new("other", with(1, &[])),
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
    let pcscd = Puppet::new("pcsc", with(BLOCKS, &[]));
    let usb = Puppet::usb(&precedence, &["A"]);
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&usb) as _, Arc::clone(&pcscd) as _];
    let events = events(&backends, false, Some(&precedence));
    let slot = told(&events, || {
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
    let pcscd = Puppet::new("pcsc", with(BLOCKS, &[]));
    let usb = Puppet::usb(&precedence, &[MARKED]);
    let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&pcscd) as _, Arc::clone(&usb) as _];
    let events = events(&backends, false, Some(&precedence));
    events.refresh();
    assert_eq!(slots(&events), 2);
    let of_pcscd = [(); 2].map(|()| told(&events, || pcscd.show(with(BLOCKS, &["A"]))));
    assert_eq!(of_pcscd, [2, 3]);
    assert_eq!(told(&events, || usb.show(with(0, &[]))), 0);
}

#[test]
fn first_snapshot_waits_for_no_absent_pcscd_and_includes_usb_readers() {
    for threads in [true, false] {
        for (pcscd, shown) in [(absent(), 2), (with(BLOCKS, &[]), 0)] {
            let precedence = PcscdPrecedence::new(LONG);
            let backends: [Arc<dyn Backend>; 2] =
                [Puppet::usb(&precedence, &["U"]), Puppet::new("pcsc", pcscd)];
            let events = events(&backends, threads, Some(&precedence));
            let begun = Instant::now();
            events.refresh();
            assert!(begun.elapsed() < FIRST_SNAPSHOT_TIMEOUT);
            assert_eq!(slots(&events), shown);
            assert!(events.table().take_event().is_none(), "none has happened");
            events.stop();
        }
    }
}

/// Whether the reader of a slot is plugged in.
fn is_there(events: &SlotEvents, slot: CK_SLOT_ID) -> bool {
    let mut table = events.table();
    table.slot(slot, Instant::now()).unwrap().1.connected
}

#[test]
fn reader_moves_between_pcscd_and_usb_and_is_never_listed_twice() {
    for threads in [true, false] {
        let precedence = PcscdPrecedence::new(BRIEF);
        let pcscd = Puppet::new("pcsc", with(BLOCKS, &["A"]));
        let usb = Puppet::usb(&precedence, &["U"]);
        let backends: [Arc<dyn Backend>; 2] = [Arc::clone(&pcscd) as _, usb];
        let events = events(&backends, threads, Some(&precedence));
        events.refresh();
        assert_eq!(slots(&events), 2);
        for _ in 0..2 {
            let gone = Instant::now();
            let first = told(&events, || pcscd.show(absent()));
            assert!(gone.elapsed() >= BRIEF, "its slots stay meanwhile");
            assert!(first < 4 && !is_there(&events, 0) && is_there(&events, 2));
            for _ in 0..3 {
                told(&events, || {});
            }
            told(&events, || pcscd.show(with(BLOCKS, &["A"])));
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
        Puppet::usb(&precedence, &[]),
        Puppet::new("socket", with(1, &[])),
        Puppet::new("pcsc", absent()),
    ];
    let numbers = |precedence| {
        let sources = BackendWatcher::of(&backends, precedence);
        let numbers = sources.iter().map(|source| source.backend);
        numbers.collect::<Vec<usize>>()
    };
    assert_eq!(numbers(Some(&precedence)), [2, 1, 0]);
    assert_eq!(numbers(None), [0, 1, 2]);
}
