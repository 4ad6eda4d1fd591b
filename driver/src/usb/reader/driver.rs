//! Drives one reader for one thread at a time: the claimed CCID slot, and the saved state between two claims.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, Epoch, Limits, TransportError, TransportErrorKind};

use super::{
    Seen, Station,
    slot::{self, Card, Device},
};
use crate::{
    ccid::{
        descriptor::{ClassDescriptor, ExchangeLevel},
        message::IccStatus,
    },
    usb::{
        claim::{Grip, LONGEST, Wish},
        discovery::{reader_info::Site, suspend::Slept},
    },
    wait::{Stop, readable},
};

/// Who has let go because another process asked waits so long before it wants the reader again, unless that process has had it
/// since: a bit longer than that process may pause between two tries.
const AFTER_YOU: Duration = LONGEST.saturating_add(Duration::from_millis(10));

/// How often it looks whether that process has had it.
const PEEK: Duration = Duration::from_millis(2);

/// What is done with a slot, by one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    slot: u8,
    /// The driver of the claimed reader; dropped before the claim.
    device: Option<Device>,
    grip: Option<Arc<Grip>>,
    /// A connection lasts.
    is_connected: bool,
    /// The card was powered since the last connection was made, and may be another one than that had.
    may_be_another: bool,
    known: Known,
    slept: Option<Slept>,
}

/// What is known of a slot nobody of this process uses at the moment.
#[derive(Debug)]
struct Known {
    seen: Option<Seen>,
    atr: Option<Atr>,
    card: Option<Left>,
    epoch: Epoch,
    in_step: bool,
    /// When the reader was let go because somebody asked, and which use of it that was.
    yielded: Option<(Instant, u64)>,
}

/// A card that was left powered.
#[derive(Debug)]
struct Left {
    /// With what was agreed with it.
    card: Card,
    /// The claim in which that was.
    claim: Weak<Grip>,
    /// When the reader was listened to then, as [`Grip::listening`] has it.
    listening: Option<u64>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            seen: None,
            atr: None,
            card: None,
            epoch: Epoch::default(),
            in_step: true,
            yielded: None,
        }
    }
}

impl Desk {
    pub(super) fn of(slot: u8) -> Self {
        Self {
            slot,
            ..Self::default()
        }
    }

    /// The claimed reader: as it was left when nobody else had it since, else in a new epoch. Its card is powered when
    /// it is known which one it is; none is powered for this. A token that no process of ours has had since it was plugged in
    /// is asked for nothing.
    ///
    /// # Errors
    /// Of the claim, or of a reader that does not answer.
    pub(crate) fn open(
        &mut self,
        station: &Station,
        wish: Wish<'_>,
        call: Call,
    ) -> Result<&mut Device, TransportError> {
        let _claim = self.wake_up(station);
        if self.device.is_none() {
            self.step_aside(station, wish.stop);
            let grip = station.claim(wish)?;
            let device = self.begin(station, &grip, call, wish.stop)?;
            self.grip = Some(grip);
            self.device = Some(device);
        }
        let device = self.device.as_mut().ok_or_else(|| {
            let what = format!("reader {}: not open", station.site.interface.name);
            TransportError::before_card(TransportErrorKind::NoReader, what)
        })?;
        // Somebody else may have opened it.
        device.obey(wish.stop);
        Ok(device)
    }

    /// Has the card looked at anew after a sleep of the machine, in which it may have lost its power: one that has power
    /// kept it if the reader gives none by itself. The claim, if there was one, is kept for as long as its owner is.
    fn wake_up(&mut self, station: &Station) -> Option<Arc<Grip>> {
        let slept = self
            .slept
            .get_or_insert_with(|| Slept::new(station.holding.means.bus.clone()));
        if !slept.has_slept() {
            return None;
        }
        let grip = self.grip.clone();
        self.close();
        if station.site.interface.class.powers_by_itself() {
            // What was agreed with it is gone as well.
            self.known.card = None;
            self.known.epoch.0 += u64::from(self.known.atr.take().is_some());
        }
        grip
    }

    /// Leaves the reader to whoever asked for it.
    fn step_aside(&mut self, station: &Station, stop: &Stop) {
        let Some((yielded, uses)) = self.known.yielded.take() else {
            return;
        };
        let until = yielded + AFTER_YOU;
        let locks = &station.holding.means.locks;
        loop {
            let record = locks.peek(&station.site.place);
            let now = Instant::now();
            if record.is_some_and(|record| record.uses != uses) || now >= until || stop.is_set() {
                return;
            }
            let _ = readable(&[], stop, Some(until.min(now + PEEK)));
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
        let pipe = grip.pipe(site)?;
        let mut device = slot::device(pipe, site.interface.clone(), site.slot, stop);
        let known = &mut self.known;
        // Whatever its slot was said to hold, power would be next: its card cannot be taken out.
        let is_untouched = site.is_fixed && known.seen.is_none() && grip.left().is_none();
        let mut abandoned = false;
        let atr = known.resume(station.seen(), || {
            abandoned = grip.was_abandoned();
            grip.left_in(site).cloned()
        });
        known.in_step &= !abandoned;
        let card = known.card.take();
        let card = card.filter(|left| left.claim.as_ptr() == Arc::as_ptr(grip));
        device.resume(known.epoch, known.in_step);
        if is_untouched {
            return Ok(device);
        }
        let icc = device.status(call);
        known.in_step = device.is_in_step();
        // Or its reader would have said so.
        let listening = card.as_ref().and_then(|left| left.listening);
        let stays = site.card_stays() || (listening.is_some() && listening == grip.listening());
        let knows = (card.is_some() && stays) || (atr.is_some() && site.keeps_its_card());
        if knows && matches!(icc, Ok(IccStatus::Active)) {
            match (card, atr) {
                (Some(left), _) => device.take_up(left.card),
                (None, Some(atr)) => device.adopt(atr),
                (None, None) => {}
            }
        } else {
            known.epoch.0 += u64::from(atr.is_some());
            device.resume(known.epoch, known.in_step);
        }
        icc.map(|_| device)
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
            self.may_be_another = true;
            if let Some(grip) = &self.grip {
                grip.leave(self.slot, device.atr().cloned());
            }
        }
        Ok(device.atr().cloned())
    }

