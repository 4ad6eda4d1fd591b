//! The transport to a card of pcscd.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use ::pcsc::{Card, Disposition, Error, Protocol};
use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Sent, Transmit, Transport, TransportError,
    TransportErrorKind,
};
use zeroize::Zeroizing;

use super::{
    error::{about, sent},
    handle::{self, CardHandle, ConnectedCard, Handle, Unsettled},
    watchdog::{CallWatchdog, WatchedContext},
};
use crate::reader::ReaderId;

/// How many resets by other programs the beginning of a transaction tolerates.
const MAX_RESETS: usize = 8;
/// Longest command frame that every reader of extended APDUs is assumed to accept. Some tokens accept 1,342 bytes.
/// libccid splits a longer command as CCID specifies, and those tokens take the rest for a separate command.
const MAX_KNOWN_LENGTH: usize = 1024;
/// How long pcscd may take to end a transaction, to reconnect a card or to query a card's status.
const SHORT_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The transport to one card. See [`Transport`].
pub(super) struct PcscTransport {
    handle_state: HandleState,
    state: TransportState,
}

enum HandleState {
    Open(CardHandle),
    /// Every later call returns this error.
    Closed(TransportError),
}

/// The state of the transport without the card handle, which a transaction borrows.
struct TransportState {
    established: Arc<WatchedContext>,
    reader: String,
    atr: Atr,
    protocol: Protocol,
    epoch: Epoch,
    scratch: Zeroizing<Vec<u8>>,
    /// Why the handle is unusable. `None` while it is usable.
    unusable: Option<TransportError>,
}

impl PcscTransport {
    pub(super) fn connect(
        watchdog: &Arc<CallWatchdog>,
        reader: &ReaderId,
        call: Call,
    ) -> Result<Self, TransportError> {
        let name = reader.name();
        let mut unsettled = Unsettled::default();
        loop {
            match Self::connect_once(watchdog, name, call) {
                // Each attempt makes a new handle. pcscd powers up a card that it has just switched off only for a
                // new connection.
                Err((_, error))
                    if Instant::now() < call.deadline && unsettled.should_retry(error) => {}
                Err((operation, error)) => {
                    return Err(about(operation, Some(name), error, Sent::No));
                }
                Ok(transport) => return Ok(transport),
            }
        }
    }

    /// Tries once to connect. An error names the operation that failed.
    fn connect_once(
        watchdog: &Arc<CallWatchdog>,
        name: &str,
        call: Call,
    ) -> Result<Self, (&'static str, Error)> {
        let mut card_handle =
            CardHandle::open(watchdog, name, call).map_err(|error| ("SCardConnect", error))?;
        let established = Arc::clone(card_handle.established());
        let connected = established.run_until(call.deadline, || {
            card_handle
                .card()
                .and_then(|card| handle::connected_card(card))
        });
        let connected = connected.map_err(|error| ("SCardStatus", error))?;
        Ok(Self {
            handle_state: HandleState::Open(card_handle),
            state: TransportState::new(name, connected, established),
        })
    }

    /// Runs `work` on the handle. Closes the handle if `work` found it unusable.
    fn open_handle<T>(
        &mut self,
        work: impl FnOnce(&mut Card, &mut TransportState) -> Result<T, TransportError>,
    ) -> Result<T, TransportError> {
        let Self {
            handle_state,
            state,
        } = self;
        let card_handle = match handle_state {
            HandleState::Open(card_handle) => card_handle,
            HandleState::Closed(why) => return Err(why.clone()),
        };
        let outcome = match card_handle.card() {
            Ok(card) => work(card, state),
            Err(error) => Err(about("handle", Some(&state.reader), error, Sent::No)),
        };
        if let Some(why) = state.unusable.take() {
            *handle_state = HandleState::Closed(why);
        }
        outcome
    }
}

impl TransportState {
    fn new(reader: &str, connected: ConnectedCard, established: Arc<WatchedContext>) -> Self {
        Self {
            established,
            reader: reader.to_owned(),
            atr: connected.atr,
            protocol: connected.protocol,
            epoch: Epoch::default(),
            scratch: Zeroizing::new(vec![0; ResponseBuffer::MAX]),
            unusable: None,
        }
    }

