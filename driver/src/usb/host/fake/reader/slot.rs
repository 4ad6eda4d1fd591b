//! A slot: its card, its power, its parameters, and a running command.

use super::{
    FakeCard, Level, Protocol, ReaderConfig,
    card_interface::{CardInterface, Speech},
    message::{Command, NO_CARD, Outcome, UNSUPPORTED, reply, response_type},
};

/// bError of a card that does not respond in the reader's protocol.
const MUTE: u8 = 0xFE;
/// bError of a parameter that is wrong: the offset of wLevelParameter.
const BAD_LEVEL: u8 = 8;
const BAD_LENGTH: u8 = 1;

/// Parameters after a reset (CCID 1.1, 6.2.3).
const PARAMETERS_T0: [u8; 5] = [0x11, 0x00, 0x00, 0x0A, 0x00];
const PARAMETERS_T1: [u8; 7] = [0x11, 0x10, 0x00, 0x4D, 0x00, 0x20, 0x00];

/// Of dwFeatures: the reader sets parameters from the answer to reset, negotiates, sends PPS.
const SETS_PARAMETERS: u32 = 0x02;
const NEGOTIATES: u32 = 0x40;
const SENDS_PPS: u32 = 0x80;

/// The protocol and rate of a reader that has no parameters yet.
const DEFAULT_SPEECH: Speech = Speech {
    protocol: Protocol::T0,
    rate: 0x11,
};

#[derive(Debug)]
pub(super) struct Slot {
    level: Level,
    /// The most data of a message.
    room: usize,
    pub(super) card: Option<FakeCard>,
    pub(super) powered: bool,
    pub(super) commands: usize,
    parameters: Vec<u8>,
    /// A command APDU of which more is to come.
    incoming: Vec<u8>,
    /// A response APDU of which more is to be fetched.
    outgoing: Option<Vec<u8>>,
    /// The interface to a powered card.
    line: Option<CardInterface>,
    /// The rest of dwFeatures.
    features: u32,
    /// SetParameters fails with this bError.
    pub(super) refuses: Option<u8>,
    /// How many resets of a card with power get no response.
    pub(super) mute_when_warm: usize,
    /// The response that is held back.
    pub(super) held: Option<Vec<u8>>,
    /// The sequence number of an abort whose bulk part has not come yet.
    pub(super) aborting: Option<u8>,
}

impl Slot {
    pub(super) fn new(config: &ReaderConfig) -> Self {
        let room = usize::try_from(config.max_message).unwrap_or(usize::MAX);
        Self {
            level: config.level,
            room: room.saturating_sub(10).max(1),
            card: None,
            powered: false,
            commands: 0,
            parameters: PARAMETERS_T0.to_vec(),
            incoming: Vec::new(),
            outgoing: None,
            line: None,
            features: config.features,
            refuses: None,
            mute_when_warm: 0,
            held: None,
            aborting: None,
        }
    }

    pub(super) fn put(&mut self, card: Option<FakeCard>) {
        self.power_off();
        self.card = card;
    }

    /// bmICCStatus: active, inactive, absent.
    fn status(&self) -> u8 {
        match (&self.card, self.powered) {
            (Some(_), true) => 0,
            (Some(_), false) => 1,
            (None, _) => 2,
        }
    }

    pub(super) fn done(&self, command: &Command, extra: u8, data: &[u8]) -> Vec<u8> {
        self.reply(command, Outcome::Done, extra, data)
    }

    pub(super) fn failed(&self, command: &Command, error: u8) -> Vec<u8> {
        self.reply(command, Outcome::Failed(error), 0, &[])
    }

    fn reply(&self, command: &Command, outcome: Outcome, extra: u8, data: &[u8]) -> Vec<u8> {
        let to = (command.slot, command.sequence);
        let kind = response_type(command.kind);
        reply(kind, to, self.status(), outcome, extra, data)
    }

    pub(super) fn power_on(&mut self, command: &Command) -> Vec<u8> {
        let was_powered = self.powered;
        let [select, ..] = command.specific;
        let Some(card) = &self.card else {
            self.power_off();
            return self.failed(command, NO_CARD);
        };
        if was_powered && self.mute_when_warm > 0 {
            self.mute_when_warm -= 1;
            return self.failed(command, MUTE);
        }
        let atr = card.atr.clone();
        let answers = select == 0 || card.manners.voltages.contains(&select);
        let spoken = Speech {
            protocol: card.protocol,
            rate: card.manners.rate,
        };
        self.power_off();
        if !answers {
            return self.failed(command, MUTE);
        }
        let reader = if self.features & (NEGOTIATES | SETS_PARAMETERS) == 0 {
            DEFAULT_SPEECH
        } else {
            spoken
        };
        self.note_parameters(reader);
        self.line = Some(CardInterface::new(spoken, reader));
        self.powered = true;
        self.done(command, 0, &atr)
    }

    fn note_parameters(&mut self, speech: Speech) {
        self.parameters = match speech.protocol {
            Protocol::T0 => PARAMETERS_T0.to_vec(),
            Protocol::T1 => PARAMETERS_T1.to_vec(),
        };
        if let Some(first) = self.parameters.first_mut() {
            *first = speech.rate;
        }
    }

    /// Returns whether reader and card use the same protocol and rate.
    fn is_told(&self) -> bool {
        self.line.as_ref().is_some_and(CardInterface::is_agreed)
    }

    pub(super) fn power_off(&mut self) {
        if let Some(card) = &mut self.card {
            (card.reset)();
        }
        self.powered = false;
        self.incoming.clear();
        self.outgoing = None;
        self.line = None;
    }

