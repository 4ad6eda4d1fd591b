//! A card handle that leaves the card as it is, whatever happens.

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

/// How long a card in another's exclusive hands is asked for.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The protocols of contact cards; a reader picks one.
const PROTOCOLS: Protocols = Protocols::T0.union(Protocols::T1);
/// CM_IOCTL_GET_FEATURE_REQUEST (PC/SC part 10, 2.2): answered by the reader's driver, the card is not asked.
const GET_FEATURES: ::pcsc::ffi::DWORD = 3400;
/// Room for a reader's name; 128 bytes in all versions of pcsc-lite.
const NAME: usize = 1024;
/// Longest answer to reset.
const ATR: usize = 33;

/// Further attempts at a card that is being powered or reset.
const MAX_UNSETTLED: usize = 8;
/// How long pcscd may take to let go of a card.
const DISCONNECT: Duration = Duration::from_secs(2);

/// A shared connection to a card, over a context of its own.
pub(super) struct CardHandle {
    /// Empty only while it is being dropped.
    card: Option<Card>,
    established: Arc<WatchedContext>,
}

/// What a connection found in the reader.
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
        let mut pauses = Backoff::new(Duration::from_millis(10), Duration::from_millis(160));
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
                    std::thread::sleep(pauses.next_delay().min(left));
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
    /// `Card`'s own drop disconnects with SCARD_RESET_CARD and must not run while it could reach the card.
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
            // The handle is unknown or the way to pcscd is closed: the card's own drop reaches nothing, and
            // pcscd left the card when it saw us go.
            Error::InvalidHandle
            | Error::NoService
            | Error::CommError
            | Error::SecurityViolation
            | Error::ServiceStopped => drop(card),
            error => {
                tracing::warn!(
                    "PC/SC SCardDisconnect: {error}; the handle is kept, to spare the card a reset"
                );
                std::mem::forget(card);
            }
        }
    }
}

/// A crashing pcscd can look like a refusal: asks twice.
fn establish(watchdog: &Arc<CallWatchdog>, call: Call) -> Result<WatchedContext, Error> {
    match watchdog.establish(ContextPurpose::Card, call.deadline) {
        Err(_) if watchdog.is_unresponsive() => Err(Error::Timeout),
        Err(Error::SecurityViolation | Error::CommError) => {
            watchdog.establish(ContextPurpose::Card, call.deadline)
        }
        outcome => outcome,
    }
}

/// Connects to a card that another program left without power while a third was connected: pcscd gives it power
/// for a reset only, and there is no state left to lose.
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

/// A card handle, in a transaction or not.
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

/// Tells libpcsclite that the reset by another was noticed; the card is not reset again, unless it was left without
/// power. What there is now.
pub(super) fn reconnect(handle: &mut impl Handle) -> Result<ConnectedCard, Error> {
    let mut unsettled = Unsettled::default();
    loop {
        match reconnect_once(handle) {
            // With another card in the reader a second try would succeed, and hide the exchange.
            Err(error @ (Error::RemovedCard | Error::NoSmartcard)) => return Err(error),
            Err(error) if unsettled.goes_on(error) => {}
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

/// Patience with a card that pcscd is just giving power to or resetting: what it says meanwhile is soon true no more.
pub(super) struct Unsettled {
    left: usize,
    was_doubted: bool,
    pauses: Backoff,
}

impl Default for Unsettled {
    fn default() -> Self {
        Self {
            left: MAX_UNSETTLED,
            was_doubted: false,
            pauses: Backoff::new(Duration::from_millis(2), Duration::from_millis(50)),
        }
    }
}

impl Unsettled {
    /// Whether what failed with `error` is worth another try, for which a moment has then passed.
    pub(super) fn goes_on(&mut self, error: Error) -> bool {
        let is_worth_it = match error {
            // Until a reset is over, and when a card was just put in or left without power, there is no protocol.
            Error::ProtoMismatch | Error::ResetCard => self.left > 0,
            // As likely true as not: it is asked for once more.
            Error::UnpoweredCard
            | Error::UnresponsiveCard
            | Error::NoSmartcard
            | Error::RemovedCard => !std::mem::replace(&mut self.was_doubted, true),
            _ => false,
        };
        if is_worth_it {
            self.left = self.left.saturating_sub(1);
            std::thread::sleep(self.pauses.next_delay());
        }
        is_worth_it
    }
}

/// The card's answer to reset and the protocol it speaks.
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

/// Waits until no other handle is in a transaction, or `until`.
///
/// SCardBeginTransaction would wait for ever, in steps of 100 ms in the library and 100 ms in pcscd.
/// SCardControl is refused at once while another holds the card, so it is asked instead, in shorter steps.
pub(super) fn wait_until_unlocked(card: &Card, deadline: Instant) -> Result<(), Error> {
    let mut pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    let mut features = [0; 256];
    while let Err(Error::SharingViolation) =
        card.control(::pcsc::ctl_code(GET_FEATURES), &[], &mut features)
    {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::SharingViolation);
        }
        std::thread::sleep(pauses.next_delay().min(left));
    }
    Ok(())
}

/// The reason of a failed exchange: that card or reader are gone, where that explains it.
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

/// Sends one frame over `scratch`, which is wiped again.
pub(super) fn transmit(
    card: &Card,
    frame: &[u8],
    scratch: &mut [u8],
    response: &mut ResponseBuffer,
) -> Result<(), Error> {
    let len = match card.transmit2(frame, scratch) {
        Ok(answer) => answer.len(),
        Err((error, _)) => {
            scratch.zeroize();
            return Err(error);
        }
    };
    let answer = scratch.get_mut(..len).unwrap_or(&mut []);
    let fits = response.set(answer).map_err(|_| Error::InsufficientBuffer);
    answer.zeroize();
    fits
}
