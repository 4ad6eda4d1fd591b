//! One user of a reader's card, among others.

use std::{
    os::fd::OwnedFd,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use claviger_driver::socket::frame::Refusal;
use rustix::net::{RecvFlags, recv};

use super::{Event, Exchange, FrameFault, Reader, SharedState, Stop};

/// How often a user that waits looks whether its other end is still there.
const LOOK_AROUND: Duration = Duration::from_millis(20);

/// One connection to the card. Dropping it gives back what it holds.
#[derive(Debug)]
pub(crate) struct CardUser {
    reader: Reader,
    id: u64,
    bond: UserState,
    stop: Stop,
    /// The other end of its connection.
    peer: OwnedFd,
}

/// What a user was told of its card last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UserState {
    /// It has not connected yet.
    None,
    /// It is connected to the card of this count of changes, in the state of this count of resets.
    Card { changes: u32, resets: u64 },
    /// It knows that its card was reset.
    Reset { changes: u32 },
}

impl CardUser {
    /// A new user of the card in `reader`. Its waits end with `stop`, or when the other end of `peer` is closed.
    pub(crate) fn new(reader: &Reader, stop: Stop, peer: OwnedFd) -> Self {
        Self {
            id: reader.0.users.fetch_add(1, Ordering::Relaxed) + 1,
            reader: reader.clone(),
            bond: UserState::None,
            stop,
            peer,
        }
    }

    /// Connects to the card, powering it up if nothing has yet.
    pub(crate) fn connect(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut place = reader.wait_while(reader.place(), |place| place.busy && !place.powered);
        self.attach_to(&place)?;
        if !place.powered {
            self.power_up(&mut place);
        }
        Ok(())
    }

    /// Connects to the card and leaves its power alone.
    pub(crate) fn attach(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        self.attach_to(&reader.place())
    }

    fn attach_to(&mut self, place: &SharedState) -> Result<(), Refusal> {
        if self.has_lost_its_card(place) {
            return Err(Refusal::CardRemoved);
        }
        if !place.present {
            return Err(Refusal::NoCard);
        }
        self.reader.0.journal.write(self.id, Event::Connect);
        self.bond = UserState::Card {
            changes: place.changes,
            resets: place.resets,
        };
        Ok(())
    }

    /// Sends one frame; atomic by itself.
    pub(crate) fn transmit(&mut self, frame: &[u8]) -> Result<Vec<u8>, Refusal> {
        let reader = self.reader.clone();
        let mut place = self.wait_for_turn(&reader)?;
        if !place.powered {
            self.power_up(&mut place);
        }
        place.busy = true;
        drop(place);
        let answer = self.deliver(frame);
        let mut place = reader.place();
        place.busy = false;
        reader.0.moved.notify_all();
        if self.has_lost_its_card(&place) {
            return Err(Refusal::CardRemoved);
        }
        match answer {
            Some(answer) => Ok(answer),
            None => Err(self.check(&place).err().unwrap_or(Refusal::CardRemoved)),
        }
    }

