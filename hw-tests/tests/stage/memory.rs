//! What a process holds, for finding what grows.

use std::fs;

use super::process::{open_files, thread_count};

/// Memory, descriptors and threads at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Bytes given out by malloc and not given back.
    pub heap: usize,
    pub mappings: usize,
    /// KiB of address space.
    pub space: usize,
    pub files: usize,
    pub threads: usize,
}

impl Holdings {
    pub fn now() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            heap: heap(),
            mappings: maps.lines().count(),
            space: maps.lines().map(size).sum::<usize>() / 1024,
            files: open_files().len(),
            threads: thread_count(),
        }
    }
}

fn heap() -> usize {
    // SAFETY: only counts.
    unsafe { libc::mallinfo2() }.uordblks
}

/// From now on all threads share one heap, so that what it holds does not depend on who came when.
pub fn share_one_heap() {
    // SAFETY: sets a number.
    assert_eq!(unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) }, 1);
}

/// Bytes of one line of /proc/self/maps.
fn size(line: &str) -> usize {
    let range = line
        .split(' ')
        .next()
        .and_then(|range| range.split_once('-'));
    let (from, to) = range.unwrap();
    let address = |text| usize::from_str_radix(text, 16).unwrap();
    address(to) - address(from)
}
