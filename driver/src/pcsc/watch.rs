//! Follows the readers of pcscd, and pcscd itself as it starts and stops.

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

/// How long an unresponsive pcscd may take to respond before another context is made.
const PING_TIMEOUT: Duration = Duration::from_millis(500);

/// Follows the readers of pcscd. See [`Watch`].
pub(super) struct PcscWatch {
    watchdog: Arc<CallWatchdog>,
    context: Option<StatusContext>,
    loss_counter: LossCounter,
    snapshot: Vec<ReaderState>,
    transport_error: Option<TransportError>,
    reported: Option<(Vec<ReaderState>, Option<u32>)>,
    canceller: Arc<WatchCanceller>,
    reconnector: Reconnector,
}

impl PcscWatch {
    pub(super) fn new(watchdog: Arc<CallWatchdog>) -> Self {
        Self {
            canceller: Arc::new(WatchCanceller::new(Arc::clone(&watchdog))),
            watchdog,
            context: None,
            loss_counter: LossCounter::default(),
            snapshot: Vec::new(),
            transport_error: None,
            reported: None,
            reconnector: Reconnector::new(),
        }
    }

    /// Queries the readers. After an error it tries once more over a new context: the old context may have ended with
    /// its pcscd, and an apparent refusal may have come from a pcscd that was about to end.
    fn query(&mut self, deadline: Instant) {
        let fresh = self.context.is_none();
        let outcome = match self.try_query(deadline) {
            Err(error) if (!fresh || error != Error::NoService) && self.may_try_again() => {
                self.loss_counter.take_states(std::iter::empty());
                self.try_query(deadline)
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

    fn try_query(&mut self, deadline: Instant) -> Result<(), Error> {
        let mut context = match self.context.take() {
            Some(context) => context,
            None => self.establish(deadline)?,
        };
        context.query(deadline)?;
        self.context = Some(context);
        Ok(())
    }

    /// Makes a context and with it begins a new service instance. Everything that the old context reported may have
    /// changed.
    fn establish(&mut self, deadline: Instant) -> Result<StatusContext, Error> {
        if self.watchdog.is_unresponsive()
            && !daemon::is_responsive(&self.reconnector.socket, PING_TIMEOUT)
        {
            return Err(Error::Timeout);
        }
        let context = StatusContext::establish(&self.watchdog, &self.canceller, deadline)?;
        self.reconnector.service_instance = self.reconnector.service_instance.wrapping_add(1);
        Ok(context)
    }

    /// Sets the snapshot to the states that the context reports.
    fn take_states(&mut self) {
        if let Some(context) = &self.context {
            self.snapshot = self.loss_counter.take_states(context.readers());
            self.transport_error = None;
            self.reconnector.mark_connected();
        }
    }

    /// Drops the context after `error`. The snapshot has no readers until there is another context.
    fn lose_context(&mut self, error: Error) {
        self.context = None;
        self.snapshot = self.loss_counter.take_states(std::iter::empty());
        let transport_error = about("SCardGetStatusChange", None, error, Sent::No);
        tracing::debug!("{transport_error}");
        self.reconnector.schedule_retry(error);
        self.transport_error = Some(transport_error);
    }

    fn wait(&mut self) {
        let Some(context) = &mut self.context else {
            if self.reconnector.should_try() {
                self.query(Instant::now() + QUERY_TIMEOUT);
            } else {
                self.reconnector.wait(&self.canceller.stop);
            }
            return;
        };
        match context.wait(&self.canceller) {
            Ok(()) => {
                self.reconnector.mark_stable();
                self.take_states();
            }
            Err(error) => self.lose_context(error),
        }
    }

    /// Returns the service instance of the snapshot.
    fn service_instance(&self) -> Option<u32> {
        self.context
            .as_ref()
            .map(|_| self.reconnector.service_instance)
    }

    fn report(&mut self) -> ReaderSnapshot {
        self.reported = Some((self.snapshot.clone(), self.service_instance()));
        ReaderSnapshot {
            readers: self.snapshot.clone(),
            error: self.transport_error.clone(),
            service_instance: self.service_instance(),
        }
    }

    fn is_reported(&self) -> bool {
        let reported = self.reported.as_ref();
        reported.is_some_and(|(snapshot, service_instance)| {
            *snapshot == self.snapshot && *service_instance == self.service_instance()
        })
    }
}

impl Watch for PcscWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.query(call.deadline);
        self.report()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        if (self.context.is_some() || self.reported.is_none()) && !self.canceller.stop.is_set() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
        loop {
            if self.canceller.stop.is_set() {
                // A late cancel may have left its response in the context's stream.
                self.context = None;
                return Err(Stopped);
            }
            if !self.is_reported() {
                return Ok(self.report());
            }
            self.wait();
        }
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        // With a context, the wait happens inside libpcsclite.
        match self.context {
            None => Some(self),
            Some(_) => None,
        }
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        Arc::clone(&self.canceller) as Arc<dyn StopHandle>
    }
}

/// Waits for an absent pcscd.
impl Pollable for PcscWatch {
    fn begin(&mut self) {
        if self.reported.is_none() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
    }

    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
        if self.canceller.stop.is_set() {
            return Err(Stopped);
        }
        if self.context.is_none() && self.reconnector.should_try() {
            self.query(Instant::now() + QUERY_TIMEOUT);
        }
        Ok((!self.is_reported()).then(|| self.report()))
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let mut set = WaitSet::until_stopped(&self.canceller.stop);
        set.readable(self.reconnector.descriptor());
        set.due(self.reconnector.retry_at);
        set
    }
}

