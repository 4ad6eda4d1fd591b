//! Access to a slot's desk: by one thread at a time, in the order of asking, and nobody waits longer than it wants to.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::driver::Desk;
use crate::{
    usb::pipe::{
        bulk::Why,
        fair_queue::{Turn, Turns},
    },
    wait::Stop,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Access {
    /// Locked by whose turn it is.
    desk: Mutex<Desk>,
    turns: Arc<Turns>,
    /// The connection has ended, which the desk does not know yet.
    is_over: AtomicBool,
}

/// A slot's desk, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct AtDesk<'a> {
    // In this order: whoever comes next finds the desk free.
    desk: MutexGuard<'a, Desk>,
    _turn: Turn,
    _after: After<'a>,
}

impl Access {
    pub(super) fn to(desk: Desk) -> Self {
        Self {
            desk: Mutex::new(desk),
            turns: Turns::new(1),
            is_over: AtomicBool::new(false),
        }
    }

    /// The desk; whoever is at it is waited for until `until` or `stop`.
    ///
    /// # Errors
    /// [`Why::Taken`] or [`Why::Stopped`].
    pub(super) fn within(&self, until: Instant, stop: &Stop) -> Result<AtDesk<'_>, Why> {
        let turn = self.turns.take(until, stop);
        if turn.is_err() {
            // It may just have been passed on from here.
            self.catch_up();
        }
        turn.map(|turn| self.at_desk(turn))
    }

    /// The desk, unless somebody is at it.
    pub(super) fn try_now(&self) -> Option<AtDesk<'_>> {
        self.turns.take_free().map(|turn| self.at_desk(turn))
    }

    fn at_desk(&self, turn: Turn) -> AtDesk<'_> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over.swap(false, Ordering::SeqCst) {
            desk.disconnect();
        }
        AtDesk {
            desk,
            _turn: turn,
            _after: After(self),
        }
    }

    /// Ends the connection, by whoever is at the desk or comes next.
    pub(super) fn end_connection(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.catch_up();
    }

    /// Does what was left to whoever is at the desk, unless somebody is.
    fn catch_up(&self) {
        if self.is_over.load(Ordering::SeqCst) {
            drop(self.try_now());
        }
    }
}

impl Deref for AtDesk<'_> {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl DerefMut for AtDesk<'_> {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }
}

/// What is done after a turn at the desk.
#[derive(Debug)]
struct After<'a>(&'a Access);

impl Drop for After<'_> {
    fn drop(&mut self) {
        self.0.catch_up();
    }
}
