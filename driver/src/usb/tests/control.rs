//! Tokens of the control pipe: the requests to them, and their wrong responses.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::{
    Call, Limits, ResponseBuffer, Sent, Transmit, TransportError, TransportErrorKind,
};

use super::{
    STEP_TIMEOUT, answered, command,
    fixture::{connect, holds_card, id, single_reader, take_snapshot},
    interfaces::MultiInterfaceMachine,
};
use crate::{
    backend::Backend as _,
    ccid::{
        configuration::{self, CcidDevice as Descriptors},
        descriptor::ExchangeLevel,
        iccd::Version,
        quirks::Quirks,
    },
    stop::StopHandle as _,
    usb::{
        claim::pipe,
        discovery::reader_info::{CommandChannel, ReaderInterface},
        host::fake::{
            Event, Fault,
            reader::{
                FakeCard, echo as answer_of_echo,
                icc::{FakeIcc, Lie},
            },
        },
        reader::slot::{self, CcidSlot},
    },
    wait::StopFlag,
};

/// Each command the card got.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

const VERSIONS: [Version; 2] = [Version::A, Version::B];

fn token(version: Version) -> (FakeIcc, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let answer = move |frame: &[u8]| {
        noted.lock().unwrap().push(frame.to_vec());
        answer_of_echo(frame)
    };
    let card = match version {
        Version::A => FakeCard::t0(answer),
        Version::B => FakeCard::t1(answer),
    };
    (FakeIcc::new(version, card), seen)
}

fn reader(token: &FakeIcc, version: Version) -> ReaderInterface {
    let found = Descriptors::parse(&token.descriptors(), |_| false).unwrap();
    ReaderInterface {
        name: "token".to_owned(),
        number: 0,
        channel: CommandChannel::Control(version),
        class: found.readers[0].class.clone(),
        quirks: Quirks::default(),
    }
}

fn device(token: &FakeIcc, version: Version, stop: &Arc<StopFlag>) -> CcidSlot {
    let reader = reader(token, version);
    let claim = token.device().claim().unwrap();
    let pipe = pipe::open_pipe(claim, &reader, &Arc::default(), 0).unwrap();
    slot::new_slot(pipe, reader, 0, stop)
}

/// Sends a command, and requests its response where T=0 requires it.
fn ask(
    mut send: impl FnMut(&[u8]) -> Result<Vec<u8>, TransportError>,
    data: &[u8],
) -> Result<Vec<u8>, TransportError> {
    let answer = send(&command(data))?;
    let [0x61, length] = answer[..] else {
        return Ok(answer);
    };
    let rest = send(&[0x00, 0xC0, 0x00, 0x00, length]);
    rest.map_err(|error| TransportError {
        sent: Sent::Maybe,
        ..error
    })
}

fn exchange(
    device: &mut CcidSlot,
    data: &[u8],
    within: Duration,
) -> Result<Vec<u8>, TransportError> {
    let call = Call::within(within);
    let send = |frame: &[u8]| {
        let mut response = ResponseBuffer::new();
        device.exchange(frame, &mut response, call)?;
        Ok(response.frame().to_vec())
    };
    ask(send, data)
}

fn echo(card: &mut (impl Transmit + ?Sized), data: &[u8]) -> Result<Vec<u8>, TransportError> {
    let send = |frame: &[u8]| {
        let mut response = ResponseBuffer::new();
        card.transmit(frame, &mut response, Call::within(STEP_TIMEOUT))?;
        Ok(response.frame().to_vec())
    };
    ask(send, data)
}

/// A token with a powered card.
fn powered(version: Version) -> (FakeIcc, CcidSlot, Seen) {
    let (token, seen) = token(version);
    let mut device = device(&token, version, &Arc::default());
    device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
    token.device().forget();
    (token, device, seen)
}

#[test]
fn iccd_token_is_found_by_its_protocol_and_has_no_endpoints() {
    for (version, way) in [
        (Version::A, configuration::InterfaceProtocol::IccdA),
        (Version::B, configuration::InterfaceProtocol::IccdB),
    ] {
        let (token, _) = token(version);
        let found = Descriptors::parse(&token.descriptors(), |_| false).unwrap();
        let [reader] = &found.readers[..] else {
            panic!("{found:?}");
        };
        assert_eq!(
            (reader.way, reader.bulk_in, reader.interrupt),
            (way, None, None)
        );
        assert_eq!(reader.class.exchange_level(), ExchangeLevel::ShortApdu);
    }
}

