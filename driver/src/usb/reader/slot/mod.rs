//! A claimed reader and the card in one of its slots: power, exchanges and recovery.
//!
//! ```text
//! power ──► plan ──► PPS ──► SetParameters      the negotiation after each reset
//! exchange ──► apdu                             readers of the APDU levels
//!         └──► protocol state ──► block         T=1 and T=0, in blocks or characters
//! ```

mod apdu;
mod block;
mod capabilities;
mod negotiation;
mod power;
mod protocol_state;

pub(crate) use self::capabilities::Capabilities;
use std::{sync::Arc, time::Instant};

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Sent, TransportError, TransportErrorKind,
};

use self::protocol_state::ProtocolState;
use crate::{
    ccid::{
        budget,
        message::{Command, IccStatus, SlotError},
    },
    protocol::{Protocol, TransmissionParameters},
    usb::{
        discovery::reader_info::ReaderInterface,
        pipe::{
            CommandPipe, SlotPipe,
            bulk::{BulkError, BulkErrorKind, ResponseTimeout, SlotResponse},
        },
    },
    wait::StopFlag,
};

/// One CCID slot of a claimed reader. What it knows of the card holds while the claim lasts.
#[derive(Debug)]
pub(crate) struct CcidSlot {
    name: String,
    pipe: SlotPipe,
    slot: u8,
    reader: Capabilities,
    stop: Arc<StopFlag>,
    card: Option<Card>,
    /// The slot status of the last response.
    icc: Option<IccStatus>,
    /// The reader was recovered from the middle of a command, the card not yet.
    card_unsynchronized: bool,
    /// ATR of a card whose negotiation failed. There is no second negotiation with that card.
    unnegotiable: Option<Atr>,
    epoch: Epoch,
}

/// The powered card and the parameters agreed with it.
#[derive(Debug)]
pub(crate) struct Card {
    atr: Atr,
    /// The protocol of the card, if it is known. A reader of the APDU levels may not report it.
    protocol: Option<Protocol>,
    /// The protocol state of the card. `None` for a reader of the APDU levels.
    protocol_state: Option<ProtocolState>,
}

impl CcidSlot {
    /// The slot numbered `slot` of the reader behind `bulk`; `stop` ends every wait.
    pub(crate) fn new(
        name: String,
        bulk: impl Into<SlotPipe>,
        slot: u8,
        reader: Capabilities,
        stop: Arc<StopFlag>,
    ) -> Self {
        Self {
            name,
            pipe: bulk.into(),
            slot,
            reader,
            stop,
            card: None,
            icc: None,
            card_unsynchronized: false,
            unnegotiable: None,
            epoch: Epoch::default(),
        }
    }

    /// Resumes the epoch of the claim before, unsynchronized if it was.
    pub(crate) const fn resume(&mut self, epoch: Epoch, in_step: bool) {
        self.epoch = epoch;
        if !in_step {
            self.pipe.mark_desynchronized();
        }
    }

    /// Replaces the stop that ends every wait.
    pub(crate) fn set_stop(&mut self, stop: &Arc<StopFlag>) {
        self.stop = Arc::clone(stop);
    }

    /// Assumes that the active card is the one with this ATR. A TPDU card must be powered anew, because its parameters are
    /// unknown.
    pub(crate) fn assume_powered(&mut self, atr: Atr) {
        if !self.reader.takes_apdus() {
            return;
        }
        let device = negotiation::common_protocols(&self.reader, &TransmissionParameters::of(&atr));
        self.card = Some(Card {
            atr,
            protocol: device.first().copied(),
            protocol_state: None,
        });
    }

    /// Restores a card that was powered within this claim.
    pub(crate) fn restore_card(&mut self, card: Card) {
        self.card = Some(card);
    }

    /// The card and its parameters, at the end of the use.
    pub(crate) fn into_card(self) -> Option<Card> {
        self.card
    }

    /// The frame lengths that reach the card. Short while no card is powered.
    pub(crate) fn limits(&self) -> Limits {
        match &self.card {
            Some(card) => self.reader.limits(card.protocol),
            None => Limits::SHORT,
        }
    }

