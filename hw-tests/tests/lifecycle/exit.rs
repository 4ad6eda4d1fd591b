//! A process that exits without C_Finalize ends at once, with its own exit code, and without a crash.

use std::{process, sync::OnceLock, thread, time::Duration};

use claviger_hw_tests::{
    fixture::{
        fork,
        function_list::FunctionList,
        module_process::{ModuleProcess, ServiceKind, with_card},
        raw_session::RawSession,
        subprocess,
        waiter::SlotEventWaiter,
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_FLAGS, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK, CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_OK,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const OWN_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;

/// The exit code of a successful scenario. No other exit uses it.
const CODE: i32 = 57;
/// Timeout of a scenario. Only a hang exceeds it.
const HANG: Duration = Duration::from_secs(20);
/// Number of runs of each scenario.
const TIMES: u32 = 5;

/// The name of a scenario, and its actions before the process exits.
type Scenario = (&'static str, fn(&ModuleProcess, CK_FLAGS));

/// Runs each scenario with and without threads. Each must exit by itself, with its own code.
fn end_well(scenarios: &[Scenario]) {
    for service in BOTH_SERVICES {
        with_card(
            service,
            CardProfile::piv4(),
            |process| match subprocess::role() {
                None => scenarios
                    .iter()
                    .for_each(|scenario| ends_well(process, scenario)),
                Some(role) => {
                    let (name, flags) = role.split_once(", flags ").unwrap();
                    let scenario = scenarios.iter().find(|scenario| scenario.0 == name);
                    (scenario.unwrap().1)(process, flags.parse().unwrap());
                    process::exit(CODE);
                }
            },
        );
    }
}

fn ends_well(process: &ModuleProcess, scenario: &Scenario) {
    for flags in [OWN_THREADS, NO_THREADS] {
        let name = format!("{}, flags {flags}", scenario.0);
        let mut longest = Duration::ZERO;
        for _ in 0..TIMES {
            let output = process.run_scenario(&name, HANG);
            assert_eq!(output.code, Some(CODE), "{name}: {output}");
            longest = longest.max(output.took);
        }
        println!("{name}: {longest:?} at most");
    }
}

/// The module, initialised, in the process that ends.
fn begin(flags: CK_FLAGS) -> FunctionList {
    let raw = FunctionList::load();
    assert_eq!(raw.initialize(flags), CKR_OK);
    assert_eq!(raw.slot_count(true), (CKR_OK, 1));
    raw
}

#[test]
fn a_process_may_end_without_finalize() {
    end_well(&[
        ("initialised", |_, flags| {
            begin(flags);
        }),
        ("a waiter is blocked", |_, flags| {
            SlotEventWaiter::blocked(begin(flags));
        }),
        ("a user is logged in", |_, flags| {
            let session = RawSession::logged_in(begin(flags));
            session.sign(session.key(1));
        }),
        ("a search and a signature are active", |_, flags| {
            let session = RawSession::logged_in(begin(flags));
            session.begin_signature(session.key(1));
            session.begin_search(1);
        }),
        ("another thread is signing", |_, flags| {
            let session = RawSession::logged_in(begin(flags));
            let key = session.key(1);
            session.sign(key);
            thread::spawn(move || {
                loop {
                    session.sign(key);
                }
            });
            thread::sleep(Duration::from_millis(20));
        }),
        ("another thread begins and ends lives", |_, flags| {
            let raw = FunctionList::load();
            thread::spawn(move || {
                loop {
                    assert_eq!(raw.initialize(flags), CKR_OK);
                    assert_eq!(raw.slot_count(true), (CKR_OK, 1));
                    assert_eq!(raw.finalize(), CKR_OK);
                }
            });
            thread::sleep(Duration::from_millis(20));
        }),
        ("a forked child has ended as well", |process, flags| {
            let session = RawSession::logged_in(begin(flags));
            let key = session.key(1);
            let waiter = SlotEventWaiter::blocked(session.raw);
            let pins = process.count("verifies");
            let child = fork::child(|| process::exit(CODE));
            assert_eq!(fork::exit_code(child), Some(CODE));
            session.sign(key);
            assert!(waiter.is_blocked());
            assert_eq!(process.count("verifies"), pins);
        }),
    ]);
}

/// What is finalised at exit.
static AT_EXIT: OnceLock<(FunctionList, SlotEventWaiter)> = OnceLock::new();

extern "C" fn finalize_at_exit() {
    let code = AT_EXIT.get().map(|(raw, _)| (raw.finalize(), raw.info()));
    if code != Some((CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED)) {
        // SAFETY: no more than the system call; the process ends with another code than its own.
        unsafe { libc::_exit(1) };
    }
}

fn finalize_later() {
    // SAFETY: the handler may run at any time.
    assert_eq!(unsafe { libc::atexit(finalize_at_exit) }, 0);
}

#[test]
fn finalize_may_come_from_an_exit_handler() {
    end_well(&[
        ("registered before the module was loaded", |_, flags| {
            finalize_later();
            let session = RawSession::logged_in(begin(flags));
            AT_EXIT
                .set((session.raw, SlotEventWaiter::blocked(session.raw)))
                .ok();
        }),
        ("registered after C_Initialize", |_, flags| {
            let session = RawSession::logged_in(begin(flags));
            finalize_later();
            AT_EXIT
                .set((session.raw, SlotEventWaiter::blocked(session.raw)))
                .ok();
        }),
    ]);
}
