//! A card of pcscd as a transport.

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

/// Resets of the card by others that the beginning of a transaction goes along with.
const MAX_RESETS: usize = 8;
/// Longest command frame that every reader of extended APDUs is taken to carry. Some tokens have room for 1,342 bytes, and take the
/// rest of a longer command, which libccid sends as CCID has it, for a command of its own.
const MAX_KNOWN_LENGTH: usize = 1024;
/// How long pcscd may take to end a transaction, and to say what became of a card.
const SHORT_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// See [`Transport`].
pub(super) struct PcscTransport {
    link: HandleState,
    state: TransportState,
}

enum HandleState {
    Open(CardHandle),
    /// What every later call is told.
    Closed(TransportError),
}

/// What is known of the card, apart from the handle itself, which a transaction borrows.
struct TransportState {
    established: Arc<WatchedContext>,
    reader: String,
    atr: Atr,
    protocol: Protocol,
    epoch: Epoch,
    scratch: Zeroizing<Vec<u8>>,
    /// Why the handle is of no more use.
    over: Option<TransportError>,
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
                // A new handle each time: only connecting gives power to a card that pcscd has just switched off.
                Err((_, error)) if Instant::now() < call.deadline && unsettled.goes_on(error) => {}
                Err((operation, error)) => {
                    return Err(about(operation, Some(name), error, Sent::No));
                }
                Ok(transport) => return Ok(transport),
            }
        }
    }

    /// One attempt, or the operation that failed.
    fn connect_once(
        watchdog: &Arc<CallWatchdog>,
        name: &str,
        call: Call,
    ) -> Result<Self, (&'static str, Error)> {
        let mut connection =
            CardHandle::open(watchdog, name, call).map_err(|error| ("SCardConnect", error))?;
        let established = Arc::clone(connection.established());
        let found = established.run_until(call.deadline, || {
            connection
                .card()
                .and_then(|card| handle::connected_card(card))
        });
        let found = found.map_err(|error| ("SCardStatus", error))?;
        Ok(Self {
            link: HandleState::Open(connection),
            state: TransportState::new(name, found, established),
        })
    }

    /// Runs `work` on the handle, and lets go of it when `work` found it of no more use.
    fn open_handle<T>(
        &mut self,
        work: impl FnOnce(&mut Card, &mut TransportState) -> Result<T, TransportError>,
    ) -> Result<T, TransportError> {
        let Self { link, state } = self;
        let connection = match link {
            HandleState::Open(connection) => connection,
            HandleState::Closed(why) => return Err(why.clone()),
        };
        let outcome = match connection.card() {
            Ok(card) => work(card, state),
            Err(error) => Err(about("handle", Some(&state.reader), error, Sent::No)),
        };
        if let Some(why) = state.over.take() {
            *link = HandleState::Closed(why);
        }
        outcome
    }
}

impl TransportState {
    fn new(reader: &str, found: ConnectedCard, established: Arc<WatchedContext>) -> Self {
        Self {
            established,
            reader: reader.to_owned(),
            atr: found.atr,
            protocol: found.protocol,
            epoch: Epoch::default(),
            scratch: Zeroizing::new(vec![0; ResponseBuffer::MAX]),
            over: None,
        }
    }

    /// Runs a call that pcscd answers by itself.
    fn bound<T>(&self, call: impl FnOnce() -> T) -> T {
        self.established
            .run_short(Instant::now() + SHORT_CALL_TIMEOUT, call)
    }

    /// The error of `operation`; remembers it when the handle did not survive it.
    fn failed(&mut self, operation: &str, error: Error, sent: Sent) -> TransportError {
        let is_cut = self.established.was_aborted();
        let error = if is_cut { Error::Timeout } else { error };
        let error = about(operation, Some(&self.reader), error, sent);
        if is_cut
            || matches!(
                error.kind,
                TransportErrorKind::NoService
                    | TransportErrorKind::NoReader
                    | TransportErrorKind::NoCard
                    | TransportErrorKind::CardRemoved
            )
        {
            self.over = Some(TransportError {
                sent: Sent::No,
                ..error.clone()
            });
        }
        error
    }

    /// Goes on with a card that was reset by another.
    fn reconnect(&mut self, handle: &mut impl Handle) -> Result<(), TransportError> {
        self.epoch.0 += 1;
        let found = self.bound(|| handle::reconnect(handle));
        let found = found.map_err(|error| self.failed("SCardReconnect", error, Sent::No))?;
        self.atr = found.atr;
        self.protocol = found.protocol;
        Ok(())
    }

    /// One frame and its answer.
    fn transmit_frame(
        &mut self,
        card: &Card,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransmitError> {
        if let Some(why) = &self.over {
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
            // While another resets the card, pcscd forgets the protocol first.
            Err(Error::ResetCard | Error::ProtoMismatch) => Err(TransmitError::Reset),
            Err(error) => {
                let sent = sent(error);
                let error = self.bound(|| handle::refine_error(card, error));
                Err(TransmitError::Other(self.failed(
                    "SCardTransmit",
                    error,
                    sent,
                )))
            }
            Ok(()) => Ok(()),
        }
    }

    /// What a reset is to the caller once it has been dealt with.
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
    /// Another user reset the card; the handle is to be reconnected.
    Reset,
    Other(TransportError),
}

/// A frame as T=0 carries it (ISO 7816-3, 12.2): case 1 with P3 = 0, case 4 without Le.
fn t0_tpdu(frame: &[u8]) -> Cow<'_, [u8]> {
    match frame {
        [_, _, _, _] => Cow::Owned([frame, &[0]].concat()),
        [_, _, _, _, lc, rest @ ..] if *lc != 0 && rest.len() == usize::from(*lc) + 1 => {
            Cow::Borrowed(frame.get(..frame.len() - 1).unwrap_or(frame))
        }
        _ => Cow::Borrowed(frame),
    }
}

/// Begins a transaction when it is our turn.
fn begin<'a>(
    mut card: &'a mut Card,
    state: &mut TransportState,
    call: Call,
) -> Result<::pcsc::Transaction<'a>, TransportError> {
    for _ in 0..MAX_RESETS {
        let link = Arc::clone(&state.established);
        link.run_until(call.deadline, || {
            handle::wait_until_unlocked(card, call.deadline)
        })
        .map_err(|error| state.failed("SCardBeginTransaction", error, Sent::No))?;
        match link.run_until(call.deadline, || card.transaction2()) {
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

    /// PC/SC does not tell what a reader can carry, and T=0 carries short frames in any case.
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
        matches!(self.link, HandleState::Closed(_)) || self.state.established.is_closed()
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        self.open_handle(|card, state| {
            // Dropped in a panic, the transaction ends with SCARD_LEAVE_CARD by itself.
            let transaction = begin(card, state, call)?;
            let mut held = PcscTransaction { transaction, state };
            body(&mut held);
            held.end();
            Ok(())
        })
    }
}

/// The card while nobody else may use it.
struct PcscTransaction<'a> {
    transaction: ::pcsc::Transaction<'a>,
    state: &'a mut TransportState,
}

impl PcscTransaction<'_> {
    fn end(self) {
        let Self { transaction, state } = self;
        let Err((_, error)) = state.bound(|| transaction.end(Disposition::LeaveCard)) else {
            return;
        };
        // pcscd keeps the lock when the card was removed or reset meanwhile; only the handle's end frees it.
        let error = about("SCardEndTransaction", Some(&state.reader), error, Sent::No);
        tracing::warn!("{error}; the connection was closed");
        state.over.get_or_insert(error);
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
