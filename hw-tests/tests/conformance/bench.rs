//! What a rule is tried with: the module, its token, and sessions that can also call the bare table.

use std::{ffi::c_void, ops::Deref, ptr};

use claviger_hw_tests::provision::PIN;
use cryptoki::{
    context::Pkcs11,
    error::{Rv, RvError},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    slot::Slot,
};
use cryptoki_sys::{
    CK_FLAGS, CK_FUNCTION_LIST_3_2, CK_MECHANISM, CK_MECHANISM_TYPE, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG, CK_USER_TYPE, CKM_ECDSA_SHA256, CKM_EDDSA,
    CKM_SHA256_RSA_PKCS, CKR_BUFFER_TOO_SMALL, CKU_CONTEXT_SPECIFIC, CKU_USER,
};

use crate::stage::{Stage, log_in, raw::Raw};

/// A test of each rule on each card: `CARD::RULE`.
#[macro_export]
macro_rules! on_cards {
    (@one $card:ident [$($rule:ident)*]) => {
        mod $card {
            $(
                #[test]
                fn $rule() {
                    let plan = $crate::cards::$card();
                    $crate::stage::with_card($crate::stage::Way::Socket, plan, |stage| {
                        super::$rule(&$crate::Bench::new(stage));
                    });
                }
            )*
        }
    };
    ([$($card:ident)*] $rules:tt) => {
        $($crate::on_cards!(@one $card $rules);)*
    };
}

/// (session, mechanism, key), as C_SignInit.
pub type Init =
    Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV>;
/// (session, input, its length, output, its length), as C_Sign.
pub type Through = Option<
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, CK_ULONG, *mut u8, *mut CK_ULONG) -> CK_RV,
>;
/// (session, output, its length), as C_SignFinal.
pub type Last = Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, *mut CK_ULONG) -> CK_RV>;
/// (session, input, its length), as C_SignUpdate.
pub type Part = Option<unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, CK_ULONG) -> CK_RV>;

const TABLE: &str = "every slot of the table is filled";

/// The module on a card with one applet.
pub struct Bench<'a> {
    pub stage: &'a Stage,
    pub module: Pkcs11,
    pub raw: Raw,
    pub slot: Slot,
}

/// A session of the `cryptoki` crate, and the bare table for what that cannot say.
pub struct Seat {
    session: Session,
    pub list: &'static CK_FUNCTION_LIST_3_2,
}

/// `Ok` or the code, by its name.
pub fn checked(code: CK_RV) -> Result<(), RvError> {
    match Rv::from(code) {
        Rv::Ok => Ok(()),
        Rv::Error(error) => Err(error),
    }
}

/// `Ok` or the code of a call of the `cryptoki` crate.
pub fn answered<T>(result: cryptoki::error::Result<T>) -> Result<T, RvError> {
    result.map_err(|error| match error {
        cryptoki::error::Error::Pkcs11(code, _) => code,
        other => panic!("no return code: {other}"),
    })
}

/// A mechanism that takes no parameter.
pub const fn plain(mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism,
        pParameter: ptr::null_mut(),
        ulParameterLen: 0,
    }
}

/// A mechanism with a parameter of any form.
pub fn with<T>(mechanism: CK_MECHANISM_TYPE, parameter: &mut T) -> CK_MECHANISM {
    CK_MECHANISM {
        mechanism,
        pParameter: ptr::from_mut(parameter).cast::<c_void>(),
        ulParameterLen: size_of::<T>() as CK_ULONG,
    }
}

