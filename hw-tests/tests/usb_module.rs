//! The module over a real USB stack: the token is pulled and plugged in, shared with other processes, used after forks, and
//! watched for events.
//! `make test-usb` runs these tests in a guest, as a user whose rights come only from our udev rules, once over nusb and
//! once over libusb.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a test fails loudly, and its figures are small"
)]

use std::{
    env,
    fmt::Debug,
    fs,
    io::{self, Write as _},
    panic,
    process::{self, Command},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    card::{State, VirtualCard},
    client,
    fixture::{
        configurations::{as_it_is, configurations_of},
        figures::{hold_in_one_of_the_rounds, median},
        fork::{Descendant, child, exit_code, in_descendant},
        function_list::{FunctionList, HANG, NO_THREADS, OWN_THREAD},
        module_process::{ModuleProcess, ServiceKind, eventually, with_card},
        no_threads,
        pcscd_observer::{UsbEvents, now},
        process::{left_threads, open_files, thread_count},
        signer::{Signer, profile, session_info},
    },
    paths,
    provision::CardProfile,
    reader::Reader,
    usb::{Model, UsbReader},
};
use cryptoki_sys::{CK_SLOT_ID, CKR_DEVICE_REMOVED, CKR_OK, CKR_SESSION_HANDLE_INVALID};

/// How soon a call must be back whose token was pulled, in the median of a round, and how soon a slot event must follow its cause.
/// In milliseconds.
const AT_ONCE: f64 = 50.0;
const PROMPT: f64 = 10.0;
/// How much longer the event of a token that comes may take, as the token is opened and its card powered before.
const ARRIVAL: f64 = 2.0;
/// Number of plug cycles in one configuration of the module, unless [`CYCLES_VARIABLE`] is set. There are four configurations:
/// two USB libraries, with and without threads of the module.
const CYCLES: usize = 5;
const CYCLES_VARIABLE: &str = "CLAVIGER_PLUG_CYCLES";
/// Time without wake-ups.
const IDLE: Duration = Duration::from_secs(10);

/// Runs `body` in two configurations with a token: with and without threads of the module.
fn in_each_configuration(body: fn(&ModuleProcess, FunctionList)) {
    configurations_of(ServiceKind::Socket, &[profile()], as_it_is, |_| (), body);
}

/// Pulls the token. Returns the time in seconds since 1970, as the fixture reports it, without the delay of the command.
fn unplug(process: &ModuleProcess) -> f64 {
    let answer = process.send_command("service stop");
    let time = answer.strip_prefix("ok ").expect("a time");
    time.parse().expect("seconds")
}

fn plug(process: &ModuleProcess) {
    process.send_command("service begin");
}

/// Waits for the events of both slots of the reader. Returns the slots, sorted.
#[track_caller]
fn two_events(raw: FunctionList) -> [CK_SLOT_ID; 2] {
    let mut slots = [raw.next_event(), raw.next_event()];
    slots.sort_unstable();
    assert_ne!(slots[0], slots[1]);
    slots
}

#[test]
#[ignore = "run by make test-usb"]
fn a_token_pulled_in_mid_command_ends_it_with_device_removed_at_once() {
    in_each_configuration(|process, raw| {
        let slots = raw.slots(false);
        let pull = || {
            let signer = Signer::log_in(raw, slots[0]);
            assert_eq!(signer.sign(), CKR_OK);
            process.send_command("fault 87 1 silence");
            let (code, late) = thread::scope(|scope| {
                let signing = scope.spawn(|| (signer.sign(), now()));
                process.await_delayed();
                let pulled = unplug(process);
                let (code, back) = signing.join().unwrap();
                (code, (back - pulled) * 1e3)
            });
            println!("{code:#X} {late:.1} ms after the pull");
            assert_eq!(code, CKR_DEVICE_REMOVED);
            assert_eq!(two_events(raw).to_vec(), slots);
            assert_eq!(
                session_info(raw, signer.session),
                CKR_SESSION_HANDLE_INVALID
            );
            process.send_command("heal");
            plug(process);
            assert_eq!(two_events(raw).to_vec(), slots, "the same ids");
            late
        };
        let what = "CKR_DEVICE_REMOVED after the pull, median in ms";
        hold_in_one_of_the_rounds(what, AT_ONCE, || median(&mut [pull(), pull(), pull()]));
        assert_eq!(Signer::log_in(raw, slots[0]).sign(), CKR_OK);
    });
}

