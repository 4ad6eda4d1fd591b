//! pcscd hangs: the module's end is reached from every state, a call comes back, and life goes on when pcscd does.

use std::{
    env, fs,
    os::unix::net::UnixListener,
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        function_list::FunctionList,
        module_process::{
            HANG, Log, ModuleProcess, ServiceKind, in_module_process, pin, promptly, with_card,
        },
        piv_session::{PivSession, SIGN, is_unreachable},
    },
    provision::CardProfile,
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags},
    session::UserType,
};
use cryptoki_sys::{
    CK_FLAGS, CK_RV, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK,
    CKR_CRYPTOKI_NOT_INITIALIZED, CKR_OK,
};

const THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;
/// Long enough for a thread to get stuck, on a busy machine too.
const MOMENT: Duration = Duration::from_millis(500);
/// Longer than it takes to stop pcscd before the card answers.
const ON_ITS_WAY: Duration = Duration::from_secs(5);
/// A call gives up after about ten seconds; only a hang takes longer than this.
const GIVES_UP: Duration = Duration::from_secs(40);

/// A pcscd that hangs, until this is dropped.
struct Frozen<'a>(&'a ModuleProcess);

impl<'a> Frozen<'a> {
    fn new(process: &'a ModuleProcess) -> Self {
        process.order(&["service freeze"]);
        Self(process)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.order(&["service thaw"]);
    }
}

/// Runs `call` on a thread of its own; what it returns comes through the channel.
fn aside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(call()));
    result
}

/// What a call returned that must come back by itself, within `limit`.
#[track_caller]
fn comes_back<T>(what: &str, limit: Duration, call: &Receiver<T>) -> T {
    let start = Instant::now();
    let result = call.recv_timeout(limit);
    println!("{what}: {:?}", start.elapsed());
    result.unwrap_or_else(|_| panic!("{what} did not come back within {limit:?}"))
}

/// C_Finalize while pcscd hangs, in time.
#[track_caller]
fn end(raw: FunctionList, state: &str) {
    let ended = aside(move || raw.finalize());
    let code = comes_back(&format!("C_Finalize, {state}"), HANG, &ended);
    assert_eq!(code, CKR_OK);
}

/// The module with `flags`, and a session on it that is logged in.
fn signer(process: &'static ModuleProcess, flags: CK_FLAGS) -> PivSession<'static> {
    let module = process.load();
    let flags = CInitializeFlags::from_bits_retain(flags);
    module.initialize(CInitializeArgs::new(flags)).unwrap();
    let session = process.session(&module);
    PivSession::of(process, module, session)
}

/// [`with_card`] over pcscd, for a body whose threads may outlive it when it fails.
fn with_pcscd(body: impl FnOnce(&'static ModuleProcess)) {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        body(Box::leak(Box::new(process.clone())));
    });
}

/// pcscd goes on, and so does this process.
fn live_on(frozen: Frozen<'_>, raw: FunctionList, flags: CK_FLAGS) {
    let process = frozen.0;
    drop(frozen);
    assert_eq!(raw.initialize(flags), CKR_OK);
    let found = promptly("C_GetSlotList after the thaw", || raw.slot_count(true));
    assert_eq!((found.0, found.1 > 0), (CKR_OK, true));
    assert_eq!(raw.finalize(), CKR_OK);
    let signer = PivSession::new(process);
    signer.goes_on();
    drop(signer);
    assert_eq!(raw.finalize(), CKR_OK);
}

fn a_waiter_is_told_of_the_end(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(flags), CKR_OK);
        assert!(raw.slot_count(true).1 > 0);
        let waiters: Vec<Receiver<CK_RV>> = (0..3).map(|_| aside(move || raw.wait(0).0)).collect();
        thread::sleep(MOMENT);
        let frozen = Frozen::new(process);
        end(raw, "with waiters");
        for waiter in waiters {
            let code = comes_back("C_WaitForSlotEvent", HANG, &waiter);
            assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED);
        }
        live_on(frozen, raw, flags);
    });
}

#[test]
fn waiters_return_at_finalize_while_pcscd_is_frozen() {
    a_waiter_is_told_of_the_end(THREADS);
}

#[test]
fn waiters_return_at_finalize_while_pcscd_is_frozen_without_threads() {
    a_waiter_is_told_of_the_end(NO_THREADS);
}

/// A signature is stuck, in pcscd or before, and so it is when the end comes.
fn the_end_does_not_wait_for_a_signature(flags: CK_FLAGS, is_at_the_card: bool) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let signer = signer(process, flags);
        let sign = move || (signer.sign(), signer);
        let (frozen, signature);
        if is_at_the_card {
            process.delay(SIGN, ON_ITS_WAY);
            signature = aside(sign);
            process.await_delayed();
            frozen = Frozen::new(process);
        } else {
            frozen = Frozen::new(process);
            signature = aside(sign);
        }
        thread::sleep(MOMENT);
        assert!(signature.try_recv().is_err(), "the signature is stuck");
        end(raw, "with a signature inside");
        live_on(frozen, raw, flags);
        let (outcome, _) = comes_back("the signature", HANG, &signature);
        println!("{outcome:?}");
    });
}

