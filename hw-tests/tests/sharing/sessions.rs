//! Sessions on one card with several applets and several programs: events that end a session, and events that do not.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        module_process::{
            HANG, ModuleProcess, ServiceKind, code, eventually, in_module_process, key, log_in,
            with_card,
        },
    },
    provision::{CardProfile, PIN},
    reader::FrameFault,
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, ObjectClass},
    session::{Session, UserType},
    types::AuthPin,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const HASH: [u8; 32] = [0x3C; 32];
/// How long a card is kept at least when its user is logged in (5 s), and no session alone keeps it (1 s).
const LOGGED_IN: Duration = Duration::from_secs(3);

fn without_threads(process: &ModuleProcess) -> Pkcs11 {
    let module = process.load();
    let flags = CInitializeFlags::OS_LOCKING_OK | CInitializeFlags::LIBRARY_CANT_CREATE_OS_THREADS;
    module.initialize(CInitializeArgs::new(flags)).unwrap();
    module
}

#[test]
fn piv_and_openpgp_of_one_card_sign_side_by_side() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::both(), |process| {
            let module = process.module();
            let slots = module.get_slots_with_token().unwrap();
            assert_eq!(slots.len(), 2, "one card, two tokens");
            let sessions: Vec<Session> = slots
                .iter()
                .map(|slot| module.open_ro_session(*slot).unwrap())
                .collect();
            sessions.iter().for_each(log_in);
            let keys = [key(&sessions[0], 1), key(&sessions[1], 3)];
            for _ in 0..3 {
                for (session, key) in sessions.iter().zip(keys) {
                    assert_eq!(
                        session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap().len(),
                        64
                    );
                }
            }
            sessions[0].logout().unwrap();
            let signature = sessions[1].sign(&Mechanism::Ecdsa, keys[1], &HASH).unwrap();
            assert_eq!(
                signature.len(),
                64,
                "a logout of one token is not one of the other"
            );
        });
    }
}

#[test]
fn two_threads_use_both_tokens_of_a_card_at_once() {
    with_card(ServiceKind::Pcscd, CardProfile::both(), |process| {
        let module = process.module();
        let slots = module.get_slots_with_token().unwrap();
        std::thread::scope(|scope| {
            for (slot, id) in slots.into_iter().zip([1, 3]) {
                let module = &module;
                scope.spawn(move || {
                    let session = module.open_ro_session(slot).unwrap();
                    log_in(&session);
                    let key = key(&session, id);
                    for _ in 0..20 {
                        assert_eq!(
                            session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap().len(),
                            64
                        );
                    }
                });
            }
        });
    });
}

/// How often a PIN was sent, by the card's own log.
fn count_verifies(log: &std::sync::Mutex<u32>, frame: &[u8]) -> FrameFault {
    if frame.get(1) == Some(&0x20) && frame.len() > 5 {
        *log.lock().unwrap() += 1;
    }
    FrameFault::Answer
}

#[test]
fn the_same_session_signs_again_after_a_reset_with_one_silent_verification() {
    let verifies = std::sync::Arc::new(std::sync::Mutex::new(0));
    let counter = std::sync::Arc::clone(&verifies);
    let count = move |fixture: &CardFixture, _: &mut Command| {
        fixture
            .card()
            .on_frame(move |frame| count_verifies(&counter, frame));
    };
    let log = in_module_process(ServiceKind::Socket, CardProfile::piv4(), count, |process| {
        let module = process.module();
        let session = process.session(&module);
        log_in(&session);
        let (often, always) = (key(&session, 1), key(&session, 2));
        session.sign(&Mechanism::Ecdsa, often, &HASH).unwrap();
        process.send_command("reset");
        assert_eq!(
            session.sign(&Mechanism::Ecdsa, often, &HASH).unwrap().len(),
            64
        );
        let (apdus, _) = process.apdus(|| session.sign(&Mechanism::Ecdsa, often, &HASH).unwrap());
        assert_eq!(apdus, 1, "warm again");
        // A key that wants the PIN each time never gets it without being asked.
        assert_eq!(
            code(session.sign(&Mechanism::RsaPkcs, always, &HASH)),
            RvError::UserNotLoggedIn
        );
    });
    if log.is_some() {
        assert_eq!(
            *verifies.lock().unwrap(),
            2,
            "the login and one silent verification"
        );
    }
}

