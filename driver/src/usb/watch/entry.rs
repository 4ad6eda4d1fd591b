//! One reader of the watch, which may be polled in another thread. The watch follows the other readers meanwhile.

use std::{panic::resume_unwind, sync::Arc};

use claviger_apdu::TransportError;

use super::{
    reader::WatchedReader,
    slot::PollContext,
    worker::{PollWorker, RunningPoll},
};
use crate::{
    reader::ReaderState,
    usb::{
        discovery::{reader_info::ReaderInfo, sysfs::PortPath},
        reader::UsbReader,
    },
};

/// A reader of the watch. While it is polled, its state is that before the poll.
pub(super) struct ReaderEntry {
    pub(super) port: PortPath,
    readers: Vec<Arc<UsbReader>>,
    /// Absent while the reader is polled in another thread.
    idle: Option<WatchedReader>,
    running: Option<PolledReader>,
}

/// A reader during its poll: the states that are reported meanwhile, and the actions after the poll.
struct PolledReader {
    poll: RunningPoll,
    states: Vec<ReaderState>,
    last_error: Option<TransportError>,
    was_responsive: bool,
    missed: MissedChanges,
}

/// Changes of a reader that the watch detected during its poll.
#[derive(Default)]
struct MissedChanges {
    poll_now: bool,
    poll_if_unmonitored: bool,
    retry_failed: bool,
    claim_released: bool,
}

impl ReaderEntry {
    pub(super) fn new(port: PortPath, reader: WatchedReader) -> Self {
        Self {
            port,
            readers: reader.readers().cloned().collect(),
            idle: Some(reader),
            running: None,
        }
    }

    /// Returns whether these are the slots of this reader.
    pub(super) fn is_same(&self, infos: &[ReaderInfo]) -> bool {
        let ours = self.readers.iter().map(|reader| reader.info());
        self.readers.len() == infos.len()
            && ours
                .zip(infos)
                .all(|(ours, info)| ours.is_same_instance(info))
    }

    pub(super) fn readers(&self) -> impl Iterator<Item = &Arc<UsbReader>> {
        self.readers.iter()
    }

    /// The reader, unless it is polled in another thread.
    pub(super) const fn idle(&self) -> Option<&WatchedReader> {
        self.idle.as_ref()
    }

    /// The reader, unless it is polled in another thread.
    pub(super) const fn idle_mut(&mut self) -> Option<&mut WatchedReader> {
        self.idle.as_mut()
    }

    pub(super) const fn is_polling(&self) -> bool {
        self.running.is_some()
    }

    /// Returns whether the poll time has come.
    pub(super) fn is_due(&self) -> bool {
        self.idle().is_some_and(WatchedReader::is_due)
    }

    /// Returns whether a caller waits for the poll that runs or is due. Callers do not wait for a reader that did not respond the
    /// last time.
    pub(super) fn is_awaited(&self) -> bool {
        match &self.running {
            Some(running) => running.was_responsive,
            None => self.is_due(),
        }
    }

    /// Returns whether a card can be exchanged unseen while the reader is not claimed.
    pub(super) fn needs_monitoring(&self) -> bool {
        self.readers().any(|reader| !reader.info().is_fixed)
    }

    /// Returns whether the cards are monitored, or cannot be exchanged.
    pub(super) fn is_up_to_date(&self) -> bool {
        !self.needs_monitoring() || self.idle().is_some_and(WatchedReader::is_monitored)
    }

    /// Returns why the reader, or a slot of it, is not reported.
    pub(super) fn last_error(&self) -> Option<&TransportError> {
        match &self.running {
            Some(running) => running.last_error.as_ref(),
            None => self.idle().and_then(WatchedReader::last_error),
        }
    }

    /// Adds the state of each slot that was polled successfully.
    pub(super) fn append_states(&self, states: &mut Vec<ReaderState>) {
        match &self.running {
            Some(running) => states.extend_from_slice(&running.states),
            None => states.extend(self.idle().into_iter().flat_map(WatchedReader::states)),
        }
    }

    /// The device was unplugged.
    pub(super) fn retire(&self) {
        self.readers().for_each(|reader| reader.retire());
    }

    /// See [`WatchedReader::poll_now`].
    pub(super) fn poll_now(&mut self) {
        self.change(WatchedReader::poll_now, |missed| &mut missed.poll_now);
    }

    /// See [`WatchedReader::poll_if_unmonitored`].
    pub(super) fn poll_if_unmonitored(&mut self) {
        self.change(WatchedReader::poll_if_unmonitored, |missed| {
            &mut missed.poll_if_unmonitored
        });
    }

    /// See [`WatchedReader::retry_failed`]. Returns true during a poll.
    pub(super) fn retry_failed(&mut self) -> bool {
        self.change(WatchedReader::retry_failed, |missed| {
            &mut missed.retry_failed
        })
        .unwrap_or(true)
    }

    /// See [`WatchedReader::claim_released`].
    pub(super) fn claim_released(&mut self) {
        self.change(WatchedReader::claim_released, |missed| {
            &mut missed.claim_released
        });
    }

    /// Makes a change now, or notes it until the poll has ended.
    fn change<T>(
        &mut self,
        apply: impl FnOnce(&mut WatchedReader) -> T,
        note: impl FnOnce(&mut MissedChanges) -> &mut bool,
    ) -> Option<T> {
        if let Some(running) = &mut self.running {
            *note(&mut running.missed) = true;
        }
        self.idle.as_mut().map(apply)
    }

    /// Polls the reader in this thread.
    pub(super) fn poll(&mut self, poll: &PollContext) {
        if let Some(reader) = &mut self.idle {
            reader.poll(poll);
        }
    }

    /// Polls the reader in another thread.
    pub(super) fn start_poll(&mut self, poll: PollContext, worker: PollWorker) {
        if let Some(reader) = self.idle.take() {
            self.running = Some(PolledReader {
                states: reader.states().collect(),
                last_error: reader.last_error().cloned(),
                was_responsive: reader.is_responsive(),
                missed: MissedChanges::default(),
                poll: worker.poll(reader, poll),
            });
        }
    }

    /// Takes the reader back if its poll has ended. Returns the thread that has polled it.
    ///
    /// # Panics
    /// If the poll has panicked, as if the caller had polled the reader itself.
    pub(super) fn end_poll(&mut self) -> Option<PollWorker> {
        let ended = |running: &mut PolledReader| running.poll.has_ended();
        let running = self.running.take_if(ended)?;
        let (reader, worker) = running
            .poll
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic));
        self.take_back(reader, &running.missed);
        Some(worker)
    }

    /// Waits until the poll has ended, because the watch ends. The stop is set. A panic of the poll ends here.
    pub(super) fn join_poll(&mut self) -> Option<PollWorker> {
        let running = self.running.take()?;
        let Ok((reader, worker)) = running.poll.join() else {
            tracing::error!("internal error while polling a reader; please report it");
            return None;
        };
        self.take_back(reader, &running.missed);
        Some(worker)
    }

    fn take_back(&mut self, reader: WatchedReader, missed: &MissedChanges) {
        self.idle = Some(reader);
        if missed.retry_failed {
            self.retry_failed();
        }
        if missed.claim_released {
            self.claim_released();
        }
        if missed.poll_if_unmonitored {
            self.poll_if_unmonitored();
        }
        if missed.poll_now {
            self.poll_now();
        }
    }
}
