//! Follows the bus, the readers and their cards in one thread. One wait covers devices, cards and release requests.

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

use self::{demand::CardDemand, reader::WatchedReader, slot::PollContext};
use super::{
    claim::{BackendContext, shared::SharedClaim},
    discovery::{
        hotplug::{BusChanges, HotplugMonitor},
        precedence::{AllowedReaders, PcscdPrecedence},
        reader_info::{ReaderInfo, readers_of},
        suspend::SuspendDetector,
        sysfs::{Listing, PortPath, UsbBus, UsbDevice},
    },
    reader::{UsbReader, registry::ReaderRegistry},
};
use crate::{
    backend::{Demand, Stopped, Wake, Watch},
    pollable::{self, Pollable, WaitSet},
    reader::{ReaderState, Readers},
    wait::{Pauses, Stop},
};

/// Timeout of the first snapshot of [`Watch::next`].
const FIRST_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// First interval before devices that could not be listed are listed again.
const RELIST_INTERVAL: Duration = Duration::from_secs(1);

/// The readers, the error of their listing, and the number of the precedence change that they follow.
type ReportedState = (Vec<ReaderState>, Option<String>, u32);

/// See [`Watch`].
pub(crate) struct UsbWatch {
    bus: UsbBus,
    context: Arc<BackendContext>,
    registry: Arc<ReaderRegistry>,
    precedence: Option<Arc<PcscdPrecedence>>,
    /// What the precedence allowed last, and the number of that change.
    allowed: (AllowedReaders, u32),
    hotplug: Option<HotplugMonitor>,
    suspend: SuspendDetector,
    watched: Vec<(PortPath, WatchedReader)>,
    /// The devices of the last listing.
    listed: Vec<UsbDevice>,
    /// Present if a thread is in [`Watch::next`] nearly all the time. Cards are then monitored between two calls, too, while
    /// there is a demand.
    demand: Option<Arc<CardDemand>>,
    /// The last poll request that was taken.
    completed_request: u64,
    /// The devices must be listed again.
    is_stale: bool,
    /// Some devices could not be read. All are listed again then.
    relist_at: Option<Instant>,
    relist_backoff: Pauses,
    trouble: Option<TransportError>,
    count: u32,
    stop: Arc<Stop>,
    reported: Option<ReportedState>,
}

impl UsbWatch {
    pub(crate) fn new(
        bus: UsbBus,
        context: Arc<BackendContext>,
        registry: Arc<ReaderRegistry>,
        precedence: Option<Arc<PcscdPrecedence>>,
        is_continuous: bool,
    ) -> Self {
        let demand = is_continuous.then(|| CardDemand::new(context.watch_event.clone()));
        Self {
            suspend: SuspendDetector::new(bus.clone()),
            bus,
            context,
            registry,
            allowed: (
                precedence
                    .as_ref()
                    .map_or(AllowedReaders::All, |_| AllowedReaders::None),
                0,
            ),
            precedence,
            hotplug: None,
            watched: Vec::new(),
            listed: Vec::new(),
            demand,
            completed_request: 0,
            is_stale: true,
            relist_at: None,
            relist_backoff: Pauses::new(RELIST_INTERVAL, RELIST_INTERVAL * 16),
            trouble: None,
            count: 0,
            stop: Arc::new(Stop::new()),
            reported: None,
        }
    }

    /// Brings everything up to date that needs no waiting.
    fn update(&mut self, watching: bool, until: Instant) {
        self.take_bus_changes();
        self.update_precedence();
        let watching = watching && self.apply_demand();
        if self.is_stale
            || self
                .relist_at
                .is_some_and(|relist| relist <= Instant::now())
        {
            self.relist();
        }
        let is_told = self.reports_release();
        let mut kept: Option<&mut WatchedReader> = None;
        for (_, watched) in &mut self.watched {
            watched.yield_if_requested(is_told);
            watched.take_notifications();
            if !watched.is_due() {
                continue;
            }
            // No reader is kept while another is waited for.
            if let Some(kept) = kept {
                kept.release_idle();
            }
            let mut poll = PollContext {
                stop: &self.stop,
                deadline: until,
                reports_release: is_told,
                keep_open: watching && self.demand.is_some(),
                response_timeout: watched.response_timeout(),
                change_count: &mut self.count,
            };
            watched.poll(watching, &mut poll);
            if self.stop.is_set() {
                return;
            }
            kept = Some(watched);
        }
    }

