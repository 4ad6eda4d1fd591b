//! A security officer's session with a card of arbitrary bytes.

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

/// How far a session of administration came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Administered {
    /// Successful logins of the security officer.
    pub logins: u32,
    /// Keys made.
    pub keys: u32,
    /// Objects written or removed.
    pub written: u32,
    /// PINs changed or given.
    pub pins: u32,
}

/// What a security officer may be known by: the PUK or the admin PIN, or a management key.
const SO_PINS: [&[u8]; 2] = [b"12345678", b"000102030405060708090A0B0C0D0E0F"];

/// Logs the security officer in with each secret, makes keys, writes objects, changes PINs and asks for random
/// numbers; the card is that of [`super::card`].
///
/// Whatever it answers, the session ends, no PIN costs more than one try or reaches an applet that is not proved, and
/// nothing is written to one.
pub fn administration(bytes: &[u8]) -> Administered {
    let conduct = Arc::new(CardLedger::default());
    let Some(script) = ScriptedCard::read(bytes, Arc::clone(&conduct)) else {
        return Administered::default();
    };
    let mut session = Session {
        card: Card::new(Box::new(script)),
        conduct,
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
    conduct: Arc<CardLedger>,
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
            if let Some(reference) = token.place_of(&[id]) {
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
        self.conduct.pins.fetch_add(1, Ordering::Relaxed);
        Secret::copy_from(pin)
    }

    fn assert_tries(&self) {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let (tries, pins) = (read(&self.conduct.tries), read(&self.conduct.pins));
        assert!(tries <= pins, "{tries} tries for {pins} PINs given");
    }
}
