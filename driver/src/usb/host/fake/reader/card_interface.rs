//! The interface between reader and card: the rate and the protocol of each side, and the transmitted characters.

use super::{
    card::{FakeCard, Pps, Protocol},
    t0::T0,
    t1::{T1, epilogue},
};

/// bError of a card that does not respond in the reader's protocol.
const MUTE: u8 = 0xFE;
/// PPSS (ISO 7816-3, 9.2).
const PPSS: u8 = 0xFF;

/// The protocol and rate of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Speech {
    pub(super) protocol: Protocol,
    /// As in TA1.
    pub(super) rate: u8,
}

/// See the module; from one reset to the next.
#[derive(Debug)]
pub(super) struct CardInterface {
    card: Speech,
    reader: Speech,
    /// Whether anything has been sent since the reset. A PPS is then too late.
    talked: bool,
    t0: T0,
    t1: T1,
    /// The characters that the card has received, and the characters that it sends.
    heard: Vec<u8>,
    said: Vec<u8>,
}

impl CardInterface {
    pub(super) fn new(card: Speech, reader: Speech) -> Self {
        Self {
            card,
            reader,
            talked: false,
            t0: T0::default(),
            t1: T1::default(),
            heard: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Sets the protocol and rate of the reader. A reader that sends PPS itself sends one.
    pub(super) fn set_reader(
        &mut self,
        reader: Speech,
        sends_pps: bool,
        card: &FakeCard,
    ) -> Result<(), u8> {
        if sends_pps && reader != self.card {
            let number = u8::from(reader.protocol == Protocol::T1);
            let answer = self.pps(&[PPSS, 0x10 | number, reader.rate], card)?;
            if answer.get(1) != Some(&(0x10 | number)) {
                return Err(MUTE);
            }
        }
        self.reader = reader;
        Ok(())
    }

    /// Returns whether both sides use the same protocol and rate.
    pub(super) fn is_agreed(&self) -> bool {
        self.card == self.reader
    }

    /// Processes a PPS request. The card accepts it if it is configured to.
    fn pps(&mut self, request: &[u8], card: &FakeCard) -> Result<Vec<u8>, u8> {
        let [_, pps0, rest @ ..] = request else {
            return Err(MUTE);
        };
        if std::mem::replace(&mut self.talked, true) {
            return Err(MUTE);
        }
        let protocol = match pps0 & 0x0F {
            0 => Protocol::T0,
            _ => Protocol::T1,
        };
        let rate = rest.first().filter(|_| pps0 & 0x10 != 0);
        let (answer, rate) = match (card.manners.pps, rate) {
            (Pps::Agrees, Some(rate)) => (vec![PPSS, *pps0, *rate], *rate),
            (Pps::Agrees | Pps::AgreesSlowly, _) => (vec![PPSS, pps0 & 0x0F], 0x11),
            (Pps::Nonsense, _) => return Ok(vec![PPSS, pps0 ^ 1, 0]),
            (Pps::Silent, _) => return Err(MUTE),
        };
        self.card = Speech { protocol, rate };
        Ok(answer)
    }

    /// Processes a PPS request with its check byte. The response has one too.
    fn checked_pps(&mut self, request: &[u8], card: &FakeCard) -> Result<Vec<u8>, u8> {
        let (_check, request) = request.split_last().ok_or(MUTE)?;
        let mut answer = self.pps(request, card)?;
        answer.push(answer.iter().fold(0, |sum, byte| sum ^ byte));
        Ok(answer)
    }

    /// A block of T=1, a command of T=0, or a request for other parameters.
    pub(super) fn block(&mut self, block: &[u8], card: &mut FakeCard) -> Result<Vec<u8>, u8> {
        if block.first() == Some(&PPSS) {
            return self.checked_pps(block, card);
        }
        self.talked = true;
        if self.card != self.reader {
            return Err(MUTE);
        }
        match self.card.protocol {
            Protocol::T0 => self.t0.answer(block, &mut card.apdu).ok_or(MUTE),
            Protocol::T1 => self.t1.answer(block, &mut card.apdu, &mut card.manners),
        }
    }

    /// Sends `bytes` to the card and receives `expected` characters. If fewer characters come, the card counts as mute.
    pub(super) fn characters(
        &mut self,
        bytes: &[u8],
        expected: usize,
        card: &mut FakeCard,
    ) -> Result<Vec<u8>, u8> {
        if !bytes.is_empty() {
            self.heard.extend_from_slice(bytes);
            let said = self.hear(card);
            self.said.extend(said?);
        }
        if self.said.len() < expected {
            return Err(MUTE);
        }
        Ok(self.said.drain(..expected).collect())
    }

    /// Returns the card's response to all received characters.
    fn hear(&mut self, card: &mut FakeCard) -> Result<Vec<u8>, u8> {
        if self.heard.first() == Some(&PPSS) {
            let announced = self
                .heard
                .get(1)
                .map_or(0, |pps0| (pps0 & 0x70).count_ones());
            if self.heard.len() < 3 + announced as usize {
                return Ok(Vec::new());
            }
            let request = std::mem::take(&mut self.heard);
            return self.checked_pps(&request, card);
        }
        if self.card != self.reader {
            return Err(MUTE);
        }
        match self.card.protocol {
            Protocol::T1 => self.hear_block(card),
            Protocol::T0 => self.hear_command(card),
        }
    }

    fn hear_block(&mut self, card: &mut FakeCard) -> Result<Vec<u8>, u8> {
        let length = self.heard.get(2).copied().map_or(0, usize::from);
        if self.heard.len() < 3 + length + epilogue(card.manners.crc) {
            return Ok(Vec::new());
        }
        let block = std::mem::take(&mut self.heard);
        self.block(&block, card)
    }

    /// Returns procedure bytes (ISO 7816-3, 10.3.3), receives the data that they request, and then returns the response.
    fn hear_command(&mut self, card: &mut FakeCard) -> Result<Vec<u8>, u8> {
        let [_, ins, _, _, p3, data @ ..] = self.heard.as_slice() else {
            return Ok(Vec::new());
        };
        let (ins, data) = (*ins, data.len());
        let due = if takes_data(ins) { usize::from(*p3) } else { 0 };
        let mut said = vec![0x60; card.manners.nulls];
        if data < due {
            said.push(if card.manners.one_by_one { !ins } else { ins });
            return Ok(said);
        }
        let command = std::mem::take(&mut self.heard);
        let answer = self.block(&command, card)?;
        if answer.len() > 2 {
            said.push(ins);
        }
        said.extend(answer);
        Ok(said)
    }
}

/// Returns whether a T=0 card receives data with this instruction. Only the card knows that.
const fn takes_data(ins: u8) -> bool {
    !matches!(ins, 0xB0 | 0xB2 | 0xC0 | 0xCA | 0xCB)
}
