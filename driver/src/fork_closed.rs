//! What a forked child closes of its parent's.
//!
//! A claim of a USB interface and a lock of flock(2) belong to the open file, which a child shares: they would last
//! as long as the child, whatever becomes of the parent. Closing the child's descriptor does nothing to the parent,
//! whose own keeps the file open. The child closes by number and does no more: no call that is unsafe after a fork, no
//! lock, nothing said to a device.
//!
//! A number is in the table only while it is the descriptor's: it is entered after the opening and taken out before
//! the closing. The kernel copies the descriptors of a process before its memory, so a number the child finds may have
//! been entered in between, and be another file's in the child. Entries are therefore counted, and the child closes
//! only those that were there before the fork began.

use std::{
    cell::Cell,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::fork_guard;

/// A reader in use has about eight. What finds no place stays open in a child, which is said once.
const PLACES: usize = 2048;
/// Of an entry, the bits that are the descriptor.
const NUMBER: u32 = 31;

static TABLE: Table = Table::new();
/// How often this process is a fork of the one that loaded the library.
static FORKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The first entry that was not there when this thread began to fork.
    static FIRST_UNKNOWN: Cell<u64> = const { Cell::new(0) };
}

/// Descriptors with their serial numbers; zero is a place without one.
struct Table {
    next: AtomicU64,
    places: [AtomicU64; PLACES],
}

/// Where a descriptor is in the table, and the entry that is there.
#[derive(Debug)]
struct Place {
    index: usize,
    entry: u64,
}

impl Table {
    const fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            places: [const { AtomicU64::new(0) }; PLACES],
        }
    }

    /// Enters a descriptor that is open. `None` when there is no place.
    fn add(&self, fd: RawFd) -> Option<Place> {
        let fd = u64::from(u32::try_from(fd).ok()?);
        let serial = self.next.fetch_add(1, Ordering::SeqCst);
        let entry = serial.checked_mul(1 << NUMBER)? | fd;
        let first = usize::try_from(serial).unwrap_or(0) % PLACES;
        let indices = (first..PLACES).chain(0..first);
        let mut places = indices.filter_map(|index| Some((index, self.places.get(index)?)));
        let is_free = |place: &AtomicU64| {
            let order = Ordering::SeqCst;
            place.compare_exchange(0, entry, order, order).is_ok()
        };
        let (index, _) = places.find(|(_, place)| is_free(place))?;
        Some(Place { index, entry })
    }

    /// Takes an entry out; in a child it is gone already.
    fn remove(&self, place: &Place) {
        if let Some(found) = self.places.get(place.index) {
            let order = Ordering::SeqCst;
            let _ = found.compare_exchange(place.entry, 0, order, order);
        }
    }

    /// Empties the table, and gives those to `close` that were entered before `first_unknown`.
    fn clear(&self, first_unknown: u64, mut close: impl FnMut(RawFd)) {
        for place in &self.places {
            let entry = place.swap(0, Ordering::SeqCst);
            let fd = RawFd::try_from(entry & ((1 << NUMBER) - 1));
            if let Ok(fd) = fd
                && entry != 0
                && entry >> NUMBER < first_unknown
            {
                close(fd);
            }
        }
    }
}

/// To be called before a fork, in the thread that forks.
pub(crate) fn before_fork() {
    FIRST_UNKNOWN.set(TABLE.next.load(Ordering::SeqCst));
}

/// To be called after a fork in the child: closes what it has inherited.
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    TABLE.clear(FIRST_UNKNOWN.get(), |fd| {
        // SAFETY: the number was a registered descriptor before the fork and is one in the copied memory, so it is that
        // descriptor here; its owner is the parent's and does not close it in this process.
        unsafe { rustix::io::close(fd) };
    });
}

/// Has a child close a descriptor, until dropped; which is before the descriptor itself is closed.
#[derive(Debug)]
pub(crate) struct Registration {
    place: Option<Place>,
    forks: u64,
}

impl Registration {
    /// For a descriptor that is open as long as this lives.
    pub(crate) fn new(fd: RawFd) -> Self {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let place = TABLE.add(fd);
        if place.is_none() && !TOLD.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                "usb: more than {PLACES} descriptors; a forked child keeps the others open"
            );
        }
        Self {
            place,
            forks: FORKS.load(Ordering::SeqCst),
        }
    }

    /// Whether this process is a child of the one that has the descriptor.
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

/// A descriptor that a forked child closes, and that only its own process closes when it is dropped.
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

    /// As [`ForkClosed::new`], for one that a child must not have: a fork waits until it is registered.
    ///
    /// # Errors
    /// As `open` has them.
    pub(crate) fn open<E>(open: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        let _pass = fork_guard::enter();
        open().map(Self::new)
    }
}

impl<T> ForkClosed<T> {
    /// Whether this process is a child of the one that has the descriptor.
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
        // SAFETY: dropped once, here, and not used any more.
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

    /// Runs `body` in a child, which ends with it and drops nothing.
    pub(crate) fn in_child(body: impl FnOnce()) -> libc::pid_t {
        fork::before_fork();
        // SAFETY: the child uses the allocator, which the C library makes whole again, and what asks the kernel alone.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child > 0 {
            fork::after_fork_in_parent();
            return child;
        }
        fork::after_fork_in_child();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: no more than the system call.
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
        // As in a child that drops what it has inherited, after it has opened files of its own.
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
        let places: Vec<Place> = (0..PLACES).map(|_| table.add(9).unwrap()).collect();
        assert!(table.add(9).is_none());
        table.remove(&places[1000]);
        assert_eq!(table.add(10).unwrap().index, places[1000].index);
        assert!(table.add(-1).is_none());
        assert_eq!(closed(&table, u64::MAX).len(), PLACES);
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
        let (mut told, mut teller) = std::io::pipe().unwrap();
        let kept = ForkClosed::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let number = kept.as_raw_fd();
        let child = in_child(|| {
            let is_open = |fd: RawFd| std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists();
            let was_closed = !is_open(number);
            // The lowest number that is free may be the very one.
            let own: Vec<File> = (0..64).map(|_| File::open("/dev/null").unwrap()).collect();
            let has_number = own.iter().any(|file| file.as_raw_fd() == number);
            drop(kept);
            let stays = is_open(number);
            let grandchild = in_child(|| {
                let said = [was_closed, has_number, stays, is_open(number)];
                let _ = teller.write_all(&said.map(u8::from));
            });
            wait_for(grandchild);
        });
        wait_for(child);
        drop(teller);
        let mut said = Vec::new();
        told.read_to_end(&mut said).unwrap();
        assert_eq!(said, [1; 4]);
    }
}
