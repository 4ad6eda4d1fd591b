//! What the tests of the fake device share: its endpoints, and one exchange.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part, and fails loudly"
)]

use claviger_apdu::Secret;
use claviger_driver::usb::host::{
    fake::FakeDevice,
    transfer::{Completion, EndpointAddress, EndpointQueue, SetupPacket},
};

pub const OUT: EndpointAddress = EndpointAddress(0x02);
pub const IN: EndpointAddress = EndpointAddress(0x82);
pub const NOTIFY: EndpointAddress = EndpointAddress(0x83);
pub const ABORT: SetupPacket = SetupPacket {
    request_type: 0x21,
    request: 1,
    value: 0x0700,
    index: 0,
};

pub fn pipes(device: &FakeDevice) -> Box<dyn EndpointQueue> {
    let interface = device.claim().unwrap();
    interface.open_queue(&[OUT, IN, NOTIFY]).unwrap()
}

pub fn all(pipes: &mut dyn EndpointQueue) -> Vec<Completion> {
    std::iter::from_fn(|| pipes.next_completion()).collect()
}

/// The next completion of an endpoint, all others dropped.
pub fn of(pipes: &mut dyn EndpointQueue, endpoint: EndpointAddress) -> Option<Completion> {
    all(pipes).into_iter().find(|one| one.endpoint == endpoint)
}

/// A message and its answer, if one comes.
pub fn exchange(pipes: &mut dyn EndpointQueue, message: &[u8]) -> Option<Vec<u8>> {
    pipes.submit_in(IN, 4096);
    pipes.submit_out(OUT, Secret::copy_from(message));
    let answer = of(pipes, IN)?;
    answer.result.ok()?;
    Some(answer.buffer.expose().to_vec())
}