/// Distinguishes a reader that stayed from a reader that disappeared and came back under the same name.
#[derive(Default)]
struct LossCounter {
    /// The number of readers lost so far.
    losses: u32,
    /// The readers of the last snapshot, each with the losses before it appeared.
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
        stable_name: stable_name(&name),
    }
}

/// Returns the reader's name without the number that pcscd assigned. `Name 01 00` is number 1, first slot.
fn stable_name(name: &str) -> String {
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

/// Waits for a pcscd that is absent or refuses access, and decides when to try again.
struct Reconnector {
    socket: PathBuf,
    /// Counts the contexts made.
    service_instance: u32,
    folder: Option<PathWatch>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// The delays after a refusal. Each attempt costs pcscd a question to polkit and a log line.
    refusal_backoff: Backoff,
}

impl Reconnector {
    fn new() -> Self {
        Self {
            socket: daemon::socket(),
            service_instance: 0,
            folder: None,
            retry_at: None,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
            refusal_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }

    /// Ends the wait for pcscd, because a context was made and queried.
    fn mark_connected(&mut self) {
        self.folder = None;
        self.retry_at = None;
    }

    /// Resets the delays, because a wait on the context succeeded too.
    fn mark_stable(&mut self) {
        self.backoff.reset();
        self.refusal_backoff.reset();
    }

    /// Schedules the next attempt. A new pcscd makes a new socket, and the watch on the folder reports it. Two cases
    /// need further attempts: a pcscd between bind(2) and listen(2), and a running pcscd that fails.
    fn schedule_retry(&mut self, error: Error) {
        let needs_polling = self.folder.as_ref().is_some_and(PathWatch::needs_polling);
        // The folder does not change when the library is installed while a pcscd runs, such as the host's pcscd in a
        // container.
        let no_library = error == Error::NoService && !library::is_loaded();
        let absent = !self.socket.exists() || (self.backoff.at_limit() && !no_library);
        let backoff = match error {
            Error::NoService if absent && !needs_polling => {
                self.retry_at = None;
                return;
            }
            Error::SecurityViolation | Error::NoAccess | Error::ServiceStopped => {
                &mut self.refusal_backoff
            }
            Error::NoService if no_library => &mut self.refusal_backoff,
            _ => &mut self.backoff,
        };
        self.retry_at = Some(Instant::now() + backoff.next_delay());
    }

    /// Returns whether an attempt may succeed: the folder changed or the time of the next attempt has come. Making
    /// the first watch on the folder counts as a change, because pcscd may have started before.
    fn should_try(&mut self) -> bool {
        let is_due =
            |retry_at: Option<Instant>| retry_at.is_some_and(|retry_at| retry_at <= Instant::now());
        let Some(folder) = &self.folder else {
            self.folder = Some(PathWatch::new([self.socket.as_path()]));
            return self.retry_at.is_none() || is_due(self.retry_at);
        };
        if folder.changed() {
            self.folder = Some(PathWatch::new([self.socket.as_path()]));
            self.backoff.reset();
            return true;
        }
        is_due(self.retry_at)
    }

    /// Returns a descriptor that becomes readable when the folder changes.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.folder.as_ref().and_then(PathWatch::descriptor)
    }

    /// Waits until the folder changes, the next attempt is due, or `stop` is set.
    fn wait(&self, stop: &StopFlag) {
        let descriptors: Vec<_> = self.descriptor().into_iter().collect();
        if let Err(errno) = wait_readable(&descriptors, stop, self.retry_at) {
            tracing::warn!(
                "PC/SC: poll failed while waiting for pcscd ({errno}); it is tried again"
            );
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
        assert_eq!(
            stable_name("Yubico YubiKey CCID 01 00"),
            "Yubico YubiKey CCID 00"
        );
        assert_eq!(
            stable_name("Yubico YubiKey CCID 0A 00"),
            stable_name("Yubico YubiKey CCID 00 00")
        );
        assert_ne!(
            stable_name("Duo 00 00"),
            stable_name("Duo 00 01"),
            "two slots of one reader"
        );
        assert_eq!(stable_name("A name of its own"), "A name of its own");
        assert_eq!(stable_name("00 00"), "00 00");
    }

    #[test]
    fn change_count_of_a_present_reader_follows_its_own_events_only() {
        let mut loss_counter = LossCounter::default();
        let first = loss_counter.take_states([seen(c"A", 1), seen(c"B", 7)].into_iter());
        assert_eq!(changes(&first), [1, 7]);
        let second = loss_counter.take_states([seen(c"A", 2), seen(c"B", 7)].into_iter());
        assert_eq!(changes(&second), [2, 7]);
        let third = loss_counter.take_states([seen(c"B", 7)].into_iter());
        assert_eq!(
            changes(&third),
            [7],
            "the loss of another reader does not count"
        );
    }

    #[test]
    fn reader_that_returns_with_the_same_count_counts_as_changed() {
        let mut loss_counter = LossCounter::default();
        let before = loss_counter.take_states([seen(c"A", 1)].into_iter());
        assert!(loss_counter.take_states(std::iter::empty()).is_empty());
        let after = loss_counter.take_states([seen(c"A", 1)].into_iter());
        assert_eq!(before[0].id, after[0].id);
        assert_ne!(before[0].change_count, after[0].change_count);
    }
}