#[test]
#[ignore = "run by make test-usb"]
fn repeated_plug_cycles_keep_the_slots_and_leave_no_resources_behind() {
    in_each_configuration(|process, raw| {
        let slots = raw.slots(false);
        let cycle = |signs: bool| {
            let _ = unplug(process);
            assert_eq!(two_events(raw).to_vec(), slots);
            plug(process);
            assert_eq!(two_events(raw).to_vec(), slots);
            if signs {
                let signer = Signer::log_in(raw, slots[0]);
                assert_eq!(signer.sign(), CKR_OK);
            }
        };
        // Never in the last cycle: a watch that sleeps keeps the descriptors of its last wait.
        let cycles = |count: usize| (1..=count).for_each(|n| cycle(n % 4 == 2 && n < count));
        cycles(3);
        let before = settled(held);
        let begin = Instant::now();
        let count = env::var(CYCLES_VARIABLE).map_or(CYCLES, |count| count.parse().unwrap());
        cycles(count);
        println!("{count} cycles in {:?}", begin.elapsed());
        left_is_no_more_than(&before);
    });
}

/// Open files and threads of this process.
type Held = (Vec<String>, usize);

fn held() -> Held {
    (open_files(), thread_count())
}

/// Waits until `observe` returns the same value for a second, and returns that value. nusb's own thread closes a device some time after it has left.
#[track_caller]
fn settled<T: PartialEq + Debug>(observe: impl Fn() -> T) -> T {
    let end = Instant::now() + HANG;
    let mut last = observe();
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = observe();
        if now == last {
            return now;
        }
        assert!(Instant::now() < end, "{last:?}, then {now:?}");
        last = now;
    }
}

/// Waits until no more is held than `before`.
#[track_caller]
fn left_is_no_more_than((files, threads): &Held) {
    let end = Instant::now() + HANG;
    loop {
        let now = held();
        if now.0.len() <= files.len() && now.1 <= *threads {
            return;
        }
        assert!(Instant::now() < end, "{now:?} of {files:?}, {threads}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How much later than each of two events the module tells of a token that comes or goes: in milliseconds.
fn delays(
    raw: FunctionList,
    events: &UsbEvents,
    of: [&Receiver<f64>; 2],
    cause: impl FnOnce(),
) -> [f64; 2] {
    let (sender, times) = mpsc::channel();
    let waiter = thread::spawn(move || {
        for _ in 0..2 {
            assert_eq!(raw.wait(0).0, CKR_OK);
            sender.send(now()).unwrap();
        }
    });
    thread::sleep(Duration::from_millis(100));
    events.forget();
    cause();
    let sources = of.map(|source| source.recv_timeout(HANG).expect("an event"));
    let ours = times.recv_timeout(HANG).expect("the slot event");
    waiter.join().unwrap();
    sources.map(|source| (ours - source) * 1e3)
}

/// A round of [`delays`], printed: the best and the median after the first event.
fn medians(what: &str, [one, other]: [&str; 2], delays: &[[f64; 2]]) -> [f64; 2] {
    let [mut ones, mut others] =
        [0, 1].map(|n| delays.iter().map(|pair| pair[n]).collect::<Vec<_>>());
    let [middle, beside] = [median(&mut ones), median(&mut others)];
    let [best, worst] = [ones[0], ones[ones.len() - 1]];
    println!(
        "{what}: {best:.1} to {worst:.1} ms after {one}, median {middle:.1}; {beside:.1} ms after {other}"
    );
    [best, middle]
}

/// A token that leaves is counted from the kernel's event, by the median. One that comes is counted from udev's, as a user
/// may not open its node before udev allows it, and by the best of the round: udev, the kernel's drivers and the token itself share the
/// emulated processor with the module just then. What it takes from the moment in which the node could be opened is printed.
#[test]
#[ignore = "run by make test-usb"]
fn a_slot_event_comes_soon_after_the_cause() {
    in_each_configuration(|process, raw| {
        assert_eq!(raw.slots(false).len(), 2);
        let events = UsbEvents::follow();
        let UsbEvents {
            moved,
            may_be_opened,
            from_udev,
        } = &events;
        hold_in_one_of_the_rounds("a slot event after its cause, in ms", PROMPT, || {
            let (mut pulled, mut plugged) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                pulled.push(delays(raw, &events, [moved, from_udev], || {
                    let _ = unplug(process);
                }));
                let of = [from_udev, may_be_opened];
                plugged.push(delays(raw, &events, of, || plug(process)));
            }
            let [_, pulled] = medians("pulled", ["the kernel's event", "udev's"], &pulled);
            let node = "its node could be opened";
            let [plugged, _] = medians("plugged in", ["udev's event", node], &plugged);
            pulled.max(plugged / ARRIVAL)
        });
    });
}

/// How often each thread of this process but the caller's has slept so far, by its name.
fn sleeps() -> Vec<(String, u64)> {
    let this = fs::read_link("/proc/thread-self").unwrap();
    let this = this.file_name().unwrap().to_owned();
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let others = tasks.filter(|task| task.file_name() != this);
    let mut sleeps: Vec<(String, u64)> = others
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let count = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
            let lines = status.lines();
            let counts = lines.filter(|line| line.contains("voluntary_ctxt_switches"));
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let number = task.file_name().into_string().ok()?;
            Some((
                format!("{} {number}", name.trim()),
                counts.filter_map(count).sum(),
            ))
        })
        .collect();
    sleeps.sort_unstable();
    sleeps
}