    /// Runs a call for which pcscd does not need the card.
    fn run_short<T>(&self, call: impl FnOnce() -> T) -> T {
        self.established
            .run_short(Instant::now() + SHORT_CALL_TIMEOUT, call)
    }

    /// Makes the error of `operation`. Keeps the error if the handle is unusable after it.
    fn failed(&mut self, operation: &str, error: Error, sent: Sent) -> TransportError {
        let was_aborted = self.established.was_aborted();
        let error = if was_aborted { Error::Timeout } else { error };
        let error = about(operation, Some(&self.reader), error, sent);
        if was_aborted
            || matches!(
                error.kind,
                TransportErrorKind::NoService
                    | TransportErrorKind::NoReader
                    | TransportErrorKind::NoCard
                    | TransportErrorKind::CardRemoved
            )
        {
            self.unusable = Some(TransportError {
                sent: Sent::No,
                ..error.clone()
            });
        }
        error
    }

    /// Reconnects to a card that another program reset, and begins a new epoch.
    fn reconnect(&mut self, handle: &mut impl Handle) -> Result<(), TransportError> {
        self.epoch.0 += 1;
        let connected = self.run_short(|| handle::reconnect(handle));
        let connected =
            connected.map_err(|error| self.failed("SCardReconnect", error, Sent::No))?;
        self.atr = connected.atr;
        self.protocol = connected.protocol;
        Ok(())
    }

    /// Sends one frame and receives its response.
    fn transmit_frame(
        &mut self,
        card: &Card,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransmitError> {
        if let Some(why) = &self.unusable {
            return Err(TransmitError::Other(why.clone()));
        }
        if Instant::now() >= call.deadline {
            return Err(TransmitError::Other(about(
                "SCardTransmit",
                Some(&self.reader),
                Error::Timeout,
                Sent::No,
            )));
        }
        let frame = match self.protocol {
            Protocol::T0 => t0_tpdu(frame),
            _ => Cow::Borrowed(frame),
        };
        let scratch = &mut self.scratch;
        let outcome = self.established.run_until(call.deadline, || {
            handle::transmit(card, &frame, scratch, response)
        });
        match outcome {
            // During another program's reset, pcscd first clears the protocol.
            Err(Error::ResetCard | Error::ProtoMismatch) => Err(TransmitError::Reset),
            Err(error) => {
                let sent = sent(error);
                let error = self.run_short(|| handle::refine_error(card, error));
                Err(TransmitError::Other(self.failed(
                    "SCardTransmit",
                    error,
                    sent,
                )))
            }
            Ok(()) => Ok(()),
        }
    }

    /// Makes the error that informs the caller of a reset. The handle has been reconnected before.
    fn reset_reported(&self) -> TransportError {
        about(
            "SCardTransmit",
            Some(&self.reader),
            Error::ResetCard,
            Sent::No,
        )
    }
}

/// Why an exchange failed.
enum TransmitError {
    /// Another program reset the card. The handle must be reconnected.
    Reset,
    Other(TransportError),
}

/// Returns a frame as T=0 carries it (ISO 7816-3, 12.2): case 1 with P3 = 0, case 4 without Le.
fn t0_tpdu(frame: &[u8]) -> Cow<'_, [u8]> {
    match frame {
        [_, _, _, _] => Cow::Owned([frame, &[0]].concat()),
        [_, _, _, _, lc, rest @ ..] if *lc != 0 && rest.len() == usize::from(*lc) + 1 => {
            Cow::Borrowed(frame.get(..frame.len() - 1).unwrap_or(frame))
        }
        _ => Cow::Borrowed(frame),
    }
}

