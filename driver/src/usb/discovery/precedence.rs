//! Decides which readers on the USB are ours. While pcscd responds, it has precedence: it drops a reader for good that it cannot
//! claim at once, and no reader may be listed twice.
//!
//! The watch of pcscd passes its snapshots to [`PcscdPrecedence::take_pcscd_snapshot`]. The watch of the bus reports only
//! [`AllowedReaders`]. The module confirms each applied snapshot by [`PcscdPrecedence::snapshot_applied`].

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;

use crate::{
    reader::ReaderSnapshot,
    usb::host::event_fd::EventFd,
    wait::{StopFlag, earliest, wait_readable},
};

/// Poll interval where no descriptor was left.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Which readers the `usb` backend may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedReaders {
    /// None. It is not yet known whether pcscd is there.
    None,
    /// Those that a udev rule makes pcscd ignore.
    Marked,
    /// All.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// pcscd's state is unknown. It has time to respond until this instant, counted from the first snapshot.
    Unknown(Option<Instant>),
    Pcscd,
    /// pcscd is absent, perhaps because it restarts. It loses precedence at this instant.
    Grace(Instant),
    Usb,
}

impl Phase {
    const fn allowed(self) -> AllowedReaders {
        match self {
            Self::Unknown(_) => AllowedReaders::None,
            Self::Pcscd | Self::Grace(_) => AllowedReaders::Marked,
            Self::Usb => AllowedReaders::All,
        }
    }

    const fn due(self) -> Option<Instant> {
        match self {
            Self::Unknown(deadline) => deadline,
            Self::Grace(deadline) => Some(deadline),
            Self::Pcscd | Self::Usb => None,
        }
    }
}

/// The state of pcscd in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PcscdState {
    /// pcscd responds, even with an error. It has precedence.
    Responding,
    /// pcscd is not running.
    Absent,
    /// pcscd did not respond in time.
    Unresponsive,
}

