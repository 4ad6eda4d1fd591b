//! Follows the readers of pcscd, and pcscd itself as it comes and goes.

use std::{
    ffi::{CStr, CString},
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ::pcsc::Error;
use claviger_apdu::{Call, Sent, TransportError};

use super::{
    cancel::WatchCanceller,
    daemon,
    error::about,
    library,
    reader_id::id,
    status::{QUERY_TIMEOUT, ReportedReader, StatusContext},
    watchdog::CallWatchdog,
};
use crate::{
    backend::Watch,
    path_watch::PathWatch,
    pollable::{Pollable, WaitSet},
    reader::{ReaderSnapshot, ReaderState},
    stop::{StopHandle, Stopped},
    wait::{Backoff, StopFlag, wait_readable},
};

/// How long a pcscd that has hung may take to answer before it is asked for a context again.
const RETURN_PATIENCE: Duration = Duration::from_millis(500);

/// See [`Watch`].
pub(super) struct PcscWatch {
    watchdog: Arc<CallWatchdog>,
    session: Option<StatusContext>,
    history: LossCounter,
    snapshot: Vec<ReaderState>,
    trouble: Option<TransportError>,
    shown: Option<(Vec<ReaderState>, Option<u32>)>,
    canceller: Arc<WatchCanceller>,
    service: Reconnector,
}

impl PcscWatch {
    pub(super) fn new(watchdog: Arc<CallWatchdog>) -> Self {
        Self {
            canceller: Arc::new(WatchCanceller::new(Arc::clone(&watchdog))),
            watchdog,
            session: None,
            history: LossCounter::default(),
            snapshot: Vec::new(),
            trouble: None,
            shown: None,
            service: Reconnector::new(),
        }
    }

    /// Asks anew; once more over a new context, because the old one may have died with its pcscd, and what
    /// looks like a refusal may have been a pcscd about to end.
    fn query(&mut self, deadline: Instant) {
        let fresh = self.session.is_none();
        let outcome = match self.try_to_look(deadline) {
            Err(error) if (!fresh || error != Error::NoService) && self.may_try_again() => {
                self.history.take_states(std::iter::empty());
                self.try_to_look(deadline)
            }
            outcome => outcome,
        };
        match outcome {
            Ok(()) => self.take_states(),
            Err(error) => self.lose_context(error),
        }
    }

    fn may_try_again(&self) -> bool {
        !self.watchdog.is_unresponsive() && !self.canceller.stop.is_set()
    }

    fn try_to_look(&mut self, deadline: Instant) -> Result<(), Error> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.establish(deadline)?,
        };
        session.query(deadline)?;
        self.session = Some(session);
        Ok(())
    }

    /// A new context, and with it a new life of the service: whatever the old one showed may have changed.
    fn establish(&mut self, deadline: Instant) -> Result<StatusContext, Error> {
        if self.watchdog.is_unresponsive()
            && !daemon::is_responsive(&self.service.socket, RETURN_PATIENCE)
        {
            return Err(Error::Timeout);
        }
        let session = StatusContext::establish(&self.watchdog, &self.canceller, deadline)?;
        self.service.life = self.service.life.wrapping_add(1);
        Ok(session)
    }

    /// The picture is what the session says.
    fn take_states(&mut self) {
        if let Some(session) = &self.session {
            self.snapshot = self.history.take_states(session.readers());
            self.trouble = None;
            self.service.mark_connected();
        }
    }

    /// The context is of no more use: no readers, until there is another.
    fn lose_context(&mut self, error: Error) {
        self.session = None;
        self.snapshot = self.history.take_states(std::iter::empty());
        let trouble = about("SCardGetStatusChange", None, error, Sent::No);
        tracing::debug!("{trouble}");
        self.service.failed(error);
        self.trouble = Some(trouble);
    }

    fn wait(&mut self) {
        let Some(session) = &mut self.session else {
            if self.service.is_worth_a_try() {
                self.query(Instant::now() + QUERY_TIMEOUT);
            } else {
                self.service.wait(&self.canceller.stop);
            }
            return;
        };
        match session.wait(&self.canceller) {
            Ok(()) => {
                self.service.is_steady();
                self.take_states();
            }
            Err(error) => self.lose_context(error),
        }
    }

    /// Which life of the service the picture is of.
    fn service_instance(&self) -> Option<u32> {
        self.session.as_ref().map(|_| self.service.life)
    }

    fn report(&mut self) -> ReaderSnapshot {
        self.shown = Some((self.snapshot.clone(), self.service_instance()));
        ReaderSnapshot {
            readers: self.snapshot.clone(),
            error: self.trouble.clone(),
            service_instance: self.service_instance(),
        }
    }

    fn is_reported(&self) -> bool {
        let shown = self.shown.as_ref();
        shown.is_some_and(|(snapshot, life)| {
            *snapshot == self.snapshot && *life == self.service_instance()
        })
    }
}

