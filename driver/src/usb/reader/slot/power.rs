//! Power for the card, and what is agreed with it and the reader before its first command.

use claviger_apdu::{Atr, Call, Sent, TransportError, TransportErrorKind};

use super::{
    Card, Device,
    block::{Carried, Outgoing},
    capabilities::suits,
    negotiation::{NoCommonProtocol, Plan, Told, common, plan},
    protocol_state::{Kind, Line, Time},
};
use crate::{
    ccid::{
        budget,
        message::{Command, IccStatus, SlotError, Voltage},
        protocol_data,
    },
    protocol::{
        Parameters,
        pps::{Agreement, Proposal},
    },
    usb::pipe::bulk::Limit,
};

/// A card that has answered its reset.
struct Powered {
    atr: Atr,
    voltage: Voltage,
}

impl Device {
    /// Powers the card, which resets it, at the lowest voltage that suits reader and card, and comes to terms with it: protocol, rate
    /// and parameters.
    ///
    /// # Errors
    /// NoCard when there is none or it does not answer; else [`TransportError`].
    pub(crate) fn power_on(&mut self, call: Call) -> Result<&Atr, TransportError> {
        self.epoch.0 += 1;
        self.card = None;
        self.doubtful = false;
        let voltages = self.voltages();
        let powered = self.activate(&voltages, call)?;
        let card = self.come_to_terms(powered, call)?;
        Ok(&self.card.insert(card).atr)
    }

    /// The voltages to try in turn, one of them twice: a card that has power and does not answer may not understand what
    /// is said to it, and is tried at once from without; any other once more in the end.
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

    fn activate(&mut self, voltages: &[Voltage], call: Call) -> Result<Powered, TransportError> {
        let mut wanted = None;
        let mut why = "the card does not answer its reset".to_owned();
        for (at, voltage) in voltages.iter().enumerate() {
            if !suits(wanted, *voltage) {
                continue;
            }
            match self.reset_at(*voltage, call)? {
                Ok(powered) => {
                    wanted = Parameters::of(&powered.atr).voltages;
                    let mut others = voltages.iter().skip(at);
                    if suits(wanted, *voltage) || !others.any(|other| suits(wanted, *other)) {
                        return Ok(powered);
                    }
                    "the card does not answer at a voltage of its own".clone_into(&mut why);
                }
                Err(mute) => why = mute,
            }
            self.power_off(call)?;
        }
        Err(self.error(TransportErrorKind::NoCard, Sent::No, &why))
    }

    pub(super) fn power_off(&mut self, call: Call) -> Result<(), TransportError> {
        let command = Command::IccPowerOff;
        self.ask(&command, "taking power from the card", call)
            .map(drop)
    }

    /// One reset; why the card is mute, if it is.
    fn reset_at(
        &mut self,
        voltage: Voltage,
        call: Call,
    ) -> Result<Result<Powered, String>, TransportError> {
        let reply = self.ask(&Command::IccPowerOn { voltage }, "powering the card", call)?;
        match reply.error {
            None => Ok(Atr::parse(reply.data())
                .map(|atr| Powered { atr, voltage })
                .map_err(|error| format!("mute card: {error}"))),
            Some(_) if reply.icc == IccStatus::Absent => {
                Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"))
            }
            Some(SlotError::Aborted) => {
                // The reader waits for the other half of an Abort, which it has not got.
                self.bulk.fall_out_of_step();
                let what = "the reader is still aborting an earlier command";
                Err(self.error(TransportErrorKind::Protocol, Sent::No, what))
            }
            Some(error) => Ok(Err(format!("the card does not answer its reset ({error})"))),
        }
    }

    /// Agrees on protocol and rate. A card or reader that does not agree is asked for nothing more: the card is reset by a power
    /// cycle, and stays at what it speaks then.
    fn come_to_terms(&mut self, powered: Powered, call: Call) -> Result<Card, TransportError> {
        let parameters = Parameters::of(&powered.atr);
        let careful = self.plan(&parameters, true)?;
        if self.distrusted.as_ref() == Some(&powered.atr) {
            return self.settle(careful, powered.atr, call);
        }
        let bold = self.plan(&parameters, false)?;
        if bold == careful {
            return self.settle(careful, powered.atr, call);
        }
        // Also when it ends without an answer.
        self.distrusted = Some(powered.atr.clone());
        if let Some(agreement) = self.carry_out(bold, &parameters, call)? {
            self.distrusted = None;
            return Ok(self.card(powered.atr, &parameters, agreement));
        }
        tracing::debug!(
            "{}: no agreement; what holds after a reset is kept",
            self.name
        );
        self.power_off(call)?;
        let powered = self.activate(&[powered.voltage], call)?;
        self.distrusted = Some(powered.atr.clone());
        let careful = self.plan(&Parameters::of(&powered.atr), true)?;
        self.settle(careful, powered.atr, call)
    }

