//! Claims a reader: first the lock file shared by our own processes, then the USB interface.

pub(crate) mod lock;
pub(crate) mod pipe;
pub mod record;
mod release_requests;
pub(crate) mod shared;

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, TransportError, TransportErrorKind};

use self::{
    lock::{LockFolder, ReaderLock},
    record::LockRecord,
};
use super::{
    discovery::{reader_info::ReaderInfo, sysfs::UsbBus},
    host::{
        event_fd::EventFd,
        open::{self, OpenedInterface, UsbLibrary},
        owner,
        transfer::{OpenError, UsbInterface},
    },
    pipe::{CommandPipe, foreign_use::OwnClaim},
};
use crate::{
    fork_closed::ForkClosed,
    wait::{Backoff, StopFlag, wait_readable},
};

/// Timeout for a reader that another driver has claimed.
const FOREIGN_CLAIM_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two tries for a reader in use: the first, and the longest.
const RETRY_INTERVALS: (Duration, Duration) = (Duration::from_millis(2), MAX_RETRY_INTERVAL);
pub(crate) const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Interval between two release requests: the first, and the longest. The holder may have changed in between.
const RELEASE_REQUEST_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(200));

/// Distance from the sequence numbers of a claim that was not released, whose last number is unknown. A late response
/// to a command of that claim matches no early command of the next.
const SEQUENCE_DISTANCE: u8 = 128;

/// Opens devices: a USB library, or a test.
pub(crate) trait DeviceOpener: fmt::Debug + Send + Sync {
    /// Claims the reader's interface. Does not wait.
    fn open(&self, info: &ReaderInfo) -> Result<OpenedInterface, OpenError>;

    /// Returns when the last transfer to the device at this node was begun, by any program. Returns `None` if it is unknown.
    fn last_transfer(&self, node: &Path) -> Option<u64>;

    /// Names the likely owner of a busy interface. Takes time.
    fn owner(&self, _site: &ReaderInfo) -> Option<String> {
        None
    }
}

impl DeviceOpener for UsbLibrary {
    fn open(&self, info: &ReaderInfo) -> Result<OpenedInterface, OpenError> {
        open::attempt(&info.node, info.interface.number, *self)
    }

    fn last_transfer(&self, node: &Path) -> Option<u64> {
        open::last_transfer(node)
    }

    fn owner(&self, info: &ReaderInfo) -> Option<String> {
        Some(owner::describe_owner(&info.node, info.interface.number))
    }
}

/// The state that all readers of a backend share.
#[derive(Debug)]
pub(crate) struct BackendContext {
    pub(crate) bus: UsbBus,
    pub(crate) opener: Box<dyn DeviceOpener>,
    pub(crate) lock_folder: LockFolder,
    /// A thread polls release requests all the time. Without it no reader stays claimed between two uses.
    pub(crate) has_watch_thread: bool,
    /// Wakes the watch after a claim, so that it also polls this claim's release requests.
    pub(crate) watch_event: Option<Arc<EventFd>>,
}

impl BackendContext {
    /// Wakes the watch, if there is one.
    pub(crate) fn wake_watch(&self) {
        if let Some(stir) = &self.watch_event {
            stir.notify();
        }
    }
}

/// A claimed reader. The claim ends with the last owner of this value and of the interface's queues; the lock ends after it.
#[derive(Debug)]
pub(crate) struct ReaderClaim {
    // Before the claim they need.
    pipe: Mutex<Option<Arc<CommandPipe>>>,
    interface: Arc<dyn UsbInterface>,
    lock: Mutex<ReaderLock>,
    /// The ATRs of powered cards, for the next claim.
    atrs: Mutex<Vec<Option<Atr>>>,
    /// Another process requested the reader.
    release_requested: AtomicBool,
    /// Counts how often monitoring of the cards began or ended. Odd while they are monitored.
    monitoring_changes: AtomicU64,
    /// A slot was left during a command.
    is_unsynchronized: AtomicBool,
    /// The record of the claim before, if it is of this device instance.
    previous: Option<LockRecord>,
    instance: String,
    use_count: u64,
    /// The device's reset count when the claim began.
    resets: u64,
    /// Another program may have used the device since the claim before ended.
    used_by_others: bool,
    context: Arc<BackendContext>,
    node: PathBuf,
    own_claim: OwnClaim,
    /// The sequence number before the first of this claim.
    sequence: u8,
    // After all of the claim.
    last_sequence: LastSequence,
}

