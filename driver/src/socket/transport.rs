//! The transport to the card of a socket reader.

use std::{path::Path, sync::Arc, time::Duration};

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Secret, Sent, Transmit, Transport, TransportError,
    TransportErrorKind,
};

use super::{
    channel::{RequestChannel, ShutdownControl},
    frame::{MAX, Refusal, Reply, Request},
};

/// How long the server may take to end a transaction.
const END: Duration = Duration::from_secs(2);
/// How many resets by other users one call tolerates.
const MAX_RESETS: usize = 8;

/// The transport to a socket reader's card. It shares the card with every other connection to the socket. See
/// [`Transport`].
pub(super) struct SocketTransport {
    channel: RequestChannel,
    atr: Atr,
    epoch: Epoch,
}

impl SocketTransport {
    pub(super) fn connect(
        control: &Arc<ShutdownControl>,
        path: &Path,
        call: Call,
    ) -> Result<Self, TransportError> {
        let mut channel = RequestChannel::open(control, path, call)?;
        let atr = connect_card(&mut channel, call)?;
        Ok(Self {
            channel,
            atr,
            epoch: Epoch::default(),
        })
    }

    /// Connects to the card again after another connection reset it. The card's state is lost, so a new epoch begins.
    fn reconnect_after_reset(&mut self, call: Call) -> Result<(), TransportError> {
        self.epoch.0 += 1;
        self.atr = connect_card(&mut self.channel, call)?;
        Ok(())
    }

    fn exchange(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        if frame.len() >= MAX {
            let what = format!("a command of {} bytes is too long for a frame", frame.len());
            return Err(self.channel.about(TransportErrorKind::Protocol, &what));
        }
        match self
            .channel
            .round_trip(&Request::Transmit(Secret::copy_from(frame)), call)?
        {
            Reply::Response(data) => response
                .set(data.expose())
                .map_err(|_| self.channel.out_of_order(Sent::Yes)),
            Reply::Refused {
                refusal: Refusal::CardReset,
                text,
            } => {
                self.reconnect_after_reset(call)?;
                Err(self.channel.refusal_error(Refusal::CardReset, &text))
            }
            Reply::Refused { refusal, text } => {
                // Only a card that was removed may have received the command.
                let sent = if refusal == Refusal::CardRemoved {
                    Sent::Maybe
                } else {
                    Sent::No
                };
                Err(TransportError {
                    sent,
                    ..self.channel.refusal_error(refusal, &text)
                })
            }
            _ => Err(self.channel.out_of_order(Sent::Maybe)),
        }
    }

    fn begin(&mut self, call: Call) -> Result<(), TransportError> {
        for _ in 0..MAX_RESETS {
            match self.channel.round_trip(&Request::Begin, call)? {
                Reply::Begun => return Ok(()),
                Reply::Refused {
                    refusal: Refusal::CardReset,
                    ..
                } => self.reconnect_after_reset(call)?,
                Reply::Refused { refusal, text } => {
                    return Err(self.channel.refusal_error(refusal, &text));
                }
                _ => return Err(self.channel.out_of_order(Sent::No)),
            }
        }
        Err(too_many_resets(&self.channel))
    }

    /// Ends the transaction. If that fails, closes the connection, which gives the card back too.
    fn end(&mut self) {
        if self.channel.is_closed() {
            return;
        }
        let error = match self.channel.round_trip(&Request::End, Call::within(END)) {
            Ok(Reply::Ended) => return,
            Ok(Reply::Refused { refusal, text }) => self.channel.refusal_error(refusal, &text),
            Ok(_) => self.channel.out_of_order(Sent::No),
            Err(error) => error,
        };
        tracing::warn!("the transaction could not be ended: {error}");
        if !self.channel.is_closed() {
            self.channel.close(&error);
        }
    }
}

/// Sends Connect, again after each further reset. Returns the answer to reset.
fn connect_card(channel: &mut RequestChannel, call: Call) -> Result<Atr, TransportError> {
    for _ in 0..MAX_RESETS {
        match channel.round_trip(&Request::Connect, call)? {
            Reply::Connected { atr } => {
                let mute = |error| {
                    channel.about(
                        TransportErrorKind::NoCard,
                        &format!("the card's answer to reset is malformed: {error}"),
                    )
                };
                return Atr::parse(&atr).map_err(mute);
            }
            Reply::Refused {
                refusal: Refusal::CardReset,
                ..
            } => {}
            Reply::Refused { refusal, text } => {
                return Err(channel.refusal_error(refusal, &text));
            }
            _ => return Err(channel.out_of_order(Sent::No)),
        }
    }
    Err(too_many_resets(channel))
}

fn too_many_resets(channel: &RequestChannel) -> TransportError {
    channel.about(
        TransportErrorKind::Busy,
        "other users keep resetting the card",
    )
}

impl Transmit for SocketTransport {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.exchange(frame, response, call)
    }
}

impl Transport for SocketTransport {
    fn atr(&self) -> &Atr {
        &self.atr
    }

    fn limits(&self) -> Limits {
        Limits::EXTENDED
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        self.begin(call)?;
        let mut transaction = SocketTransaction(self);
        body(&mut transaction);
        Ok(())
    }
}

/// A transaction on the card. Dropping it ends the transaction, also when the body panics.
struct SocketTransaction<'a>(&'a mut SocketTransport);

impl Transmit for SocketTransaction<'_> {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.0.exchange(frame, response, call)
    }
}

impl Drop for SocketTransaction<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
