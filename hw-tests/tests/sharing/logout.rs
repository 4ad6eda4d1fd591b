//! A login ends at the card itself, so that no other program can use it: proved by one that tries.

use std::{thread, time::Duration};

use claviger_hw_tests::{
    ck, each_way,
    fixture::{
        function_list::Raw,
        module_process::{Stage, eventually, key, log_in},
        other_program::{DONE, Neighbour, authenticate_with_openpgp, sign_with_9a},
        piv_session::HASH,
        process::open_files,
        socket_reader::SELECT_PIV,
    },
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    session::Session,
};
use cryptoki_sys::{CK_SLOT_ID, CKR_OK};

/// The card wants its PIN.
const NOT_VERIFIED: [u8; 2] = [0x69, 0x82];
/// Longer than a connection nobody uses is kept, logged in or not.
const IDLE: Duration = Duration::from_secs(7);

each_way! {
    [Socket over_the_socket_reader, Pcscd over_pcscd]
    {
        c_logout_reaches_the_piv_applet: Plan::piv4();
        c_logout_reaches_the_openpgp_applet: Plan::pgp3();
        the_last_session_of_the_piv_applet_logs_out: Plan::piv4();
        the_last_session_of_the_openpgp_applet_logs_out: Plan::pgp3();
        c_close_all_sessions_logs_the_piv_applet_out: Plan::piv4();
        c_close_all_sessions_logs_the_openpgp_applet_out: Plan::pgp3();
        c_finalize_logs_the_piv_applet_out: Plan::piv4();
        c_finalize_logs_the_openpgp_applet_out: Plan::pgp3();
        c_finalize_logs_out_where_threads_are_forbidden: Plan::piv4();
        sessions_of_another_token_do_not_keep_a_login: Plan::both();
        an_idle_card_is_logged_out_all_the_same: Plan::piv4();
        an_idle_card_is_logged_out_by_c_finalize: Plan::piv4();
        an_idle_openpgp_card_is_logged_out_by_c_finalize: Plan::pgp3();
    }
}

/// A login on the card's only applet, and a neighbour who uses it.
struct Login {
    stage: Stage,
    module: Pkcs11,
    session: Session,
    id: u8,
    other: Neighbour,
    attempt: Vec<u8>,
    /// How often the card had got its power anew when the neighbour used it.
    powered: u64,
}

impl Login {
    fn new(stage: &Stage, id: u8, attempt: Vec<u8>) -> Self {
        Self::in_module(stage, stage.module(), id, attempt)
    }

