//! T=0 or T=1 with the card of a TPDU or character reader, from one reset to the next.

use std::time::Duration;

use claviger_apdu::{Secret, Sent};

use super::capabilities::Capabilities;
use crate::{
    ccid::budget,
    protocol::{
        Protocol, Rate, Step, T0, T1, TransmissionParameters,
        character::{CharacterExchange, CharacterStep},
        parameters::ErrorDetection,
        pps::{AgreedParameters, PpsRequest},
    },
};

/// Characters of the longest block or command and its response: 260 to the card, 259 back.
const MAX_CHARACTERS: u16 = 520;
/// How many work waiting times a T=0 card may take for one command: one before each character of the longest response. The card
/// may also send NULL all the time, which only the reader sees. The reader reports when such a card does not respond.
const WORK_WAITING_TIMES: u32 = 260;
/// Characters of a PPS request and its response, and as many again.
const PPS_CHARACTERS: u16 = 12;

/// See the module.
#[derive(Debug)]
pub(super) struct ProtocolState {
    engine: Engine,
    timing: BlockTiming,
}

#[derive(Debug)]
enum Engine {
    T0(T0),
    T1(T1),
}

/// The type of a block at the character level.
#[derive(Clone, Copy, Debug)]
pub(super) enum BlockKind {
    T0,
    T1(ErrorDetection),
    Pps,
}

/// The timing of a block and its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockTiming {
    /// The block waiting time, or many work waiting times.
    waiting: Duration,
    /// The time of the transmission.
    transfer: Duration,
}

impl BlockTiming {
    /// Returns the timing of a PPS request, whose response comes at the default rate.
    pub(super) fn for_pps(parameters: &TransmissionParameters, khz: u32) -> Self {
        Self {
            waiting: PpsRequest::waiting_time(khz),
            transfer: parameters.transfer_time(PPS_CHARACTERS, Rate::DEFAULT, khz),
        }
    }

    fn for_protocol(
        parameters: &TransmissionParameters,
        agreement: AgreedParameters,
        khz: u32,
    ) -> Self {
        let rate = agreement.rate;
        Self {
            waiting: match agreement.protocol {
                Protocol::T1 => parameters.block_waiting_time(rate, khz),
                _ => parameters
                    .work_waiting_time(rate, khz)
                    .saturating_mul(WORK_WAITING_TIMES),
            },
            transfer: parameters.transfer_time(MAX_CHARACTERS, rate, khz),
        }
    }

    /// Returns the timeout of the reader if the card may take its waiting time `multiplier` times.
    pub(super) fn limit(self, multiplier: u8) -> Duration {
        let waiting = self.waiting.saturating_mul(u32::from(multiplier.max(1)));
        waiting + self.transfer + budget::MARGIN
    }
}

impl ProtocolState {
    /// Makes the state for a card that announced `parameters` and uses `agreement`.
    pub(super) fn new(
        reader: &Capabilities,
        parameters: &TransmissionParameters,
        agreement: AgreedParameters,
    ) -> Self {
        let detection = parameters.error_detection;
        let engine = match agreement.protocol {
            Protocol::T1 => {
                let t1 = T1::new(parameters, reader.ifsd(detection));
                Engine::T1(t1.sending_at_most(reader.longest_information(detection)))
            }
            _ => Engine::T0(T0::new()),
        };
        Self {
            engine,
            timing: BlockTiming::for_protocol(parameters, agreement, reader.khz()),
        }
    }

    pub(super) const fn kind(&self) -> BlockKind {
        match &self.engine {
            Engine::T0(_) => BlockKind::T0,
            Engine::T1(t1) => BlockKind::T1(t1.detection()),
        }
    }

    pub(super) const fn timing(&self) -> BlockTiming {
        self.timing
    }

    pub(super) fn begin(&mut self, frame: &[u8]) -> Step {
        match &mut self.engine {
            Engine::T0(t0) => t0.begin(frame),
            Engine::T1(t1) => t1.begin(frame),
        }
    }

    pub(super) fn receive(&mut self, answer: &[u8]) -> Step {
        match &mut self.engine {
            Engine::T0(t0) => t0.receive(answer),
            Engine::T1(t1) => t1.receive(answer),
        }
    }

    pub(super) fn transmission_error(&mut self) -> Step {
        match &mut self.engine {
            Engine::T0(t0) => t0.transmission_error(),
            Engine::T1(t1) => t1.transmission_error(),
        }
    }

    pub(super) fn response_timeout(&mut self) -> Step {
        match &mut self.engine {
            Engine::T0(t0) => t0.response_timeout(),
            Engine::T1(t1) => t1.response_timeout(),
        }
    }

    /// Returns whether the card has received the command once the next block has been sent.
    pub(super) const fn sent(&self) -> Sent {
        match &self.engine {
            Engine::T0(t0) => t0.sent(),
            Engine::T1(t1) => t1.sent(),
        }
    }
}

impl BlockKind {
    /// `block` in characters.
    pub(super) fn characters(self, block: Secret) -> (CharacterExchange, CharacterStep) {
        match self {
            Self::T0 => CharacterExchange::t0(block.expose()),
            Self::T1(detection) => CharacterExchange::t1(block, detection),
            Self::Pps => CharacterExchange::pps(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(protocol: Protocol, multiplier: u8) -> Duration {
        let rate = Rate::DEFAULT;
        let agreement = AgreedParameters { protocol, rate };
        BlockTiming::for_protocol(&TransmissionParameters::default(), agreement, 4_000)
            .limit(multiplier)
    }

    #[test]
    fn t1_block_timeout_scales_with_the_waiting_time_multiplier() {
        let waiting = TransmissionParameters::default().block_waiting_time(Rate::DEFAULT, 4_000);
        let once = time(Protocol::T1, 1);
        assert!(once > waiting + budget::MARGIN && once < waiting + budget::MARGIN * 2);
        assert_eq!(time(Protocol::T1, 0), once);
        assert_eq!(time(Protocol::T1, 10), once + waiting * 9);
    }

    #[test]
    fn t0_timeout_exceeds_that_of_the_reader() {
        let waiting = TransmissionParameters::default().work_waiting_time(Rate::DEFAULT, 4_000);
        assert!(time(Protocol::T0, 1) > waiting * WORK_WAITING_TIMES);
    }
}
