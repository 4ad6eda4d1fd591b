//! Hotplug sources: udev messages (kernel uevents where there is no udev), and inotify on the device nodes.
//!
//! udev's messages come once udev has set the permissions of a node. The folder of the nodes is watched as well: permissions may
//! change later, and in a container no message may come at all.
//!
//! The sender of a message is not checked. The kernel lets only network administrators send to these groups (netlink(7)), and a
//! false message has the effect of a true one: sysfs is read, or a claim is tried once more. The devices of the bus are read from
//! sysfs only.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
    },
};

use super::{
    suspend::ResumeTimer,
    sysfs::{EventSource, PortPath, UsbBus},
    udev_filter,
    uevent::Uevent,
};
use crate::fork_closed::ForkClosed;

/// Groups of the netlink socket.
const KERNEL: u32 = 1;
const UDEV: u32 = 2;
/// Exists while udev runs.
const UDEV_CONTROL: &str = "/run/udev/control";
/// Maximum length of a message. The kernel's limit is 2 KiB, udev's 8 KiB.
const MAX_MESSAGE: usize = 1 << 14;
/// Messages read in one go. The rest is read after the next wait.
const MAX_MESSAGES: usize = 1024;
/// Maximum number of watched bus folders.
const MAX_BUSES: usize = 256;

/// The changes since the last call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusChanges {
    /// The devices must be listed again.
    pub relist: bool,
    /// The permissions of nodes have changed.
    pub permissions_changed: bool,
    /// Messages were lost. Anything may have happened.
    pub overflowed: bool,
    /// Devices with an interface that another program released.
    pub unbound: Vec<PortPath>,
}

/// Reports changes from its creation on.
#[derive(Debug)]
pub struct HotplugMonitor {
    netlink: Option<ForkClosed<OwnedFd>>,
    nodes: Option<ForkClosed<OwnedFd>>,
    /// After a suspend, anything may have changed without a message.
    resume_timer: Option<ResumeTimer>,
    /// Buses may have come: their folders are watched too.
    bus: UsbBus,
}

impl HotplugMonitor {
    /// Opens the sources. Logs those that are not available.
    #[must_use]
    pub fn new(bus: &UsbBus) -> Self {
        let nodes = match bus.source() {
            EventSource::Test(told) if told.messages.is_some() && !told.nodes => None,
            // Twice, because the folder may have been made in between.
            _ => watch(bus.nodes())
                .and_then(|nodes| add_watches(&nodes, bus.nodes()).map(|()| nodes))
                .inspect_err(|errno| {
                    let nodes = bus.nodes().display();
                    tracing::debug!("usb: {nodes} cannot be watched ({errno})");
                })
                .ok(),
        };
        Self {
            netlink: messages(bus.source()).map(ForkClosed::new),
            nodes: nodes.map(ForkClosed::new),
            resume_timer: ResumeTimer::new(bus),
            bus: bus.clone(),
        }
    }

    /// Returns whether messages arrive: when a device is ready, and when a claim ends.
    #[must_use]
    pub const fn reports_unbind(&self) -> bool {
        self.netlink.is_some()
    }

    /// Returns whether every new device is reported.
    #[must_use]
    pub const fn reports_arrivals(&self) -> bool {
        self.netlink.is_some() || self.nodes.is_some()
    }

    /// Readable when [`HotplugMonitor::drain`] may return changes.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sources = [self.netlink.as_ref(), self.nodes.as_ref()];
        let alarm = self.resume_timer.iter().map(ResumeTimer::as_fd);
        let sources = sources.into_iter().flatten();
        sources.map(|source| source.as_fd()).chain(alarm)
    }

    /// Returns what has happened. Never waits.
    #[must_use]
    pub fn drain(&mut self) -> BusChanges {
        if let EventSource::Test(told) = self.bus.source() {
            told.drains.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(alarm) = &self.resume_timer {
            alarm.clear();
        }
        let mut change = BusChanges::default();
        if let Some(netlink) = &self.netlink
            && let Err(errno) = receive(netlink, &mut change)
        {
            tracing::warn!("usb: device messages can no longer be received ({errno})");
            self.netlink = None;
        }
        if let Some(nodes) = &self.nodes {
            read_node_events(nodes, self.bus.nodes(), &mut change);
        }
        change
    }
}

/// Opens the socket for messages, if there is one.
fn messages(news: &EventSource) -> Option<OwnedFd> {
    if let EventSource::Test(told) = news {
        return told.messages.as_ref()?.try_clone().ok();
    }
    let group = if Path::new(UDEV_CONTROL).exists() {
        UDEV
    } else {
        KERNEL
    };
    let listening = listen(group).inspect_err(|errno| {
        tracing::debug!(
            "usb: device messages cannot be received ({errno}); only the folder of the device nodes is watched"
        );
    });
    listening.ok()
}

fn listen(group: u32) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )?;
    // Before the socket is bound: nothing comes unfiltered.
    if let Err(errno) = udev_filter::only_usb(socket.as_fd()) {
        tracing::debug!("usb: messages of other subsystems cannot be filtered ({errno})");
    }
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, group))?;
    Ok(socket)
}

