//! Events of the bus and of the machine that are reported late, twice, wrongly, or not at all.

use std::{
    os::unix::net::UnixDatagram,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, TransportErrorKind};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};

use super::{
    answered,
    fixture::{
        FakeMachine, STEP_TIMEOUT, connect, echo, holds_card, id, reader, single_reader,
        take_snapshot,
    },
    watch::{WatchThread, key, wait_until, watch_with_waiter},
};
use crate::{
    backend::Backend as _,
    reader::ReaderSnapshot,
    usb::{
        backend::UsbBackend,
        discovery::{
            hotplug::{BusChanges, HotplugMonitor},
            sysfs::{TestEvents, UsbBus},
        },
        host::fake::{FakeReader, Fault, reader::FakeCard},
    },
};

/// rustix has no name for protocol 0 of netlink.
const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;

/// A message as the kernel sends it.
fn message(action: &str, subsystem: &str, device: &str) -> Vec<u8> {
    let path = format!("/devices/pci0000:00/0000:00:14.0/usb3/{device}");
    format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
        .into_bytes()
}

/// A bus whose messages only the test sends.
pub(super) struct Tale {
    pub(super) machine: FakeMachine,
    pub(super) told: Arc<TestEvents>,
    kernel: UnixDatagram,
}

impl Tale {
    pub(super) fn new(test: &str) -> Self {
        let (kernel, ours) = UnixDatagram::pair().unwrap();
        let told = TestEvents {
            messages: Some(ours.into()),
            ..TestEvents::default()
        };
        Self {
            machine: FakeMachine::new(test),
            told: Arc::new(told),
            kernel,
        }
    }

    /// With a token in port `3-1`.
    pub(super) fn with_key(test: &str) -> (Self, FakeReader) {
        let tale = Self::new(test);
        let (reader, config) = key();
        tale.machine.plug("3-1", &reader, &config);
        (tale, reader)
    }

    pub(super) fn program(&self) -> UsbBackend {
        self.machine.new_backend_on(self.bus())
    }

    pub(super) fn program_without_threads(&self) -> UsbBackend {
        self.machine.new_backend_without_threads_on(self.bus())
    }

    fn bus(&self) -> UsbBus {
        self.machine.bus().with_test_events(Arc::clone(&self.told))
    }

    pub(super) fn tell(&self, action: &str, device: &str) {
        self.kernel.send(&message(action, "usb", device)).unwrap();
    }

    fn lists(&self) -> u64 {
        self.told.lists.load(Ordering::SeqCst)
    }

    pub(super) fn looks(&self) -> u64 {
        self.told.drains.load(Ordering::SeqCst)
    }
}

/// Returns the first of the next snapshots for which `is_so` returns true.
#[track_caller]
pub(super) fn wait_for(
    followed: &WatchThread,
    is_so: impl Fn(&ReaderSnapshot) -> bool,
) -> ReaderSnapshot {
    let end = Instant::now() + STEP_TIMEOUT;
    loop {
        let snapshot = followed.snapshot();
        if is_so(&snapshot) {
            return snapshot;
        }
        assert!(Instant::now() < end, "{snapshot:?}");
    }
}

/// A netlink socket that holds little, and what makes the kernel send it more than that: confirmations of as many
/// messages as can be sent at one go, none of which does anything.
fn overflowing() -> (rustix::fd::OwnedFd, impl Fn(&rustix::fd::OwnedFd)) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        NETLINK_ROUTE,
    )
    .unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1).unwrap();
    let send = |socket: &rustix::fd::OwnedFd| {
        // nlmsg_len 16, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK (netlink(7)).
        let nothing = [16_u32, 0x0005_0001, 0, 0].map(u32::to_ne_bytes).concat();
        let nothings = nothing.repeat(1000);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(socket, &nothings, SendFlags::empty(), &kernel).unwrap();
    };
    (socket, send)
}

#[test]
fn lost_messages_are_reported_once_and_the_monitor_continues() {
    let (socket, overflow) = overflowing();
    let machine = FakeMachine::new("lost");
    let told = TestEvents {
        messages: Some(socket.try_clone().unwrap()),
        ..TestEvents::default()
    };
    let mut arrivals = HotplugMonitor::new(&machine.bus().with_test_events(Arc::new(told)));
    assert_eq!(arrivals.drain(), BusChanges::default());
    for _ in 0..3 {
        overflow(&socket);
        assert!(arrivals.drain().overflowed);
        assert_eq!(arrivals.drain(), BusChanges::default());
    }
    assert!(arrivals.reports_unbind(), "it is still listened to");
}

