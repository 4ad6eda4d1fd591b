//! A card handle that never changes the state of the card when it is dropped.

use std::{
    ffi::{CStr, CString},
    sync::Arc,
    time::{Duration, Instant},
};

use ::pcsc::{
    Card, Context, Disposition, Error, Protocol, Protocols, ShareMode, Status, Transaction,
};
use claviger_apdu::{Atr, Call, ResponseBuffer};
use zeroize::Zeroize;

use super::watchdog::{CallWatchdog, ContextPurpose, WatchedContext};
use crate::wait::Backoff;

/// How long to retry a card that another program uses exclusively.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The protocols of contact cards. The reader chooses one.
const PROTOCOLS: Protocols = Protocols::T0.union(Protocols::T1);
/// CM_IOCTL_GET_FEATURE_REQUEST (PC/SC part 10, 2.2). The reader's driver responds to it without using the card.
const GET_FEATURES: ::pcsc::ffi::DWORD = 3400;
/// Size of the buffer for a reader's name. All versions of pcsc-lite use up to 128 bytes.
const NAME: usize = 1024;
/// Length of the longest answer to reset.
const ATR: usize = 33;

/// How often to retry a card that is being powered up or reset.
const MAX_UNSETTLED: usize = 8;
/// How long pcscd may take to disconnect a card.
const DISCONNECT: Duration = Duration::from_secs(2);

/// A shared card handle with a context of its own.
pub(super) struct CardHandle {
    /// `None` only during the drop.
    card: Option<Card>,
    established: Arc<WatchedContext>,
}

/// The card that a handle is connected to.
pub(super) struct ConnectedCard {
    pub(super) atr: Atr,
    pub(super) protocol: Protocol,
}

impl CardHandle {
    pub(super) fn open(
        watchdog: &Arc<CallWatchdog>,
        reader: &str,
        call: Call,
    ) -> Result<Self, Error> {
        let name = CString::new(reader).map_err(|_| Error::UnknownReader)?;
        let established = Arc::new(establish(watchdog, call)?);
        let context = established.context()?;
        let deadline = call.deadline.min(Instant::now() + EXCLUSIVE_TIMEOUT);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(160));
        loop {
            let connect = || match context.connect(&name, ShareMode::Shared, PROTOCOLS) {
                Err(Error::UnpoweredCard) => power_up(context, &name),
                outcome => outcome,
            };
            match established.run_until(call.deadline, connect) {
                Ok(card) => {
                    return Ok(Self {
                        card: Some(card),
                        established,
                    });
                }
                Err(Error::SharingViolation) if Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    std::thread::sleep(backoff.next_delay().min(left));
                }
                Err(_) if established.was_aborted() => return Err(Error::Timeout),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn established(&self) -> &Arc<WatchedContext> {
        &self.established
    }

    pub(super) fn card(&mut self) -> Result<&mut Card, Error> {
        self.card.as_mut().ok_or(Error::InvalidHandle)
    }
}

impl Drop for CardHandle {
    /// Disconnects with SCARD_LEAVE_CARD. `Card`'s own drop would disconnect with SCARD_RESET_CARD, so it must not
    /// run while it could reach the card.
    fn drop(&mut self) {
        let Some(card) = self.card.take() else {
            return;
        };
        let deadline = Instant::now() + DISCONNECT;
        let disconnect = || card.disconnect(Disposition::LeaveCard);
        let Err((card, error)) = self.established.run_short(deadline, disconnect) else {
            return;
        };
        match error {
            // pcscd does not know the handle, or the connection to pcscd is closed. So the drop of `Card` has no
            // effect, and pcscd left the card as it was when the connection closed.
            Error::InvalidHandle
            | Error::NoService
            | Error::CommError
            | Error::SecurityViolation
            | Error::ServiceStopped => drop(card),
            error => {
                tracing::warn!(
                    "PC/SC SCardDisconnect: {error}; the handle is not closed, because closing it could reset the card"
                );
                std::mem::forget(card);
            }
        }
    }
}

/// Makes a context, with a second attempt after a refusal: a crashing pcscd can look like a refusal.
fn establish(watchdog: &Arc<CallWatchdog>, call: Call) -> Result<WatchedContext, Error> {
    match watchdog.establish(ContextPurpose::Card, call.deadline) {
        Err(_) if watchdog.is_unresponsive() => Err(Error::Timeout),
        Err(Error::SecurityViolation | Error::CommError) => {
            watchdog.establish(ContextPurpose::Card, call.deadline)
        }
        outcome => outcome,
    }
}

/// Connects to a card that one program left without power while another program was connected. pcscd powers such a
/// card up only with a reset. The card has no state left to lose.
fn power_up(context: &Context, name: &CStr) -> Result<Card, Error> {
    let mut card = context.connect(name, ShareMode::Direct, Protocols::UNDEFINED)?;
    match card.reconnect(ShareMode::Shared, PROTOCOLS, Disposition::ResetCard) {
        Ok(()) => Ok(card),
        Err(error) => {
            let _ = card.disconnect(Disposition::LeaveCard);
            Err(error)
        }
    }
}

/// A card handle, inside a transaction or outside.
pub(super) trait Handle {
    fn card(&self) -> &Card;
    fn reconnect(&mut self, disposition: Disposition) -> Result<(), Error>;
}

impl Handle for Card {
    fn card(&self) -> &Card {
        self
    }

