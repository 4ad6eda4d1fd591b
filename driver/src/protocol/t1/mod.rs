//! T=1, the block protocol (ISO 7816-3, 11), on the side of the interface device.
//!
//! ```text
//! Announcing ──► Sending ──────► Receiving ──► Done         an I-block each, or R-blocks until one arrives
//!   S(IFS)        I … I R … R      I R … I
//!                    └── three bad responses in a row ──► Resynchronising ──► Failed
//!                                                          S(RESYNCH)
//! ```
//!
//! A *block* may be sent again if the card's sequence numbers show that it was not received. A *command* is never
//! sent again: S(RESYNCH) resets the card's sequence numbers, so it is unknown afterwards whether the card executed
//! the command. The command fails, and the caller, which knows the command, decides whether to repeat it.

pub mod block;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;

use claviger_apdu::{Secret, Sent};

use super::{
    Failure, FailureReason, Step, TransmissionParameters,
    budget::{
        ANSWER_BLOCKS, ANSWER_BYTES, REQUESTS, RETRIES, SUPERVISORY_BLOCKS, WAITING_TIME_EXTENSIONS,
    },
    parameters::ErrorDetection,
};
use block::{Block, Control, Function, MAX_INFORMATION, RBlockError};

/// The longest information field of both sides before any S(IFS).
const DEFAULT_IFS: u8 = 32;
/// The longest command APDU: extended, with 65 535 bytes of data.
const COMMAND_BYTES: usize = 65_544;

/// T=1 with one card, from one reset of the card to the next.
#[derive(Debug)]
pub struct T1 {
    detection: ErrorDetection,
    /// IFSC of the answer to reset. S(RESYNCH) restores it.
    first_ifsc: u8,
    /// The IFSD that S(IFS) sends to the card.
    ifsd: u8,
    /// The longest information field that the interface device can send.
    most: u8,
    /// Whether the card has responded to other blocks but not to S(IFS).
    refuses_ifs: bool,
    numbering: SequenceState,
    phase: Phase,
    last: LastSent,
    exchange: Exchange,
}

/// The state that S(RESYNCH) resets.
#[derive(Debug)]
struct SequenceState {
    /// N(S) of the interface device's current or next I-block.
    send: bool,
    /// N(S) of the card's next I-block, which is N(R) of the interface device.
    receive: bool,
    ifsc: u8,
    /// Whether the card has acknowledged the IFSD.
    announced: bool,
}

/// The phase of an exchange.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No exchange is running, and both sides agree on the sequence numbers.
    Idle,
    /// No exchange is running, and both sides may disagree on the sequence numbers.
    Desynchronized,
    Resynchronising(AfterResync),
    /// S(IFS) has been sent.
    Announcing,
    /// An I-block has been sent.
    Sending,
    /// The card has the command. A part of its response has been received.
    Receiving,
    /// S(ABORT) has been sent, because the response is too long.
    Aborting(Failure),
    /// S(ABORT response) to the card has been sent. The card's next block ends the exchange.
    Aborted,
}

/// The action after S(RESYNCH).
#[derive(Clone, Copy, Debug)]
enum AfterResync {
    /// Send the command, of which no block has been sent yet.
    Command,
    /// End the exchange with this failure.
    Failure(Failure),
}

/// The last block, which may have to be sent again.
#[derive(Clone, Copy, Debug)]
enum LastSent {
    I,
    R(RBlockError),
    Request(Function),
    /// A response with its information field, if it has one.
    Response(Function, Option<u8>),
}

/// The state of one command.
#[derive(Debug, Default)]
struct Exchange {
    command: Secret,
    /// The offset and the length of the current I-block in the command.
    at: usize,
    len: usize,
    /// Whether any I-block has been sent.
    begun: bool,
    /// Whether the last I-block has not been acknowledged yet.
    outstanding: bool,
    answer: Secret,
    answered: bool,
    /// How many responses in a row made no progress.
    failures: u8,
    blocks: u32,
    extensions: u32,
    supervisory: u8,
}

