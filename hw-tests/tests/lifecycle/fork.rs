//! A forked child uses the module as a new application, without an effect on its parent.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use claviger_hw_tests::{
    fixture::{
        fork::{Descendant, HANG, Outcome, descend, in_descendant},
        function_list::FunctionList,
        module_process::{ModuleProcess, ServiceKind, with_card},
        null_calls::Table as _,
        raw_session::RawSession,
        waiter::SlotEventWaiter,
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_FLAGS, CK_OBJECT_HANDLE, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK,
    CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const OWN_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;

/// Of each test that forks beside other threads, and each of its flags.
const FORKS: u32 = 40;

/// For a child that does a thing hundreds of times.
const LONG: Duration = Duration::from_secs(60);

/// How far the parent is when it forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Unused,
    Listed,
    SessionOpen,
    LoggedIn,
    Searching,
    Signing,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Absent,
        Self::Unused,
        Self::Listed,
        Self::SessionOpen,
        Self::LoggedIn,
        Self::Searching,
        Self::Signing,
    ];
}

/// A parent in its state, with a waiter as soon as there are slots to wait for.
struct Parent {
    raw: FunctionList,
    state: State,
    waiter: Option<SlotEventWaiter>,
    session: Option<RawSession>,
    key: CK_OBJECT_HANDLE,
}

impl Parent {
    fn new(raw: FunctionList, flags: CK_FLAGS, state: State) -> Self {
        let mut parent = Self {
            raw,
            state,
            waiter: None,
            session: None,
            key: 0,
        };
        if state != State::Absent {
            assert_eq!(raw.initialize(flags), CKR_OK);
        }
        if !matches!(state, State::Absent | State::Unused) {
            assert_eq!(raw.slot_count(true), (CKR_OK, 1));
            parent.waiter = Some(SlotEventWaiter::blocked(raw));
        }
        match state {
            State::Absent | State::Unused | State::Listed => {}
            State::SessionOpen => parent.session = Some(RawSession::open(raw)),
            State::LoggedIn | State::Searching | State::Signing => {
                let session = RawSession::logged_in(raw);
                parent.key = session.key(1);
                parent.session = Some(session);
            }
        }
        parent.begin_operation();
        parent
    }

    fn begin_operation(&self) {
        match (self.state, self.session) {
            (State::Searching, Some(session)) => session.begin_search(1),
            (State::Signing, Some(session)) => session.begin_signature(self.key),
            _ => {}
        }
    }

    /// Checks that the parent is still in its state, and continues.
    fn still_works(&self) {
        match (self.state, self.session) {
            (State::Absent, _) => assert_eq!(self.raw.info(), CKR_CRYPTOKI_NOT_INITIALIZED),
            (State::Unused, _) => assert_eq!(self.raw.info(), CKR_OK),
            // The only key that is visible without a login.
            (State::SessionOpen, Some(session)) => assert!(session.key(4) > 0),
            (State::LoggedIn, Some(session)) => session.sign(self.key),
            (State::Searching, Some(session)) => {
                assert_eq!(session.end_search(), Some(self.key));
            }
            (State::Signing, Some(session)) => session.end_signature(),
            _ => assert_eq!(self.raw.slot_count(true), (CKR_OK, 1)),
        }
        self.begin_operation();
        assert!(self.waiter.as_ref().is_none_or(SlotEventWaiter::is_blocked));
    }

    fn end(self) {
        if self.state != State::Absent {
            assert_eq!(self.raw.finalize(), CKR_OK);
        }
        let outcome = self.waiter.map(SlotEventWaiter::outcome);
        assert!(outcome.is_none_or(|(code, _)| code == CKR_CRYPTOKI_NOT_INITIALIZED));
    }
}

