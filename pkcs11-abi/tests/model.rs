//! Every interleaving of waiters, a finaliser and a source of events.
//!
//! The module's own `queue` and `life` run here over loom's locks: the files are the ones of the module, only
//! `crate::sync` is another. Loom tries every order in which the threads can come to a lock, and reports a
//! deadlock or a lost wake-up as what it is. Time does not pass here: a bounded wait waits until it is woken.
//!
//! The models of the protocol itself are exhaustive. Those with everything around it are explored with as many
//! preemptions of a thread as `LOOM_MAX_PREEMPTIONS` says, 2 by default; `make races` takes 3.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a model uses a part of the files it includes, and fails loudly"
)]

mod sync {
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    // Counting references is no part of the protocols, and each count would be one more point to switch at.
    pub(crate) use std::sync::{Arc, PoisonError};
}

#[path = "../src/event_queue.rs"]
mod event_queue;
#[path = "../src/lifecycle.rs"]
mod lifecycle;

use event_queue::{EventQueue, EventSource, WaitOutcome};
use lifecycle::{CallGuard, Generation, Lifecycle};
use loom::thread::{self, JoinHandle};
use sync::{Arc, Condvar, Mutex};

/// A slot table of one slot: how many events are pending.
#[derive(Debug, Default)]
struct Slot {
    pending: usize,
}

impl EventSource for Slot {
    type Event = ();

    fn take_event(&mut self) -> Option<()> {
        self.pending = self.pending.checked_sub(1)?;
        Some(())
    }
}

/// The readers outside, and what ends a watch of them: a watch that is told of neither sleeps.
#[derive(Debug, Default)]
struct EventProducer {
    state: Mutex<Readers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Readers {
    changes: usize,
    stopped: bool,
}

impl EventProducer {
    fn change(&self) {
        self.state.lock().unwrap().changes += 1;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state.lock().unwrap().stopped = true;
        self.changed.notify_all();
    }

