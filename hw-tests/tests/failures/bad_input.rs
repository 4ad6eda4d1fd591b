//! Wrong PINs, missing services, bad configurations: the module returns the right code, logs one line with cause and remedy,
//! does not hang, and wastes no PIN try.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    card::{CardConfig, State, VirtualCard},
    client,
    fixture::{
        card_fixture::CardFixture,
        module_process::{
            HANG, Log, ModuleProcess, ServiceKind, code, in_module_process, key, log_in, with_card,
        },
    },
    paths,
    provision::{CardProfile, PIN},
    reader::{FrameFault, Reader},
    server::SocketServer,
};
use cryptoki::{
    context::Pkcs11,
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};

const BOTH_SERVICES: [ServiceKind; 2] = [ServiceKind::Socket, ServiceKind::Pcscd];
const HASH: [u8; 32] = [0x5A; 32];

fn login(session: &Session, pin: &str) -> cryptoki::error::Result<()> {
    session.login(UserType::User, Some(&AuthPin::new(pin.into())))
}

fn is_verify(frame: &[u8]) -> bool {
    frame.get(1) == Some(&0x20) && frame.len() > 5
}

fn is_sign(frame: &[u8]) -> bool {
    frame.get(1) == Some(&0x87)
}

/// Runs `pkcs11-tool -L` with this environment and no configuration file. Returns the output, which contains the log.
fn list_with(environment: &[(&str, &str)]) -> client::Output {
    let mut command = Command::new("pkcs11-tool");
    command
        .arg("--module")
        .arg(paths::module_path())
        .arg("-L")
        .env("CLAVIGER_CONFIG", "/dev/null");
    command.envs(environment.iter().copied());
    client::run(&mut command, Duration::from_secs(20))
}

#[test]
fn a_missing_pcscd_is_named_and_initialize_succeeds() {
    let output = list_with(&[("PCSCLITE_CSOCK_NAME", "/nonexistent/pcscd.comm")]);
    // pkcs11-tool calls an empty list a failure; C_Initialize and C_GetSlotList were none.
    assert!(output.stderr.contains("No slots"), "{output}");
    Log(output.stderr).line(&["claviger", "pcscd"]);
}

#[test]
fn a_missing_socket_is_named_and_initialize_succeeds() {
    let output = list_with(&[
        ("CLAVIGER_TRANSPORTS", "socket"),
        ("CLAVIGER_SOCKET", "/nonexistent/reader"),
    ]);
    assert!(output.stderr.contains("No slots"), "{output}");
    Log(output.stderr).line(&["claviger", "/nonexistent/reader"]);
}

#[test]
fn a_reader_without_a_card_has_empty_slots() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::factory(), |process| {
            let module = process.module();
            // Cards that are present at the first query raise no event. Later changes do.
            assert_eq!(module.get_slots_with_token().unwrap().len(), 2);
            process.send_command("remove");
            // The slot of each applet has one event.
            module.wait_for_slot_event().unwrap();
            module.wait_for_slot_event().unwrap();
            assert!(module.get_slots_with_token().unwrap().is_empty());
            let slots = module.get_all_slots().unwrap();
            assert!(slots.len() >= 2);
            for slot in slots {
                assert!(!module.get_slot_info(slot).unwrap().token_present());
                assert_eq!(code(module.get_token_info(slot)), RvError::TokenNotPresent);
                assert_eq!(code(module.open_ro_session(slot)), RvError::TokenNotPresent);
            }
        });
    }
}

#[test]
fn an_unknown_card_costs_two_selects_and_is_not_recognised() {
    let unknown = CardProfile {
        piv: None,
        ..CardProfile::piv4()
    };
    for service in BOTH_SERVICES {
        with_card(service, unknown.clone(), |process| {
            let module = process.module();
            let (apdus, ()) = process.apdus(|| {
                for _ in 0..3 {
                    assert_eq!(module.get_slots_with_token().unwrap().len(), 1);
                }
                let slots = module.get_all_slots().unwrap();
                assert_eq!(
                    code(module.get_token_info(slots[0])),
                    RvError::TokenNotRecognized
                );
                assert_eq!(
                    code(module.get_token_info(slots[1])),
                    RvError::TokenNotPresent
                );
                assert_eq!(
                    code(module.open_ro_session(slots[0])),
                    RvError::TokenNotRecognized
                );
            });
            assert_eq!(apdus, 2, "remembered until it is pulled");
        });
    }
}