    fn in_module(stage: &Stage, module: Pkcs11, id: u8, attempt: Vec<u8>) -> Self {
        let session = stage.session(&module);
        let mut login = Self {
            stage: stage.clone(),
            other: Neighbour::shared(),
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

    fn piv(stage: &Stage) -> Self {
        Self::new(stage, 1, sign_with_9a())
    }

    fn openpgp(stage: &Stage) -> Self {
        Self::new(stage, 3, authenticate_with_openpgp())
    }

    fn signs(&self) {
        let key = key(&self.session, self.id);
        let signature = self.session.sign(&Mechanism::Ecdsa, key, &HASH).unwrap();
        assert_eq!(signature.len(), 64);
    }

    /// The neighbour can use what our user has logged in to, which shows that the attempt is a good one.
    #[track_caller]
    fn is_open(&mut self) {
        let answer = self.other.transmit(&self.attempt);
        assert!(answer.ends_with(&DONE), "{answer:02X?}");
        self.powered = self.power_cycles();
    }

    fn power_cycles(&self) -> u64 {
        self.stage.count("resets") + self.stage.count("power_ups")
    }

    /// Waits until the module has let go of the card. Claims end with a file; elsewhere nothing tells.
    fn becomes_idle(&self) {
        match self.other {
            Neighbour::Usb(_) => eventually("an idle card", || {
                let files = open_files();
                !files.iter().any(|file| file.starts_with("/dev/bus/usb/"))
            }),
            _ => thread::sleep(IDLE),
        }
    }

    /// The neighbour cannot use it any more, and the card has not lost its power, which ends every login.
    #[track_caller]
    fn is_over(&mut self) {
        assert_eq!(self.other.transmit(&self.attempt), NOT_VERIFIED);
        assert_eq!(self.power_cycles(), self.powered, "a card without power");
    }

    fn slot(&self) -> CK_SLOT_ID {
        self.module.get_slots_with_token().unwrap()[0].id()
    }
}

fn c_logout_reaches_the_piv_applet(stage: &Stage) {
    c_logout(Login::piv(stage));
}

fn c_logout_reaches_the_openpgp_applet(stage: &Stage) {
    c_logout(Login::openpgp(stage));
}

fn c_logout(mut login: Login) {
    login.session.logout().unwrap();
    login.is_over();
    log_in(&login.session);
    login.signs();
    login.is_open();
}

fn the_last_session_of_the_piv_applet_logs_out(stage: &Stage) {
    last_session(stage, Login::piv(stage));
}

fn the_last_session_of_the_openpgp_applet_logs_out(stage: &Stage) {
    last_session(stage, Login::openpgp(stage));
}

fn last_session(stage: &Stage, mut login: Login) {
    let second = stage.session(&login.module);
    let third = stage.session(&login.module);
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

fn c_close_all_sessions_logs_the_piv_applet_out(stage: &Stage) {
    close_all_sessions(stage, Login::piv(stage));
}

fn c_close_all_sessions_logs_the_openpgp_applet_out(stage: &Stage) {
    close_all_sessions(stage, Login::openpgp(stage));
}

fn close_all_sessions(stage: &Stage, mut login: Login) {
    let _second = stage.session(&login.module);
    let closed = ck!(Raw::load(), C_CloseAllSessions, login.slot());
    assert_eq!(closed, CKR_OK);
    login.is_over();
}

fn c_finalize_logs_the_piv_applet_out(stage: &Stage) {
    finalize(Login::piv(stage));
}

fn c_finalize_logs_the_openpgp_applet_out(stage: &Stage) {
    finalize(Login::openpgp(stage));
}

fn c_finalize_logs_out_where_threads_are_forbidden(stage: &Stage) {
    let module = stage.load();
    let flags = CInitializeFlags::OS_LOCKING_OK | CInitializeFlags::LIBRARY_CANT_CREATE_OS_THREADS;
    module.initialize(CInitializeArgs::new(flags)).unwrap();
    finalize(Login::in_module(stage, module, 1, sign_with_9a()));
}

fn finalize(mut login: Login) {
    assert_eq!(Raw::load().finalize(), CKR_OK);
    login.is_over();
}

fn sessions_of_another_token_do_not_keep_a_login(stage: &Stage) {
    let mut login = Login::piv(stage);
    let openpgp = login.module.get_slots_with_token().unwrap()[1];
    let bystander = login.module.open_ro_session(openpgp).unwrap();
    bystander.find_objects(&[]).unwrap();
    let last = std::mem::replace(&mut login.session, bystander);
    assert!(login.other.transmit(&SELECT_PIV).ends_with(&DONE));
    login.is_open();
    last.close().unwrap();
    assert!(login.other.transmit(&SELECT_PIV).ends_with(&DONE));
    login.is_over();
}

/// Let go of while its user is logged in, the card stays verified as long as a neighbour keeps it under power.
fn an_idle_card_is_logged_out_all_the_same(stage: &Stage) {
    let mut login = Login::piv(stage);
    login.becomes_idle();
    login.is_open();
    login.session.logout().unwrap();
    login.is_over();
}

fn an_idle_card_is_logged_out_by_c_finalize(stage: &Stage) {
    finalize_when_idle(Login::piv(stage));
}

fn an_idle_openpgp_card_is_logged_out_by_c_finalize(stage: &Stage) {
    finalize_when_idle(Login::openpgp(stage));
}

fn finalize_when_idle(login: Login) {
    login.signs();
    login.becomes_idle();
    finalize(login);
}
