//! Other programs use, reset and disconnect the same card. The session of the module signs afterwards.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        module_process::{
            HANG, ModuleProcess, ServiceKind, code, eventually, in_module_process, key, promptly,
            with_card,
        },
        other_program::{
            DONE, OtherProgram, PIV_LOGOUT, SELECT_OPENPGP, reset_retry_counter, wrong_pin,
        },
        piv_session::{HASH, PivSession},
        socket_reader::SELECT_PIV,
    },
    for_each_service,
    provision::CardProfile,
};
use cryptoki::{error::RvError, mechanism::Mechanism, object::ObjectHandle, session::Session};
use pcsc::Disposition;

/// Time for which another program holds the card.
const KEEPS: Duration = Duration::from_secs(3);
/// Number of disturbances. Only some resets by another program meet a transaction.
const DISTURBANCES: usize = 100;
/// Response of the virtual reader for a card without power.
const NO_POWER: [u8; 2] = [0x6F, 0x00];
/// Timeout of a call while another program has exclusive access. The module gives up sooner.
const GIVES_UP: Duration = Duration::from_secs(30);

for_each_service! {
    [Socket over_the_socket_reader, Pcscd over_pcscd]
    {
        a_reset_by_another_costs_one_silent_verification: CardProfile::piv4();
        another_applet_selected_by_another_is_undone: CardProfile::both();
        a_logout_by_another_costs_one_silent_verification: CardProfile::piv4();
        a_retry_counter_reset_by_another_costs_one_silent_verification: CardProfile::piv4();
        a_pin_that_another_got_wrong_ends_the_login: CardProfile::piv4();
        a_transaction_of_another_is_waited_for: CardProfile::piv4();
        signatures_succeed_while_another_selects_its_applet: CardProfile::both();
        signatures_succeed_while_another_resets_the_card: CardProfile::piv4();
    }
}

fn a_reset_by_another_costs_one_silent_verification(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    for _ in 0..3 {
        other.reset();
        signer.still_works();
    }
    other.reset();
    signer.asks_for_each_pin();
    signer.still_works();
}

fn another_applet_selected_by_another_is_undone(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    for _ in 0..3 {
        assert_eq!(other.transmit(&SELECT_OPENPGP), DONE);
        signer.still_works();
    }
    assert_eq!(other.transmit(&SELECT_OPENPGP), DONE);
    signer.asks_for_each_pin();
    signer.still_works();
}

fn a_logout_by_another_costs_one_silent_verification(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    for _ in 0..3 {
        assert_eq!(other.transmit(&PIV_LOGOUT), DONE);
        signer.still_works();
    }
}

fn a_retry_counter_reset_by_another_costs_one_silent_verification(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    for _ in 0..2 {
        assert_eq!(other.transmit(&wrong_pin()), [0x63, 0xC2]);
        assert_eq!(other.transmit(&reset_retry_counter()), DONE);
        signer.still_works();
    }
}

/// The PIN that is kept may be the wrong one: it is not worth one of the tries that are left.
fn a_pin_that_another_got_wrong_ends_the_login(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    assert_eq!(other.transmit(&wrong_pin()), [0x63, 0xC2]);
    let before = process.pins();
    assert_eq!(code(signer.sign()), RvError::UserNotLoggedIn);
    assert_eq!(process.pins(), before);
    let PivSession {
        module, session, ..
    } = signer;
    PivSession::of(process, module, session).still_works();
}

fn a_transaction_of_another_is_waited_for(process: &ModuleProcess) {
    let signer = PivSession::new(process);
    let mut other = OtherProgram::shared();
    for _ in 0..2 {
        let (sender, begun) = mpsc::channel();
        thread::scope(|scope| {
            let keeping = scope.spawn(|| {
                other.hold(|_| {
                    sender.send(()).unwrap();
                    thread::sleep(KEEPS);
                    Instant::now()
                })
            });
            begun.recv().unwrap();
            let signature = promptly("C_Sign", || signer.sign());
            let signed = Instant::now();
            assert_eq!(signature.unwrap().len(), 64);
            assert!(signed > keeping.join().unwrap(), "it waited");
        });
        signer.still_works();
    }
}

/// Signs until `disturb` has been at work many times beside it.
fn sign_beside(signer: &PivSession<'_>, mut disturb: impl FnMut() + Send) {
    thread::scope(|scope| {
        let disturbing = scope.spawn(|| {
            for _ in 0..DISTURBANCES {
                disturb();
                thread::sleep(Duration::from_millis(20));
            }
        });
        let mut failed = Vec::new();
        let mut signatures = 0;
        while !disturbing.is_finished() {
            signatures += 1;
            failed.extend(signer.sign().err());
        }
        println!("{signatures} signatures beside {DISTURBANCES} disturbances");
        assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
        assert!(signatures > DISTURBANCES / 10, "hardly any was beside one");
    });
    signer.still_works();
}

