//! Another program that pcscd, or udev, tells of the same events: the moment from which the module could know of them.

use std::{
    fs,
    mem::MaybeUninit,
    path::PathBuf,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use pcsc::{Context, ReaderState, Scope, State};
use rustix::{
    fs::{
        Access, access,
        inotify::{self, WatchFlags},
    },
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recv, socket_with,
    },
};

/// The groups of the kernel's own messages, and of udev's.
const KERNEL: u32 = 1;
const UDEV: u32 = 2;

/// Seconds since 1970: the card's process tells the time of its events so.
pub fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// The times at which pcscd told a program of its own of each insertion and removal in the rig's reader.
pub fn pcscd_events() -> Receiver<f64> {
    let (told, times) = mpsc::channel();
    let context = Context::establish(Scope::User).unwrap();
    let readers = context.list_readers_owned().unwrap();
    // Its empty twin has no events.
    let reader = readers.into_iter().min().unwrap();
    let mut states = [ReaderState::new(reader, State::UNAWARE)];
    context.get_status_change(None, &mut states).unwrap();
    thread::spawn(move || follow(&context, states, &told));
    times
}

fn follow(context: &Context, mut states: [ReaderState; 1], told: &Sender<f64>) {
    loop {
        let before = states[0].event_state().contains(State::PRESENT);
        states[0].sync_current_state();
        context.get_status_change(None, &mut states).unwrap();
        if states[0].event_state().contains(State::PRESENT) != before && told.send(now()).is_err() {
            return;
        }
    }
}

/// Where the nodes of USB devices are, in a folder for each bus.
const NODES: &str = "/dev/bus/usb";

/// The times at which a program of its own was told of the USB.
pub struct UsbEvents {
    /// By the kernel: a device has come or gone.
    pub moved: Receiver<f64>,
    /// By the kernel: a node has come that this user may open, or may open now. udev has got so far with its rules then.
    pub may_be_opened: Receiver<f64>,
    /// By udev, which has done all it does: a device has come or gone.
    pub told_by_udev: Receiver<f64>,
}

impl UsbEvents {
    pub fn follow() -> Self {
        Self {
            moved: uevents(KERNEL),
            may_be_opened: openings(),
            told_by_udev: uevents(UDEV),
        }
    }

    /// Forgets those that have come.
    pub fn forget(&self) {
        for events in [&self.moved, &self.may_be_opened, &self.told_by_udev] {
            while events.try_recv().is_ok() {}
        }
    }
}

fn uevents(group: u32) -> Receiver<f64> {
    let (told, times) = mpsc::channel();
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT)).unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, group)).unwrap();
    thread::spawn(move || {
        let mut message = vec![0_u8; 1 << 14];
        loop {
            let (length, _) = recv(&socket, &mut message, RecvFlags::empty()).unwrap();
            let at = now();
            let has = |text: &str| {
                let windows = message[..length].windows(text.len());
                windows.into_iter().any(|window| window == text.as_bytes())
            };
            let moves = has("ACTION=add\0") || has("ACTION=remove\0");
            if moves && has("DEVTYPE=usb_device\0") && told.send(at).is_err() {
                return;
            }
        }
    });
    times
}

fn openings() -> Receiver<f64> {
    let (told, times) = mpsc::channel();
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let buses = fs::read_dir(NODES).unwrap().map(|bus| bus.unwrap().path());
    let what = WatchFlags::CREATE | WatchFlags::ATTRIB;
    let watched: Vec<(i32, PathBuf)> = buses
        .map(|bus| (inotify::add_watch(&inotify, &bus, what).unwrap(), bus))
        .collect();
    thread::spawn(move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&inotify, &mut buffer);
        loop {
            let event = events.next().unwrap();
            let at = now();
            let bus = watched.iter().find(|(number, _)| *number == event.wd());
            let (Some((_, bus)), Some(name)) = (bus, event.file_name()) else {
                continue;
            };
            let node = bus.join(name.to_str().unwrap());
            if access(&node, Access::WRITE_OK).is_ok() && told.send(at).is_err() {
                return;
            }
        }
    });
    times
}