    /// As `Watch::next_snapshot`: waits for changes beyond `seen`; none after a stop.
    fn next(&self, seen: usize) -> Option<usize> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.stopped {
                return None;
            }
            if state.changes > seen {
                return Some(state.changes);
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// What the module holds, as far as waiting goes.
struct Module {
    generation: usize,
    queue: Arc<EventQueue<Slot>>,
    outside: Arc<EventProducer>,
    /// How far the caller's thread that leads has seen.
    seen: Mutex<usize>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Generation for Module {
    fn stop(&self) {
        self.queue.stop();
        self.outside.stop();
        let thread = self.thread.lock().unwrap().take();
        thread.into_iter().for_each(|thread| thread.join().unwrap());
    }

    fn abort_calls(&self) {
        panic!("everybody leaves by themselves");
    }

    fn release(&self) {
        assert!(self.queue.is_stopped());
    }
}

impl Module {
    fn new(generation: usize, outside: &Arc<EventProducer>) -> Self {
        Self {
            generation,
            queue: Arc::default(),
            outside: Arc::clone(outside),
            seen: Mutex::new(0),
            thread: Mutex::new(None),
        }
    }

    /// Follows the readers in a thread, as the slot-event thread does.
    fn with_thread(self) -> Self {
        let (queue, outside) = (Arc::clone(&self.queue), Arc::clone(&self.outside));
        let follow = move || {
            let mut seen = 0;
            while let Some(changes) = outside.next(seen) {
                queue.update(|slot| slot.pending += changes - seen);
                seen = changes;
            }
        };
        *self.thread.lock().unwrap() = Some(thread::spawn(follow));
        self
    }

    /// C_WaitForSlotEvent: whether there was an event.
    fn wait(&self, may_lead: bool) -> bool {
        loop {
            match self.queue.wait(true, may_lead) {
                WaitOutcome::Event(()) => return true,
                WaitOutcome::Stopped => return false,
                WaitOutcome::Nothing | WaitOutcome::Broken => panic!("nobody asked for this"),
                WaitOutcome::BecomeWatcher(leading) => {
                    let mut seen = self.seen.lock().unwrap();
                    if let Some(changes) = self.outside.next(*seen) {
                        self.queue.update(|slot| slot.pending += changes - *seen);
                        *seen = changes;
                    }
                    drop(seen);
                    drop(leading);
                }
            }
        }
    }
}

type TestLifecycle = Arc<Lifecycle<Module>>;

/// Waits in the generation it came with.
fn waiter(call: CallGuard<Module>, may_lead: bool) -> JoinHandle<bool> {
    thread::spawn(move || {
        let generation = call.generation;
        let event = call.wait(may_lead);
        assert_eq!(call.generation, generation);
        event
    })
}

fn wait_result(waiters: Vec<JoinHandle<bool>>) -> usize {
    let told = |waiter: JoinHandle<bool>| usize::from(waiter.join().unwrap());
    waiters.into_iter().map(told).sum()
}

fn begin(lifecycle: &TestLifecycle, module: Module) {
    assert!(lifecycle.initialize(|| module));
}

fn enter(lifecycle: &TestLifecycle) -> CallGuard<Module> {
    lifecycle.enter().expect("a generation lives")
}

/// Every order of everything.
fn exhaustively(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.check(model);
}

/// Every order in which no thread is preempted more often than the bound says.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(model);
}

/// Waits on the queue alone, as a call does.
fn wait_on(queue: &Arc<EventQueue<Slot>>) -> JoinHandle<bool> {
    let queue = Arc::clone(queue);
    thread::spawn(move || match queue.wait(true, false) {
        WaitOutcome::Event(()) => true,
        WaitOutcome::Stopped => false,
        WaitOutcome::Nothing | WaitOutcome::Broken | WaitOutcome::BecomeWatcher(_) => {
            panic!("nobody asked for this")
        }
    })
}

/// The protocol itself: two waiters, a source of one event, a finaliser.
#[test]
fn stop_ends_two_waiters_with_at_most_one_event() {
    exhaustively(|| {
        let queue = Arc::new(EventQueue::<Slot>::default());
        let waiters = vec![wait_on(&queue), wait_on(&queue)];
        let source = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.update(|slot| slot.pending += 1))
        };
        queue.stop();
        assert!(wait_result(waiters) <= 1, "an event is told once");
        source.join().unwrap();
        assert!(queue.is_stopped());
    });
}

/// Two waiters of which one watches for both, and a finaliser: nobody sleeps on without a leader.
#[test]
fn stop_ends_two_self_watching_waiters_without_an_event() {
    exhaustively(|| {
        let outside = Arc::new(EventProducer::default());
        let module = Arc::new(Module::new(1, &outside));
        let wait = || {
            let module = Arc::clone(&module);
            thread::spawn(move || module.wait(true))
        };
        let waiters = vec![wait(), wait()];
        module.stop();
        assert_eq!(wait_result(waiters), 0, "there was no event");
    });
}

/// Two calls that are inside, one that comes, and an end that waits until all have left.
#[test]
fn finalize_waits_for_a_leaving_and_an_entering_call() {
    exhaustively(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let call = enter(&lifecycle);
        let leaves = thread::spawn(move || drop(call));
        let comes = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.enter().is_some())
        };
        assert!(lifecycle.finalize());
        assert!(lifecycle.enter().is_none());
        leaves.join().unwrap();
        comes.join().unwrap();
    });
}

/// Calls that wait are counted, and the end returns when they have left.
#[test]
fn finalize_ends_two_waiting_calls_with_at_most_one_event() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let queue = Arc::clone(&enter(&lifecycle).queue);
        let waiters = vec![
            waiter(enter(&lifecycle), false),
            waiter(enter(&lifecycle), false),
        ];
        let source = thread::spawn(move || queue.update(|slot| slot.pending += 1));
        assert!(lifecycle.finalize());
        assert!(wait_result(waiters) <= 1, "an event is told once");
        source.join().unwrap();
    });
}