    /// Returns the last reported state of the slot. `None` if the reader has not been sent anything yet.
    pub(crate) const fn icc(&self) -> Option<IccStatus> {
        self.icc
    }

    /// Returns whether the next command can be sent without recovery.
    pub(crate) fn is_synchronized(&self) -> bool {
        self.pipe.is_synchronized() && !self.card_unsynchronized
    }

    /// The slot's use of the reader's pipe.
    pub(crate) const fn pipe(&self) -> &SlotPipe {
        &self.pipe
    }

    /// The answer to reset of the powered card.
    pub(crate) fn atr(&self) -> Option<&Atr> {
        self.card.as_ref().map(|card| &card.atr)
    }

    /// Counts the times the card lost its state.
    pub(crate) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Queries the state of the slot. An unsynchronized slot is recovered first, and its card is then reset before the next
    /// command. The device is never reset.
    ///
    /// # Errors
    /// [`TransportError`].
    pub(crate) fn status(&mut self, call: Call) -> Result<IccStatus, TransportError> {
        self.query_status(call, |slot| {
            slot.pipe.recover(slot.slot, call.deadline, &slot.stop)
        })
    }

    /// [`CcidSlot::status`] of a slot whose card is to be used. A device that does not respond is reset.
    ///
    /// # Errors
    /// [`TransportError`].
    pub(crate) fn status_or_reset(&mut self, call: Call) -> Result<IccStatus, TransportError> {
        self.query_status(call, |slot| slot.recover_or_reset(call))
    }

    fn query_status(
        &mut self,
        call: Call,
        recover: impl FnOnce(&mut Self) -> Result<SlotResponse, BulkError>,
    ) -> Result<IccStatus, TransportError> {
        let limit = ResponseTimeout::per_message(budget::STATUS, call.deadline);
        self.card_unsynchronized |= !self.pipe.is_synchronized();
        let reply = if self.pipe.is_synchronized() {
            let asked = self.command(&Command::GetSlotStatus, limit);
            match asked.and_then(SlotResponse::idle) {
                // The first response after another owner has released the reader may be lost in the data that the owner left
                // behind.
                Err(error) if !error.kind.is_final() => {
                    let is_busy = error.kind == BulkErrorKind::SlotBusy;
                    self.card_unsynchronized |= is_busy || self.card.is_none();
                    recover(self)
                }
                asked => asked,
            }
        } else {
            recover(self)
        };
        let reply =
            reply.map_err(|error| self.before_card("asking for the slot's status", error))?;
        Ok(self.note_presence(&reply))
    }

    /// Synchronizes the slot. Resets a device that does not respond, if there is time for that.
    fn recover_or_reset(&mut self, call: Call) -> Result<SlotResponse, BulkError> {
        let before_reset = call.deadline.checked_sub(budget::DEVICE_RESET);
        // The shortest time in which a recovery can detect that the reader does not respond.
        let shortest = Instant::now() + budget::ABORT + budget::STATUS;
        let deadline = before_reset
            .filter(|deadline| *deadline >= shortest)
            .unwrap_or(call.deadline);
        let error = match self.pipe.recover(self.slot, deadline, &self.stop) {
            Err(error) if error.kind.needs_time() || !error.kind.is_final() => error,
            result => return result,
        };
        if self.stop.is_set() || Instant::now() >= call.deadline {
            return Err(error);
        }
        if !error.kind.needs_time() {
            tracing::warn!(
                "{}: the reader does not respond ({}); it is reset",
                self.name,
                error.kind
            );
            self.pipe.reset_device();
            self.epoch.0 += u64::from(self.card.take().is_some());
        }
        self.pipe.recover(self.slot, call.deadline, &self.stop)
    }

    /// Takes in the slot status of a response.
    fn note_presence(&mut self, reply: &SlotResponse) -> IccStatus {
        self.icc = Some(reply.icc);
        if reply.icc != IccStatus::Active && self.card.take().is_some() {
            self.epoch.0 += 1;
        }
        reply.icc
    }

