//! A thread that polls one reader at a time, so that the watch can follow the others.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{reader::WatchedReader, slot::PollContext};
use crate::usb::host::event_fd::EventFd;

/// A poll to be done.
struct Poll {
    reader: WatchedReader,
    context: PollContext,
    has_ended: Arc<AtomicBool>,
}

/// See the module. It waits between two polls.
pub(super) struct PollWorker {
    polls: SyncSender<Poll>,
    results: Receiver<WatchedReader>,
    thread: JoinHandle<()>,
}

/// A poll in another thread.
pub(super) struct RunningPoll {
    worker: PollWorker,
    has_ended: Arc<AtomicBool>,
}

/// Says when it is dropped that the poll has ended, by a panic, too.
struct PollEnd<'a> {
    has_ended: Arc<AtomicBool>,
    watch_event: &'a EventFd,
}

impl Drop for PollEnd<'_> {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.watch_event.notify();
    }
}

impl PollWorker {
    /// Starts a thread that notifies `watch_event` at the end of each poll.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(watch_event: Arc<EventFd>) -> io::Result<Self> {
        let (send_poll, polls) = sync_channel::<Poll>(1);
        let (send_result, results) = sync_channel(1);
        let run = move || {
            while let Ok(mut poll) = polls.recv() {
                let end = PollEnd {
                    has_ended: poll.has_ended,
                    watch_event: &watch_event,
                };
                poll.reader.poll(&poll.context);
                if send_result.send(poll.reader).is_err() {
                    return;
                }
                drop(end);
            }
        };
        let thread = thread::Builder::new()
            .name("claviger-poll".to_owned())
            .spawn(run)?;
        Ok(Self {
            polls: send_poll,
            results,
            thread,
        })
    }

    /// Begins a poll.
    pub(super) fn poll(self, reader: WatchedReader, context: PollContext) -> RunningPoll {
        let has_ended = Arc::new(AtomicBool::new(false));
        let poll = Poll {
            reader,
            context,
            has_ended: Arc::clone(&has_ended),
        };
        // The thread waits for the poll, or has panicked. In that case the end of the poll shows it.
        let _ = self.polls.send(poll);
        RunningPoll {
            worker: self,
            has_ended,
        }
    }

    /// Ends the thread.
    pub(super) fn end(self) {
        drop(self.polls);
        let _ = self.thread.join();
    }
}

impl RunningPoll {
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Waits until the poll has ended.
    ///
    /// # Errors
    /// The panic of the poll.
    pub(super) fn join(self) -> thread::Result<(WatchedReader, PollWorker)> {
        match self.worker.results.recv() {
            Ok(reader) => Ok((reader, self.worker)),
            Err(error) => Err(self
                .worker
                .thread
                .join()
                .err()
                .unwrap_or_else(|| Box::new(error))),
        }
    }
}
