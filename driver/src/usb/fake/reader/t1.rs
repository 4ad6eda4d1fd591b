//! The card's side of T=1 with LRC (ISO 7816-3, 11): it answers, and never begins anything itself.

/// The information field a card sends before it was told of a larger one.
const FIRST_IFSD: usize = 32;

const MORE: u8 = 0x20;

#[derive(Debug)]
pub(super) struct T1 {
    /// The number of the card's next I-block, and of the host's.
    ours: bool,
    theirs: bool,
    ifsd: usize,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// The block sent last, for a request to send it again.
    last: Vec<u8>,
}

impl Default for T1 {
    fn default() -> Self {
        Self {
            ours: false,
            theirs: false,
            ifsd: FIRST_IFSD,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            last: Vec::new(),
        }
    }
}

impl T1 {
    /// The block that answers `block`; `None` when the card stays mute.
    pub(super) fn answer(
        &mut self,
        block: &[u8],
        card: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        let answer = match whole(block) {
            None => receive_ready(self.theirs, 1),
            Some((pcb, data)) if pcb & 0x80 == 0 => self.information(pcb, data, card)?,
            Some((pcb, _)) if pcb & 0xC0 == 0x80 => self.receive_ready(pcb),
            Some((pcb, data)) => self.supervisory(pcb, data)?,
        };
        self.last.clone_from(&answer);
        Some(answer)
    }

    fn information(
        &mut self,
        pcb: u8,
        data: &[u8],
        card: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        if (pcb & 0x40 != 0) != self.theirs {
            return Some(receive_ready(self.theirs, 2));
        }
        self.theirs = !self.theirs;
        self.incoming.extend_from_slice(data);
        if pcb & MORE != 0 {
            return Some(receive_ready(self.theirs, 0));
        }
        self.outgoing = card(&std::mem::take(&mut self.incoming));
        (self.outgoing.len() >= 2).then(|| self.next())
    }

    /// An R-block asks for the next part, or for the last block again.
    fn receive_ready(&mut self, pcb: u8) -> Vec<u8> {
        let next = (pcb & 0x10 != 0) == self.ours;
        if next && pcb & 0x0F == 0 && !self.outgoing.is_empty() {
            return self.next();
        }
        if self.last.is_empty() {
            return receive_ready(self.theirs, 0);
        }
        self.last.clone()
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
            _ => return None,
        }
        Some(framed(pcb | MORE, data))
    }

    fn next(&mut self) -> Vec<u8> {
        let rest = self
            .outgoing
            .split_off(self.ifsd.clamp(1, 254).min(self.outgoing.len()));
        let part = std::mem::replace(&mut self.outgoing, rest);
        let more = if self.outgoing.is_empty() { 0 } else { MORE };
        let number = if self.ours { 0x40 } else { 0 };
        self.ours = !self.ours;
        framed(number | more, &part)
    }
}

/// PCB and information field of a block whose length and check are right.
fn whole(block: &[u8]) -> Option<(u8, &[u8])> {
    let [_nad, pcb, length, data @ .., _check] = block else {
        return None;
    };
    let right = usize::from(*length) == data.len() && block.iter().fold(0, |sum, b| sum ^ b) == 0;
    right.then_some((*pcb, data))
}

/// An R-block that expects the I-block of a number.
fn receive_ready(expected: bool, error: u8) -> Vec<u8> {
    framed(0x80 | (u8::from(expected) << 4) | error, &[])
}

fn framed(pcb: u8, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0x00, pcb, u8::try_from(data.len()).unwrap_or(u8::MAX)];
    block.extend_from_slice(data);
    block.push(block.iter().fold(0, |sum, byte| sum ^ byte));
    block
}
