//! The readers of a watch, and their polls.

use std::sync::Arc;

use claviger_apdu::TransportError;

use super::{entry::ReaderEntry, reader::WatchedReader, slot::PollContext, worker::PollWorker};
use crate::{
    reader::ReaderState,
    usb::{
        discovery::{reader_info::ReaderInfo, sysfs::PortPath},
        host::event_fd::EventFd,
        reader::UsbReader,
    },
};

/// Readers polled at the same time. The others are polled in their turn.
const MAX_POLLS: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct WatchedReaders {
    listed: Vec<ReaderEntry>,
    /// Readers that are no longer listed, and whose last poll has not ended.
    leaving: Vec<ReaderEntry>,
    /// Waits for the next poll. Others are started when several readers are due, and end with their poll.
    worker: Option<PollWorker>,
}

impl WatchedReaders {
    /// Takes in a list of all readers: the port of each, and its slots. `add` makes those that were not listed before.
    pub(super) fn list(
        &mut self,
        readers: Vec<(PortPath, Vec<ReaderInfo>)>,
        add: impl Fn(Vec<ReaderInfo>) -> WatchedReader,
    ) {
        let mut before = std::mem::take(&mut self.listed);
        for (port, slots) in readers {
            let known = before.iter().position(|entry| entry.is_same(&slots));
            let entry = match known.map(|known| before.swap_remove(known)) {
                Some(mut entry) => {
                    entry.retry_failed();
                    entry
                }
                None => ReaderEntry::new(port, add(slots)),
            };
            self.listed.push(entry);
        }
        before.iter().for_each(ReaderEntry::retire);
        let polling = before.into_iter().filter(ReaderEntry::is_polling);
        self.leaving.extend(polling);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ReaderEntry> {
        self.listed.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ReaderEntry> {
        self.listed.iter_mut()
    }

    /// The readers that are not polled in another thread.
    pub(super) fn idle(&self) -> impl Iterator<Item = &WatchedReader> {
        self.iter().filter_map(ReaderEntry::idle)
    }

    /// The readers that are not polled in another thread.
    pub(super) fn idle_mut(&mut self) -> impl Iterator<Item = &mut WatchedReader> {
        self.iter_mut().filter_map(ReaderEntry::idle_mut)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<UsbReader>> {
        self.iter().flat_map(ReaderEntry::readers)
    }

    /// The state of each slot that was polled successfully.
    pub(super) fn states(&self) -> Vec<ReaderState> {
        let mut states = Vec::new();
        self.iter()
            .for_each(|entry| entry.append_states(&mut states));
        states
    }

    /// Returns why readers, or slots of them, are not reported.
    pub(super) fn errors(&self) -> impl Iterator<Item = &TransportError> {
        self.iter().filter_map(ReaderEntry::last_error)
    }

    /// See [`WatchedReader::poll_if_unmonitored`].
    pub(super) fn poll_if_unmonitored(&mut self) {
        self.iter_mut().for_each(ReaderEntry::poll_if_unmonitored);
    }

    /// See [`WatchedReader::stop_monitoring`].
    pub(super) fn stop_monitoring(&mut self) {
        self.idle_mut().for_each(WatchedReader::stop_monitoring);
    }

    /// See [`WatchedReader::release_idle`].
    pub(super) fn release_idle(&mut self) {
        self.idle_mut().for_each(WatchedReader::release_idle);
    }

    /// Returns whether a reader is polled in another thread.
    pub(super) fn is_polling(&self) -> bool {
        self.iter().any(ReaderEntry::is_polling)
    }

    /// Returns whether a reader that is no longer listed is polled still, and may be claimed.
    pub(super) fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Returns whether another poll may begin.
    pub(super) fn may_poll(&self) -> bool {
        let entries = self.listed.iter().chain(&self.leaving);
        entries.filter(|entry| entry.is_polling()).count() < MAX_POLLS
    }

    /// Polls the readers that are due. With `watch_event`, each in another thread, which notifies that event at the end of the
    /// poll. Without, or if no thread can be started, one after the other in this thread.
    pub(super) fn start_polls(&mut self, poll: &PollContext, watch_event: Option<&Arc<EventFd>>) {
        let mut kept: Option<usize> = None;
        for at in 0..self.listed.len() {
            let may_poll = watch_event.is_none() || self.may_poll();
            let Some(entry) = self.listed.get_mut(at).filter(|entry| entry.is_due()) else {
                continue;
            };
            if !may_poll {
                return;
            }
            let worker = match (self.worker.take(), watch_event) {
                (None, Some(event)) => PollWorker::start(Arc::clone(event))
                    .inspect_err(|error| {
                        tracing::warn!("usb: no further thread to poll readers ({error}); they are polled one by one");
                    })
                    .ok(),
                (worker, _) => worker,
            };
            if let Some(worker) = worker {
                entry.start_poll(poll.clone(), worker);
                continue;
            }
            // No reader is kept while another is waited for.
            let kept = kept.replace(at).and_then(|kept| self.listed.get_mut(kept));
            if let Some(reader) = kept.and_then(ReaderEntry::idle_mut) {
                reader.release_idle();
            }
            if let Some(entry) = self.listed.get_mut(at) {
                entry.poll(poll);
            }
            if poll.stop.is_set() {
                return;
            }
        }
    }

    /// Takes back the readers whose poll has ended.
    pub(super) fn end_polls(&mut self) {
        let entries = self.listed.iter_mut().chain(&mut self.leaving);
        for worker in entries.filter_map(ReaderEntry::end_poll) {
            if let Some(second) = self.worker.replace(worker) {
                second.end();
            }
        }
        for entry in &mut self.leaving {
            if let Some(reader) = entry.idle_mut() {
                // Releases everything that the poll has left open.
                reader.release_idle();
            }
        }
        self.leaving.retain(ReaderEntry::is_polling);
    }

    /// Waits for the end of all polls, and ends their threads. The stop is set.
    pub(super) fn join_polls(&mut self) {
        let entries = self.listed.iter_mut().chain(&mut self.leaving);
        let workers = entries.filter_map(ReaderEntry::join_poll);
        workers.chain(self.worker.take()).for_each(PollWorker::end);
    }
}
