//! The watches of the backends, and the path from their snapshots to the slot table.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::Call;
use claviger_driver::{
    Backend, Pollable, ReaderSnapshot, Stopped, Watch, pollable,
    usb::discovery::precedence::PcscdPrecedence,
};

use crate::{
    error_report::{ErrorReports, Role},
    event_queue::EventQueue,
    idle::IdleReleaser,
    slots::SlotTable,
};

/// Timeout of the first snapshot of the readers: pcscd waits for every reader to power its card.
pub(crate) const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);
/// When pcscd has come, the readers of the `usb` backend have this long to leave the slot table.
const USB_RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state shared by watchers, waiters and all other calls.
pub(crate) struct Shared {
    pub(crate) queue: EventQueue<SlotTable>,
    idle: Weak<IdleReleaser>,
    /// The number of backends without a first snapshot.
    awaiting_first: AtomicUsize,
    /// A call has continued before all backends had a first snapshot. Cards in a later first snapshot raise events.
    is_late: AtomicBool,
    reports: Mutex<ErrorReports>,
    /// The precedence of pcscd over the USB, if both backends are configured.
    precedence: Option<Arc<PcscdPrecedence>>,
}

impl Shared {
    /// Returns the state for `sources` backends without a snapshot.
    pub(crate) fn new(
        sources: usize,
        idle: &Arc<IdleReleaser>,
        precedence: Option<Arc<PcscdPrecedence>>,
    ) -> Self {
        Self {
            queue: EventQueue::default(),
            idle: Arc::downgrade(idle),
            awaiting_first: AtomicUsize::new(sources),
            is_late: AtomicBool::new(false),
            reports: Mutex::default(),
            precedence,
        }
    }

    /// Waits until every backend has a first snapshot, for `FIRST_SNAPSHOT_TIMEOUT` at most.
    pub(crate) fn wait_for_first_snapshots(&self) {
        let seen = |_: &SlotTable| self.awaiting_first.load(Ordering::SeqCst) == 0;
        if self.awaiting_first.load(Ordering::SeqCst) > 0
            && !self
                .queue
                .wait_until(Instant::now() + FIRST_SNAPSHOT_TIMEOUT, seen)
            && !self.queue.is_stopped()
        {
            self.is_late.store(true, Ordering::SeqCst);
            tracing::warn!(
                "no snapshot of the readers after {FIRST_SNAPSHOT_TIMEOUT:?}; continuing without it"
            );
        }
    }

    fn apply(&self, source: &BackendWatcher, snapshot: &ReaderSnapshot) {
        let first = !source.has_snapshot;
        let effect = self.queue.update(|table| {
            if first {
                // Under the lock of the queue, so a thread that waits for the first snapshot cannot miss the change.
                self.awaiting_first.fetch_sub(1, Ordering::SeqCst);
            }
            if source.role == Role::Usb
                && self
                    .precedence
                    .as_ref()
                    .is_some_and(|precedence| precedence.snapshot_applied())
            {
                table.give_up_lost_services();
            }
            let initial = first && !self.is_late.load(Ordering::SeqCst);
            table.apply(source.backend, snapshot, initial, Instant::now())
        });
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        if effect.other_cards {
            idle.check_at(Instant::now());
        }
        if let Some(at) = effect.next_check {
            idle.check_at(at);
        }
    }

    /// Logs the error of a backend, unless it was logged last.
    fn report_error(&self, source: &BackendWatcher, snapshot: &ReaderSnapshot) {
        let line = {
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.next_report(source.backend, source.role, snapshot)
        };
        // A stopped watch reports that its service is gone, which is no error.
        if let Some(line) = line.filter(|_| !self.queue.is_stopped()) {
            tracing::warn!("{line}");
        }
    }

    /// Waits until the readers of the `usb` backend have left the slot table, because pcscd has precedence now.
    fn wait_for_the_usb_to_leave(&self) {
        let Some(precedence) = &self.precedence else {
            return;
        };
        let deadline = Instant::now() + USB_RELEASE_TIMEOUT;
        if !self.queue.wait_until(deadline, |_| precedence.is_applied()) {
            tracing::debug!("readers on the USB were not released within {USB_RELEASE_TIMEOUT:?}");
        }
    }
}

/// The watch of one backend, with its role among the backends.
pub(crate) struct BackendWatcher {
    pub(crate) backend: usize,
    role: Role,
    pub(crate) watch: Box<dyn Watch>,
    has_snapshot: bool,
    /// The last snapshot had no reader and no error.
    is_empty: bool,
}

impl BackendWatcher {
    /// Returns the watches of `backends`. The watch of pcscd comes before the watch of the USB, which depends on it.
    pub(crate) fn of(
        backends: &[Arc<dyn Backend>],
        precedence: Option<&Arc<PcscdPrecedence>>,
    ) -> Vec<Self> {
        let role = |name| match (precedence, name) {
            (Some(_), "pcsc") => Role::Pcscd,
            (Some(_), "usb") => Role::Usb,
            _ => Role::Own,
        };
        let source = |(backend, of): (usize, &Arc<dyn Backend>)| Self {
            backend,
            role: role(of.name()),
            watch: of.watch(),
            has_snapshot: false,
            is_empty: true,
        };
        let mut sources: Vec<Self> = backends.iter().enumerate().map(source).collect();
        let place = |role| sources.iter().position(|source| source.role == role);
        if let (Some(usb), Some(pcscd)) = (place(Role::Usb), place(Role::Pcscd))
            && usb < pcscd
        {
            sources.swap(usb, pcscd);
        }
        sources
    }

