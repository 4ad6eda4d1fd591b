//! Misbehaviour on demand: what becomes of a frame on its way to the card.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// The card answers it.
    Answer,
    /// The card sees it after a moment, or as soon as the user leaves, and answers it.
    Delay(Duration),
    /// These bytes are the answer; the card does not see the frame.
    Forge(Vec<u8>),
    /// No answer comes until the card is pulled or reset or the user leaves; the card does not see the frame.
    Silence,
    /// The card is pulled before it sees the frame.
    Pull,
    /// The card is pulled after it has executed the frame, before its answer is out.
    PullAfter,
}

type Script = Box<dyn FnMut(&[u8]) -> FrameFault + Send>;

/// Decides the fate of each frame; without a script all are answered.
#[derive(Default)]
pub(super) struct Faults(Mutex<Follow>);

#[derive(Default)]
struct Follow {
    script: Option<Script>,
    caught: bool,
}

impl Faults {
    pub(super) fn follow(&self, script: Option<Script>) {
        *self.state() = Follow {
            script,
            caught: false,
        };
    }

    pub(super) fn fate(&self, frame: &[u8]) -> FrameFault {
        let mut state = self.state();
        let fate = state
            .script
            .as_mut()
            .map_or(FrameFault::Answer, |script| script(frame));
        state.caught |= fate != FrameFault::Answer;
        fate
    }

    /// Whether the script has had its way with a frame.
    pub(super) fn has_caught(&self) -> bool {
        self.state().caught
    }

    fn state(&self) -> MutexGuard<'_, Follow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}
