//! A claimed reader and the card in one of its slots: power, exchanges, and the way back into step.

use std::{sync::Arc, time::Instant};

use claviger_apdu::{
    Atr, Call, Epoch, ResponseBuffer, Secret, Sent, TransportError, TransportErrorKind,
};

use super::bulk::{Bulk, BulkError, Reply, Why};
use crate::{
    ccid::{
        apdu_level::{ApduExchange, Progress},
        budget,
        descriptor::{ClassDescriptor, ExchangeLevel},
        message::{Command, HEADER, IccStatus, SlotError, Voltage},
    },
    wait::Stop,
};

/// One slot of a claimed reader. What it knows of a card is true as long as nobody else has had the reader.
#[derive(Debug)]
pub(crate) struct Device {
    name: String,
    bulk: Bulk,
    slot: u8,
    class: ClassDescriptor,
    stop: Arc<Stop>,
    atr: Option<Atr>,
    epoch: Epoch,
}

impl Device {
    /// The slot numbered `slot` of the reader behind `bulk`; `stop` ends every wait.
    pub(crate) fn new(
        name: String,
        bulk: Bulk,
        slot: u8,
        class: ClassDescriptor,
        stop: Arc<Stop>,
    ) -> Self {
        Self {
            name,
            bulk,
            slot,
            class,
            stop,
            atr: None,
            epoch: Epoch::default(),
        }
    }

    /// Goes on where another driver of the same reader ended: in its epoch, and out of step if it was.
    pub(crate) const fn resume(&mut self, epoch: Epoch, in_step: bool) {
        self.epoch = epoch;
        if !in_step {
            self.bulk.fall_out_of_step();
        }
    }

    /// Takes a card that is powered for the one with this answer to reset.
    pub(crate) fn adopt(&mut self, atr: Atr) {
        self.atr = Some(atr);
    }

    /// Whether the next command can be sent without bringing the reader back.
    pub(crate) const fn is_in_step(&self) -> bool {
        self.bulk.is_in_step()
    }

    /// The answer to reset of the powered card.
    pub(crate) const fn atr(&self) -> Option<&Atr> {
        self.atr.as_ref()
    }

    /// Counts the times the card lost its state.
    pub(crate) const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the slot holds. A reader that was left in the middle of something is brought back first.
    ///
    /// # Errors
    /// [`TransportError`].
    pub(crate) fn status(&mut self, call: Call) -> Result<IccStatus, TransportError> {
        let until = call.deadline.min(Instant::now() + budget::STATUS);
        let asked = if self.bulk.is_in_step() {
            self.bulk
                .command(&Command::GetSlotStatus, self.slot, until, &self.stop)
        } else {
            self.bulk.recover(self.slot, call.deadline, &self.stop)
        };
        // The first answer after another owner has left may be lost in what that one left behind.
        let reply = match asked {
            Err(error) if !matches!(error.why, Why::Gone | Why::Stopped) => {
                self.bulk.recover(self.slot, call.deadline, &self.stop)
            }
            asked => asked,
        };
        let reply =
            reply.map_err(|error| self.before_card("asking for the slot's status", error))?;
        Ok(self.noted(&reply))
    }

    /// Takes in what an answer says of the slot.
    fn noted(&mut self, reply: &Reply) -> IccStatus {
        if reply.icc != IccStatus::Active && self.atr.take().is_some() {
            self.epoch.0 += 1;
        }
        reply.icc
    }

    /// Powers the card, which resets it, at the lowest voltage first that the reader offers.
    ///
    /// # Errors
    /// NoCard when there is none or it does not answer; else [`TransportError`].
    pub(crate) fn power_on(&mut self, call: Call) -> Result<&Atr, TransportError> {
        self.epoch.0 += 1;
        self.atr = None;
        let mut last = None;
        for voltage in voltages(&self.class) {
            let reply = self.ask(&Command::IccPowerOn { voltage }, "powering the card", call)?;
            match reply.error {
                None => return self.take_atr(reply.data()),
                Some(_) if reply.icc == IccStatus::Absent => {
                    return Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"));
                }
                Some(SlotError::Aborted) => {
                    // The reader waits for the other half of an Abort, which it has not got.
                    self.bulk.fall_out_of_step();
                    let what = "the reader is still aborting an earlier command";
                    return Err(self.error(TransportErrorKind::Protocol, Sent::No, what));
                }
                Some(error) => last = Some(error),
            }
            self.ask(&Command::IccPowerOff, "taking power from the card", call)?;
        }
        let what = match last {
            Some(error) => format!("the card does not answer its reset ({error})"),
            None => "the card does not answer its reset".to_owned(),
        };
        Err(self.error(TransportErrorKind::NoCard, Sent::No, &what))
    }

    fn take_atr(&mut self, bytes: &[u8]) -> Result<&Atr, TransportError> {
        let mute = |error| {
            let what = format!("mute card: {error}");
            self.error(TransportErrorKind::NoCard, Sent::No, &what)
        };
        let atr = Atr::parse(bytes).map_err(mute)?;
        Ok(self.atr.insert(atr))
    }

    /// A command about the slot that does not reach the card's applications.
    fn ask(
        &mut self,
        command: &Command<'_>,
        what: &str,
        call: Call,
    ) -> Result<Reply, TransportError> {
        let until = call.deadline.min(Instant::now() + budget::POWER_ON);
        let reply = self.bulk.command(command, self.slot, until, &self.stop);
        reply.map_err(|error| self.before_card(what, error))
    }

