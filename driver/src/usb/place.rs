//! A reader as the watch sees it: what it holds, why that cannot be said, and when to look again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, TransportError, TransportErrorKind};

use super::{
    claim::{Grip, Wish},
    ear::Ear,
    station::Station,
};
use crate::{
    ccid::message::IccStatus,
    reader::{Presence, ReaderState},
    wait::{Pauses, Stop},
};

/// What one look at a reader may take.
const LOOK: Duration = Duration::from_secs(5);
/// How often a reader without an interrupt endpoint is looked at while somebody waits for a card.
const GENTLY: Duration = Duration::from_secs(1);
/// How long a reader that was never seen is waited for while somebody has it.
const FIRST: Duration = Duration::from_millis(500);
/// When a reader somebody else has is tried again, where nobody tells that it is free.
const UNTOLD: Duration = Duration::from_secs(1);

/// One reader on the bus.
pub(super) struct Place {
    pub(super) station: Arc<Station>,
    /// Differs whenever the card may be another one.
    changes: u32,
    /// `None` until the first look succeeded: such a reader is not shown.
    presence: Option<Presence>,
    /// Why the last look, or listening, failed.
    trouble: Option<TransportError>,
    due: Option<Instant>,
    pauses: Pauses,
    watched: Watched,
}

/// How it is learnt that a card came or went.
enum Watched {
    Not,
    Heard(Ear),
    /// It is looked at from time to time, and claimed meanwhile.
    Polled {
        _claim: Arc<Grip>,
    },
}

/// Who looks, and how the readers are to be watched.
pub(super) struct Look<'a> {
    pub(super) stop: &'a Arc<Stop>,
    pub(super) until: Instant,
    /// Somebody is told when a reader becomes free.
    pub(super) is_told: bool,
    /// Where numbers for [`ReaderState::changes`] come from.
    pub(super) count: &'a mut u32,
}

impl Look<'_> {
    fn call(&self) -> Call {
        let mut call = Call::within(LOOK);
        call.deadline = call.deadline.min(self.until);
        call
    }

    fn next_change(&mut self) -> u32 {
        *self.count = self.count.wrapping_add(1);
        *self.count
    }
}

/// What a look found.
enum Found {
    Empty,
    /// A card; whether it is surely the one that was there.
    Card(Atr, bool),
    Mute,
}

impl Place {
    pub(super) fn new(station: Arc<Station>, changes: u32) -> Self {
        Self {
            station,
            changes,
            presence: None,
            trouble: None,
            due: Some(Instant::now()),
            pauses: Pauses::new(Duration::from_millis(20), Duration::from_secs(2)),
            watched: Watched::Not,
        }
    }

    /// When it wants to be looked at.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Has it looked at as soon as possible.
    pub(super) fn look_soon(&mut self) {
        self.due = Some(Instant::now());
        self.pauses.start_over();
    }

    /// Something may have changed that kept it from being looked at.
    pub(super) fn try_again(&mut self) {
        if self.trouble.is_some() {
            self.look_soon();
        }
    }

    /// Has it looked at, unless its card is watched or cannot change.
    pub(super) fn look_if_unwatched(&mut self) {
        let is_watched = !matches!(self.watched, Watched::Not);
        if self.presence.is_none() || self.needs_watching() && !is_watched {
            self.look_soon();
        }
    }

    /// Whoever had it has let go: it is tried again if that was waited for.
    pub(super) fn is_free(&mut self) {
        if self.trouble.is_some() || matches!(self.watched, Watched::Not) {
            self.look_soon();
        }
    }

    /// Whether its card can be exchanged unseen while nobody has it claimed.
    fn needs_watching(&self) -> bool {
        !self.station.site.is_fixed
    }

    pub(super) const fn ear(&self) -> Option<&Ear> {
        match &self.watched {
            Watched::Heard(ear) => Some(ear),
            _ => None,
        }
    }

    pub(super) fn trouble(&self) -> Option<&TransportError> {
        self.trouble.as_ref()
    }

    pub(super) fn state(&self) -> Option<ReaderState> {
        let site = &self.station.site;
        Some(ReaderState {
            id: site.id.clone(),
            name: site.interface.name.clone(),
            presence: self.presence.clone()?,
            changes: self.changes,
            model: site.model.clone(),
        })
    }

    /// Stops watching the card; the claim ends unless a connection lasts.
    pub(super) fn rest(&mut self) {
        self.watched = Watched::Not;
    }

    /// Lets go of the reader if another process has asked for it.
    pub(super) fn give_way(&mut self, is_told: bool) {
        if !self.station.held().is_some_and(|grip| grip.is_wanted()) {
            return;
        }
        self.watched = Watched::Not;
        if let Some(mut desk) = self.station.free_desk() {
            desk.yield_if_wanted();
        }
        if self.needs_watching() {
            self.due = (!is_told).then(|| Instant::now() + UNTOLD);
        }
    }