impl T1 {
    /// Makes the state after a reset of a card that announced `parameters`. The interface device accepts information
    /// fields of `ifsd` bytes (1 to 254). The first command sends S(IFS) unless that is 32.
    #[must_use]
    pub fn new(parameters: &TransmissionParameters, ifsd: u8) -> Self {
        Self {
            detection: parameters.error_detection,
            first_ifsc: parameters.ifsc.clamp(1, MAX_INFORMATION),
            ifsd: ifsd.clamp(1, MAX_INFORMATION),
            most: MAX_INFORMATION,
            refuses_ifs: false,
            numbering: SequenceState::new(parameters.ifsc.clamp(1, MAX_INFORMATION)),
            phase: Phase::Idle,
            last: LastSent::I,
            exchange: Exchange::default(),
        }
    }

    /// Limits the information fields that are sent to `most` bytes, whatever the card accepts.
    #[must_use]
    pub const fn sending_at_most(mut self, most: u8) -> Self {
        self.most = if most == 0 { 1 } else { most };
        self
    }

    /// Returns the error detection code in use.
    #[must_use]
    pub const fn detection(&self) -> ErrorDetection {
        self.detection
    }

    /// Returns whether the card received the running command, or No without one.
    #[must_use]
    pub const fn sent(&self) -> Sent {
        match (self.exchange.begun, self.exchange.answered) {
            (false, _) => Sent::No,
            (true, false) => Sent::Maybe,
            (true, true) => Sent::Yes,
        }
    }

    /// Begins the exchange of `apdu`, of any length. Discards a running exchange and first sends S(RESYNCH). The
    /// reader must not be waiting for a block any more.
    pub fn begin(&mut self, apdu: &[u8]) -> Step {
        if apdu.is_empty() || apdu.len() > COMMAND_BYTES {
            return not_sent("it is empty or too long");
        }
        self.exchange = Exchange {
            command: Secret::copy_from(apdu),
            ..Exchange::default()
        };
        match self.phase {
            Phase::Idle => self.command(),
            _ => self.resynchronise(AfterResync::Command),
        }
    }

    /// Processes a received block, its epilogue included.
    pub fn receive(&mut self, bytes: &[u8]) -> Step {
        match Block::parse(bytes, self.detection) {
            Ok(block) => self.take(&block),
            Err(error) => self.no_valid_block(error),
        }
    }

    /// Processes a transmission error: the reader reported a parity error or an overrun.
    pub fn transmission_error(&mut self) -> Step {
        self.no_valid_block(RBlockError::Redundancy)
    }

    /// Processes a timeout: the block waiting time, with its multiplier, passed without a response.
    pub fn response_timeout(&mut self) -> Step {
        self.no_valid_block(RBlockError::Other)
    }

    /// Processes a valid block.
    fn take(&mut self, block: &Block<'_>) -> Step {
        match (self.phase, block.control) {
            (Phase::Resynchronising(then), control)
                if control == Control::response(Function::Resynch) =>
            {
                self.resynchronised(then)
            }
            (Phase::Announcing, control)
                if control == Control::response(Function::Ifs)
                    && block.information == [self.ifsd] =>
            {
                self.numbering.announced = true;
                self.command()
            }
            (Phase::Aborting(failure), control)
                if control == Control::response(Function::Abort) =>
            {
                self.end(Phase::Desynchronized, failure)
            }
            (Phase::Sending | Phase::Receiving | Phase::Aborted, Control::I { number, more }) => {
                self.information(number, more, block.information)
            }
            (Phase::Sending, Control::R { number, .. }) => self.acknowledgement(number),
            (Phase::Receiving, Control::R { .. }) => self.again(),
            (Phase::Aborted, Control::R { number, .. }) => {
                self.numbering.send = number;
                let failure = self.failure(FailureReason::Aborted);
                self.end(Phase::Idle, failure)
            }
            (
                Phase::Sending | Phase::Receiving | Phase::Aborted,
                Control::S {
                    function,
                    response: false,
                },
            ) => self.request(function, block.information.first().copied()),
            _ => self.no_valid_block(RBlockError::Other),
        }
    }