/// Two waiters, a slot-event thread with one event to tell, C_Finalize and C_Initialize at once.
#[test]
fn finalize_ends_waiters_of_a_watching_thread_and_the_next_generation_begins() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        outside.change();
        begin(&lifecycle, Module::new(1, &outside).with_thread());
        let waiters = vec![
            waiter(enter(&lifecycle), false),
            waiter(enter(&lifecycle), false),
        ];
        assert!(lifecycle.finalize());
        // Everybody has left, and the next generation is none of their business.
        begin(&lifecycle, Module::new(2, &Arc::default()));
        assert!(wait_result(waiters) <= 1, "an event is told once");
        assert!(lifecycle.finalize());
    });
}

/// Two waiters of which one watches for both, one event from outside, and C_Finalize.
#[test]
fn finalize_ends_two_self_watching_waiters_with_at_most_one_event() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        begin(&lifecycle, Module::new(1, &outside));
        let waiters = vec![
            waiter(enter(&lifecycle), true),
            waiter(enter(&lifecycle), true),
        ];
        let source = {
            let outside = Arc::clone(&outside);
            thread::spawn(move || outside.change())
        };
        assert!(lifecycle.finalize());
        assert!(wait_result(waiters) <= 1, "an event is told once");
        source.join().unwrap();
        assert!(lifecycle.enter().is_none());
    });
}

/// Two waiters and two events: both are told, whoever leads.
#[test]
fn no_event_is_lost_when_another_waiter_becomes_watcher() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        let outside = Arc::new(EventProducer::default());
        begin(&lifecycle, Module::new(1, &outside));
        let waiters = vec![
            waiter(enter(&lifecycle), true),
            waiter(enter(&lifecycle), true),
        ];
        outside.change();
        outside.change();
        assert_eq!(wait_result(waiters), 2);
        assert!(lifecycle.finalize());
    });
}

/// Two waiters, one event, and a second one when the first was told: who is left takes the lead over.
#[test]
fn remaining_waiter_becomes_watcher() {
    bounded(|| {
        let (outside, told_of) = (
            Arc::new(EventProducer::default()),
            Arc::new(EventProducer::default()),
        );
        let module = Arc::new(Module::new(1, &outside));
        let wait = || {
            let (module, told_of) = (Arc::clone(&module), Arc::clone(&told_of));
            thread::spawn(move || {
                let event = module.wait(true);
                told_of.change();
                event
            })
        };
        let waiters = vec![wait(), wait()];
        outside.change();
        told_of.next(0).unwrap();
        outside.change();
        assert_eq!(wait_result(waiters), 2);
    });
}

/// Calls that come and go while C_Finalize runs in two threads: one of the two ends the generation, and when it
/// returns nobody is inside.
#[test]
fn one_of_two_concurrent_finalizes_ends_the_generation_and_all_calls() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let call = {
            let (lifecycle, inside) = (Arc::clone(&lifecycle), Arc::clone(&inside));
            thread::spawn(move || {
                if let Some(call) = lifecycle.enter() {
                    inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert!(!call.wait(false));
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                }
            })
        };
        let other = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.finalize())
        };
        let mine = lifecycle.finalize();
        if mine {
            assert_eq!(inside.load(std::sync::atomic::Ordering::SeqCst), 0);
        }
        assert!(mine ^ other.join().unwrap(), "one of the two, and only one");
        call.join().unwrap();
    });
}

/// C_Initialize that comes while C_Finalize is at work waits for it, and neither is lost.
#[test]
fn initialize_waits_for_a_running_finalize() {
    bounded(|| {
        let lifecycle = TestLifecycle::default();
        begin(&lifecycle, Module::new(1, &Arc::default()));
        let waiting = waiter(enter(&lifecycle), false);
        let again = {
            let lifecycle = Arc::clone(&lifecycle);
            thread::spawn(move || lifecycle.initialize(|| Module::new(2, &Arc::default())))
        };
        assert!(lifecycle.finalize());
        assert!(!waiting.join().unwrap());
        if again.join().unwrap() {
            assert_eq!(enter(&lifecycle).generation, 2);
            assert!(lifecycle.finalize());
        } else {
            assert!(
                lifecycle.enter().is_none(),
                "it came before, and was told so"
            );
        }
    });
}
