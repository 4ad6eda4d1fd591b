//! Closes some descriptors of the parent in a forked child.
//!
//! The claim of a USB interface and a flock(2) lock belong to the open file. A child shares the open file, so the
//! claim and the lock would last as long as the child. Closing the child's descriptor does not affect the parent,
//! whose descriptor keeps the file open. The child closes descriptors by number and does nothing else: it makes no
//! call that is unsafe after a fork, takes no lock, and sends nothing to a device.
//!
//! A number is in the table only while the descriptor is open: it is entered after the opening and removed before the
//! closing. The kernel copies a process's descriptors before its memory. So the child may find a number that was
//! entered in between, and that number may be another file in the child. Entries are therefore counted, and the child
//! closes only entries made before the fork began.

use std::{
    cell::Cell,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::fork_guard;

/// Descriptors that the table can hold. A reader in use has about eight. Further descriptors stay open in a child;
/// the first one causes a warning.
const CAPACITY: usize = 2048;
/// How many bits of an entry hold the descriptor.
const FD_BITS: u32 = 31;

static TABLE: Table = Table::new();
/// The number of forks between the process that loaded the library and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The first entry that was not yet made when this thread began to fork.
    static FIRST_UNKNOWN: Cell<u64> = const { Cell::new(0) };
}

/// Descriptors with their serial numbers. Zero marks a free slot.
struct Table {
    next: AtomicU64,
    places: [AtomicU64; CAPACITY],
}

/// The index of a descriptor in the table, and its entry.
#[derive(Debug)]
struct Place {
    index: usize,
    entry: u64,
}

impl Table {
    const fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            places: [const { AtomicU64::new(0) }; CAPACITY],
        }
    }

    /// Enters an open descriptor. Returns `None` if the table is full.
    fn add(&self, fd: RawFd) -> Option<Place> {
        let fd = u64::from(u32::try_from(fd).ok()?);
        let serial = self.next.fetch_add(1, Ordering::SeqCst);
        let entry = serial.checked_mul(1 << FD_BITS)? | fd;
        let first = usize::try_from(serial).unwrap_or(0) % CAPACITY;
        let indices = (first..CAPACITY).chain(0..first);
        let mut places = indices.filter_map(|index| Some((index, self.places.get(index)?)));
        let is_free = |place: &AtomicU64| {
            let order = Ordering::SeqCst;
            place.compare_exchange(0, entry, order, order).is_ok()
        };
        let (index, _) = places.find(|(_, place)| is_free(place))?;
        Some(Place { index, entry })
    }

    /// Removes an entry. In a child, the entry has been removed already.
    fn remove(&self, place: &Place) {
        if let Some(found) = self.places.get(place.index) {
            let order = Ordering::SeqCst;
            let _ = found.compare_exchange(place.entry, 0, order, order);
        }
    }

    /// Empties the table. Calls `close` for each descriptor that was entered before `first_unknown`.
    fn clear(&self, first_unknown: u64, mut close: impl FnMut(RawFd)) {
        for place in &self.places {
            let entry = place.swap(0, Ordering::SeqCst);
            let fd = RawFd::try_from(entry & ((1 << FD_BITS) - 1));
            if let Ok(fd) = fd
                && entry != 0
                && entry >> FD_BITS < first_unknown
            {
                close(fd);
            }
        }
    }
}

/// Notes which entries exist. Call this before a fork, in the thread that forks.
pub(crate) fn before_fork() {
    FIRST_UNKNOWN.set(TABLE.next.load(Ordering::SeqCst));
}

/// Closes the inherited descriptors. Call this after a fork in the child.
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    TABLE.clear(FIRST_UNKNOWN.get(), |fd| {
        // SAFETY: the number was registered before the fork and is still registered in the copied memory, so it is
        // the same descriptor here. The parent owns the descriptor; no code closes it in this process.
        unsafe { rustix::io::close(fd) };
    });
}

/// Registers a descriptor to be closed in a child. The owner drops this before it closes the descriptor.
#[derive(Debug)]
pub(crate) struct Registration {
    place: Option<Place>,
    forks: u64,
}

impl Registration {
    /// Registers `fd`, which must stay open until the registration is dropped.
    pub(crate) fn new(fd: RawFd) -> Self {
        static WARNED: AtomicBool = AtomicBool::new(false);
        let place = TABLE.add(fd);
        if place.is_none() && !WARNED.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                "usb: more than {CAPACITY} descriptors are open; a forked child keeps the rest open"
            );
        }
        Self {
            place,
            forks: FORKS.load(Ordering::SeqCst),
        }
    }

    /// Returns whether this process is a child of the process that opened the descriptor.
    pub(crate) fn is_inherited(&self) -> bool {
        self.forks != FORKS.load(Ordering::SeqCst)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            TABLE.remove(place);
        }
    }
}

/// A descriptor that a forked child closes. Dropping it closes the descriptor only in the process that opened it.
#[derive(Debug)]
pub(crate) struct ForkClosed<T> {
    registration: Option<Registration>,
    descriptor: ManuallyDrop<T>,
}