    /// Sends one message and waits for its response.
    fn command(
        &mut self,
        command: &Command<'_>,
        limit: impl Into<ResponseTimeout>,
    ) -> Result<SlotResponse, BulkError> {
        let reply = self.pipe.command(command, self.slot, limit, &self.stop)?;
        self.icc = Some(reply.icc);
        Ok(reply)
    }

    /// Sends one frame to the card and puts the response into `response`.
    ///
    /// # Errors
    /// [`TransportError`]. [`TransportErrorKind::CardReset`] if the card had to be reset because an earlier command got no
    /// response. This command was then not sent.
    pub(crate) fn exchange(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        if !self.is_synchronized() {
            return Err(self.recover_card(call));
        }
        let Some(card) = &mut self.card else {
            let what = "the card is not powered";
            return Err(self.error(TransportErrorKind::NoCard, Sent::No, what));
        };
        let answer = match card.protocol_state.take() {
            None => self.exchange_apdu(frame, call)?,
            Some(mut line) => {
                let answer = self.run_protocol(&mut line, frame, call);
                if let Some(card) = &mut self.card {
                    card.protocol_state = Some(line);
                }
                answer?
            }
        };
        response.set(answer.expose()).map_err(|_| {
            self.error(
                TransportErrorKind::Protocol,
                Sent::Yes,
                "the response is too long",
            )
        })
    }

    /// Makes the error of a block that the reader could not exchange with the card. `first` means that it was the command's first
    /// block.
    fn block_error(
        &mut self,
        error: SlotError,
        reply: &SlotResponse,
        first: bool,
        sent: Sent,
    ) -> TransportError {
        let icc = self.note_presence(reply);
        let (kind, sent) = match (error, icc) {
            (SlotError::SlotBusy, _) if first => (TransportErrorKind::Busy, Sent::No),
            (_, IccStatus::Absent) => (TransportErrorKind::CardRemoved, sent),
            _ => (TransportErrorKind::Protocol, sent),
        };
        // A card that did not respond may still run the command.
        if !matches!(
            kind,
            TransportErrorKind::Busy | TransportErrorKind::CardRemoved
        ) {
            self.pipe.mark_desynchronized();
        }
        self.error(kind, sent, &format!("the command failed: {error}"))
    }

    /// Recovers the reader: synchronizes it, then power-cycles the card. Resets a device that does not respond.
    /// The error says that the card's state is lost, or why recovery failed.
    fn recover_card(&mut self, call: Call) -> TransportError {
        let mut reset = self.reset_card(call);
        if reset.is_err() && !self.pipe.is_synchronized() && Instant::now() < call.deadline {
            reset = self.reset_card(call);
        }
        match reset {
            Ok(()) => {
                let what = "the card was reset, because an earlier command got no response";
                self.error(TransportErrorKind::CardReset, Sent::No, what)
            }
            Err(error) => error,
        }
    }

    fn reset_card(&mut self, call: Call) -> Result<(), TransportError> {
        self.recover_or_reset(call)
            .map_err(|error| self.before_card("bringing the reader back", error))?;
        self.power_off(call)?;
        self.power_on(call).map(|_| ())
    }

    fn before_card(&self, doing: &str, error: BulkError) -> TransportError {
        let sent = Sent::No;
        self.transfer_error(doing, BulkError { sent, ..error })
    }

    fn transfer_error(&self, doing: &str, error: BulkError) -> TransportError {
        self.error(
            error.kind.transport_kind(),
            error.sent,
            &format!("{doing}: {}", error.kind),
        )
    }

    fn error(&self, kind: TransportErrorKind, sent: Sent, what: &str) -> TransportError {
        TransportError {
            kind,
            sent,
            what: format!("reader {}: {what}", self.name),
        }
    }
}

/// The driver of slot `slot` of a claimed reader.
pub(crate) fn new_slot(
    pipe: Arc<CommandPipe>,
    reader: ReaderInterface,
    slot: u8,
    stop: &Arc<StopFlag>,
) -> CcidSlot {
    let capabilities = Capabilities::new(reader.class, reader.quirks);
    let pipe = SlotPipe::new(pipe);
    CcidSlot::new(reader.name, pipe, slot, capabilities, Arc::clone(stop))
}
