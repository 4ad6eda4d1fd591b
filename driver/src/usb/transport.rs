//! A transport to the card in one reader. The reader is claimed on use and yielded to processes that request it.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Transmit, Transport, TransportError,
    TransportErrorKind,
};

use super::{
    claim::ClaimRequest,
    reader::{UsbReader, access::DriverGuard},
};
use crate::wait::StopFlag;

/// Ends the calls of all transports.
#[derive(Debug, Default)]
pub(crate) struct ShutdownControl {
    pub(crate) stop: Arc<StopFlag>,
    /// No call lasts beyond this instant.
    pub(crate) deadline: OnceLock<Instant>,
}

impl ShutdownControl {
    fn cap_deadline(&self, call: Call) -> Call {
        let mut call = call;
        if let Some(last) = self.deadline.get() {
            call.deadline = call.deadline.min(*last);
        }
        call
    }

    /// Waits for the reader until the call's deadline, and requests its release.
    const fn claim_request(&self, call: Call) -> ClaimRequest<'_> {
        ClaimRequest {
            deadline: call.deadline,
            request_release: true,
            may_reset: true,
            stop: &self.stop,
        }
    }
}

/// See [`Transport`]. A claim excludes all other programs, so each exchange has the card to itself. Between two exchanges another
/// process may claim the reader.
#[derive(Debug)]
pub(crate) struct UsbTransport {
    reader: Arc<UsbReader>,
    shutdown: Arc<ShutdownControl>,
    card: LastKnownCard,
}

/// The card as the last call left it.
#[derive(Debug)]
struct LastKnownCard {
    atr: Atr,
    limits: Limits,
    epoch: Epoch,
    is_closed: bool,
    may_be_another: bool,
    suspend_count: u64,
}

impl UsbTransport {
    /// Claims the reader. Powers the card unless the card is powered and known.
    ///
    /// # Errors
    /// Busy, Denied, NoReader, NoCard: [`TransportError`].
    pub(crate) fn connect(
        reader: Arc<UsbReader>,
        shutdown: &Arc<ShutdownControl>,
        call: Call,
    ) -> Result<Self, TransportError> {
        let call = shutdown.cap_deadline(call);
        let mut driver = reader.driver_within(call.deadline, &shutdown.stop)?;
        let powered = driver
            .open_slot(shutdown.claim_request(call), call)
            .map(|device| device.epoch())
            .and_then(|_| driver.ensure_powered(call));
        let epoch = driver.epoch();
        let atr = match powered {
            Ok(Some(atr)) => atr,
            Ok(None) => return Err(gone(&reader)),
            Err(error) => {
                driver.close_if_detached();
                return Err(error);
            }
        };
        let limits = driver.limits();
        let may_be_another = driver.attach(reader.info().is_fixed);
        let suspend_count = driver.suspend_count();
        // A release request during the open found the driver in use.
        driver.yield_if_requested();
        drop(driver);
        let card = LastKnownCard {
            atr,
            limits,
            epoch,
            is_closed: false,
            may_be_another,
            suspend_count,
        };
        Ok(Self {
            reader,
            shutdown: Arc::clone(shutdown),
            card,
        })
    }
}

fn gone(reader: &UsbReader) -> TransportError {
    let what = format!(
        "reader {}: it was disconnected",
        reader.info().interface.name
    );
    TransportError::before_card(TransportErrorKind::NoReader, what)
}

/// The reader, locked against other threads until the transaction ends.
struct UsbTransaction<'a> {
    driver: DriverGuard<'a>,
    reader: &'a UsbReader,
    shutdown: &'a ShutdownControl,
    card: &'a mut LastKnownCard,
}

impl UsbTransaction<'_> {
    /// Claims the reader and powers the card. Ends the transport if the card may have been exchanged.
    fn ensure_powered(&mut self, call: Call) -> Result<(), TransportError> {
        let device = self
            .driver
            .open_slot(self.shutdown.claim_request(call), call)?;
        if device.atr().is_none() {
            if !self.reader.info().is_fixed {
                return Err(self.removed("its card lost power and may be another one"));
            }
            self.driver.ensure_powered(call)?;
        }
        Ok(())
    }

    fn removed(&self, what: &str) -> TransportError {
        let what = format!("reader {}: {what}", self.reader.info().interface.name);
        TransportError::before_card(TransportErrorKind::CardRemoved, what)
    }

    fn exchange(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        let call = self.shutdown.cap_deadline(call);
        let exchanged = self.ensure_powered(call).and_then(|()| {
            let request = self.shutdown.claim_request(call);
            let device = self.driver.open_slot(request, call)?;
            device.exchange(frame, response, call)
        });
        self.note_result(exchanged)
    }

    /// Updates the last known card from a result.
    fn note_result(&mut self, result: Result<(), TransportError>) -> Result<(), TransportError> {
        use TransportErrorKind::{Cancelled, CardRemoved, NoCard, NoReader};
        if let Err(error) = &result {
            self.card.is_closed |=
                matches!(error.kind, Cancelled | CardRemoved | NoCard | NoReader);
        }
        if let Some(atr) = self.driver.atr() {
            self.card.atr = atr.clone();
        }
        self.card.epoch = self.driver.epoch();
        result
    }
}

impl Transmit for UsbTransaction<'_> {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.exchange(frame, response, call)
    }
}

impl Drop for UsbTransaction<'_> {
    fn drop(&mut self) {
        self.driver.end_use();
    }
}

impl UsbTransport {
    fn lock_reader(&mut self, call: Call) -> Result<UsbTransaction<'_>, TransportError> {
        let deadline = self.shutdown.cap_deadline(call).deadline;
        Ok(UsbTransaction {
            driver: self.reader.driver_within(deadline, &self.shutdown.stop)?,
            reader: &self.reader,
            shutdown: &self.shutdown,
            card: &mut self.card,
        })
    }
}

impl Transmit for UsbTransport {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.lock_reader(call)?.exchange(frame, response, call)
    }
}

impl Transport for UsbTransport {
    fn atr(&self) -> &Atr {
        &self.card.atr
    }

    fn limits(&self) -> Limits {
        self.card.limits
    }

    fn epoch(&self) -> Epoch {
        self.card.epoch
    }

    fn is_closed(&self) -> bool {
        self.card.is_closed
    }

    fn resume(&mut self, call: Call) -> Result<(), TransportError> {
        let mut transaction = self.lock_reader(call)?;
        let suspends = transaction.driver.suspend_count();
        if suspends != transaction.card.suspend_count {
            let what = "the machine was suspended, and its card may be another one";
            let removed = Err(transaction.removed(what));
            return transaction.note_result(removed);
        }
        if transaction.reader.info().is_fixed {
            return Ok(());
        }
        let bounded = transaction.shutdown.cap_deadline(call);
        let ready = transaction.ensure_powered(bounded);
        transaction.note_result(ready)
    }

    fn may_be_another(&self) -> bool {
        self.card.may_be_another
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        let mut transaction = self.lock_reader(call)?;
        let bounded = transaction.shutdown.cap_deadline(call);
        let ready = transaction.ensure_powered(bounded);
        transaction.note_result(ready)?;
        body(&mut transaction);
        Ok(())
    }
}

impl Drop for UsbTransport {
    fn drop(&mut self) {
        self.reader.detach();
    }
}