#[test]
fn removal_during_sign_reports_device_removed() {
    for service in BOTH_SERVICES {
        let pull = |fixture: &CardFixture, _: &mut Command| {
            fixture.card().on_frame(|frame| {
                if is_sign(frame) {
                    FrameFault::Pull
                } else {
                    FrameFault::Answer
                }
            });
        };
        let log = in_module_process(service, CardProfile::piv4(), pull, |process| {
            let module = process.module();
            let session = process.session(&module);
            log_in(&session);
            let key = key(&session, 1);
            let started = Instant::now();
            let failed = code(session.sign(&Mechanism::Ecdsa, key, &HASH));
            assert!(started.elapsed() < HANG);
            if service == ServiceKind::Socket {
                assert_eq!(failed, RvError::DeviceRemoved);
            } else {
                // pcscd learns of the removal from its own polling; until then it reports a failed transfer.
                assert!(
                    matches!(failed, RvError::DeviceRemoved | RvError::DeviceError),
                    "{failed:?}"
                );
            }
            module.wait_for_slot_event().unwrap();
            assert_eq!(
                code(session.get_session_info()),
                RvError::SessionHandleInvalid
            );
            assert_eq!(
                code(session.find_objects(&[])),
                RvError::SessionHandleInvalid
            );
        });
        if let Some(log) = log {
            log.line(&["C_Sign"]);
        }
    }
}

#[test]
fn a_card_that_comes_back_needs_new_sessions_and_works() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            let module = process.module();
            let session = process.session(&module);
            log_in(&session);
            for action in ["remove", "insert"] {
                process.send_command(action);
                module.wait_for_slot_event().unwrap();
                module.wait_for_slot_event().unwrap();
            }
            assert_eq!(
                code(session.get_session_info()),
                RvError::SessionHandleInvalid
            );
            let session = process.session(&module);
            let public = session
                .find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])
                .unwrap();
            assert_eq!(
                public.len(),
                1,
                "the login is gone; only the card authentication key needs none"
            );
            log_in(&session);
            assert_eq!(
                session
                    .sign(&Mechanism::Ecdsa, key(&session, 1), &HASH)
                    .unwrap()
                    .len(),
                64
            );
        });
    }
}

/// Wrong PINs on the first token until it is blocked.
fn block(process: &ModuleProcess) {
    let module = process.module();
    let session = process.session(&module);
    let slot = *module.get_slots_with_token().unwrap().first().unwrap();
    for left in [2, 1] {
        assert_eq!(code(login(&session, "999999")), RvError::PinIncorrect);
        let (apdus, info) = process.apdus(|| module.get_token_info(slot).unwrap());
        assert_eq!(apdus, 0, "the flags are known without asking");
        assert!(info.user_pin_count_low());
        assert_eq!(info.user_pin_final_try(), left == 1);
        assert!(!info.user_pin_locked());
    }
    let last = code(login(&session, "999999"));
    assert!(
        matches!(last, RvError::PinIncorrect | RvError::PinLocked),
        "{last:?}"
    );
    assert!(module.get_token_info(slot).unwrap().user_pin_locked());
    assert_eq!(code(login(&session, PIN)), RvError::PinLocked);
}

#[test]
fn wrong_pin_costs_one_try_and_the_token_flags_show_it() {
    let log = in_module_process(ServiceKind::Socket, CardProfile::piv4(), |_, _| {}, block);
    if let Some(log) = log {
        log.line(&["C_Login", "wrong PIN", "2 tries left"]);
        log.line(&["C_Login", "blocked"]);
    }
}

#[test]
fn a_wrong_pin_costs_one_try_on_openpgp_too() {
    let log = in_module_process(ServiceKind::Socket, CardProfile::pgp3(), |_, _| {}, block);
    if let Some(log) = log {
        log.line(&["C_Login", "wrong PIN", "2 tries left"]);
        log.line(&["C_Login", "blocked"]);
    }
}

/// PINs no card can have: the card must not see them.
fn impossible_pins(process: &ModuleProcess) {
    let module = process.module();
    let session = process.session(&module);
    let long = "1".repeat(200);
    for pin in ["", "1", "12345", long.as_str()] {
        let (apdus, failed) = process.apdus(|| code(login(&session, pin)));
        assert_eq!(failed, RvError::PinIncorrect);
        assert_eq!(apdus, 0, "a PIN of {} bytes was sent", pin.len());
    }
    log_in(&session);
}

#[test]
fn a_pin_of_impossible_length_is_refused_before_the_card() {
    let log = in_module_process(
        ServiceKind::Socket,
        CardProfile::piv4(),
        |_, _| {},
        impossible_pins,
    );
    if let Some(log) = log {
        log.line(&["C_Login", "5 bytes", "6 to 8", "no try was spent"]);
    }
}

#[test]
fn a_pin_of_impossible_length_is_refused_before_the_openpgp_card() {
    let _ = in_module_process(
        ServiceKind::Socket,
        CardProfile::pgp3(),
        |_, _| {},
        impossible_pins,
    );
}

