//! Fuzz target: a security officer's session with a card that responds with arbitrary bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use claviger_apdu::Secret;

use super::{CardLedger, script::ScriptedCard};
use crate::{
    Card, Template, Token, TokenError,
    algorithm::{Curve, KeyAlgorithm},
};

/// The successful steps of an administration.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Administered {
    /// Successful logins of the security officer.
    pub logins: u32,
    /// Keys generated.
    pub keys: u32,
    /// Objects written or removed.
    pub written: u32,
    /// PINs changed or set.
    pub pins: u32,
}

/// SO PINs to try: the PUK or the admin PIN, and a management key.
const SO_PINS: [&[u8]; 2] = [b"12345678", b"000102030405060708090A0B0C0D0E0F"];

/// Logs the SO in with each SO PIN, generates keys, writes objects, changes PINs and asks for random numbers. The card
/// is the one of [`super::card`].
///
/// Asserts, whatever the card responds: the session ends, no PIN costs more than one try, and PINs and writes reach
/// only an applet that is confirmed to be selected.
pub fn administration(bytes: &[u8]) -> Administered {
    let ledger = Arc::new(CardLedger::default());
    let Some(script) = ScriptedCard::read(bytes, Arc::clone(&ledger)) else {
        return Administered::default();
    };
    let mut session = Session {
        card: Card::new(Box::new(script)),
        ledger,
        done: Administered::default(),
    };
    for mut token in Token::discover(&mut session.card).unwrap_or_default() {
        for so in SO_PINS {
            session.administer(&mut token, so);
        }
        session.change_pin(&mut token);
        let _ = token.find(&mut session.card, &Template::default());
    }
    session.done
}

struct Session {
    card: Card,
    ledger: Arc<CardLedger>,
    done: Administered,
}

impl Session {
    fn administer(&mut self, token: &mut Token, so: &[u8]) {
        let so = self.pin(so);
        let login = token.so_login(&mut self.card, &so);
        self.assert_tries();
        assert_eq!(login.is_ok(), token.is_so_logged_in());
        self.done.logins += u32::from(login.is_ok());
        for id in [1, 2, 5] {
            if let Some(reference) = token.key_reference_of(&[id]) {
                self.fill(token, reference);
            }
        }
        let number = token
            .writable_data_objects()
            .first()
            .map_or(0, |(number, _)| *number);
        let put = token.put_data(&mut self.card, number, Some(b"data"));
        self.wrote(&put);
        let new = self.pin(b"654321");
        let init = token.init_pin(&mut self.card, &new);
        self.changed(&init);
        let (old, new) = (self.pin(so.expose()), self.pin(b"87654321"));
        let set = token.set_pin(&mut self.card, &old, &new);
        self.changed(&set);
        if let Ok(Some(random)) = token.random(&mut self.card, 40) {
            assert_eq!(random.len(), 40);
        }
        let _ = token.logout(&mut self.card);
        assert!(!token.is_so_logged_in() && !token.is_logged_in());
    }

    fn fill(&mut self, token: &mut Token, reference: u8) {
        for algorithm in [
            KeyAlgorithm::Ec(Curve::P256),
            KeyAlgorithm::Rsa { bits: 2048 },
        ] {
            let created = SystemTime::UNIX_EPOCH;
            let made = token.generate_key(&mut self.card, reference, algorithm, created);
            if let Ok(public) = made {
                assert_eq!(public.algorithm(), algorithm);
                self.done.keys += 1;
            }
            self.assert_tries();
        }
        for der in [Some(&[0x30; 300][..]), None] {
            let put = token.put_certificate(&mut self.card, reference, der);
            self.wrote(&put);
        }
    }

    fn change_pin(&mut self, token: &mut Token) {
        for pin in [b"123456", b"654321"] {
            let (old, new) = (self.pin(pin), self.pin(b"654321"));
            let set = token.set_pin(&mut self.card, &old, &new);
            self.changed(&set);
            let pin = self.pin(b"654321");
            let _ = token.login(&mut self.card, &pin);
            self.assert_tries();
        }
    }

    fn wrote(&mut self, written: &Result<(), TokenError>) {
        self.done.written += u32::from(written.is_ok());
        self.assert_tries();
    }

    fn changed(&mut self, changed: &Result<(), TokenError>) {
        self.done.pins += u32::from(changed.is_ok());
        self.assert_tries();
    }

    fn pin(&self, pin: &[u8]) -> Secret {
        self.ledger.pins.fetch_add(1, Ordering::Relaxed);
        Secret::copy_from(pin)
    }

    fn assert_tries(&self) {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let (tries, pins) = (read(&self.ledger.tries), read(&self.ledger.pins));
        assert!(tries <= pins, "{tries} tries for {pins} PINs given");
    }
}
