//! A login ends at the card itself, so that no other program can use it: proved by one that tries.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::macro_metavars_in_unsafe,
    reason = "a test fails loudly"
)]

mod bench;
mod neighbour;
mod stage;

use std::{thread, time::Duration};

use bench::SELECT_PIV;
use cryptoki::{context::Pkcs11, mechanism::Mechanism, session::Session};
use cryptoki_sys::{CK_SLOT_ID, CKR_OK};
use neighbour::{DONE, Neighbour, authenticate_with_openpgp, sign_with_9a};
use stage::{Stage, key, log_in, piv_session::HASH, raw::Raw};

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
        sessions_of_another_token_do_not_keep_a_login: Plan::both();
        an_idle_card_is_logged_out_all_the_same: Plan::piv4();
        an_idle_card_is_logged_out_at_the_end: Plan::piv4();
    }
}

/// A login on the card's only applet, and a neighbour who uses it.
struct Login {
    module: Pkcs11,
    session: Session,
    id: u8,
    other: Neighbour,
    attempt: Vec<u8>,
}

impl Login {
    fn new(stage: &Stage, id: u8, attempt: Vec<u8>) -> Self {
        let module = stage.module();
        let session = stage.session(&module);
        let mut login = Self {
            other: Neighbour::shared(),
            module,
            session,
            id,
            attempt,
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
    }

    #[track_caller]
    fn is_over(&mut self) {
        assert_eq!(self.other.transmit(&self.attempt), NOT_VERIFIED);
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
    thread::sleep(IDLE);
    login.is_open();
    login.session.logout().unwrap();
    login.is_over();
}

fn an_idle_card_is_logged_out_at_the_end(stage: &Stage) {
    let login = Login::piv(stage);
    thread::sleep(IDLE);
    finalize(login);
}
