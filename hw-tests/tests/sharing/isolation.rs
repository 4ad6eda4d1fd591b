//! Two readers: a slow card in one delays no call on the other. Calls on the other return while the slow call is still
//! blocked. `make races` enforces [`DELAY`] for them, `make test` prints their times.

use std::{
    iter::zip,
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use claviger_hw_tests::fixture::{
    card_fixture::CardFixture,
    figures,
    function_list::{FunctionList, NO_THREADS, OWN_THREAD},
    module_process::{ModuleProcess, ServiceKind, eventually, in_module_process_with},
    signer::{Signer, profile},
};
use cryptoki_sys::{CK_FLAGS, CK_RV, CK_SLOT_ID, CKF_DONT_BLOCK, CKR_NO_EVENT, CKR_OK};

/// How much longer the worst call may take than the median did before.
const DELAY: Duration = Duration::from_millis(5);
/// How often each call is made.
const ROUNDS: usize = 50;
/// How long the slow card takes at least and at most; a call gives its card ten seconds.
const STALL: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(8));

type Call<'a> = (&'static str, Box<dyn Fn() -> CK_RV + 'a>);

/// The calls on the reader that is not slow.
fn calls(raw: FunctionList, slot: CK_SLOT_ID, signer: Signer) -> Vec<Call<'static>> {
    vec![
        ("C_Sign", Box::new(move || signer.sign())),
        ("C_GetSessionInfo", Box::new(move || signer.info())),
        ("C_GetTokenInfo", Box::new(move || raw.token_info(slot))),
        ("C_GetSlotInfo", Box::new(move || raw.slot_info(slot).0)),
        (
            "C_OpenSession and C_CloseSession",
            Box::new(move || open_and_close(raw, slot)),
        ),
        ("C_FindObjects", Box::new(move || signer.find())),
        ("C_WaitForSlotEvent", Box::new(move || query_event(raw))),
        (
            "C_GetSlotList(FALSE)",
            Box::new(move || raw.slot_count(false).0),
        ),
    ]
}

fn open_and_close(raw: FunctionList, slot: CK_SLOT_ID) -> CK_RV {
    match raw.open(slot) {
        (CKR_OK, session) => raw.close(session),
        (code, _) => code,
    }
}

fn query_event(raw: FunctionList) -> CK_RV {
    match raw.wait(CKF_DONT_BLOCK).0 {
        CKR_NO_EVENT => CKR_OK,
        code => code,
    }
}

/// Median and worst of one call's times.
#[derive(Clone, Copy)]
struct Figures {
    median: Duration,
    worst: Duration,
}

