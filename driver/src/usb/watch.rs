//! Follows the readers on the bus from one thread, in one wait for everything: devices, cards, other processes that
//! ask for a reader.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportError, TransportErrorKind};
use rustix::event::PollFlags;

use super::{
    arrivals::{Arrivals, Change, Slept},
    backend::{Registry, sites},
    claim::Means,
    place::{Look, Place},
    station::Station,
    sysfs::{Bus, Port},
};
use crate::{
    backend::{Stopped, Wake, Watch},
    reader::{ReaderState, Readers},
    wait::{Stop, earliest, ready_of},
};

/// What the first picture of [`Watch::next`] may take.
const FIRST: Duration = Duration::from_secs(5);
/// A wait that fails is tried again after so long.
const AGAIN: Duration = Duration::from_millis(100);

/// See [`Watch`].
pub(super) struct UsbWatch {
    bus: Bus,
    means: Arc<Means>,
    registry: Arc<Registry>,
    arrivals: Option<Arrivals>,
    slept: Slept,
    places: Vec<(Port, Place)>,
    /// Whether cards are watched between two calls, too: somebody is in [`Watch::next`] nearly all the time.
    goes_on: bool,
    /// The devices have to be listed.
    is_stale: bool,
    trouble: Option<TransportError>,
    count: u32,
    stop: Arc<Stop>,
    shown: Option<Vec<ReaderState>>,
}

impl UsbWatch {
    pub(super) fn new(bus: Bus, means: Arc<Means>, registry: Arc<Registry>, goes_on: bool) -> Self {
        Self {
            bus,
            means,
            registry,
            arrivals: None,
            slept: Slept::default(),
            places: Vec::new(),
            goes_on,
            is_stale: true,
            trouble: None,
            count: 0,
            stop: Arc::new(Stop::new()),
            shown: None,
        }
    }

    /// Brings everything up to date that can be without waiting.
    fn update(&mut self, watching: bool, until: Instant) {
        self.hear_of_devices();
        if self.is_stale {
            self.list();
        }
        let is_told = self.is_told();
        for (_, place) in &mut self.places {
            place.give_way(is_told);
            place.hear();
            let mut look = Look {
                stop: &self.stop,
                until,
                is_told,
                count: &mut self.count,
            };
            place.attend(watching, &mut look);
            if self.stop.is_set() {
                return;
            }
        }
    }

    /// Whether somebody says when a reader becomes free.
    fn is_told(&self) -> bool {
        self.arrivals
            .as_ref()
            .is_some_and(Arrivals::tells_of_claims)
    }

    fn hear_of_devices(&mut self) {
        if let Some(stir) = &self.means.stir {
            stir.clear();
        }
        let bus = &self.bus;
        let arrivals = self.arrivals.get_or_insert_with(|| Arrivals::new(bus));
        let Change { look, lost, freed } = arrivals.drain();
        self.is_stale |= look || lost;
        for (port, place) in &mut self.places {
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

    /// Takes in which readers are on the bus; one in the same port as before is the same only in the same life.
    fn list(&mut self) {
        self.is_stale = false;
        let found = match self.bus.list() {
            Ok(found) => found,
            Err(error) => {
                let what = format!("the devices on the USB cannot be listed: {error}");
                let kind = TransportErrorKind::NoService;
                self.trouble = Some(TransportError::before_card(kind, what));
                Vec::new()
            }
        };
        let mut before = std::mem::take(&mut self.places);
        for device in &found {
            for site in sites(device) {
                let known = before
                    .iter()
                    .position(|(_, place)| place.station.site.is(&site));
                match known {
                    Some(known) => {
                        let (port, mut place) = before.swap_remove(known);
                        place.try_again();
                        self.places.push((port, place));
                    }
                    None => {
                        self.count = self.count.wrapping_add(1);
                        let station = Arc::new(Station::new(site, Arc::clone(&self.means)));
                        self.places
                            .push((device.port.clone(), Place::new(station, self.count)));
                    }
                }
            }
        }
        let stations = self
            .places
            .iter()
            .map(|(_, place)| Arc::clone(&place.station));
        self.registry.set(stations.collect());
    }

    /// Waits until something may have happened.
    fn wait(&self, until: Option<Instant>) {
        let now = Instant::now();
        let places = || self.places.iter().map(|(_, place)| place);
        let ears = || places().filter_map(Place::ear);
        let knocks: Vec<_> = places()
            .filter_map(|place| place.station.held()?.descriptor())
            .collect();
        let input = |fd| (fd, PollFlags::IN);
        let stir = self.means.stir.as_ref().map(|stir| stir.as_fd());
        let arrivals = self.arrivals.iter().flat_map(Arrivals::descriptors);
        let fds: Vec<(BorrowedFd<'_>, PollFlags)> = stir
            .into_iter()
            .chain(arrivals)
            .chain(knocks.iter().map(|fd| fd.as_fd()))
            .map(input)
            .chain(ears().flat_map(|ear| ear.descriptors()))
            .collect();
        let until = places().map(Place::due).fold(until, earliest);
        let until = ears()
            .map(|ear| ear.due().map(|due| now + due))
            .fold(until, earliest);
        if let Err(errno) = ready_of(&fds, &self.stop, until) {
            // Out of memory is all that is left for poll(2) to complain of.
            tracing::warn!("usb: poll failed ({errno})");
            std::thread::sleep(AGAIN);
        }
    }

    fn picture(&self) -> Vec<ReaderState> {
        let states = self.places.iter().filter_map(|(_, place)| place.state());
        states.collect()
    }

    fn present(&mut self) -> Readers {
        let readers = self.picture();
        self.shown = Some(readers.clone());
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

    /// Stops watching cards where nobody waits for them any more.
    fn rest(&mut self) {
        if !self.goes_on {
            self.places.iter_mut().for_each(|(_, place)| place.rest());
        }
    }
}

impl Watch for UsbWatch {
    fn now(&mut self, call: Call) -> Readers {
        self.is_stale |= self
            .arrivals
            .as_ref()
            .is_none_or(|arrivals| !arrivals.is_complete());
        self.places
            .iter_mut()
            .for_each(|(_, place)| place.look_if_unwatched());
        self.update(false, call.deadline);
        self.present()
    }

    fn next(&mut self) -> Result<Readers, Stopped> {
        if self.shown.is_none() {
            self.update(true, Instant::now() + FIRST);
        } else {
            self.places
                .iter_mut()
                .for_each(|(_, place)| place.look_if_unwatched());
        }
        let next = loop {
            if self.stop.is_set() {
                break Err(Stopped);
            }
            self.update(true, Instant::now() + FIRST);
            if self.stop.is_set() {
                break Err(Stopped);
            }
            if self.shown.as_ref() != Some(&self.picture()) {
                break Ok(self.present());
            }
            self.wait(None);
        };
        self.rest();
        next
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.stop) as Arc<dyn Wake>
    }
}

impl Drop for UsbWatch {
    fn drop(&mut self) {
        self.registry.set(Vec::new());
    }
}