impl PcscdState {
    fn of(snapshot: &ReaderSnapshot) -> Option<Self> {
        if snapshot.service_instance.is_some() {
            return Some(Self::Responding);
        }
        match snapshot.error.as_ref()?.kind {
            TransportErrorKind::NoService => Some(Self::Absent),
            TransportErrorKind::TimedOut => Some(Self::Unresponsive),
            // The watch was ended.
            TransportErrorKind::Cancelled => None,
            _ => Some(Self::Responding),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct PcscdPrecedence {
    state: Mutex<State>,
    /// Notified when the precedence may have changed.
    changed: Option<Arc<EventFd>>,
    grace: Duration,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Counts the changes of what is ours.
    changes: u32,
    /// The last change that the watch has seen, and the last change whose snapshot was applied.
    seen: u32,
    applied: u32,
}

impl State {
    fn enter(&mut self, phase: Phase) {
        if self.phase.allowed() != phase.allowed() {
            tracing::debug!(
                "usb: this driver may now use {:?} of the readers",
                phase.allowed()
            );
            self.changes = self.changes.wrapping_add(1);
        }
        self.phase = phase;
    }

    /// Ends pcscd's precedence when its time has passed.
    fn end_grace(&mut self, now: Instant) {
        if self.phase.due().is_some_and(|due| due <= now) {
            self.enter(Phase::Usb);
        }
    }
}

impl PcscdPrecedence {
    /// pcscd loses precedence if it is absent at first, or later for `grace`. A restart is no absence.
    #[must_use]
    pub fn new(grace: Duration) -> Arc<Self> {
        let phase = Phase::Unknown(None);
        Arc::new(Self {
            state: Mutex::new(State {
                phase,
                changes: 0,
                seen: 0,
                applied: 0,
            }),
            changed: EventFd::new().ok(),
            grace,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a snapshot of pcscd. Returns whether readers that were ours are ours no longer. The readers of pcscd
    /// must then not be listed before [`PcscdPrecedence::is_applied`].
    pub fn take_pcscd_snapshot(&self, snapshot: &ReaderSnapshot) -> bool {
        PcscdState::of(snapshot).is_some_and(|pcscd| self.take_state_at(pcscd, Instant::now()))
    }

    fn take_state_at(&self, pcscd: PcscdState, now: Instant) -> bool {
        let mut state = self.state();
        state.end_grace(now);
        let before = state.phase;
        let grace = now + self.grace;
        let phase = match (before, pcscd) {
            (_, PcscdState::Responding) => Phase::Pcscd,
            (Phase::Unknown(_), PcscdState::Absent) => Phase::Usb,
            (Phase::Unknown(None), PcscdState::Unresponsive) => Phase::Unknown(Some(grace)),
            // A pcscd that stops responding keeps the readers that it has claimed.
            (Phase::Pcscd, PcscdState::Absent) => Phase::Grace(grace),
            (phase, _) => phase,
        };
        state.enter(phase);
        if phase != before
            && let Some(moved) = &self.changed
        {
            moved.notify();
        }
        before == Phase::Usb && phase == Phase::Pcscd
    }

    /// Returns whether pcscd has precedence for all readers but the marked ones.
    #[must_use]
    pub fn pcscd_has_precedence(&self) -> bool {
        self.state().phase == Phase::Pcscd
    }

    /// The module has applied a snapshot of the bus. Returns whether it has all readers, with pcscd absent.
    pub fn snapshot_applied(&self) -> bool {
        let mut state = self.state();
        state.applied = state.seen;
        state.seen == state.changes && state.phase == Phase::Usb
    }

    /// Returns whether the last applied snapshot follows the last change.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        let state = self.state();
        state.applied == state.changes
    }

    /// The allowed readers, and the number of the change that allowed them.
    #[must_use]
    pub fn allowed_readers(&self) -> (AllowedReaders, u32) {
        self.allowed_at(Instant::now())
    }

    fn allowed_at(&self, now: Instant) -> (AllowedReaders, u32) {
        let mut state = self.state();
        state.end_grace(now);
        if state.phase == Phase::Unknown(None) {
            state.phase = Phase::Unknown(Some(now + self.grace));
        }
        (state.phase.allowed(), state.changes)
    }

    /// The next snapshot of the bus follows the change `moves`.
    pub fn mark_seen(&self, moves: u32) {
        self.state().seen = moves;
    }

    /// Returns when to query again without a notification.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let unsaid = self.changed.is_none();
        let poll = unsaid.then(|| Instant::now() + POLL_INTERVAL);
        earliest(self.state().phase.due(), poll)
    }

    /// Readable after a change, until [`PcscdPrecedence::clear`].
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.changed.as_ref().map(|moved| moved.as_fd())
    }

    /// Clears the descriptor. Call this before asking.
    pub fn clear(&self) {
        if let Some(moved) = &self.changed {
            moved.clear();
        }
    }

    /// Waits until it is known whether pcscd is there, or until `deadline`.
    pub(crate) fn wait_until_known(&self, deadline: Instant, stop: &StopFlag) {
        loop {
            self.clear();
            if self.allowed_readers().0 != AllowedReaders::None
                || Instant::now() >= deadline
                || stop.is_set()
            {
                return;
            }
            let descriptors: Vec<_> = self.descriptor().into_iter().collect();
            if wait_readable(&descriptors, stop, earliest(Some(deadline), self.due())).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use claviger_apdu::TransportError;

    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    fn without_service(kind: TransportErrorKind) -> Option<PcscdState> {
        PcscdState::of(&ReaderSnapshot {
            error: Some(TransportError::before_card(kind, "why")),
            ..ReaderSnapshot::default()
        })
    }

    #[test]
    fn refusing_pcscd_counts_as_responding_and_a_missing_one_as_absent() {
        use TransportErrorKind::{Cancelled, Denied, NoService, Protocol, TimedOut};
        assert_eq!(without_service(Denied), Some(PcscdState::Responding));
        assert_eq!(without_service(Protocol), Some(PcscdState::Responding));
        assert_eq!(without_service(NoService), Some(PcscdState::Absent));
        assert_eq!(without_service(TimedOut), Some(PcscdState::Unresponsive));
        assert_eq!(
            without_service(Cancelled),
            None,
            "it does not show the state of pcscd"
        );
        let there = ReaderSnapshot {
            service_instance: Some(1),
            ..ReaderSnapshot::default()
        };
        assert_eq!(PcscdState::of(&there), Some(PcscdState::Responding));
    }

    #[test]
    fn no_reader_is_allowed_before_pcscd_was_queried_and_all_if_it_is_absent() {
        let precedence = PcscdPrecedence::new(GRACE);
        let now = Instant::now();
        assert_eq!(precedence.allowed_at(now).0, AllowedReaders::None);
        precedence.take_state_at(PcscdState::Absent, now);
        assert_eq!(precedence.allowed_at(now).0, AllowedReaders::All);
    }

    #[test]
    fn pcscd_that_never_responds_counts_as_absent_after_the_grace_period() {
        let precedence = PcscdPrecedence::new(GRACE);
        let now = Instant::now();
        let _ = precedence.allowed_at(now);
        precedence.take_state_at(PcscdState::Unresponsive, now + GRACE / 2);
        assert_eq!(
            precedence
                .allowed_at(now + GRACE - Duration::from_millis(1))
                .0,
            AllowedReaders::None
        );
        assert_eq!(
            precedence.allowed_at(now + GRACE).0,
            AllowedReaders::All,
            "counted from the first snapshot"
        );
    }

    #[test]
    fn responding_pcscd_keeps_the_readers_until_absent_for_the_grace_period() {
        let precedence = PcscdPrecedence::new(GRACE);
        let mut now = Instant::now();
        precedence.take_state_at(PcscdState::Responding, now);
        for still in [PcscdState::Absent, PcscdState::Unresponsive] {
            precedence.take_state_at(PcscdState::Absent, now);
            precedence.take_state_at(still, now + GRACE / 2);
            assert_eq!(
                precedence.allowed_at(now + GRACE / 2).0,
                AllowedReaders::Marked
            );
            assert_eq!(precedence.due().map(|due| due - now), Some(GRACE));
            now += GRACE;
            assert_eq!(precedence.allowed_at(now).0, AllowedReaders::All);
            assert!(
                precedence.take_state_at(PcscdState::Responding, now),
                "readers are taken from us"
            );
            assert_eq!(precedence.allowed_at(now).0, AllowedReaders::Marked);
            assert!(!precedence.take_state_at(PcscdState::Responding, now));
        }
    }

    #[test]
    fn pcscd_that_becomes_unresponsive_keeps_the_readers() {
        let precedence = PcscdPrecedence::new(GRACE);
        let now = Instant::now();
        precedence.take_state_at(PcscdState::Responding, now);
        precedence.take_state_at(PcscdState::Unresponsive, now);
        assert_eq!(
            precedence.allowed_at(now + GRACE * 2).0,
            AllowedReaders::Marked
        );
        assert_eq!(precedence.due(), None);
    }

    #[test]
    fn pcscd_restart_within_the_grace_period_is_no_absence() {
        let precedence = PcscdPrecedence::new(GRACE);
        let now = Instant::now();
        precedence.take_state_at(PcscdState::Responding, now);
        let moves = precedence.allowed_at(now).1;
        precedence.take_state_at(PcscdState::Absent, now);
        precedence.take_state_at(PcscdState::Responding, now + GRACE / 2);
        assert_eq!(
            precedence.allowed_at(now + GRACE * 2),
            (AllowedReaders::Marked, moves)
        );
        assert_eq!(precedence.due(), None, "nothing is waited for");
    }

    #[test]
    fn precedence_is_applied_once_a_snapshot_after_its_change_was_processed() {
        let precedence = PcscdPrecedence::new(GRACE);
        let now = Instant::now();
        precedence.take_state_at(PcscdState::Absent, now);
        let (_, open) = precedence.allowed_at(now);
        assert!(!precedence.is_applied());
        precedence.mark_seen(open);
        assert!(precedence.snapshot_applied() && precedence.is_applied());
        precedence.take_state_at(PcscdState::Responding, now);
        assert!(!precedence.snapshot_applied(), "a picture of before");
        assert!(!precedence.is_applied());
        let (_, shut) = precedence.allowed_at(now);
        precedence.mark_seen(shut);
        assert!(!precedence.snapshot_applied(), "pcscd is there");
        assert!(precedence.is_applied());
    }
}