/// Makes each call [`ROUNDS`] times, while `still_works` holds. Returns the figures of the complete rounds.
fn measure(calls: &[Call<'_>], still_works: impl Fn() -> bool) -> Vec<Figures> {
    let mut times = vec![Vec::with_capacity(ROUNDS); calls.len()];
    for _ in 0..ROUNDS {
        let round: Vec<Duration> = calls.iter().map(|(name, call)| timed(name, call)).collect();
        if !still_works() {
            break;
        }
        zip(&mut times, round).for_each(|(times, took)| times.push(took));
    }
    let figures = |mut times: Vec<Duration>| {
        times.sort_unstable();
        let worst = *times
            .last()
            .expect("no round was through before the slow card was");
        let median = times[times.len() / 2];
        Figures { median, worst }
    };
    times.into_iter().map(figures).collect()
}

fn timed(name: &str, call: impl Fn() -> CK_RV) -> Duration {
    let begun = Instant::now();
    let code = call();
    let took = begun.elapsed();
    assert_eq!(code, CKR_OK, "{name}");
    took
}

/// Makes `calls` before, during and after `slow_call`, in which the first card is slow. The slow call delays none of them. Runs
/// `meanwhile` during the slow call.
fn undelayed(
    process: &ModuleProcess,
    what: &str,
    calls: &[Call<'_>],
    slow_call: impl Fn() -> CK_RV + Send + 'static,
    meanwhile: impl Fn(),
) {
    let always = || true;
    let begun = Instant::now();
    let before = measure(calls, always);
    let stall = (begun.elapsed() * 4).clamp(STALL.0, STALL.1);
    let slow = begin_slow_call(process, stall, slow_call);
    let during = measure(calls, || !slow.is_finished());
    meanwhile();
    let (code, took) = slow.join().unwrap();
    assert_eq!(code, CKR_OK, "{what}: slow, not broken");
    assert!(took >= stall);
    let after = measure(calls, always);
    for ((name, _), (before, (during, after))) in zip(calls, zip(before, zip(during, after))) {
        let text = format!(
            "{what}: {name}: median {:?}, worst {:?}; meanwhile median {:?}, worst {:?}",
            before.median, before.worst, during.median, during.worst
        );
        println!("{text}");
        // Where the machine alone makes calls late by more than that, it is the measure.
        let noise = before.worst.max(after.worst);
        figures::hold(during.worst < (before.median + DELAY).max(noise), &text);
    }
}

/// Makes `call` in a thread, for which the first card takes `stall` over its next answer.
fn begin_slow_call(
    process: &ModuleProcess,
    stall: Duration,
    call: impl Fn() -> CK_RV + Send + 'static,
) -> JoinHandle<(CK_RV, Duration)> {
    process.send_command(&format!("card 0 fault any 1 delay {}", stall.as_millis()));
    let slow = thread::spawn(move || {
        let begun = Instant::now();
        (call(), begun.elapsed())
    });
    eventually("the slow call at its card", || {
        process.send_command("card 0 caught") == "yes"
    });
    slow
}

/// The slot of the first card, which was just inserted and has not received a command.
fn insert_first_card(process: &ModuleProcess, raw: FunctionList) -> CK_SLOT_ID {
    process.send_command("card 0 insert");
    let (code, one) = raw.wait(0);
    assert_eq!(code, CKR_OK);
    let (code, other) = raw.wait(0);
    assert_eq!(code, CKR_OK);
    one.min(other)
}

fn remove_first_card(process: &ModuleProcess, raw: FunctionList) {
    process.send_command("card 0 remove");
    for _ in 0..2 {
        assert_eq!(raw.wait(0).0, CKR_OK);
    }
}

fn check(process: &ModuleProcess, flags: CK_FLAGS) {
    let raw = FunctionList::load();
    assert_eq!(raw.initialize(flags), CKR_OK);
    let slots = raw.slots(true);
    let [quick] = slots[..] else {
        panic!("one token: {slots:?}")
    };
    let mut calls = calls(raw, quick, Signer::log_in(raw, quick));
    let slow = insert_first_card(process, raw);
    remove_first_card(process, raw);

    // A list of the slots with tokens has to ask a card that has never been asked.
    let list = || {
        let begun = Instant::now();
        assert_eq!(raw.slots(true).len(), 2);
        println!(
            "C_GetSlotList(TRUE) during a first discovery: {:?}",
            begun.elapsed()
        );
    };
    assert_eq!(insert_first_card(process, raw), slow);
    undelayed(
        process,
        "discovery",
        &calls,
        move || raw.token_info(slow),
        list,
    );

    calls.push((
        "C_GetSlotList(TRUE)",
        Box::new(move || raw.slot_count(true).0),
    ));
    let signer = Signer::log_in(raw, slow);
    undelayed(process, "signature", &calls, move || signer.sign(), || ());
    assert_eq!(raw.finalize(), CKR_OK);
}

fn isolated(service: ServiceKind, flags: CK_FLAGS) {
    let without_the_first = |fixture: &CardFixture, _: &mut Command| {
        fixture.card().remove();
        fixture.wait_until_seen();
    };
    let profiles = [profile(), profile().serial(2)];
    let _ = in_module_process_with(service, &profiles, without_the_first, |process| {
        check(process, flags);
    });
}

#[test]
fn a_slow_card_delays_no_call_on_another_reader_of_pcscd() {
    isolated(ServiceKind::Pcscd, OWN_THREAD);
}

#[test]
fn a_slow_card_delays_no_call_on_another_reader_of_pcscd_without_threads() {
    isolated(ServiceKind::Pcscd, NO_THREADS);
}

#[test]
fn a_slow_card_delays_no_call_on_another_socket_reader() {
    isolated(ServiceKind::Socket, OWN_THREAD);
}

#[test]
fn a_slow_card_delays_no_call_on_another_socket_reader_without_threads() {
    isolated(ServiceKind::Socket, NO_THREADS);
}
