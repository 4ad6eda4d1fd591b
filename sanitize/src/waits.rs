//! C_WaitForSlotEvent in some threads, C_Finalize in another, while a card comes and goes.

use std::{
    sync::{Arc, Barrier},
    thread::{self, JoinHandle},
    time::Duration,
};

use cryptoki_sys::{CK_FLAGS, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};

use crate::module::{MODES, Module};

/// Rounds for each number of waiters, in each mode, with C_Initialize after C_Finalize and without.
const ROUNDS: u64 = 40;
const WAITERS: [usize; 4] = [1, 2, 3, 4];

pub(crate) fn play(module: Module) {
    let mut events = 0;
    for flags in MODES {
        for waiters in WAITERS {
            for number in 0..ROUNDS {
                let delay = Duration::from_micros(number * 7919 % 4000);
                events += ended(module, flags, waiters, delay);
                events += ended_and_begun_anew(module, flags, waiters, delay);
            }
        }
    }
    let rounds = MODES.len() as u64 * WAITERS.len() as u64 * ROUNDS * 2;
    println!("{rounds} rounds of 1 to 4 waiters, {events} events");
}

/// C_Finalize ends the wait of every waiter.
fn ended(module: Module, flags: CK_FLAGS, waiters: usize, delay: Duration) -> u64 {
    module.initialize(flags);
    let waiting = begin(waiters, move || {
        let mut events = 0;
        loop {
            match module.wait(0) {
                CKR_OK => events += 1,
                CKR_CRYPTOKI_NOT_INITIALIZED => return events,
                code => panic!("C_WaitForSlotEvent: {code:#X}"),
            }
        }
    });
    thread::sleep(delay);
    module.finalize();
    join(waiting)
}

/// A waiter that has come in time belongs to the old generation, one that was late to the new.
fn ended_and_begun_anew(module: Module, flags: CK_FLAGS, waiters: usize, delay: Duration) -> u64 {
    module.initialize(flags);
    let waiting = begin(waiters, move || match module.wait(0) {
        CKR_OK => 1,
        CKR_CRYPTOKI_NOT_INITIALIZED => 0,
        code => panic!("C_WaitForSlotEvent: {code:#X}"),
    });
    thread::sleep(delay);
    module.finalize();
    module.initialize(flags);
    assert!(module.slots(false).is_ok());
    thread::sleep(delay / 4);
    module.finalize();
    join(waiting)
}

/// Starts `number` threads that begin `work` at the same time.
fn begin(number: usize, work: impl Fn() -> u64 + Clone + Send + 'static) -> Vec<JoinHandle<u64>> {
    let start = Arc::new(Barrier::new(number + 1));
    let one = |_| {
        let (start, work) = (Arc::clone(&start), work.clone());
        thread::spawn(move || {
            start.wait();
            work()
        })
    };
    let threads = (0..number).map(one).collect();
    start.wait();
    threads
}

fn join(threads: Vec<JoinHandle<u64>>) -> u64 {
    let counts = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic"));
    counts.sum()
}