#[test]
fn finalize_does_not_wait_for_a_signature_still_at_pcscd() {
    the_end_does_not_wait_for_a_signature(THREADS, false);
}

#[test]
fn finalize_does_not_wait_for_a_signature_still_at_pcscd_without_threads() {
    the_end_does_not_wait_for_a_signature(NO_THREADS, false);
}

#[test]
fn finalize_does_not_wait_for_a_signature_at_the_card() {
    the_end_does_not_wait_for_a_signature(THREADS, true);
}

#[test]
fn finalize_does_not_wait_for_a_signature_at_the_card_without_threads() {
    the_end_does_not_wait_for_a_signature(NO_THREADS, true);
}

fn the_end_does_not_wait_for_the_first_look(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let frozen = Frozen::new(process);
        assert_eq!(raw.initialize(flags), CKR_OK);
        let look = aside(move || raw.slot_count(true));
        thread::sleep(MOMENT);
        assert!(look.try_recv().is_err(), "the first look is stuck");
        end(raw, "with the first look inside");
        live_on(frozen, raw, flags);
        let outcome = comes_back("the first look", HANG, &look);
        println!("{outcome:?}");
    });
}

#[test]
fn finalize_does_not_wait_for_a_first_snapshot() {
    the_end_does_not_wait_for_the_first_look(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_first_snapshot_without_threads() {
    the_end_does_not_wait_for_the_first_look(NO_THREADS);
}

/// A user is logged in, and logging out is not to be had.
fn the_end_does_not_wait_for_a_logout(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let signer = signer(process, flags);
        let frozen = Frozen::new(process);
        end(raw, "with a login");
        live_on(frozen, raw, flags);
        drop(signer);
    });
}

#[test]
fn finalize_does_not_wait_for_a_logout() {
    the_end_does_not_wait_for_a_logout(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_logout_without_threads() {
    the_end_does_not_wait_for_a_logout(NO_THREADS);
}

/// A pcscd that hangs from its first moment: it takes the connections and says nothing.
fn the_end_does_not_wait_for_the_return_of_pcscd(flags: CK_FLAGS) {
    let as_it_is = |_: &CardFixture, _: &mut Command| {};
    let log = in_module_process(
        ServiceKind::Pcscd,
        CardProfile::piv4(),
        as_it_is,
        |process| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert!(raw.slot_count(true).1 > 0);
            let waiter = aside(move || raw.wait(0).0);
            thread::sleep(MOMENT);
            process.send_command("service stop");
            let socket = env::var_os("PCSCLITE_CSOCK_NAME").expect("a pcscd of its own");
            let _ = fs::remove_file(&socket);
            let silent = UnixListener::bind(&socket).unwrap();
            // The loss of the reader ends one wait; without threads the watch goes on in the other.
            let again = aside(move || raw.wait(0).0);
            let (_watch, _) = silent.accept().unwrap();
            end(raw, "while a connection is being made");
            for waiter in [waiter, again] {
                let code = comes_back("a waiter", HANG, &waiter);
                assert!([CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED].contains(&code));
            }
        },
    );
    if let Some(Log(log)) = log {
        for overstayed in ["has not responded in time", "left behind", "did not end"] {
            assert!(!log.contains(overstayed), "{log}");
        }
    }
}

#[test]
fn finalize_does_not_wait_for_a_connect() {
    the_end_does_not_wait_for_the_return_of_pcscd(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_connect_without_threads() {
    the_end_does_not_wait_for_the_return_of_pcscd(NO_THREADS);
}

#[test]
fn signature_at_a_frozen_pcscd_gives_up_and_the_session_continues() {
    with_pcscd(|process| {
        let signer = signer(process, THREADS);
        let frozen = Frozen::new(process);
        let signature = aside(move || (signer.sign(), signer));
        let (outcome, signer) = comes_back("C_Sign that gives up", GIVES_UP, &signature);
        is_unreachable(outcome);
        drop(frozen);
        signer.goes_on();
    });
}

#[test]
fn login_at_a_frozen_pcscd_gives_up_and_its_pin_is_not_sent_again() {
    with_pcscd(|process| {
        let module = process.module();
        let session = process.session(&module);
        session.find_objects(&[]).unwrap();
        let frozen = Frozen::new(process);
        let login = aside(move || (session.login(UserType::User, Some(&pin())), session));
        let (outcome, session) = comes_back("C_Login that gives up", GIVES_UP, &login);
        is_unreachable(outcome);
        drop(frozen);
        session.find_objects(&[]).unwrap();
        let pins = process.pins();
        assert!(pins <= 1, "what pcscd had been given already");
        PivSession::of(process, module, session).goes_on();
        assert!(process.pins() > pins);
    });
}

#[test]
fn signature_waits_for_pcscd_to_resume() {
    with_pcscd(|process| {
        let mut signer = signer(process, THREADS);
        for _ in 0..2 {
            let frozen = Frozen::new(process);
            let signature = aside(move || (signer.sign(), signer));
            thread::sleep(Duration::from_secs(2));
            drop(frozen);
            let outcome;
            (outcome, signer) = comes_back("C_Sign", HANG, &signature);
            assert_eq!(outcome.unwrap().len(), 64);
            drop(Frozen::new(process));
            signer.goes_on();
        }
    });
}