    /// Waits until no frame is on its way; refused at once while another user holds the card.
    fn wait_for_turn<'a>(
        &mut self,
        reader: &'a Reader,
    ) -> Result<MutexGuard<'a, SharedState>, Refusal> {
        let mut place = reader.place();
        loop {
            self.check(&place)?;
            if place.holder.is_some_and(|holder| holder != self.id) {
                return Err(Refusal::Busy);
            }
            if !place.busy || self.stop.is_set() {
                return Ok(place);
            }
            place = reader.wait_for_change(place);
        }
    }

    /// Waits for exclusivity.
    pub(crate) fn begin(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut place = reader.place();
        self.check(&place)?;
        if place.holder == Some(self.id) {
            return Err(Refusal::Protocol);
        }
        place.queue.push_back(self.id);
        place = self.wait_as_long_as(place, &reader, |place| self.must_wait(place));
        place.queue.retain(|id| *id != self.id);
        reader.0.moved.notify_all();
        self.check(&place)?;
        if self.has_left() {
            return Err(Refusal::CardRemoved);
        }
        place.holder = Some(self.id);
        reader.0.journal.write(self.id, Event::Begin);
        Ok(())
    }

    /// Gives exclusivity back, also after a reset.
    pub(crate) fn end(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut place = reader.place();
        if self.has_lost_its_card(&place) {
            return Err(Refusal::CardRemoved);
        }
        if place.holder != Some(self.id) {
            return Err(Refusal::Protocol);
        }
        self.release(&mut place);
        Ok(())
    }

    /// Power-cycles the card; the other users hear of it.
    pub(crate) fn reset(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut place = self.wait_for_turn(&reader)?;
        place.resets += 1;
        reader.0.moved.notify_all();
        reader.0.journal.write(self.id, Event::Reset);
        reader.0.card.reset();
        self.bond = UserState::Card {
            changes: place.changes,
            resets: place.resets,
        };
        Ok(())
    }

    /// Switches the power on afresh, as pcscd does it; the card forgets everything.
    pub(crate) fn power_on(&mut self) {
        let reader = self.reader.clone();
        let mut place = reader.place();
        self.power_up(&mut place);
    }

    /// Resets the card without a power cycle, as pcscd does it; the card forgets everything all the same.
    pub(crate) fn warm_reset(&mut self) {
        let reader = self.reader.clone();
        let _place = reader.place();
        reader.0.journal.write(self.id, Event::Reset);
        reader.0.card.reset();
    }

    /// Switches the power off, as pcscd does it.
    pub(crate) fn power_off(&mut self) {
        let mut place = self.reader.place();
        place.powered = false;
        self.reader.0.journal.write(self.id, Event::PowerDown);
    }

    fn power_up(&self, place: &mut SharedState) {
        place.powered = true;
        self.reader.0.journal.write(self.id, Event::PowerUp);
        self.reader.0.card.reset();
    }

    /// Holds that the card is the one connected to, in the state it was connected in. Tells of a reset once.
    fn check(&mut self, place: &SharedState) -> Result<(), Refusal> {
        match self.bond {
            _ if self.has_lost_its_card(place) => Err(Refusal::CardRemoved),
            UserState::None | UserState::Reset { .. } => Err(Refusal::Protocol),
            UserState::Card { changes, resets } if resets != place.resets => {
                self.bond = UserState::Reset { changes };
                Err(Refusal::CardReset)
            }
            UserState::Card { .. } => Ok(()),
        }
    }

    /// Whether it was connected to a card that is gone, also when a card is back.
    const fn has_lost_its_card(&self, place: &SharedState) -> bool {
        match self.bond {
            UserState::None => false,
            UserState::Card { changes, .. } | UserState::Reset { changes } => {
                !place.has_card_of(changes)
            }
        }
    }

    fn must_wait(&self, place: &SharedState) -> bool {
        let UserState::Card { changes, resets } = self.bond else {
            return false;
        };
        let same_card = place.has_card_of(changes) && resets == place.resets;
        let my_turn = place.holder.is_none() && place.queue.front() == Some(&self.id);
        same_card && !my_turn
    }

    /// Waits while `condition` holds, the server runs and the other end is there.
    fn wait_as_long_as<'a>(
        &self,
        mut place: MutexGuard<'a, SharedState>,
        reader: &'a Reader,
        condition: impl Fn(&SharedState) -> bool,
    ) -> MutexGuard<'a, SharedState> {
        while condition(&place) && !self.has_left() {
            let waited = reader.0.moved.wait_timeout(place, LOOK_AROUND);
            place = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        place
    }

    /// Whether nobody waits for this user's answers any more.
    fn has_left(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.stop.is_set() || matches!(recv(&self.peer, &mut [0], flags), Ok((0, _)))
    }

    /// The frame on its way, without the reader's lock. `None` when no answer came.
    fn deliver(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let reader = self.reader.clone();
        match reader.0.faults.fate(frame) {
            FrameFault::Answer => Some(self.exchange(frame)),
            FrameFault::Delay(time) => {
                let until = Instant::now() + time;
                while Instant::now() < until && !self.has_left() {
                    let left = until.saturating_duration_since(Instant::now());
                    std::thread::sleep(left.min(LOOK_AROUND));
                }
                Some(self.exchange(frame))
            }
            FrameFault::Forge(answer) => Some(answer),
            FrameFault::Silence => {
                let UserState::Card { changes, resets } = self.bond else {
                    return None;
                };
                let unchanged =
                    |place: &SharedState| place.has_card_of(changes) && place.resets == resets;
                drop(self.wait_as_long_as(reader.place(), &reader, unchanged));
                None
            }
            FrameFault::Pull => {
                reader.remove();
                None
            }
            FrameFault::PullAfter => {
                let answer = self.exchange(frame);
                reader.remove();
                Some(answer)
            }
        }
    }

    fn exchange(&self, frame: &[u8]) -> Vec<u8> {
        let start = Instant::now();
        let response = self.reader.0.card.transmit(frame);
        let exchange = Exchange {
            command: frame.to_vec(),
            response: response.clone(),
            took: start.elapsed(),
        };
        self.reader
            .0
            .journal
            .write(self.id, Event::Exchange(exchange));
        response
    }

    fn release(&self, place: &mut MutexGuard<'_, SharedState>) {
        if place.holder == Some(self.id) {
            place.holder = None;
            self.reader.0.journal.write(self.id, Event::End);
            self.reader.0.moved.notify_all();
        }
    }
}

impl Drop for CardUser {
    fn drop(&mut self) {
        self.release(&mut self.reader.place());
    }
}

impl SharedState {
    /// Whether the card that was in at this count of changes still is.
    const fn has_card_of(&self, changes: u32) -> bool {
        self.present && self.changes == changes
    }
}