/// The sequence number of the last command of a reader's claims in this process. Clones share it. Each claim keeps one until
/// it has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastSequence(Arc<Mutex<Option<u8>>>);

impl LastSequence {
    fn number(&self) -> MutexGuard<'_, Option<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a claim lasts, or has not ended completely.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The sequence number before the first of the next claim. `left` is the record of the claim before.
    fn next(&self, left: Option<&LockRecord>) -> u8 {
        if let Some(left) = left {
            let far = if left.was_released {
                0
            } else {
                SEQUENCE_DISTANCE
            };
            return left.sequence.wrapping_add(far);
        }
        let number = *self.number();
        number.unwrap_or_else(|| {
            // Different in each process.
            let [first, ..] = RandomState::new().hash_one(0).to_ne_bytes();
            first
        })
    }
}

impl ReaderClaim {
    /// Tries once to claim the reader.
    pub(crate) fn try_claim(
        info: &ReaderInfo,
        context: &Arc<BackendContext>,
        last_sequence: &LastSequence,
        request_release: bool,
    ) -> Result<Self, ClaimError> {
        let mut lock = context
            .lock_folder
            .try_lock(&info.lock_name, request_release)
            .ok_or(ClaimError::OtherProcess)?;
        let foreign_use = &info.device.foreign_use;
        let own_claim = foreign_use.begin_claim();
        let opened = context.opener.open(info).map_err(|error| {
            if matches!(error, OpenError::Busy(_)) {
                foreign_use.record();
            }
            ClaimError::Open(error)
        })?;
        // The address, and so the node, may belong to another device by now.
        match context.bus.has_instance(&info.port, &info.instance) {
            Ok(true) => {}
            Ok(false) => return Err(ClaimError::Open(OpenError::Disconnected)),
            Err(error) => return Err(ClaimError::Open(OpenError::Failed(error.to_string()))),
        }
        own_claim.note_claimed(opened.last_transfer);
        let left = lock
            .record()
            .filter(|record| record.instance == info.instance);
        let used_by_others = left.as_ref().is_none_or(|left| {
            left.last_transfer.is_none() || left.last_transfer != opened.last_transfer
        });
        let atrs = left
            .as_ref()
            .filter(|left| left.was_released && !used_by_others);
        let atrs = atrs.map(|left| left.atrs.clone());
        let reader_claim = Self {
            pipe: Mutex::default(),
            interface: opened.interface,
            use_count: left
                .as_ref()
                .map_or(0, |left| left.use_count)
                .wrapping_add(1),
            instance: info.instance.clone(),
            lock: Mutex::new(lock),
            atrs: Mutex::new(atrs.unwrap_or_default()),
            sequence: last_sequence.next(left.as_ref()),
            last_sequence: last_sequence.clone(),
            release_requested: AtomicBool::new(false),
            monitoring_changes: AtomicU64::new(0),
            is_unsynchronized: AtomicBool::new(false),
            previous: left,
            resets: info.device.resets(),
            used_by_others,
            context: Arc::clone(context),
            node: info.node.clone(),
            own_claim,
        };
        reader_claim.lock().write(&reader_claim.record());
        Ok(reader_claim)
    }

