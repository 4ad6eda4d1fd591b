//! One context and what it last said of every reader.

use std::{
    ffi::{CStr, CString},
    sync::Arc,
    time::{Duration, Instant},
};

use ::pcsc::{Error, PNP_NOTIFICATION, ReaderState, State};
use claviger_apdu::Atr;

use super::{
    cancel::WatchCanceller,
    watchdog::{CallWatchdog, ContextPurpose, WatchedContext},
};
use crate::reader::Presence;

/// libpcsclite before 2.5.0 refuses to wait for more than 16 names, and one is the notice of new readers.
const MAX_READERS: usize = 15;
/// Looks that find a reader gone which was listed a moment before.
const MAX_ROUNDS: usize = 16;
/// Room for the names of all readers, before it is doubled.
const USUAL_NAMES: usize = 4096;
/// Most room for them.
const MAX_NAMES: usize = 64 * 1024;
/// After this the readers are listed anew. Before 2.3.0 a reader that comes between the list and the wait is
/// not told; libpcsclite wakes every minute by itself anyway.
const QUERY_INTERVAL: Duration = Duration::from_secs(60);
/// How long pcscd may take to tell of all readers: it waits for each of them to power its card.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// A context used for nothing but following the readers.
pub(super) struct StatusContext {
    established: WatchedContext,
    /// The notice of new and lost readers first, then the readers.
    states: Vec<ReaderState>,
}

/// What the context says of one reader.
pub(super) struct ReportedReader<'a> {
    pub(super) name: &'a CStr,
    pub(super) presence: Presence,
    /// Insertions and removals since the reader came, modulo 2^16.
    pub(super) events: u16,
}

impl StatusContext {
    pub(super) fn establish(
        watchdog: &Arc<CallWatchdog>,
        canceller: &WatchCanceller,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let established = watchdog.establish(ContextPurpose::Watch(&canceller.stop), deadline)?;
        canceller.attach(&established)?;
        let notice = ReaderState::new(PNP_NOTIFICATION(), State::UNAWARE);
        Ok(Self {
            established,
            states: vec![notice],
        })
    }

    /// Asks for all readers and their states.
    pub(super) fn query(&mut self, deadline: Instant) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            self.list(deadline)?;
            let Self {
                established,
                states,
            } = self;
            let context = established.context()?;
            let ask = || context.get_status_change(Duration::ZERO, states);
            match established.run_short(deadline, ask) {
                Ok(()) | Err(Error::Timeout) => {
                    self.acknowledge();
                    return Ok(());
                }
                Err(Error::UnknownReader) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::UnknownReader)
    }

    /// Waits until something differs from the last look, be it only who uses a card, or the stop.
    pub(super) fn wait(&mut self, canceller: &WatchCanceller) -> Result<(), Error> {
        let Self {
            established,
            states,
        } = self;
        let context = established.context()?;
        let wait = || context.get_status_change(QUERY_INTERVAL, states);
        match canceller.run_cancellable(established, wait) {
            None => Err(Error::Cancelled),
            Some(Ok(())) if self.same_readers() => {
                self.acknowledge();
                Ok(())
            }
            Some(Ok(()) | Err(Error::Timeout | Error::UnknownReader)) => {
                self.query(Instant::now() + QUERY_TIMEOUT)
            }
            Some(Err(error)) => Err(error),
        }
    }

    pub(super) fn readers(&self) -> impl Iterator<Item = ReportedReader<'_>> {
        self.states.iter().skip(1).map(|state| ReportedReader {
            name: state.name(),
            presence: presence(state.event_state(), state.atr()),
            events: u16::try_from(state.event_count()).unwrap_or(u16::MAX),
        })
    }

    fn list(&mut self, deadline: Instant) -> Result<(), Error> {
        let mut room = USUAL_NAMES;
        let readers: Vec<CString> = loop {
            let mut names = vec![0; room];
            let context = self.established.context()?;
            let ask = || {
                let readers = context.list_readers(&mut names)?;
                Ok(readers.map(CStr::to_owned).collect())
            };
            match self.established.run_short(deadline, ask) {
                Ok(readers) => break readers,
                Err(Error::NoReadersAvailable) => break Vec::new(),
                Err(Error::InsufficientBuffer) if room < MAX_NAMES => room *= 2,
                Err(error) => return Err(error),
            }
        };
        if readers.len() > MAX_READERS {
            tracing::warn!(
                "PC/SC: {} readers, of which {MAX_READERS} are used",
                readers.len()
            );
        }
        self.states.truncate(1);
        let states = readers.into_iter().take(MAX_READERS);
        self.states
            .extend(states.map(|name| ReaderState::new(name, State::UNAWARE)));
        Ok(())
    }

    fn same_readers(&self) -> bool {
        let told = |state: &ReaderState| state.event_state().intersects(State::CHANGED);
        let gone = |state: &ReaderState| {
            state
                .event_state()
                .intersects(State::UNKNOWN | State::UNAVAILABLE)
        };
        !self.states.first().is_none_or(told) && !self.states.iter().any(gone)
    }

    /// Makes the states seen the ones to differ from, counters included.
    fn acknowledge(&mut self) {
        self.states
            .iter_mut()
            .for_each(ReaderState::sync_current_state);
    }
}

fn presence(state: State, atr: &[u8]) -> Presence {
    if !state.contains(State::PRESENT) || state.intersects(State::UNKNOWN | State::UNAVAILABLE) {
        return Presence::Empty;
    }
    match Atr::parse(atr) {
        Ok(atr) if !state.contains(State::MUTE) => Presence::Card(atr),
        _ => Presence::Mute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATR: [u8; 4] = [0x3B, 0x02, 0x14, 0x50];

    #[test]
    fn pcsc_state_flags_map_to_card_presence() {
        let card = Presence::Card(Atr::parse(&ATR).unwrap());
        assert_eq!(presence(State::PRESENT, &ATR), card);
        assert_eq!(
            presence(State::PRESENT | State::INUSE, &ATR),
            card,
            "whoever uses it"
        );
        assert_eq!(presence(State::PRESENT | State::EXCLUSIVE, &ATR), card);
        assert_eq!(presence(State::PRESENT | State::MUTE, &ATR), Presence::Mute);
        assert_eq!(presence(State::PRESENT, &[]), Presence::Mute);
        assert_eq!(presence(State::PRESENT, &[0xFF; 4]), Presence::Mute);
        assert_eq!(presence(State::EMPTY, &ATR), Presence::Empty);
        assert_eq!(
            presence(State::UNAVAILABLE | State::PRESENT, &ATR),
            Presence::Empty
        );
    }
}
