//! The module without pcscd and without USB readers: calls do not wait, no thread wakes up, and no resource is left.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_driver::usb::{
    discovery::sysfs::UsbBus,
    host::open::{self, UsbLibrary},
};
use claviger_hw_tests::{
    client,
    fixture::{
        figures,
        fork::{Descendant, in_descendant},
        function_list::{FunctionList, NO_THREADS, OWN_THREAD},
        no_threads,
        process::{left_threads, module_threads, open_files, thread_count},
        waiter::{SlotEventWaiter, this_task, until_asleep},
    },
    skip,
};
use cryptoki_sys::{CK_FLAGS, CK_RV, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_NO_EVENT, CKR_OK};

/// Set in the process that has the module, to its transports.
const TRANSPORTS: &str = "CLAVIGER_TRANSPORTS";
const HERE: &str = "CLAVIGER_TEST_ALONE";
/// Printed when the test has finished.
const FINISHED: &str = "the client is through";
const LIMIT: Duration = Duration::from_secs(120);
/// Limit for a first query. One that waits for a service exceeds it.
const FIRST_QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 3;

/// The default, and the USB alone.
const BOTH: &str = "pcsc,usb";
const USB: &str = "usb";

/// Runs `body` in a process of its own with these transports, and a pcscd that is looked for where none is; the log.
fn alone(transports: &str, body: impl FnOnce()) -> Option<String> {
    if env::var_os(HERE).is_some() {
        if env::var(TRANSPORTS).unwrap() == transports {
            body();
            println!("{FINISHED}");
        }
        return None;
    }
    if !UsbBus::system().list(&[]).devices.is_empty() {
        skip::because("a reader is on the USB of this machine");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    let name = thread::current().name().unwrap().to_owned();
    command
        .args([name.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env(HERE, "1")
        .env(TRANSPORTS, transports)
        .env("CLAVIGER_CONFIG", "/dev/null")
        .env("CLAVIGER_LOG", "warn")
        .env("XDG_RUNTIME_DIR", folder.path())
        .env("PCSCLITE_CSOCK_NAME", folder.path().join("pcscd.comm"));
    let output = client::run(&mut command, LIMIT).expect_success();
    assert!(output.stdout.contains(FINISHED), "{output}");
    Some(output.stderr)
}

/// The same for each of the transports.
fn each(body: impl Fn()) {
    for transports in [BOTH, USB] {
        let _ = alone(transports, &body);
    }
}

#[test]
fn first_calls_do_not_wait_for_absent_services() {
    each(|| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            let begun = Instant::now();
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert_eq!(raw.slot_count(false), (CKR_OK, 0));
            assert_eq!(raw.wait(cryptoki_sys::CKF_DONT_BLOCK).0, CKR_NO_EVENT);
            assert_eq!(raw.finalize(), CKR_OK);
            assert!(begun.elapsed() < FIRST_QUERY_TIMEOUT, "flags {flags}");
        }
    });
}

#[test]
fn missing_readers_are_reported_in_one_line() {
    let log = alone(BOTH, || {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(OWN_THREAD), CKR_OK);
        assert_eq!(raw.slot_count(false), (CKR_OK, 0));
        assert_eq!(raw.slot_count(false), (CKR_OK, 0));
        assert_eq!(raw.finalize(), CKR_OK);
    });
    let Some(log) = log else { return };
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("pcscd")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        lines[0].contains("no reader") && lines[0].contains("USB"),
        "{log}"
    );
}

/// How often a thread gave up the processor, or had to.
fn switches(task: &Path) -> u64 {
    let status = fs::read_to_string(task.join("status")).unwrap();
    let counts = status
        .lines()
        .filter(|line| line.contains("ctxt_switches:"));
    counts
        .map(|line| line.rsplit_once(':').unwrap().1.trim().parse::<u64>())
        .map(Result::unwrap)
        .sum()
}

fn tasks() -> Vec<PathBuf> {
    let own = this_task();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    tasks
        .filter(|task| task.file_name() != own.file_name())
        .collect()
}

#[test]
fn a_blocked_waiter_is_never_scheduled() {
    each(|| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            let waiter = SlotEventWaiter::blocked(raw);
            let count = || -> Vec<(PathBuf, u64)> {
                let tasks = tasks().into_iter();
                tasks.map(|task| (task.clone(), switches(&task))).collect()
            };
            // The test's own main thread waits in it as well. Without udev the kernel tells of other devices too, so that
            // one which comes or goes meanwhile wakes whoever listens: another window is not disturbed by it.
            let is_quiet = (0..WINDOWS).any(|_| {
                let before = count();
                thread::sleep(WINDOW);
                let after = count();
                println!("flags {flags}: {before:?} {after:?}");
                after == before
            });
            figures::hold(is_quiet, "a blocked waiter was scheduled in each window");
            let stopped = Instant::now();
            assert_eq!(raw.finalize(), CKR_OK);
            assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
            println!(
                "a waiter left {:?} after C_Finalize began",
                stopped.elapsed()
            );
        }
    });
}

