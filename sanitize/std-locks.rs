//! Tells ThreadSanitizer what std does where it cannot see: std itself is not instrumented.
//!
//! The uncontended ways through std's locks are inlined into the module and seen there; so is every unlocking.
//! What is left is here: each function stands before std's own (`ld --wrap`) and adds the edge that std's
//! uninstrumented instructions make. Nothing is added that std does not do.
//!
//! Safety: each function passes on what it was given to the one it stands before, whose types it repeats; the
//! addresses it gives to the tool are those of locks that std has just used.
#![no_std]
#![feature(thread_local)]

use core::{cell::Cell, ffi::c_void, ptr, time::Duration};

type Address = *const c_void;

unsafe extern "C" {
    fn __tsan_acquire(address: Address);
    fn __tsan_release(address: Address);
}

unsafe extern "Rust" {
    #[link_name = concat!("__real_", env!("MUTEX_LOCK"))]
    fn mutex_lock(mutex: Address);
    #[link_name = concat!("__real_", env!("CONDVAR_WAIT"))]
    fn condvar_wait(condvar: Address, mutex: Address);
    #[link_name = concat!("__real_", env!("CONDVAR_WAIT_TIMEOUT"))]
    fn condvar_wait_timeout(condvar: Address, mutex: Address, timeout: Duration) -> bool;
    #[link_name = concat!("__real_", env!("RWLOCK_READ"))]
    fn rwlock_read(rwlock: Address);
    #[link_name = concat!("__real_", env!("RWLOCK_WRITE"))]
    fn rwlock_write(rwlock: Address);
    #[link_name = concat!("__real_", env!("ONCE_CALL"))]
    fn once_call(once: Address, ignore_poison: bool, f: &mut dyn FnMut(Address), caller: Address);
}

#[unsafe(export_name = concat!("__wrap_", env!("MUTEX_LOCK")))]
unsafe fn wrap_mutex_lock(mutex: Address) {
    unsafe {
        mutex_lock(mutex);
        __tsan_acquire(mutex);
    }
}

#[unsafe(export_name = concat!("__wrap_", env!("CONDVAR_WAIT")))]
unsafe fn wrap_condvar_wait(condvar: Address, mutex: Address) {
    unsafe {
        __tsan_release(mutex);
        condvar_wait(condvar, mutex);
        __tsan_acquire(mutex);
    }
}

#[unsafe(export_name = concat!("__wrap_", env!("CONDVAR_WAIT_TIMEOUT")))]
unsafe fn wrap_condvar_wait_timeout(condvar: Address, mutex: Address, timeout: Duration) -> bool {
    unsafe {
        __tsan_release(mutex);
        let in_time = condvar_wait_timeout(condvar, mutex, timeout);
        __tsan_acquire(mutex);
        in_time
    }
}

#[unsafe(export_name = concat!("__wrap_", env!("RWLOCK_READ")))]
unsafe fn wrap_rwlock_read(rwlock: Address) {
    unsafe {
        rwlock_read(rwlock);
        acquire_both(rwlock);
    }
}

#[unsafe(export_name = concat!("__wrap_", env!("RWLOCK_WRITE")))]
unsafe fn wrap_rwlock_write(rwlock: Address) {
    unsafe {
        rwlock_write(rwlock);
        acquire_both(rwlock);
    }
}

/// The lock's state and its count of wakes, whichever comes first.
unsafe fn acquire_both(rwlock: Address) {
    unsafe {
        __tsan_acquire(rwlock);
        __tsan_acquire(rwlock.byte_add(4));
    }
}

#[unsafe(export_name = concat!("__wrap_", env!("ONCE_CALL")))]
unsafe fn wrap_once_call(
    once: Address,
    ignore_poison: bool,
    f: &mut dyn FnMut(Address),
    caller: Address,
) {
    let mut f_then_release = |state: Address| {
        f(state);
        unsafe { __tsan_release(once) };
    };
    unsafe {
        once_call(once, ignore_poison, &mut f_then_release, caller);
        __tsan_acquire(once);
    }
}

// `Arc` lets go with a releasing subtraction, and whoever is last has an acquiring fence. The tool knows no
// fences: this one acquires what the subtraction just before it read.

/// C's memory_order_acquire, _acq_rel and _seq_cst.
const ACQUIRE: [i32; 3] = [2, 4, 5];

#[thread_local]
static SUBTRACTED: Cell<Address> = Cell::new(ptr::null());

unsafe extern "C" {
    fn __real___tsan_atomic64_fetch_sub(from: Address, value: u64, order: i32) -> u64;
    fn __real___tsan_atomic_thread_fence(order: i32);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___tsan_atomic64_fetch_sub(
    from: Address,
    value: u64,
    order: i32,
) -> u64 {
    SUBTRACTED.set(from);
    unsafe { __real___tsan_atomic64_fetch_sub(from, value, order) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___tsan_atomic_thread_fence(order: i32) {
    unsafe { __real___tsan_atomic_thread_fence(order) };
    let from = SUBTRACTED.replace(ptr::null());
    if ACQUIRE.contains(&order) && !from.is_null() {
        unsafe { __tsan_acquire(from) };
    }
}