    /// Resets the slot, as a reset of the device does.
    pub(super) fn restart(&mut self) {
        self.power_off();
        self.held = None;
        self.aborting = None;
    }

    /// Returns the response that was held back.
    pub(super) fn take_held(&mut self) -> Option<Vec<u8>> {
        self.held.take()
    }

    pub(super) fn begin_abort(&mut self, sequence: u8) {
        self.aborting = Some(sequence);
        self.held = None;
    }

    /// The bulk half of an abort, which takes effect if the control half named the same sequence number.
    pub(super) fn abort(&mut self, command: &Command) -> Option<Vec<u8>> {
        if self.aborting != Some(command.sequence) {
            return None;
        }
        self.aborting = None;
        self.incoming.clear();
        self.outgoing = None;
        Some(self.done(command, 0, &[]))
    }

    pub(super) fn parameters(&self, command: &Command) -> Vec<u8> {
        if self.card.is_none() {
            return self.failed(command, NO_CARD);
        }
        let protocol = u8::from(self.parameters.len() == PARAMETERS_T1.len());
        self.done(command, protocol, &self.parameters)
    }

    pub(super) fn reset_parameters(&mut self, command: &Command) -> Vec<u8> {
        self.parameters = PARAMETERS_T0.to_vec();
        self.parameters(command)
    }

    pub(super) fn set_parameters(&mut self, command: &Command) -> Vec<u8> {
        let [protocol, ..] = command.specific;
        let expected = match protocol {
            0 => PARAMETERS_T0.len(),
            1 => PARAMETERS_T1.len(),
            _ => return self.failed(command, 7),
        };
        if command.data.len() != expected {
            return self.failed(command, BAD_LENGTH);
        }
        if let Some(error) = self.refuses {
            return self.failed(command, error);
        }
        let speech = Speech {
            protocol: if protocol == 0 {
                Protocol::T0
            } else {
                Protocol::T1
            },
            rate: command.data.first().copied().unwrap_or(0),
        };
        let sends_pps = self.features & SENDS_PPS != 0;
        if let (Some(line), Some(card)) = (&mut self.line, &self.card)
            && let Err(error) = line.set_reader(speech, sends_pps, card)
        {
            return self.failed(command, error);
        }
        self.parameters.clone_from(&command.data);
        self.parameters(command)
    }

    /// XfrBlock (CCID 1.1, 6.1.4).
    pub(super) fn transfer(&mut self, command: &Command) -> Vec<u8> {
        if self.card.is_none() || !self.powered {
            return self.failed(command, NO_CARD);
        }
        if command.data.len() > self.room {
            return self.failed(command, BAD_LENGTH);
        }
        match self.level {
            Level::Tpdu | Level::Character => self.speak(command),
            _ if !self.is_told() => self.failed(command, MUTE),
            Level::ShortApdu if command.level() == 0 && command.data.len() > 261 => {
                self.failed(command, BAD_LENGTH)
            }
            Level::ShortApdu | Level::ExtendedApdu => self.chained(command),
        }
    }

    /// An APDU or a part of one, by wLevelParameter: all of it, its beginning, its end, what lies between, or a
    /// request for more of the response.
    fn chained(&mut self, command: &Command) -> Vec<u8> {
        match command.level() {
            0x0000 | 0x0001 => self.incoming.clear(),
            0x0002 | 0x0003 if self.incoming.is_empty() => return self.failed(command, BAD_LEVEL),
            0x0002 | 0x0003 => {}
            0x0010 if command.data.is_empty() && self.outgoing.is_some() => {
                return self.more(command, 0x02, 0x03);
            }
            _ => return self.failed(command, BAD_LEVEL),
        }
        self.incoming.extend_from_slice(&command.data);
        if matches!(command.level(), 0x0001 | 0x0003) {
            return self.done(command, 0x10, &[]);
        }
        let apdu = std::mem::take(&mut self.incoming);
        match self.ask(&apdu) {
            Some(response) => {
                self.outgoing = Some(response);
                self.more(command, 0x00, 0x01)
            }
            None => self.failed(command, MUTE),
        }
    }

    /// The next part of the response, with the bChainParameter of a last part or of another.
    fn more(&mut self, command: &Command, last: u8, other: u8) -> Vec<u8> {
        let mut part = self.outgoing.take().unwrap_or_default();
        if part.len() <= self.room {
            return self.done(command, last, &part);
        }
        self.outgoing = Some(part.split_off(self.room));
        self.done(command, other, &part)
    }

    fn ask(&mut self, apdu: &[u8]) -> Option<Vec<u8>> {
        self.commands = self.commands.saturating_add(1);
        let card = self.card.as_mut()?;
        Some((card.apdu)(apdu)).filter(|response| response.len() >= 2)
    }

    /// Exchanges a block, or at the character level as many characters as wLevelParameter requests.
    fn speak(&mut self, command: &Command) -> Vec<u8> {
        self.commands = self.commands.saturating_add(1);
        let (Some(card), Some(line)) = (&mut self.card, &mut self.line) else {
            return self.failed(command, UNSUPPORTED);
        };
        let answer = match self.level {
            Level::Character => {
                let expected = usize::from(command.level());
                line.characters(&command.data, expected, card)
            }
            _ => line.block(&command.data, card),
        };
        match answer {
            Ok(block) => self.done(command, 0, &block),
            Err(error) => self.failed(command, error),
        }
    }
}
