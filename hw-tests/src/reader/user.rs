//! One of the users of a reader's card.

use std::{
    os::fd::OwnedFd,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use claviger_driver::socket::frame::Refusal;
use rustix::net::{RecvFlags, recv};

use super::{Event, Exchange, FrameFault, Reader, SharedState, Stop};

/// Interval at which a waiting user checks that its peer is still connected.
const PEER_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A user that is connected to the card. Dropping it ends its transaction.
#[derive(Debug)]
pub(crate) struct CardUser {
    reader: Reader,
    id: u64,
    bond: UserState,
    stop: Stop,
    /// The other end of its connection.
    peer: OwnedFd,
}

/// The card state that a user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UserState {
    /// The user has not connected yet.
    None,
    /// The user is connected to the card of this count of changes, after this count of resets.
    Card { changes: u32, resets: u64 },
    /// The user knows that its card was reset, and has not reconnected.
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

    /// Connects to the card. Powers it up if it has no power.
    pub(crate) fn connect(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut state = reader.wait_while(reader.state(), |state| state.busy && !state.powered);
        self.attach_to(&state)?;
        if !state.powered {
            self.power_up(&mut state);
        }
        Ok(())
    }

    /// Connects to the card without changing its power.
    pub(crate) fn attach(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        self.attach_to(&reader.state())
    }

    fn attach_to(&mut self, state: &SharedState) -> Result<(), Refusal> {
        if self.has_lost_its_card(state) {
            return Err(Refusal::CardRemoved);
        }
        if !state.present {
            return Err(Refusal::NoCard);
        }
        self.reader.0.journal.write(self.id, Event::Connect);
        self.bond = UserState::Card {
            changes: state.changes,
            resets: state.resets,
        };
        Ok(())
    }

    /// Sends one frame. No other frame can come between it and its response.
    pub(crate) fn transmit(&mut self, frame: &[u8]) -> Result<Vec<u8>, Refusal> {
        let reader = self.reader.clone();
        let mut state = self.wait_for_turn(&reader)?;
        if !state.powered {
            self.power_up(&mut state);
        }
        state.busy = true;
        drop(state);
        let answer = self.deliver(frame);
        let mut state = reader.state();
        state.busy = false;
        reader.0.changed.notify_all();
        if self.has_lost_its_card(&state) {
            return Err(Refusal::CardRemoved);
        }
        match answer {
            Some(answer) => Ok(answer),
            None => Err(self.check(&state).err().unwrap_or(Refusal::CardRemoved)),
        }
    }

    /// Waits until no exchange is running. Fails at once while another user has a transaction.
    fn wait_for_turn<'a>(
        &mut self,
        reader: &'a Reader,
    ) -> Result<MutexGuard<'a, SharedState>, Refusal> {
        let mut state = reader.state();
        loop {
            self.check(&state)?;
            if state.holder.is_some_and(|holder| holder != self.id) {
                return Err(Refusal::Busy);
            }
            if !state.busy || self.stop.is_set() {
                return Ok(state);
            }
            state = reader.wait_for_change(state);
        }
    }

    /// Waits for a transaction and begins it.
    pub(crate) fn begin(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut state = reader.state();
        self.check(&state)?;
        if state.holder == Some(self.id) {
            return Err(Refusal::Protocol);
        }
        state.queue.push_back(self.id);
        state = self.wait_as_long_as(state, &reader, |state| self.must_wait(state));
        state.queue.retain(|id| *id != self.id);
        reader.0.changed.notify_all();
        self.check(&state)?;
        if self.has_left() {
            return Err(Refusal::CardRemoved);
        }
        state.holder = Some(self.id);
        reader.0.journal.write(self.id, Event::Begin);
        Ok(())
    }

    /// Ends the transaction, also after a reset.
    pub(crate) fn end(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut state = reader.state();
        if self.has_lost_its_card(&state) {
            return Err(Refusal::CardRemoved);
        }
        if state.holder != Some(self.id) {
            return Err(Refusal::Protocol);
        }
        self.release(&mut state);
        Ok(())
    }

    /// Power-cycles the card. This is reported to the other users.
    pub(crate) fn reset(&mut self) -> Result<(), Refusal> {
        let reader = self.reader.clone();
        let mut state = self.wait_for_turn(&reader)?;
        state.resets += 1;
        reader.0.changed.notify_all();
        reader.0.journal.write(self.id, Event::Reset);
        reader.0.card.reset();
        self.bond = UserState::Card {
            changes: state.changes,
            resets: state.resets,
        };
        Ok(())
    }

    /// Powers the card on, as pcscd does it. The card loses its state.
    pub(crate) fn power_on(&mut self) {
        let reader = self.reader.clone();
        let mut state = reader.state();
        self.power_up(&mut state);
    }

    /// Resets the card without a power cycle, as pcscd does it. The card loses its state too.
    pub(crate) fn warm_reset(&mut self) {
        let reader = self.reader.clone();
        let _place = reader.state();
        reader.0.journal.write(self.id, Event::Reset);
        reader.0.card.reset();
    }

    /// Powers the card off, as pcscd does it.
    pub(crate) fn power_off(&mut self) {
        let mut state = self.reader.state();
        state.powered = false;
        self.reader.0.journal.write(self.id, Event::PowerDown);
    }

    fn power_up(&self, state: &mut SharedState) {
        state.powered = true;
        self.reader.0.journal.write(self.id, Event::PowerUp);
        self.reader.0.card.reset();
    }

    /// Checks that the card is the one that the user connected to, without a reset since. Reports each reset once.
    fn check(&mut self, state: &SharedState) -> Result<(), Refusal> {
        match self.bond {
            _ if self.has_lost_its_card(state) => Err(Refusal::CardRemoved),
            UserState::None | UserState::Reset { .. } => Err(Refusal::Protocol),
            UserState::Card { changes, resets } if resets != state.resets => {
                self.bond = UserState::Reset { changes };
                Err(Refusal::CardReset)
            }
            UserState::Card { .. } => Ok(()),
        }
    }

    /// Returns whether the user was connected to a card that was removed, even if a card is present again.
    const fn has_lost_its_card(&self, state: &SharedState) -> bool {
        match self.bond {
            UserState::None => false,
            UserState::Card { changes, .. } | UserState::Reset { changes } => {
                !state.has_card_of(changes)
            }
        }
    }

    fn must_wait(&self, state: &SharedState) -> bool {
        let UserState::Card { changes, resets } = self.bond else {
            return false;
        };
        let same_card = state.has_card_of(changes) && resets == state.resets;
        let my_turn = state.holder.is_none() && state.queue.front() == Some(&self.id);
        same_card && !my_turn
    }

    /// Waits while `condition` holds, the server runs and the peer is connected.
    fn wait_as_long_as<'a>(
        &self,
        mut state: MutexGuard<'a, SharedState>,
        reader: &'a Reader,
        condition: impl Fn(&SharedState) -> bool,
    ) -> MutexGuard<'a, SharedState> {
        while condition(&state) && !self.has_left() {
            let waited = reader.0.changed.wait_timeout(state, PEER_CHECK_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Returns whether the server stops or the peer has disconnected.
    fn has_left(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.stop.is_set() || matches!(recv(&self.peer, &mut [0], flags), Ok((0, _)))
    }

    /// Delivers the frame without the reader's lock. Returns `None` if there is no response.
    fn deliver(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let reader = self.reader.clone();
        match reader.0.faults.fate(frame) {
            FrameFault::Answer => Some(self.exchange(frame)),
            FrameFault::Delay(time) => {
                let until = Instant::now() + time;
                while Instant::now() < until && !self.has_left() {
                    let left = until.saturating_duration_since(Instant::now());
                    std::thread::sleep(left.min(PEER_CHECK_INTERVAL));
                }
                Some(self.exchange(frame))
            }
            FrameFault::Forge(answer) => Some(answer),
            FrameFault::Silence => {
                let UserState::Card { changes, resets } = self.bond else {
                    return None;
                };
                let unchanged =
                    |state: &SharedState| state.has_card_of(changes) && state.resets == resets;
                drop(self.wait_as_long_as(reader.state(), &reader, unchanged));
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

    fn release(&self, state: &mut MutexGuard<'_, SharedState>) {
        if state.holder == Some(self.id) {
            state.holder = None;
            self.reader.0.journal.write(self.id, Event::End);
            self.reader.0.changed.notify_all();
        }
    }
}

impl Drop for CardUser {
    fn drop(&mut self) {
        self.release(&mut self.reader.state());
    }
}

impl SharedState {
    /// Returns whether the card of this count of changes is still present.
    const fn has_card_of(&self, changes: u32) -> bool {
        self.present && self.changes == changes
    }
}
