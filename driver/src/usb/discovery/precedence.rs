//! Whether the readers on the USB are ours. While pcscd answers they are its: a claim of ours at the moment it first
//! sees a device makes it drop that reader for good, and nobody should see one reader twice.
//!
//! Whoever follows pcscd tells the gate what it says ([`Gate::hear`]); the watch of the bus shows and touches what the
//! gate lets it ([`Ours`]); whoever takes its pictures in says so ([`Gate::settle`]).

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;

use crate::{
    reader::Readers,
    usb::host::event_fd::Signal,
    wait::{Stop, earliest, readable},
};

/// How often the gate is looked at when no descriptor was left for it.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(50);

/// Which readers are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// None, as nobody knows yet whether pcscd is there.
    None,
    /// Those that pcscd was told to leave to us.
    Marked,
    /// All there are.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// pcscd has not been heard of; it has time until then, from the first look on.
    Unheard(Option<Instant>),
    Shut,
    /// Shut, and pcscd is absent: perhaps it restarts. The gate opens then.
    Absent(Instant),
    Open,
}

impl Phase {
    const fn ours(self) -> Ours {
        match self {
            Self::Unheard(_) => Ours::None,
            Self::Shut | Self::Absent(_) => Ours::Marked,
            Self::Open => Ours::All,
        }
    }

    const fn due(self) -> Option<Instant> {
        match self {
            Self::Unheard(until) => until,
            Self::Absent(until) => Some(until),
            Self::Shut | Self::Open => None,
        }
    }
}

/// What pcscd says, by a picture of its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It answers, be it with a refusal: readers are in its hands.
    Answers,
    /// It is not there.
    Absent,
    /// It has not answered in time.
    Silent,
}