/// Nothing of the parent's is the child's.
fn refuses_everything(raw: FunctionList) {
    let answers = raw.list().call_each();
    assert_eq!(answers.len(), 99);
    for (function, code) in answers {
        assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED, "{function}");
    }
    assert_eq!(raw.finalize(), CKR_CRYPTOKI_NOT_INITIALIZED);
}

/// Runs one generation without a login.
fn run_generation_without_login(raw: FunctionList, flags: CK_FLAGS) {
    refuses_everything(raw);
    assert_eq!(raw.initialize(flags), CKR_OK);
    assert_eq!(raw.slot_count(true), (CKR_OK, 1));
    RawSession::open(raw);
    assert_eq!(raw.finalize(), CKR_OK);
    assert_eq!(raw.info(), CKR_CRYPTOKI_NOT_INITIALIZED);
}

/// Runs one generation with a login, a waiter and a signature.
fn run_generation(raw: FunctionList, flags: CK_FLAGS) {
    refuses_everything(raw);
    assert_eq!(raw.initialize(flags), CKR_OK);
    let session = RawSession::logged_in(raw);
    let waiter = SlotEventWaiter::blocked(raw);
    session.sign(session.key(1));
    assert_eq!(raw.finalize(), CKR_OK);
    assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
}

/// PINs sent while `work` is done.
fn verifies(process: &ModuleProcess, work: impl FnOnce()) -> u64 {
    let before = process.count("verifies");
    work();
    process.count("verifies") - before
}

#[test]
fn a_child_forked_in_any_state_is_a_new_application() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            let raw = FunctionList::load();
            for flags in [OWN_THREADS, NO_THREADS] {
                for state in State::ALL {
                    let parent = Parent::new(raw, flags, state);
                    for descent in Descendant::ALL {
                        println!("{service:?}, flags {flags}, {state:?}, {descent:?}");
                        has_descendants(process, &parent, flags, descent);
                    }
                    parent.end();
                }
            }
        });
    }
}

fn has_descendants(process: &ModuleProcess, parent: &Parent, flags: CK_FLAGS, descent: Descendant) {
    let raw = parent.raw;
    let pins = verifies(process, || {
        in_descendant(descent, || run_generation_without_login(raw, flags));
        parent.still_works();
    });
    assert_eq!(pins, 0, "nobody logged in");
    let pins = verifies(process, || {
        in_descendant(descent, || run_generation(raw, flags));
    });
    assert_eq!(pins, 1, "the descendant's own login");
    // Its logout was one of the card, as it is for every other program.
    let uses_the_pin = matches!(parent.state, State::LoggedIn | State::Signing);
    let pins = verifies(process, || parent.still_works());
    assert_eq!(pins, u64::from(uses_the_pin), "one silent verification");
}

#[test]
fn parents_waiter_gets_the_next_event_after_a_fork() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            let raw = FunctionList::load();
            for flags in [OWN_THREADS, NO_THREADS] {
                let parent = Parent::new(raw, flags, State::Listed);
                in_descendant(Descendant::Child, || run_generation(raw, flags));
                parent.still_works();
                process.send_command("remove");
                let (code, slot) = parent.waiter.unwrap().outcome();
                assert_eq!(code, CKR_OK);
                assert!(slot < 2);
                assert_eq!(raw.finalize(), CKR_OK);
                process.send_command("insert");
                until_the_card_is_back(raw);
            }
        });
    }
}

/// pcscd polls for cards twice a second.
fn until_the_card_is_back(raw: FunctionList) {
    assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
    while raw.slot_count(true).1 == 0 {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(raw.finalize(), CKR_OK);
}

/// Forks again and again, at the moments that `moment` waits for, while threads do `others` over and over. Every
/// child does `body` with its number, and none may fail or hang.
fn fork_beside(others: &[&(dyn Fn() + Sync)], moment: impl Fn(u32), body: impl Fn(u32)) {
    let over = AtomicBool::new(false);
    let failed = thread::scope(|scope| {
        for other in others {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    other();
                }
            });
        }
        let fork = |number| {
            moment(number);
            match descend(Descendant::Child, HANG, || body(number)) {
                Outcome::Through => None,
                outcome => Some(format!("child {number} {outcome}")),
            }
        };
        let failed = (0..FORKS).find_map(fork);
        over.store(true, Ordering::SeqCst);
        failed
    });
    assert!(failed.is_none(), "{}", failed.unwrap_or_default());
}

