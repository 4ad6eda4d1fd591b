//! A reader on the bus as the watch sees it: its slots, and how it is learnt that a card came or went.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::TransportError;

use super::{
    interrupt::Ear,
    slot::{LOOK, Look, View},
};
use crate::{
    reader::ReaderState,
    usb::{claim::Grip, discovery::reader_info::Site, reader::Station},
    wait::earliest,
};

/// How often a reader without an interrupt endpoint is looked at while somebody waits for a card.
const GENTLY: Duration = Duration::from_secs(1);

/// What the first answer of a reader may take, until it has failed to give one: the others wait meanwhile.
const ANSWER: Duration = Duration::from_millis(500);
/// A reader that did not answer is left alone so many times as long as it was waited for.
const REST: u32 = 4;

/// One reader on the bus; it has a slot at least.
pub(super) struct Place {
    views: Vec<View>,
    watched: Watched,
    /// What its next answer may take: longer each time that none came.
    patience: Duration,
    /// It did not answer, and is left alone until then unless it says something.
    rests_until: Option<Instant>,
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

impl Place {
    /// A reader with these slots; `count` gives each its first number of changes.
    pub(super) fn new(stations: Vec<Arc<Station>>, mut count: impl FnMut() -> u32) -> Self {
        let views = stations.into_iter();
        Self {
            views: views.map(|station| View::new(station, count())).collect(),
            watched: Watched::Not,
            patience: ANSWER,
            rests_until: None,
        }
    }

    /// Whether these are its slots.
    pub(super) fn is(&self, sites: &[Site]) -> bool {
        let ours = self.stations().map(|station| &station.site);
        self.views.len() == sites.len() && ours.zip(sites).all(|(ours, site)| ours.is(site))
    }

    pub(super) fn stations(&self) -> impl Iterator<Item = &Arc<Station>> {
        self.views.iter().map(|view| &view.station)
    }

    /// When it wants to be looked at.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.views.iter().map(View::due).fold(None, earliest)?;
        Some(self.rests_until.map_or(due, |rests| rests.max(due)))
    }

    /// Whether that time has come.
    pub(super) fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    /// What the reader's next answer may take.
    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Has it looked at as soon as possible.
    pub(super) fn look_soon(&mut self) {
        self.rests_until = None;
        self.views.iter_mut().for_each(View::look_soon);
    }

    /// Something may have changed that kept it from being looked at; whether something did.
    pub(super) fn try_again(&mut self) -> bool {
        let mut is_troubled = false;
        for view in &mut self.views {
            if view.trouble().is_some() {
                view.look_soon();
                is_troubled = true;
            }
        }
        is_troubled
    }

    /// Has it looked at, unless its cards are watched or cannot change.
    pub(super) fn look_if_unwatched(&mut self) {
        let may_change = self.needs_watching() && !self.is_watched();
        let views = self.views.iter_mut();
        views
            .filter(|view| view.is_new() || may_change)
            .for_each(View::look_soon);
    }

    /// Whoever had it has let go: it is tried again if that was waited for. The end of a claim of ours says so as well, and
    /// nobody waits for that.
    pub(super) fn is_free(&mut self) {
        let views = self.views.iter_mut();
        views
            .filter(|view| view.awaits_release())
            .for_each(View::look_soon);
    }

    /// Whether its cards can be exchanged unseen while nobody has it claimed.
    pub(super) fn needs_watching(&self) -> bool {
        self.stations().any(|station| !station.site.is_fixed)
    }

    pub(super) const fn is_watched(&self) -> bool {
        !matches!(self.watched, Watched::Not)
    }

    pub(super) const fn ear(&self) -> Option<&Ear> {
        match &self.watched {
            Watched::Heard(ear) => Some(ear),
            _ => None,
        }
    }

    /// The claim, while somebody in this process has it.
    pub(super) fn held(&self) -> Option<Arc<Grip>> {
        self.stations().next()?.held()
    }

    /// What keeps it, or a slot of it, from being seen.
    pub(super) fn trouble(&self) -> Option<&TransportError> {
        self.views.iter().find_map(View::trouble)
    }

    /// What is known of each slot.
    pub(super) fn states(&self) -> impl Iterator<Item = ReaderState> {
        self.views.iter().filter_map(View::state)
    }