#[test]
fn lost_messages_cause_a_new_listing() {
    let (socket, overflow) = overflowing();
    let machine = FakeMachine::new("overflow");
    let told = Arc::new(TestEvents {
        messages: Some(socket.try_clone().unwrap()),
        ..TestEvents::default()
    });
    let program = machine.new_backend_on(machine.bus().with_test_events(Arc::clone(&told)));
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    // A fast reader loses no message.
    let end = Instant::now() + STEP_TIMEOUT;
    let snapshot = loop {
        assert!(Instant::now() < end, "nothing was ever lost");
        overflow(&socket);
        if let Some(snapshot) = followed.snapshot_within(Duration::from_millis(50)) {
            break snapshot;
        }
    };
    assert!(holds_card(single_reader(&snapshot)));
}

#[test]
fn oversized_uevent_counts_as_a_lost_one() {
    let tale = Tale::new("long");
    let mut arrivals =
        HotplugMonitor::new(&tale.machine.bus().with_test_events(Arc::clone(&tale.told)));
    let mut long = message("add", "usb", "3-1");
    long.resize(20_000, b'x');
    tale.kernel.send(&long).unwrap();
    let lost = BusChanges {
        overflowed: true,
        ..BusChanges::default()
    };
    assert_eq!(arrivals.drain(), lost);
    assert_eq!(arrivals.drain(), BusChanges::default());
    assert!(arrivals.reports_arrivals());
}

#[test]
fn false_uevents_cause_a_read_of_sysfs_and_nothing_else() {
    let (tale, _) = Tale::with_key("lies");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let mut card = connect(&program, "3-1");
    let epoch = card.epoch();
    for (action, device) in [
        ("remove", "3-1"),
        ("unbind", "3-1/3-1:1.0"),
        ("add", "3-7"),
        ("add", "../../3-1"),
        ("unbind", "nothing"),
        ("change", "3-1"),
    ] {
        let lists = tale.lists();
        tale.tell(action, device);
        if action != "unbind" {
            wait_until(|| tale.lists() > lists);
        }
    }
    for noise in [&b""[..], b"\0", b"libudev\0", &[0xFF; 4000]] {
        tale.kernel.send(noise).unwrap();
    }
    assert_eq!(
        echo(&mut *card, b"still here").unwrap(),
        answered(b"still here")
    );
    assert_eq!((card.epoch(), card.is_closed()), (epoch, false));
    assert!(
        followed
            .snapshot_within(Duration::from_millis(50))
            .is_none()
    );
    drop(card);
    assert!(connect_once(&program), "and so is the reader");
}

#[test]
fn messages_of_other_subsystems_cause_no_listing_and_one_drain_for_many() {
    let (tale, reader) = Tale::with_key("flood");
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    assert!(holds_card(single_reader(&watch.next_snapshot().unwrap())));
    reader.device().forget();
    let (lists, looks) = (tale.lists(), tale.looks());
    let other = message("change", "power_supply", "3-1");
    tale.kernel.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while tale.kernel.send(&other).is_ok() {
        sent += 1;
        if sent == 100 {
            break;
        }
    }
    assert!(sent > 1, "several are told of at one go");
    let _ = take_snapshot(&mut *watch);
    assert_eq!(tale.lists(), lists, "nothing was listed");
    assert_eq!(tale.looks(), looks + 1, "{sent} messages");
    assert_eq!(reader.device().counts(), Default::default());
}

#[test]
fn idle_usb_watch_makes_no_wakeups() {
    let tale = Tale::new("idle");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    tale.machine.plug("3-1", &slot, &reader());
    let (reader, config) = key();
    tale.machine.plug("3-2", &reader, &config);
    let program = tale.program();
    let followed = WatchThread::new(&program);
    let snapshot = wait_for(&followed, |snapshot| snapshot.readers.len() == 2);
    assert!(snapshot.readers.iter().all(holds_card));
    wait_until(|| slot.device().counts().interrupt > 0);
    let calm = || {
        let before = (tale.looks(), slot.messages().len());
        thread::sleep(Duration::from_millis(500));
        before == (tale.looks(), slot.messages().len())
    };
    wait_until(calm);
    assert!(calm(), "and it stays so");
}

