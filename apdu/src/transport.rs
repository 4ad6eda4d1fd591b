//! The transport to one card: drivers implement it, applets use it.

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

/// The deadline of a call into a transport.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Call {
    /// The instant at which the call fails.
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

/// Whether a failed frame had reached the card. Only a frame with `No` may be sent again without further checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The card has not received the frame.
    No,
    /// The card has received the frame and perhaps executed it.
    Yes,
    /// It is unknown whether the card received the frame.
    Maybe,
}

/// Counts the losses of a card's state: a reset, a power cycle, another card in the reader.
///
/// Two equal epochs of one transport mean that no such loss was *announced* in between. Another process may still have
/// selected another applet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// The kind of a transport error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportErrorKind {
    /// The service behind the reader (pcscd, a socket's server) does not run.
    NoService,
    /// The reader is not there any more.
    NoReader,
    /// The reader holds no card, or the card does not respond.
    NoCard,
    /// The card was removed, perhaps during the call.
    CardRemoved,
    /// Another program reset the card. The transport has reconnected, and its epoch has advanced.
    CardReset,
    /// Another program holds the card.
    Busy,
    /// Access is refused.
    Denied,
    /// The deadline passed.
    TimedOut,
    /// The call was aborted.
    Cancelled,
    /// The service, the reader or the card violated its protocol.
    Protocol,
}

/// A failed call: what failed, on which reader, and whether the card received the command.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct TransportError {
    /// The kind, on which the caller can act.
    pub kind: TransportErrorKind,
    /// Whether the card may have executed the command.
    pub sent: Sent,
    /// The text for a person: the operation, the reader, the error number and the remedy.
    pub what: String,
}

impl TransportError {
    /// Returns an error about a command that never reached the card.
    #[must_use]
    pub fn before_card(kind: TransportErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            sent: Sent::No,
            what: what.into(),
        }
    }
}

/// Sends one frame and waits for its response.
pub trait Transmit {
    /// Sends `frame` and puts the card's response, data and status word, into `response`.
    ///
    /// # Errors
    /// [`TransportError`]. After [`TransportErrorKind::CardReset`] the transport is usable again.
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError>;
}

/// A shared connection to one card. Dropping it leaves the card as it is: no reset, no power-off.
///
/// [`Transmit::transmit`] outside [`Transport::transact`] sends one frame, which is atomic by itself. Other programs
/// may send to the card before and after it.
pub trait Transport: Transmit + Send {
    /// Returns the card's answer to reset.
    fn atr(&self) -> &Atr;

    /// Returns the limits of the reader. The applet knows whether the *card* takes extended length.
    fn limits(&self) -> Limits;

    /// Returns the present epoch of the card.
    fn epoch(&self) -> Epoch;

    /// Returns whether the transport has ended. The caller must then drop it and connect again.
    fn is_closed(&self) -> bool;

    /// Checks the card before an operation, after other programs may have had the reader. Sends nothing to the card. If
    /// the card may have been exchanged meanwhile, the transport ends here and not during the operation.
    ///
    /// # Errors
    /// [`TransportError`]. The transport is then unusable.
    fn resume(&mut self, _call: Call) -> Result<(), TransportError> {
        Ok(())
    }

    /// Returns whether the card may differ from the card of the last transport to this reader, although both have the
    /// same answer to reset. This is so if no watch followed the reader in between.
    fn may_be_another(&self) -> bool {
        false
    }

    /// Runs `body` once, in a transaction: no other program can send to the card. Then ends the transaction and leaves
    /// the card as it is, even if `body` panics.
    ///
    /// # Errors
    /// [`TransportError`] if the transaction did not begin before the deadline; `body` has then not run. A reset that
    /// is noticed at the beginning advances the epoch and is no error.
    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError>;
}

/// One transaction with a card. The borrow ensures that it does not outlive the exclusive access.
pub struct Transaction<'a> {
    card: &'a mut dyn Transmit,
    limits: Limits,
}

impl<'a> Transaction<'a> {
    /// Sends over `card` in frames that fit `limits`.
    pub fn new(card: &'a mut dyn Transmit, limits: Limits) -> Self {
        Self { card, limits }
    }

    /// Sends `command` and collects the whole response. Handles chaining, 61xx and 6Cxx.
    ///
    /// # Errors
    /// [`TransportError`]. A response that violates ISO 7816-4 is [`TransportErrorKind::Protocol`].
    pub fn exchange(&mut self, command: &CommandApdu<'_>) -> Result<ResponseApdu, TransportError> {
        let call = Call::within(command.budget.timeout());
        let mut exchange = Exchange::new(command, self.limits)
            .map_err(|error| broken(command, error, Sent::No))?;
        let mut buffer = ResponseBuffer::new();
        loop {
            tracing::trace!(target: "apdu", "> {}", Masked(exchange.frame()));
            let sent = self.card.transmit(exchange.frame(), &mut buffer, call);
            // A GET RESPONSE that never reached the card does not undo the command: the card has executed it.
            sent.map_err(|error| TransportError {
                sent: if exchange.is_executed() {
                    Sent::Yes
                } else {
                    error.sent
                },
                ..error
            })?;
            tracing::trace!(target: "apdu", "< {}", MaskedResponse(buffer.frame()));
            // No card sends less than a status word: the transport truncated the response.
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

/// A command frame in the trace: header and length, never the data.
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

/// A response frame in the trace: length and status word, never the data.
struct MaskedResponse<'a>(&'a [u8]);

impl fmt::Display for MaskedResponse<'_> {
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
            MaskedResponse(&[1, 2, 3, 0x90, 0x00]).to_string(),
            "3 bytes, 9000"
        );
        assert_eq!(MaskedResponse(&[1]).to_string(), "1 bytes, no status word");
    }
}
