//! The way to one card, as a driver gives it and an applet uses it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    atr::Atr,
    command::{CommandApdu, Limits},
    exchange::{Exchange, ExchangeError, Step},
    response::{ResponseApdu, ResponseBuffer},
};

/// How long a call into a transport may take, and what the card does meanwhile.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Call {
    /// When to give up.
    pub deadline: Instant,
}

impl Call {
    /// A call that may take `budget` from now.
    #[must_use]
    pub fn within(budget: Duration) -> Self {
        Self {
            deadline: Instant::now() + budget,
        }
    }
}

/// Whether a frame that failed had reached the card; only `No` may be sent again blindly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The card has not seen it.
    No,
    /// The card has seen it and perhaps executed it.
    Yes,
    /// Nobody knows.
    Maybe,
}

/// Counts the times a card's state was lost: reset, power cycle, another card in the reader.
///
/// Two equal epochs of one transport say that nothing *announced* such a loss in between; another
/// process may still have selected another applet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// What went wrong on the way to the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportErrorKind {
    /// The service behind the reader (pcscd, a socket's server) does not run.
    NoService,
    /// The reader is gone.
    NoReader,
    /// The reader holds no card, or one that does not answer.
    NoCard,
    /// The card was pulled, perhaps in the middle.
    CardRemoved,
    /// Another user of the card reset it. The transport has reconnected and its epoch advanced.
    CardReset,
    /// Somebody else holds the card.
    Busy,
    /// Access is refused.
    Denied,
    /// The deadline passed.
    TimedOut,
    /// The call was ended on purpose.
    Cancelled,
    /// The other side broke its protocol.
    Protocol,
}

/// A failed call: what happened, to what, and whether the card saw the command.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct TransportError {
    /// What the caller can act on.
    pub kind: TransportErrorKind,
    /// Whether the card may have executed the command.
    pub sent: Sent,
    /// For a person: which operation on which reader, the number it failed with, and the cure.
    pub what: String,
}

impl TransportError {
    /// An error about a command that never reached the card.
    #[must_use]
    pub fn before_card(kind: TransportErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            sent: Sent::No,
            what: what.into(),
        }
    }
}

/// Sends one frame and waits for its answer.
pub trait Transmit {
    /// Sends `frame` and puts the card's answer, data and status word, into `response`.
    ///
    /// # Errors
    /// [`TransportError`]; after [`TransportErrorKind::CardReset`] the transport is usable again.
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError>;
}

/// A shared connection to one card. Dropping it leaves the card as it is: no reset, no power-off.
///
/// [`Transmit::transmit`] outside [`Transport::transact`] is one exchange that is atomic by itself; other
/// users of the card may come before and after it.
pub trait Transport: Transmit + Send {
    /// The card's answer to reset.
    fn atr(&self) -> &Atr;

    /// What the reader can carry; whether the *card* takes extended length is the applet's to know.
    fn limits(&self) -> Limits;

    /// The card's present epoch.
    fn epoch(&self) -> Epoch;

    /// Whether the connection has ended and is of no more use: it is dropped and another one made.
    fn is_closed(&self) -> bool;

    /// Takes the card up again after other programs may have had the reader; nothing is sent to the card itself. For before an
    /// operation: a card that may have been exchanged meanwhile ends the transport here, and not in the middle.
    ///
    /// # Errors
    /// [`TransportError`]; the transport is then of no more use.
    fn resume(&mut self, _call: Call) -> Result<(), TransportError> {
        Ok(())
    }

    /// Whether the card may be another one than that of the last transport to this reader, though it answers its reset alike:
    /// nobody has followed the reader in between.
    fn may_be_another(&self) -> bool {
        false
    }

    /// Runs `body` once while no other user of the card can send anything, then lets go and leaves the
    /// card as it is, also when `body` panics.
    ///
    /// # Errors
    /// When exclusivity was not granted before the deadline; `body` has then not run. A reset noticed at
    /// the beginning advances the epoch and is no error.
    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError>;
}

/// One conversation with a card, frames and all; borrowed, so that it cannot outlive its exclusivity.
pub struct Transaction<'a> {
    link: &'a mut dyn Transmit,
    limits: Limits,
}

impl<'a> Transaction<'a> {
    /// Talks over `link` in frames that fit `limits`.
    pub fn new(link: &'a mut dyn Transmit, limits: Limits) -> Self {
        Self { link, limits }
    }

    /// Sends `command` and collects the whole answer: chaining, 61xx and 6Cxx are dealt with here.
    ///
    /// # Errors
    /// Of the transport; an answer outside ISO 7816-4 is [`TransportErrorKind::Protocol`].
    pub fn exchange(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TransportError> {
        let call = Call::within(command.budget.timeout());
        let mut exchange = Exchange::new(command, self.limits)
            .map_err(|error| broken(command, error, Sent::No))?;
        let mut buffer = ResponseBuffer::new();
        loop {
            tracing::trace!(target: "apdu", "> {}", Masked(exchange.frame()));
            let sent = self.link.transmit(exchange.frame(), &mut buffer, call);
            // A GET RESPONSE that fails before the card says nothing of the command it belongs to.
            sent.map_err(|error| TransportError {
                sent: if exchange.is_executed() {
                    Sent::Yes
                } else {
                    error.sent
                },
                ..error
            })?;
            tracing::trace!(target: "apdu", "< {}", MaskedAnswer(buffer.frame()));
            // Less than a status word is nothing a card says: it was cut short on the way.
            let sent = if buffer.frame().len() < 2 {
                Sent::Maybe
            } else {
                Sent::Yes
            };
            match exchange
                .receive(buffer.frame())
                .map_err(|error| broken(command, error, sent))?
            {
                Step::Send => {}
                Step::Done(response) => return Ok(response),
            }
        }
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

fn broken(command: &CommandApdu<'_>, error: ExchangeError, sent: Sent) -> TransportError {
    let [cla, ins, p1, p2] = command.header;
    TransportError {
        kind: TransportErrorKind::Protocol,
        sent,
        what: format!("command {cla:02X} {ins:02X} {p1:02X} {p2:02X}: {error}"),
    }
}

/// A command frame for the trace: header and length, never the data.
struct Masked<'a>(&'a [u8]);

impl fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [cla, ins, p1, p2, rest @ ..] => {
                write!(
                    f,
                    "{cla:02X} {ins:02X} {p1:02X} {p2:02X}, {} more bytes",
                    rest.len()
                )
            }
            short => write!(f, "{} bytes", short.len()),
        }
    }
}

/// A response frame for the trace: length and status word, never the data.
struct MaskedAnswer<'a>(&'a [u8]);

impl fmt::Display for MaskedAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [data @ .., sw1, sw2] => write!(f, "{} bytes, {sw1:02X}{sw2:02X}", data.len()),
            short => write!(f, "{} bytes, no status word", short.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_shows_header_and_length_only() {
        let verify = [
            0x00, 0x20, 0x00, 0x80, 8, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0xFF, 0xFF,
        ];
        assert_eq!(Masked(&verify).to_string(), "00 20 00 80, 9 more bytes");
        assert_eq!(
            MaskedAnswer(&[1, 2, 3, 0x90, 0x00]).to_string(),
            "3 bytes, 9000"
        );
        assert_eq!(MaskedAnswer(&[1]).to_string(), "1 bytes, no status word");
    }
}