    /// Whether the reader is in use, and was asked what its slot holds when that began.
    pub(crate) const fn is_open(&self) -> bool {
        self.device.is_some()
    }

    /// The reader in use has said that its slot is empty.
    pub(crate) fn is_empty(&self) -> bool {
        let device = self.device.as_ref();
        device.and_then(Device::icc) == Some(IccStatus::Absent)
    }

    /// The answer to reset of the powered card.
    pub(crate) fn atr(&self) -> Option<&Atr> {
        self.device.as_ref().and_then(Device::atr)
    }

    /// The frames that reach the powered card.
    pub(crate) fn limits(&self) -> Limits {
        let device = self.device.as_ref();
        device.map_or(Limits::SHORT, Device::limits)
    }

    /// The card's epoch, over all claims.
    pub(crate) fn epoch(&self) -> Epoch {
        let device = self.device.as_ref().map(Device::epoch);
        device.unwrap_or(self.known.epoch)
    }

    /// A connection begins; the reader stays claimed until it ends or another process asks.
    /// Returns whether its card may be another one than the last connection had.
    pub(crate) const fn connect(&mut self) -> bool {
        self.is_connected = true;
        std::mem::replace(&mut self.may_be_another, false)
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

    /// A connection's conversation is over. Where nobody follows the readers, nobody would hear that another process asks
    /// for this one: it is let go at once, if its card is known again by whoever claims it next.
    pub(crate) fn end_use(&mut self, station: &Station) {
        self.yield_if_wanted();
        if !station.holding.means.is_followed && station.site.keeps_its_card() {
            self.close();
        }
    }

    /// Lets go of the reader if another process has asked.
    pub(crate) fn yield_if_wanted(&mut self) {
        let wanted = self.grip.as_ref().filter(|grip| grip.is_wanted());
        if let Some(uses) = wanted.map(|grip| grip.uses()) {
            self.close();
            self.known.yielded = Some((Instant::now(), uses));
        }
    }

    /// The card may be another one, or was reset with its device, though the reader says nothing of it.
    pub(crate) fn forget_card(&mut self) {
        let grip = self.grip.take();
        self.close();
        self.grip = grip;
        self.known.atr = None;
        self.known.epoch.0 += 1;
    }

    /// Forgets a card that was reset by what another slot has done to the device.
    pub(crate) fn notice_resets(&mut self, station: &Station) {
        let device = self.device.as_ref();
        if device.is_some_and(|device| device.pipe().resets() != station.site.common.resets()) {
            self.forget_card();
            self.known.seen = Some(station.seen());
        }
    }

    fn close(&mut self) {
        if let Some(device) = self.device.take() {
            self.known.atr = device.atr().cloned();
            self.known.epoch = device.epoch();
            self.known.in_step = device.is_in_step();
            if let Some(grip) = self.grip.as_ref().filter(|_| !self.known.in_step) {
                grip.leave_in_disorder();
            }
            if let Some(seen) = &mut self.known.seen {
                seen.resets = device.pipe().resets();
            }
            let card = device.into_card().zip(self.grip.as_ref());
            self.known.card = card.map(|(card, grip)| Left {
                card,
                claim: Arc::downgrade(grip),
                listening: grip.listening(),
            });
        }
        self.grip = None;
    }
}

impl Known {
    /// Takes in what has happened meanwhile; the card that is powered if it is known, else which `left` says.
    fn resume(&mut self, now: Seen, left: impl FnOnce() -> Option<Atr>) -> Option<Atr> {
        let before = self.seen.replace(now);
        if before == Some(now) {
            return self.atr.take();
        }
        self.atr = None;
        self.epoch.0 += u64::from(before.is_some());
        left()
    }
}

impl Site {
    /// Whether a card that is powered is the one that was powered before: it cannot be taken out, or it would have
    /// lost power, as the reader gives none by itself.
    pub(super) fn card_stays(&self) -> bool {
        self.is_fixed || !self.interface.class.powers_by_itself()
    }

    /// Whether that can be used by who claims the reader next. What was agreed on with cards that are given blocks is known to
    /// nobody else.
    pub(super) fn keeps_its_card(&self) -> bool {
        let class: &ClassDescriptor = &self.interface.class;
        let by_apdu = matches!(
            class.exchange_level(),
            ExchangeLevel::ShortApdu | ExchangeLevel::ExtendedApdu
        );
        by_apdu && self.card_stays()
    }
}