#[test]
fn commands_and_responses_of_every_length_pass_the_control_pipe() {
    for version in VERSIONS {
        let (token, mut device, seen) = powered(version);
        for length in [1, 2, 100, 254, 255] {
            let data = vec![0x5A; length];
            assert_eq!(
                exchange(&mut device, &data, STEP_TIMEOUT).unwrap(),
                answered(&data),
                "{version:?} {length}"
            );
        }
        assert_eq!(
            (token.commands(), seen.lock().unwrap().len()),
            (5, 5),
            "{version:?}"
        );
        let counts = token.device().counts();
        assert_eq!((counts.bulk_in, counts.bulk_out), (0, 0));
    }
}

#[test]
fn a_command_of_version_b_costs_two_requests() {
    let (token, mut device, _) = powered(Version::B);
    exchange(&mut device, b"data", STEP_TIMEOUT).unwrap();
    assert_eq!(token.device().counts().control, 2);
}

#[test]
fn busy_iccd_token_is_polled_until_it_responds() {
    for version in VERSIONS {
        let (token, mut device, _) = powered(version);
        token.be_busy(3);
        let start = Instant::now();
        assert_eq!(
            exchange(&mut device, b"slow", STEP_TIMEOUT).unwrap(),
            answered(b"slow")
        );
        assert!(
            start.elapsed() >= Duration::from_millis(30),
            "{version:?}: asked no more often than said"
        );
        assert_eq!(token.commands(), 1);
    }
}

#[test]
fn busy_iccd_token_times_out_and_is_recovered_before_the_next_command() {
    for version in VERSIONS {
        let (token, mut device, seen) = powered(version);
        token.be_busy(usize::MAX);
        let error = exchange(&mut device, b"first", Duration::from_millis(60)).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::TimedOut, Sent::Maybe),
            "{version:?}"
        );
        token.be_busy(0);
        let epoch = device.epoch();
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(
            (error.kind, error.sent),
            (TransportErrorKind::CardReset, Sent::No),
            "{version:?}: {error}"
        );
        assert!(device.epoch() > epoch);
        assert_eq!(
            exchange(&mut device, b"third", STEP_TIMEOUT).unwrap(),
            answered(b"third")
        );
        let sent = seen.lock().unwrap().clone();
        assert!(
            !sent.contains(&command(b"second")),
            "{version:?}: it was not sent"
        );
    }
}

#[test]
fn a_stop_ends_a_command_between_two_requests() {
    for version in VERSIONS {
        let (token, _) = token(version);
        let stop = Arc::new(StopFlag::new());
        let mut device = device(&token, version, &stop);
        device.power_on(Call::within(STEP_TIMEOUT)).unwrap();
        token.be_busy(usize::MAX);
        thread::scope(|scope| {
            let waits = scope.spawn(|| exchange(&mut device, b"data", STEP_TIMEOUT).unwrap_err());
            thread::sleep(Duration::from_millis(20));
            stop.stop();
            let error = waits.join().unwrap();
            assert_eq!(error.kind, TransportErrorKind::Cancelled);
        });
    }
}

/// Returns whether a command succeeds. A card without power is powered first. The command must get its own response, unless a
/// wrong response is still to come.
fn goes_through(device: &mut CcidSlot, data: &[u8], is_honest: bool, what: &str) -> bool {
    match exchange(device, data, Duration::from_secs(4)) {
        Ok(answer) => {
            let own = answer == answered(data);
            assert!(own || !is_honest, "{what}: the answer to something else");
            own
        }
        Err(error) => {
            if error.kind == TransportErrorKind::NoCard {
                let _ = device.power_on(Call::within(STEP_TIMEOUT));
            }
            false
        }
    }
}

/// Runs one command during a fault. The command ends, reports whether the card received it, and is sent at most once. The next
/// commands work.
fn survives(version: Version, what: &str, spoil: impl Fn(&FakeIcc), lies: bool) -> bool {
    let (token, mut device, seen) = powered(version);
    spoil(&token);
    let data = vec![0x11; 70];
    match exchange(&mut device, &data, Duration::from_secs(2)) {
        // A token can send anything. Nothing distinguishes wrong responses from correct ones.
        Ok(answer) => assert!(lies || answer == answered(&data), "{what}"),
        Err(error) => {
            let reached = seen
                .lock()
                .unwrap()
                .iter()
                .any(|frame| frame.ends_with(&data));
            assert!(error.sent != Sent::No || !reached, "{what}: {error}");
        }
    }
    let struck = token.lied() && token.device().fault_struck();
    let healthy = (0..6).any(|round: u8| {
        let is_honest = token.lied();
        goes_through(&mut device, &[0x20 + round; 70], is_honest, what)
    });
    assert!(
        healthy || what.starts_with("Disconnected"),
        "{what}: the token is well, and no command goes through"
    );
    let all = seen.lock().unwrap().clone();
    for frame in &all {
        assert_eq!(
            all.iter().filter(|one| *one == frame).count(),
            1,
            "{what}: sent twice"
        );
    }
    struck
}

