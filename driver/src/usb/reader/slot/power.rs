//! Powers the card, and negotiates with card and reader before the first command.

use std::time::Instant;

use claviger_apdu::{Atr, Call, Sent, TransportError, TransportErrorKind};

use super::{
    Card, CcidSlot,
    block::{BlockOutcome, OutgoingBlock},
    capabilities::suits_voltage,
    negotiation::{NegotiationPlan, NoCommonProtocol, ParameterStep, common_protocols, plan},
    protocol_state::{BlockKind, BlockTiming, ProtocolState},
};
use crate::{
    ccid::{
        budget,
        message::{Command, IccStatus, SlotError, Voltage},
        protocol_data,
    },
    protocol::{
        TransmissionParameters,
        pps::{AgreedParameters, PpsRequest},
    },
    usb::pipe::bulk::{ResponseTimeout, SlotResponse},
    wait::wait_readable,
};

/// A card that has sent its ATR.
struct PoweredCard {
    atr: Atr,
    voltage: Voltage,
}

impl CcidSlot {
    /// Powers the card, which resets it, at the lowest voltage that suits reader and card. Negotiates protocol, rate and
    /// parameters.
    ///
    /// # Errors
    /// NoCard if there is no card or the card sends no answer to reset. Otherwise [`TransportError`].
    pub(crate) fn power_on(&mut self, call: Call) -> Result<&Atr, TransportError> {
        self.epoch.0 += 1;
        self.card = None;
        self.card_unsynchronized = false;
        let voltages = self.voltages();
        let powered = self.activate(&voltages, call)?;
        let card = self.negotiate(powered, call)?;
        Ok(&self.card.insert(card).atr)
    }

    /// Returns the voltages to try in turn. One of them is tried twice: a card that has power but does not respond may be in an
    /// unknown state, so the same voltage is tried again after power-off. Any other card is tried once more at the end.
    fn voltages(&self) -> Vec<Voltage> {
        let mut voltages = self.reader.voltages();
        let twice = match self.icc {
            Some(IccStatus::Active) => 0,
            _ => voltages.len().saturating_sub(1),
        };
        if let Some(voltage) = voltages.get(twice).copied() {
            voltages.insert(twice, voltage);
        }
        voltages
    }

    fn activate(
        &mut self,
        voltages: &[Voltage],
        call: Call,
    ) -> Result<PoweredCard, TransportError> {
        let mut wanted = None;
        let mut why = "the card sends no answer to reset".to_owned();
        for (at, voltage) in voltages.iter().enumerate() {
            if !suits_voltage(wanted, *voltage) {
                continue;
            }
            match self.reset_at(*voltage, call)? {
                Ok(powered) => {
                    wanted = TransmissionParameters::of(&powered.atr).voltages;
                    let mut others = voltages.iter().skip(at);
                    if suits_voltage(wanted, *voltage)
                        || !others.any(|other| suits_voltage(wanted, *other))
                    {
                        return Ok(powered);
                    }
                    "the card sends no answer to reset at a voltage that it supports"
                        .clone_into(&mut why);
                }
                Err(mute) => why = mute,
            }
            self.power_off(call)?;
        }
        Err(self.error(TransportErrorKind::NoCard, Sent::No, &why))
    }

    pub(super) fn power_off(&mut self, call: Call) -> Result<(), TransportError> {
        let command = Command::IccPowerOff;
        self.slot_command(&command, "taking power from the card", call)
            .map(drop)
    }

    /// Resets the card once. Returns why the card is mute, if it is.
    fn reset_at(
        &mut self,
        voltage: Voltage,
        call: Call,
    ) -> Result<Result<PoweredCard, String>, TransportError> {
        let reply = self.send_power_on(voltage, call)?;
        match reply.error {
            None => Ok(Atr::parse(reply.data())
                .map(|atr| PoweredCard { atr, voltage })
                .map_err(|error| format!("the card's answer to reset is malformed: {error}"))),
            Some(_) if reply.icc == IccStatus::Absent => {
                Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"))
            }
            Some(SlotError::Aborted) => {
                // The reader waits for the other half of an Abort, which was not sent.
                self.pipe.mark_desynchronized();
                let what = "the reader is still aborting an earlier command";
                Err(self.error(TransportErrorKind::Protocol, Sent::No, what))
            }
            Some(error) => Ok(Err(format!(
                "the card sends no valid answer to reset ({error})"
            ))),
        }
    }