/// The bytes that these digits say.
pub fn hex(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

impl<'a> Bench<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        let module = stage.module();
        let slot = *module
            .get_slots_with_token()
            .expect("C_GetSlotList")
            .first()
            .expect("a token");
        Self {
            stage,
            module,
            raw: Raw::load(),
            slot,
        }
    }

    pub fn slot_id(&self) -> CK_SLOT_ID {
        self.slot.id()
    }

    /// C_GetMechanismList; the crate leaves out what it does not know.
    pub fn mechanisms(&self) -> Vec<CK_MECHANISM_TYPE> {
        let list = self.raw.list().C_GetMechanismList.expect(TABLE);
        let (mut mechanisms, mut count) = (vec![0; 512], 512);
        // SAFETY: the buffer holds as many as is said.
        let code = unsafe { list(self.slot_id(), mechanisms.as_mut_ptr(), &raw mut count) };
        assert_eq!(checked(code), Ok(()));
        mechanisms.truncate(count as usize);
        mechanisms
    }

    /// Whether the token is the PIV applet.
    pub fn is_piv(&self) -> bool {
        let info = self
            .module
            .get_token_info(self.slot)
            .expect("C_GetTokenInfo");
        info.model().contains("PIV") || info.label().contains("PIV")
    }

    fn seat(&self, session: Session) -> Seat {
        Seat {
            session,
            list: self.raw.list(),
        }
    }

    /// A read-only session, public.
    #[track_caller]
    pub fn read_only(&self) -> Seat {
        let session = self.module.open_ro_session(self.slot);
        self.seat(session.expect("C_OpenSession"))
    }

    /// A read-write session, public.
    #[track_caller]
    pub fn read_write(&self) -> Seat {
        let session = self.module.open_rw_session(self.slot);
        self.seat(session.expect("C_OpenSession"))
    }

    /// A read-write session with the user logged in.
    #[track_caller]
    pub fn user(&self) -> Seat {
        let seat = self.read_write();
        log_in(&seat);
        seat
    }

    /// Does `work`, which must not reach the card.
    #[track_caller]
    pub fn silently<R>(&self, work: impl FnOnce() -> R) -> R {
        let (apdus, result) = self.stage.apdus(work);
        assert_eq!(apdus, 0, "the card was asked");
        result
    }
}

impl Deref for Seat {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Seat {
    /// Its handle.
    pub fn id(&self) -> CK_SESSION_HANDLE {
        self.session.handle()
    }

    /// Closes it.
    #[track_caller]
    pub fn leave(self) {
        self.session.close().expect("C_CloseSession");
    }

    /// Objects of a class.
    #[track_caller]
    pub fn all(&self, class: ObjectClass) -> Vec<ObjectHandle> {
        self.find_objects(&[Attribute::Class(class)])
            .expect("a search")
    }

    /// The object of this class with this CKA_ID.
    #[track_caller]
    pub fn object(&self, class: ObjectClass, id: u8) -> ObjectHandle {
        let template = [Attribute::Class(class), Attribute::Id(vec![id])];
        let found = self.find_objects(&template).expect("a search");
        assert_eq!(found.len(), 1, "{class:?} {id}");
        found[0]
    }

    #[track_caller]
    pub fn private(&self, id: u8) -> ObjectHandle {
        self.object(ObjectClass::PRIVATE_KEY, id)
    }

    #[track_caller]
    pub fn public(&self, id: u8) -> ObjectHandle {
        self.object(ObjectClass::PUBLIC_KEY, id)
    }

    /// The private keys that answer TRUE to each of these.
    #[track_caller]
    pub fn private_with(&self, wanted: &[Attribute]) -> Vec<ObjectHandle> {
        let template = [&[Attribute::Class(ObjectClass::PRIVATE_KEY)], wanted].concat();
        self.find_objects(&template).expect("a search")
    }

    /// A private key that signs once the user is logged in.
    #[track_caller]
    pub fn signer(&self) -> ObjectHandle {
        let once = [Attribute::Sign(true), Attribute::AlwaysAuthenticate(false)];
        let private = Attribute::Private(true);
        self.private_with(&[&once[..], &[private]].concat())[0]
    }

    /// The mechanism with which this key signs a message.
    #[track_caller]
    pub fn signing(&self, key: ObjectHandle) -> CK_MECHANISM {
        let asked = self.get_attributes(key, &[AttributeType::KeyType]);
        match asked.expect("C_GetAttributeValue").as_slice() {
            [Attribute::KeyType(KeyType::RSA)] => plain(CKM_SHA256_RSA_PKCS),
            [Attribute::KeyType(KeyType::EC)] => plain(CKM_ECDSA_SHA256),
            [Attribute::KeyType(KeyType::EC_EDWARDS)] => plain(CKM_EDDSA),
            other => panic!("{other:?} signs nothing"),
        }
    }

    /// The public key of a private one.
    #[track_caller]
    pub fn public_of(&self, key: ObjectHandle) -> ObjectHandle {
        let id = self.get_attributes(key, &[AttributeType::Id]);
        let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
        let template = [&[class], &id.expect("CKA_ID")[..]].concat();
        self.find_objects(&template).expect("a search")[0]
    }

    /// C_SessionCancel of the operations that `flags` name.
    #[track_caller]
    pub fn give_up(&self, flags: CK_FLAGS) {
        let function = self.list.C_SessionCancel.expect(TABLE);
        // SAFETY: no pointer is given.
        assert_eq!(checked(unsafe { function(self.id(), flags) }), Ok(()));
    }

