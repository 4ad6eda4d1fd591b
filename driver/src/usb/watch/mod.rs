//! Follows the bus, the readers and their cards in one thread. One wait covers devices, cards and release requests. Where threads
//! are allowed, each poll of a reader is left to another thread, so that a slow or hostile reader delays no other.

mod demand;
mod entry;
mod interrupt;
mod reader;
mod readers;
mod slot;
mod worker;

use std::{
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportError, TransportErrorKind};

use self::{
    demand::CardDemand,
    entry::ReaderEntry,
    reader::WatchedReader,
    readers::WatchedReaders,
    slot::{ChangeCounter, PollContext},
};
use super::{
    claim::{BackendContext, shared::SharedClaim},
    discovery::{
        hotplug::{BusChanges, HotplugMonitor},
        precedence::{AllowedReaders, PcscdPrecedence},
        reader_info::{ReaderInfo, readers_of},
        suspend::SuspendDetector,
        sysfs::{Listing, UsbBus, UsbDevice},
    },
    reader::{UsbReader, registry::ReaderRegistry},
};
use crate::{
    backend::{Demand, Watch},
    pollable::{self, Pollable, WaitSet},
    reader::{ReaderSnapshot, ReaderState},
    stop::{StopHandle, Stopped},
    wait::{Backoff, StopFlag, wait_readable},
};