/// A blocked waiter does not wake while there is no activity on the bus.
fn waits_for_nothing(raw: FunctionList) {
    let waiter = raw.waiter();
    let before = settled(sleeps);
    thread::sleep(IDLE);
    assert_eq!(sleeps(), before, "scheduled while nothing happened");
    assert!(waiter.try_recv().is_err());
    println!("0 wake-ups of {} threads in {IDLE:?}", before.len());
}

#[test]
#[ignore = "run by make test-usb"]
fn idle_waiter_is_not_scheduled() {
    in_each_configuration(|_, raw| {
        let (code, session) = raw.open(raw.slots(true)[0]);
        assert_eq!(code, CKR_OK);
        assert_eq!(raw.close(session), CKR_OK);
        waits_for_nothing(raw);
    });
}

#[test]
#[ignore = "run by make test-usb"]
fn no_thread_is_made_where_the_application_forbids_it() {
    with_card(ServiceKind::Socket, profile(), |_| {
        let raw = FunctionList::load();
        no_threads::forbid().unwrap();
        let before = thread_count();
        for _ in 0..2 {
            assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
            let slots = raw.slots(false);
            assert_eq!(slots.len(), 2);
            let signer = Signer::log_in(raw, slots[0]);
            assert_eq!(signer.sign(), CKR_OK);
            assert_eq!(raw.pending(), []);
            assert_eq!(thread_count(), before);
            assert_eq!(raw.finalize(), CKR_OK);
        }
    });
}

#[test]
#[ignore = "run by make test-usb"]
fn finalize_leaves_no_resources_behind() {
    with_card(ServiceKind::Socket, profile(), |_| {
        let raw = FunctionList::load();
        let run_generation = |flags| {
            assert_eq!(raw.initialize(flags), CKR_OK);
            let signer = Signer::log_in(raw, raw.slots(true)[0]);
            assert_eq!(signer.sign(), CKR_OK);
            let waiter = raw.waiter();
            thread::sleep(Duration::from_millis(50));
            assert_eq!(raw.finalize(), CKR_OK);
            assert_ne!(waiter.recv_timeout(HANG).unwrap().0, CKR_OK);
            assert_eq!(left_threads(), Vec::<String>::new());
        };
        // nusb's own thread and its epoll descriptor stay until the process ends, so it is not the default.
        if env::var_os("CLAVIGER_USB_BACKEND").is_some_and(|backend| backend == "nusb") {
            run_generation(OWN_THREAD);
        }
        let before = settled(held);
        for flags in [OWN_THREAD, NO_THREADS, OWN_THREAD, NO_THREADS] {
            run_generation(flags);
            left_is_no_more_than(&before);
        }
    });
}