#[test]
fn device_event_between_two_waits_is_reported_by_the_next_wait() {
    let tale = Tale::new("between");
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
    let (reader, config) = key();
    tale.machine.plug("3-1", &reader, &config);
    tale.tell("add", "3-1");
    assert!(holds_card(single_reader(&watch.next_snapshot().unwrap())));
    tale.machine.unplug("3-1");
    tale.tell("remove", "3-1");
    assert!(watch.next_snapshot().unwrap().readers.is_empty());
}

#[test]
fn a_device_that_changes_its_configuration_is_read_again() {
    let (tale, _) = Tale::with_key("configuration");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(holds_card(single_reader(&followed.snapshot())));
    let configure = |number: &str| {
        let file = tale.machine.folder().join("sys/3-1/bConfigurationValue");
        std::fs::write(file, number).unwrap();
        tale.tell("change", "3-1");
    };
    configure("2\n");
    assert!(followed.snapshot().readers.is_empty());
    configure("1\n");
    assert!(holds_card(single_reader(&followed.snapshot())));
}

#[test]
fn two_devices_plugged_in_at_once_are_both_reported() {
    let tale = Tale::new("two");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    let ports = ["3-1", "3-2.4"];
    let readers = ports.map(|port| {
        let (reader, config) = key();
        tale.machine.plug(port, &reader, &config);
        reader
    });
    ports.iter().for_each(|port| tale.tell("add", port));
    let snapshot = wait_for(&followed, |snapshot| snapshot.readers.len() == 2);
    let shown: Vec<_> = snapshot.readers.iter().map(|state| &state.id).collect();
    assert_eq!(shown, [&id("3-1"), &id("3-2.4")]);
    for (port, reader) in ports.iter().zip(&readers) {
        let mut card = connect(&program, port);
        assert_eq!(
            echo(&mut *card, port.as_bytes()).unwrap(),
            answered(port.as_bytes())
        );
        assert_eq!(reader.card_commands(0), 1);
    }
}

#[test]
fn device_replugged_between_two_queries_is_another_at_any_address() {
    for (test, address) in [("same", 9), ("next", 10)] {
        let tale = Tale::new(&format!("back.{test}"));
        let (reader, config) = key();
        tale.machine.plug_at("3-1", 9, &reader, &config);
        let program = tale.program();
        let mut watch = watch_with_waiter(&program);
        let first = single_reader(&watch.next_snapshot().unwrap()).clone();
        let mut before = connect(&program, "3-1");
        // The kernel never gives the number of a folder twice; a folder held open keeps its own.
        let held = std::fs::File::open(tale.machine.folder().join("sys/3-1")).unwrap();
        tale.machine.unplug("3-1");
        let (reader, config) = key();
        tale.machine.plug_at("3-1", address, &reader, &config);
        drop(held);
        tale.tell("remove", "3-1");
        tale.tell("add", "3-1");
        // That the first has left is reported before the second has been polled, or with it.
        let mut snapshot = watch.next_snapshot().unwrap();
        if snapshot.readers.is_empty() {
            snapshot = watch.next_snapshot().unwrap();
        }
        let second = single_reader(&snapshot).clone();
        assert_eq!((&first.id, &first.presence), (&second.id, &second.presence));
        assert_ne!(first.change_count, second.change_count, "{test}");
        let error = echo(&mut *before, b"old").unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
        assert!(before.is_closed());
        let mut after = connect(&program, "3-1");
        assert_eq!(echo(&mut *after, b"new").unwrap(), answered(b"new"));
        drop(before);
        assert_eq!(echo(&mut *after, b"own").unwrap(), answered(b"own"));
    }
}

