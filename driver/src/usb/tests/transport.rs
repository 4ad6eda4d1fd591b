//! The transport to the card of a reader.

use claviger_apdu::{Call, Limits, ResponseBuffer, Transport, TransportErrorKind};

use super::{
    SHORT, STEP_TIMEOUT, command,
    fixture::{FakeMachine, connect, take_snapshot},
};
use crate::{
    backend::Backend as _,
    usb::host::fake::{
        FakeReader,
        reader::{FakeCard, ReaderConfig},
    },
};

#[test]
fn transport_reports_a_reset_and_closes_when_the_card_is_removed() {
    let config = ReaderConfig::short();
    let reader = FakeReader::with_card(config.clone(), FakeCard::echo());
    let machine = FakeMachine::new("transport");
    machine.plug("3-1", &reader, &config);
    let program = machine.new_backend();
    let mut watch = program.watch();
    take_snapshot(&mut *watch);
    let mut transport = connect(&program, "3-1");
    assert_eq!(transport.limits(), Limits::SHORT);
    assert_eq!(transport.atr().historical(), b"fake");
    let mut response = ResponseBuffer::new();
    let mut send = |transport: &mut dyn Transport, within| {
        transport
            .transmit(&command(b"data"), &mut response, Call::within(within))
            .map_err(|error| error.kind)
    };
    let epoch = transport.epoch();
    assert_eq!(send(&mut *transport, STEP_TIMEOUT), Ok(()));
    reader.hold();
    assert_eq!(
        send(&mut *transport, SHORT),
        Err(TransportErrorKind::TimedOut)
    );
    reader.release();
    assert_eq!(
        send(&mut *transport, STEP_TIMEOUT),
        Err(TransportErrorKind::CardReset)
    );
    assert!(transport.epoch() > epoch && !transport.is_closed());
    assert_eq!(send(&mut *transport, STEP_TIMEOUT), Ok(()));
    reader.remove(0);
    assert_eq!(
        send(&mut *transport, STEP_TIMEOUT),
        Err(TransportErrorKind::CardRemoved)
    );
    assert!(transport.is_closed());
}