    pub fn init(
        &self,
        function: Init,
        mechanism: impl Into<CK_MECHANISM>,
        key: ObjectHandle,
    ) -> Result<(), RvError> {
        let mut mechanism = mechanism.into();
        // SAFETY: a mechanism as the test made it, alive until the call returns.
        checked(unsafe { function.expect(TABLE)(self.id(), &raw mut mechanism, key.handle()) })
    }

    /// The length that a call without a buffer tells.
    pub fn ask(&self, function: Through, input: &[u8]) -> Result<usize, RvError> {
        let (data, len) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
        let mut out = CK_ULONG::MAX;
        // SAFETY: `input` has that length, and is only read.
        let code =
            unsafe { function.expect(TABLE)(self.id(), data, len, ptr::null_mut(), &raw mut out) };
        checked(code).map(|()| out as usize)
    }

    /// The output of a call with `room` for it.
    #[track_caller]
    pub fn run(&self, function: Through, input: &[u8], room: usize) -> Result<Vec<u8>, RvError> {
        let (data, len) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
        // SAFETY: both buffers have the lengths that are said, and the input is only read.
        fill(room, |out, out_len| unsafe {
            function.expect(TABLE)(self.id(), data, len, out, out_len)
        })
    }

    /// The length that a final call without a buffer tells.
    pub fn ask_last(&self, function: Last) -> Result<usize, RvError> {
        let mut out = CK_ULONG::MAX;
        // SAFETY: no buffer, and where the length may be written.
        let code = unsafe { function.expect(TABLE)(self.id(), ptr::null_mut(), &raw mut out) };
        checked(code).map(|()| out as usize)
    }

    /// The output of a final call with `room` for it.
    #[track_caller]
    pub fn last(&self, function: Last, room: usize) -> Result<Vec<u8>, RvError> {
        // SAFETY: the buffer has the length that is said.
        fill(room, |out, len| unsafe {
            function.expect(TABLE)(self.id(), out, len)
        })
    }

    pub fn part(&self, function: Part, input: &[u8]) -> Result<(), RvError> {
        let (data, len) = (input.as_ptr().cast_mut(), input.len() as CK_ULONG);
        // SAFETY: `input` has that length, and is only read.
        checked(unsafe { function.expect(TABLE)(self.id(), data, len) })
    }

    /// C_Verify.
    pub fn judge(&self, data: &[u8], signature: &[u8]) -> Result<(), RvError> {
        let function = self.list.C_Verify.expect(TABLE);
        let (bytes, len) = (data.as_ptr().cast_mut(), data.len() as CK_ULONG);
        let signature_len = signature.len() as CK_ULONG;
        let signature = signature.as_ptr().cast_mut();
        // SAFETY: both inputs have the lengths that are said, and are only read.
        checked(unsafe { function(self.id(), bytes, len, signature, signature_len) })
    }

    /// C_Login.
    pub fn enter(&self, user: CK_USER_TYPE, pin: &str) -> Result<(), RvError> {
        let function = self.list.C_Login.expect(TABLE);
        let (bytes, len) = (pin.as_ptr().cast_mut(), pin.len() as CK_ULONG);
        // SAFETY: the PIN has that length, and is only read.
        checked(unsafe { function(self.id(), user, bytes, len) })
    }

    /// C_Login of the user with the right PIN.
    pub fn enter_user(&self) -> Result<(), RvError> {
        self.enter(CKU_USER, PIN)
    }

    /// C_Login for one operation with the right PIN.
    pub fn enter_once(&self) -> Result<(), RvError> {
        self.enter(CKU_CONTEXT_SPECIFIC, PIN)
    }
}

/// Calls with a buffer of `room` bytes: what was written, with nothing past it, and with nothing at all on an error.
#[track_caller]
fn fill(
    room: usize,
    call: impl FnOnce(*mut u8, *mut CK_ULONG) -> CK_RV,
) -> Result<Vec<u8>, RvError> {
    const BEYOND: [u8; 16] = [0xA5; 16];
    let mut buffer = vec![0xA5_u8; room];
    buffer.extend(BEYOND);
    let mut len = room as CK_ULONG;
    let code = call(buffer.as_mut_ptr(), &raw mut len);
    assert_eq!(buffer[room..], BEYOND, "written past the buffer");
    if code == CKR_BUFFER_TOO_SMALL {
        assert!(len as usize > room, "{len} is not more than {room}");
    }
    checked(code)?;
    assert!(len as usize <= room, "{len} is more than {room}");
    buffer.truncate(len as usize);
    Ok(buffer)
}