    /// Sends S(IFS) if it is needed, else the first block of the command.
    fn command(&mut self) -> Step {
        if self.ifsd == DEFAULT_IFS || self.numbering.announced || self.refuses_ifs {
            return self.information_block();
        }
        self.phase = Phase::Announcing;
        self.send_first(LastSent::Request(Function::Ifs))
    }

    /// Sends the I-block at `exchange.at` for the first time.
    fn information_block(&mut self) -> Step {
        let rest = self.exchange.command.len().saturating_sub(self.exchange.at);
        self.exchange.len = rest.min(usize::from(self.numbering.ifsc.min(self.most)));
        self.exchange.begun = true;
        self.exchange.outstanding = true;
        self.phase = Phase::Sending;
        self.send_first(LastSent::I)
    }

    /// Returns whether more pieces of the command follow the current one.
    fn more(&self) -> bool {
        self.exchange.at + self.exchange.len < self.exchange.command.len()
    }

    /// Processes an I-block of the card. It acknowledges the last I-block and carries a piece of the response.
    fn information(&mut self, number: bool, more: bool, information: &[u8]) -> Step {
        let early = matches!(self.phase, Phase::Sending) && self.more();
        if early || number != self.numbering.receive {
            return self.no_valid_block(RBlockError::Other);
        }
        self.acknowledged();
        self.numbering.receive = !number;
        self.exchange.supervisory = 0;
        self.exchange.answered = true;
        self.exchange.blocks += 1;
        if self.exchange.answer.len() + information.len() > ANSWER_BYTES {
            return self.too_much("bytes", more);
        }
        if self.exchange.blocks > ANSWER_BLOCKS {
            return self.too_much("blocks", more);
        }
        self.exchange.answer.extend(information);
        if more {
            self.phase = Phase::Receiving;
            return self.send_first(LastSent::R(RBlockError::None));
        }
        self.phase = Phase::Idle;
        Step::Done(std::mem::take(&mut self.exchange).answer)
    }

    /// Processes an R-block. It requests the next piece, or the current one again.
    fn acknowledgement(&mut self, number: bool) -> Step {
        if number == self.numbering.send {
            self.last = LastSent::I;
            return self.again();
        }
        if self.more() {
            self.acknowledged();
            self.exchange.supervisory = 0;
            self.exchange.at += self.exchange.len;
            return self.information_block();
        }
        // The card has the whole command. It has missed an R-block or a response to one of its requests.
        match self.last {
            LastSent::R(_) | LastSent::Response(..) => self.again(),
            _ => self.no_valid_block(RBlockError::Other),
        }
    }

    fn acknowledged(&mut self) {
        if std::mem::take(&mut self.exchange.outstanding) {
            self.numbering.send = !self.numbering.send;
        }
    }

    /// Processes a request of the card, which is granted within the limits.
    fn request(&mut self, function: Function, value: Option<u8>) -> Step {
        match (function, value) {
            (Function::Wtx, Some(_)) => {
                self.exchange.extensions += 1;
                if self.exchange.extensions > WAITING_TIME_EXTENSIONS {
                    return self.exceeded("waiting time extensions");
                }
            }
            (Function::Ifs, Some(ifsc @ 1..=MAX_INFORMATION)) => self.numbering.ifsc = ifsc,
            (Function::Abort, _) => {
                self.phase = Phase::Aborted;
                self.exchange.answer.clear();
            }
            _ => return self.no_valid_block(RBlockError::Other),
        }
        if function != Function::Wtx {
            self.exchange.supervisory += 1;
            if self.exchange.supervisory > SUPERVISORY_BLOCKS {
                return self.exceeded("S-blocks");
            }
        }
        self.send_first(LastSent::Response(function, value))
    }

    /// Handles a missing or invalid block (rules 7.1 to 7.3).
    fn no_valid_block(&mut self, error: RBlockError) -> Step {
        if matches!(self.phase, Phase::Idle | Phase::Desynchronized) {
            return not_sent("no command is running");
        }
        if matches!(self.last, LastSent::I | LastSent::Response(..)) {
            self.last = LastSent::R(error);
        }
        self.again()
    }