impl Answer {
    fn of(picture: &Readers) -> Option<Self> {
        if picture.service.is_some() {
            return Some(Self::Answers);
        }
        match picture.trouble.as_ref()?.kind {
            TransportErrorKind::NoService => Some(Self::Absent),
            TransportErrorKind::TimedOut => Some(Self::Silent),
            // The watch was ended.
            TransportErrorKind::Cancelled => None,
            _ => Some(Self::Answers),
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    /// Told when the gate may have moved.
    moved: Option<Arc<Signal>>,
    grace: Duration,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Counts the changes of what is ours.
    moves: u32,
    /// The move that the watch has seen, and the one whose picture was taken in.
    seen: u32,
    settled: u32,
}

impl State {
    fn enter(&mut self, phase: Phase) {
        if self.phase.ours() != phase.ours() {
            tracing::debug!("usb: {:?} of the readers are ours", phase.ours());
            self.moves = self.moves.wrapping_add(1);
        }
        self.phase = phase;
    }

    /// Opens the gate when its time has come.
    fn pass(&mut self, now: Instant) {
        if self.phase.due().is_some_and(|due| due <= now) {
            self.enter(Phase::Open);
        }
    }
}

impl Gate {
    /// A gate that opens when pcscd is not there, or has been absent for `grace` after it was: a restart is no absence.
    #[must_use]
    pub fn behind_pcscd(grace: Duration) -> Arc<Self> {
        let phase = Phase::Unheard(None);
        Arc::new(Self {
            state: Mutex::new(State {
                phase,
                moves: 0,
                seen: 0,
                settled: 0,
            }),
            moved: Signal::new().ok(),
            grace,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what pcscd says, by a picture of its readers; whether readers that were ours no longer are. Then
    /// pcscd's are shown only once the gate [is settled](Gate::is_settled).
    pub fn hear(&self, picture: &Readers) -> bool {
        Answer::of(picture).is_some_and(|answer| self.hear_at(answer, Instant::now()))
    }

    fn hear_at(&self, answer: Answer, now: Instant) -> bool {
        let mut state = self.state();
        state.pass(now);
        let before = state.phase;
        let grace = now + self.grace;
        let phase = match (before, answer) {
            (_, Answer::Answers) => Phase::Shut,
            (Phase::Unheard(_), Answer::Absent) => Phase::Open,
            (Phase::Unheard(None), Answer::Silent) => Phase::Unheard(Some(grace)),
            // One that falls silent keeps what it has claimed.
            (Phase::Shut, Answer::Absent) => Phase::Absent(grace),
            (phase, _) => phase,
        };
        state.enter(phase);
        if phase != before
            && let Some(moved) = &self.moved
        {
            moved.set();
        }
        before == Phase::Open && phase == Phase::Shut
    }

    /// Whether pcscd is there, as far as is known, and has all readers but those it was told to leave.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.state().phase == Phase::Shut
    }

    /// A picture of the bus was taken in; whether it is one of all readers, with pcscd absent.
    pub fn settle(&self) -> bool {
        let mut state = self.state();
        state.settled = state.seen;
        state.seen == state.moves && state.phase == Phase::Open
    }

    /// Whether the last picture of the bus that was taken in is as the gate has it now.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let state = self.state();
        state.settled == state.moves
    }

    /// What is ours now, and the number of the move that made it so.
    #[must_use]
    pub fn look(&self) -> (Ours, u32) {
        self.look_at(Instant::now())
    }

    fn look_at(&self, now: Instant) -> (Ours, u32) {
        let mut state = self.state();
        state.pass(now);
        if state.phase == Phase::Unheard(None) {
            state.phase = Phase::Unheard(Some(now + self.grace));
        }
        (state.phase.ours(), state.moves)
    }

    /// What [`Gate::look`] said at `moves` is what the next picture shows.
    pub fn see(&self, moves: u32) {
        self.state().seen = moves;
    }

    /// When the gate is to be looked at without being told.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let unsaid = self.moved.is_none();
        let look = unsaid.then(|| Instant::now() + WITHOUT_DESCRIPTOR);
        earliest(self.state().phase.due(), look)
    }

    /// Readable once it may have moved, until [`Gate::clear`].
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.moved.as_ref().map(|moved| moved.as_fd())
    }

    /// To be called before a look.
    pub fn clear(&self) {
        if let Some(moved) = &self.moved {
            moved.clear();
        }
    }

    /// Waits until it is known whether pcscd is there, its time is up, or `until`.
    pub(crate) fn wait_until_heard(&self, until: Instant, stop: &Stop) {
        loop {
            self.clear();
            if self.look().0 != Ours::None || Instant::now() >= until || stop.is_set() {
                return;
            }
            let descriptors: Vec<_> = self.descriptor().into_iter().collect();
            if readable(&descriptors, stop, earliest(Some(until), self.due())).is_err() {
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

    fn without_service(kind: TransportErrorKind) -> Option<Answer> {
        Answer::of(&Readers {
            trouble: Some(TransportError::before_card(kind, "why")),
            ..Readers::default()
        })
    }

    #[test]
    fn a_pcscd_that_refuses_answers_and_one_that_is_not_there_does_not() {
        use TransportErrorKind::{Cancelled, Denied, NoService, Protocol, TimedOut};
        assert_eq!(without_service(Denied), Some(Answer::Answers));
        assert_eq!(without_service(Protocol), Some(Answer::Answers));
        assert_eq!(without_service(NoService), Some(Answer::Absent));
        assert_eq!(without_service(TimedOut), Some(Answer::Silent));
        assert_eq!(without_service(Cancelled), None, "it says nothing of pcscd");
        let there = Readers {
            service: Some(1),
            ..Readers::default()
        };
        assert_eq!(Answer::of(&there), Some(Answer::Answers));
    }

    #[test]
    fn nothing_is_ours_before_pcscd_was_heard_of_and_all_at_once_where_it_is_absent() {
        let gate = Gate::behind_pcscd(GRACE);
        let now = Instant::now();
        assert_eq!(gate.look_at(now).0, Ours::None);
        gate.hear_at(Answer::Absent, now);
        assert_eq!(gate.look_at(now).0, Ours::All);
    }

    #[test]
    fn a_pcscd_that_never_answers_counts_as_absent_after_the_grace() {
        let gate = Gate::behind_pcscd(GRACE);
        let now = Instant::now();
        let _ = gate.look_at(now);
        gate.hear_at(Answer::Silent, now + GRACE / 2);
        assert_eq!(
            gate.look_at(now + GRACE - Duration::from_millis(1)).0,
            Ours::None
        );
        assert_eq!(
            gate.look_at(now + GRACE).0,
            Ours::All,
            "counted from the first look"
        );
    }

    #[test]
    fn a_pcscd_that_answers_has_the_readers_until_it_was_absent_for_the_grace() {
        let gate = Gate::behind_pcscd(GRACE);
        let mut now = Instant::now();
        gate.hear_at(Answer::Answers, now);
        for still in [Answer::Absent, Answer::Silent] {
            gate.hear_at(Answer::Absent, now);
            gate.hear_at(still, now + GRACE / 2);
            assert_eq!(gate.look_at(now + GRACE / 2).0, Ours::Marked);
            assert_eq!(gate.due().map(|due| due - now), Some(GRACE));
            now += GRACE;
            assert_eq!(gate.look_at(now).0, Ours::All);
            assert!(
                gate.hear_at(Answer::Answers, now),
                "readers are taken from us"
            );
            assert_eq!(gate.look_at(now).0, Ours::Marked);
            assert!(!gate.hear_at(Answer::Answers, now));
        }
    }

    #[test]
    fn a_pcscd_that_falls_silent_keeps_the_readers() {
        let gate = Gate::behind_pcscd(GRACE);
        let now = Instant::now();
        gate.hear_at(Answer::Answers, now);
        gate.hear_at(Answer::Silent, now);
        assert_eq!(gate.look_at(now + GRACE * 2).0, Ours::Marked);
        assert_eq!(gate.due(), None);
    }

    #[test]
    fn a_restart_is_no_absence() {
        let gate = Gate::behind_pcscd(GRACE);
        let now = Instant::now();
        gate.hear_at(Answer::Answers, now);
        let moves = gate.look_at(now).1;
        gate.hear_at(Answer::Absent, now);
        gate.hear_at(Answer::Answers, now + GRACE / 2);
        assert_eq!(gate.look_at(now + GRACE * 2), (Ours::Marked, moves));
        assert_eq!(gate.due(), None, "nothing is waited for");
    }

    #[test]
    fn it_is_settled_when_a_picture_made_after_its_last_move_was_taken_in() {
        let gate = Gate::behind_pcscd(GRACE);
        let now = Instant::now();
        gate.hear_at(Answer::Absent, now);
        let (_, open) = gate.look_at(now);
        assert!(!gate.is_settled());
        gate.see(open);
        assert!(gate.settle() && gate.is_settled());
        gate.hear_at(Answer::Answers, now);
        assert!(!gate.settle(), "a picture of before");
        assert!(!gate.is_settled());
        let (_, shut) = gate.look_at(now);
        gate.see(shut);
        assert!(!gate.settle(), "pcscd is there");
        assert!(gate.is_settled());
    }
}
