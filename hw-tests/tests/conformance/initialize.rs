//! C_Initialize: every combination of its arguments, and the obligations that accepted arguments create.

use std::{
    ffi::c_void,
    path::PathBuf,
    ptr,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use claviger_hw_tests::{
    ck,
    fixture::{
        fork::{Descendant, Outcome, descend},
        function_list::{FunctionList, arguments},
        module_process::{ModuleProcess, ServiceKind, with_card},
        no_threads,
        process::{module_threads, thread_count},
        raw_session::RawSession,
        waiter::{SlotEventWaiter, this_task, until_asleep},
    },
    provision::CardProfile,
    skip,
};
use cryptoki_sys::{
    CK_C_INITIALIZE_ARGS, CK_FLAGS, CK_RV, CK_SLOT_ID, CKF_LIBRARY_CANT_CREATE_OS_THREADS,
    CKF_OS_LOCKING_OK, CKR_ARGUMENTS_BAD, CKR_CANT_LOCK, CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const OWN_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;
/// A flag that the standard does not know.
const UNKNOWN: CK_FLAGS = 1 << 2;
const ALL_CALLBACKS: u8 = 0b1111;

/// How often the application's locks were used.
static CALLBACKS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn create(_: *mut *mut c_void) -> CK_RV {
    CALLBACKS.fetch_add(1, Ordering::SeqCst);
    CKR_OK
}

unsafe extern "C" fn use_mutex(_: *mut c_void) -> CK_RV {
    CALLBACKS.fetch_add(1, Ordering::SeqCst);
    CKR_OK
}

/// One bit of `callbacks` for each of the four.
fn with_callbacks(flags: CK_FLAGS, callbacks: u8) -> CK_C_INITIALIZE_ARGS {
    let given = |bit: u8| callbacks & 1 << bit != 0;
    CK_C_INITIALIZE_ARGS {
        CreateMutex: given(0).then_some(create),
        DestroyMutex: given(1).then_some(use_mutex),
        LockMutex: given(2).then_some(use_mutex),
        UnlockMutex: given(3).then_some(use_mutex),
        ..arguments(flags)
    }
}

fn initialize(raw: FunctionList, mut arguments: CK_C_INITIALIZE_ARGS) -> CK_RV {
    ck!(raw, C_Initialize, (&raw mut arguments).cast())
}

/// Every combination of callbacks, flags and pReserved.
fn combinations() -> Vec<(u8, CK_FLAGS, bool)> {
    let mut all = Vec::new();
    for callbacks in 0..=ALL_CALLBACKS {
        for flags in 0..UNKNOWN * 2 {
            all.extend([false, true].map(|reserved| (callbacks, flags, reserved)));
        }
    }
    all
}

/// What the standard asks for; with all four callbacks and nothing else, refusing is the library's choice.
fn expected(callbacks: u8, flags: CK_FLAGS, reserved: bool) -> CK_RV {
    match callbacks {
        _ if reserved => CKR_ARGUMENTS_BAD,
        0 => CKR_OK,
        ALL_CALLBACKS if flags & CKF_OS_LOCKING_OK != 0 => CKR_OK,
        ALL_CALLBACKS => CKR_CANT_LOCK,
        _ => CKR_ARGUMENTS_BAD,
    }
}

#[test]
fn every_combination_of_arguments_has_its_code_and_a_refused_one_does_no_harm() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let raw = FunctionList::load();
        assert_eq!(combinations().len(), 16 * 8 * 2);
        for (callbacks, flags, reserved) in combinations() {
            let mut arguments = with_callbacks(flags, callbacks);
            if reserved {
                arguments.pReserved = ptr::NonNull::<u8>::dangling().as_ptr().cast();
            }
            let what = format!("callbacks {callbacks:04b}, flags {flags:03b}, reserved {reserved}");
            let expected = expected(callbacks, flags, reserved);
            assert_eq!(initialize(raw, arguments), expected, "{what}");
            if expected != CKR_OK {
                assert_eq!(raw.info(), CKR_CRYPTOKI_NOT_INITIALIZED, "{what}");
                assert_eq!(raw.finalize(), CKR_CRYPTOKI_NOT_INITIALIZED, "{what}");
                assert_eq!(ck!(raw, C_Initialize, ptr::null_mut()), CKR_OK, "{what}");
            }
            // A running generation is not affected by any arguments.
            let again = initialize(raw, arguments);
            let already = [CKR_CRYPTOKI_ALREADY_INITIALIZED, expected];
            assert!(
                again != CKR_OK && already.contains(&again),
                "{what}: {again:#x}"
            );
            assert_eq!(
                ck!(raw, C_Initialize, ptr::null_mut()),
                CKR_CRYPTOKI_ALREADY_INITIALIZED,
                "{what}"
            );
            assert_eq!(raw.slot_count(true), (CKR_OK, 2), "{what}");
            assert_eq!(raw.finalize(), CKR_OK, "{what}");
        }
        assert_eq!(CALLBACKS.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn application_mutexes_are_never_used() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |_| {
            let raw = FunctionList::load();
            for flags in [OWN_THREADS, NO_THREADS] {
                assert_eq!(
                    initialize(raw, with_callbacks(flags, ALL_CALLBACKS)),
                    CKR_OK
                );
                let sessions = [(); 2].map(|()| RawSession::open(raw));
                let waiters = [(); 2].map(|()| SlotEventWaiter::blocked(raw));
                assert_eq!(sessions[0].log_in(), CKR_OK);
                let key = sessions[0].key(1);
                thread::scope(|scope| {
                    for session in sessions {
                        scope.spawn(move || session.sign(key));
                    }
                });
                assert_eq!(raw.finalize(), CKR_OK);
                for waiter in waiters {
                    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
                }
                assert_eq!(CALLBACKS.load(Ordering::SeqCst), 0, "flags {flags}");
            }
        });
    }
}

