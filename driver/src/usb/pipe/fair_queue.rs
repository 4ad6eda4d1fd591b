//! A fair queue for a limited number of permits, in the order of requests. Each waiter has a deadline.
//!
//! A permit that is returned goes to the first waiter, under the lock. A waiter that gives up leaves the queue under the same
//! lock, and passes on a permit that it was granted meanwhile. No permit is lost or granted twice.

use std::{
    collections::VecDeque,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::bulk::BulkErrorKind;
use crate::{
    usb::host::event_fd::EventFd,
    wait::{StopFlag, wait_readable},
};

/// Poll interval of a waiter without a descriptor.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A fair queue for permits.
#[derive(Debug)]
pub(crate) struct FairQueue(Mutex<QueueState>);

#[derive(Debug)]
struct QueueState {
    free: usize,
    /// The waiters. Empty while a permit is free.
    waiting: VecDeque<Arc<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    granted: AtomicBool,
    wakeup: Option<Arc<EventFd>>,
}

/// A permit. Dropping it returns it.
#[derive(Debug)]
pub(crate) struct Permit(Arc<FairQueue>);

impl FairQueue {
    /// `many` permits, at least one.
    pub(crate) fn new(many: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(QueueState {
            free: many.max(1),
            waiting: VecDeque::new(),
        })))
    }

    fn queue(&self) -> MutexGuard<'_, QueueState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a permit is free.
    pub(crate) fn is_free(&self) -> bool {
        self.queue().free > 0
    }

    /// A permit, if one is free.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut queue = self.queue();
        queue.free = queue.free.checked_sub(1)?;
        Some(Permit(Arc::clone(self)))
    }

    /// Waits for a permit until `deadline` or `stop`.
    ///
    /// # Errors
    /// [`BulkErrorKind::Busy`] or [`BulkErrorKind::Stopped`].
    pub(crate) fn acquire(
        self: &Arc<Self>,
        deadline: Instant,
        stop: &StopFlag,
    ) -> Result<Permit, BulkErrorKind> {
        let Some(ticket) = self.enqueue() else {
            return Ok(Permit(Arc::clone(self)));
        };
        loop {
            if ticket.granted.load(Ordering::SeqCst) {
                return Ok(Permit(Arc::clone(self)));
            }
            let now = Instant::now();
            if stop.is_set() || now >= deadline {
                self.withdraw(&ticket);
                return Err(if stop.is_set() {
                    BulkErrorKind::Stopped
                } else {
                    BulkErrorKind::Busy
                });
            }
            let _ = match &ticket.wakeup {
                Some(wakeup) => wait_readable(&[wakeup.as_fd()], stop, Some(deadline)),
                None => wait_readable(&[], stop, Some(deadline.min(now + POLL_INTERVAL))),
            };
        }
    }

    /// Enters the queue. Returns `None` if a permit was free.
    fn enqueue(&self) -> Option<Arc<Waiter>> {
        let mut queue = self.queue();
        if let Some(free) = queue.free.checked_sub(1) {
            queue.free = free;
            return None;
        }
        let ticket = Arc::new(Waiter {
            granted: AtomicBool::new(false),
            wakeup: EventFd::new().ok(),
        });
        queue.waiting.push_back(Arc::clone(&ticket));
        Some(ticket)
    }

    fn withdraw(&self, ticket: &Arc<Waiter>) {
        let mut queue = self.queue();
        queue
            .waiting
            .retain(|waiting| !Arc::ptr_eq(waiting, ticket));
        if ticket.granted.load(Ordering::SeqCst) {
            queue.grant_next();
        }
    }
}

impl QueueState {
    fn grant_next(&mut self) {
        let Some(next) = self.waiting.pop_front() else {
            self.free = self.free.saturating_add(1);
            return;
        };
        next.granted.store(true, Ordering::SeqCst);
        if let Some(wakeup) = &next.wakeup {
            wakeup.notify();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.queue().grant_next();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;
    use crate::stop::StopHandle as _;

    const STEP_TIMEOUT: Duration = Duration::from_secs(30);

    fn soon() -> Instant {
        Instant::now() + STEP_TIMEOUT
    }

    #[test]
    fn permits_never_exceed_their_number_and_none_is_lost() {
        for many in [1, 3] {
            let turns = FairQueue::new(many);
            let (at_it, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            thread::scope(|scope| {
                for worker in 0..6 {
                    let (turns, at_it, most) = (&turns, &at_it, &most);
                    scope.spawn(move || {
                        for round in 0..200 {
                            // Some give up at once, some as their turn comes.
                            let deadline = match (worker + round) % 3 {
                                0 => Instant::now(),
                                1 => Instant::now() + Duration::from_micros(200),
                                _ => soon(),
                            };
                            if let Ok(_turn) = turns.acquire(deadline, &StopFlag::new()) {
                                most.fetch_max(
                                    at_it.fetch_add(1, Ordering::SeqCst) + 1,
                                    Ordering::SeqCst,
                                );
                                thread::yield_now();
                                at_it.fetch_sub(1, Ordering::SeqCst);
                            }
                        }
                    });
                }
            });
            assert!(most.load(Ordering::SeqCst) <= many);
            assert_eq!(turns.queue().free, many, "every turn came back");
            assert!(turns.queue().waiting.is_empty());
        }
    }

    #[test]
    fn permits_are_granted_in_order_of_request() {
        let turns = FairQueue::new(1);
        let order = Mutex::new(Vec::new());
        let first = turns.acquire(soon(), &StopFlag::new()).unwrap();
        thread::scope(|scope| {
            for number in 0..3 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let permit = turns.acquire(soon(), &StopFlag::new()).unwrap();
                    order.lock().unwrap().push(number);
                    drop(permit);
                });
                while turns.queue().waiting.len() <= number {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn wait_for_a_permit_ends_at_its_deadline_or_a_stop_and_takes_none() {
        let turns = FairQueue::new(1);
        let held = turns.acquire(soon(), &StopFlag::new()).unwrap();
        assert!(!turns.is_free());
        let late = turns.acquire(Instant::now(), &StopFlag::new());
        assert_eq!(late.map(drop), Err(BulkErrorKind::Busy));
        let stop = StopFlag::new();
        thread::scope(|scope| {
            let waits = scope.spawn(|| turns.acquire(soon(), &stop).map(drop));
            while turns.queue().waiting.is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            stop.stop();
            assert_eq!(waits.join().unwrap(), Err(BulkErrorKind::Stopped));
        });
        drop(held);
        assert!(turns.is_free());
    }
}