    /// Takes in what the interrupt endpoint said.
    pub(super) fn hear(&mut self) {
        let Watched::Heard(ear) = &mut self.watched else {
            return;
        };
        let heard = ear.hear(0);
        if heard.is_over {
            self.watched = Watched::Not;
            self.look_soon();
        }
        if heard.slot.is_some() {
            self.look_soon();
        }
    }

    /// Looks at the reader if its time has come. With `watching`, begins to watch its card first.
    pub(super) fn attend(&mut self, watching: bool, look: &mut Look<'_>) {
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.due = None;
        self.trouble = None;
        if watching && self.needs_watching() {
            self.begin_to_watch(look);
        }
        self.look(look);
        if matches!(self.watched, Watched::Polled { .. }) && self.due.is_none() {
            self.due = Some(Instant::now() + GENTLY);
        }
    }

    fn begin_to_watch(&mut self, look: &Look<'_>) {
        if !matches!(self.watched, Watched::Not) {
            return;
        }
        let wish = Wish {
            until: Instant::now(),
            knocks: false,
            stop: look.stop,
        };
        let grip = match self.station.claim(wish) {
            Ok(grip) => grip,
            Err(error) => return self.failed(error, look),
        };
        self.watched = match Ear::new(&self.station.site, Arc::clone(&grip)) {
            Ok(Some(ear)) => Watched::Heard(ear),
            Ok(None) => Watched::Polled { _claim: grip },
            Err(error) => {
                let name = &self.station.site.interface.name;
                tracing::warn!("reader {name}: cannot be listened to ({error}); it is looked at");
                Watched::Polled { _claim: grip }
            }
        };
    }

    fn look(&mut self, look: &mut Look<'_>) {
        if self.is_known_by_others() {
            return;
        }
        let found = match self.find(look) {
            Some(Ok(found)) => found,
            Some(Err(error)) => return self.failed(error, look),
            None => {
                // Somebody is in the middle of a command.
                self.due = Some(Instant::now() + self.pauses.next_pause());
                return;
            }
        };
        self.pauses.start_over();
        let (presence, is_same) = match found {
            Found::Empty => (Presence::Empty, true),
            Found::Mute => (Presence::Mute, true),
            Found::Card(atr, is_same) => (Presence::Card(atr), is_same),
        };
        let shown = self.presence.replace(presence);
        if shown != self.presence || !is_same {
            self.changes = look.next_change();
        }
    }

    /// Of a card that cannot be taken out it is enough that another process has seen it.
    fn is_known_by_others(&mut self) -> bool {
        if self.needs_watching() || self.station.held().is_some() {
            return false;
        }
        let known = self.station.told();
        if let Some(atr) = known {
            self.presence = Some(Presence::Card(atr));
            return true;
        }
        false
    }

    /// One conversation with the reader; `None` when somebody else of this process is at it.
    fn find(&self, look: &Look<'_>) -> Option<Result<Found, TransportError>> {
        let mut desk = self.station.free_desk()?;
        let call = look.call();
        let is_new = self.presence.is_none();
        let wish = Wish {
            until: Instant::now() + if is_new { FIRST } else { Duration::ZERO },
            knocks: is_new,
            stop: look.stop,
        };
        let found = desk
            .open(&self.station, wish, call)
            .and_then(|device| Ok((device.status(call)?, device.atr().is_some())))
            .and_then(|(icc, was_known)| match icc {
                IccStatus::Absent => Ok(Found::Empty),
                _ => match desk.power(call) {
                    Ok(Some(atr)) => Ok(Found::Card(atr, was_known || !self.needs_watching())),
                    Ok(None) => Ok(Found::Empty),
                    Err(error) if error.kind == TransportErrorKind::NoCard => Ok(Found::Mute),
                    Err(error) => Err(error),
                },
            });
        desk.leave();
        Some(found)
    }

    /// The reader could not be had, or does not answer.
    fn failed(&mut self, error: TransportError, look: &Look<'_>) {
        use TransportErrorKind::{Busy, Cancelled, Denied, NoReader};
        let pause = match error.kind {
            // The bus tells when that changes.
            NoReader | Cancelled => None,
            Busy | Denied if look.is_told => None,
            Busy | Denied => Some(UNTOLD),
            _ => Some(self.pauses.next_pause()),
        };
        self.due = pause.map(|pause| Instant::now() + pause);
        tracing::debug!("{error}");
        self.trouble = (error.kind != Cancelled).then_some(error);
    }
}
