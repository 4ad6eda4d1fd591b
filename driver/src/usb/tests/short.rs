//! A command of which the system does not count all bytes.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use claviger_apdu::{Call, Secret, Sent, TransportErrorKind};
use rustix::event::PollFlags;

use super::{SHORT, STEP_TIMEOUT, answered, busy_slots::two_busy, exchange, interface_of};
use crate::{
    ccid::descriptor::ClassDescriptor,
    usb::{
        claim::pipe,
        host::{
            fake::{
                FakeReader,
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

/// A reader that reports the length of its commands as `count` returns it, used for one command at a time and for several.
fn each_pipe(count: fn(usize) -> usize, body: impl Fn(&FakeReader, CcidSlot)) {
    let config = ReaderConfig::extended();
    let one: fn(&FakeReader) -> ClassDescriptor = super::class;
    for class in [one, |_| two_busy()] {
        let reader = FakeReader::with_card(config.clone(), FakeCard::echo());
        let mut described = interface_of(&reader, config.layout);
        described.class = class(&reader);
        let claim = reader.device().claim().unwrap();
        let interface = Arc::new(Shortened(claim, count));
        let pipe = pipe::open_pipe(interface, &described, &Arc::default(), 0).unwrap();
        let mut device = slot::new_slot(pipe, described, 0, &Arc::default());
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        body(&reader, device);
    }
}

#[test]
fn b34_command_with_uncounted_bytes_is_completed_by_its_response() {
    for count in [|_| 0, |length: usize| length - 1] {
        each_pipe(count, |reader, mut device| {
            for data in [&b"first"[..], b"second"] {
                let answer = exchange(&mut device, data, STEP_TIMEOUT).unwrap();
                assert_eq!(answer, answered(data));
            }
            assert_eq!(reader.card_commands(0), 2);
            assert!(device.is_synchronized());
        });
    }
}

#[test]
fn command_with_no_byte_counted_may_have_been_sent_and_is_not_repeated() {
    each_pipe(
        |_| 0,
        |reader, mut device| {
            reader.hold();
            let error = exchange(&mut device, b"data", SHORT).unwrap_err();
            assert_eq!(
                (error.kind, error.sent),
                (TransportErrorKind::TimedOut, Sent::Maybe)
            );
            assert_eq!(reader.card_commands(0), 1);
            assert!(!device.is_synchronized());
        },
    );
}

/// An interface that counts other bytes of transfers to the device than there were.
#[derive(Debug)]
struct Shortened(Arc<dyn UsbInterface>, fn(usize) -> usize);

#[derive(Debug)]
struct ShortPipes(Box<dyn EndpointQueue>, fn(usize) -> usize);

impl UsbInterface for Shortened {
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError> {
        Ok(Box::new(ShortPipes(self.0.open_queue(endpoints)?, self.1)))
    }

    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError> {
        self.0.control(setup, data, limit)
    }

    fn reset(&self) -> Result<(), TransferError> {
        self.0.reset()
    }
}

impl EndpointQueue for ShortPipes {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        self.0.submit_in(endpoint, len);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        self.0.submit_out(endpoint, buffer);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        let mut completion = self.0.next_completion()?;
        if !completion.endpoint.is_in() {
            completion.transferred = (self.1)(completion.transferred);
        }
        Some(completion)
    }

    fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.0.poll_fds()
    }

    fn cancel(&mut self, endpoint: EndpointAddress) {
        self.0.cancel(endpoint);
    }

    fn pending(&self, endpoint: EndpointAddress) -> usize {
        self.0.pending(endpoint)
    }

    fn clear_halt(&mut self, endpoint: EndpointAddress) -> Result<(), TransferError> {
        self.0.clear_halt(endpoint)
    }
}
