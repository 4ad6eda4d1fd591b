//! A logout ends the login at the card itself, so that no other program can use it. Another program tries.

use std::{thread, time::Duration};

use claviger_hw_tests::{
    ck,
    fixture::{
        function_list::FunctionList,
        module_process::{ModuleProcess, eventually, key, log_in},
        other_program::{DONE, OtherProgram, authenticate_with_openpgp, sign_with_9a},
        piv_session::HASH,
        process::open_files,
        socket_reader::SELECT_PIV,
    },
    for_each_service,
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    session::Session,
};
use cryptoki_sys::{CK_SLOT_ID, CKR_OK};

/// The card wants its PIN.
const NOT_VERIFIED: [u8; 2] = [0x69, 0x82];
/// Longer than an idle transport is kept, with or without a login.
const IDLE: Duration = Duration::from_secs(7);

for_each_service! {
    [Socket over_the_socket_reader, Pcscd over_pcscd]
    {
        c_logout_reaches_the_piv_applet: CardProfile::piv4();
        c_logout_reaches_the_openpgp_applet: CardProfile::pgp3();
        the_last_session_of_the_piv_applet_logs_out: CardProfile::piv4();
        the_last_session_of_the_openpgp_applet_logs_out: CardProfile::pgp3();
        c_close_all_sessions_logs_the_piv_applet_out: CardProfile::piv4();
        c_close_all_sessions_logs_the_openpgp_applet_out: CardProfile::pgp3();
        c_finalize_logs_the_piv_applet_out: CardProfile::piv4();
        c_finalize_logs_the_openpgp_applet_out: CardProfile::pgp3();
        c_finalize_logs_out_where_threads_are_forbidden: CardProfile::piv4();
        sessions_of_another_token_do_not_keep_a_login: CardProfile::both();
        an_idle_card_is_logged_out_all_the_same: CardProfile::piv4();
        an_idle_card_is_logged_out_by_c_finalize: CardProfile::piv4();
        an_idle_openpgp_card_is_logged_out_by_c_finalize: CardProfile::pgp3();
    }
}

/// A login on the card's only applet, and another program that uses it.
struct Login {
    process: ModuleProcess,
    module: Pkcs11,
    session: Session,
    id: u8,
    other: OtherProgram,
    attempt: Vec<u8>,
    /// The number of power-ups of the card when the other program used it.
    powered: u64,
}

impl Login {
    fn new(process: &ModuleProcess, id: u8, attempt: Vec<u8>) -> Self {
        Self::in_module(process, process.module(), id, attempt)
    }

    fn in_module(process: &ModuleProcess, module: Pkcs11, id: u8, attempt: Vec<u8>) -> Self {
        let session = process.session(&module);
        let mut login = Self {
            process: process.clone(),
            other: OtherProgram::shared(),
            module,
            session,
            id,
            attempt,
            powered: 0,
        };
        log_in(&login.session);
        login.signs();
        login.is_open();
        login
    }

    fn piv(process: &ModuleProcess) -> Self {
        Self::new(process, 1, sign_with_9a())
    }

    fn openpgp(process: &ModuleProcess) -> Self {
        Self::new(process, 3, authenticate_with_openpgp())
    }

    fn signs(&self) {
        let key = key(&self.session, self.id);
        let signature = self.session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap();
        assert_eq!(signature.len(), 64);
    }

    /// Checks that the other program can use our user's login, so that a later failure is significant.
    #[track_caller]
    fn is_open(&mut self) {
        let answer = self.other.transmit(&self.attempt);
        assert!(answer.ends_with(&DONE), "{answer:02X?}");
        self.powered = self.power_cycles();
    }

    fn power_cycles(&self) -> u64 {
        self.process.count("resets") + self.process.count("power_ups")
    }

    /// Waits until the module has released the card. On the USB, the device node is then closed. Elsewhere
    /// this waits for a fixed time.
    fn becomes_idle(&self) {
        match self.other {
            OtherProgram::Usb(_) => eventually("an idle card", || {
                let files = open_files();
                !files.iter().any(|file| file.starts_with("/dev/bus/usb/"))
            }),
            _ => thread::sleep(IDLE),
        }
    }