/// Timeout of the first snapshot of [`Watch::next_snapshot`], and of one round of polls.
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
    /// The readers that the precedence last allowed, and the number of that change.
    allowed: (AllowedReaders, u32),
    hotplug: Option<HotplugMonitor>,
    suspend: SuspendDetector,
    watched: WatchedReaders,
    /// The devices of the last listing.
    listed: Vec<UsbDevice>,
    /// Present if a thread is in [`Watch::next_snapshot`] nearly all the time. Cards are then monitored between two calls, too,
    /// while there is a demand.
    demand: Option<Arc<CardDemand>>,
    /// The last poll request that was taken, and whether it is not completed yet.
    completed_request: u64,
    has_open_request: bool,
    /// The devices must be listed again.
    is_stale: bool,
    /// Some devices could not be read. All are listed again then.
    relist_at: Option<Instant>,
    relist_backoff: Backoff,
    trouble: Option<TransportError>,
    changes: ChangeCounter,
    stop: Arc<StopFlag>,
    /// Until when a snapshot waits for the polls of readers: the first snapshot, and one after
    /// others were allowed.
    polls_due: Option<Instant>,
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
            watched: WatchedReaders::default(),
            listed: Vec::new(),
            demand,
            completed_request: 0,
            has_open_request: false,
            is_stale: true,
            relist_at: None,
            relist_backoff: Backoff::new(RELIST_INTERVAL, RELIST_INTERVAL * 16),
            trouble: None,
            changes: ChangeCounter::default(),
            stop: Arc::new(StopFlag::new()),
            polls_due: None,
            reported: None,
        }
    }

    /// Brings everything up to date that needs no waiting, and starts the polls that are due. Without threads it waits for each.
    fn update(&mut self, watching: bool, deadline: Instant) {
        self.take_bus_changes();
        self.watched.end_polls();
        self.update_precedence();
        let watching = watching && self.apply_demand();
        if self.is_stale
            || self
                .relist_at
                .is_some_and(|relist| relist <= Instant::now())
        {
            self.relist();
        }
        let reports_release = self.reports_release();
        for reader in self.watched.idle_mut() {
            reader.yield_if_requested(reports_release);
            reader.take_notifications();
        }
        let poll = PollContext {
            stop: Arc::clone(&self.stop),
            deadline,
            reports_release,
            keep_open: watching && self.demand.is_some(),
            watching,
            changes: self.changes.clone(),
        };
        let has_thread = self.demand.is_some();
        let watch_event = self.context.watch_event.as_ref();
        self.watched
            .start_polls(&poll, watch_event.filter(|_| has_thread));
    }

    /// Waits until the polls of all readers have ended.
    fn wait_for_polls(&mut self, deadline: Instant) {
        while self.watched.is_polling() && Instant::now() < deadline && !self.stop.is_set() {
            let event = self.context.watch_event.as_ref().map(|event| event.as_fd());
            let _ = wait_readable(event.as_slice(), &self.stop, Some(deadline));
            self.update(false, deadline);
        }
    }

    /// Polls cards on request, and stops monitoring without a demand. Returns whether to monitor cards.
    fn apply_demand(&mut self) -> bool {
        let Some(demand) = &self.demand else {
            return true;
        };
        let (asked, is_wanted) = demand.take_requests();
        // One request at a time, so that the next does not delay the end of the last.
        if asked != self.completed_request && !self.has_open_request {
            self.completed_request = asked;
            self.has_open_request = true;
            self.watched.poll_if_unmonitored();
        }
        if !is_wanted {
            self.watched.stop_monitoring();
        }
        is_wanted
    }

    /// Completes the last poll request, once its result is reported.
    fn complete_demand(&mut self) {
        let Some(demand) = &self.demand else {
            return;
        };
        if self.watched.iter().any(ReaderEntry::is_awaited) {
            return;
        }
        self.has_open_request = false;
        let is_needed = self.watched.iter().any(ReaderEntry::needs_monitoring);
        let is_watching = self.watched.iter().all(ReaderEntry::is_up_to_date);
        if demand.complete(self.completed_request, is_watching, is_needed) {
            self.context.wake_watch();
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
            for entry in self.watched.iter_mut() {
                is_tried |= entry.retry_failed();
            }
            // They may belong to a device that was not configured yet. No other source reports it.
            self.is_stale |= !is_tried || !self.reports_release();
        }
        for entry in self.watched.iter_mut() {
            if lost {
                entry.poll_if_unmonitored();
            }
            if lost || freed.contains(&entry.port) {
                entry.claim_released();
            }
        }
        if self.suspend.was_suspended() {
            tracing::debug!("usb: the machine was suspended; all readers are polled again");
            self.is_stale = true;
            self.watched.iter_mut().for_each(ReaderEntry::poll_now);
        }
    }

    fn update_precedence(&mut self) {
        if let Some(precedence) = &self.precedence {
            precedence.clear();
            let before = std::mem::replace(&mut self.allowed, precedence.allowed_readers());
            self.is_stale |= self.allowed != before;
            if self.allowed != before {
                self.polls_due = Some(Instant::now() + FIRST_SNAPSHOT_TIMEOUT);
            }
            precedence.mark_seen(self.allowed.1);
        }
    }

    /// Waits until it is known whether pcscd is there. Snapshots are empty before.
    fn wait_for_precedence(&self, deadline: Instant) {
        if let Some(precedence) = &self.precedence {
            precedence.wait_until_known(deadline, &self.stop);
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
            Some(_) => Some(Instant::now() + self.relist_backoff.next_delay()),
            None => {
                self.relist_backoff.reset();
                None
            }
        };
        self.trouble = error.map(|error| {
            let what = format!("the devices on the USB cannot all be listed: {error}");
            TransportError::before_card(TransportErrorKind::NoService, what)
        });
        let ours = self.listed.iter().filter(|device| self.is_allowed(device));
        let of_device = |device: &UsbDevice| {
            let port = device.port.clone();
            readers_of(device)
                .into_iter()
                .map(move |slots| (port.clone(), slots))
        };
        let readers: Vec<_> = ours.flat_map(of_device).collect();
        let (context, changes) = (&self.context, &self.changes);
        self.watched
            .list(readers, |slots| new_reader(slots, context, changes));
        self.registry.set(self.watched.all().cloned().collect());
    }

    /// Returns whether the next snapshot waits for polls.
    fn waits_for_polls(&self) -> bool {
        self.polls_due.is_some_and(|due| due > Instant::now())
            && (self.watched.iter().any(ReaderEntry::is_awaited) || self.watched.is_leaving())
    }

    /// The readers to report, the error of their listing, and the number of the precedence change that they follow.
    fn current_state(&self) -> ReportedState {
        // Errors of single readers are left out: a reader that is busy for a short time is no change.
        let trouble = self.trouble.as_ref().map(|trouble| trouble.what.clone());
        (self.watched.states(), trouble, self.allowed.1)
    }

    fn report(&mut self) -> ReaderSnapshot {
        self.polls_due = None;
        let shown = self.current_state();
        let readers = shown.0.clone();
        self.reported = Some(shown);
        ReaderSnapshot {
            readers,
            error: self.last_error(),
            // The bus is always there.
            service_instance: Some(0),
        }
    }

    /// Joins the errors of all readers to one text.
    fn last_error(&self) -> Option<TransportError> {
        let of_readers = self.watched.errors();
        let troubles: Vec<&TransportError> = self.trouble.iter().chain(of_readers).collect();
        let texts: Vec<&str> = troubles
            .iter()
            .map(|trouble| trouble.what.as_str())
            .collect();
        let kind = troubles.first()?.kind;
        Some(TransportError::before_card(kind, texts.join("; ")))
    }
}