impl<T: AsFd> ForkClosed<T> {
    pub(crate) fn new(descriptor: T) -> Self {
        Self {
            registration: Some(Registration::new(descriptor.as_fd().as_raw_fd())),
            descriptor: ManuallyDrop::new(descriptor),
        }
    }

    /// Opens a descriptor and registers it. A fork waits until the descriptor is registered, so that no child keeps
    /// it open.
    ///
    /// # Errors
    /// The error of `open`.
    pub(crate) fn open<E>(open: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        let _pass = fork_guard::enter();
        open().map(Self::new)
    }
}

impl<T> ForkClosed<T> {
    /// Returns whether this process is a child of the process that opened the descriptor.
    pub(crate) fn is_inherited(&self) -> bool {
        self.registration
            .as_ref()
            .is_some_and(Registration::is_inherited)
    }
}

impl<T> Drop for ForkClosed<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        self.registration = None;
        // SAFETY: this is the only drop, and nothing uses the descriptor afterwards.
        unsafe { ManuallyDrop::drop(&mut self.descriptor) };
    }
}

impl<T> Deref for ForkClosed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.descriptor
    }
}

impl<T> DerefMut for ForkClosed<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.descriptor
    }
}

impl<T: AsFd> AsFd for ForkClosed<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::fd::OwnedFd,
    };

    use super::*;
    use crate::fork;

    fn closed(table: &Table, first_unknown: u64) -> Vec<RawFd> {
        let mut closed = Vec::new();
        table.clear(first_unknown, |fd| closed.push(fd));
        closed.sort_unstable();
        closed
    }

    /// Runs `body` in a child. The child exits after `body` and drops nothing.
    pub(crate) fn in_child(body: impl FnOnce()) -> libc::pid_t {
        fork::before_fork();
        // SAFETY: the child uses the allocator, which the C library makes usable again after a fork. Otherwise it
        // uses only system calls.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child > 0 {
            fork::after_fork_in_parent();
            return child;
        }
        fork::after_fork_in_child();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: this is only a system call.
        unsafe { libc::_exit(0) }
    }

    /// Waits for the end of a child.
    pub(crate) fn wait_for(child: libc::pid_t) {
        // SAFETY: waits for a child of this process.
        let waited = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(waited, child);
    }

    #[test]
    fn forked_child_closes_registered_descriptors_and_no_removed_ones() {
        let table = Table::new();
        let places = [5, 0, 7].map(|fd| table.add(fd).unwrap());
        table.remove(&places[0]);
        assert_eq!(closed(&table, u64::MAX), [0, 7]);
        assert_eq!(closed(&table, u64::MAX), []);
        // A child opens files of its own, and only then drops the inherited descriptors.
        let own = table.add(7).unwrap();
        table.remove(&places[2]);
        assert_eq!(closed(&table, u64::MAX), [7]);
        table.remove(&own);
    }

    #[test]
    fn descriptor_registered_during_a_fork_is_not_closed() {
        let table = Table::new();
        let _ = table.add(3);
        let first_unknown = table.next.load(Ordering::SeqCst);
        let _ = table.add(4);
        assert_eq!(closed(&table, first_unknown), [3]);
    }

    #[test]
    fn full_descriptor_table_takes_no_entry_until_one_is_removed() {
        let table = Table::new();
        let places: Vec<Place> = (0..CAPACITY).map(|_| table.add(9).unwrap()).collect();
        assert!(table.add(9).is_none());
        table.remove(&places[1000]);
        assert_eq!(table.add(10).unwrap().index, places[1000].index);
        assert!(table.add(-1).is_none());
        assert_eq!(closed(&table, u64::MAX).len(), CAPACITY);
    }

    #[test]
    fn concurrent_registration_loses_no_descriptor() {
        let table = Table::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..1000 {
                        let place = table.add(thread * 1000 + round).unwrap();
                        table.remove(&place);
                    }
                    let _ = table.add(thread);
                });
            }
        });
        assert_eq!(closed(&table, u64::MAX), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn b14_child_closes_its_parents_descriptors_and_no_number_twice() {
        let (mut receiver, mut sender) = std::io::pipe().unwrap();
        let kept = ForkClosed::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let number = kept.as_raw_fd();
        let child = in_child(|| {
            let is_open = |fd: RawFd| std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists();
            let was_closed = !is_open(number);
            // A new file takes the lowest free number, which may be the closed one.
            let own: Vec<File> = (0..64).map(|_| File::open("/dev/null").unwrap()).collect();
            let has_number = own.iter().any(|file| file.as_raw_fd() == number);
            drop(kept);
            let stays = is_open(number);
            let grandchild = in_child(|| {
                let states = [was_closed, has_number, stays, is_open(number)];
                let _ = sender.write_all(&states.map(u8::from));
            });
            wait_for(grandchild);
        });
        wait_for(child);
        drop(sender);
        let mut states = Vec::new();
        receiver.read_to_end(&mut states).unwrap();
        assert_eq!(states, [1; 4]);
    }
}