    /// Checks that the other program cannot use the login any more, although the card has not lost its power.
    #[track_caller]
    fn is_closed(&mut self) {
        assert_eq!(self.other.transmit(&self.attempt), NOT_VERIFIED);
        assert_eq!(self.power_cycles(), self.powered, "a card without power");
    }

    fn slot(&self) -> CK_SLOT_ID {
        self.module.get_slots_with_token().unwrap()[0].id()
    }
}

fn c_logout_reaches_the_piv_applet(process: &ModuleProcess) {
    c_logout(Login::piv(process));
}

fn c_logout_reaches_the_openpgp_applet(process: &ModuleProcess) {
    c_logout(Login::openpgp(process));
}

fn c_logout(mut login: Login) {
    login.session.logout().unwrap();
    login.is_closed();
    log_in(&login.session);
    login.signs();
    login.is_open();
}

fn the_last_session_of_the_piv_applet_logs_out(process: &ModuleProcess) {
    last_session(process, Login::piv(process));
}

fn the_last_session_of_the_openpgp_applet_logs_out(process: &ModuleProcess) {
    last_session(process, Login::openpgp(process));
}

fn last_session(process: &ModuleProcess, mut login: Login) {
    let second = process.session(&login.module);
    let third = process.session(&login.module);
    std::mem::replace(&mut login.session, second)
        .close()
        .unwrap();
    login.is_open();
    login.signs();
    third.close().unwrap();
    login.is_open();
    login.signs();
    let Login {
        session,
        mut other,
        attempt,
        ..
    } = login;
    session.close().unwrap();
    assert_eq!(other.transmit(&attempt), NOT_VERIFIED);
}

fn c_close_all_sessions_logs_the_piv_applet_out(process: &ModuleProcess) {
    close_all_sessions(process, Login::piv(process));
}

fn c_close_all_sessions_logs_the_openpgp_applet_out(process: &ModuleProcess) {
    close_all_sessions(process, Login::openpgp(process));
}

fn close_all_sessions(process: &ModuleProcess, mut login: Login) {
    let _second = process.session(&login.module);
    let closed = ck!(FunctionList::load(), C_CloseAllSessions, login.slot());
    assert_eq!(closed, CKR_OK);
    login.is_closed();
}

fn c_finalize_logs_the_piv_applet_out(process: &ModuleProcess) {
    finalize(Login::piv(process));
}

fn c_finalize_logs_the_openpgp_applet_out(process: &ModuleProcess) {
    finalize(Login::openpgp(process));
}

fn c_finalize_logs_out_where_threads_are_forbidden(process: &ModuleProcess) {
    let module = process.load();
    let flags = CInitializeFlags::OS_LOCKING_OK | CInitializeFlags::LIBRARY_CANT_CREATE_OS_THREADS;
    module.initialize(CInitializeArgs::new(flags)).unwrap();
    finalize(Login::in_module(process, module, 1, sign_with_9a()));
}

fn finalize(mut login: Login) {
    assert_eq!(FunctionList::load().finalize(), CKR_OK);
    login.is_closed();
}

fn sessions_of_another_token_do_not_keep_a_login(process: &ModuleProcess) {
    let mut login = Login::piv(process);
    let openpgp = login.module.get_slots_with_token().unwrap()[1];
    let bystander = login.module.open_ro_session(openpgp).unwrap();
    bystander.find_objects(&[]).unwrap();
    let last = std::mem::replace(&mut login.session, bystander);
    assert!(login.other.transmit(&SELECT_PIV).ends_with(&DONE));
    login.is_open();
    last.close().unwrap();
    assert!(login.other.transmit(&SELECT_PIV).ends_with(&DONE));
    login.is_closed();
}

/// A card that is released while its user is logged in keeps the login as long as another program keeps it powered.
fn an_idle_card_is_logged_out_all_the_same(process: &ModuleProcess) {
    let mut login = Login::piv(process);
    login.becomes_idle();
    login.is_open();
    login.session.logout().unwrap();
    login.is_closed();
}

fn an_idle_card_is_logged_out_by_c_finalize(process: &ModuleProcess) {
    finalize_when_idle(Login::piv(process));
}

fn an_idle_openpgp_card_is_logged_out_by_c_finalize(process: &ModuleProcess) {
    finalize_when_idle(Login::openpgp(process));
}

fn finalize_when_idle(login: Login) {
    login.signs();
    login.becomes_idle();
    finalize(login);
}
