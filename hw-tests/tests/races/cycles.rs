//! Cycles of C_Initialize and C_Finalize leave no resources behind.
//!
//! `make races` runs 10,000 cycles, `make test` 500.

use std::{fs, process::Command, thread, time::Duration};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        function_list::FunctionList,
        memory::{ProcessResources, share_one_heap},
        module_process::{ServiceKind, in_module_process, with_card},
        process::{left_threads, open_files},
        raw_session::RawSession,
        subprocess,
        waiter::SlotEventWaiter,
    },
    paths,
    provision::CardProfile,
    skip,
};
use cryptoki_sys::{
    CK_FLAGS, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK,
    CKR_CRYPTOKI_ALREADY_INITIALIZED, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const OWN_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;

/// Ten to fifty times slower than without.
const VALGRIND: Duration = Duration::from_secs(60);

/// C_Initialize, directly followed by C_Finalize.
fn empty_generation(raw: FunctionList, flags: CK_FLAGS) {
    assert_eq!(raw.initialize(flags), CKR_OK);
    assert_eq!(raw.finalize(), CKR_OK);
}

/// Slots, a session, a login, a signature, and a waiter until C_Finalize.
fn full_generation(raw: FunctionList, flags: CK_FLAGS) {
    assert_eq!(raw.initialize(flags), CKR_OK);
    assert_eq!(raw.slot_count(true), (CKR_OK, 1));
    let session = RawSession::logged_in(raw);
    let waiter = SlotEventWaiter::blocked(raw);
    session.sign(session.key(1));
    assert_eq!(raw.finalize(), CKR_OK);
    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
}

/// Nine empty generations, then a full one, and so on.
fn cycles(raw: FunctionList, flags: CK_FLAGS, count: usize) {
    for number in 1..=count {
        if number.is_multiple_of(10) {
            full_generation(raw, flags);
        } else {
            empty_generation(raw, flags);
        }
    }
    assert_eq!(left_threads(), Vec::<String>::new());
}

/// Chunks of malloc are multiples of 16 bytes and at least 32; one that is reused may stay 16 larger than what
/// was asked for, and a few of these come and go. A leak of one chunk in every full generation would be 1600 bytes.
const ROUNDING: usize = 256;

#[test]
fn initialize_and_finalize_cycles_leave_no_resources_behind() {
    let count = std::env::var("CLAVIGER_ROUNDS").map_or(500, |rounds| rounds.parse().unwrap());
    for service in BOTH_SERVICES {
        // Each thread's cache of free chunks counts as given out.
        let without_cache = |_: &CardFixture, command: &mut Command| {
            command.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
        };
        in_module_process(service, CardProfile::piv4(), without_cache, |_| {
            share_one_heap();
            let raw = FunctionList::load();
            for flags in [OWN_THREADS, NO_THREADS] {
                cycles(raw, flags, 50);
                let before = ProcessResources::now();
                cycles(raw, flags, count);
                let after = ProcessResources::now();
                println!("{service:?}, flags {flags}, {count} cycles: {before:?}, then {after:?}");
                let grown = after.heap.saturating_sub(before.heap);
                assert!(grown <= ROUNDING, "{grown} bytes more in {count} cycles");
                let heap = before.heap;
                assert_eq!(ProcessResources { heap, ..after }, before);
            }
        });
    }
}

#[test]
fn a_module_may_be_unloaded_and_loaded_again() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |_| {
            for flags in [OWN_THREADS, NO_THREADS] {
                full_generation(FunctionList::load(), flags);
                let before = ProcessResources {
                    heap: 0,
                    ..ProcessResources::now()
                };
                for _ in 0..50 {
                    let (raw, library) = FunctionList::load_for_a_while();
                    full_generation(raw, flags);
                    drop(library);
                }
                assert_eq!(left_threads(), Vec::<String>::new());
                assert_eq!(
                    ProcessResources {
                        heap: 0,
                        ..ProcessResources::now()
                    },
                    before
                );
            }
        });
    }
}

#[test]
fn module_unloaded_without_finalize_works_when_loaded_again() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |_| {
            for flags in [OWN_THREADS, NO_THREADS] {
                let files = open_files();
                for _ in 0..50 {
                    let (raw, library) = FunctionList::load_for_a_while();
                    assert_eq!(raw.initialize(flags), CKR_OK);
                    let session = RawSession::logged_in(raw);
                    let waiter = SlotEventWaiter::blocked(raw);
                    drop(library);
                    assert!(waiter.is_blocked());

                    let (raw, library) = FunctionList::load_for_a_while();
                    assert_eq!(raw.initialize(flags), CKR_CRYPTOKI_ALREADY_INITIALIZED);
                    let session = RawSession { raw, ..session };
                    session.sign(session.key(1));
                    assert_eq!(raw.finalize(), CKR_OK);
                    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
                    drop(library);
                }
                assert_eq!(left_threads(), Vec::<String>::new());
                assert_eq!(open_files(), files);
            }
        });
    }
}

#[test]
fn each_call_of_a_generation_may_come_from_another_thread() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |_| {
            let raw = FunctionList::load();
            let elsewhere = |call: &(dyn Fn() + Sync)| {
                thread::scope(|scope| scope.spawn(call).join().unwrap());
            };
            for flags in [OWN_THREADS, NO_THREADS] {
                for _ in 0..20 {
                    elsewhere(&|| assert_eq!(raw.initialize(flags), CKR_OK));
                    elsewhere(&|| {
                        let session = RawSession::logged_in(raw);
                        elsewhere(&|| session.sign(session.key(1)));
                    });
                    let waiter = SlotEventWaiter::blocked(raw);
                    elsewhere(&|| assert_eq!(raw.finalize(), CKR_OK));
                    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
                    assert_eq!(left_threads(), Vec::<String>::new());
                }
            }
        });
    }
}

/// A few generations under valgrind: no error, and no leak.
#[test]
fn valgrind_reports_nothing() {
    if paths::program("valgrind").is_none() {
        skip::because("valgrind is not installed (Debian: valgrind)");
        return;
    }
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            if subprocess::role().is_some() {
                let raw = FunctionList::load();
                for flags in [OWN_THREADS, NO_THREADS] {
                    cycles(raw, flags, 30);
                }
                return;
            }
            let log = process.folder().join("valgrind");
            let mut valgrind = Command::new("valgrind");
            valgrind
                .args([
                    "--leak-check=full",
                    "--errors-for-leak-kinds=definite,indirect",
                ])
                .arg("--show-leak-kinds=definite,indirect,possible")
                .arg(format!("--log-file={}", log.display()))
                .arg(std::env::current_exe().unwrap());
            let output = process.run_scenario_under(valgrind, "some lives", VALGRIND);
            let report = fs::read_to_string(log).unwrap_or_default();
            println!("{service:?}: {:?}\n{}", output.took, summary(&report));
            assert!(output.success(), "{output}\n{report}");
            assert!(report.contains("ERROR SUMMARY: 0 errors"), "{report}");
            // What may be lost is the test runner's; of the module not even that.
            assert!(!report.contains("claviger_"), "{report}");
        });
    }
}

fn summary(report: &str) -> String {
    let is_error = |line: &&str| {
        ["lost:", "reachable:", "SUMMARY"]
            .iter()
            .any(|word| line.contains(word))
    };
    let lines: Vec<&str> = report.lines().filter(is_error).collect();
    lines.join("\n")
}
