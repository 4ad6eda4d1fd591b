//! Follows the readers on the bus from one thread, in one wait for everything: devices, cards, other processes that
//! ask for a reader.

mod demand;
mod interrupt;
mod reader;
mod slot;

use std::{
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportError, TransportErrorKind};

use self::{demand::CardDemand, reader::Place, slot::Look};
use super::{
    claim::{Means, shared::Holding},
    discovery::{
        hotplug::{Arrivals, Change},
        precedence::{Gate, Ours},
        reader_info::{Site, sites},
        suspend::Slept,
        sysfs::{Bus, Found, Listing, Port},
    },
    reader::{Station, registry::Registry},
};
use crate::{
    backend::{Demand, Stopped, Wake, Watch},
    pollable::{self, Pollable, WaitSet},
    reader::{ReaderState, Readers},
    wait::{Pauses, Stop},
};

/// What the first picture of [`Watch::next`] may take.
const FIRST: Duration = Duration::from_secs(5);

/// When devices that could not be listed are listed again, the first time.
const RELIST: Duration = Duration::from_secs(1);

/// The readers, what is wrong with the list of them, and the gate's move at which they were shown.
type Shown = (Vec<ReaderState>, Option<String>, u32);

/// See [`Watch`].
pub(crate) struct UsbWatch {
    bus: Bus,
    means: Arc<Means>,
    registry: Arc<Registry>,
    gate: Option<Arc<Gate>>,
    /// What the gate said last, and at which of its moves.
    ours: (Ours, u32),
    arrivals: Option<Arrivals>,
    slept: Slept,
    places: Vec<(Port, Place)>,
    /// The devices as they were listed last.
    listed: Vec<Found>,
    /// Somebody is in [`Watch::next`] nearly all the time: cards are watched between two calls, too, while there is a demand for
    /// it.
    demand: Option<Arc<CardDemand>>,
    /// The look that was asked for last, and taken in.
    answered: u64,
    /// The devices have to be listed.
    is_stale: bool,
    /// They could not all be read, and are listed again then.
    relist: Option<Instant>,
    delays: Pauses,
    trouble: Option<TransportError>,
    count: u32,
    stop: Arc<Stop>,
    shown: Option<Shown>,
}

impl UsbWatch {
    pub(crate) fn new(
        bus: Bus,
        means: Arc<Means>,
        registry: Arc<Registry>,
        gate: Option<Arc<Gate>>,
        goes_on: bool,
    ) -> Self {
        let demand = goes_on.then(|| CardDemand::new(means.stir.clone()));
        Self {
            slept: Slept::new(bus.clone()),
            bus,
            means,
            registry,
            ours: (gate.as_ref().map_or(Ours::All, |_| Ours::None), 0),
            gate,
            arrivals: None,
            places: Vec::new(),
            listed: Vec::new(),
            demand,
            answered: 0,
            is_stale: true,
            relist: None,
            delays: Pauses::new(RELIST, RELIST * 16),
            trouble: None,
            count: 0,
            stop: Arc::new(Stop::new()),
            shown: None,
        }
    }

    /// Brings everything up to date that can be without waiting.
    fn update(&mut self, watching: bool, until: Instant) {
        self.hear_of_devices();
        self.look_at_the_gate();
        let watching = watching && self.take_in_demand();
        if self.is_stale || self.relist.is_some_and(|relist| relist <= Instant::now()) {
            self.list();
        }
        let is_told = self.is_told();
        let mut kept: Option<&mut Place> = None;
        for (_, place) in &mut self.places {
            place.give_way(is_told);
            place.hear();
            if !place.is_due() {
                continue;
            }
            // No reader is kept while another is waited for.
            if let Some(kept) = kept {
                kept.settle();
            }
            let mut look = Look {
                stop: &self.stop,
                until,
                is_told,
                lingers: watching && self.demand.is_some(),
                patience: place.patience(),
                count: &mut self.count,
            };
            place.attend(watching, &mut look);
            if self.stop.is_set() {
                return;
            }
            kept = Some(place);
        }
    }

    /// Has cards looked at that somebody asks for, and left alone when nobody does; whether they are to be watched.
    fn take_in_demand(&mut self) -> bool {
        let Some(demand) = &self.demand else {
            return true;
        };
        let (asked, is_wanted) = demand.take_in();
        if asked != self.answered {
            self.answered = asked;
            self.places
                .iter_mut()
                .for_each(|(_, place)| place.look_if_unwatched());
        }
        if !is_wanted {
            self.places.iter_mut().for_each(|(_, place)| place.rest());
        }
        is_wanted
    }

