//! Several threads list, open, search, log in and sign at once, while generations begin and end under them.

use std::{
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use cryptoki_sys::*;

use crate::module::{MODES, Module, ck};

const CALLERS: usize = 4;
/// The callers would have got somewhere by now.
const HANG: Duration = Duration::from_secs(200);

/// What must have been done in each mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    generations: u64,
    /// Searches, and signatures.
    each: u64,
    /// One more code to expect; CKR_OK for none.
    also: CK_RV,
}

pub(crate) const MANY: Work = Work {
    generations: 40,
    each: 100,
    also: CKR_OK,
};
/// Through pcscd everything takes longer, and the card is out for longer.
pub(crate) const FEW: Work = Work {
    generations: 10,
    each: 15,
    // pcscd finds a card gone only when it looks again; until then the exchange has just failed.
    also: CKR_DEVICE_ERROR,
};

/// Codes that a card on its way, another thread or C_Finalize may cause; any other is a defect.
const EXPECTED: [CK_RV; 13] = [
    CKR_OK,
    CKR_NO_EVENT,
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_TOKEN_NOT_PRESENT,
    CKR_DEVICE_REMOVED,
    CKR_SESSION_HANDLE_INVALID,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_KEY_HANDLE_INVALID,
    CKR_OPERATION_NOT_INITIALIZED,
    CKR_USER_NOT_LOGGED_IN,
    CKR_USER_ALREADY_LOGGED_IN,
    CKR_TOKEN_NOT_RECOGNIZED,
    CKR_SLOT_ID_INVALID,
];

/// Relaxed on purpose: nothing here may order what the module has to order by itself.
static STARTED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);
/// See [`Work::also`].
static ALSO: AtomicU64 = AtomicU64::new(CKR_OK);
static SEARCHES: AtomicU64 = AtomicU64::new(0);
static SIGNATURES: AtomicU64 = AtomicU64::new(0);

pub(crate) fn play(module: Module, work: Work) {
    ALSO.store(work.also, Ordering::Relaxed);
    for flags in MODES {
        STOPPED.store(false, Ordering::Relaxed);
        SEARCHES.store(0, Ordering::Relaxed);
        SIGNATURES.store(0, Ordering::Relaxed);
        let callers: Vec<_> = (0..CALLERS)
            .map(|number| thread::spawn(move || call(module, number)))
            .collect();
        STARTED.store(true, Ordering::Relaxed);
        let generations = govern(module, flags, work);
        STOPPED.store(true, Ordering::Relaxed);
        for caller in callers {
            caller.join().expect("no panic");
        }
        println!(
            "{generations} generations under {CALLERS} callers, {} searches, {} signatures",
            SEARCHES.load(Ordering::Relaxed),
            SIGNATURES.load(Ordering::Relaxed)
        );
    }
}

/// Generation after generation, short and long ones, until enough has been done in them.
fn govern(module: Module, flags: CK_FLAGS, work: Work) -> u64 {
    let begun = Instant::now();
    let mut generations = 0;
    let enough = |generations| {
        generations >= work.generations
            && SEARCHES.load(Ordering::Relaxed) >= work.each
            && SIGNATURES.load(Ordering::Relaxed) >= work.each
    };
    while !enough(generations) {
        assert!(begun.elapsed() < HANG, "the callers get nowhere");
        module.initialize(flags);
        let life = if generations % 4 == 0 { 200 } else { 10 };
        thread::sleep(Duration::from_millis(life));
        module.finalize();
        generations += 1;
    }
    generations
}

fn call(module: Module, number: usize) {
    // All at once: the very first calls make what all others find.
    while !STARTED.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    while !STOPPED.load(Ordering::Relaxed) {
        // C_Finalize comes between any two of these; the rest is then left out.
        let _ = round(module, number);
    }
}

fn expected(function: &str, code: CK_RV) -> Result<(), CK_RV> {
    let expected = EXPECTED.contains(&code) || code == ALSO.load(Ordering::Relaxed);
    assert!(expected, "{function}: {code:#X}");
    if code == CKR_OK { Ok(()) } else { Err(code) }
}

/// Calls a function of the table; an error of [`EXPECTED`] ends the round.
macro_rules! go {
    ($module:expr, $function:ident $(, $argument:expr)* $(,)?) => {
        expected(stringify!($function), ck!($module, $function $(, $argument)*))?
    };
}

