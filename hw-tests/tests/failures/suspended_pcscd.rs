//! pcscd is suspended: C_Finalize returns in every state, calls end with an error, and the module works when pcscd resumes.

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
/// Long enough for a thread to block, on a busy machine too.
const MOMENT: Duration = Duration::from_millis(500);
/// Delay of a frame. Long enough to suspend pcscd before the card responds.
const CARD_DELAY: Duration = Duration::from_secs(5);
/// Timeout of a call. The module gives up after about ten seconds, so only a hang exceeds it.
const CALL_TIMEOUT: Duration = Duration::from_secs(40);

/// Suspends pcscd until it is dropped.
struct SuspendedPcscd<'a>(&'a ModuleProcess);

impl<'a> SuspendedPcscd<'a> {
    fn new(process: &'a ModuleProcess) -> Self {
        process.order(&["service freeze"]);
        Self(process)
    }
}

impl Drop for SuspendedPcscd<'_> {
    fn drop(&mut self) {
        self.0.order(&["service thaw"]);
    }
}

/// Runs `call` on a thread of its own. The channel receives its result.
fn on_a_thread<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(call()));
    result
}

/// Returns the result of a call, which must return within `limit`.
#[track_caller]
fn returned_within<T>(what: &str, limit: Duration, call: &Receiver<T>) -> T {
    let start = Instant::now();
    let result = call.recv_timeout(limit);
    println!("{what}: {:?}", start.elapsed());
    result.unwrap_or_else(|_| panic!("{what} did not return within {limit:?}"))
}

/// Calls C_Finalize while pcscd is suspended. It must return in time.
#[track_caller]
fn finalize_in_time(raw: FunctionList, state: &str) {
    let ended = on_a_thread(move || raw.finalize());
    let code = returned_within(&format!("C_Finalize, {state}"), HANG, &ended);
    assert_eq!(code, CKR_OK);
}

/// Initializes the module with `flags`, and logs in with a session.
fn signer(process: &'static ModuleProcess, flags: CK_FLAGS) -> PivSession<'static> {
    let module = process.load();
    let flags = CInitializeFlags::from_bits_retain(flags);
    module.initialize(CInitializeArgs::new(flags)).unwrap();
    let session = process.session(&module);
    PivSession::of(process, module, session)
}

/// As [`with_card`] over pcscd, for a body whose threads may outlive it if it fails.
fn with_pcscd(body: impl FnOnce(&'static ModuleProcess)) {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        body(Box::leak(Box::new(process.clone())));
    });
}

/// Resumes pcscd, and checks that the module works.
fn resume(suspended: SuspendedPcscd<'_>, raw: FunctionList, flags: CK_FLAGS) {
    let process = suspended.0;
    drop(suspended);
    assert_eq!(raw.initialize(flags), CKR_OK);
    let found = promptly("C_GetSlotList after pcscd has resumed", || {
        raw.slot_count(true)
    });
    assert_eq!((found.0, found.1 > 0), (CKR_OK, true));
    assert_eq!(raw.finalize(), CKR_OK);
    let signer = PivSession::new(process);
    signer.still_works();
    drop(signer);
    assert_eq!(raw.finalize(), CKR_OK);
}

fn waiters_return_at_finalize(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(flags), CKR_OK);
        assert!(raw.slot_count(true).1 > 0);
        let waiters: Vec<Receiver<CK_RV>> =
            (0..3).map(|_| on_a_thread(move || raw.wait(0).0)).collect();
        thread::sleep(MOMENT);
        let suspended = SuspendedPcscd::new(process);
        finalize_in_time(raw, "with waiters");
        for waiter in waiters {
            let code = returned_within("C_WaitForSlotEvent", HANG, &waiter);
            assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED);
        }
        resume(suspended, raw, flags);
    });
}

#[test]
fn waiters_return_at_finalize_while_pcscd_is_suspended() {
    waiters_return_at_finalize(THREADS);
}

#[test]
fn waiters_return_at_finalize_while_pcscd_is_suspended_without_threads() {
    waiters_return_at_finalize(NO_THREADS);
}

/// Calls C_Finalize while a signature is blocked, before pcscd or at the card.
fn finalize_does_not_wait_for_a_signature(flags: CK_FLAGS, is_at_the_card: bool) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let signer = signer(process, flags);
        let sign = move || (signer.sign(), signer);
        let (suspended, signature);
        if is_at_the_card {
            process.delay(SIGN, CARD_DELAY);
            signature = on_a_thread(sign);
            process.await_delayed();
            suspended = SuspendedPcscd::new(process);
        } else {
            suspended = SuspendedPcscd::new(process);
            signature = on_a_thread(sign);
        }
        thread::sleep(MOMENT);
        assert!(signature.try_recv().is_err(), "the signature is blocked");
        finalize_in_time(raw, "during a signature");
        resume(suspended, raw, flags);
        let (outcome, _) = returned_within("the signature", HANG, &signature);
        println!("{outcome:?}");
    });
}

#[test]
fn finalize_does_not_wait_for_a_signature_still_at_pcscd() {
    finalize_does_not_wait_for_a_signature(THREADS, false);
}