    /// What was taken in so far can be seen by everybody.
    fn answer_demand(&self) {
        if let Some(demand) = &self.demand {
            let places = || self.places.iter().map(|(_, place)| place);
            let is_needed = places().any(Place::needs_watching);
            let is_watching = places().all(|place| place.is_watched() || !place.needs_watching());
            demand.answer(self.answered, is_watching, is_needed);
        }
    }

    /// Whether somebody says when a reader becomes free.
    fn is_told(&self) -> bool {
        self.arrivals.as_ref().is_some_and(Arrivals::has_messages)
    }

    fn hear_of_devices(&mut self) {
        if let Some(stir) = &self.means.stir {
            stir.clear();
        }
        let bus = &self.bus;
        let arrivals = self.arrivals.get_or_insert_with(|| Arrivals::new(bus));
        let Change {
            look,
            rights,
            lost,
            freed,
        } = arrivals.drain();
        self.is_stale |= look || lost;
        if rights {
            let mut is_tried = false;
            for (_, place) in &mut self.places {
                is_tried |= place.try_again();
            }
            // They may be those of a device that was not configured yet, of which nobody else tells.
            self.is_stale |= !is_tried || !self.is_told();
        }
        for (port, place) in &mut self.places {
            if lost {
                place.look_if_unwatched();
            }
            if lost || freed.contains(port) {
                place.is_free();
            }
        }
        if self.slept.has_slept() {
            tracing::debug!("usb: the machine has slept; everything is looked at anew");
            self.is_stale = true;
            self.places
                .iter_mut()
                .for_each(|(_, place)| place.look_soon());
        }
    }

    fn look_at_the_gate(&mut self) {
        if let Some(gate) = &self.gate {
            gate.clear();
            let before = std::mem::replace(&mut self.ours, gate.look());
            self.is_stale |= self.ours != before;
            gate.see(self.ours.1);
        }
    }

    /// Waits for the gate to know of pcscd; what is shown before is nothing.
    fn wait_for_the_gate(&self, until: Instant) {
        if let Some(gate) = &self.gate {
            gate.wait_until_heard(until, &self.stop);
        }
    }

    fn is_ours(&self, device: &Found) -> bool {
        match self.ours.0 {
            Ours::None => false,
            Ours::Marked => self.bus.is_left_to_us(device),
            Ours::All => true,
        }
    }

    /// Takes in which readers are on the bus, and ours; one in the same port as before is the same only in the same life.
    fn list(&mut self) {
        self.is_stale = false;
        let Listing { devices, error } = self.bus.list(&self.listed);
        self.listed = devices;
        self.relist = match &error {
            Some(_) => Some(Instant::now() + self.delays.next_pause()),
            None => {
                self.delays.start_over();
                None
            }
        };
        self.trouble = error.map(|error| {
            let what = format!("the devices on the USB cannot all be listed: {error}");
            TransportError::before_card(TransportErrorKind::NoService, what)
        });
        let ours = self.listed.iter().filter(|device| self.is_ours(device));
        let readers: Vec<(Port, Vec<Site>)> = ours
            .flat_map(|device| {
                sites(device)
                    .into_iter()
                    .map(|slots| (device.port.clone(), slots))
            })
            .collect();
        let mut before = std::mem::take(&mut self.places);
        for (port, slots) in readers {
            let known = before.iter().position(|(_, place)| place.is(&slots));
            let place = match known.map(|known| before.swap_remove(known).1) {
                Some(mut place) => {
                    place.try_again();
                    place
                }
                None => self.place(slots),
            };
            self.places.push((port, place));
        }
        before.iter().for_each(|(_, place)| place.retire());
        let stations = self.places.iter().flat_map(|(_, place)| place.stations());
        self.registry.set(stations.cloned().collect());
    }

    /// A reader that was not there before.
    fn place(&mut self, slots: Vec<Site>) -> Place {
        let holding = Holding::new(Arc::clone(&self.means), slots.len());
        let station = |site| Arc::new(Station::new(site, Arc::clone(&holding)));
        Place::new(slots.into_iter().map(station).collect(), || {
            self.count = self.count.wrapping_add(1);
            self.count
        })
    }

