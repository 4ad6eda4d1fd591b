//! Faults that a test injects: the fate of a frame on its path to the card.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The fate of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// The card responds.
    Answer,
    /// The card gets the frame after this time, or as soon as the user disconnects.
    Delay(Duration),
    /// These bytes are the response. The card does not get the frame.
    Forge(Vec<u8>),
    /// There is no response until the card is removed or reset, or the user disconnects. The card does not get the frame.
    Silence,
    /// The card is removed before it gets the frame.
    Pull,
    /// The card is removed after it has executed the frame, before the response is sent.
    PullAfter,
}

type Script = Box<dyn FnMut(&[u8]) -> FrameFault + Send>;

/// Decides the fate of each frame. Without a script, the card responds to all.
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

    /// Returns whether the script has applied a fault.
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