    /// The reader's command pipe, which all slots share.
    ///
    /// # Errors
    /// NoReader when it has left, Protocol when its endpoints cannot be had.
    pub(crate) fn pipe(&self, info: &ReaderInfo) -> Result<Arc<CommandPipe>, TransportError> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = &*pipe {
            return Ok(Arc::clone(pipe));
        }
        let interface = Arc::clone(&self.interface);
        let opened = pipe::open_pipe(interface, &info.interface, &info.device, self.sequence)?;
        Ok(Arc::clone(pipe.insert(opened)))
    }

    /// The sequence number of the last command.
    fn last_sequence(&self) -> u8 {
        let pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let last = pipe.as_ref().and_then(|pipe| pipe.last_sequence());
        last.unwrap_or(self.sequence)
    }

    /// Returns whether a command could be sent at once.
    pub(crate) fn is_free(&self) -> bool {
        let pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.as_ref().is_none_or(|pipe| pipe.is_free())
    }

    fn atrs(&self) -> MutexGuard<'_, Vec<Option<Atr>>> {
        self.atrs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, ReaderLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn interface(&self) -> &Arc<dyn UsbInterface> {
        &self.interface
    }

    /// The number of this claim.
    pub(crate) const fn use_count(&self) -> u64 {
        self.use_count
    }

    /// The record of the claim before.
    pub(crate) const fn previous(&self) -> Option<&LockRecord> {
        self.previous.as_ref()
    }

    /// Returns whether the claim before did not end in good order. Reader and cards may be in the middle of a command.
    pub(crate) fn was_not_released(&self) -> bool {
        self.previous
            .as_ref()
            .is_some_and(|left| !left.was_released)
    }

    /// The ATR of the card that the claim before left powered, if that claim ended in good order, and the device was not reset
    /// or used by another program since.
    pub(crate) fn powered_atr(&self, info: &ReaderInfo) -> Option<&Atr> {
        let left = self
            .previous
            .as_ref()
            .filter(|left| left.was_released && !self.used_by_others)?;
        let atr = left.atr(info.slot);
        atr.filter(|_| self.resets == info.device.resets())
    }

    /// Records for the next claim which card is powered in `slot`.
    pub(crate) fn record_atr(&self, slot: u8, atr: Option<Atr>) {
        self.set_atr(usize::from(slot), atr);
        self.lock().write(&self.record());
    }

    fn set_atr(&self, slot: usize, atr: Option<Atr>) {
        let mut atrs = self.atrs();
        if atrs.len() <= slot {
            atrs.resize(slot + 1, None);
        }
        if let Some(left) = atrs.get_mut(slot) {
            *left = atr;
        }
    }

    /// A slot was left during a command. The next claim, in any process, aborts the command and resets the cards.
    pub(crate) fn mark_unsynchronized(&self) {
        self.is_unsynchronized.store(true, Ordering::SeqCst);
    }

    /// The record that is left if this process is killed.
    fn record(&self) -> LockRecord {
        LockRecord {
            instance: self.instance.clone(),
            use_count: self.use_count,
            atrs: self.atrs().clone(),
            sequence: self.sequence,
            last_transfer: None,
            was_released: false,
        }
    }

    /// Returns whether the reader was requested.
    pub(crate) fn release_requested(&self) -> bool {
        let report = self.lock().take_release_requests();
        if report.this_lock {
            self.release_requested.store(true, Ordering::SeqCst);
        }
        if report.other_lock {
            // The watch would not see the request that was read here.
            self.context.wake_watch();
        }
        self.release_requested.load(Ordering::SeqCst)
    }

    /// Sets whether the cards are monitored. Only the watch does that.
    pub(crate) fn set_monitored(&self, listens: bool) {
        if self.monitoring_period().is_some() != listens {
            self.monitoring_changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Identifies the time in which the cards have been monitored without a gap. `None` while they are not monitored.
    pub(crate) fn monitoring_period(&self) -> Option<u64> {
        let changes = self.monitoring_changes.load(Ordering::SeqCst);
        (changes % 2 == 1).then_some(changes)
    }

    /// Releases the reader at the end of the running transaction.
    pub(crate) fn request_local_release(&self) {
        self.release_requested.store(true, Ordering::SeqCst);
    }

    /// Becomes readable at a release request.
    pub(crate) fn descriptor(&self) -> Option<Arc<ForkClosed<OwnedFd>>> {
        self.lock().descriptor()
    }
}

impl Drop for ReaderClaim {
    fn drop(&mut self) {
        let sequence = self.last_sequence();
        *self.last_sequence.number() = Some(sequence);
        let last_transfer = self
            .own_claim
            .note_released(|| self.context.opener.last_transfer(&self.node));
        let record = LockRecord {
            sequence,
            last_transfer,
            was_released: !self.is_unsynchronized.load(Ordering::SeqCst),
            ..self.record()
        };
        self.lock().write(&record);
    }
}

/// Why a reader could not be claimed.
pub(crate) enum ClaimError {
    /// Another process with this driver holds it.
    OtherProcess,
    /// Another thread is claiming it for another slot.
    Opening,
    Open(OpenError),
}

/// The conditions under which to wait for a reader.
#[derive(Clone, Copy)]
pub(crate) struct ClaimRequest<'a> {
    /// The deadline.
    pub(crate) deadline: Instant,
    /// Asks the holder to release the reader.
    pub(crate) request_release: bool,
    /// The card is to be used: a device that does not respond may be reset.
    pub(crate) may_reset: bool,
    pub(crate) stop: &'a Arc<StopFlag>,
}