    fn settle(&mut self) {
        self.places.iter_mut().for_each(|(_, place)| place.settle());
    }

    fn picture(&self) -> Shown {
        let states = self.places.iter().flat_map(|(_, place)| place.states());
        // That a reader is busy for a moment is nothing new.
        let trouble = self.trouble.as_ref().map(|trouble| trouble.what.clone());
        (states.collect(), trouble, self.ours.1)
    }

    fn present(&mut self) -> Readers {
        let shown = self.picture();
        let readers = shown.0.clone();
        self.shown = Some(shown);
        Readers {
            readers,
            trouble: self.trouble(),
            // The bus is always there.
            service: Some(0),
        }
    }

    /// What keeps readers from the picture, all in one text.
    fn trouble(&self) -> Option<TransportError> {
        let of_places = self.places.iter().filter_map(|(_, place)| place.trouble());
        let troubles: Vec<&TransportError> = self.trouble.iter().chain(of_places).collect();
        let texts: Vec<&str> = troubles
            .iter()
            .map(|trouble| trouble.what.as_str())
            .collect();
        let kind = troubles.first()?.kind;
        Some(TransportError::before_card(kind, texts.join("; ")))
    }
}

impl Watch for UsbWatch {
    fn now(&mut self, call: Call) -> Readers {
        self.wait_for_the_gate(call.deadline);
        self.is_stale |= self
            .arrivals
            .as_ref()
            .is_none_or(|arrivals| !arrivals.is_complete())
            || self.relist.is_some();
        self.places
            .iter_mut()
            .for_each(|(_, place)| place.look_if_unwatched());
        self.update(false, call.deadline);
        self.present()
    }

    fn next(&mut self) -> Result<Readers, Stopped> {
        pollable::next(self)
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        Some(self)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.stop) as Arc<dyn Wake>
    }

    fn demand(&self) -> Option<Arc<dyn Demand>> {
        let demand = Arc::clone(self.demand.as_ref()?);
        Some(demand as Arc<dyn Demand>)
    }
}

impl Pollable for UsbWatch {
    fn begin(&mut self) {
        self.settle();
        if self.shown.is_none() {
            self.wait_for_the_gate(Instant::now() + FIRST);
            return;
        }
        self.answer_demand();
        if self.demand.is_none() {
            self.places
                .iter_mut()
                .for_each(|(_, place)| place.look_if_unwatched());
        }
    }

    fn step(&mut self) -> Result<Option<Readers>, Stopped> {
        if !self.stop.is_set() {
            self.update(true, Instant::now() + FIRST);
        }
        if self.stop.is_set() {
            return Err(Stopped);
        }
        if self.shown.as_ref() != Some(&self.picture()) {
            // It is told first; letting go of a reader takes its time.
            return Ok(Some(self.present()));
        }
        self.settle();
        self.answer_demand();
        Ok(None)
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let now = Instant::now();
        let mut set = WaitSet::until(&self.stop);
        set.due(self.relist);
        set.readable(self.means.stir.as_ref().map(|stir| stir.as_fd()));
        set.readable(self.arrivals.iter().flat_map(Arrivals::descriptors));
        if let Some(gate) = &self.gate {
            set.readable(gate.descriptor());
            set.due(gate.due());
        }
        let watches = self.places.iter().any(|(_, place)| place.is_watched());
        if let Some(demand) = self.demand.as_ref().filter(|_| watches) {
            set.due(demand.ends());
        }
        for (_, place) in &self.places {
            set.due(place.due());
            let knock = place.held().and_then(|grip| grip.descriptor());
            knock.into_iter().for_each(|knock| set.shared(knock));
            if let Some(ear) = place.ear() {
                set.ready(ear.descriptors());
                set.due(ear.due().map(|due| now + due));
            }
        }
        set
    }

    /// Stops watching cards where nobody waits for them any more.
    fn rest(&mut self) {
        if self.demand.is_none() {
            self.places.iter_mut().for_each(|(_, place)| place.rest());
        }
    }
}

impl Drop for UsbWatch {
    fn drop(&mut self) {
        // The registry keeps its readers: C_Finalize logs out after the watch has ended.
        self.settle();
        if let Some(demand) = &self.demand {
            demand.end();
        }
    }
}