    /// Returns whether this watch can report nothing while pcscd has precedence. Its last snapshot was empty, so no device
    /// that pcscd ignores is there.
    fn is_behind_pcscd(&self, shared: &Shared) -> bool {
        let is_shut = || {
            shared
                .precedence
                .as_ref()
                .is_some_and(|precedence| precedence.pcscd_has_precedence())
        };
        self.role == Role::Usb && self.is_empty && is_shut()
    }

    /// Gives a snapshot of pcscd to the precedence. Returns whether readers on the USB have to leave first.
    fn move_precedence(&self, snapshot: &ReaderSnapshot, shared: &Shared) -> bool {
        let precedence = shared.precedence.as_ref();
        self.role == Role::Pcscd
            && precedence.is_some_and(|precedence| precedence.take_pcscd_snapshot(snapshot))
    }

    fn apply_snapshot(&mut self, snapshot: &ReaderSnapshot, shared: &Shared) {
        shared.apply(self, snapshot);
        self.has_snapshot = true;
        self.is_empty = snapshot.readers.is_empty() && snapshot.error.is_none();
    }
}

/// The watches that one thread follows. The watch of pcscd comes before the watch of the USB, which depends on it.
pub(crate) struct Sources<'a> {
    pub(crate) all: &'a mut [BackendWatcher],
    pub(crate) shared: &'a Shared,
}

impl Sources<'_> {
    pub(crate) fn query(&mut self) {
        for number in 0..self.all.len() {
            self.query_source(number);
        }
    }

    pub(crate) fn query_source(&mut self, number: usize) {
        if let Some(source) = self.all.get_mut(number) {
            let snapshot = source.watch.snapshot(Call::within(FIRST_SNAPSHOT_TIMEOUT));
            self.apply_snapshot(number, &snapshot);
        }
    }

    /// Waits inside the only watch and applies its snapshot.
    pub(crate) fn follow_only(&mut self) -> Result<(), Stopped> {
        let Some(only) = self.all.first_mut() else {
            return Err(Stopped);
        };
        let snapshot = only.watch.next_snapshot()?;
        self.apply_snapshot(0, &snapshot);
        Ok(())
    }

    /// Waits for all pollable watches in one poll(2), until `deadline` at most. Applies the snapshot of the watch that has
    /// changed.
    pub(crate) fn follow_pollable(&mut self, deadline: Option<Instant>) -> Result<(), Stopped> {
        let watches = self.all.iter_mut().enumerate();
        let pollable = watches.filter_map(|(number, source)| {
            let watch = source.watch.pollable()?;
            Some((number, watch))
        });
        let (numbers, mut watches): (Vec<usize>, Vec<&mut dyn Pollable>) = pollable.unzip();
        if let Some((changed, snapshot)) = pollable::next_of(&mut watches, deadline)?
            && let Some(number) = numbers.get(changed)
        {
            self.apply_snapshot(*number, &snapshot);
        }
        Ok(())
    }

    fn apply_snapshot(&mut self, number: usize, snapshot: &ReaderSnapshot) {
        let shared = self.shared;
        let Some(source) = self.all.get(number) else {
            return;
        };
        // Reported before the readers on the USB: their error line contains the reason why pcscd is absent.
        shared.report_error(source, snapshot);
        if source.move_precedence(snapshot, shared) {
            match self.all.iter().position(|source| source.role == Role::Usb) {
                Some(usb) => self.query_source(usb),
                None => shared.wait_for_the_usb_to_leave(),
            }
        }
        if let Some(source) = self.all.get_mut(number) {
            source.apply_snapshot(snapshot, shared);
        }
    }

    /// Returns the first watch that is not pollable. Only a blocking wait inside that watch can follow it.
    pub(crate) fn blocking(&mut self) -> Option<usize> {
        let mut all = self.all.iter_mut();
        all.position(|source| source.watch.pollable().is_none())
    }

    /// Returns whether every other watch can report nothing until watch `number` reports a change.
    pub(crate) fn depend_on(&self, number: usize) -> bool {
        let mut all = self.all.iter().enumerate();
        all.all(|(other, source)| other == number || source.is_behind_pcscd(self.shared))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use claviger_driver::usb::discovery::precedence::AllowedReaders;

    use super::*;
    use crate::{
        events::tests::{FakeBackend, NoCards, absent},
        idle::IdleTimeouts,
    };

    #[test]
    fn absence_of_pcscd_is_recorded_before_the_usb_is_allowed() {
        let precedence = PcscdPrecedence::new(Duration::from_secs(60));
        let usb = FakeBackend::usb(&precedence, &[]);
        let backends: [Arc<dyn Backend>; 2] = [FakeBackend::new("pcsc", absent()), usb];
        let timeouts = IdleTimeouts::default();
        let idle = Arc::new(IdleReleaser::new(Arc::new(NoCards), timeouts, false));
        let shared = Shared::new(2, &idle, Some(Arc::clone(&precedence)));
        let mut sources = BackendWatcher::of(&backends, Some(&precedence));
        let is_allowed = || precedence.allowed_readers().0 == AllowedReaders::All;
        thread::scope(|scope| {
            let errors = shared.reports.lock().unwrap();
            let watcher = scope.spawn(|| {
                let (all, shared) = (&mut sources[..1], &shared);
                Sources { all, shared }.query();
            });
            let end = Instant::now() + Duration::from_millis(200);
            while Instant::now() < end {
                assert!(!is_allowed(), "allowed before the absence is recorded");
                thread::sleep(Duration::from_millis(1));
            }
            drop(errors);
            watcher.join().unwrap();
        });
        assert!(is_allowed());
    }
}
