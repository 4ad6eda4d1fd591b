//! The card's side of T=1 (ISO 7816-3, 11). It responds, and begins only the requests of [`Disturbance`].

use super::card::{Disturbance, Manners};

/// The longest information field of a card before S(IFS).
const FIRST_IFSD: usize = 32;

const MORE: u8 = 0x20;
/// The errors of the reader for a missing or damaged block (CCID 1.1, table 6.2-2).
const MUTE: u8 = 0xFE;
const PARITY: u8 = 0xFD;

#[derive(Debug)]
pub(super) struct T1 {
    /// The number of the card's next I-block, and of the host's.
    ours: bool,
    theirs: bool,
    ifsd: usize,
    /// IFSC, if the card has requested another one.
    ifsc: Option<usize>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// The block sent last, for a request to send it again.
    last: Vec<u8>,
    /// The block that is sent once a request of the card is granted.
    postponed: Option<Vec<u8>>,
}

impl Default for T1 {
    fn default() -> Self {
        Self {
            ours: false,
            theirs: false,
            ifsd: FIRST_IFSD,
            ifsc: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            last: Vec::new(),
            postponed: None,
        }
    }
}

impl T1 {
    /// Returns the response to `block`, or the error of the reader.
    pub(super) fn answer(
        &mut self,
        block: &[u8],
        apdu: &mut dyn FnMut(&[u8]) -> Vec<u8>,
        manners: &mut Manners,
    ) -> Result<Vec<u8>, u8> {
        let crc = manners.crc;
        let disturbance = manners.next();
        if matches!(disturbance, Some(Disturbance::Lose | Disturbance::Deaf)) {
            return Err(MUTE);
        }
        let answer = self.undisturbed(block, apdu, manners).ok_or(MUTE)?;
        self.last.clone_from(&answer);
        let answer = framed(&answer, crc);
        match disturbance {
            None | Some(Disturbance::Lose | Disturbance::Deaf) => Ok(answer),
            Some(Disturbance::Swallow) => Err(MUTE),
            Some(Disturbance::Parity) => Err(PARITY),
            Some(Disturbance::Corrupt) => Ok(corrupted(answer)),
            Some(Disturbance::Wtx(multiplier)) => Ok(self.postpone(&[0xC3, multiplier], crc)),
            Some(Disturbance::Ifs(size)) => Ok(self.postpone(&[0xC1, size], crc)),
            Some(Disturbance::Abort) => Ok(self.postpone(&[0xC2], crc)),
        }
    }

    /// A request of the card's comes first.
    fn postpone(&mut self, request: &[u8], crc: bool) -> Vec<u8> {
        self.postponed = Some(std::mem::take(&mut self.last));
        self.last = request.to_vec();
        framed(request, crc)
    }

    /// Returns PCB and information field of the response.
    fn undisturbed(
        &mut self,
        block: &[u8],
        apdu: &mut dyn FnMut(&[u8]) -> Vec<u8>,
        manners: &Manners,
    ) -> Option<Vec<u8>> {
        match whole(block, manners.crc) {
            None => Some(receive_ready(self.theirs, 1)),
            Some((_, data)) if data.len() > self.ifsc.unwrap_or(manners.ifsc) => {
                Some(receive_ready(self.theirs, 2))
            }
            Some((pcb, data)) if pcb & 0x80 == 0 => self.information(pcb, data, apdu),
            Some((pcb, _)) if pcb & 0xC0 == 0x80 => Some(self.receive_ready(pcb)),
            Some((pcb, data)) => self.supervisory(pcb, data),
        }
    }

    fn information(
        &mut self,
        pcb: u8,
        data: &[u8],
        apdu: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        if (pcb & 0x40 != 0) != self.theirs {
            return Some(receive_ready(self.theirs, 2));
        }
        self.theirs = !self.theirs;
        self.incoming.extend_from_slice(data);
        if pcb & MORE != 0 {
            return Some(receive_ready(self.theirs, 0));
        }
        self.outgoing = apdu(&std::mem::take(&mut self.incoming));
        (self.outgoing.len() >= 2).then(|| self.next())
    }