impl Watch for UsbWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.wait_for_precedence(call.deadline);
        self.is_stale |= self
            .hotplug
            .as_ref()
            .is_none_or(|hotplug| !hotplug.reports_arrivals())
            || self.relist_at.is_some();
        self.watched.poll_if_unmonitored();
        self.update(false, call.deadline);
        self.wait_for_polls(call.deadline);
        self.report()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        pollable::next(self)
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        Some(self)
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        Arc::clone(&self.stop) as Arc<dyn StopHandle>
    }

    fn demand(&self) -> Option<Arc<dyn Demand>> {
        let demand = Arc::clone(self.demand.as_ref()?);
        Some(demand as Arc<dyn Demand>)
    }
}

impl Pollable for UsbWatch {
    fn begin(&mut self) {
        self.watched.release_idle();
        if self.reported.is_none() {
            let due = Instant::now() + FIRST_SNAPSHOT_TIMEOUT;
            self.polls_due = Some(due);
            self.wait_for_precedence(due);
            return;
        }
        self.complete_demand();
        if self.demand.is_none() {
            self.watched.poll_if_unmonitored();
        }
    }

    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
        if !self.stop.is_set() {
            self.update(true, Instant::now() + FIRST_SNAPSHOT_TIMEOUT);
        }
        if self.stop.is_set() {
            return Err(Stopped);
        }
        if self.waits_for_polls() {
            // No reader is kept while others are waited for.
            self.watched.release_idle();
            return Ok(None);
        }
        if self.reported.as_ref() != Some(&self.current_state()) {
            // Reported first, because releasing a reader takes time.
            return Ok(Some(self.report()));
        }
        self.watched.release_idle();
        self.complete_demand();
        Ok(None)
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let now = Instant::now();
        let mut set = WaitSet::until_stopped(&self.stop);
        set.due(self.relist_at);
        set.readable(self.context.watch_event.as_ref().map(|event| event.as_fd()));
        set.readable(self.hotplug.iter().flat_map(HotplugMonitor::descriptors));
        if let Some(precedence) = &self.precedence {
            set.readable(precedence.descriptor());
            set.due(precedence.due());
        }
        if self.waits_for_polls() {
            set.due(self.polls_due);
        }
        let is_monitoring = self.watched.idle().any(WatchedReader::is_monitored);
        if let Some(demand) = self.demand.as_ref().filter(|_| is_monitoring) {
            set.due(demand.lease_end());
        }
        // Else the end of a poll is waited for.
        let may_poll = self.watched.may_poll();
        for reader in self.watched.idle() {
            set.due(reader.due().filter(|_| may_poll));
            let next_request = reader
                .current_claim()
                .and_then(|reader_claim| reader_claim.descriptor());
            next_request
                .into_iter()
                .for_each(|next_request| set.shared(next_request));
            if let Some(listener) = reader.interrupt() {
                set.ready(listener.poll_fds());
                set.due(listener.next_timeout().map(|due| now + due));
            }
        }
        set
    }

    /// Stops monitoring the cards, unless a thread is always in [`Watch::next_snapshot`].
    fn rest(&mut self) {
        if self.demand.is_none() {
            self.watched.stop_monitoring();
        }
    }
}

impl Drop for UsbWatch {
    fn drop(&mut self) {
        self.stop.stop();
        self.watched.join_polls();
        // The registry keeps its readers: C_Finalize logs out after the watch has ended.
        self.watched.release_idle();
        if let Some(demand) = &self.demand {
            demand.stop();
        }
    }
}

/// A reader that was not listed before, with these slots.
fn new_reader(
    slots: Vec<ReaderInfo>,
    context: &Arc<BackendContext>,
    changes: &ChangeCounter,
) -> WatchedReader {
    let claim = SharedClaim::new(Arc::clone(context), slots.len());
    let reader = |info| Arc::new(UsbReader::new(info, Arc::clone(&claim)));
    WatchedReader::new(slots.into_iter().map(reader).collect(), changes)
}