impl Watch for PcscWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.query(call.deadline);
        self.report()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        if (self.session.is_some() || self.shown.is_none()) && !self.canceller.stop.is_set() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
        loop {
            if self.canceller.stop.is_set() {
                // A cancel that came too late may have left its answer in the context's stream.
                self.session = None;
                return Err(Stopped);
            }
            if !self.is_reported() {
                return Ok(self.report());
            }
            self.wait();
        }
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        // A wait for readers happens inside libpcsclite.
        match self.session {
            None => Some(self),
            Some(_) => None,
        }
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        Arc::clone(&self.canceller) as Arc<dyn StopHandle>
    }
}

/// The wait for a pcscd that is not there.
impl Pollable for PcscWatch {
    fn begin(&mut self) {
        if self.shown.is_none() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
    }

    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
        if self.canceller.stop.is_set() {
            return Err(Stopped);
        }
        if self.session.is_none() && self.service.is_worth_a_try() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
        Ok((!self.is_reported()).then(|| self.report()))
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let mut set = WaitSet::until_stopped(&self.canceller.stop);
        set.readable(self.service.descriptor());
        set.due(self.service.again);
        set
    }
}

/// Tells a reader that stayed from one that left and came back under its name.
#[derive(Default)]
struct LossCounter {
    /// Readers lost so far.
    losses: u32,
    /// The readers of the last picture and how many were lost before they came.
    present: Vec<(CString, u32)>,
}

impl LossCounter {
    fn take_states<'a>(
        &mut self,
        seen: impl Iterator<Item = ReportedReader<'a>>,
    ) -> Vec<ReaderState> {
        let seen: Vec<ReportedReader<'_>> = seen.collect();
        let stays = |name: &CStr| seen.iter().any(|seen| seen.name == name);
        let lost = self.present.iter().filter(|(name, _)| !stays(name)).count();
        self.losses = self
            .losses
            .wrapping_add(u32::try_from(lost).unwrap_or(u32::MAX));
        let since = |name: &CStr| {
            let known = self
                .present
                .iter()
                .find(|(known, _)| known.as_c_str() == name);
            known.map_or(self.losses, |(_, since)| *since)
        };
        let present = seen
            .iter()
            .map(|seen| (seen.name.to_owned(), since(seen.name)))
            .collect();
        self.present = present;
        let since = self.present.iter().map(|(_, since)| *since);
        seen.into_iter()
            .zip(since)
            .map(|(seen, since)| state(seen, since))
            .collect()
    }
}

fn state(seen: ReportedReader<'_>, since: u32) -> ReaderState {
    let name = seen.name.to_string_lossy();
    ReaderState {
        id: id(&name),
        name: name.chars().filter(|c| !c.is_control()).collect(),
        presence: seen.presence,
        change_count: since << 16 | u32::from(seen.events),
        stable_name: model(&name),
    }
}

/// A reader's name without the number that pcscd gave it: `Name 01 00` is number 1, first slot.
fn model(name: &str) -> String {
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|c| c.is_ascii_hexdigit());
    match name
        .rsplit_once(' ')
        .and_then(|(rest, slot)| Some((rest.rsplit_once(' ')?, slot)))
    {
        Some(((model, number), slot)) if is_number(number) && is_number(slot) => {
            format!("{model} {slot}")
        }
        _ => name.to_owned(),
    }
}

/// Waits for a pcscd that is not there, or does not want us.
struct Reconnector {
    socket: PathBuf,
    /// Counts the contexts made.
    life: u32,
    folder: Option<PathWatch>,
    again: Option<Instant>,
    pauses: Backoff,
    /// Each attempt after a refusal costs pcscd a question to polkit and a line in its log.
    refusals: Backoff,
}

