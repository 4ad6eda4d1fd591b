//! A process that is blocked in C_WaitForSlotEvent is not scheduled and makes no system call.
//!
//! This must hold in one of several windows. There are other wake-ups: the idle card is released first, libpcsclite wakes once
//! a minute, and the kernel reports every USB device of the machine. A module that polled would wake in every window.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    client,
    fixture::{
        card_fixture::CardFixture,
        clients::background::Background,
        figures,
        function_list::{FunctionList, NO_THREADS, OWN_THREAD},
        module_process::HANG,
    },
    paths,
    provision::CardProfile,
    skip,
};
use cryptoki_sys::{CK_FLAGS, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};

/// Set in a client's process only: the flags of C_Initialize and how many threads wait.
const FLAGS: &str = "CLAVIGER_TEST_FLAGS";
const WAITERS: &str = "CLAVIGER_TEST_WAITERS";
/// Printed by a client when it is about to block, and when every waiter has returned.
const BLOCKING: &str = "about to block";
const ALL_RETURNED: &str = "all returned";

/// Duration of a window without activity.
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 12;
/// A window begins after this time without activity.
const CALM: Duration = Duration::from_secs(2);

/// How a process waits.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    flags: CK_FLAGS,
    waiters: usize,
}

/// pcscd, and the USB behind it.
const DEFAULT: &str = "default";

const CASES: [Case; 4] = [
    Case {
        name: "own-thread",
        flags: OWN_THREAD,
        waiters: 1,
    },
    Case {
        name: "no-threads",
        flags: NO_THREADS,
        waiters: 1,
    },
    Case {
        name: "own-thread-20-waiters",
        flags: OWN_THREAD,
        waiters: 20,
    },
    Case {
        name: "no-threads-20-waiters",
        flags: NO_THREADS,
        waiters: 20,
    },
];

/// Run by the tests below: lists slots, opens and closes a session, then waits.
#[test]
#[ignore = "runs in a process of its own, from the tests below"]
fn blocks() {
    let number = |name| env::var(name).unwrap().parse::<u64>().unwrap();
    let raw = FunctionList::load();
    assert_eq!(raw.initialize(number(FLAGS)), CKR_OK);
    let slots = raw.slots(true);
    assert!(raw.slots(false).len() >= slots.len());
    let (code, session) = raw.open(slots[0]);
    assert_eq!(code, CKR_OK);
    assert_eq!(raw.close(session), CKR_OK);
    println!("{BLOCKING}");
    let (sender, codes) = mpsc::channel();
    for _ in 0..number(WAITERS) {
        let sender = sender.clone();
        thread::spawn(move || sender.send(raw.wait(0).0));
    }
    assert_eq!(codes.recv().unwrap(), CKR_OK);
    assert_eq!(raw.finalize(), CKR_OK);
    drop(sender);
    let ends = [CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED];
    assert!(codes.iter().all(|code| ends.contains(&code)));
    println!("{ALL_RETURNED}");
}

/// A blocked client, and what is to stay as it is.
struct Blocked {
    name: String,
    client: Background,
    /// Where its system calls are written, if it is traced.
    trace: Option<PathBuf>,
}

impl Blocked {
    fn start(fixture: &CardFixture, service: &str, case: Case, traced: bool) -> Self {
        let name = format!("{service}-{}", case.name);
        let this = env::current_exe().unwrap();
        let trace = traced.then(|| fixture.folder().join(format!("{name}.trace")));
        let mut command = match &trace {
            Some(trace) => strace(fixture.command("strace"), trace, &this),
            None => fixture.command(&this),
        };
        let arguments = [
            "quiet::blocks",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ];
        command
            .args(arguments)
            .env(FLAGS, case.flags.to_string())
            .env(WAITERS, case.waiters.to_string());
        if service == DEFAULT {
            command.env("CLAVIGER_TRANSPORTS", "pcsc,usb");
        }
        let client = Background::start(&mut command, fixture.folder().join(format!("{name}.log")));
        Self {
            name,
            client,
            trace,
        }
    }

    fn waits_for(&mut self, word: &str) {
        self.client
            .wait_for(word, |output| output.contains(word).then_some(()));
    }