    /// Polls cards on request, and stops monitoring without a demand. Returns whether to monitor cards.
    fn apply_demand(&mut self) -> bool {
        let Some(demand) = &self.demand else {
            return true;
        };
        let (asked, is_wanted) = demand.take_requests();
        if asked != self.completed_request {
            self.completed_request = asked;
            self.watched
                .iter_mut()
                .for_each(|(_, watched)| watched.poll_if_unmonitored());
        }
        if !is_wanted {
            self.watched
                .iter_mut()
                .for_each(|(_, watched)| watched.stop_monitoring());
        }
        is_wanted
    }

    /// Completes the last poll request: its result is reported.
    fn complete_demand(&self) {
        if let Some(demand) = &self.demand {
            let places = || self.watched.iter().map(|(_, watched)| watched);
            let is_needed = places().any(WatchedReader::needs_monitoring);
            let is_watching =
                places().all(|watched| watched.is_monitored() || !watched.needs_monitoring());
            demand.complete(self.completed_request, is_watching, is_needed);
        }
    }

    /// Returns whether the kernel reports the end of another program's claim.
    fn reports_release(&self) -> bool {
        self.hotplug
            .as_ref()
            .is_some_and(HotplugMonitor::reports_unbind)
    }

    fn take_bus_changes(&mut self) {
        if let Some(event) = &self.context.watch_event {
            event.clear();
        }
        let bus = &self.bus;
        let hotplug = self.hotplug.get_or_insert_with(|| HotplugMonitor::new(bus));
        let BusChanges {
            relist,
            permissions_changed: rights,
            overflowed: lost,
            unbound: freed,
        } = hotplug.drain();
        self.is_stale |= relist || lost;
        if rights {
            let mut is_tried = false;
            for (_, watched) in &mut self.watched {
                is_tried |= watched.retry_failed();
            }
            // They may be those of a device that was not configured yet, of which nobody else tells.
            self.is_stale |= !is_tried || !self.reports_release();
        }
        for (port, watched) in &mut self.watched {
            if lost {
                watched.poll_if_unmonitored();
            }
            if lost || freed.contains(port) {
                watched.claim_released();
            }
        }
        if self.suspend.was_suspended() {
            tracing::debug!("usb: the machine has slept; everything is looked at anew");
            self.is_stale = true;
            self.watched
                .iter_mut()
                .for_each(|(_, watched)| watched.poll_now());
        }
    }

    fn update_precedence(&mut self) {
        if let Some(precedence) = &self.precedence {
            precedence.clear();
            let before = std::mem::replace(&mut self.allowed, precedence.allowed_readers());
            self.is_stale |= self.allowed != before;
            precedence.mark_seen(self.allowed.1);
        }
    }

    /// Waits until it is known whether pcscd is there. Snapshots are empty before.
    fn wait_for_precedence(&self, until: Instant) {
        if let Some(precedence) = &self.precedence {
            precedence.wait_until_known(until, &self.stop);
        }
    }

    fn is_allowed(&self, device: &UsbDevice) -> bool {
        match self.allowed.0 {
            AllowedReaders::None => false,
            AllowedReaders::Marked => self.bus.is_ignored_by_pcscd(device),
            AllowedReaders::All => true,
        }
    }

    /// Lists the allowed readers. A reader in the same port is the same only within one device instance.
    fn relist(&mut self) {
        self.is_stale = false;
        let Listing { devices, error } = self.bus.list(&self.listed);
        self.listed = devices;
        self.relist_at = match &error {
            Some(_) => Some(Instant::now() + self.relist_backoff.next_pause()),
            None => {
                self.relist_backoff.start_over();
                None
            }
        };
        self.trouble = error.map(|error| {
            let what = format!("the devices on the USB cannot all be listed: {error}");
            TransportError::before_card(TransportErrorKind::NoService, what)
        });
        let ours = self.listed.iter().filter(|device| self.is_allowed(device));
        let readers: Vec<(PortPath, Vec<ReaderInfo>)> = ours
            .flat_map(|device| {
                readers_of(device)
                    .into_iter()
                    .map(|slots| (device.port.clone(), slots))
            })
            .collect();
        let mut before = std::mem::take(&mut self.watched);
        for (port, slots) in readers {
            let known = before
                .iter()
                .position(|(_, watched)| watched.is_same(&slots));
            let watched = match known.map(|known| before.swap_remove(known).1) {
                Some(mut watched) => {
                    watched.retry_failed();
                    watched
                }
                None => self.new_reader(slots),
            };
            self.watched.push((port, watched));
        }
        before.iter().for_each(|(_, watched)| watched.retire());
        let stations = self
            .watched
            .iter()
            .flat_map(|(_, watched)| watched.readers());
        self.registry.set(stations.cloned().collect());
    }

