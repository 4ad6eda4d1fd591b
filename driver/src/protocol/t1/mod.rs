//! T=1, the block protocol (ISO 7816-3, 11), as the interface device speaks it.
//!
//! ```text
//! Announcing ──► Sending ──────► Receiving ──► Done         an I-block each, or R-blocks until one comes
//!   S(IFS)        I … I R … R      I R … I
//!                    └── three answers in a row are damaged ──► Resynchronising ──► Failed
//!                                                                  S(RESYNCH)
//! ```
//!
//! A *block* may be sent again, when the card's own numbering says that it has not taken it. A *command* never is:
//! S(RESYNCH) makes the card forget the numbers, so that afterwards nobody can know what became of the command. It fails,
//! and whoever knows what it was decides.

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

/// What both sides take before anything else is said.
const DEFAULT_IFS: u8 = 32;
/// Longest command APDU: extended, with 65 535 bytes of data.
const COMMAND_BYTES: usize = 65_544;

/// The interface device's side of T=1 with one card, from its reset to its next.
#[derive(Debug)]
pub struct T1 {
    detection: ErrorDetection,
    /// IFSC of the answer to reset, which S(RESYNCH) brings back.
    first_ifsc: u8,
    /// What the card is told that we take.
    ifsd: u8,
    /// Longest information field that the interface device can send.
    most: u8,
    /// The card has answered everything but S(IFS).
    refuses_ifs: bool,
    numbering: SequenceState,
    phase: Phase,
    last: LastSent,
    exchange: Exchange,
}

/// What S(RESYNCH) brings back to its beginning.
#[derive(Debug)]
struct SequenceState {
    /// N(S) of our present or next I-block.
    send: bool,
    /// N(S) of the card's next I-block, our N(R).
    receive: bool,
    ifsc: u8,
    /// Whether the card knows our IFSD.
    announced: bool,
}

/// Where an exchange stands.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing is under way, and both sides agree on the numbers.
    Idle,
    /// Nothing is under way, and they may not.
    OutOfStep,
    Resynchronising(AfterResync),
    /// S(IFS) is out.
    Announcing,
    /// An I-block of ours is out.
    Sending,
    /// The card has the command, and we have a part of its answer.
    Receiving,
    /// S(ABORT) of ours is out, because the answer is too long.
    Aborting(Failure),
    /// The card's S(ABORT) is answered; its next block ends the exchange.
    Aborted,
}

/// What S(RESYNCH) leads to.
#[derive(Clone, Copy, Debug)]
enum AfterResync {
    /// The command of which no block has been sent.
    Command,
    /// The end of the one that has.
    Failure(Failure),
}

/// The block sent last, to be sent again.
#[derive(Clone, Copy, Debug)]
enum LastSent {
    I,
    R(RBlockError),
    Request(Function),
    /// With its information field, if it has one.
    Response(Function, Option<u8>),
}

/// One command and what has come of it.
#[derive(Debug, Default)]
struct Exchange {
    command: Secret,
    /// Where our present I-block begins, and how many bytes it has.
    at: usize,
    len: usize,
    /// Whether any I-block has been sent.
    begun: bool,
    /// Whether our last I-block is still to be acknowledged.
    outstanding: bool,
    answer: Secret,
    answered: bool,
    /// Answers in a row that brought nothing.
    failures: u8,
    blocks: u32,
    extensions: u32,
    supervisory: u8,
}

impl T1 {
    /// The state after a reset of the card that announced `parameters`; the interface device takes
    /// information fields of `ifsd` bytes (1 to 254), which the first command tells the card unless it is 32.
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

    /// Sends information fields of at most `most` bytes, however many the card takes.
    #[must_use]
    pub const fn sending_at_most(mut self, most: u8) -> Self {
        self.most = if most == 0 { 1 } else { most };
        self
    }

    /// The error detection code in use.
    #[must_use]
    pub const fn detection(&self) -> ErrorDetection {
        self.detection
    }

