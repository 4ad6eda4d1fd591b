//! A reader of ours: who has it at the moment, and what is known of its card.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak},
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, Epoch, TransportError, TransportErrorKind};

use super::{
    claim::{Grip, Means, Site, Wish, wait_for},
    device::Device,
    transport,
};
use crate::{
    ccid::{
        descriptor::{ClassDescriptor, ExchangeLevel},
        message::IccStatus,
    },
    wait::{Stop, readable},
};

/// Who has let go because another process asked waits so long before it wants the reader again.
const AFTER_YOU: Duration = Duration::from_millis(5);

/// One reader from one plugging in to the next.
#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) site: Site,
    means: Arc<Means>,
    grip: Mutex<Weak<Grip>>,
    desk: Mutex<Desk>,
}

impl Station {
    pub(crate) fn new(site: Site, means: Arc<Means>) -> Self {
        Self {
            site,
            means,
            grip: Mutex::default(),
            desk: Mutex::default(),
        }
    }

    /// The reader's desk, for one conversation.
    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reader's desk, unless somebody is at it.
    pub(crate) fn free_desk(&self) -> Option<MutexGuard<'_, Desk>> {
        match self.desk.try_lock() {
            Ok(desk) => Some(desk),
            Err(TryLockError::Poisoned(desk)) => Some(desk.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The claim, while somebody in this process has it.
    pub(crate) fn held(&self) -> Option<Arc<Grip>> {
        self.grip().upgrade()
    }

    /// The answer to reset of the card that another process of ours has powered, or had, since the reader was plugged in.
    pub(crate) fn told(&self) -> Option<Atr> {
        let record = self.means.locks.peek(&self.site.place)?;
        record.atr.filter(|_| record.life == self.site.life)
    }

    fn grip(&self) -> MutexGuard<'_, Weak<Grip>> {
        self.grip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the reader, or shares in this process's claim.
    ///
    /// # Errors
    /// As [`wait_for`].
    pub(crate) fn claim(&self, wish: Wish<'_>) -> Result<Arc<Grip>, TransportError> {
        wait_for(&self.site, wish, || {
            let mut held = self.grip();
            if let Some(grip) = held.upgrade() {
                return Ok(grip);
            }
            let grip = Arc::new(Grip::take(&self.site, &self.means, wish.knocks)?);
            *held = Arc::downgrade(&grip);
            self.means.stir();
            Ok(grip)
        })
    }
}

/// What is done with the reader, by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// The driver of the claimed reader; dropped before the claim.
    device: Option<Device>,
    grip: Option<Arc<Grip>>,
    /// A connection lasts.
    is_connected: bool,
    known: Known,
}

/// What is known of a reader nobody of this process has at the moment.
#[derive(Debug)]
struct Known {
    uses: Option<u64>,
    atr: Option<Atr>,
    epoch: Epoch,
    in_step: bool,
    /// When the reader was let go because somebody asked.
    yielded: Option<Instant>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            uses: None,
            atr: None,
            epoch: Epoch::default(),
            in_step: true,
            yielded: None,
        }
    }
}

impl Desk {
    /// The claimed reader: as it was left when nobody else had it since, else in a new epoch. Its card is powered when
    /// it is known which one it is; none is powered for this.
    ///
    /// # Errors
    /// Of the claim, or of a reader that does not answer.
    pub(crate) fn open(
        &mut self,
        station: &Station,
        wish: Wish<'_>,
        call: Call,
    ) -> Result<&mut Device, TransportError> {
        if self.device.is_none() {
            self.step_aside(wish.stop);
            let grip = station.claim(wish)?;
            let device = self.begin(station, &grip, call, wish.stop)?;
            self.known.uses = Some(grip.uses());
            self.grip = Some(grip);
            self.device = Some(device);
        }
        self.device.as_mut().ok_or_else(|| {
            let what = format!("reader {}: not open", station.site.interface.name);
            TransportError::before_card(TransportErrorKind::NoReader, what)
        })
    }