    /// The device has left.
    pub(super) fn retire(&self) {
        self.stations().for_each(|station| station.retire());
    }

    /// Stops watching the cards; the claim ends unless a connection lasts.
    pub(super) fn rest(&mut self) {
        if let Some(claim) = self.held() {
            claim.listen(false);
        }
        self.watched = Watched::Not;
    }

    /// Lets go of the reader after a look whose result has been told.
    pub(super) fn settle(&mut self) {
        self.views.iter_mut().for_each(View::settle);
    }

    /// Lets go of the reader if another process has asked for it.
    pub(super) fn give_way(&mut self, is_told: bool) {
        if !self.held().is_some_and(|grip| grip.is_wanted()) {
            return;
        }
        self.rest();
        let needs_watching = self.needs_watching();
        for view in &mut self.views {
            // A desk somebody is at yields when he is done.
            if let Some(mut desk) = view.station.try_desk() {
                desk.yield_if_wanted();
            }
            if needs_watching {
                view.await_release(is_told);
            }
        }
    }

    /// Takes in what the interrupt endpoint said.
    pub(super) fn hear(&mut self) {
        let Watched::Heard(ear) = &mut self.watched else {
            return;
        };
        let heard = ear.hear();
        if heard.is_over {
            // A pipe that always fails is as good as none.
            let claim = self.held().inspect(|claim| claim.listen(false));
            self.watched = claim.map_or(Watched::Not, |_claim| Watched::Polled { _claim });
        }
        if heard.is_over || heard.is_lost {
            // What was lost may have been anything.
            self.look_soon();
        }
        if !heard.slots.is_empty() {
            self.rests_until = None;
        }
        let several = self.views.len() > 1;
        for (view, state) in self.views.iter_mut().zip(heard.slots) {
            if let Some(state) = state {
                view.hear(state, several);
            }
        }
    }

    /// Looks at each slot whose time has come, while there is time. With `watching`, begins to watch the cards first.
    pub(super) fn attend(&mut self, watching: bool, look: &mut Look<'_>) {
        for at in 0..self.views.len() {
            let now = Instant::now();
            // Who is not looked at in time is due as before.
            if now >= look.until || self.rests_until.is_some_and(|rests| rests > now) {
                return;
            }
            if self.views.get_mut(at).is_some_and(View::is_due) {
                self.look_at(at, watching, look);
            }
            if look.stop.is_set() {
                return;
            }
        }
    }

    fn look_at(&mut self, at: usize, watching: bool, look: &mut Look<'_>) {
        let start = Instant::now();
        if watching && self.needs_watching() {
            self.begin_to_watch(at, look);
        }
        let is_polled = matches!(self.watched, Watched::Polled { .. });
        let Some(view) = self.views.get_mut(at) else {
            return;
        };
        let has_answered = view.look(look);
        if is_polled && view.due().is_none() {
            view.look_at(Some(Instant::now() + GENTLY));
        }
        if view.is_gone() {
            self.rest();
        }
        self.take_patience(has_answered, start);
    }

    /// Waits longer for a reader that did not answer, and the less often.
    fn take_patience(&mut self, has_answered: bool, start: Instant) {
        if has_answered {
            self.patience = ANSWER;
            self.rests_until = None;
        } else {
            let now = Instant::now();
            self.rests_until = Some(now + now.duration_since(start).saturating_mul(REST));
            self.patience = self.patience.saturating_mul(2).min(LOOK);
        }
    }

    fn begin_to_watch(&mut self, at: usize, look: &Look<'_>) {
        if self.is_watched() {
            return;
        }
        let slots = self.views.len();
        let Some(view) = self.views.get_mut(at) else {
            return;
        };
        let Some(grip) = view.claim(look) else {
            return;
        };
        let site = &view.station.site;
        self.watched = match Ear::new(site, Arc::clone(&grip), slots) {
            Ok(Some(ear)) => {
                grip.listen(true);
                Watched::Heard(ear)
            }
            Ok(None) => Watched::Polled { _claim: grip },
            Err(error) => {
                let name = &site.interface.name;
                tracing::warn!("reader {name}: cannot be listened to ({error}); it is looked at");
                Watched::Polled { _claim: grip }
            }
        };
    }
}