#[test]
fn one_garbled_certificate_does_not_hide_the_others() {
    // GET DATA of 5FC105, the certificate of 9A: a length that runs past the end.
    let forge = |fixture: &CardFixture, _: &mut Command| {
        fixture.card().on_frame(|frame| {
            if frame.windows(3).any(|tag| tag == [0x5F, 0xC1, 0x05]) {
                FrameFault::Forge(vec![0x53, 0x82, 0xFF, 0xFF, 0x70, 0x84, 0x90, 0x00])
            } else {
                FrameFault::Answer
            }
        });
    };
    let log = in_module_process(ServiceKind::Socket, CardProfile::piv4(), forge, |process| {
        let module = process.module();
        let session = process.session(&module);
        let certificates = session
            .find_objects(&[Attribute::Class(ObjectClass::CERTIFICATE)])
            .unwrap();
        let ids: Vec<Vec<u8>> = certificates
            .iter()
            .map(|object| id(&session, *object))
            .collect();
        assert_eq!(ids, [vec![2], vec![3], vec![4]]);
    });
    if let Some(log) = log {
        log.line(&["PIV Authentication", "left out"]);
    }
}

fn id(session: &Session, object: ObjectHandle) -> Vec<u8> {
    match session
        .get_attributes(object, &[AttributeType::Id])
        .unwrap()
        .pop()
    {
        Some(Attribute::Id(id)) => id,
        other => panic!("no CKA_ID: {other:?}"),
    }
}

#[test]
fn call_to_a_silent_card_ends_and_the_next_call_reconnects() {
    let silence = |fixture: &CardFixture, _: &mut Command| {
        fixture.card().on_frame(|frame| {
            if is_verify(frame) {
                FrameFault::Silence
            } else {
                FrameFault::Answer
            }
        });
    };
    let _ = in_module_process(
        ServiceKind::Socket,
        CardProfile::piv4(),
        silence,
        |process| {
            let module = process.module();
            let session = process.session(&module);
            let started = Instant::now();
            assert_eq!(code(login(&session, PIN)), RvError::DeviceError);
            let took = started.elapsed();
            assert!(took < HANG, "{took:?}");
            // Another conversation gets a new connection.
            assert_eq!(
                session
                    .find_objects(&[Attribute::Class(ObjectClass::CERTIFICATE)])
                    .unwrap()
                    .len(),
                4
            );
            module.finalize().unwrap();
        },
    );
}

#[test]
fn card_with_a_garbled_atr_is_not_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("reader");
    let card = VirtualCard::power_up(CardConfig {
        atr: vec![0xFF, 0x00, 0x13],
        state: State::Fresh,
        ..CardConfig::default()
    });
    let reader = Reader::new("A reader with something in it", card.unwrap());
    let _server = SocketServer::start(&socket, &reader).unwrap();
    let output = list_with(&[
        ("CLAVIGER_TRANSPORTS", "socket"),
        ("CLAVIGER_SOCKET", socket.to_str().unwrap()),
    ]);
    assert!(output.success(), "{output}");
    assert_eq!(
        reader.counts().apdus,
        0,
        "nothing is sent to a card that did not answer"
    );
    assert!(output.stdout.contains("token not recognized"), "{output}");
}

/// Everything a session does, at the highest level of the log.
fn sign_once(module: &Pkcs11, process: &ModuleProcess) {
    let session = process.session(module);
    assert_eq!(code(login(&session, "654321")), RvError::PinIncorrect);
    log_in(&session);
    session
        .sign(&Mechanism::Ecdsa, key(&session, 1), &HASH)
        .unwrap();
    session.logout().unwrap();
}

#[test]
fn no_pin_is_in_the_log_at_any_level() {
    for service in BOTH_SERVICES {
        let trace = |_: &CardFixture, command: &mut Command| {
            command.env("CLAVIGER_LOG", "trace");
        };
        let log = in_module_process(service, CardProfile::piv4(), trace, |process| {
            sign_once(&process.module(), process);
        });
        let Some(log) = log else { continue };
        log.line(&["TRACE", "> 00 20 00 80"]);
        let squeezed = log.0.replace(' ', "").to_lowercase();
        for pin in [PIN, "654321"] {
            let hex: String = pin.bytes().map(|byte| format!("{byte:02x}")).collect();
            let decimal: Vec<String> = pin.bytes().map(|byte| byte.to_string()).collect();
            for form in [pin.to_owned(), hex, decimal.join(",")] {
                assert!(
                    !squeezed.contains(&form),
                    "{form} is in the log:\n{}",
                    log.0
                );
            }
        }
    }
}

#[test]
fn logout_reaches_the_card() {
    for service in BOTH_SERVICES {
        with_card(service, CardProfile::piv4(), |process| {
            let module = process.module();
            let session = process.session(&module);
            log_in(&session);
            let key = key(&session, 1);
            session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap();
            let (apdus, ()) = process.apdus(|| session.logout().unwrap());
            assert!(apdus >= 1, "the card gets a command");
            assert_eq!(
                code(session.sign(&Mechanism::Ecdsa, key, &HASH)),
                RvError::KeyHandleInvalid
            );
            log_in(&session);
            let (apdus, ()) = process.apdus(|| drop(session));
            assert!(apdus >= 1, "closing the last session logs out too");
        });
    }
}