#[test]
fn one_of_many_concurrent_calls_initializes_and_one_finalizes() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |_| {
        let raw = FunctionList::load();
        for flags in [OWN_THREADS, NO_THREADS] {
            for _ in 0..100 {
                let begun = at_once(&|| raw.initialize(flags));
                assert_eq!(begun, (1, CKR_CRYPTOKI_ALREADY_INITIALIZED));
                let waiter = SlotEventWaiter::blocked(raw);
                let ended = at_once(&|| raw.finalize());
                assert_eq!(ended, (1, CKR_CRYPTOKI_NOT_INITIALIZED));
                assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
            }
        }
    });
}

/// How many of eight calls succeed, and what all others say.
fn at_once(call: &(dyn Fn() -> CK_RV + Sync)) -> (usize, CK_RV) {
    let start = Barrier::new(8);
    let codes: Vec<CK_RV> = thread::scope(|scope| {
        let one = || {
            start.wait();
            call()
        };
        let calls = [(); 8].map(|()| scope.spawn(one));
        calls.map(|call| call.join().unwrap()).to_vec()
    });
    let mut others: Vec<CK_RV> = codes
        .iter()
        .copied()
        .filter(|code| *code != CKR_OK)
        .collect();
    others.dedup();
    assert_eq!(others.len(), 1, "{codes:x?}");
    (
        codes.iter().filter(|code| **code == CKR_OK).count(),
        others[0],
    )
}

/// A thread that was created before threads were forbidden. It waits for events on request.
struct EarlyWaiter {
    orders: mpsc::Sender<()>,
    results: mpsc::Receiver<(CK_RV, CK_SLOT_ID)>,
    task: PathBuf,
}

impl EarlyWaiter {
    fn new(raw: FunctionList) -> Self {
        let (orders, ordered) = mpsc::channel();
        let (outcome, results) = mpsc::channel();
        let (sender, task) = mpsc::channel();
        thread::spawn(move || {
            sender.send(this_task()).unwrap();
            for () in ordered {
                outcome.send(raw.wait(0)).unwrap();
            }
        });
        Self {
            orders,
            results,
            task: task.recv().unwrap(),
        }
    }

    /// Begins to wait, and returns once the thread is blocked.
    fn wait(&self) {
        // Awake once this is said; the one place left to sleep is inside the call.
        self.orders.send(()).unwrap();
        until_asleep(&self.task);
    }

    fn outcome(&self) -> (CK_RV, CK_SLOT_ID) {
        self.results.recv().unwrap()
    }
}

/// What NSS asks for: threads forbidden, the operating system's locks allowed, all four callbacks.
fn nss() -> CK_C_INITIALIZE_ARGS {
    with_callbacks(NO_THREADS, ALL_CALLBACKS)
}

#[test]
fn generation_with_the_arguments_of_nss_makes_no_thread() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            let raw = FunctionList::load();
            assert!(
                dies_of_a_thread(raw, arguments(OWN_THREADS)),
                "this would be seen"
            );
            let waiter = EarlyWaiter::new(raw);
            if let Err(error) = no_threads::forbid() {
                skip::because(&format!("threads cannot be forbidden: {error}"));
                return;
            }
            live_without_threads(process, raw, &waiter);
        });
    }
}

fn live_without_threads(process: &ModuleProcess, raw: FunctionList, waiter: &EarlyWaiter) {
    println!("from here on, another thread is the end of this process");
    let threads = thread_count();
    let none_has_come = || {
        assert_eq!(thread_count(), threads);
        assert_eq!(module_threads(), Vec::<String>::new());
    };
    assert_eq!(initialize(raw, nss()), CKR_OK);
    let session = RawSession::logged_in(raw);
    none_has_come();
    waiter.wait();
    none_has_come();
    session.sign(session.key(1));
    none_has_come();
    process.send_command("remove");
    let (code, slot) = waiter.outcome();
    assert_eq!(code, CKR_OK, "the application's own thread waits");
    assert!(slot < 2);
    // The event of the card's other slot.
    assert_eq!(raw.wait(0).0, CKR_OK);
    waiter.wait();
    none_has_come();
    assert_eq!(raw.finalize(), CKR_OK);
    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
    none_has_come();
}

/// Returns whether a generation with these arguments creates a thread.
fn dies_of_a_thread(raw: FunctionList, arguments: CK_C_INITIALIZE_ARGS) -> bool {
    let outcome = descend(Descendant::Child, Duration::from_secs(10), || {
        no_threads::forbid().unwrap();
        assert_eq!(initialize(raw, arguments), CKR_OK);
        raw.slot_count(true);
    });
    matches!(outcome, Outcome::Failed(why) if why == "it crashed")
}