/// Reads the messages that have come. An error is one the socket does not recover from.
fn receive(socket: &OwnedFd, change: &mut BusChanges) -> Result<(), Errno> {
    let mut buffer = vec![0_u8; MAX_MESSAGE];
    for _ in 0..MAX_MESSAGES {
        // TRUNC returns the whole length, also of a message that did not fit.
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        match rustix::net::recv(socket, &mut buffer, flags) {
            Ok((_, length)) => match buffer.get(..length).map(Uevent::parse) {
                Some(Some(Uevent::DeviceChanged)) => change.relist = true,
                Some(Some(Uevent::InterfaceUnbound(port))) => change.unbound.push(port),
                Some(None) => {}
                None => change.overflowed = true,
            },
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => {
                tracing::debug!("usb: device messages were lost ({errno})");
                change.overflowed = true;
                // More came than the socket holds; what it holds is still there.
                if errno != Errno::NOBUFS {
                    return Err(errno);
                }
            }
        }
    }
    Ok(())
}

fn watch(folder: &Path) -> Result<OwnedFd, Errno> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    add_watches(&inotify, folder)?;
    Ok(inotify)
}

/// Watches the folder and those of the buses in it. Watching a folder again changes nothing. While the folder does not exist,
/// watches the nearest existing folder above it.
fn add_watches(inotify: &OwnedFd, folder: &Path) -> Result<(), Errno> {
    let what = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ATTRIB | WatchFlags::ONLYDIR;
    match inotify::add_watch(inotify, folder, what) {
        Err(Errno::NOENT) => watch_ancestor(inotify, folder)?,
        added => drop(added?),
    }
    let buses = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for bus in buses.take(MAX_BUSES) {
        let _ = inotify::add_watch(inotify, bus.path(), what);
    }
    Ok(())
}

/// Watches the nearest existing folder above `folder` for new folders.
fn watch_ancestor(inotify: &OwnedFd, folder: &Path) -> Result<(), Errno> {
    let coming = WatchFlags::CREATE | WatchFlags::ONLYDIR;
    for above in folder.ancestors().skip(1) {
        match inotify::add_watch(inotify, above, coming) {
            Err(Errno::NOENT) => {}
            added => return added.map(drop),
        }
    }
    Err(Errno::NOENT)
}

/// Takes in which nodes came, went or changed their rights.
fn read_node_events(inotify: &OwnedFd, folder: &Path, change: &mut BusChanges) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut is_new = false;
    for _ in 0..MAX_MESSAGES {
        match events.next() {
            Ok(event) => {
                let what = event.events();
                let is_right = what == ReadFlags::ATTRIB;
                change.permissions_changed |= is_right;
                change.relist |= !is_right;
                let is_folder = what.contains(ReadFlags::CREATE | ReadFlags::ISDIR);
                is_new |= is_folder || what.contains(ReadFlags::QUEUE_OVERFLOW);
            }
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if is_new {
        let _ = add_watches(inotify, folder);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::net::{SendFlags, sockopt};

    use super::*;

    /// A message of udev's about a subsystem with this hash.
    fn udev(subsystem: &str, hash: u32) -> Vec<u8> {
        let device = "/devices/pci0000:00/0000:00:14.0/usb3/3-1";
        let properties = format!("ACTION=add\0DEVPATH={device}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0");
        let length = u32::try_from(properties.len()).unwrap();
        let mut message = b"libudev\0\xFE\xED\xCA\xFE".to_vec();
        message.extend([40, 40, length].map(u32::to_ne_bytes).concat());
        message.extend([hash, 0, 0, 0].map(u32::to_be_bytes).concat());
        message.extend(properties.as_bytes());
        message
    }

    /// Runs a program in its own network namespace, in which it may send any message. Returns its output, or `None` if the
    /// program fails or there is no such namespace.
    fn alone(program: &str, arguments: &[&str]) -> Option<String> {
        let mut unshare = Command::new("unshare");
        let ran = unshare.args(["-rn", program]).args(arguments).output();
        let ran = ran.ok().filter(|output| output.status.success())?;
        String::from_utf8(ran.stdout).ok()
    }

    #[test]
    fn udev_messages_are_received_and_filtered_and_their_loss_is_noticed() {
        if alone("true", &[]).is_none() {
            return;
        }
        let this = std::env::current_exe().unwrap();
        let test = "usb::discovery::hotplug::tests::in_a_network_of_its_own";
        let ran = alone(this.to_str().unwrap(), &["--exact", test, "--ignored"]);
        assert!(ran.is_some_and(|said| said.contains("1 passed")));
    }

    #[test]
    #[ignore = "run by the test above"]
    fn in_a_network_of_its_own() {
        let ours = listen(UDEV).unwrap();
        let theirs = listen(0).unwrap();
        let group = SocketAddrNetlink::new(0, UDEV);
        let send = |message: &[u8]| {
            let sent = rustix::net::sendto(&theirs, message, SendFlags::empty(), &group);
            assert!(matches!(sent, Ok(_) | Err(Errno::NOBUFS)), "{sent:?}");
        };
        let heard = || {
            let mut change = BusChanges::default();
            receive(&ours, &mut change).unwrap();
            (change.relist, change.overflowed)
        };
        assert_eq!(heard(), (false, false));
        send(&udev("tty", 0x8AFA_90C8));
        let input = rustix::event::PollFlags::IN;
        let mut polled = [rustix::event::PollFd::new(&ours, input)];
        let now = rustix::time::Timespec::default();
        assert_eq!(rustix::event::poll(&mut polled, Some(&now)), Ok(0));
        send(&udev("usb", 0x0577_C5E5));
        assert_eq!(heard(), (true, false));
        sockopt::set_socket_recv_buffer_size(&ours, 1).unwrap();
        for _ in 0..100 {
            send(&udev("usb", 0x0577_C5E5));
        }
        assert_eq!(heard(), (true, true), "some were read, and some lost");
        assert_eq!(heard(), (false, false));
        send(&udev("usb", 0x0577_C5E5));
        assert_eq!(heard(), (true, false), "it goes on");
    }
}
