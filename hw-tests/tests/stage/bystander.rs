//! Another program that pcscd, or udev, tells of the same events: the moment from which the module could know of them.

use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use pcsc::{Context, ReaderState, Scope, State};
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
    netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
    recv, socket_with,
};

/// The group of udev's own messages.
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

/// The times at which udev told a program of its own that a USB device has come or gone.
pub fn udev_events() -> Receiver<f64> {
    let (told, times) = mpsc::channel();
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT)).unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, UDEV)).unwrap();
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
