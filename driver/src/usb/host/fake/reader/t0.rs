//! The card's side of T=0 (ISO 7816-3, 10), as a reader at the TPDU level shows it.

/// The part of a response that GET RESPONSE has to fetch.
#[derive(Debug, Default)]
pub(super) struct T0 {
    rest: Vec<u8>,
    status: [u8; 2],
}

impl T0 {
    /// Data and status to a header, or to a header and its data; `None` when the card stays mute.
    pub(super) fn answer(
        &mut self,
        tpdu: &[u8],
        card: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        match tpdu {
            [_, 0xC0, 0, 0, expected] => Some(self.get_response(*expected)),
            [_, _, _, _, expected] => {
                self.keep(card(tpdu))?;
                Some(self.read(*expected))
            }
            [_, _, _, _, length, data @ ..] if usize::from(*length) == data.len() => {
                self.keep(card(tpdu))?;
                Some(self.announced())
            }
            _ => None,
        }
    }

    fn keep(&mut self, mut response: Vec<u8>) -> Option<()> {
        let second = response.pop()?;
        self.status = [response.pop()?, second];
        self.rest = response;
        Some(())
    }

    /// Returns the response to a command without data: the requested number of bytes, or the available number.
    fn read(&mut self, expected: u8) -> Vec<u8> {
        let room = if expected == 0 {
            256
        } else {
            usize::from(expected)
        };
        match self.rest.len() {
            0 => self.status.to_vec(),
            length if length == room || length > 256 => self.part(room),
            length => vec![0x6C, count(length)],
        }
    }

    /// After a command with data: the status, or that there is a response to get.
    fn announced(&self) -> Vec<u8> {
        match self.rest.len() {
            0 => self.status.to_vec(),
            length => vec![0x61, count(length)],
        }
    }

    fn get_response(&mut self, expected: u8) -> Vec<u8> {
        let room = if expected == 0 {
            256
        } else {
            usize::from(expected)
        };
        match self.rest.len() {
            0 => vec![0x69, 0x85],
            length if length < room => vec![0x6C, count(length)],
            _ => self.part(room),
        }
    }

    fn part(&mut self, room: usize) -> Vec<u8> {
        let rest = self.rest.split_off(room.min(self.rest.len()));
        let mut answer = std::mem::replace(&mut self.rest, rest);
        answer.extend(self.announced());
        answer
    }
}

/// Returns a length as SW2 encodes it. Zero means 256 or more.
fn count(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(0)
}