    /// The last plan there is.
    fn settle(&mut self, plan: Plan, atr: Atr, call: Call) -> Result<Card, TransportError> {
        let parameters = Parameters::of(&atr);
        match self.carry_out(plan, &parameters, call)? {
            Some(agreement) => Ok(self.card(atr, &parameters, agreement)),
            None => {
                let what = "card and reader do not agree on a protocol and its parameters";
                Err(self.error(TransportErrorKind::NoCard, Sent::No, what))
            }
        }
    }

    fn plan(&self, parameters: &Parameters, careful: bool) -> Result<Plan, TransportError> {
        plan(&self.reader, parameters, careful).map_err(|error: NoCommonProtocol| {
            self.error(TransportErrorKind::NoCard, Sent::No, &error.to_string())
        })
    }

    fn card(&self, atr: Atr, parameters: &Parameters, agreement: Agreement) -> Card {
        let by_apdu = self.reader.takes_apdus();
        let known = !by_apdu || common(&self.reader, parameters).contains(&agreement.protocol);
        Card {
            atr,
            protocol: known.then_some(agreement.protocol),
            line: (!by_apdu).then(|| Line::new(&self.reader, parameters, agreement)),
        }
    }

    /// What is spoken after `plan`; nothing if card or reader did not agree.
    fn carry_out(
        &mut self,
        plan: Plan,
        parameters: &Parameters,
        call: Call,
    ) -> Result<Option<Agreement>, TransportError> {
        let mut agreement = plan.agreement;
        if let Some(proposal) = plan.pps {
            match self.propose(&proposal, parameters, call)? {
                Some(agreed) => agreement = agreed,
                None => return Ok(None),
            }
        }
        match plan.parameters {
            Told::Nothing => Ok(Some(agreement)),
            Told::Agreement => self.tell(parameters, agreement, call),
            Told::Asked => self.in_force(parameters, agreement, call).map(Some),
        }
    }

    /// Asks the card (ISO 7816-3, 9).
    fn propose(
        &mut self,
        proposal: &Proposal,
        parameters: &Parameters,
        call: Call,
    ) -> Result<Option<Agreement>, TransportError> {
        let time = Time::of_pps(parameters, self.reader.khz()).times(1);
        let outgoing = Outgoing {
            block: proposal.request(),
            kind: Kind::Pps,
            bwi: 0,
            time: self.reader.patience(time),
        };
        let carried = self.carry(outgoing, call);
        let carried = carried.map_err(|error| self.before_card("agreeing on a protocol", error))?;
        match carried {
            Carried::Answer(answer) => Ok(proposal.answered(answer.expose()).ok()),
            Carried::Refused(_, reply) if reply.icc == IccStatus::Absent => {
                Err(self.error(TransportErrorKind::NoCard, Sent::No, "holds no card"))
            }
            Carried::Refused(..) | Carried::Damaged | Carried::Silent => Ok(None),
        }
    }

    /// Tells the reader. One that takes other parameters than it has set itself amiss keeps its own; so does one that takes APDUs, which
    /// is all that matters to us.
    fn tell(
        &mut self,
        parameters: &Parameters,
        agreement: Agreement,
        call: Call,
    ) -> Result<Option<Agreement>, TransportError> {
        let data = protocol_data::encode(parameters, agreement);
        let command = Command::SetParameters {
            protocol: agreement.protocol.number(),
            data: &data,
        };
        let reply = self.ask(&command, "setting the card's parameters", call)?;
        let its_own = self.reader.class.sets_parameters() || self.reader.takes_apdus();
        match reply.error {
            None => Ok(Some(agreement)),
            Some(SlotError::Parameter(_) | SlotError::NotSupported) if its_own => {
                self.in_force(parameters, agreement, call).map(Some)
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

    /// What the reader says is in force, if card and reader speak it; else `supposed`.
    fn in_force(
        &mut self,
        parameters: &Parameters,
        supposed: Agreement,
        call: Call,
    ) -> Result<Agreement, TransportError> {
        let command = Command::GetParameters;
        let reply = self.ask(&command, "asking for the card's parameters", call)?;
        let common = common(&self.reader, parameters);
        let said = protocol_data::in_force(reply.specific, reply.data())
            .filter(|said| reply.error.is_none() && common.contains(&said.protocol));
        Ok(said.unwrap_or(supposed))
    }

    /// A command about the slot that does not reach the card's applications.
    fn ask(
        &mut self,
        command: &Command<'_>,
        what: &str,
        call: Call,
    ) -> Result<super::Reply, TransportError> {
        let time = self.reader.patience(budget::POWER_ON);
        let reply = self.command(command, Limit::each(time, call.deadline));
        reply.map_err(|error| self.before_card(what, error))
    }
}
