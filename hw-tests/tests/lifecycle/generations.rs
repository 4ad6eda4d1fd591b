//! C_Initialize, C_Finalize and C_WaitForSlotEvent, by the function list.

use std::{
    fs, ptr,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    ck,
    fixture::{
        figures,
        function_list::{FunctionList, arguments},
        module_process::{HANG, ServiceKind, with_card},
        process::{left_threads, module_threads, open_files, thread_count},
        waiter::SlotEventWaiter,
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_FLAGS, CK_RV, CKF_DONT_BLOCK, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK,
    CKR_ARGUMENTS_BAD, CKR_CANT_LOCK, CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_CRYPTOKI_NOT_INITIALIZED, CKR_NO_EVENT, CKR_OK,
};

const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;
/// How soon a blocked waiter must be back, in 99 of 100 rounds, and in all.
const PROMPT: Duration = Duration::from_millis(10);
const LATE: Duration = Duration::from_millis(500);

/// One round: `waiters` blocked, C_Finalize after `delay`. How long after the start of C_Finalize the last waiter
/// was back.
fn round(raw: FunctionList, waiters: usize, delay: Duration) -> Duration {
    let start = Arc::new(Barrier::new(waiters + 1));
    let wait = |_| {
        let start = Arc::clone(&start);
        thread::spawn(move || {
            start.wait();
            let (code, _) = raw.wait(0);
            (code, Instant::now())
        })
    };
    let waiting: Vec<_> = (0..waiters).map(wait).collect();
    start.wait();
    thread::sleep(delay);
    let finalize = Instant::now();
    assert_eq!(raw.finalize(), CKR_OK);
    let back = waiting.into_iter().map(|waiter| {
        let (code, at) = waiter.join().unwrap();
        assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED);
        at.saturating_duration_since(finalize)
    });
    back.max().unwrap_or_default()
}

/// `rounds` rounds with delays from 0 to 2 ms. Each must end well, and none may hang.
fn race(flags: CK_FLAGS, waiters: usize, rounds: u32) {
    let raw = FunctionList::load();
    let one = |number: u32| {
        assert_eq!(raw.initialize(flags), CKR_OK);
        round(
            raw,
            waiters,
            Duration::from_micros(u64::from(number * 7919 % 2000)),
        )
    };
    let mut times: Vec<Duration> = (0..rounds).map(one).collect();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let late = times.iter().filter(|time| **time > PROMPT).count();
    println!(
        "{waiters} waiters, {rounds} rounds: median {:?}, p99 {:?}, worst {:?}, over {PROMPT:?}: {late}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(at(1.0) < HANG, "the worst is {:?}", at(1.0));
    figures::hold(
        at(0.99) <= PROMPT && at(1.0) <= LATE,
        "waiters came back late",
    );
}

#[test]
fn waiter_is_notified_of_finalize_1000_times_over_the_socket() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        race(CKF_OS_LOCKING_OK, 1, 1000);
    });
}

#[test]
fn waiter_is_notified_of_finalize_1000_times_over_the_socket_without_threads() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        race(NO_THREADS, 1, 1000);
    });
}

#[test]
fn waiter_is_notified_of_finalize_1000_times_over_pcscd() {
    with_card(ServiceKind::Pcscd, CardProfile::factory(), |_| {
        race(CKF_OS_LOCKING_OK, 1, 1000);
    });
}

#[test]
fn waiter_is_notified_of_finalize_over_pcscd_without_threads() {
    with_card(ServiceKind::Pcscd, CardProfile::factory(), |_| {
        race(NO_THREADS, 1, 200);
    });
}

#[test]
fn twenty_waiters_are_notified_of_finalize() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        race(CKF_OS_LOCKING_OK, 20, 100);
        race(NO_THREADS, 20, 100);
    });
}

#[test]
fn waiter_of_a_past_generation_returns_although_the_next_has_begun() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let raw = FunctionList::load();
        for flags in [CKF_OS_LOCKING_OK, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            for number in 0..200 {
                let waiter = SlotEventWaiter::blocked(raw);
                assert_eq!(raw.finalize(), CKR_OK, "round {number}");
                assert_eq!(raw.initialize(flags), CKR_OK);
                assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
            }
            assert_eq!(raw.finalize(), CKR_OK);
        }
    });
}

#[test]
fn finalize_leaves_no_resources_behind() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        with_card(service, CardProfile::factory(), |_| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
            assert_eq!(raw.finalize(), CKR_OK);
            let (threads, files) = (thread_count(), open_files());
            for _ in 0..20 {
                assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
                let (code, count) = raw.slot_count(true);
                assert_eq!(code, CKR_OK);
                assert!(count > 0);
                assert!(
                    thread_count() > threads,
                    "the slots are followed by a thread"
                );
                assert_eq!(raw.finalize(), CKR_OK);
                assert_eq!(left_threads(), Vec::<String>::new());
            }
            assert_eq!(thread_count(), threads);
            assert_eq!(open_files(), files);
        });
    }
}