#[test]
#[ignore = "run by make test-usb"]
fn forked_child_uses_the_token_and_the_parent_still_signs() {
    with_card(ServiceKind::Socket, profile(), |_| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(OWN_THREAD), CKR_OK);
        let slot = raw.slots(true)[0];
        let signer = Signer::log_in(raw, slot);
        assert_eq!(signer.sign(), CKR_OK);
        for descent in Descendant::ALL {
            in_descendant(descent, || {
                assert_ne!(signer.info(), CKR_OK, "the parent's session");
                assert_eq!(raw.initialize(OWN_THREAD), CKR_OK);
                let signer = Signer::log_in(raw, raw.slots(true)[0]);
                assert_eq!(signer.sign(), CKR_OK);
                assert_eq!(raw.finalize(), CKR_OK);
            });
            assert_eq!(signer.sign(), CKR_OK, "after {descent:?}");
        }
        assert_eq!(raw.finalize(), CKR_OK);
    });
}

#[test]
#[ignore = "run by make test-usb"]
fn child_can_use_the_token_after_its_parent_has_ended() {
    with_card(ServiceKind::Socket, profile(), |_| {
        let raw = FunctionList::load();
        let (reader, writer) = io::pipe().unwrap();
        let signs = || {
            assert_eq!(raw.initialize(OWN_THREAD), CKR_OK);
            let signer = Signer::log_in(raw, raw.slots(true)[0]);
            assert_eq!(signer.sign(), CKR_OK);
        };
        // It ends with the reader claimed and without C_Finalize.
        let parent = child(|| {
            signs();
            let this = process::id();
            child(|| {
                while std::os::unix::process::parent_id() == this {
                    thread::sleep(Duration::from_millis(1));
                }
                let signed = panic::catch_unwind(|| {
                    signs();
                    assert_eq!(raw.finalize(), CKR_OK);
                });
                write!(&writer, "signed: {}", signed.is_ok()).unwrap();
            });
        });
        assert_eq!(exit_code(parent), Some(0));
        drop(writer);
        assert_eq!(io::read_to_string(reader).unwrap(), "signed: true");
    });
}

/// pkcs11-tool with the module, as another process.
fn pkcs11_tool(arguments: &[&str]) -> client::Output {
    let mut command = Command::new("pkcs11-tool");
    command
        .arg("--module")
        .arg(paths::module_path())
        .args(arguments)
        .env("CLAVIGER_TRANSPORTS", "usb");
    client::run(&mut command, Duration::from_secs(60))
}

#[test]
#[ignore = "run by make test-usb"]
fn another_program_uses_the_token_beside_a_session() {
    in_each_configuration(|_, raw| {
        let signer = Signer::log_in(raw, raw.slots(true)[0]);
        let listed = |round: usize| {
            assert_eq!(signer.sign(), CKR_OK, "round {round}");
            let listed = pkcs11_tool(&["--list-slots", "--list-objects"]);
            assert!(listed.stdout.contains("PIV AUTH"), "{listed}");
        };
        (0..3).for_each(listed);
        assert_eq!(signer.sign(), CKR_OK);
        assert_eq!(raw.close(signer.session), CKR_OK);
    });
}

#[test]
#[ignore = "run by make test-usb, as a user without rights"]
fn without_rights_the_cure_is_named() {
    let card = VirtualCard::power_up(CardProfile::factory().card(State::Fresh)).unwrap();
    let _plugged = UsbReader::plug(&Reader::new("token", card), Model::token("token")).unwrap();
    let names_the_cure = || {
        let output = pkcs11_tool(&["--list-token-slots"]);
        assert!(!output.stdout.contains("Slot 0"), "{output}");
        let names = |words: &str| output.stderr.contains(words);
        names("may not open /dev/bus/usb/") && names("70-claviger.rules")
    };
    eventually("the cure", names_the_cure);
}