/// Waits until no other program is in a transaction, and begins one.
fn begin<'a>(
    mut card: &'a mut Card,
    state: &mut TransportState,
    call: Call,
) -> Result<::pcsc::Transaction<'a>, TransportError> {
    for _ in 0..MAX_RESETS {
        let established = Arc::clone(&state.established);
        established
            .run_until(call.deadline, || {
                handle::wait_until_unlocked(card, call.deadline)
            })
            .map_err(|error| state.failed("SCardBeginTransaction", error, Sent::No))?;
        match established.run_until(call.deadline, || card.transaction2()) {
            Ok(transaction) => return Ok(transaction),
            Err((back, Error::ResetCard)) => {
                state.reconnect(back)?;
                card = back;
            }
            Err((_, error)) => {
                return Err(state.failed("SCardBeginTransaction", error, Sent::No));
            }
        }
    }
    Err(state.failed("SCardBeginTransaction", Error::SharingViolation, Sent::No))
}

impl Transmit for PcscTransport {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.open_handle(
            |card, state| match state.transmit_frame(card, frame, response, call) {
                Err(TransmitError::Reset) => {
                    state.reconnect(card)?;
                    Err(state.reset_reported())
                }
                Err(TransmitError::Other(error)) => Err(error),
                Ok(()) => Ok(()),
            },
        )
    }
}

impl Transport for PcscTransport {
    fn atr(&self) -> &Atr {
        &self.state.atr
    }

    /// Returns the limits of the protocol. PC/SC does not report what a reader can carry. T=0 carries only short
    /// frames.
    fn limits(&self) -> Limits {
        match self.state.protocol {
            Protocol::T0 => Limits::SHORT,
            _ => Limits::extended_known_to(MAX_KNOWN_LENGTH),
        }
    }

    fn epoch(&self) -> Epoch {
        self.state.epoch
    }

    fn is_closed(&self) -> bool {
        matches!(self.handle_state, HandleState::Closed(_)) || self.state.established.is_closed()
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        self.open_handle(|card, state| {
            // A panic drops the transaction, which then ends with SCARD_LEAVE_CARD.
            let transaction = begin(card, state, call)?;
            let mut pcsc_transaction = PcscTransaction { transaction, state };
            body(&mut pcsc_transaction);
            pcsc_transaction.end();
            Ok(())
        })
    }
}

/// A transaction on the card.
struct PcscTransaction<'a> {
    transaction: ::pcsc::Transaction<'a>,
    state: &'a mut TransportState,
}

impl PcscTransaction<'_> {
    fn end(self) {
        let Self { transaction, state } = self;
        let Err((_, error)) = state.run_short(|| transaction.end(Disposition::LeaveCard)) else {
            return;
        };
        // After a removal or a reset during the transaction, pcscd keeps the lock until the handle is closed.
        let error = about("SCardEndTransaction", Some(&state.reader), error, Sent::No);
        tracing::warn!("{error}; the card handle is closed, so that pcscd releases the card");
        state.unusable.get_or_insert(error);
    }
}

impl Transmit for PcscTransaction<'_> {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        match self
            .state
            .transmit_frame(&self.transaction, frame, response, call)
        {
            Err(TransmitError::Reset) => {
                self.state.reconnect(&mut self.transaction)?;
                Err(self.state.reset_reported())
            }
            Err(TransmitError::Other(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t0_carries_the_four_cases() {
        assert_eq!(*t0_tpdu(&[0, 0x44, 0, 0]), [0, 0x44, 0, 0, 0], "case 1");
        assert_eq!(
            *t0_tpdu(&[0, 0xB0, 0, 0, 16]),
            [0, 0xB0, 0, 0, 16],
            "case 2"
        );
        assert_eq!(
            *t0_tpdu(&[0, 0x20, 0, 1, 2, 8, 9]),
            [0, 0x20, 0, 1, 2, 8, 9],
            "case 3"
        );
        assert_eq!(
            *t0_tpdu(&[0, 0xA4, 4, 0, 2, 8, 9, 0]),
            [0, 0xA4, 4, 0, 2, 8, 9],
            "case 4"
        );
        assert_eq!(
            *t0_tpdu(&[0, 0xCA, 0, 0, 0]),
            [0, 0xCA, 0, 0, 0],
            "case 2 with Le 00"
        );
    }
}