#[test]
fn no_thread_is_created_when_the_caller_forbids_it() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        with_card(service, CardProfile::factory(), |process| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
            assert!(raw.slot_count(true).1 > 0);
            let waiter = SlotEventWaiter::blocked(raw);
            assert_eq!(module_threads(), Vec::<String>::new());
            assert_eq!(thread_count(), 2 + usize::from(has_test_runner_thread()));
            process.send_command("remove");
            let (code, slot) = waiter.outcome();
            assert_eq!(code, CKR_OK, "the caller's own thread waits");
            assert!(slot < 4);
            assert_eq!(raw.finalize(), CKR_OK);
        });
    }
}

/// With one test thread, the test runner runs the test in the main thread or in one of its own.
fn has_test_runner_thread() -> bool {
    std::process::id().to_string()
        != fs::read_link("/proc/thread-self")
            .unwrap()
            .file_name()
            .unwrap()
            .to_string_lossy()
}

#[test]
fn each_event_is_reported_once_per_slot() {
    for service in [ServiceKind::Socket, ServiceKind::Pcscd] {
        with_card(service, CardProfile::factory(), |process| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
            assert_eq!(raw.slot_count(false).0, CKR_OK);
            assert_eq!(
                raw.wait(CKF_DONT_BLOCK).0,
                CKR_NO_EVENT,
                "a card present at start raises none"
            );
            for action in ["remove", "insert"] {
                process.send_command(action);
                let (code, first) = raw.wait(0);
                assert_eq!(code, CKR_OK);
                let (code, second) = raw.wait(0);
                assert_eq!(code, CKR_OK);
                assert_ne!(first, second, "one event for each applet's slot");
                assert_eq!(raw.wait(CKF_DONT_BLOCK).0, CKR_NO_EVENT);
            }
            assert_eq!(raw.finalize(), CKR_OK);
        });
    }
}

#[test]
fn wait_checks_its_arguments() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let raw = FunctionList::load();
        assert_eq!(raw.wait(CKF_DONT_BLOCK).0, CKR_CRYPTOKI_NOT_INITIALIZED);
        assert_eq!(raw.initialize(0), CKR_OK);
        let mut slot = 0;
        let reserved = ptr::NonNull::<u8>::dangling().as_ptr().cast();
        assert_eq!(
            ck!(
                raw,
                C_WaitForSlotEvent,
                CKF_DONT_BLOCK,
                &raw mut slot,
                reserved
            ),
            CKR_ARGUMENTS_BAD
        );
        let nowhere = ptr::null_mut();
        assert_eq!(
            ck!(
                raw,
                C_WaitForSlotEvent,
                CKF_DONT_BLOCK,
                nowhere,
                ptr::null_mut()
            ),
            CKR_ARGUMENTS_BAD
        );
        assert_eq!(raw.finalize(), CKR_OK);
    });
}

unsafe extern "C" fn create(_: *mut *mut std::ffi::c_void) -> CK_RV {
    CKR_OK
}

unsafe extern "C" fn use_mutex(_: *mut std::ffi::c_void) -> CK_RV {
    CKR_OK
}

#[test]
fn initialize_holds_its_arguments_to_the_standard() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let raw = FunctionList::load();
        let initialize = |change: &dyn Fn(&mut cryptoki_sys::CK_C_INITIALIZE_ARGS)| {
            let mut arguments = arguments(0);
            change(&mut arguments);
            let code = ck!(raw, C_Initialize, (&raw mut arguments).cast());
            if code == CKR_OK {
                assert_eq!(raw.info(), CKR_OK);
                assert_eq!(raw.finalize(), CKR_OK);
            } else {
                assert_eq!(
                    raw.info(),
                    CKR_CRYPTOKI_NOT_INITIALIZED,
                    "a failure leaves it uninitialised"
                );
            }
            code
        };
        let all_four = |arguments: &mut cryptoki_sys::CK_C_INITIALIZE_ARGS| {
            arguments.CreateMutex = Some(create);
            arguments.DestroyMutex = Some(use_mutex);
            arguments.LockMutex = Some(use_mutex);
            arguments.UnlockMutex = Some(use_mutex);
        };
        assert_eq!(initialize(&|_| {}), CKR_OK);
        assert_eq!(
            initialize(&|arguments| arguments.flags = CKF_OS_LOCKING_OK),
            CKR_OK
        );
        assert_eq!(
            initialize(&|arguments| arguments.LockMutex = Some(use_mutex)),
            CKR_ARGUMENTS_BAD
        );
        let reserved = ptr::NonNull::<u8>::dangling().as_ptr().cast();
        assert_eq!(
            initialize(&|arguments| arguments.pReserved = reserved),
            CKR_ARGUMENTS_BAD
        );
        assert_eq!(initialize(&all_four), CKR_CANT_LOCK);
        // What NSS asks for: all of it at once.
        let nss = |arguments: &mut cryptoki_sys::CK_C_INITIALIZE_ARGS| {
            all_four(arguments);
            arguments.flags = NO_THREADS;
        };
        assert_eq!(initialize(&nss), CKR_OK);

        assert_eq!(ck!(raw, C_Initialize, ptr::null_mut()), CKR_OK);
        assert_eq!(
            ck!(raw, C_Initialize, ptr::null_mut()),
            CKR_CRYPTOKI_ALREADY_INITIALIZED
        );
        assert_eq!(ck!(raw, C_Finalize, reserved), CKR_ARGUMENTS_BAD);
        assert_eq!(raw.finalize(), CKR_OK);
        assert_eq!(raw.finalize(), CKR_CRYPTOKI_NOT_INITIALIZED);
    });
}