    /// Sends the last block again, unless its retries are used up.
    fn again(&mut self) -> Step {
        self.exchange.failures += 1;
        let is_exhausted = match self.last {
            LastSent::Request(_) => self.exchange.failures >= REQUESTS,
            _ => self.exchange.failures > RETRIES,
        };
        if is_exhausted {
            self.after_last_retry()
        } else {
            self.send()
        }
    }

    /// Chooses the next step after all retries have failed.
    fn after_last_retry(&mut self) -> Step {
        match self.phase {
            Phase::Resynchronising(_) => {
                let failure = self.failure(FailureReason::Lost);
                self.end(Phase::Desynchronized, failure)
            }
            Phase::Announcing => {
                self.refuses_ifs = true;
                self.resynchronise(AfterResync::Command)
            }
            Phase::Aborting(failure) => self.resynchronise(AfterResync::Failure(failure)),
            _ => {
                let failure = self.failure(FailureReason::Resynchronised);
                self.resynchronise(AfterResync::Failure(failure))
            }
        }
    }

    /// Ends an exchange whose card has used up a limit.
    fn exceeded(&mut self, what: &'static str) -> Step {
        let failure = self.failure(FailureReason::Budget(what));
        self.resynchronise(AfterResync::Failure(failure))
    }

    /// Ends an exchange whose response is too long, and aborts the rest of the response.
    fn too_much(&mut self, what: &'static str, more: bool) -> Step {
        let failure = self.failure(FailureReason::Budget(what));
        if !more {
            return self.end(Phase::Idle, failure);
        }
        self.phase = Phase::Aborting(failure);
        self.send_first(LastSent::Request(Function::Abort))
    }

    fn resynchronise(&mut self, then: AfterResync) -> Step {
        self.phase = Phase::Resynchronising(then);
        self.send_first(LastSent::Request(Function::Resynch))
    }

    fn resynchronised(&mut self, then: AfterResync) -> Step {
        self.numbering = SequenceState::new(self.first_ifsc);
        match then {
            AfterResync::Command => self.command(),
            AfterResync::Failure(failure) => self.end(Phase::Idle, failure),
        }
    }

    const fn failure(&self, reason: FailureReason) -> Failure {
        let sent = self.sent();
        Failure { reason, sent }
    }

    fn end(&mut self, phase: Phase, failure: Failure) -> Step {
        self.phase = phase;
        self.exchange = Exchange::default();
        Step::Failed(failure)
    }

    /// Sends a block for the first time.
    fn send_first(&mut self, what: LastSent) -> Step {
        self.last = what;
        self.exchange.failures = 0;
        self.send()
    }

    fn send(&self) -> Step {
        let (control, value) = match self.last {
            LastSent::I => return Step::send(self.piece().encode(self.detection)),
            LastSent::R(error) => (Control::r(self.numbering.receive, error), None),
            LastSent::Request(Function::Ifs) => (Control::request(Function::Ifs), Some(self.ifsd)),
            LastSent::Request(function) => (Control::request(function), None),
            LastSent::Response(function, value) => (Control::response(function), value),
        };
        let block = Block {
            control,
            information: value.as_slice(),
        };
        Step::Send {
            block: block.encode(self.detection),
            waiting_time_multiplier: match (self.last, value) {
                (LastSent::Response(Function::Wtx, _), Some(multiplier)) => multiplier.max(1),
                _ => 1,
            },
        }
    }

    /// Returns the current I-block. It stays the same until the card acknowledges it.
    fn piece(&self) -> Block<'_> {
        let Exchange { at, len, .. } = self.exchange;
        let rest = self.exchange.command.expose().get(at..).unwrap_or(&[]);
        Block {
            control: Control::I {
                number: self.numbering.send,
                more: self.more(),
            },
            information: rest.get(..len).unwrap_or(rest),
        }
    }
}

impl SequenceState {
    const fn new(ifsc: u8) -> Self {
        Self {
            send: false,
            receive: false,
            ifsc,
            announced: false,
        }
    }
}

fn not_sent(why: &'static str) -> Step {
    Step::Failed(Failure {
        reason: FailureReason::Unsuitable(why),
        sent: Sent::No,
    })
}
