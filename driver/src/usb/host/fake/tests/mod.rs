//! Helpers of the fake device's tests: its endpoints, and one exchange.

mod device;
mod reader;

use claviger_apdu::Secret;

use crate::usb::host::{
    fake::FakeDevice,
    transfer::{Completion, EndpointAddress, EndpointQueue, SetupPacket},
};

pub(super) const OUT: EndpointAddress = EndpointAddress(0x02);
pub(super) const IN: EndpointAddress = EndpointAddress(0x82);
pub(super) const NOTIFY: EndpointAddress = EndpointAddress(0x83);
pub(super) const ABORT: SetupPacket = SetupPacket {
    request_type: 0x21,
    request: 1,
    value: 0x0700,
    index: 0,
};

pub(super) fn pipes(device: &FakeDevice) -> Box<dyn EndpointQueue> {
    let interface = device.claim().unwrap();
    interface.open_queue(&[OUT, IN, NOTIFY]).unwrap()
}

pub(super) fn all(pipes: &mut dyn EndpointQueue) -> Vec<Completion> {
    std::iter::from_fn(|| pipes.next_completion()).collect()
}

/// The next completion of an endpoint, all others dropped.
pub(super) fn of(pipes: &mut dyn EndpointQueue, endpoint: EndpointAddress) -> Option<Completion> {
    all(pipes).into_iter().find(|one| one.endpoint == endpoint)
}

/// Sends a message and returns its response, if one comes.
pub(super) fn exchange(pipes: &mut dyn EndpointQueue, message: &[u8]) -> Option<Vec<u8>> {
    pipes.submit_in(IN, 4096);
    pipes.submit_out(OUT, Secret::copy_from(message));
    let answer = of(pipes, IN)?;
    answer.result.ok()?;
    Some(answer.buffer.expose().to_vec())
}