impl Reconnector {
    fn new() -> Self {
        Self {
            socket: daemon::socket(),
            life: 0,
            folder: None,
            again: None,
            pauses: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
            refusals: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }

    /// A context works, for now.
    fn mark_connected(&mut self) {
        self.folder = None;
        self.again = None;
    }

    /// A wait has worked as well: the next failure is a first one.
    fn is_steady(&mut self) {
        self.pauses.reset();
        self.refusals.reset();
    }

    /// Plans the next attempt. A new pcscd makes its socket anew and the folder tells; one caught between
    /// bind(2) and listen(2), or that is there and fails, needs further attempts.
    fn failed(&mut self, error: Error) {
        let blind = self.folder.as_ref().is_some_and(PathWatch::needs_polling);
        // The folder does not tell of a library that is installed while a pcscd is there, the host's in a container.
        let no_library = error == Error::NoService && !library::is_loaded();
        let absent = !self.socket.exists() || (self.pauses.at_limit() && !no_library);
        let pauses = match error {
            Error::NoService if absent && !blind => {
                self.again = None;
                return;
            }
            Error::SecurityViolation | Error::NoAccess | Error::ServiceStopped => {
                &mut self.refusals
            }
            Error::NoService if no_library => &mut self.refusals,
            _ => &mut self.pauses,
        };
        self.again = Some(Instant::now() + pauses.next_delay());
    }

    /// Whether something has happened that an attempt may succeed after, or its time has come. The first watch on the
    /// folder is such, because pcscd may have come before.
    fn is_worth_a_try(&mut self) -> bool {
        let is_due = |again: Option<Instant>| again.is_some_and(|again| again <= Instant::now());
        let Some(folder) = &self.folder else {
            self.folder = Some(PathWatch::new([self.socket.as_path()]));
            return self.again.is_none() || is_due(self.again);
        };
        if folder.changed() {
            self.folder = Some(PathWatch::new([self.socket.as_path()]));
            self.pauses.reset();
            return true;
        }
        is_due(self.again)
    }

    /// Readable when something may have happened.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().and_then(PathWatch::descriptor)
    }

    /// Waits until that may be so.
    fn wait(&self, stop: &StopFlag) {
        let descriptors: Vec<_> = self.descriptor().into_iter().collect();
        if let Err(errno) = wait_readable(&descriptors, stop, self.again) {
            tracing::warn!("PC/SC: poll failed ({errno})");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::Presence;

    fn seen(name: &CStr, events: u16) -> ReportedReader<'_> {
        ReportedReader {
            name,
            presence: Presence::Empty,
            events,
        }
    }

    fn changes(states: &[ReaderState]) -> Vec<u32> {
        states.iter().map(|state| state.change_count).collect()
    }

    #[test]
    fn stable_name_omits_pcscds_number() {
        assert_eq!(model("Yubico YubiKey CCID 01 00"), "Yubico YubiKey CCID 00");
        assert_eq!(
            model("Yubico YubiKey CCID 0A 00"),
            model("Yubico YubiKey CCID 00 00")
        );
        assert_ne!(
            model("Duo 00 00"),
            model("Duo 00 01"),
            "two slots of one reader"
        );
        assert_eq!(model("A name of its own"), "A name of its own");
        assert_eq!(model("00 00"), "00 00");
    }

    #[test]
    fn change_count_of_a_present_reader_follows_its_own_events_only() {
        let mut history = LossCounter::default();
        let first = history.take_states([seen(c"A", 1), seen(c"B", 7)].into_iter());
        assert_eq!(changes(&first), [1, 7]);
        let second = history.take_states([seen(c"A", 2), seen(c"B", 7)].into_iter());
        assert_eq!(changes(&second), [2, 7]);
        let third = history.take_states([seen(c"B", 7)].into_iter());
        assert_eq!(changes(&third), [7], "another one's loss is not its own");
    }

    #[test]
    fn reader_that_returns_with_the_same_count_counts_as_changed() {
        let mut history = LossCounter::default();
        let before = history.take_states([seen(c"A", 1)].into_iter());
        assert!(history.take_states(std::iter::empty()).is_empty());
        let after = history.take_states([seen(c"A", 1)].into_iter());
        assert_eq!(before[0].id, after[0].id);
        assert_ne!(before[0].change_count, after[0].change_count);
    }
}
