//! A reader of ours: who has it at the moment, and what is known of the cards in its slots.

pub(crate) mod access;
pub(crate) mod driver;
pub(crate) mod registry;
pub(crate) mod slot;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use claviger_apdu::{Atr, TransportError};

use self::{
    access::{Access, AtDesk},
    driver::Desk,
};
use super::{
    claim::{Grip, Taken, Wish, shared::Holding, wait_for},
    discovery::reader_info::Site,
    host::transfer::OpenError,
    pipe::bulk::Why,
};
use crate::wait::Stop;

/// One slot of a reader from one plugging in to the next; of most readers, the only one.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) site: Site,
    holding: Arc<Holding>,
    access: Access,
    /// It has left the bus, or is not ours any more.
    retired: AtomicBool,
}

impl Station {
    pub(crate) fn new(site: Site, holding: Arc<Holding>) -> Self {
        Self {
            access: Access::to(Desk::of(site.slot)),
            site,
            holding,
            retired: AtomicBool::new(false),
        }
    }

    /// The slot's desk, for one conversation. Whoever is at it is waited for until `until` or `stop`.
    ///
    /// # Errors
    /// Busy or Cancelled, with nothing sent.
    pub(crate) fn desk_within(
        &self,
        until: Instant,
        stop: &Stop,
    ) -> Result<AtDesk<'_>, TransportError> {
        self.access.within(until, stop).map_err(|why| {
            let what = match why {
                Why::Stopped => "the call was ended",
                _ => "another call is at it",
            };
            let what = format!("reader {}: {what}", self.site.interface.name);
            TransportError::before_card(why.kind(), what)
        })
    }

    /// The slot's desk, unless somebody is at it.
    pub(crate) fn try_desk(&self) -> Option<AtDesk<'_>> {
        self.access.try_now()
    }

    /// The connection has ended. Nobody is waited for: whoever is at the desk, or comes next, lets go of the reader.
    pub(crate) fn end_connection(&self) {
        self.access.end_connection();
    }

    /// The slot's desk, unless somebody is at it or a command would have to wait for another slot's.
    pub(crate) fn free_desk(&self) -> Option<AtDesk<'_>> {
        let is_free = self.held().is_none_or(|grip| grip.is_free());
        is_free.then(|| self.try_desk()).flatten()
    }

    /// The claim, while somebody in this process has it: not one that is just being made, which wakes the watch when it is.
    pub(crate) fn held(&self) -> Option<Arc<Grip>> {
        self.holding.grip()
    }

    /// The answer to reset of the card that another process of ours has powered, or had, since the reader was plugged in.
    pub(crate) fn told(&self) -> Option<Atr> {
        let record = self.holding.means.locks.peek(&self.site.place)?;
        let atr = record.atr(self.site.slot).cloned();
        atr.filter(|_| record.life == self.site.life)
    }

    /// The device has left, or is not ours any more: no claim is made from now on, and one that lasts ends with the
    /// conversation under way, whoever still has a connection.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if let Some(grip) = self.held() {
            grip.recall();
        }
        if let Some(mut desk) = self.try_desk() {
            desk.yield_if_wanted();
        }
    }

    /// Claims the reader, or shares in this process's claim.
    ///
    /// # Errors
    /// As [`wait_for`].
    pub(crate) fn claim(&self, wish: Wish<'_>) -> Result<Arc<Grip>, TransportError> {
        wait_for(&self.site, &*self.holding.means.opener, wish, |knocks| {
            let gone = || Err(Taken::Open(OpenError::Gone));
            if self.is_retired() {
                return gone();
            }
            let grip = self.holding.claim(&self.site, knocks)?;
            // Whoever retires it meanwhile has seen the claim, or is seen here.
            if self.is_retired() { gone() } else { Ok(grip) }
        })
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// What has happened to the reader so far that its card may not have survived.
    fn seen(&self) -> Seen {
        let others = self.site.common.strangers.count();
        Seen {
            strangers: self.holding.strangers().wrapping_add(others),
            resets: self.site.common.resets(),
        }
    }
}

/// How often something happened that the state of no card survives for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    strangers: u64,
    resets: u64,
}
