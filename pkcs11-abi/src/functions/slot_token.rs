//! Slot and token management (PKCS #11 2.40, 5.5).

use claviger_driver::Presence;
use claviger_token::PinTries;
use cryptoki_sys::{
    CK_BBOOL, CK_FLAGS, CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_SLOT_ID, CK_SLOT_INFO,
    CK_TOKEN_INFO, CK_ULONG, CK_VERSION, CKF_DONT_BLOCK, CKF_HW_SLOT, CKF_LOGIN_REQUIRED,
    CKF_REMOVABLE_DEVICE, CKF_RNG, CKF_SO_PIN_COUNT_LOW, CKF_TOKEN_INITIALIZED, CKF_TOKEN_PRESENT,
    CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_INITIALIZED, CKF_USER_PIN_LOCKED,
};

use super::{general::MANUFACTURER, padded};
use crate::{
    card::CachedToken,
    module::Module,
    pointer::{Input, Output},
    rv::{Failure, ReturnCode},
};

/// CK_UNAVAILABLE_INFORMATION.
const UNAVAILABLE: CK_ULONG = CK_ULONG::MAX;

/// C_GetSlotList. Only a call without a buffer changes the list.
pub(crate) fn slot_list(
    module: &Module,
    token_present: CK_BBOOL,
    list: Output<'_, CK_SLOT_ID>,
    count: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    count.check()?;
    module.events.refresh();
    let slots = {
        let mut table = module.events.table();
        if list.is_null() || !table.has_list() {
            table.refresh_list();
        }
        table.listed()
    };
    let wanted = |id: &CK_SLOT_ID| token_present == 0 || is_token_present(module, *id);
    let ids: Vec<CK_SLOT_ID> = slots.iter().map(|slot| slot.id).filter(wanted).collect();
    list.write_counted(count, &ids)
}

/// Returns whether the slot holds a token. A card without a supported applet counts as a token in the reader's first slot.
fn is_token_present(module: &Module, id: CK_SLOT_ID) -> bool {
    match module.token(id) {
        Ok(_) => true,
        Err(Failure::ReturnCode(ReturnCode::TOKEN_NOT_RECOGNIZED)) => true,
        Err(Failure::ReturnCode(_)) => false,
        Err(failure) => {
            failure.log("looking for a token");
            false
        }
    }
}

/// C_GetSlotInfo.
pub(crate) fn slot_info(
    module: &Module,
    id: CK_SLOT_ID,
    info: Output<'_, CK_SLOT_INFO>,
) -> Result<(), Failure> {
    info.check()?;
    module.events.refresh();
    let (applet, reader) = module.slot(id)?;
    let present = reader.presence != Presence::Empty && is_token_present(module, id);
    info.write(CK_SLOT_INFO {
        slotDescription: padded(&format!("{} {}", reader.name, applet.name())),
        manufacturerID: padded(MANUFACTURER),
        flags: CKF_REMOVABLE_DEVICE | CKF_HW_SLOT | if present { CKF_TOKEN_PRESENT } else { 0 },
        hardwareVersion: CK_VERSION { major: 0, minor: 0 },
        firmwareVersion: CK_VERSION { major: 0, minor: 0 },
    })
}

/// C_GetTokenInfo.
pub(crate) fn token_info(
    module: &Module,
    id: CK_SLOT_ID,
    info: Output<'_, CK_TOKEN_INFO>,
) -> Result<(), Failure> {
    info.check()?;
    module.events.refresh();
    let cache = module.token(id)?;
    let (sessions, read_write) = module.sessions.count(id, module.token_ref(id)?.insertion);
    info.write(describe(&cache, sessions, read_write))
}