#[test]
fn finalize_does_not_wait_for_a_signature_still_at_pcscd_without_threads() {
    finalize_does_not_wait_for_a_signature(NO_THREADS, false);
}

#[test]
fn finalize_does_not_wait_for_a_signature_at_the_card() {
    finalize_does_not_wait_for_a_signature(THREADS, true);
}

#[test]
fn finalize_does_not_wait_for_a_signature_at_the_card_without_threads() {
    finalize_does_not_wait_for_a_signature(NO_THREADS, true);
}

fn finalize_does_not_wait_for_the_first_query(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let suspended = SuspendedPcscd::new(process);
        assert_eq!(raw.initialize(flags), CKR_OK);
        let query = on_a_thread(move || raw.slot_count(true));
        thread::sleep(MOMENT);
        assert!(query.try_recv().is_err(), "the first query is blocked");
        finalize_in_time(raw, "during the first query");
        resume(suspended, raw, flags);
        let outcome = returned_within("the first query", HANG, &query);
        println!("{outcome:?}");
    });
}

#[test]
fn finalize_does_not_wait_for_a_first_snapshot() {
    finalize_does_not_wait_for_the_first_query(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_first_snapshot_without_threads() {
    finalize_does_not_wait_for_the_first_query(NO_THREADS);
}

/// Calls C_Finalize while a user is logged in and cannot be logged out.
fn finalize_does_not_wait_for_the_logout(flags: CK_FLAGS) {
    with_pcscd(|process| {
        let raw = FunctionList::load();
        let signer = signer(process, flags);
        let suspended = SuspendedPcscd::new(process);
        finalize_in_time(raw, "with a login");
        resume(suspended, raw, flags);
        drop(signer);
    });
}

#[test]
fn finalize_does_not_wait_for_a_logout() {
    finalize_does_not_wait_for_the_logout(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_logout_without_threads() {
    finalize_does_not_wait_for_the_logout(NO_THREADS);
}

/// A pcscd that accepts connections and never replies.
fn finalize_does_not_wait_for_a_hung_connect(flags: CK_FLAGS) {
    let as_it_is = |_: &CardFixture, _: &mut Command| {};
    let log = in_module_process(
        ServiceKind::Pcscd,
        CardProfile::piv4(),
        as_it_is,
        |process| {
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert!(raw.slot_count(true).1 > 0);
            let waiter = on_a_thread(move || raw.wait(0).0);
            thread::sleep(MOMENT);
            process.send_command("service stop");
            let socket = env::var_os("PCSCLITE_CSOCK_NAME").expect("a pcscd of its own");
            let _ = fs::remove_file(&socket);
            let silent = UnixListener::bind(&socket).unwrap();
            // The loss of the reader ends one wait. Without threads, the other waiter continues the watch.
            let again = on_a_thread(move || raw.wait(0).0);
            let (_watch, _) = silent.accept().unwrap();
            finalize_in_time(raw, "while a connection is being made");
            for waiter in [waiter, again] {
                let code = returned_within("a waiter", HANG, &waiter);
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
    finalize_does_not_wait_for_a_hung_connect(THREADS);
}

#[test]
fn finalize_does_not_wait_for_a_connect_without_threads() {
    finalize_does_not_wait_for_a_hung_connect(NO_THREADS);
}

#[test]
fn signature_at_a_suspended_pcscd_fails_in_time_and_the_session_continues() {
    with_pcscd(|process| {
        let signer = signer(process, THREADS);
        let suspended = SuspendedPcscd::new(process);
        let signature = on_a_thread(move || (signer.sign(), signer));
        let (outcome, signer) = returned_within("C_Sign that gives up", CALL_TIMEOUT, &signature);
        is_unreachable(outcome);
        drop(suspended);
        signer.still_works();
    });
}

#[test]
fn login_at_a_suspended_pcscd_fails_in_time_and_its_pin_is_not_resent() {
    with_pcscd(|process| {
        let module = process.module();
        let session = process.session(&module);
        session.find_objects(&[]).unwrap();
        let suspended = SuspendedPcscd::new(process);
        let login = on_a_thread(move || (session.login(UserType::User, Some(&pin())), session));
        let (outcome, session) = returned_within("C_Login that gives up", CALL_TIMEOUT, &login);
        is_unreachable(outcome);
        drop(suspended);
        session.find_objects(&[]).unwrap();
        let pins = process.pins();
        assert!(pins <= 1, "only a PIN that pcscd already had");
        PivSession::of(process, module, session).still_works();
        assert!(process.pins() > pins);
    });
}

#[test]
fn signature_waits_for_pcscd_to_resume() {
    with_pcscd(|process| {
        let mut signer = signer(process, THREADS);
        for _ in 0..2 {
            let suspended = SuspendedPcscd::new(process);
            let signature = on_a_thread(move || (signer.sign(), signer));
            thread::sleep(Duration::from_secs(2));
            drop(suspended);
            let outcome;
            (outcome, signer) = returned_within("C_Sign", HANG, &signature);
            assert_eq!(outcome.unwrap().len(), 64);
            drop(SuspendedPcscd::new(process));
            signer.still_works();
        }
    });
}