    /// Processes an R-block. It requests the last block again, the next part, or a part that does not exist.
    fn receive_ready(&mut self, pcb: u8) -> Vec<u8> {
        let is_next = (pcb & 0x10 != 0) == self.ours;
        if !self.last.is_empty() && (!is_next || self.postponed.is_some()) {
            return self.last.clone();
        }
        if is_next && !self.outgoing.is_empty() {
            return self.next();
        }
        receive_ready(self.theirs, 0)
    }

    fn supervisory(&mut self, pcb: u8, data: &[u8]) -> Option<Vec<u8>> {
        match (pcb, data) {
            (0xC0, []) => {
                *self = Self {
                    ifsd: self.ifsd,
                    ..Self::default()
                }
            }
            (0xC1, [size]) => self.ifsd = usize::from(*size),
            (0xC2, []) => {
                self.incoming.clear();
                self.outgoing.clear();
            }
            (0xE1, [size]) => {
                self.ifsc = Some(usize::from(*size));
                return self.postponed.take();
            }
            (0xE3, [_]) => return self.postponed.take(),
            (0xE2, []) => {
                // The postponed part of the response was never sent.
                if self.postponed.take().is_some() {
                    self.ours = !self.ours;
                }
                self.outgoing.clear();
                return Some(receive_ready(self.theirs, 0));
            }
            _ => return None,
        }
        let mut response = vec![pcb | MORE];
        response.extend_from_slice(data);
        Some(response)
    }

    fn next(&mut self) -> Vec<u8> {
        let rest = self
            .outgoing
            .split_off(self.ifsd.clamp(1, 254).min(self.outgoing.len()));
        let part = std::mem::replace(&mut self.outgoing, rest);
        let more = if self.outgoing.is_empty() { 0 } else { MORE };
        let number = if self.ours { 0x40 } else { 0 };
        self.ours = !self.ours;
        let mut block = vec![number | more];
        block.extend(part);
        block
    }
}

/// Returns PCB and information field of a block with correct length and check.
fn whole(block: &[u8], crc: bool) -> Option<(u8, &[u8])> {
    let (body, code) = block.split_at_checked(block.len().checked_sub(epilogue(crc))?)?;
    let [_nad, pcb, length, data @ ..] = body else {
        return None;
    };
    let right = usize::from(*length) == data.len() && check(body, crc) == code;
    right.then_some((*pcb, data))
}

/// An R-block that expects the I-block of a number.
fn receive_ready(expected: bool, error: u8) -> Vec<u8> {
    vec![0x80 | (u8::from(expected) << 4) | error]
}

/// A block of a PCB and an information field.
fn framed(content: &[u8], crc: bool) -> Vec<u8> {
    let (pcb, data) = content.split_first().unwrap_or((&0, &[]));
    let mut block = vec![0x00, *pcb, u8::try_from(data.len()).unwrap_or(u8::MAX)];
    block.extend_from_slice(data);
    block.extend(check(&block, crc));
    block
}

/// Bytes of the epilogue.
pub(super) const fn epilogue(crc: bool) -> usize {
    if crc { 2 } else { 1 }
}

fn check(body: &[u8], crc: bool) -> Vec<u8> {
    if !crc {
        return vec![body.iter().fold(0, |sum, byte| sum ^ byte)];
    }
    let mut sum = 0xFFFF_u16;
    for bit in body
        .iter()
        .flat_map(|byte| (0..8).map(move |at| byte >> at & 1))
    {
        let carry = (sum & 1) != u16::from(bit);
        sum = (sum >> 1) ^ if carry { 0x8408 } else { 0 };
    }
    sum.to_be_bytes().to_vec()
}

fn corrupted(mut block: Vec<u8>) -> Vec<u8> {
    if let Some(byte) = block.last_mut() {
        *byte ^= 0x10;
    }
    block
}
