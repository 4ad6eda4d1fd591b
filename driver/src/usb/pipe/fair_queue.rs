//! Taking turns at something that only so many may be at together: in the order of asking, and nobody waits longer than
//! it wants to.
//!
//! A turn that ends is handed to the first who waits, under the lock; whoever stops waiting says so under the same
//! lock, and passes on a turn that was handed over meanwhile. So none is lost, and none is given twice.

use std::{
    collections::VecDeque,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::bulk::Why;
use crate::{
    usb::host::event_fd::Signal,
    wait::{Stop, readable},
};

/// How often somebody for whom no descriptor was left looks whether it is his turn.
const WITHOUT_DESCRIPTOR: Duration = Duration::from_millis(20);

/// Turns, so many at a time.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<Queue>);

#[derive(Debug)]
struct Queue {
    free: usize,
    /// Whoever waits; nobody does while a turn is free.
    waiting: VecDeque<Arc<Ticket>>,
}

#[derive(Debug)]
struct Ticket {
    granted: AtomicBool,
    bell: Option<Arc<Signal>>,
}

/// A turn; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

impl Turns {
    /// `many` turns at the same time, one at least.
    pub(crate) fn new(many: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Queue {
            free: many.max(1),
            waiting: VecDeque::new(),
        })))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a turn could be had without waiting.
    pub(crate) fn is_free(&self) -> bool {
        self.queue().free > 0
    }

    /// A turn that is free.
    pub(crate) fn take_free(self: &Arc<Self>) -> Option<Turn> {
        let mut queue = self.queue();
        queue.free = queue.free.checked_sub(1)?;
        Some(Turn(Arc::clone(self)))
    }

    /// Waits for a turn until `until` or `stop`.
    ///
    /// # Errors
    /// [`Why::Taken`] or [`Why::Stopped`].
    pub(crate) fn take(self: &Arc<Self>, until: Instant, stop: &Stop) -> Result<Turn, Why> {
        let Some(ticket) = self.ask() else {
            return Ok(Turn(Arc::clone(self)));
        };
        loop {
            if ticket.granted.load(Ordering::SeqCst) {
                return Ok(Turn(Arc::clone(self)));
            }
            let now = Instant::now();
            if stop.is_set() || now >= until {
                self.leave(&ticket);
                return Err(if stop.is_set() {
                    Why::Stopped
                } else {
                    Why::Taken
                });
            }
            let _ = match &ticket.bell {
                Some(bell) => readable(&[bell.as_fd()], stop, Some(until)),
                None => readable(&[], stop, Some(until.min(now + WITHOUT_DESCRIPTOR))),
            };
        }
    }

    /// A place in the queue; `None` when it is one's turn at once.
    fn ask(&self) -> Option<Arc<Ticket>> {
        let mut queue = self.queue();
        if let Some(free) = queue.free.checked_sub(1) {
            queue.free = free;
            return None;
        }
        let ticket = Arc::new(Ticket {
            granted: AtomicBool::new(false),
            bell: Signal::new().ok(),
        });
        queue.waiting.push_back(Arc::clone(&ticket));
        Some(ticket)
    }

    fn leave(&self, ticket: &Arc<Ticket>) {
        let mut queue = self.queue();
        queue
            .waiting
            .retain(|waiting| !Arc::ptr_eq(waiting, ticket));
        if ticket.granted.load(Ordering::SeqCst) {
            queue.pass_on();
        }
    }
}

impl Queue {
    fn pass_on(&mut self) {
        let Some(next) = self.waiting.pop_front() else {
            self.free = self.free.saturating_add(1);
            return;
        };
        next.granted.store(true, Ordering::SeqCst);
        if let Some(bell) = &next.bell {
            bell.set();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.queue().pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;
    use crate::backend::Wake as _;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[test]
    fn no_more_turns_at_a_time_than_there_are_and_none_is_lost() {
        for many in [1, 3] {
            let turns = Turns::new(many);
            let (at_it, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            thread::scope(|scope| {
                for worker in 0..6 {
                    let (turns, at_it, most) = (&turns, &at_it, &most);
                    scope.spawn(move || {
                        for round in 0..200 {
                            // Some give up at once, some as their turn comes.
                            let until = match (worker + round) % 3 {
                                0 => Instant::now(),
                                1 => Instant::now() + Duration::from_micros(200),
                                _ => soon(),
                            };
                            if let Ok(_turn) = turns.take(until, &Stop::new()) {
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
    fn a_turn_goes_to_whoever_asked_first() {
        let turns = Turns::new(1);
        let order = Mutex::new(Vec::new());
        let first = turns.take(soon(), &Stop::new()).unwrap();
        thread::scope(|scope| {
            for number in 0..3 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.take(soon(), &Stop::new()).unwrap();
                    order.lock().unwrap().push(number);
                    drop(turn);
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
    fn a_wait_ends_at_its_deadline_and_at_a_stop_and_takes_nothing() {
        let turns = Turns::new(1);
        let held = turns.take(soon(), &Stop::new()).unwrap();
        assert!(!turns.is_free());
        let late = turns.take(Instant::now(), &Stop::new());
        assert_eq!(late.map(drop), Err(Why::Taken));
        let stop = Stop::new();
        thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(soon(), &stop).map(drop));
            while turns.queue().waiting.is_empty() {
                thread::sleep(Duration::from_millis(1));
            }
            stop.stop();
            assert_eq!(waits.join().unwrap(), Err(Why::Stopped));
        });
        drop(held);
        assert!(turns.is_free());
    }
}