#[test]
fn generation_with_forbidden_threads_makes_no_thread() {
    each(|| {
        let raw = FunctionList::load();
        let (orders, ordered) = mpsc::channel::<()>();
        let (code_sender, codes) = mpsc::channel::<CK_RV>();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            sender.send(this_task()).unwrap();
            for () in ordered {
                code_sender.send(raw.wait(0).0).unwrap();
            }
        });
        let task = receiver.recv().unwrap();
        if let Err(error) = no_threads::forbid() {
            return skip::because(&format!("threads cannot be forbidden: {error}"));
        }
        let threads = thread_count();
        for _ in 0..3 {
            assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
            assert_eq!(raw.slot_count(true), (CKR_OK, 0));
            orders.send(()).unwrap();
            until_asleep(&task);
            assert_eq!(raw.slot_count(false), (CKR_OK, 0));
            assert_eq!((thread_count(), module_threads()), (threads, vec![]));
            assert_eq!(raw.finalize(), CKR_OK);
            assert_eq!(codes.recv().unwrap(), CKR_CRYPTOKI_NOT_INITIALIZED);
        }
    });
}

#[test]
fn generation_leaves_no_thread_and_no_descriptor() {
    each(|| {
        let raw = FunctionList::load();
        let live = |flags| {
            assert_eq!(raw.initialize(flags), CKR_OK);
            let waiter = SlotEventWaiter::blocked(raw);
            assert_eq!(raw.finalize(), CKR_OK);
            assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
        };
        live(OWN_THREAD);
        let files = open_files();
        for flags in [OWN_THREAD, NO_THREADS] {
            (0..20).for_each(|_| live(flags));
            assert_eq!(open_files(), files, "flags {flags}");
            assert_eq!(left_threads(), Vec::<String>::new());
        }
    });
}

/// Runs one generation with a waiter.
fn run_generation(raw: FunctionList, flags: CK_FLAGS) {
    assert_eq!(raw.info(), CKR_CRYPTOKI_NOT_INITIALIZED);
    assert_eq!(raw.initialize(flags), CKR_OK);
    assert_eq!(raw.slot_count(true), (CKR_OK, 0));
    let waiter = SlotEventWaiter::blocked(raw);
    assert_eq!(raw.finalize(), CKR_OK);
    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
}

#[test]
fn forked_child_uses_the_module_and_leaves_the_parents_waiter_undisturbed() {
    each(|| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            let waiter = SlotEventWaiter::blocked(raw);
            for descent in Descendant::ALL {
                in_descendant(descent, || run_generation(raw, flags));
                assert!(waiter.is_blocked());
                assert_eq!(raw.slot_count(true), (CKR_OK, 0));
            }
            assert_eq!(raw.finalize(), CKR_OK);
            assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
        }
    });
}

#[test]
fn b14_forked_child_has_none_of_its_parents_usb_descriptors_open() {
    let _ = alone(USB, || {
        let raw = FunctionList::load();
        let of_usb = || -> Vec<String> {
            let files = open_files().into_iter();
            let is_of_usb = |file: &String| {
                let kinds = ["socket:", "inotify", "timerfd", "/dev/bus/usb", ".lock"];
                kinds.iter().any(|kind| file.contains(kind))
            };
            files.filter(is_of_usb).collect()
        };
        let before = of_usb();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            // After the first query the watch has opened all its descriptors.
            assert_eq!(raw.slot_count(true), (CKR_OK, 0));
            let waiter = SlotEventWaiter::blocked(raw);
            let with_usb = of_usb();
            assert!(with_usb.len() > before.len(), "{with_usb:?}");
            for descent in Descendant::ALL {
                in_descendant(descent, || assert_eq!(of_usb(), before));
                assert_eq!(of_usb(), with_usb, "the parent has it still");
            }
            assert_eq!(raw.finalize(), CKR_OK);
            assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
        }
    });
}

/// A file that nusb takes for a device until it asks the kernel for it.
fn descriptors_of_a_token() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![18, 1, 0, 2, 0, 0, 0, 64, 0x50, 0x10, 7, 4, 0, 1, 0, 0, 0, 1];
    bytes.extend([9, 2, 18, 0, 1, 1, 0, 0x80, 50]);
    bytes.extend([9, 4, 0, 0, 0, 11, 0, 0, 0]);
    fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn b15_nusb_without_its_thread_is_an_error_and_libusb_takes_its_place() {
    let log = alone(USB, || {
        let file = descriptors_of_a_token();
        if let Err(error) = no_threads::refuse() {
            return skip::because(&format!("threads cannot be refused: {error}"));
        }
        let limit = thread::Builder::new().spawn(|| ()).map(drop);
        assert!(limit.is_err(), "a thread was started");
        let threads = thread_count();
        for _ in 0..3 {
            let error = open::open(file.path(), 0, UsbLibrary::Nusb).unwrap_err();
            assert!(error.to_string().contains("libusb"), "{error}");
        }
        assert_eq!(thread_count(), threads);
    });
    assert!(log.is_none_or(|log| !log.contains("panicked")));
}