/// Every fourth child logs in.
fn child(raw: FunctionList, flags: CK_FLAGS, number: u32) {
    if number.is_multiple_of(4) {
        run_generation(raw, flags);
    } else {
        run_generation_without_login(raw, flags);
    }
}

fn fork_among_calls(service: ServiceKind) {
    with_card(service, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        for flags in [OWN_THREADS, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            let sessions = [(); 2].map(|()| RawSession::open(raw));
            // Needs no login: what a descendant's logout does to one is another test's.
            let key = sessions[0].key(4);
            let others: [&(dyn Fn() + Sync); 4] = [
                &|| sessions[0].sign(key),
                &|| assert!(sessions[1].key(4) > 0),
                &|| assert_eq!(raw.slot_count(true), (CKR_OK, 1)),
                &|| RawSession::open(raw).close(),
            ];
            let any = |number| thread::sleep(Duration::from_micros(u64::from(number) * 37 % 1000));
            fork_beside(&others, any, |number| child(raw, flags, number));
            assert_eq!(raw.finalize(), CKR_OK);
        }
    });
}

#[test]
fn fork_during_calls_over_the_socket_leaves_a_working_child() {
    fork_among_calls(ServiceKind::Socket);
}

#[test]
fn fork_during_calls_over_pcscd_leaves_a_working_child() {
    fork_among_calls(ServiceKind::Pcscd);
}

fn fork_during_whole_generations(service: ServiceKind) {
    with_card(service, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        for flags in [OWN_THREADS, NO_THREADS] {
            let ending = AtomicBool::new(false);
            let generation = || {
                assert_eq!(raw.initialize(flags), CKR_OK);
                let session = RawSession::open(raw);
                let waiter = SlotEventWaiter::blocked(raw);
                session.sign(session.key(4));
                ending.store(true, Ordering::SeqCst);
                assert_eq!(raw.finalize(), CKR_OK);
                ending.store(false, Ordering::SeqCst);
                assert_eq!(waiter.outcome().0, CKR_CRYPTOKI_NOT_INITIALIZED);
            };
            // Every second fork while C_Finalize runs.
            let moment = |number: u32| {
                while number.is_multiple_of(2) && !ending.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
            };
            fork_beside(&[&generation], moment, |number| child(raw, flags, number));
        }
    });
}

#[test]
fn fork_during_initialize_and_finalize_over_the_socket_leaves_a_working_child() {
    fork_during_whole_generations(ServiceKind::Socket);
}

#[test]
fn fork_during_initialize_and_finalize_over_pcscd_leaves_a_working_child() {
    fork_during_whole_generations(ServiceKind::Pcscd);
}

#[test]
fn parent_and_child_log_in_and_out_of_one_card_and_both_sign() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |_| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(OWN_THREADS), CKR_OK);
            let session = RawSession::logged_in(raw);
            let key = session.key(1);
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        session.sign(key);
                    }
                });
                let child = descend(Descendant::Child, LONG, || {
                    assert_eq!(raw.initialize(OWN_THREADS), CKR_OK);
                    for number in 0..300 {
                        let session = RawSession::logged_in(raw);
                        if number % 4 == 0 {
                            session.sign(session.key(1));
                        }
                        session.close();
                    }
                    assert_eq!(raw.finalize(), CKR_OK);
                });
                over.store(true, Ordering::SeqCst);
                assert!(matches!(child, Outcome::Through), "{child}");
            });
            assert_eq!(raw.finalize(), CKR_OK);
        });
    }
}