fn round(module: Module, number: usize) -> Result<(), CK_RV> {
    let mut info = std::mem::MaybeUninit::<CK_TOKEN_INFO>::uninit();
    let _ = expected("C_WaitForSlotEvent", module.wait(CKF_DONT_BLOCK));
    let slots = module.slots(true).inspect_err(|code| {
        let _ = expected("C_GetSlotList", *code);
    })?;
    for slot in slots {
        go!(module, C_GetTokenInfo, slot, info.as_mut_ptr());
        visit(module, slot, number)?;
        if number == 0 {
            go!(module, C_CloseAllSessions, slot);
        }
    }
    Ok(())
}

/// One session on a slot.
fn visit(module: Module, slot: CK_SLOT_ID, number: usize) -> Result<(), CK_RV> {
    let mut session = 0;
    go!(
        module,
        C_OpenSession,
        slot,
        CKF_SERIAL_SESSION,
        ptr::null_mut(),
        None,
        &raw mut session
    );
    let used = search(module, session).and_then(|()| match number {
        0 | 1 => sign(module, session),
        _ => Ok(()),
    });
    let closed = expected("C_CloseSession", ck!(module, C_CloseSession, session));
    used.and(closed)
}

fn search(module: Module, session: CK_SESSION_HANDLE) -> Result<(), CK_RV> {
    let (mut objects, mut count) = ([0; 16], 0);
    go!(module, C_FindObjectsInit, session, ptr::null_mut(), 0);
    go!(
        module,
        C_FindObjects,
        session,
        objects.as_mut_ptr(),
        16,
        &raw mut count
    );
    go!(module, C_FindObjectsFinal, session);
    assert!(count > 0, "the card has a certificate and a public key");
    SEARCHES.fetch_add(1, Ordering::Relaxed);
    attribute(module, session, objects[0])
}

fn attribute(
    module: Module,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
) -> Result<(), CK_RV> {
    let mut label = [0_u8; 64];
    let mut template = CK_ATTRIBUTE {
        type_: CKA_LABEL,
        pValue: label.as_mut_ptr().cast(),
        ulValueLen: label.len() as CK_ULONG,
    };
    go!(
        module,
        C_GetAttributeValue,
        session,
        object,
        &raw mut template,
        1
    );
    Ok(())
}

fn sign(module: Module, session: CK_SESSION_HANDLE) -> Result<(), CK_RV> {
    let mut pin = *b"123456";
    // Another thread may have logged in, which is as good.
    let _ = expected(
        "C_Login",
        ck!(module, C_Login, session, CKU_USER, pin.as_mut_ptr(), 6),
    );
    let key = private_key(module, session)?;
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_ECDSA,
        pParameter: ptr::null_mut(),
        ulParameterLen: 0,
    };
    go!(module, C_SignInit, session, &raw mut mechanism, key);
    let (mut data, mut signature) = ([7_u8; 32], [0_u8; 64]);
    let mut length = signature.len() as CK_ULONG;
    go!(
        module,
        C_Sign,
        session,
        data.as_mut_ptr(),
        32,
        signature.as_mut_ptr(),
        &raw mut length
    );
    assert_eq!(signature, [0x11; 64], "r and s of the card");
    SIGNATURES.fetch_add(1, Ordering::Relaxed);
    go!(module, C_Logout, session);
    Ok(())
}

fn private_key(module: Module, session: CK_SESSION_HANDLE) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    let mut class = CKO_PRIVATE_KEY;
    let mut template = CK_ATTRIBUTE {
        type_: CKA_CLASS,
        pValue: (&raw mut class).cast(),
        ulValueLen: size_of_val(&class) as CK_ULONG,
    };
    let (mut key, mut count) = (0, 0);
    go!(module, C_FindObjectsInit, session, &raw mut template, 1);
    go!(
        module,
        C_FindObjects,
        session,
        &raw mut key,
        1,
        &raw mut count
    );
    go!(module, C_FindObjectsFinal, session);
    // Logged out by another thread meanwhile.
    if count == 1 {
        Ok(key)
    } else {
        Err(CKR_USER_NOT_LOGGED_IN)
    }
}
