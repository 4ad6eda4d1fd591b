//! A session on the PIV token of a card with four keys, and what it must still do after whatever has happened.

use cryptoki::{
    context::Pkcs11,
    error::{Result, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
    session::{Session, UserType},
    slot::Slot,
};

use super::{Stage, code, key, log_in, pin, promptly};

/// INS of VERIFY, with which a PIN is sent and a user logged out.
pub const VERIFY: u8 = 0x20;
/// INS of GENERAL AUTHENTICATE, with which PIV signs.
pub const SIGN: u8 = 0x87;
/// INS of GET DATA, with which objects are read.
pub const GET_DATA: u8 = 0xCB;
/// What is signed.
pub const HASH: [u8; 32] = [0x3C; 32];
/// What a call may answer whose card cannot be reached.
pub const UNREACHABLE: [RvError; 2] = [RvError::DeviceError, RvError::DeviceRemoved];

/// See above. The user is logged in.
pub struct PivSession<'a> {
    stage: &'a Stage,
    pub module: Pkcs11,
    pub session: Session,
    slots: Vec<Slot>,
    /// 9A: the login is enough.
    once: ObjectHandle,
    /// 9C: wants the PIN for each signature.
    always: ObjectHandle,
}

impl<'a> PivSession<'a> {
    /// Logs in, and has signed once.
    pub fn new(stage: &'a Stage) -> Self {
        let module = stage.module();
        let session = stage.session(&module);
        Self::of(stage, module, session)
    }

    /// Logs `session` in, and has signed once.
    pub fn of(stage: &'a Stage, module: Pkcs11, session: Session) -> Self {
        log_in(&session);
        let signer = Self {
            stage,
            slots: module.get_all_slots().expect("C_GetSlotList"),
            once: key(&session, 1),
            always: key(&session, 2),
            module,
            session,
        };
        assert_eq!(signer.sign().expect("C_Sign").len(), 64);
        signer
    }

    /// A signature that needs a login and no more.
    pub fn sign(&self) -> Result<Vec<u8>> {
        self.session.sign(&Mechanism::Ecdsa, self.once, &HASH)
    }

    /// The same session signs, and the slots are what they were. The PIN it was logged in with is sent again once at
    /// most; the key that wants it each time does not get it that way.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.stage.pins();
        let signature = promptly("the next signature", || self.sign());
        assert_eq!(signature.expect("the same session signs").len(), 64);
        let silent = self.stage.pins() - before;
        println!("silent verifications: {silent}");
        assert!(silent <= 1, "the PIN was sent {silent} times");
        assert_eq!(self.sign().expect("C_Sign").len(), 64);
        assert_eq!(self.stage.pins(), before + silent, "once is enough");
        self.asks_for_each_pin();
        assert_eq!(self.module.get_all_slots().unwrap(), self.slots);
    }

    /// The key that wants the PIN each time gets it from the user and from nowhere else.
    #[track_caller]
    pub fn asks_for_each_pin(&self) {
        asks_for_each_pin(
            self.stage,
            &self.session,
            &Mechanism::Sha256RsaPkcs,
            self.always,
        );
    }
}

/// A signature with such a key of a session that is logged in.
#[track_caller]
pub fn asks_for_each_pin(
    stage: &Stage,
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
) {
    let before = stage.pins();
    session.sign_init(mechanism, key).expect("C_SignInit");
    session.sign_update(b"message").expect("C_SignUpdate");
    assert_eq!(code(session.sign_final()), RvError::UserNotLoggedIn);
    assert_eq!(stage.pins(), before, "a PIN nobody entered");
    promptly("the login for one signature", || {
        session.login(UserType::ContextSpecific, Some(&pin()))
    })
    .expect("C_Login");
    assert!(!session.sign_final().expect("C_SignFinal").is_empty());
    assert_eq!(stage.pins(), before + 1, "the one the user entered");
}

/// The call failed because the card could not be reached.
#[track_caller]
pub fn is_unreachable<T>(result: Result<T>) {
    let failed = code(result);
    assert!(UNREACHABLE.contains(&failed), "{failed:?}");
}