/// The number of private keys that a new session finds, after the module has noticed the reinserted card.
fn visible_keys(module: &Pkcs11) -> usize {
    let count_keys = || -> cryptoki::error::Result<usize> {
        let slot = module.get_slots_with_token()?[..]
            .first()
            .copied()
            .ok_or(Error::NotSupported)?;
        let session = module.open_ro_session(slot)?;
        Ok(session
            .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])?
            .len())
    };
    let deadline = Instant::now() + HANG;
    loop {
        match count_keys() {
            Ok(keys) => return keys,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("the card does not come back: {error}"),
        }
    }
}

#[test]
fn a_card_swapped_unseen_gets_neither_pin_nor_session() {
    let verifies = std::sync::Arc::new(std::sync::Mutex::new(0));
    let counter = std::sync::Arc::clone(&verifies);
    let count = move |fixture: &CardFixture, _: &mut Command| {
        fixture
            .card()
            .on_frame(move |frame| count_verifies(&counter, frame));
    };
    let log = in_module_process(ServiceKind::Socket, CardProfile::piv4(), count, |process| {
        for module in [
            without_threads as fn(&ModuleProcess) -> Pkcs11,
            ModuleProcess::module,
        ] {
            let module = module(process);
            let session = process.session(&module);
            log_in(&session);
            let key = key(&session, 1);
            // For all the module knows, what comes back is another card.
            process.send_command("remove");
            process.send_command("insert");
            let failed = code(session.sign(&Mechanism::Ecdsa, key, &HASH));
            let expected = [RvError::DeviceRemoved, RvError::SessionHandleInvalid];
            assert!(expected.contains(&failed), "{failed:?}");
            assert_eq!(
                code(session.get_session_info()),
                RvError::SessionHandleInvalid
            );
            assert_eq!(
                visible_keys(&module),
                1,
                "nobody is logged in to the new card"
            );
            module.finalize().unwrap();
        }
    });
    if log.is_some() {
        assert_eq!(
            *verifies.lock().unwrap(),
            2,
            "the two logins and nothing else"
        );
    }
}

#[test]
fn a_one_signature_key_takes_the_pin_each_time() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::pgp3(), |process| {
            let module = process.module();
            let session = process.session(&module);
            log_in(&session);
            let key = key(&session, 1);
            let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
            for _ in 0..3 {
                session.sign_init(&mechanism, key).unwrap();
                session.sign_update(b"message").unwrap();
                assert_eq!(code(session.sign_final()), RvError::UserNotLoggedIn);
                // The operation waits for its login.
                let once = AuthPin::new(PIN.into());
                session
                    .login(UserType::ContextSpecific, Some(&once))
                    .unwrap();
                assert_eq!(session.sign_final().unwrap().len(), 64);
            }
        });
    }
}

/// Whether a program that wants the card for itself gets it now, as GnuPG's scdaemon does.
fn is_free() -> bool {
    use pcsc::{Context, Disposition, Error, Protocols, Scope, ShareMode};
    let context = Context::establish(Scope::User).unwrap();
    let readers = context.list_readers_owned().unwrap();
    let exclusive =
        |reader: &std::ffi::CString| context.connect(reader, ShareMode::Exclusive, Protocols::ANY);
    let outcomes: Vec<_> = readers.iter().map(exclusive).collect();
    assert!(outcomes.len() >= 2, "the reader and its empty twin");
    for outcome in outcomes {
        match outcome {
            Ok(card) => {
                card.disconnect(Disposition::LeaveCard)
                    .map_err(|(_, error)| error)
                    .unwrap();
                return true;
            }
            Err(Error::SharingViolation) => return false,
            Err(Error::NoSmartcard) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no reader holds a card");
}

#[test]
fn idle_card_is_released_after_a_second_and_later_while_a_user_is_logged_in() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        let module = process.module();
        let session = process.session(&module);
        session.find_objects(&[]).unwrap();
        // The last use of the card is after each of these times. The card is released a fixed time after the last use at the earliest.
        let freed = |begun: Instant| {
            eventually("a free card", is_free);
            begun.elapsed()
        };
        let begun = Instant::now();
        session.find_objects(&[]).unwrap();
        let alone = freed(begun);
        let begun = Instant::now();
        log_in(&session);
        let logged_in = freed(begun);
        println!("let go after {alone:?}, with a login after {logged_in:?}");
        assert!(logged_in >= LOGGED_IN, "a login is worth waiting longer");
        session
            .sign(&Mechanism::Ecdsa, key(&session, 1), &HASH)
            .unwrap();
        session.logout().unwrap();
        freed(Instant::now());
    });
}
