//! A command that the bus took in part only.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use claviger_apdu::{Call, Secret, TransportErrorKind};
use rustix::event::PollFlags;

use super::{SHORT, class, drive};
use crate::usb::{
    fake::{
        FakeReader,
        reader::{FakeCard, ReaderConfig},
    },
    transfer::{Completion, EndpointAddress, Pipes, Setup, TransferError, UsbInterface},
};

#[test]
fn a_command_taken_in_part_only_may_have_reached_the_card_and_is_not_sent_again() {
    let reader = FakeReader::with_card(ReaderConfig::extended(), FakeCard::echo());
    let interface = Arc::new(Shortened(reader.device().claim().unwrap()));
    let layout = ReaderConfig::extended().layout;
    let mut device = drive(interface, class(&reader), layout, &Arc::default());
    let error = device.power_on(Call::within(SHORT)).unwrap_err();
    assert_eq!(error.kind, TransportErrorKind::Protocol, "{error}");
    assert!(error.what.contains("in part only"), "{error}");
    assert_eq!(reader.messages().len(), 1);
    assert!(!device.is_in_step());
}

/// An interface whose transfers to the device end one byte short.
#[derive(Debug)]
struct Shortened(Arc<dyn UsbInterface>);

#[derive(Debug)]
struct ShortPipes(Box<dyn Pipes>);

impl UsbInterface for Shortened {
    fn pipes(&self, endpoints: &[EndpointAddress]) -> Result<Box<dyn Pipes>, TransferError> {
        Ok(Box::new(ShortPipes(self.0.pipes(endpoints)?)))
    }

    fn control(
        &self,
        setup: Setup,
        data: &mut [u8],
        limit: Duration,
    ) -> Result<usize, TransferError> {
        self.0.control(setup, data, limit)
    }

    fn reset(&self) -> Result<(), TransferError> {
        self.0.reset()
    }
}

impl Pipes for ShortPipes {
    fn submit_in(&mut self, endpoint: EndpointAddress, len: usize) {
        self.0.submit_in(endpoint, len);
    }

    fn submit_out(&mut self, endpoint: EndpointAddress, buffer: Secret) {
        self.0.submit_out(endpoint, buffer);
    }

    fn completed(&mut self) -> Option<Completion> {
        let mut completion = self.0.completed()?;
        if !completion.endpoint.is_in() {
            completion.transferred = completion.transferred.saturating_sub(1);
        } else if completion.result.is_ok() {
            // The answer is held back until the short transfer was seen.
            return self.0.completed().map(|mut out| {
                out.transferred = out.transferred.saturating_sub(1);
                out
            });
        }
        Some(completion)
    }

    fn descriptors(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.0.descriptors()
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