    /// Every line that strace wrote. Each call is written when it ends, if not before.
    fn system_calls(&self) -> Vec<String> {
        let trace = fs::read_to_string(self.trace.as_ref().unwrap()).unwrap();
        assert!(!trace.is_empty(), "strace writes as it goes");
        trace.lines().map(str::to_owned).collect()
    }

    /// How often each thread gave up the processor, or had to.
    fn switches(&self) -> BTreeMap<String, u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.client.id())).unwrap();
        let tasks = tasks.map(|task| task.unwrap().path());
        tasks.map(|task| switches_of(&task)).collect()
    }
}

fn strace(mut strace: Command, trace: &Path, program: &Path) -> Command {
    strace.arg("-f").arg("-o").arg(trace).arg("--").arg(program);
    strace
}

fn switches_of(task: &Path) -> (String, u64) {
    let status = fs::read_to_string(task.join("status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let counts = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
        .map(|name| field(name).unwrap().trim().parse::<u64>().unwrap());
    let name = format!(
        "{} {}",
        task.file_name().unwrap().display(),
        field("Name:").unwrap().trim()
    );
    (name, counts.into_iter().sum())
}

/// Waits until `observe` returns the same value for [`CALM`]. Returns that value.
fn settle<T: PartialEq>(observe: impl Fn() -> T) -> T {
    let (mut before, mut since) = (observe(), Instant::now());
    let limit = since + HANG;
    while since.elapsed() < CALM && Instant::now() < limit {
        thread::sleep(CALM / 20);
        let now = observe();
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
    before
}

/// Starts a client of each case over each service, all blocked. Returns those that were active, by `observe`, in every window.
fn restless<T: PartialEq + std::fmt::Debug>(
    traced: bool,
    observe: impl Fn(&Blocked) -> T,
) -> Vec<String> {
    let _turn = figures::one_at_a_time();
    let socket = CardFixture::socket(CardProfile::factory());
    let pcscd = CardFixture::pcscd(CardProfile::factory());
    let services = [
        ("socket", Some(&socket)),
        ("pcscd", pcscd.as_ref()),
        (DEFAULT, pcscd.as_ref()),
    ];
    let fixtures = services
        .iter()
        .filter_map(|(service, fixture)| Some((*service, (*fixture)?)));
    let mut all: Vec<Blocked> = fixtures
        .flat_map(|(service, fixture)| {
            CASES.map(|case| Blocked::start(fixture, service, case, traced))
        })
        .collect();
    all.iter_mut().for_each(|one| one.waits_for(BLOCKING));
    let mut restless: Vec<&Blocked> = all.iter().collect();
    for _ in 0..WINDOWS {
        let before = settle(|| restless.iter().map(|one| observe(one)).collect::<Vec<T>>());
        thread::sleep(WINDOW);
        let mut before = before.into_iter();
        restless.retain(|one| {
            let (before, now) = (before.next().unwrap(), observe(one));
            if now == before {
                println!("{}: nothing in {WINDOW:?}", one.name);
            } else {
                println!("{}: {before:?}, then {now:?}", one.name);
            }
            now != before
        });
        if restless.is_empty() {
            break;
        }
    }
    let restless = restless.iter().map(|one| one.name.clone()).collect();
    // They were waiting all the time.
    socket.remove();
    if let Some(pcscd) = &pcscd {
        pcscd.remove();
    }
    all.iter_mut().for_each(|one| one.waits_for(ALL_RETURNED));
    restless
}

#[test]
fn a_blocked_process_is_never_scheduled() {
    let restless = restless(false, Blocked::switches);
    figures::hold(
        restless.is_empty(),
        &format!("{restless:?} were scheduled in each window"),
    );
}

#[test]
fn a_blocked_process_makes_no_system_call() {
    let Some(strace) = paths::program("strace") else {
        return skip::because("strace is not installed (Debian: strace)");
    };
    let trial = client::run(Command::new(strace).arg("true"), Duration::from_secs(20));
    if !trial.success() {
        return skip::because("this user may not trace processes (strace)");
    }
    assert_eq!(restless(true, Blocked::system_calls), Vec::<String>::new());
}