    /// Whether the card has seen the command under way; No when none is.
    #[must_use]
    pub const fn sent(&self) -> Sent {
        match (self.exchange.begun, self.exchange.answered) {
            (false, _) => Sent::No,
            (true, false) => Sent::Maybe,
            (true, true) => Sent::Yes,
        }
    }

    /// Begins the exchange of `apdu`, of any length. An exchange under way is given up, and the card is brought to
    /// its beginning by S(RESYNCH) first; the reader must not be waiting for a block of it any more.
    pub fn begin(&mut self, apdu: &[u8]) -> Step {
        if apdu.is_empty() || apdu.len() > COMMAND_BYTES {
            return not_sent("it has no byte, or more than any");
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

    /// Takes what the card sent: one block, epilogue included.
    pub fn receive(&mut self, bytes: &[u8]) -> Step {
        match Block::parse(bytes, self.detection) {
            Ok(block) => self.take(&block),
            Err(error) => self.no_valid_block(error),
        }
    }

    /// Takes note that something came that is no block: the reader reported a parity error or an overrun.
    pub fn transmission_error(&mut self) -> Step {
        self.no_valid_block(RBlockError::Redundancy)
    }

    /// Takes note that the block waiting time, multiplied as said, passed and nothing came.
    pub fn response_timeout(&mut self) -> Step {
        self.no_valid_block(RBlockError::Other)
    }

    /// A valid block.
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
                self.end(Phase::OutOfStep, failure)
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

    /// The next thing to be said before the command, or its first block.
    fn command(&mut self) -> Step {
        if self.ifsd == DEFAULT_IFS || self.numbering.announced || self.refuses_ifs {
            return self.information_block();
        }
        self.phase = Phase::Announcing;
        self.send_first(LastSent::Request(Function::Ifs))
    }

    /// The I-block that begins at `exchange.at`, for the first time.
    fn information_block(&mut self) -> Step {
        let rest = self.exchange.command.len().saturating_sub(self.exchange.at);
        self.exchange.len = rest.min(usize::from(self.numbering.ifsc.min(self.most)));
        self.exchange.begun = true;
        self.exchange.outstanding = true;
        self.phase = Phase::Sending;
        self.send_first(LastSent::I)
    }

    /// Whether pieces of the command follow the present one.
    fn more(&self) -> bool {
        self.exchange.at + self.exchange.len < self.exchange.command.len()
    }

    /// An I-block of the card's: it acknowledges ours and brings a piece of the answer.
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

    /// An R-block while a block of ours is out: the next piece is wanted, or the present one once more.
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
        // The card has the whole command: what it missed is an R-block or a response of ours.
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

    /// A request of the card's, which is granted within the budget.
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

    /// Something came, or nothing, that brings the exchange no further (rules 7.1 to 7.3).
    fn no_valid_block(&mut self, error: RBlockError) -> Step {
        if matches!(self.phase, Phase::Idle | Phase::OutOfStep) {
            return not_sent("no command is under way");
        }
        if matches!(self.last, LastSent::I | LastSent::Response(..)) {
            self.last = LastSent::R(error);
        }
        self.again()
    }

    /// The last block once more, unless it has been enough.
    fn again(&mut self) -> Step {
        self.exchange.failures += 1;
        let enough = match self.last {
            LastSent::Request(_) => self.exchange.failures >= REQUESTS,
            _ => self.exchange.failures > RETRIES,
        };
        if enough { self.give_up() } else { self.send() }
    }

    /// What there is to be tried next.
    fn give_up(&mut self) -> Step {
        match self.phase {
            Phase::Resynchronising(_) => {
                let failure = self.failure(FailureReason::Lost);
                self.end(Phase::OutOfStep, failure)
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

    /// The card goes on for longer than is allowed: nothing more is granted.
    fn exceeded(&mut self, what: &'static str) -> Step {
        let failure = self.failure(FailureReason::Budget(what));
        self.resynchronise(AfterResync::Failure(failure))
    }

    /// The answer is too long; the rest of it is not wanted.
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

    /// A block that the exchange has come to.
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

    /// The present I-block, always the same until it is acknowledged.
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
