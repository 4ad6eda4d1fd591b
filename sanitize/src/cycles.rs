//! Many generations of the module, each with listed slots and a waiter. A leak of one generation shows in the sum.

use std::{
    fmt, fs, thread,
    time::{Duration, Instant},
};

use cryptoki_sys::{CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};

use crate::{
    module::{MODES, Module},
    tool,
};

/// Lives in each mode.
const CYCLES: usize = 240;
/// After these all that is made once has been made.
const WARM: usize = 40;
/// What the heap may have grown by after the others: less than eight bytes for each.
const TOLERANCE: usize = 8 * (CYCLES - WARM) - 1;

/// Plays with `slots` slots.
pub(crate) fn play(module: Module, slots: usize) {
    for flags in MODES {
        let mut before = Held::default();
        for cycle in 0..CYCLES {
            if cycle == WARM {
                before = Held::now();
            }
            module.initialize(flags);
            assert_eq!(module.slots(false).map(|found| found.len()), Ok(slots));
            let waiter = thread::spawn(move || {
                let ended = (0..).find_map(|_| Some(module.wait(0)).filter(|code| *code != CKR_OK));
                assert_eq!(ended, Some(CKR_CRYPTOKI_NOT_INITIALIZED));
            });
            // Now and then long enough for the waiter to be at rest.
            thread::sleep(Duration::from_micros([0, 300, 5000][cycle % 3]));
            module.finalize();
            waiter.join().expect("no panic");
        }
        before.compare();
    }
}

/// What a process holds.
#[derive(Default)]
struct Held {
    /// Bytes of the heap, where a sanitizer counts them.
    heap: Option<usize>,
    descriptors: usize,
    threads: usize,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            heap,
            descriptors,
            threads,
        } = self;
        let heap = heap.unwrap_or_default();
        write!(
            f,
            "{heap} bytes, {descriptors} descriptors, {threads} threads"
        )
    }
}

impl Held {
    fn now() -> Self {
        let count = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
        Self {
            heap: tool::allocated(),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
        }
    }

    /// Holds that no more is held than before; the kernel lists a thread for a moment after it was joined.
    fn compare(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut now = Self::now();
        while now.threads > self.threads && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
            now = Self::now();
        }
        println!("{} lives from {self} to {now}", CYCLES - WARM);
        assert!(now.threads <= self.threads, "threads are left");
        assert!(now.descriptors <= self.descriptors, "files are left open");
        if let (Some(before), Some(now)) = (self.heap, now.heap) {
            assert!(now.saturating_sub(before) <= TOLERANCE, "the heap grows");
        }
    }
}
