//! Having a reader to oneself: the lock among our own processes, then the claim against all others.

use std::{
    fmt,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, TransportError, TransportErrorKind};

use super::{
    lock::{Lock, Locks, record::Record},
    open::{self, OpenError, Stack},
    signal::Signal,
    transfer::{EndpointAddress, UsbInterface},
    transport::ReaderInterface,
};
use crate::{
    reader::ReaderId,
    wait::{Stop, readable},
};

/// How long somebody with another driver is given to let go of a reader.
const FOREIGN: Duration = Duration::from_secs(2);
/// Between two tries for a reader that somebody has.
const AGAIN: Duration = Duration::from_millis(2);

/// Where a reader is, from one plugging in to the next.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Its name within the process.
    pub(crate) id: ReaderId,
    /// Its name among processes.
    pub(crate) place: String,
    /// What it is, whatever port it is in.
    pub(crate) model: String,
    /// Which plugging in this is.
    pub(crate) life: String,
    /// The device's node.
    pub(crate) node: PathBuf,
    /// What it is, and where in its device.
    pub(crate) interface: ReaderInterface,
    /// Where it tells of its cards, and the packet size there.
    pub(crate) interrupt: Option<(EndpointAddress, usize)>,
    /// Its card cannot be taken out.
    pub(crate) is_fixed: bool,
}

impl Site {
    /// Whether this is the same reader in the same port, and was never unplugged.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.place == other.place && self.life == other.life
    }
}

/// Opens devices: by one of the stacks, or in a test.
pub(crate) trait Opener: fmt::Debug + Send + Sync {
    /// Claims the reader's interface; waits for nobody.
    fn open(&self, site: &Site) -> Result<Arc<dyn UsbInterface>, OpenError>;
}

impl Opener for Stack {
    fn open(&self, site: &Site) -> Result<Arc<dyn UsbInterface>, OpenError> {
        open::open(&site.node, site.interface.number, *self)
    }
}

/// What all readers of a backend share.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) opener: Box<dyn Opener>,
    pub(crate) locks: Locks,
    /// Tells the watch that a reader was claimed, and that there is somebody to knock.
    pub(crate) stir: Option<Arc<Signal>>,
}

impl Means {
    /// Wakes the watch, if there is one.
    pub(crate) fn stir(&self) {
        if let Some(stir) = &self.stir {
            stir.set();
        }
    }
}

/// A claimed reader. The claim ends with the last owner of this and of the interface's pipes, and the lock after it.
#[derive(Debug)]
pub(crate) struct Grip {
    interface: Arc<dyn UsbInterface>,
    lock: Mutex<Lock>,
    /// Somebody knocked.
    wanted: AtomicBool,
    /// What the user before left, if it was of this very plugging in.
    left: Option<Record>,
    life: String,
    uses: u64,
}

impl Grip {
    /// One try for the reader.
    pub(super) fn take(site: &Site, means: &Means, knocks: bool) -> Result<Self, Taken> {
        let mut lock = means.locks.take(&site.place, knocks).ok_or(Taken::Ours)?;
        let interface = means.opener.open(site).map_err(Taken::Open)?;
        let left = lock.record().filter(|record| record.life == site.life);
        let grip = Self {
            interface,
            uses: left.as_ref().map_or(0, |left| left.uses).wrapping_add(1),
            life: site.life.clone(),
            lock: Mutex::new(lock),
            wanted: AtomicBool::new(false),
            left,
        };
        grip.leave(grip.left.as_ref().and_then(|left| left.atr.clone()));
        Ok(grip)
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn interface(&self) -> &Arc<dyn UsbInterface> {
        &self.interface
    }

    /// The number of this use of the reader.
    pub(crate) const fn uses(&self) -> u64 {
        self.uses
    }

    /// What the user before left.
    pub(crate) const fn left(&self) -> Option<&Record> {
        self.left.as_ref()
    }

    /// Tells the next user which card is powered.
    pub(crate) fn leave(&self, atr: Option<Atr>) {
        self.lock().write(&Record {
            life: self.life.clone(),
            uses: self.uses,
            atr,
        });
    }

    /// Whether another process has asked for the reader.
    pub(crate) fn is_wanted(&self) -> bool {
        if self.lock().heard_a_knock() {
            self.wanted.store(true, Ordering::SeqCst);
        }
        self.wanted.load(Ordering::SeqCst)
    }

    /// Becomes readable at a knock.
    pub(crate) fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.lock().descriptor()
    }
}

/// Why a reader could not be had.
pub(super) enum Taken {
    /// Another process with this driver has it.
    Ours,
    Open(OpenError),
}

/// How much a reader is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Until when it is waited for.
    pub(crate) until: Instant,
    /// Whoever has it is asked to let go.
    pub(crate) knocks: bool,
    pub(crate) stop: &'a Arc<Stop>,
}

/// Tries `take` until it succeeds, as long as `wish` says: waits for our own processes to the end, for others a moment.
///
/// # Errors
/// Busy with the likely owner, Denied, NoReader, Cancelled: [`TransportError`], never with anything sent.
pub(super) fn wait_for(
    site: &Site,
    wish: Wish<'_>,
    mut take: impl FnMut() -> Result<Arc<Grip>, Taken>,
) -> Result<Arc<Grip>, TransportError> {
    let patience = Instant::now() + FOREIGN;
    loop {
        let (until, why) = match take() {
            Ok(grip) => return Ok(grip),
            Err(Taken::Ours) => (wish.until, ours(site)),
            Err(Taken::Open(error @ OpenError::Busy(_))) => {
                (wish.until.min(patience), about(site, error))
            }
            Err(Taken::Open(error)) => return Err(about(site, error)),
        };
        let now = Instant::now();
        if now >= until {
            return Err(why);
        }
        let _ = readable(&[], wish.stop, Some(until.min(now + AGAIN)));
        if wish.stop.is_set() {
            let what = format!("reader {}: the call was ended", site.interface.name);
            return Err(TransportError::before_card(
                TransportErrorKind::Cancelled,
                what,
            ));
        }
    }
}

fn ours(site: &Site) -> TransportError {
    let what = format!(
        "reader {}: another program uses it through this module and did not let go in time",
        site.interface.name
    );
    TransportError::before_card(TransportErrorKind::Busy, what)
}

fn about(site: &Site, error: OpenError) -> TransportError {
    let error = TransportError::from(error);
    TransportError {
        what: format!("reader {}: {}", site.interface.name, error.what),
        ..error
    }
}