    fn reconnect(&mut self, disposition: Disposition) -> Result<(), Error> {
        Self::reconnect(self, ShareMode::Shared, PROTOCOLS, disposition)
    }
}

impl Handle for Transaction<'_> {
    fn card(&self) -> &Card {
        self
    }

    fn reconnect(&mut self, disposition: Disposition) -> Result<(), Error> {
        Self::reconnect(self, ShareMode::Shared, PROTOCOLS, disposition)
    }
}

/// Tells libpcsclite that another program's reset was noticed. The card is reset again only if it was left without
/// power. Returns the card that is connected now.
pub(super) fn reconnect(handle: &mut impl Handle) -> Result<ConnectedCard, Error> {
    let mut unsettled = Unsettled::default();
    loop {
        match reconnect_once(handle) {
            // A second attempt would succeed with another card in the reader, and hide the change of cards.
            Err(error @ (Error::RemovedCard | Error::NoSmartcard)) => return Err(error),
            Err(error) if unsettled.should_retry(error) => {}
            outcome => return outcome,
        }
    }
}

fn reconnect_once(handle: &mut impl Handle) -> Result<ConnectedCard, Error> {
    handle.reconnect(Disposition::LeaveCard)?;
    match connected_card(handle.card()) {
        Err(Error::UnpoweredCard) => {
            handle.reconnect(Disposition::ResetCard)?;
            connected_card(handle.card())
        }
        outcome => outcome,
    }
}

/// Decides whether to retry an operation on a card that pcscd is powering up or resetting. Errors during that time
/// are often temporary.
pub(super) struct Unsettled {
    left: usize,
    retried_once: bool,
    backoff: Backoff,
}

impl Default for Unsettled {
    fn default() -> Self {
        Self {
            left: MAX_UNSETTLED,
            retried_once: false,
            backoff: Backoff::new(Duration::from_millis(2), Duration::from_millis(50)),
        }
    }
}

impl Unsettled {
    /// Returns whether to retry an operation that failed with `error`. Sleeps before it returns true.
    pub(super) fn should_retry(&mut self, error: Error) -> bool {
        let retries = match error {
            // No protocol is set during a reset, or after a card was inserted or left without power.
            Error::ProtoMismatch | Error::ResetCard => self.left > 0,
            // These may be temporary. They are retried once.
            Error::UnpoweredCard
            | Error::UnresponsiveCard
            | Error::NoSmartcard
            | Error::RemovedCard => !std::mem::replace(&mut self.retried_once, true),
            _ => false,
        };
        if retries {
            self.left = self.left.saturating_sub(1);
            std::thread::sleep(self.backoff.next_delay());
        }
        retries
    }
}

/// Returns the card's answer to reset and its protocol.
pub(super) fn connected_card(card: &Card) -> Result<ConnectedCard, Error> {
    let (mut name, mut atr) = ([0; NAME], [0; ATR]);
    let status = card.status2(&mut name, &mut atr)?;
    if !status.status().contains(Status::POWERED) {
        return Err(Error::UnpoweredCard);
    }
    let protocol = status.protocol2().ok_or(Error::ProtoMismatch)?;
    let atr = Atr::parse(status.atr()).map_err(|_| Error::UnresponsiveCard)?;
    Ok(ConnectedCard { atr, protocol })
}

/// Waits until no other handle is in a transaction, or until `deadline`.
///
/// SCardBeginTransaction would wait for ever, in steps of 100 ms in the library and 100 ms in pcscd. SCardControl
/// fails at once during another handle's transaction. So this function polls SCardControl in shorter steps.
pub(super) fn wait_until_unlocked(card: &Card, deadline: Instant) -> Result<(), Error> {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    let mut features = [0; 256];
    while let Err(Error::SharingViolation) =
        card.control(::pcsc::ctl_code(GET_FEATURES), &[], &mut features)
    {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::SharingViolation);
        }
        std::thread::sleep(backoff.next_delay().min(left));
    }
    Ok(())
}

/// Returns the cause of a failed exchange. If the card or the reader is gone, that is the cause.
pub(super) fn refine_error(card: &Card, error: Error) -> Error {
    if error != Error::NotTransacted {
        return error;
    }
    match card.status2(&mut [0; NAME], &mut [0; ATR]) {
        Err(
            why @ (Error::RemovedCard
            | Error::NoSmartcard
            | Error::ReaderUnavailable
            | Error::UnknownReader
            | Error::InvalidValue),
        ) => why,
        _ => error,
    }
}

/// Sends one frame. The response passes through `scratch`, which is wiped afterwards.
pub(super) fn transmit(
    card: &Card,
    frame: &[u8],
    scratch: &mut [u8],
    response: &mut ResponseBuffer,
) -> Result<(), Error> {
    let len = match card.transmit2(frame, scratch) {
        Ok(data) => data.len(),
        Err((error, _)) => {
            scratch.zeroize();
            return Err(error);
        }
    };
    let data = scratch.get_mut(..len).unwrap_or(&mut []);
    let fits = response.set(data).map_err(|_| Error::InsufficientBuffer);
    data.zeroize();
    fits
}
