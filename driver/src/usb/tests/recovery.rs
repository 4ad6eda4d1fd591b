//! The cost of a recovery, and the state that one claim leaves to the next.

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Secret, TransportErrorKind};
use rustix::event::PollFlags;

use super::{
    SHORT, STEP_TIMEOUT, answered,
    busy_slots::two_busy,
    claimed, exchange,
    fixture::{FakeMachine, connect, echo, echo_within, take_snapshot},
    interface_of, powered,
    watch::wait_until,
};
use crate::{
    backend::Backend as _,
    ccid::{budget, descriptor::ClassDescriptor},
    stop::StopHandle as _,
    usb::{
        claim::pipe,
        host::{
            fake::{
                DeviceMessage, Event, FakeReader, Fault,
                reader::{FakeCard, ReaderConfig},
            },
            transfer::{
                Completion, EndpointAddress, EndpointQueue, SetupPacket, TransferError,
                UsbInterface,
            },
        },
        reader::slot::{self, CcidSlot},
    },
};

/// An interface that reports the end of a response before the end of its command, and records its requests.
#[derive(Debug)]
struct RecordingInterface {
    inner: Arc<dyn UsbInterface>,
    asked: Arc<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    queues: Mutex<Vec<Vec<EndpointAddress>>>,
    limits: Mutex<Vec<Duration>>,
}

#[derive(Debug)]
struct ResponseFirstQueue {
    inner: Box<dyn EndpointQueue>,
    done: VecDeque<Completion>,
}

impl UsbInterface for RecordingInterface {
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError> {
        self.asked.queues.lock().unwrap().push(endpoints.to_vec());
        Ok(Box::new(ResponseFirstQueue {
            inner: self.inner.open_queue(endpoints)?,
            done: VecDeque::new(),
        }))
    }

    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError> {
        self.asked.limits.lock().unwrap().push(limit);
        self.inner.control(setup, data, limit)
    }

    fn reset(&self) -> Result<(), TransferError> {
        self.inner.reset()
    }
}

impl EndpointQueue for ResponseFirstQueue {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        self.inner.submit_in(endpoint, len);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        self.inner.submit_out(endpoint, buffer);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        while let Some(completion) = self.inner.next_completion() {
            if completion.endpoint.is_in() {
                self.done.push_front(completion);
            } else {
                self.done.push_back(completion);
            }
        }
        self.done.pop_front()
    }

    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.inner.poll_fds()
    }

    fn cancel(&mut self, endpoint: EndpointAddress) {
        self.inner.cancel(endpoint);
    }

    fn pending(&self, endpoint: EndpointAddress) -> usize {
        let here = self.done.iter().filter(|done| done.endpoint == endpoint);
        self.inner.pending(endpoint) + here.count()
    }

    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError> {
        self.inner.clear_halt(endpoint)
    }
}

/// A reader with a powered card behind such an interface, used for one command at a time and for several.
fn each_pipe(body: impl Fn(&FakeReader, &Recorded, CcidSlot)) {
    let config = ReaderConfig::extended();
    let one: fn(&FakeReader) -> ClassDescriptor = super::class;
    for class in [one, |_| two_busy()] {
        let reader = FakeReader::with_card(config.clone(), FakeCard::echo());
        let asked = Arc::new(Recorded::default());
        let mut described = interface_of(&reader, config.layout);
        described.class = class(&reader);
        let interface = Arc::new(RecordingInterface {
            inner: reader.device().claim().unwrap(),
            asked: Arc::clone(&asked),
        });
        let pipe = pipe::open_pipe(interface, &described, &Arc::default(), 0).unwrap();
        let mut device = slot::new_slot(pipe, described, 0, &Arc::default());
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        reader.device().forget();
        body(&reader, &asked, device);
    }
}

fn clears(reader: &FakeReader) -> usize {
    let events = reader.device().events();
    let clears = events
        .iter()
        .filter(|event| matches!(event, Event::ClearHalt(_)));
    clears.count()
}

/// Whether an IN transfer was cancelled.
fn takes_back(reader: &FakeReader) -> bool {
    let bulk_in = EndpointAddress(0x82);
    reader.device().events().contains(&Event::Cancel(bulk_in))
}

#[test]
fn response_seen_before_the_end_of_its_command_causes_no_cancel() {
    each_pipe(|reader, _, mut device| {
        for _ in 0..3 {
            let answer = exchange(&mut device, b"data", STEP_TIMEOUT).unwrap();
            assert_eq!(answer, answered(b"data"));
        }
        let events = reader.device().events();
        let cancels = events
            .iter()
            .filter(|event| matches!(event, Event::Cancel(_)));
        assert_eq!(cancels.count(), 0, "{events:?}");
    });
}

#[test]
fn command_endpoint_is_opened_before_the_response_endpoint() {
    each_pipe(|_, asked, _| {
        let queues = asked.queues.lock().unwrap();
        let order = [0x02, 0x82].map(EndpointAddress);
        assert_eq!(*queues, [order]);
    });
}

#[test]
fn b6_halt_that_was_not_seen_is_not_cleared() {
    each_pipe(|reader, _, mut device| {
        reader.hold();
        exchange(&mut device, b"first", SHORT).unwrap_err();
        reader.release();
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
        assert_eq!(clears(reader), 0);
    });
}

