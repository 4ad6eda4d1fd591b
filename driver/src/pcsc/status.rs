//! The context of a watch, and the last reported state of every reader.

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

/// Readers that the context follows. libpcsclite before 2.5.0 rejects a wait for more than 16 names, and one name is
/// the pseudo-reader that reports new readers.
const MAX_READERS: usize = 15;
/// Attempts at a query, each of which fails if a reader disappears after it was listed.
const MAX_ROUNDS: usize = 16;
/// First size of the buffer for the names of all readers. It is doubled as needed.
const USUAL_NAMES: usize = 4096;
/// Largest size of that buffer.
const MAX_NAMES: usize = 64 * 1024;
/// How often the readers are listed again. libpcsclite before 2.3.0 does not report a reader that appears between the
/// list and the wait. The interval costs little: libpcsclite wakes up every minute anyway.
const QUERY_INTERVAL: Duration = Duration::from_secs(60);
/// How long pcscd may take to report all readers. pcscd first waits for each reader to power up its card.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// A context that only follows the readers.
pub(super) struct StatusContext {
    established: WatchedContext,
    /// The pseudo-reader that reports new and lost readers, then the readers.
    states: Vec<ReaderState>,
}

/// The state of one reader, as the context reports it.
pub(super) struct ReportedReader<'a> {
    pub(super) name: &'a CStr,
    pub(super) presence: Presence,
    /// Insertions and removals since the reader appeared, modulo 2^16.
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

    /// Queries all readers and their states.
    pub(super) fn query(&mut self, deadline: Instant) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            self.list(deadline)?;
            let Self {
                established,
                states,
            } = self;
            let context = established.context()?;
            let query = || context.get_status_change(Duration::ZERO, states);
            match established.run_short(deadline, query) {
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

    /// Waits until a state differs from the last query, or until the stop. A new user of a card counts as a
    /// difference.
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
        let mut size = USUAL_NAMES;
        let readers: Vec<CString> = loop {
            let mut names = vec![0; size];
            let context = self.established.context()?;
            let query = || {
                let readers = context.list_readers(&mut names)?;
                Ok(readers.map(CStr::to_owned).collect())
            };
            match self.established.run_short(deadline, query) {
                Ok(readers) => break readers,
                Err(Error::NoReadersAvailable) => break Vec::new(),
                Err(Error::InsufficientBuffer) if size < MAX_NAMES => size *= 2,
                Err(error) => return Err(error),
            }
        };
        if readers.len() > MAX_READERS {
            tracing::warn!(
                "PC/SC: pcscd has {} readers; only the first {MAX_READERS} are used",
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
        let changed = |state: &ReaderState| state.event_state().intersects(State::CHANGED);
        let gone = |state: &ReaderState| {
            state
                .event_state()
                .intersects(State::UNKNOWN | State::UNAVAILABLE)
        };
        !self.states.first().is_none_or(changed) && !self.states.iter().any(gone)
    }

    /// Makes the reported states, with their counters, the base of the next wait.
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
            "used by any program"
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
