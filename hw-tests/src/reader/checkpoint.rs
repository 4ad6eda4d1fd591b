//! What passes on the way to the card.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Fate, Reader};

/// INS of VERIFY (ISO 7816-4, 11.6.6).
const VERIFY: u8 = 0x20;

/// Counts the PINs that are sent to a card, and catches a frame on demand; clones are the same checkpoint.
///
/// A PIN counts when it comes, whatever becomes of it; [`Counts`](super::Counts) has what the card answered.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint(Arc<Mutex<Orders>>);

#[derive(Debug, Default)]
struct Orders {
    pins: u64,
    /// The instruction of the frame to catch, and for how long.
    wanted: Option<(u8, Duration)>,
    caught: bool,
}

impl Checkpoint {
    /// Lets every frame to the card of `reader` pass here, instead of any other script.
    pub fn guard(&self, reader: &Reader) {
        let orders = self.clone();
        reader.on_frame(move |frame| orders.fate(frame));
    }

    /// The next frame with this instruction byte comes to the card so much later.
    pub fn delay(&self, instruction: u8, time: Duration) {
        let mut orders = self.orders();
        orders.wanted = Some((instruction, time));
        orders.caught = false;
    }

    /// Whether the frame of the last [`Checkpoint::delay`] has come.
    #[must_use]
    pub fn has_caught(&self) -> bool {
        self.orders().caught
    }

    /// How often a PIN was sent: VERIFY with data. Without, it asks, or logs out.
    #[must_use]
    pub fn pins(&self) -> u64 {
        self.orders().pins
    }

    fn fate(&self, frame: &[u8]) -> Fate {
        let mut orders = self.orders();
        let instruction = frame.get(1).copied();
        if instruction == Some(VERIFY) && frame.len() > 5 {
            orders.pins += 1;
        }
        let caught = orders
            .wanted
            .take_if(|(wanted, _)| instruction == Some(*wanted));
        let Some((_, time)) = caught else {
            return Fate::Answer;
        };
        orders.caught = true;
        Fate::Delay(time)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