#[test]
fn observed_halt_is_cleared_once() {
    each_pipe(|reader, _, mut device| {
        reader.device().inject(Fault::Stall, 1);
        exchange(&mut device, b"first", STEP_TIMEOUT).unwrap_err();
        for _ in 0..2 {
            let _ = exchange(&mut device, b"second", STEP_TIMEOUT);
        }
        assert_eq!(clears(reader), 1);
        reader.hold();
        exchange(&mut device, b"third", SHORT).unwrap_err();
        reader.release();
        exchange(&mut device, b"fourth", STEP_TIMEOUT).unwrap_err();
        assert_eq!(clears(reader), 1, "it is forgotten");
    });
}

#[test]
fn b6_unresponsive_device_is_not_asked_to_clear_a_halt() {
    let (reader, mut device) = powered(ReaderConfig::extended());
    reader.device().inject(Fault::Stall, 1);
    exchange(&mut device, b"first", STEP_TIMEOUT).unwrap_err();
    reader.device().set_silent(true);
    exchange(&mut device, b"second", SHORT).unwrap_err();
    assert_eq!(clears(&reader), 0);
}

#[test]
fn b6_each_step_of_a_recovery_ends_at_the_calls_deadline() {
    each_pipe(|reader, asked, mut device| {
        reader.device().set_silent(true);
        exchange(&mut device, b"first", SHORT).unwrap_err();
        asked.limits.lock().unwrap().clear();
        reader.device().forget();
        let started = Instant::now();
        let error = exchange(&mut device, b"second", SHORT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::TimedOut, "{error}");
        assert!(
            started.elapsed() < STEP_TIMEOUT / 2,
            "{:?}",
            started.elapsed()
        );
        let limits = asked.limits.lock().unwrap().clone();
        assert!(limits.iter().all(|limit| *limit <= SHORT), "{limits:?}");
        assert!(!reader.device().events().contains(&Event::Reset));
        let messages = reader.device().counts().bulk_out;
        assert!(messages <= 1, "{messages}: nothing after the deadline");
    });
}

#[test]
fn b4_reader_that_ignores_the_abort_is_recovered_once_its_command_ends() {
    each_pipe(|reader, _, mut device| {
        reader.honour_abort(false);
        reader.hold();
        exchange(&mut device, b"first", SHORT).unwrap_err();
        let error = device.status(Call::within(SHORT)).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::TimedOut, "{error}");
        assert!(!device.is_synchronized());
        reader.release();
        device.status(Call::within(STEP_TIMEOUT)).unwrap();
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
    });
}

#[test]
fn b17_omitted_empty_packet_is_remembered_from_one_claim_to_the_next() {
    let mut config = ReaderConfig {
        product: super::fixture::token().product,
        ..ReaderConfig::extended()
    };
    config.layout.zlp = false;
    let machine = FakeMachine::new("recovery.zlp");
    let reader = FakeReader::with_card(config.clone(), FakeCard::echo());
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let mut watch = program.watch();
    let _ = take_snapshot(&mut *watch);
    // The message fills its packet.
    let data = [0x5A; 52];
    let mut first = connect(&program, "3-1");
    let answer = echo_within(&mut *first, &data, SHORT).unwrap();
    assert_eq!(answer, answered(&data), "at the deadline");
    drop(first);
    assert!(!reader.device().claimed());
    reader.device().forget();
    let mut second = connect(&program, "3-1");
    assert_eq!(echo(&mut *second, &data).unwrap(), answered(&data));
    assert!(!takes_back(&reader), "its end is known");
    assert_eq!(reader.card_commands(0), 2);
}

/// A reader that leaves out empty packets, while it is sent a command that has the longest time there is; what comes of
/// the command, if anything does.
fn exchange_without_zlp(
    data: &[u8],
    meanwhile: impl FnOnce(&FakeReader),
) -> (FakeReader, Option<Vec<u8>>) {
    let mut config = ReaderConfig::extended();
    config.layout.zlp = false;
    let layout = config.layout;
    let reader = FakeReader::with_card(config, FakeCard::echo());
    let stop = Arc::default();
    let mut device = claimed(&reader, layout, &stop);
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    let (told, is_told) = mpsc::channel();
    let answer = thread::scope(|scope| {
        scope.spawn(move || told.send(exchange(&mut device, data, budget::MESSAGE)));
        meanwhile(&reader);
        let answer = is_told.recv_timeout(STEP_TIMEOUT);
        stop.stop();
        answer.ok().and_then(Result::ok)
    });
    (reader, answer)
}

#[test]
fn b17_omitted_empty_packet_is_detected_long_before_the_deadline() {
    let data = [0x5A; 52];
    let (reader, answer) = exchange_without_zlp(&data, |_| ());
    assert_eq!(answer, Some(answered(&data)));
    assert_eq!(reader.card_commands(0), 1);
}

#[test]
fn response_with_a_pause_in_its_middle_is_received_whole() {
    let data = [0x5A; 100];
    let (reader, answer) = exchange_without_zlp(&data, |reader| {
        reader.hold();
        wait_until(|| reader.card_commands(0) > 0);
        let (_, sequence) = *reader.messages().last().unwrap();
        let header = [0x80, 102, 0, 0, 0, 0, sequence, 0, 0, 0];
        let message = [&header[..], &answered(&data)].concat();
        let send = |part: &[u8]| {
            let part = DeviceMessage::Bulk(part.to_vec());
            reader.device().send(part);
        };
        send(&message[..64]);
        wait_until(|| takes_back(reader));
        send(&message[64..]);
    });
    assert_eq!(answer, Some(answered(&data)));
    assert_eq!(reader.card_commands(0), 1);
}