    /// Sends IccPowerOn, again while the reader is still activating the card by itself (bError F2).
    fn send_power_on(
        &mut self,
        voltage: Voltage,
        call: Call,
    ) -> Result<SlotResponse, TransportError> {
        let command = Command::IccPowerOn { voltage };
        let mut tries = 1;
        loop {
            let reply = self.slot_command(&command, "powering the card", call)?;
            let is_busy = reply.error == Some(SlotError::BusyWithAutoSequence);
            if !is_busy || tries == budget::AUTO_SEQUENCE_TRIES {
                return Ok(reply);
            }
            tries += 1;
            let deadline = call
                .deadline
                .min(Instant::now() + budget::AUTO_SEQUENCE_INTERVAL);
            let _ = wait_readable(&[], &self.stop, Some(deadline));
        }
    }

    /// Negotiates protocol and rate. After a failure the card is power-cycled and keeps its defaults.
    fn negotiate(&mut self, powered: PoweredCard, call: Call) -> Result<Card, TransportError> {
        let parameters = TransmissionParameters::of(&powered.atr);
        let careful = self.plan(&parameters, true)?;
        if self.unnegotiable.as_ref() == Some(&powered.atr) {
            return self.apply_last_plan(careful, powered.atr, call);
        }
        let bold = self.plan(&parameters, false)?;
        if bold == careful {
            return self.apply_last_plan(careful, powered.atr, call);
        }
        // This also holds if the negotiation ends without a response.
        self.unnegotiable = Some(powered.atr.clone());
        if let Some(agreement) = self.apply_plan(bold, &parameters, call)? {
            self.unnegotiable = None;
            return Ok(self.card(powered.atr, &parameters, agreement));
        }
        tracing::debug!(
            "{}: the negotiation failed; the parameters after reset are used",
            self.name
        );
        self.power_off(call)?;
        let powered = self.activate(&[powered.voltage], call)?;
        self.unnegotiable = Some(powered.atr.clone());
        let careful = self.plan(&TransmissionParameters::of(&powered.atr), true)?;
        self.apply_last_plan(careful, powered.atr, call)
    }

    /// Applies the plan without negotiation.
    fn apply_last_plan(
        &mut self,
        plan: NegotiationPlan,
        atr: Atr,
        call: Call,
    ) -> Result<Card, TransportError> {
        let parameters = TransmissionParameters::of(&atr);
        match self.apply_plan(plan, &parameters, call)? {
            Some(agreement) => Ok(self.card(atr, &parameters, agreement)),
            None => {
                let what = "card and reader do not agree on a protocol and its parameters";
                Err(self.error(TransportErrorKind::NoCard, Sent::No, what))
            }
        }
    }

    fn plan(
        &self,
        parameters: &TransmissionParameters,
        careful: bool,
    ) -> Result<NegotiationPlan, TransportError> {
        plan(&self.reader, parameters, careful).map_err(|error: NoCommonProtocol| {
            self.error(TransportErrorKind::NoCard, Sent::No, &error.to_string())
        })
    }

    fn card(
        &self,
        atr: Atr,
        parameters: &TransmissionParameters,
        agreement: AgreedParameters,
    ) -> Card {
        let by_apdu = self.reader.takes_apdus();
        let known =
            !by_apdu || common_protocols(&self.reader, parameters).contains(&agreement.protocol);
        Card {
            atr,
            protocol: known.then_some(agreement.protocol),
            protocol_state: (!by_apdu)
                .then(|| ProtocolState::new(&self.reader, parameters, agreement)),
        }
    }

