//! The delay of C_WaitForSlotEvent after an event, measured from the time at which any program could know of the event. Each
//! event must arrive. `make races` enforces [`PROMPT`] for the median, `make test` prints it.

use std::{
    sync::mpsc::{self, Receiver},
    thread,
};

use claviger_hw_tests::{
    fixture::{
        figures,
        function_list::{FunctionList, HANG, NO_THREADS, OWN_THREAD},
        module_process::{ModuleProcess, ServiceKind, with_card},
        pcscd_observer::{now, pcscd_events},
    },
    provision::CardProfile,
};
use cryptoki_sys::{CK_FLAGS, CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK};

/// Half of them removals, half insertions.
const EVENTS: usize = 50;
/// What the median may be, in seconds.
const PROMPT: f64 = 0.010;

/// A thread that waits for slot events until C_Finalize, and sends the time of each.
fn slot_events(raw: FunctionList) -> Receiver<f64> {
    let (sender, times) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match raw.wait(0).0 {
                CKR_OK => drop(sender.send(now())),
                CKR_CRYPTOKI_NOT_INITIALIZED => return,
                code => panic!("{code:#X}"),
            }
        }
    });
    times
}

/// What the module takes longer than the source of the events, event by event, in seconds. `cause` makes an event,
/// and tells when its source told of it.
fn delays(raw: FunctionList, mut cause: impl FnMut(usize) -> f64) -> Vec<f64> {
    let events = slot_events(raw);
    let delay = |number| {
        let source = cause(number);
        let ours = events.recv_timeout(HANG).expect("the slot event");
        // The other applet's slot.
        events.recv_timeout(HANG).expect("the second slot event");
        ours - source
    };
    (0..EVENTS).map(delay).collect()
}

fn judge(what: &str, mut delays: Vec<f64>) {
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    let ms = |share| at(share) * 1e3;
    println!(
        "{what}: {} events, ours later by median {:.3} ms, p90 {:.3} ms, worst {:.3} ms",
        delays.len(),
        ms(0.5),
        ms(0.9),
        ms(1.0)
    );
    figures::hold(at(0.5) <= PROMPT, what);
}

const ACTIONS: [&str; 2] = ["remove", "insert"];

fn after_pcscd(raw: FunctionList, process: &ModuleProcess) -> Vec<f64> {
    let source = pcscd_events();
    delays(raw, |number| {
        process.send_command(ACTIONS[number % 2]);
        source.recv_timeout(HANG).expect("pcscd's event")
    })
}

fn after_the_server(raw: FunctionList, process: &ModuleProcess) -> Vec<f64> {
    delays(raw, |number| {
        let answer = process.send_command(ACTIONS[number % 2]);
        let time = answer.strip_prefix("ok ").expect("a time");
        time.parse().expect("seconds")
    })
}

fn measure(service: ServiceKind, what: &str, flags: CK_FLAGS) {
    let _turn = figures::one_at_a_time();
    with_card(service, CardProfile::factory(), |process| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(flags), CKR_OK);
        assert_eq!(raw.slot_count(false).0, CKR_OK);
        let delays = match service {
            ServiceKind::Pcscd | ServiceKind::PcscdBySocket => after_pcscd(raw, process),
            ServiceKind::Socket => after_the_server(raw, process),
        };
        assert_eq!(raw.finalize(), CKR_OK);
        judge(what, delays);
    });
}

#[test]
fn an_event_of_pcscd_is_passed_on_promptly() {
    measure(ServiceKind::Pcscd, "pcscd, own thread", OWN_THREAD);
}

#[test]
fn an_event_of_pcscd_is_passed_on_promptly_without_threads() {
    measure(ServiceKind::Pcscd, "pcscd, no threads", NO_THREADS);
}

#[test]
fn an_event_of_the_socket_reader_is_passed_on_promptly() {
    measure(ServiceKind::Socket, "socket, own thread", OWN_THREAD);
}

#[test]
fn an_event_of_the_socket_reader_is_passed_on_promptly_without_threads() {
    measure(ServiceKind::Socket, "socket, no threads", NO_THREADS);
}