/// Tries `take` until the request's deadline: all the time against our own processes, shortly against other drivers.
/// Tells `take` whether to request the release. Not every try requests it, because each request wakes the holder. The
/// interval between two tries grows. A request that the holder receives at once makes it short again.
///
/// # Errors
/// Busy with the likely owner, Denied, NoReader, Cancelled, TimedOut while another slot is opened: [`TransportError`],
/// never with anything sent.
pub(crate) fn wait_for(
    info: &ReaderInfo,
    opener: &dyn DeviceOpener,
    request: ClaimRequest<'_>,
    mut take: impl FnMut(bool) -> Result<Arc<ReaderClaim>, ClaimError>,
) -> Result<Arc<ReaderClaim>, TransportError> {
    let timeout = Instant::now() + FOREIGN_CLAIM_TIMEOUT;
    let mut tries = Backoff::new(RETRY_INTERVALS.0, RETRY_INTERVALS.1);
    let mut pauses = Backoff::new(RELEASE_REQUEST_INTERVALS.0, RELEASE_REQUEST_INTERVALS.1);
    let mut next_request = Instant::now();
    loop {
        let now = Instant::now();
        let request_release = request.request_release && now >= next_request;
        let taken = match take(request_release) {
            Ok(reader_claim) => return Ok(reader_claim),
            Err(taken) => taken,
        };
        if request_release {
            next_request = now + pauses.next_delay();
            if matches!(taken, ClaimError::OtherProcess) {
                tries.reset();
            }
        }
        let deadline = match &taken {
            ClaimError::OtherProcess | ClaimError::Opening => request.deadline,
            ClaimError::Open(OpenError::Busy(_)) => request.deadline.min(timeout),
            ClaimError::Open(_) => now,
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(claim_failure(info, opener, taken));
        }
        let _ = wait_readable(
            &[],
            request.stop,
            Some(deadline.min(now + tries.next_delay())),
        );
        if request.stop.is_set() {
            let what = format!("reader {}: the call was aborted", info.interface.name);
            return Err(TransportError::before_card(
                TransportErrorKind::Cancelled,
                what,
            ));
        }
    }
}

fn claim_failure(
    info: &ReaderInfo,
    opener: &dyn DeviceOpener,
    taken: ClaimError,
) -> TransportError {
    match taken {
        ClaimError::OtherProcess => {
            let what = "another program uses it through this module and did not let go in time";
            with_reader_name(info, OpenError::Busy(what.to_owned()))
        }
        ClaimError::Opening => {
            let name = &info.interface.name;
            let what = format!("reader {name}: it is still being opened for another of its slots");
            TransportError::before_card(TransportErrorKind::TimedOut, what)
        }
        ClaimError::Open(OpenError::Busy(what)) => {
            let what = opener.owner(info).unwrap_or(what);
            with_reader_name(info, OpenError::Busy(what))
        }
        ClaimError::Open(error) => with_reader_name(info, error),
    }
}

fn with_reader_name(info: &ReaderInfo, error: OpenError) -> TransportError {
    let error = TransportError::from(error);
    TransportError {
        what: format!("reader {}: {}", info.interface.name, error.what),
        ..error
    }
}