    /// Applies `plan`. Returns `None` if card or reader did not agree.
    fn apply_plan(
        &mut self,
        plan: NegotiationPlan,
        parameters: &TransmissionParameters,
        call: Call,
    ) -> Result<Option<AgreedParameters>, TransportError> {
        let mut agreement = plan.agreement;
        if let Some(proposal) = plan.pps {
            match self.send_pps(&proposal, parameters, call)? {
                Some(agreed) => agreement = agreed,
                None => return Ok(None),
            }
        }
        match plan.parameters {
            ParameterStep::Keep => Ok(Some(agreement)),
            ParameterStep::Set => self.set_parameters(parameters, agreement, call),
            ParameterStep::Query => self.get_parameters(parameters, agreement, call).map(Some),
        }
    }

    /// Sends the PPS request to the card (ISO 7816-3, 9).
    fn send_pps(
        &mut self,
        proposal: &PpsRequest,
        parameters: &TransmissionParameters,
        call: Call,
    ) -> Result<Option<AgreedParameters>, TransportError> {
        let time = BlockTiming::for_pps(parameters, self.reader.khz()).limit(1);
        let outgoing = OutgoingBlock {
            block: proposal.request(),
            kind: BlockKind::Pps,
            bwi: 0,
            timeout: self.reader.scaled_timeout(time),
        };
        let outcome = self.send_block(outgoing, call);
        let outcome = outcome.map_err(|error| self.before_card("agreeing on a protocol", error))?;
        match outcome {
            BlockOutcome::Response(answer) => Ok(proposal.accept(answer.expose()).ok()),
            BlockOutcome::Rejected(_, reply) if reply.icc == IccStatus::Absent => {
                Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"))
            }
            BlockOutcome::Rejected(..)
            | BlockOutcome::TransmissionError
            | BlockOutcome::NoResponse => Ok(None),
        }
    }

    /// Tells the reader. One that takes other parameters than it has set itself amiss keeps its own; so does one that takes
    /// APDUs, which is all that matters to us.
    fn set_parameters(
        &mut self,
        parameters: &TransmissionParameters,
        agreement: AgreedParameters,
        call: Call,
    ) -> Result<Option<AgreedParameters>, TransportError> {
        let data = protocol_data::encode(parameters, agreement);
        let command = Command::SetParameters {
            protocol: agreement.protocol.number(),
            data: &data,
        };
        let reply = self.slot_command(&command, "setting the card's parameters", call)?;
        let its_own = self.reader.class.sets_parameters() || self.reader.takes_apdus();
        match reply.error {
            None => Ok(Some(agreement)),
            Some(SlotError::Parameter(_) | SlotError::NotSupported) if its_own => {
                self.get_parameters(parameters, agreement, call).map(Some)
            }
            Some(_) if reply.icc == IccStatus::Absent => {
                Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"))
            }
            Some(error) => {
                tracing::debug!("{}: SetParameters: {error}", self.name);
                Ok(None)
            }
        }
    }

    /// Returns the parameters that the reader reports, if card and reader support them. Otherwise returns `supposed`.
    fn get_parameters(
        &mut self,
        parameters: &TransmissionParameters,
        supposed: AgreedParameters,
        call: Call,
    ) -> Result<AgreedParameters, TransportError> {
        let command = Command::GetParameters;
        let reply = self.slot_command(&command, "asking for the card's parameters", call)?;
        let device = common_protocols(&self.reader, parameters);
        let said = protocol_data::in_force(reply.specific, reply.data())
            .filter(|said| reply.error.is_none() && device.contains(&said.protocol));
        Ok(said.unwrap_or(supposed))
    }

    /// Sends a command about the slot, which no application on the card sees.
    fn slot_command(
        &mut self,
        command: &Command<'_>,
        what: &str,
        call: Call,
    ) -> Result<SlotResponse, TransportError> {
        let time = self.reader.scaled_timeout(budget::POWER_ON);
        let reply = self.command(command, ResponseTimeout::per_message(time, call.deadline));
        reply.map_err(|error| self.before_card(what, error))
    }
}