    /// Leaves the reader to whoever asked for it.
    fn step_aside(&mut self, stop: &Stop) {
        if let Some(yielded) = self.known.yielded.take() {
            let _ = readable(&[], stop, Some(yielded + AFTER_YOU));
        }
    }

    fn begin(
        &mut self,
        station: &Station,
        grip: &Arc<Grip>,
        call: Call,
        stop: &Arc<Stop>,
    ) -> Result<Device, TransportError> {
        let site = &station.site;
        let mut device = transport::device(
            Arc::clone(grip.interface()),
            site.interface.clone(),
            0,
            stop,
        )?;
        let known = &mut self.known;
        let left = grip.left().map(|left| left.uses);
        let alone = known
            .uses
            .is_some_and(|uses| uses == grip.uses() || Some(uses) == left);
        if !alone && known.uses.is_some() {
            known.epoch.0 += 1;
        }
        let atr = if alone {
            known.atr.take()
        } else {
            grip.left().and_then(|left| left.atr.clone())
        };
        device.resume(known.epoch, known.in_step);
        let icc = device.status(call);
        known.in_step = device.is_in_step();
        match atr.filter(|_| site.keeps_its_card()) {
            Some(atr) if icc? == IccStatus::Active => device.adopt(atr),
            lost => {
                known.epoch.0 += u64::from(lost.is_some());
                device.resume(known.epoch, known.in_step);
            }
        }
        Ok(device)
    }

    /// Powers the card, which resets it, unless it is powered and known.
    ///
    /// # Errors
    /// NoCard when there is none, or it is mute; else of the reader.
    pub(crate) fn power(&mut self, call: Call) -> Result<Option<Atr>, TransportError> {
        let Some(device) = &mut self.device else {
            return Ok(None);
        };
        if device.atr().is_none() {
            device.power_on(call)?;
            if let Some(grip) = &self.grip {
                grip.leave(device.atr().cloned());
            }
        }
        Ok(device.atr().cloned())
    }

    /// The answer to reset of the powered card.
    pub(crate) fn atr(&self) -> Option<&Atr> {
        self.device.as_ref().and_then(Device::atr)
    }

    /// The card's epoch, over all claims.
    pub(crate) fn epoch(&self) -> Epoch {
        let device = self.device.as_ref().map(Device::epoch);
        device.unwrap_or(self.known.epoch)
    }

    /// A connection begins; the reader stays claimed until it ends or another process asks.
    pub(crate) const fn connect(&mut self) {
        self.is_connected = true;
    }

    /// The connection ends.
    pub(crate) fn disconnect(&mut self) {
        self.is_connected = false;
        self.close();
    }

    /// Ends a look at the reader: lets go of it, unless a connection lasts.
    pub(crate) fn leave(&mut self) {
        if !self.is_connected {
            self.close();
        }
    }

    /// Lets go of the reader if another process has asked.
    pub(crate) fn yield_if_wanted(&mut self) {
        if self.grip.as_ref().is_some_and(|grip| grip.is_wanted()) {
            self.close();
            self.known.yielded = Some(Instant::now());
        }
    }

    fn close(&mut self) {
        if let Some(device) = self.device.take() {
            self.known.atr = device.atr().cloned();
            self.known.epoch = device.epoch();
            self.known.in_step = device.is_in_step();
        }
        self.grip = None;
    }
}

impl Site {
    /// Whether a card that is powered is the one that was powered before: it cannot be taken out, or it would have
    /// lost power, as the reader gives none by itself. What was agreed on with cards that are given TPDUs is forgotten.
    fn keeps_its_card(&self) -> bool {
        let class: &ClassDescriptor = &self.interface.class;
        let by_apdu = matches!(
            class.exchange_level(),
            ExchangeLevel::ShortApdu | ExchangeLevel::ExtendedApdu
        );
        by_apdu && (self.is_fixed || !class.powers_by_itself())
    }
}