#[test]
fn any_fault_at_any_request_ends_and_the_next_command_works() {
    let faults = [
        Fault::Drop,
        Fault::Delay,
        Fault::Stall,
        Fault::Failed(71),
        Fault::Disconnected,
    ];
    for version in VERSIONS {
        let mut struck = 0;
        for fault in faults {
            for step in 0..12 {
                let what = format!("{fault:?} at request {step} of {version:?}");
                struck += usize::from(survives(
                    version,
                    &what,
                    |token| token.device().inject(fault, step),
                    false,
                ));
            }
        }
        assert!(struck >= faults.len() * 2, "{struck}");
    }
}

#[test]
fn any_false_response_ends_its_command_and_the_next_command_works() {
    for version in VERSIONS {
        for lie in Lie::ALL {
            for answer in 0..8 {
                let what = format!("{lie:?} in answer {answer} of {version:?}");
                survives(version, &what, |token| token.lie(lie, answer), true);
            }
        }
    }
}

#[test]
fn unresponsive_iccd_token_has_its_device_reset() {
    for version in VERSIONS {
        let (token, mut device, _) = powered(version);
        token.be_busy(usize::MAX);
        exchange(&mut device, b"first", Duration::from_millis(40)).unwrap_err();
        token.be_busy(0);
        token.be_deaf(true);
        let error = exchange(&mut device, b"second", STEP_TIMEOUT).unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::CardReset, "{error}");
        let events = token.device().events();
        let resets = events.iter().filter(|event| matches!(event, Event::Reset));
        assert_eq!(resets.count(), 1, "{version:?}");
        let answer = exchange(&mut device, b"third", STEP_TIMEOUT).unwrap();
        assert_eq!(answer, answered(b"third"));
    }
}

#[test]
fn iccd_token_is_a_reader_like_any_other() {
    for version in VERSIONS {
        let devices = MultiInterfaceMachine::new(&format!("iccd-{version:?}"));
        let (token, _) = token(version);
        devices.plug(1, &token.descriptors(), vec![token.device().clone()]);
        let program = devices.new_backend();
        let mut watch = super::watch::watch_with_waiter(&program);
        let snapshot = take_snapshot(&mut *watch);
        let state = single_reader(&snapshot);
        assert_eq!(state.id, id("3-1"));
        assert!(holds_card(state));
        assert!(
            !token.device().claimed(),
            "its card cannot leave, so nobody listens"
        );
        let mut card = connect(&program, "3-1");
        assert_eq!(card.limits(), Limits::SHORT);
        let epoch = card.epoch();
        assert_eq!(echo(&mut *card, b"hello").unwrap(), answered(b"hello"));
        drop(card);
        assert!(!token.device().claimed() && token.powered());
        let mut card = connect(&program, "3-1");
        assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
        assert_eq!(
            card.epoch(),
            epoch,
            "nobody has used it since, and it kept its power"
        );
        devices.unplug(1);
        let error = echo(&mut *card, b"gone").unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
        assert!(take_snapshot(&mut *watch).readers.is_empty());
    }
}

#[test]
fn iccd_token_unplugged_at_any_request_ends_its_calls() {
    for version in VERSIONS {
        for step in 0..20 {
            let devices = MultiInterfaceMachine::new(&format!("iccd-leaves-{version:?}"));
            let (token, _) = token(version);
            devices.plug(1, &token.descriptors(), vec![token.device().clone()]);
            let program = devices.new_backend();
            let mut watch = super::watch::watch_with_waiter(&program);
            token.device().inject(Fault::Disconnected, step);
            let start = Instant::now();
            let _ = take_snapshot(&mut *watch);
            let used = program
                .connect(&id("3-1"), Call::within(STEP_TIMEOUT))
                .and_then(|mut card| echo(&mut *card, b"data"));
            if let Err(error) = used {
                assert_eq!(
                    error.kind,
                    TransportErrorKind::NoReader,
                    "{version:?} at {step}: {error}"
                );
            }
            assert!(start.elapsed() < STEP_TIMEOUT / 2);
            assert!(!token.device().claimed());
        }
    }
}
