//! Faults made on purpose: a tool that does not report them sees nothing at all. And the contrary: what is in
//! order, and looks like a race to a tool that does not know std's locks.

use std::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex, OnceLock, RwLock},
    thread::{self, JoinHandle},
};

/// Enough for threads to meet in the locks' slow paths.
const TURNS: u64 = 20_000;

/// A number for all threads, which nothing guards.
struct UnsyncCounter(UnsafeCell<u64>);

// SAFETY: none; that is the fault.
unsafe impl Sync for UnsyncCounter {}

impl UnsyncCounter {
    const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn add(&self) {
        // SAFETY: none in `race`; in `order` the callers hold a lock.
        unsafe { *self.0.get() += 1 };
    }
}

/// Two threads, each with a lock of its own.
pub(crate) fn race() {
    static NUMBER: UnsyncCounter = UnsyncCounter::new();
    let one = || {
        let lock = Mutex::new(());
        for _ in 0..TURNS {
            let _held = lock.lock();
            NUMBER.add();
        }
    };
    let threads = [thread::spawn(one), thread::spawn(one)];
    join(threads);
}

/// As [`race`] with the same lock, and everything else that std does outside the tool's sight.
pub(crate) fn order() {
    mutex();
    condvar();
    read_write();
    last_owner();
    once();
}

fn mutex() {
    static NUMBER: UnsyncCounter = UnsyncCounter::new();
    static LOCK: Mutex<()> = Mutex::new(());
    let one = || {
        for _ in 0..TURNS {
            let _held = LOCK.lock();
            NUMBER.add();
        }
    };
    let threads = [thread::spawn(one), thread::spawn(one), thread::spawn(one)];
    join(threads);
}

/// Two threads take turns.
fn condvar() {
    static NUMBER: UnsyncCounter = UnsyncCounter::new();
    static TURN: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());
    let one = |mine: u64| {
        move || {
            for _ in 0..TURNS / 20 {
                let turn = TURN.0.lock().expect("no panic");
                let mut turn = TURN
                    .1
                    .wait_while(turn, |turn| *turn % 2 != mine)
                    .expect("no panic");
                NUMBER.add();
                *turn += 1;
                TURN.1.notify_all();
            }
        }
    };
    let threads = [thread::spawn(one(0)), thread::spawn(one(1))];
    join(threads);
}

fn read_write() {
    static NUMBER: UnsyncCounter = UnsyncCounter::new();
    static LOCK: RwLock<()> = RwLock::new(());
    let one = || {
        for turn in 0..TURNS {
            if turn % 8 == 0 {
                let _held = LOCK.write();
                NUMBER.add();
            } else {
                let _held = LOCK.read();
                // SAFETY: nobody writes meanwhile.
                assert!(unsafe { *NUMBER.0.get() } <= TURNS);
            }
        }
    };
    let threads = [thread::spawn(one), thread::spawn(one), thread::spawn(one)];
    join(threads);
}

/// Whoever lets go last frees what the others have used.
fn last_owner() {
    for _ in 0..TURNS / 100 {
        let shared = Arc::new(vec![7_u64; 4]);
        let one =
            |mine: Arc<Vec<u64>>| thread::spawn(move || assert_eq!(mine.iter().sum::<u64>(), 28));
        let threads = [one(Arc::clone(&shared)), one(Arc::clone(&shared))];
        drop(shared);
        join(threads);
    }
}

fn once() {
    for _ in 0..TURNS / 100 {
        let once: Arc<OnceLock<Vec<u64>>> = Arc::default();
        let one = |mine: Arc<OnceLock<Vec<u64>>>| {
            thread::spawn(move || assert_eq!(mine.get_or_init(|| vec![7; 4]).len(), 4))
        };
        let threads = [one(Arc::clone(&once)), one(Arc::clone(&once)), one(once)];
        join(threads);
    }
}

/// Reads memory after it was given back.
pub(crate) fn use_after_free() {
    let pointer = Box::into_raw(Box::new(std::hint::black_box(7_u64)));
    // SAFETY: made by `Box::into_raw` just now.
    drop(unsafe { Box::from_raw(pointer) });
    // SAFETY: none; that is the fault.
    println!("{}", unsafe { pointer.read_volatile() });
}

/// Forgets memory.
pub(crate) fn leak() {
    for _ in 0..64 {
        std::mem::forget(std::hint::black_box(vec![7_u8; 100]));
    }
}

fn join<const N: usize>(threads: [JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().expect("no panic");
    }
}