#[test]
fn device_unplugged_before_it_is_opened_is_not_reported_and_not_retried() {
    let (tale, reader) = Tale::with_key("early");
    reader.device().leave();
    let program = tale.program();
    let followed = WatchThread::following(&program);
    let snapshot = followed.snapshot();
    assert!(snapshot.readers.is_empty());
    let looks = tale.looks();
    assert!(
        followed
            .snapshot_within(Duration::from_millis(300))
            .is_none()
    );
    assert!(tale.looks() <= looks + 1, "nothing to wake up for");
    let refused = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
    assert_eq!(
        refused.map(drop).unwrap_err().kind,
        TransportErrorKind::NoReader
    );
    tale.machine.unplug("3-1");
    let (reader, config) = key();
    tale.machine.plug("3-1", &reader, &config);
    tale.tell("add", "3-1");
    let snapshot = wait_for(&followed, |snapshot| !snapshot.readers.is_empty());
    assert!(holds_card(single_reader(&snapshot)) && snapshot.error.is_none());
}

#[test]
fn device_unplugged_at_any_step_of_connect_is_not_reported_and_the_next_works() {
    for step in 0..10 {
        let tale = Tale::new(&format!("step.{step}"));
        let (reader, config) = key();
        tale.machine.plug("3-1", &reader, &config);
        let program = tale.program();
        let mut watch = watch_with_waiter(&program);
        let _ = take_snapshot(&mut *watch);
        reader.device().inject(Fault::Disconnected, step);
        let connected = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
        match connected {
            Err(error) => assert_eq!(error.kind, TransportErrorKind::NoReader, "{step}: {error}"),
            Ok(mut card) => {
                let error = (0..10)
                    .find_map(|_| echo(&mut *card, b"data").err())
                    .unwrap();
                assert_eq!(error.kind, TransportErrorKind::NoReader, "{step}: {error}");
                assert!(card.is_closed());
            }
        }
        assert!(!reader.device().claimed());
        tale.machine.unplug("3-1");
        let (reader, config) = key();
        tale.machine.plug("3-1", &reader, &config);
        tale.tell("add", "3-1");
        assert!(
            holds_card(single_reader(&take_snapshot(&mut *watch))),
            "{step}"
        );
        let mut card = connect(&program, "3-1");
        assert_eq!(echo(&mut *card, b"data").unwrap(), answered(b"data"));
    }
}

#[test]
fn b20_address_given_to_another_device_is_not_opened_for_the_first() {
    let tale = Tale::new("address");
    let (reader, config) = key();
    tale.machine.plug_at("3-1", 9, &reader, &config);
    let program = tale.program();
    let mut watch = watch_with_waiter(&program);
    let _ = take_snapshot(&mut *watch);
    let held = std::fs::File::open(tale.machine.folder().join("sys/3-1")).unwrap();
    tale.machine.unplug("3-1");
    let (other, config) = key();
    tale.machine.plug_at("3-1", 9, &other, &config);
    drop(held);
    // The devices have not been listed since.
    let refused = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
    assert!(!other.device().claimed() && other.messages().is_empty());
    tale.tell("add", "3-1");
    assert!(holds_card(single_reader(&take_snapshot(&mut *watch))));
    assert!(connect_once(&program));
}

#[test]
fn plugging_and_unplugging_in_any_order_ends_with_the_readers_present() {
    let tale = Tale::new("storm");
    let program = tale.program();
    let followed = WatchThread::new(&program);
    assert!(followed.snapshot().readers.is_empty());
    for round in 0..40_u64 {
        let (reader, config) = key();
        tale.machine.plug("3-1", &reader, &config);
        tale.tell("add", "3-1");
        if round % 3 != 0 {
            thread::sleep(Duration::from_micros(round * 50));
        }
        tale.machine.unplug("3-1");
        tale.tell("remove", "3-1");
    }
    let (reader, config) = key();
    tale.machine.plug("3-1", &reader, &config);
    tale.tell("add", "3-1");
    wait_for(&followed, |snapshot| {
        snapshot.readers.iter().any(holds_card) && connect_once(&program)
    });
    drop(followed);
    assert_eq!(reader.device().queues(), 0, "nothing is left behind");
}

/// Returns whether the present reader can be used.
fn connect_once(program: &UsbBackend) -> bool {
    let connected = program.connect(&id("3-1"), Call::within(STEP_TIMEOUT));
    connected.is_ok_and(|mut card| echo(&mut *card, b"data").is_ok())
}