    /// A reader that was not listed before.
    fn new_reader(&mut self, slots: Vec<ReaderInfo>) -> WatchedReader {
        let holding = SharedClaim::new(Arc::clone(&self.context), slots.len());
        let reader = |info| Arc::new(UsbReader::new(info, Arc::clone(&holding)));
        WatchedReader::new(slots.into_iter().map(reader).collect(), || {
            self.count = self.count.wrapping_add(1);
            self.count
        })
    }

    fn release_idle(&mut self) {
        self.watched
            .iter_mut()
            .for_each(|(_, watched)| watched.release_idle());
    }

    /// The readers to report, the error of their listing, and the number of the precedence change that they follow.
    fn snapshot(&self) -> ReportedState {
        let states = self
            .watched
            .iter()
            .flat_map(|(_, watched)| watched.states());
        // Without the errors of readers: one that is busy for a moment is no change.
        let trouble = self.trouble.as_ref().map(|trouble| trouble.what.clone());
        (states.collect(), trouble, self.allowed.1)
    }

    fn report(&mut self) -> Readers {
        let shown = self.snapshot();
        let readers = shown.0.clone();
        self.reported = Some(shown);
        Readers {
            readers,
            trouble: self.trouble(),
            // The bus is always there.
            service: Some(0),
        }
    }

    /// Joins the errors of all readers to one text.
    fn trouble(&self) -> Option<TransportError> {
        let of_places = self
            .watched
            .iter()
            .filter_map(|(_, watched)| watched.last_error());
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
        self.wait_for_precedence(call.deadline);
        self.is_stale |= self
            .hotplug
            .as_ref()
            .is_none_or(|hotplug| !hotplug.reports_arrivals())
            || self.relist_at.is_some();
        self.watched
            .iter_mut()
            .for_each(|(_, watched)| watched.poll_if_unmonitored());
        self.update(false, call.deadline);
        self.report()
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
        self.release_idle();
        if self.reported.is_none() {
            self.wait_for_precedence(Instant::now() + FIRST_SNAPSHOT_TIMEOUT);
            return;
        }
        self.complete_demand();
        if self.demand.is_none() {
            self.watched
                .iter_mut()
                .for_each(|(_, watched)| watched.poll_if_unmonitored());
        }
    }

    fn step(&mut self) -> Result<Option<Readers>, Stopped> {
        if !self.stop.is_set() {
            self.update(true, Instant::now() + FIRST_SNAPSHOT_TIMEOUT);
        }
        if self.stop.is_set() {
            return Err(Stopped);
        }
        if self.reported.as_ref() != Some(&self.snapshot()) {
            // Reported first, because releasing a reader takes time.
            return Ok(Some(self.report()));
        }
        self.release_idle();
        self.complete_demand();
        Ok(None)
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let now = Instant::now();
        let mut set = WaitSet::until(&self.stop);
        set.due(self.relist_at);
        set.readable(self.context.watch_event.as_ref().map(|event| event.as_fd()));
        set.readable(self.hotplug.iter().flat_map(HotplugMonitor::descriptors));
        if let Some(precedence) = &self.precedence {
            set.readable(precedence.descriptor());
            set.due(precedence.due());
        }
        let watches = self
            .watched
            .iter()
            .any(|(_, watched)| watched.is_monitored());
        if let Some(demand) = self.demand.as_ref().filter(|_| watches) {
            set.due(demand.lease_end());
        }
        for (_, watched) in &self.watched {
            set.due(watched.due());
            let next_request = watched
                .current_claim()
                .and_then(|reader_claim| reader_claim.descriptor());
            next_request
                .into_iter()
                .for_each(|next_request| set.shared(next_request));
            if let Some(listener) = watched.interrupt() {
                set.ready(listener.poll_fds());
                set.due(listener.next_timeout().map(|due| now + due));
            }
        }
        set
    }

    /// Stops monitoring the cards, unless a thread is always in [`Watch::next`].
    fn rest(&mut self) {
        if self.demand.is_none() {
            self.watched
                .iter_mut()
                .for_each(|(_, watched)| watched.stop_monitoring());
        }
    }
}

impl Drop for UsbWatch {
    fn drop(&mut self) {
        // The registry keeps its readers: C_Finalize logs out after the watch has ended.
        self.release_idle();
        if let Some(demand) = &self.demand {
            demand.close();
        }
    }
}
