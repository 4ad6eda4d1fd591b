//! pcscd crashes and is started again: sessions in every state survive it.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        function_list::FunctionList,
        module_process::{
            HANG, ModuleProcess, ServiceKind, eventually, in_module_process, key, log_in, pin,
            promptly, with_card,
        },
        piv_session::{
            GET_DATA, HASH, PivSession, SIGN, VERIFY, asks_for_each_pin, is_unreachable,
        },
    },
    for_each_service,
    provision::CardProfile,
};
use cryptoki::{
    context::Pkcs11,
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    session::SessionState,
};
use cryptoki_sys::{CKF_OS_LOCKING_OK, CKR_OK};

/// Four certificates, their public keys and the private key that needs no PIN; data objects besides.
const PUBLIC_OBJECTS: usize = 9;
/// Delay of a frame that must not arrive before its service has crashed.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

for_each_service! {
    [Pcscd over_pcscd, PcscdBySocket over_pcscd_by_socket]
    {
        a_session_signs_at_once_after_a_crash: CardProfile::piv4();
        a_session_signs_after_a_crash_it_has_seen_pass: CardProfile::piv4();
        context_login_keys_still_require_the_pin_after_a_pcscd_crash: CardProfile::both();
        session_without_login_continues_after_a_crash_and_sends_no_pin: CardProfile::piv4();
        waiter_receives_events_before_and_after_a_crash: CardProfile::piv4();
        a_signature_at_the_card_fails_when_its_pcscd_dies_and_the_next_one_succeeds: CardProfile::piv4();
        a_pin_at_the_card_is_not_sent_again_when_its_pcscd_dies: CardProfile::piv4();
        a_search_fails_when_its_pcscd_dies_and_the_next_one_finds_everything: CardProfile::piv4();
        finalize_succeeds_when_pcscd_crashes_during_it: CardProfile::piv4();
    }
}

fn a_session_signs_at_once_after_a_crash(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    for _ in 0..3 {
        // The new pcscd accepts clients, but has not noticed the cards of its readers yet.
        process.order(&["service crash", "service begin"]);
        signer.still_works();
    }
}

fn a_session_signs_after_a_crash_it_has_seen_pass(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    for _ in 0..2 {
        process.order(&["service crash", "service begin", "settle"]);
        eventually("the token", || has_token(&signer.module));
        signer.still_works();
    }
}

fn context_login_keys_still_require_the_pin_after_a_pcscd_crash(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let slots = signer.module.get_slots_with_token().unwrap();
    let openpgp = signer.module.open_ro_session(slots[1]).unwrap();
    log_in(&openpgp);
    let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
    let forced = key(&openpgp, 1);
    asks_for_each_pin(process, &openpgp, &mechanism, forced);
    process.order(&["service crash", "service begin"]);
    signer.asks_for_each_pin();
    asks_for_each_pin(process, &openpgp, &mechanism, forced);
}

fn session_without_login_continues_after_a_crash_and_sends_no_pin(process: &ModuleProcess) {
    let module = process.module();
    let session = process.session(&module);
    let open = key(&session, 4);
    session.sign(&Mechanism::Ecdsa, open, &HASH).unwrap();
    process.order(&["service crash", "service begin"]);
    let signature = promptly("the next signature", || {
        session.sign(&Mechanism::Ecdsa, open, &HASH)
    });
    assert_eq!(signature.unwrap().len(), 64);
    assert_eq!(process.pins(), 0);
    process.order(&["service crash", "service begin"]);
    let signer = PivSession::of(process, module, session);
    assert_eq!(process.pins(), 1, "the user's own");
    signer.still_works();
}

/// Whether any slot has a token. No answer may take long.
fn has_token(module: &Pkcs11) -> bool {
    let start = Instant::now();
    let slots = module.get_slots_with_token().expect("C_GetSlotList");
    let all = module.get_all_slots().expect("C_GetSlotList");
    let infos = all
        .iter()
        .map(|slot| module.get_slot_info(*slot).expect("C_GetSlotInfo"));
    let present = infos
        .filter(cryptoki::slot::SlotInfo::token_present)
        .count();
    assert_eq!(present, slots.len());
    assert!(start.elapsed() < HANG, "took {:?}", start.elapsed());
    !slots.is_empty()
}

#[test]
fn tokens_are_absent_without_pcscd_and_the_log_names_the_cause() {
    let rule = |process: &ModuleProcess| {
        let signer = PivSession::new(process);
        process.order(&["service crash"]);
        eventually("no token", || !has_token(&signer.module));
        for _ in 0..3 {
            assert!(!has_token(&signer.module));
            is_unreachable(promptly("C_Sign without pcscd", || signer.sign()));
        }
        process.order(&["service begin"]);
        signer.still_works();
        assert!(has_token(&signer.module));
    };
    if let Some(log) = in_module_process(ServiceKind::Pcscd, CardProfile::piv4(), |_, _| {}, rule) {
        log.line(&["C_Sign", "pcscd does not run", "docs/pcscd.md"]);
    }
}