    /// Sends one frame to the card and puts its answer into `response`.
    ///
    /// # Errors
    /// [`TransportError`]; [`TransportErrorKind::CardReset`] when the card had to be reset because an earlier
    /// command was not answered, and this one was not sent.
    pub(crate) fn exchange(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        if !self.bulk.is_in_step() {
            return Err(self.come_back(call));
        }
        if self.atr.is_none() {
            return Err(self.error(
                TransportErrorKind::NoCard,
                Sent::No,
                "the card is not powered",
            ));
        }
        let answer = match self.class.exchange_level() {
            ExchangeLevel::ShortApdu | ExchangeLevel::ExtendedApdu => {
                self.exchange_apdu(frame, call)?
            }
            ExchangeLevel::Tpdu | ExchangeLevel::Character => {
                let what = "the reader takes only TPDUs or characters, which the driver does not speak yet";
                return Err(self.error(TransportErrorKind::Protocol, Sent::No, what));
            }
        };
        response.set(answer.expose()).map_err(|_| {
            self.error(
                TransportErrorKind::Protocol,
                Sent::Yes,
                "the answer is too long",
            )
        })
    }

    fn exchange_apdu(&mut self, frame: &[u8], call: Call) -> Result<Secret, TransportError> {
        let longest = self.class.max_message_length().saturating_sub(HEADER);
        let mut exchange = ApduExchange::new(frame, longest);
        let mut begun = false;
        loop {
            let (level_parameter, data) = exchange.block();
            let block = Command::XfrBlock {
                bwi: 0,
                level_parameter,
                data,
            };
            let reply = self
                .bulk
                .command(&block, self.slot, call.deadline, &self.stop)
                .map_err(|error| {
                    let sent = if begun { Sent::Maybe } else { error.sent };
                    self.transfer_error("the command", BulkError { sent, ..error })
                })?;
            begun = true;
            if let Some(error) = reply.error {
                return Err(self.refused(error, &reply));
            }
            match exchange.receive(reply.specific, reply.data()) {
                Ok(Progress::Send) => {}
                Ok(Progress::Done(answer)) => return Ok(answer),
                Err(error) => {
                    self.bulk.fall_out_of_step();
                    let what = format!("the reader broke the CCID protocol: {error}");
                    return Err(self.error(TransportErrorKind::Protocol, Sent::Maybe, &what));
                }
            }
        }
    }

    /// The reader could not carry a block to the card, or the answer back.
    fn refused(&mut self, error: SlotError, reply: &Reply) -> TransportError {
        let icc = self.noted(reply);
        let (kind, sent) = match (error, icc) {
            (SlotError::SlotBusy, _) => (TransportErrorKind::Busy, Sent::No),
            (_, IccStatus::Absent) => (TransportErrorKind::CardRemoved, Sent::Maybe),
            _ => (TransportErrorKind::Protocol, Sent::Maybe),
        };
        // A card that did not answer may still be at it.
        if !matches!(
            kind,
            TransportErrorKind::Busy | TransportErrorKind::CardRemoved
        ) {
            self.bulk.fall_out_of_step();
        }
        self.error(kind, sent, &format!("the command failed: {error}"))
    }

    /// Brings a reader back that was left in the middle of something: into step, then the card off and on, as
    /// nobody knows what it is at; a reader that does not listen is reset. The error says that the card's
    /// state is lost, or why it could not be done.
    fn come_back(&mut self, call: Call) -> TransportError {
        let mut reset = self.reset_card(call);
        if reset.is_err() && !self.bulk.is_in_step() && Instant::now() < call.deadline {
            reset = self.reset_card(call);
        }
        match reset {
            Ok(()) => {
                let what = "the card was reset, because an earlier command was not answered";
                self.error(TransportErrorKind::CardReset, Sent::No, what)
            }
            Err(error) => error,
        }
    }

    fn reset_card(&mut self, call: Call) -> Result<(), TransportError> {
        let back = self.bulk.recover(self.slot, call.deadline, &self.stop);
        if let Err(error) = back {
            let hopeless = matches!(error.why, Why::Gone | Why::Stopped);
            if hopeless || Instant::now() >= call.deadline {
                return Err(self.before_card("bringing the reader back", error));
            }
            tracing::warn!(
                "{}: the reader does not listen ({}); it is reset",
                self.name,
                error.why
            );
            self.bulk.reset_device();
            self.bulk
                .recover(self.slot, call.deadline, &self.stop)
                .map_err(|error| self.before_card("resetting the reader", error))?;
        }
        self.ask(&Command::IccPowerOff, "taking power from the card", call)?;
        self.power_on(call).map(|_| ())
    }

    fn before_card(&self, doing: &str, error: BulkError) -> TransportError {
        let sent = Sent::No;
        self.transfer_error(doing, BulkError { sent, ..error })
    }

    fn transfer_error(&self, doing: &str, error: BulkError) -> TransportError {
        self.error(
            error.why.kind(),
            error.sent,
            &format!("{doing}: {}", error.why),
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

/// The voltages to try: automatic where the reader chooses, else the lowest first (ISO 7816-3, 6.2.4).
fn voltages(class: &ClassDescriptor) -> Vec<Voltage> {
    let offered = class.voltages();
    if class.selects_voltage() || offered.is_empty() {
        return vec![Voltage::Automatic];
    }
    offered
}