fn describe(cache: &CachedToken, sessions: usize, read_write: usize) -> CK_TOKEN_INFO {
    let token = &cache.info;
    let number = |number: usize| CK_ULONG::try_from(number).unwrap_or(UNAVAILABLE);
    let version = CK_VERSION {
        major: token.version.0,
        minor: token.version.1,
    };
    CK_TOKEN_INFO {
        label: padded(&token.label),
        manufacturerID: padded(&token.manufacturer),
        model: padded(&token.model),
        serialNumber: padded(&token.serial),
        flags: CKF_LOGIN_REQUIRED
            | CKF_USER_PIN_INITIALIZED
            | CKF_TOKEN_INITIALIZED
            | pin_flags(token.pin_tries, 0)
            | pin_flags(cache.so_tries, SO_PIN)
            | if cache.has_random { CKF_RNG } else { 0 },
        ulMaxSessionCount: 0,
        ulSessionCount: number(sessions),
        ulMaxRwSessionCount: 0,
        ulRwSessionCount: number(read_write),
        ulMaxPinLen: number(token.max_pin_len),
        ulMinPinLen: number(token.min_pin_len),
        ulTotalPublicMemory: UNAVAILABLE,
        ulFreePublicMemory: UNAVAILABLE,
        ulTotalPrivateMemory: UNAVAILABLE,
        ulFreePrivateMemory: UNAVAILABLE,
        hardwareVersion: CK_VERSION { major: 0, minor: 0 },
        firmwareVersion: version,
        utcTime: [b'0'; 16],
    }
}

/// The distance in bits from the flags of the user's PIN to the flags of the security officer's PIN.
const SO_PIN: u32 = CKF_SO_PIN_COUNT_LOW.trailing_zeros() - CKF_USER_PIN_COUNT_LOW.trailing_zeros();

/// Returns the flags for a PIN's last known try counter (PKCS #11 3.1, 3.2, CKF_USER_PIN_* and CKF_SO_PIN_*).
fn pin_flags(tries: PinTries, above: u32) -> CK_FLAGS {
    let low = if tries.left < tries.most {
        CKF_USER_PIN_COUNT_LOW
    } else {
        0
    };
    let flags = match tries.left {
        Some(0) => low | CKF_USER_PIN_LOCKED,
        Some(1) => low | CKF_USER_PIN_FINAL_TRY,
        _ => low,
    };
    flags << above
}

/// C_GetMechanismList.
pub(crate) fn mechanism_list(
    module: &Module,
    id: CK_SLOT_ID,
    list: Output<'_, CK_MECHANISM_TYPE>,
    count: Output<'_, CK_ULONG>,
) -> Result<(), Failure> {
    count.check()?;
    module.events.refresh();
    let kinds: Vec<CK_MECHANISM_TYPE> = module
        .token(id)?
        .mechanisms
        .iter()
        .map(|info| info.kind)
        .collect();
    list.write_counted(count, &kinds)
}

/// C_GetMechanismInfo.
pub(crate) fn mechanism_info(
    module: &Module,
    id: CK_SLOT_ID,
    kind: CK_MECHANISM_TYPE,
    info: Output<'_, CK_MECHANISM_INFO>,
) -> Result<(), Failure> {
    info.check()?;
    module.events.refresh();
    let cache = module.token(id)?;
    let mechanism = cache
        .mechanisms
        .iter()
        .find(|info| info.kind == kind)
        .ok_or(ReturnCode::MECHANISM_INVALID)?;
    info.write(CK_MECHANISM_INFO {
        ulMinKeySize: mechanism.min_key_size,
        ulMaxKeySize: mechanism.max_key_size,
        flags: mechanism.flags,
    })
}

/// C_WaitForSlotEvent.
pub(crate) fn wait_for_slot_event(
    module: &Module,
    flags: CK_FLAGS,
    slot: Output<'_, CK_SLOT_ID>,
    reserved: Input<'_, u8>,
) -> Result<(), Failure> {
    if !reserved.is_null() {
        return Err(ReturnCode::ARGUMENTS_BAD.into());
    }
    slot.check()?;
    slot.write(module.events.wait(flags & CKF_DONT_BLOCK == 0)?)
}