fn signatures_succeed_while_another_selects_its_applet(process: &ModuleProcess) {
    let mut other = OtherProgram::shared();
    sign_beside(&PivSession::new(process), || {
        other.hold(|card| {
            assert_eq!(card.transmit(&SELECT_OPENPGP), DONE);
        });
    });
}

fn signatures_succeed_while_another_resets_the_card(process: &ModuleProcess) {
    let mut other = OtherProgram::shared();
    sign_beside(&PivSession::new(process), || other.reset());
}

/// Another program connects, uses the card, and disconnects with this disposition.
fn connect_and_close(disposition: Disposition) {
    let mut other = OtherProgram::shared();
    assert!(other.transmit(&SELECT_PIV).ends_with(&DONE));
    other.close(disposition);
}

fn session_survives_programs_that_disconnect_with(disposition: Disposition) {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        let signer = PivSession::new(process);
        for _ in 0..2 {
            connect_and_close(disposition);
            signer.still_works();
            connect_and_close(disposition);
            signer.asks_for_each_pin();
        }
        signer.still_works();
    });
}

#[test]
fn session_survives_programs_that_leave_the_card_reset() {
    session_survives_programs_that_disconnect_with(Disposition::ResetCard);
}

#[test]
fn session_survives_programs_that_leave_the_card_without_power() {
    session_survives_programs_that_disconnect_with(Disposition::UnpowerCard);
}

/// One that was connected all the while and reconnects without a reset has pcscd believe that the card has power:
/// new connections are then refused (SCARD_W_UNPOWERED_CARD).
#[test]
fn unpowered_card_is_powered_up_for_a_continuing_session() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        let module = process.module();
        let session = process.session(&module);
        let open = key(&session, 4);
        sign_openly(&session, open).unwrap();
        exclusive().close(Disposition::LeaveCard);
        let mut witness = OtherProgram::shared();
        connect_and_close(Disposition::UnpowerCard);
        assert_eq!(witness.transmit(&SELECT_PIV), NO_POWER);
        let signature = promptly("C_Sign", || sign_openly(&session, open));
        assert_eq!(signature.unwrap().len(), 64);
        witness.close(Disposition::LeaveCard);
        PivSession::of(process, module, session).still_works();
    });
}

/// Waits for exclusive access by another program, which it gets when the module has released the card.
fn exclusive() -> OtherProgram {
    let mut other = None;
    eventually("the card to be let go", || {
        other = OtherProgram::exclusive();
        other.is_some()
    });
    other.unwrap()
}

/// Signs with a key while another program has exclusive access, until that ends.
fn outlast(other: OtherProgram, sign: impl Fn() -> cryptoki::error::Result<Vec<u8>>) {
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(KEEPS);
            other.close(Disposition::LeaveCard);
        });
        let start = Instant::now();
        loop {
            match sign() {
                Ok(signature) => return assert_eq!(signature.len(), 64),
                result => assert_eq!(code(result), RvError::DeviceError),
            }
            assert!(start.elapsed() < HANG, "the card is not taken back");
        }
    });
}

/// Checks that a signature fails with CKR_DEVICE_ERROR, in time.
fn is_refused(sign: impl Fn() -> cryptoki::error::Result<Vec<u8>>) {
    let start = Instant::now();
    assert_eq!(code(sign()), RvError::DeviceError);
    println!("refused after {:?}", start.elapsed());
    assert!(start.elapsed() < GIVES_UP);
}

fn sign_openly(session: &Session, key: ObjectHandle) -> cryptoki::error::Result<Vec<u8>> {
    session.sign(&Mechanism::Ecdsa, key, &HASH)
}

#[test]
fn exclusively_held_card_is_refused_with_a_cure_and_used_again_later() {
    let rule = |process: &ModuleProcess| {
        let module = process.module();
        let session = process.session(&module);
        let open = key(&session, 4);
        sign_openly(&session, open).unwrap();
        let other = exclusive();
        is_refused(|| sign_openly(&session, open));
        outlast(other, || sign_openly(&session, open));
        assert_eq!(process.pins(), 0);
        PivSession::of(process, module, session).still_works();
    };
    if let Some(log) = in_module_process(ServiceKind::Pcscd, CardProfile::piv4(), |_, _| {}, rule) {
        log.line(&["C_Sign", "exclusively", "scdaemon"]);
    }
}

#[test]
fn login_survives_exclusive_use_by_another_program() {
    let rule = |process: &ModuleProcess| {
        let signer = PivSession::new(process);
        let other = exclusive();
        is_refused(|| signer.sign());
        let before = process.pins();
        outlast(other, || signer.sign());
        assert!(process.pins() <= before + 1, "one silent verification");
        signer.still_works();
        exclusive().close(Disposition::ResetCard);
        signer.still_works();
        exclusive().close(Disposition::UnpowerCard);
        signer.asks_for_each_pin();
        signer.still_works();
    };
    if let Some(log) = in_module_process(ServiceKind::Pcscd, CardProfile::piv4(), |_, _| {}, rule) {
        log.line(&["C_Sign", "exclusively", "scdaemon"]);
    }
}