/// The results of a thread in C_WaitForSlotEvent.
fn follow_events(raw: FunctionList) -> mpsc::Receiver<(u64, u64)> {
    let (sender, events) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let (code, slot) = raw.wait(0);
            if sender.send((code, slot)).is_err() || code != CKR_OK {
                return;
            }
        }
    });
    events
}

fn waiter_receives_events_before_and_after_a_crash(process: &ModuleProcess) {
    let raw = FunctionList::load();
    assert_eq!(raw.initialize(CKF_OS_LOCKING_OK), CKR_OK);
    let (code, slots) = raw.slot_count(false);
    assert_eq!(code, CKR_OK);
    let events = follow_events(raw);
    for _ in 0..2 {
        process.order(&["service crash", "service begin", "settle"]);
        // The readers that left and came back; then silence.
        while let Ok((code, slot)) = events.recv_timeout(Duration::from_secs(2)) {
            assert_eq!(code, CKR_OK);
            assert!(slot < slots, "slot {slot} of {slots}");
        }
        for action in ["remove", "insert"] {
            process.order(&[action]);
            let (code, slot) = events.recv_timeout(HANG).expect(action);
            assert_eq!(code, CKR_OK);
            assert!(slot < slots, "slot {slot} of {slots}");
            process.order(&["settle"]);
        }
    }
    assert_eq!(raw.slot_count(false), (CKR_OK, slots));
    assert!(raw.slot_count(true).1 > 0);
    assert_eq!(raw.finalize(), CKR_OK);
}

fn a_signature_at_the_card_fails_when_its_pcscd_dies_and_the_next_one_succeeds(
    process: &ModuleProcess,
) {
    let signer = PivSession::new(process);
    for _ in 0..2 {
        let pins = process.pins();
        let signature = promptly("a signature whose service dies", || {
            process.during(SIGN, ON_ITS_WAY, &["service crash"], || signer.sign())
        });
        is_unreachable(signature);
        assert_eq!(process.pins(), pins);
        process.order(&["service begin"]);
        signer.still_works();
    }
}

fn a_pin_at_the_card_is_not_sent_again_when_its_pcscd_dies(process: &ModuleProcess) {
    let module = process.module();
    let session = process.session(&module);
    let login = promptly("a login whose service dies", || {
        process.during(VERIFY, ON_ITS_WAY, &["service crash"], || {
            try_to_log_in(&session)
        })
    });
    is_unreachable(login);
    process.order(&["service begin", "settle"]);
    // The card gets a command, but no user is logged in, so there is no PIN to send.
    assert!(session.find_objects(&[]).unwrap().len() >= PUBLIC_OBJECTS);
    let state = session.get_session_info().unwrap().session_state();
    assert_eq!(state, SessionState::RoPublic);
    assert_eq!(process.pins(), 1, "the PIN of the login that failed");
    PivSession::of(process, module, session).still_works();
}

fn try_to_log_in(session: &cryptoki::session::Session) -> cryptoki::error::Result<()> {
    session.login(cryptoki::session::UserType::User, Some(&pin()))
}

fn a_search_fails_when_its_pcscd_dies_and_the_next_one_finds_everything(process: &ModuleProcess) {
    let module = process.module();
    let session = process.session(&module);
    let search = promptly("a search whose service dies", || {
        process.during(GET_DATA, ON_ITS_WAY, &["service crash"], || {
            session.find_objects(&[])
        })
    });
    is_unreachable(search);
    process.order(&["service begin"]);
    let found = promptly("the next search", || session.find_objects(&[]));
    assert!(found.unwrap().len() >= PUBLIC_OBJECTS);
    PivSession::of(process, module, session).still_works();
}

fn finalize_succeeds_when_pcscd_crashes_during_it(process: &ModuleProcess) {
    let _signer = PivSession::new(process);
    let ended = promptly("C_Finalize whose service dies", || {
        process.during(VERIFY, ON_ITS_WAY, &["service crash"], || {
            FunctionList::load().finalize()
        })
    });
    assert_eq!(ended, CKR_OK);
    process.order(&["service begin", "settle"]);
    PivSession::new(process).still_works();
}

#[test]
fn finalize_returns_without_pcscd() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        let _signer = PivSession::new(process);
        process.order(&["service crash"]);
        let ended = promptly("C_Finalize without a service", || {
            FunctionList::load().finalize()
        });
        assert_eq!(ended, CKR_OK);
        process.order(&["service begin", "settle"]);
        PivSession::new(process).still_works();
    });
}
