//! Who says that something has changed on the bus: udev, the kernel, or the folder of the nodes.
//!
//! Where udev runs its messages count: they come when it has set the rights of a node. Without it the kernel's own do.
//! The folder of the nodes is watched as well, because rights may be granted later, and because no message may come at
//! all: into a container, for one.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
    },
    time::ClockId,
};

use super::{
    sysfs::{Bus, Port},
    uevent::Uevent,
};

/// Groups of the netlink socket.
const KERNEL: u32 = 1;
const UDEV: u32 = 2;
/// There while udev runs.
const UDEV_CONTROL: &str = "/run/udev/control";
/// A message is no longer; the kernel's own limit is 2 KiB, udev's 8 KiB.
const MESSAGE: usize = 1 << 14;
/// Messages read at one go; more are looked for after the next wait.
const AT_ONCE: usize = 1024;
/// Folders of buses that are watched.
const BUSES: usize = 256;

/// What has happened since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The devices are to be listed anew.
    pub look: bool,
    /// Messages were lost: anything may have happened.
    pub lost: bool,
    /// Devices somebody has let go of.
    pub freed: Vec<Port>,
}

/// Listens for changes from the moment it is made.
#[derive(Debug)]
pub struct Arrivals {
    netlink: Option<OwnedFd>,
    nodes: Option<OwnedFd>,
    /// Buses may have come: their folders are watched too.
    folder: std::path::PathBuf,
}

impl Arrivals {
    /// Begins to listen. What cannot be listened to is done without, and said in the log.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        let group = if Path::new(UDEV_CONTROL).exists() {
            UDEV
        } else {
            KERNEL
        };
        let netlink = if bus.is_real() {
            listen(group)
        } else {
            Err(Errno::AFNOSUPPORT)
        };
        let netlink = netlink.inspect_err(|errno| {
            tracing::debug!(
                "usb: no messages of devices ({errno}); the folder of their nodes has to do"
            );
        });
        let nodes = watch(bus.nodes()).inspect_err(|errno| {
            tracing::debug!("usb: {} cannot be watched ({errno})", bus.nodes().display());
        });
        Self {
            netlink: netlink.ok(),
            nodes: nodes.ok(),
            folder: bus.nodes().to_owned(),
        }
    }

    /// Whether a claim that ends is told.
    #[must_use]
    pub const fn tells_of_claims(&self) -> bool {
        self.netlink.is_some()
    }

    /// Whether a device that comes is surely told.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.netlink.is_some() || self.nodes.is_some()
    }

    /// Readable when [`Arrivals::drain`] may have something to say.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sources = [self.netlink.as_ref(), self.nodes.as_ref()];
        sources.into_iter().flatten().map(|source| source.as_fd())
    }

    /// What has happened; never waits.
    #[must_use]
    pub fn drain(&mut self) -> Change {
        let mut change = Change::default();
        if let Some(netlink) = &self.netlink {
            receive(netlink, &mut change);
        }
        if let Some(nodes) = &self.nodes {
            change.look |= look_at(nodes, &self.folder);
        }
        change
    }
}

fn listen(group: u32) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, group))?;
    Ok(socket)
}

/// Reads the messages that have come. Whoever sent them, they only say where to look.
fn receive(socket: &OwnedFd, change: &mut Change) {
    let mut buffer = vec![0_u8; MESSAGE];
    for _ in 0..AT_ONCE {
        match rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => match Uevent::parse(buffer.get(..length).unwrap_or(&[])) {
                Some(Uevent::Changed) => change.look = true,
                Some(Uevent::Freed(port)) => change.freed.push(port),
                None => {}
            },
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            Err(errno) => {
                // ENOBUFS, nearly always: more came than the socket holds.
                tracing::debug!("usb: messages of devices were lost ({errno})");
                change.lost = true;
            }
        }
    }
}

fn watch(folder: &Path) -> Result<OwnedFd, Errno> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    add(&inotify, folder)?;
    Ok(inotify)
}

/// Watches the folder and those of the buses in it; one that is watched already stays so.
fn add(inotify: &OwnedFd, folder: &Path) -> Result<(), Errno> {
    let what = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
    inotify::add_watch(inotify, folder, what)?;
    let buses = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for bus in buses.take(BUSES) {
        let _ = inotify::add_watch(inotify, bus.path(), what);
    }
    Ok(())
}

/// Whether a node came, went or changed its rights.
fn look_at(inotify: &OwnedFd, folder: &Path) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut happened = false;
    let mut is_new = false;
    for _ in 0..AT_ONCE {
        match events.next() {
            Ok(event) => {
                happened = true;
                is_new |= event
                    .events()
                    .intersects(ReadFlags::CREATE | ReadFlags::QUEUE_OVERFLOW);
            }
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if is_new {
        let _ = add(inotify, folder);
    }
    happened
}

/// Notices that the machine was asleep: the time since its start went on, the clock of its programs did not.
#[derive(Debug, Default)]
pub struct Slept {
    asleep: Option<Duration>,
}

/// A sleep is longer than this; reading two clocks takes less.
const SLEEP: Duration = Duration::from_millis(500);

impl Slept {
    /// Whether the machine has slept since this was asked last.
    #[must_use]
    pub fn has_slept(&mut self) -> bool {
        self.is_new(time(ClockId::Boottime).saturating_sub(time(ClockId::Monotonic)))
    }

    /// The same, told how long the machine has slept in all.
    fn is_new(&mut self, asleep: Duration) -> bool {
        let before = self.asleep.replace(asleep);
        before.is_some_and(|before| asleep > before + SLEEP)
    }
}

fn time(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
