//! A connection to the card of a reader that is claimed when it is used, and left to others who ask.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Transmit, Transport, TransportError,
    TransportErrorKind,
};

use super::{
    claim::Wish,
    reader::{Station, access::AtDesk},
};
use crate::wait::Stop;

/// What ends conversations from outside.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stop: Arc<Stop>,
    /// No call lasts beyond it.
    pub(crate) last: OnceLock<Instant>,
}

impl Ends {
    fn bound(&self, call: Call) -> Call {
        let mut call = call;
        if let Some(last) = self.last.get() {
            call.deadline = call.deadline.min(*last);
        }
        call
    }

    /// A reader is waited for as long as the call may take, and whoever has it is asked.
    const fn wish(&self, call: Call) -> Wish<'_> {
        Wish {
            until: call.deadline,
            knocks: true,
            stop: &self.stop,
        }
    }
}

/// See [`Transport`]. Nobody else can have the reader while it is claimed, so every exchange has the card for itself;
/// between two of them another process may get its turn.
#[derive(Debug)]
pub(crate) struct UsbConnection {
    station: Arc<Station>,
    ends: Arc<Ends>,
    card: Seen,
}

/// The card as it was seen last.
#[derive(Debug)]
struct Seen {
    atr: Atr,
    limits: Limits,
    epoch: Epoch,
    over: bool,
    may_be_another: bool,
}

impl UsbConnection {
    /// Claims the reader and powers its card, unless it is powered and known.
    ///
    /// # Errors
    /// Busy, Denied, NoReader, NoCard: [`TransportError`].
    pub(crate) fn connect(
        station: Arc<Station>,
        ends: &Arc<Ends>,
        call: Call,
    ) -> Result<Self, TransportError> {
        let call = ends.bound(call);
        let mut desk = station.desk_within(call.deadline, &ends.stop)?;
        let powered = desk
            .open(&station, ends.wish(call), call)
            .map(|device| device.epoch())
            .and_then(|_| desk.power(call));
        let epoch = desk.epoch();
        let atr = match powered {
            Ok(Some(atr)) => atr,
            Ok(None) => return Err(gone(&station)),
            Err(error) => {
                desk.leave();
                return Err(error);
            }
        };
        let limits = desk.limits();
        let may_be_another = desk.connect() && !station.site.is_fixed;
        // Whoever asked meanwhile found the desk taken.
        desk.yield_if_wanted();
        drop(desk);
        let card = Seen {
            atr,
            limits,
            epoch,
            over: false,
            may_be_another,
        };
        Ok(Self {
            station,
            ends: Arc::clone(ends),
            card,
        })
    }
}

fn gone(station: &Station) -> TransportError {
    let what = format!("reader {}: it is gone", station.site.interface.name);
    TransportError::before_card(TransportErrorKind::NoReader, what)
}

/// The reader while nobody else can use it.
struct Held<'a> {
    desk: AtDesk<'a>,
    station: &'a Station,
    ends: &'a Ends,
    card: &'a mut Seen,
}

impl Held<'_> {
    /// Has the reader claimed and its card powered. A card that may have been exchanged meanwhile ends the connection.
    fn ready(&mut self, call: Call) -> Result<(), TransportError> {
        let device = self.desk.open(self.station, self.ends.wish(call), call)?;
        if device.atr().is_none() {
            if !self.station.site.is_fixed {
                let what = format!(
                    "reader {}: its card lost power and may be another one",
                    self.station.site.interface.name
                );
                return Err(TransportError::before_card(
                    TransportErrorKind::CardRemoved,
                    what,
                ));
            }
            self.desk.power(call)?;
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        let call = self.ends.bound(call);
        let exchanged = self.ready(call).and_then(|()| {
            let wish = self.ends.wish(call);
            let device = self.desk.open(self.station, wish, call)?;
            device.exchange(frame, response, call)
        });
        self.heed(exchanged)
    }

    /// Takes note of what a result says of the card.
    fn heed(&mut self, result: Result<(), TransportError>) -> Result<(), TransportError> {
        use TransportErrorKind::{Cancelled, CardRemoved, NoCard, NoReader};
        if let Err(error) = &result {
            self.card.over |= matches!(error.kind, Cancelled | CardRemoved | NoCard | NoReader);
        }
        if let Some(atr) = self.desk.atr() {
            self.card.atr = atr.clone();
        }
        self.card.epoch = self.desk.epoch();
        result
    }
}

impl Transmit for Held<'_> {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.exchange(frame, response, call)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.desk.end_use(self.station);
    }
}

impl UsbConnection {
    fn hold(&mut self, call: Call) -> Result<Held<'_>, TransportError> {
        let deadline = self.ends.bound(call).deadline;
        Ok(Held {
            desk: self.station.desk_within(deadline, &self.ends.stop)?,
            station: &self.station,
            ends: &self.ends,
            card: &mut self.card,
        })
    }
}

impl Transmit for UsbConnection {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.hold(call)?.exchange(frame, response, call)
    }
}

impl Transport for UsbConnection {
    fn atr(&self) -> &Atr {
        &self.card.atr
    }

    fn limits(&self) -> Limits {
        self.card.limits
    }

    fn epoch(&self) -> Epoch {
        self.card.epoch
    }

    fn is_over(&self) -> bool {
        self.card.over
    }

    fn resume(&mut self, call: Call) -> Result<(), TransportError> {
        if self.station.site.is_fixed {
            return Ok(());
        }
        let mut held = self.hold(call)?;
        let bounded = held.ends.bound(call);
        let ready = held.ready(bounded);
        held.heed(ready)
    }

    fn may_be_another(&self) -> bool {
        self.card.may_be_another
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        let mut held = self.hold(call)?;
        let bounded = held.ends.bound(call);
        let ready = held.ready(bounded);
        held.heed(ready)?;
        body(&mut held);
        Ok(())
    }
}

impl Drop for UsbConnection {
    fn drop(&mut self) {
        self.station.end_connection();
    }
}
