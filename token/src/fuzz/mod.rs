//! Fuzz target: a whole session with a card that responds with arbitrary bytes. The parsers' fuzz targets are in the
//! parsers' own files.

mod administration;
mod script;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use claviger_apdu::Secret;
use cryptoki_sys::{CK_MECHANISM_TYPE, CKF_SIGN, CKM_ECDSA, CKM_EDDSA, CKM_RSA_PKCS};

pub use self::administration::{Administered, administration};
use self::script::ScriptedCard;
use crate::{
    Card, Object, Parameter, SignOperation, Template, Token, TokenError, algorithm::KeyAlgorithm,
    operation::mechanism_for,
};

/// The successful steps of a session.
#[derive(Debug, Default)]
pub struct SessionSummary {
    /// Applets found.
    pub tokens: usize,
    /// Objects that the logged-in user sees.
    pub objects: usize,
    /// Successful logins.
    pub logins: u32,
    /// Signatures made.
    pub signatures: u32,
}

/// Finds the tokens of a card, lists their objects, logs in, signs with every key, logs out and lists again.
///
/// The card responds by rules. The search for a rule begins after the rule used last. A frame without a rule gets 6A82.
///
/// ```text
/// | length | ATR | then, to the end: | length | pattern | length, 2 bytes | response |
/// pattern: beginning of the frame after CLA; 00, which begins no frame, stands for the beginning of a transaction
/// length FF01 to FF04: no response, but an error: reset, busy, removed, timeout
/// ```
///
/// Asserts, whatever the card responds: the session ends, no PIN costs more than one try or reaches an applet that is
/// not confirmed to be selected, and no signature uses its key twice.
pub fn card(bytes: &[u8]) -> SessionSummary {
    let ledger = Arc::new(CardLedger::default());
    let Some(script) = ScriptedCard::read(bytes, Arc::clone(&ledger)) else {
        return SessionSummary::default();
    };
    let mut session = Session {
        card: Card::new(Box::new(script)),
        ledger,
        reached: SessionSummary::default(),
    };
    let tokens = Token::discover(&mut session.card).unwrap_or_default();
    session.reached.tokens = tokens.len();
    for mut token in tokens {
        session.use_token(&mut token);
    }
    session.reached
}

/// The PINs that the user entered, and the commands that reached the card.
#[derive(Debug, Default)]
struct CardLedger {
    /// PINs that the user entered.
    pins: AtomicU32,
    /// PINs that the card refused, or may have refused.
    tries: AtomicU32,
    /// Private-key commands that the card executed, or may have executed.
    uses: AtomicU32,
}

struct Session {
    card: Card,
    ledger: Arc<CardLedger>,
    reached: SessionSummary,
}

impl Session {
    /// Uses the token as applications do: an operation that the card refuses is left out.
    fn use_token(&mut self, token: &mut Token) {
        let serial = token.info().serial;
        assert!((1..=16).contains(&serial.len()), "{serial}");
        let public = self.find(token);
        assert!(public.iter().all(|object| !object.is_private()));
        self.log_in(token);
        let objects = self.find(token);
        self.reached.objects += objects.len();
        for object in &objects {
            object.values().for_each(|value| drop(value.encode()));
            let _ = self.sign(token, object);
        }
        let _ = token.mechanisms();
        let _ = token.logout(&mut self.card);
        token.forget_objects();
        self.find(token);
    }

    fn find(&mut self, token: &mut Token) -> Vec<Arc<Object>> {
        let all = Template::default();
        let Ok(found) = token.find(&mut self.card, &all) else {
            return Vec::new();
        };
        let known = token.find_loaded(&all);
        assert_eq!(
            known.as_ref(),
            Some(&found),
            "cached objects match what was read"
        );
        found
    }

    fn log_in(&mut self, token: &mut Token) {
        let pin = self.pin();
        let login = token.login(&mut self.card, &pin);
        self.assert_tries();
        self.reached.logins += u32::from(login.is_ok());
    }

    fn sign(&mut self, token: &mut Token, object: &Object) -> Result<(), TokenError> {
        let Some(key) = object.private_key() else {
            return Ok(());
        };
        let (mechanism, message) = sample_of(key.algorithm);
        let mechanism = mechanism_for(mechanism, CKF_SIGN)?;
        let mut operation = SignOperation::new(mechanism, &Parameter::None, object, false)?;
        operation.update(&message)?;
        if operation.lacks_context_login() {
            let pin = self.pin();
            let login = token.context_login(&mut self.card, key, &pin);
            self.assert_tries();
            login?;
            operation.context_pin = Some(pin);
        }
        let before = self.ledger.uses.load(Ordering::Relaxed);
        let signature = token.sign(&mut self.card, &mut operation);
        let uses = self.ledger.uses.load(Ordering::Relaxed) - before;
        assert!(
            uses <= 1,
            "one signature uses the key once, not {uses} times"
        );
        self.assert_tries();
        assert_eq!(signature?.len(), operation.signature_len());
        self.reached.signatures += 1;
        Ok(())
    }

    fn pin(&self) -> Secret {
        self.ledger.pins.fetch_add(1, Ordering::Relaxed);
        Secret::copy_from(b"123456")
    }

    fn assert_tries(&self) {
        let pins = self.ledger.pins.load(Ordering::Relaxed);
        let tries = self.ledger.tries.load(Ordering::Relaxed);
        assert!(tries <= pins, "{tries} tries for {pins} PINs of the user");
    }
}

/// Returns a mechanism for a key, and a message to sign.
fn sample_of(algorithm: KeyAlgorithm) -> (CK_MECHANISM_TYPE, Vec<u8>) {
    match algorithm {
        KeyAlgorithm::Rsa { .. } => (CKM_RSA_PKCS, vec![0x5A; 51]),
        KeyAlgorithm::Ec(_) => (CKM_ECDSA, vec![0x5A; 32]),
        KeyAlgorithm::Ed25519 | KeyAlgorithm::X25519 => (CKM_EDDSA, vec![0x5A; 300]),
    }
}
