//! A card that pcscd is powering up or resetting: errors of pcscd during that time are retried, and not reported.
//!
//! The test plays pcscd. It reports at each call in turn what a real pcscd reports for a few microseconds.
//! libpcsclite reads the path of pcscd's socket once, so each case runs in its own process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

mod common;

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use claviger_apdu::{Call, ResponseBuffer, Secret, Transport, TransportError, TransportErrorKind};
use claviger_driver::{Backend, ReaderId, pcsc::PcscBackend};
use common::{ATR, Folder, HANG};

const SOCKET: &str = "PCSCLITE_CSOCK_NAME";
const READER: &str = "Reader 00 00";

/// Commands of pcscd's protocol, 4:4.
const ESTABLISH: u32 = 0x01;
const CONNECT: u32 = 0x04;
const RECONNECT: u32 = 0x05;
const BEGIN: u32 = 0x07;
const TRANSMIT: u32 = 0x09;
const CONTROL: u32 = 0x0A;
const STATUS: u32 = 0x0B;
const VERSION: u32 = 0x11;
const READERS: u32 = 0x12;

const NO_SMARTCARD: u32 = 0x8010_000C;
const PROTO_MISMATCH: u32 = 0x8010_000F;
const UNRESPONSIVE_CARD: u32 = 0x8010_0066;
const UNPOWERED_CARD: u32 = 0x8010_0067;
const RESET_CARD: u32 = 0x8010_0068;
const REMOVED_CARD: u32 = 0x8010_0069;

/// SCARD_PRESENT, SCARD_POWERED and SCARD_NEGOTIABLE.
const PRESENT: u32 = 0x34;
const T1: u32 = 2;
const READERS_SHOWN: usize = 16;

/// A fault. Each entry of a list of faults happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The call returns this result.
    Returns(u32, u32),
    /// After this call the card has no protocol, until the client connects or reconnects.
    LosesProtocol(u32),
    /// As before, and its respond to reset is not known either.
    LosesAtr(u32),
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    handles: u32,
    protocol: u32,
    atr: Vec<u8>,
    /// Every call that a client made, in order.
    calls: Vec<u32>,
}

impl State {
    fn take(&mut self, fault: Fault) -> bool {
        let at = self.faults.iter().position(|listed| *listed == fault);
        at.map(|at| self.faults.remove(at)).is_some()
    }

    /// Applies `call` to the card. Returns the result of the call.
    fn result(&mut self, call: u32) -> u32 {
        self.calls.push(call);
        let returns = |fault: &Fault| match fault {
            Fault::Returns(at, code) if *at == call => Some(*code),
            _ => None,
        };
        if let Some(code) = self.faults.iter().find_map(returns) {
            self.take(Fault::Returns(call, code));
            return code;
        }
        if matches!(call, CONNECT | RECONNECT) {
            self.protocol = T1;
            self.atr = ATR.to_vec();
        }
        if self.take(Fault::LosesProtocol(call)) {
            self.protocol = 0;
        }
        if self.take(Fault::LosesAtr(call)) {
            (self.protocol, self.atr) = (0, Vec::new());
        }
        0
    }

    /// Returns the states of all readers as a client receives them. One reader is present.
    fn readers(&self) -> Vec<u8> {
        const LEN: usize = 184;
        let mut all = vec![0; LEN * READERS_SHOWN];
        all[..READER.len()].copy_from_slice(READER.as_bytes());
        all[132..136].copy_from_slice(&PRESENT.to_ne_bytes());
        all[140..][..self.atr.len()].copy_from_slice(&self.atr);
        let len = u32::try_from(self.atr.len()).unwrap();
        all[176..180].copy_from_slice(&len.to_ne_bytes());
        all[180..184].copy_from_slice(&self.protocol.to_ne_bytes());
        all
    }
}

/// A pcscd with one reader and one card.
#[derive(Clone, Default)]
struct FakePcscd(Arc<Mutex<State>>);

impl FakePcscd {
    fn listen(path: PathBuf) -> Self {
        let fake = Self::default();
        let listener = UnixListener::bind(path).unwrap();
        let serving = fake.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, fake) = (client.unwrap(), serving.clone());
                // The thread ends when the client disconnects.
                thread::spawn(move || fake.serve(client));
            }
        });
        fake
    }

    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        loop {
            let [size, call] = words(&mut client)?;
            let mut body = vec![0; size as usize];
            client.read_exact(&mut body)?;
            let response = self.respond(call, body, &mut client)?;
            client.write_all(&response)?;
        }
    }

    /// Returns the response message, whose last word is the result.
    fn respond(
        &self,
        call: u32,
        mut body: Vec<u8>,
        client: &mut UnixStream,
    ) -> io::Result<Vec<u8>> {
        if call == READERS {
            return Ok(self.0.lock().unwrap().readers());
        }
        let word = |body: &[u8], at: usize| {
            u32::from_ne_bytes(body[4 * at..4 * at + 4].try_into().unwrap())
        };
        // Data follows the messages of two calls.
        let sent = match call {
            TRANSMIT => word(&body, 3),
            CONTROL => word(&body, 2),
            _ => 0,
        };
        let mut data = vec![0; sent as usize];
        client.read_exact(&mut data)?;
        let mut state = self.0.lock().unwrap();
        let code = state.result(call);
        let mut put = |at: usize, value: u32| {
            body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        match call {
            VERSION => put(4, 4),
            ESTABLISH => put(4, 1),
            CONNECT if code == 0 => {
                state.handles += 1;
                put(140, state.handles);
                put(144, T1);
            }
            RECONNECT => put(16, T1),
            TRANSMIT => put(24, if code == 0 { 2 } else { 0 }),
            CONTROL => put(16, 0),
            _ => {}
        }
        let last = body.len() - 4;
        body[last..].copy_from_slice(&code.to_ne_bytes());
        if call == TRANSMIT && code == 0 {
            body.extend([0x90, 0x00]);
        }
        Ok(body)
    }

    fn set_faults(&self, faults: &[Fault]) {
        let mut state = self.0.lock().unwrap();
        state.faults = faults.to_vec();
        state.calls.clear();
    }

    /// Returns whether all faults have happened.
    fn all_happened(&self) -> bool {
        self.0.lock().unwrap().faults.is_empty()
    }

    fn count(&self, call: u32) -> usize {
        let state = self.0.lock().unwrap();
        state.calls.iter().filter(|made| **made == call).count()
    }
}

fn words(client: &mut UnixStream) -> io::Result<[u32; 2]> {
    let mut header = [0; 8];
    client.read_exact(&mut header)?;
    let [a, b, c, d, e, f, g, h] = header;
    Ok([[a, b, c, d], [e, f, g, h]].map(u32::from_ne_bytes))
}

fn call() -> Call {
    Call::within(HANG)
}

fn connect(backend: &PcscBackend) -> Result<Box<dyn Transport>, TransportError> {
    backend.connect(&ReaderId::new("pcsc", READER), call())
}

/// Sends one command in a transaction.
fn command(card: &mut dyn Transport) -> Result<Vec<u8>, TransportError> {
    let select = Secret::from(vec![0x00, 0xA4, 0x04, 0x00]);
    let mut outcome = None;
    card.transact(call(), &mut |transaction| {
        let mut response = ResponseBuffer::new();
        let sent = transaction.transmit(select.expose(), &mut response, call());
        outcome = Some(sent.map(|()| response.frame().to_vec()));
    })?;
    outcome.expect("the body ran")
}

/// Runs the ignored test `case` in its own process, with its own pcscd socket.
fn in_a_process_of_its_own(case: &str) {
    let folder = Folder::new(case);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", case, "--ignored", "--nocapture"])
        .env(SOCKET, folder.join("pcscd.comm"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{output:?}"
    );
}

/// Starts the fake pcscd and a backend that uses it, if this process was started for a case.
fn fake() -> Option<(FakePcscd, PcscBackend)> {
    let socket = std::env::var_os(SOCKET)?;
    Some((FakePcscd::listen(socket.into()), PcscBackend::new(true)))
}

#[test]
fn connect_succeeds_while_the_card_is_being_powered_or_reset() {
    in_a_process_of_its_own("connects");
}

#[test]
#[ignore = "run by connect_succeeds_while_the_card_is_being_powered_or_reset"]
fn connects() {
    let Some((fake, backend)) = fake() else {
        return;
    };
    let once = [
        NO_SMARTCARD,
        PROTO_MISMATCH,
        UNRESPONSIVE_CARD,
        UNPOWERED_CARD,
        RESET_CARD,
        REMOVED_CARD,
    ];
    let mut cases: Vec<Vec<Fault>> = Vec::new();
    for code in once {
        cases.push(vec![Fault::Returns(CONNECT, code)]);
        cases.push(vec![Fault::Returns(STATUS, code)]);
        cases.push(vec![
            Fault::Returns(CONNECT, code),
            Fault::LosesProtocol(CONNECT),
        ]);
    }
    // pcscd's event thread clears the protocol of a card that was connected a moment before.
    cases.push(vec![Fault::LosesProtocol(CONNECT)]);
    cases.push(vec![Fault::LosesProtocol(CONNECT); 3]);
    cases.push(vec![Fault::LosesAtr(CONNECT)]);
    for faults in cases {
        fake.set_faults(&faults);
        let card = connect(&backend);
        let mut card = card.unwrap_or_else(|error| panic!("{faults:X?}: {error}"));
        assert!(fake.all_happened(), "{faults:X?}");
        assert_eq!(command(&mut *card).unwrap(), [0x90, 0x00], "{faults:X?}");
    }
}

#[test]
fn connect_to_a_card_that_stays_unsettled_fails_soon() {
    in_a_process_of_its_own("stays");
}

#[test]
#[ignore = "run by connect_to_a_card_that_stays_unsettled_fails_soon"]
fn stays() {
    let Some((fake, backend)) = fake() else {
        return;
    };
    for (fault, kind) in [
        (
            Fault::Returns(CONNECT, NO_SMARTCARD),
            TransportErrorKind::NoCard,
        ),
        (
            Fault::Returns(CONNECT, UNRESPONSIVE_CARD),
            TransportErrorKind::NoCard,
        ),
        (
            Fault::Returns(CONNECT, PROTO_MISMATCH),
            TransportErrorKind::Protocol,
        ),
        (
            Fault::Returns(STATUS, REMOVED_CARD),
            TransportErrorKind::CardRemoved,
        ),
        (Fault::LosesProtocol(CONNECT), TransportErrorKind::Protocol),
    ] {
        fake.set_faults(&[fault; 100]);
        let begun = Instant::now();
        let error = connect(&backend).err().expect("it never settles");
        assert_eq!(error.kind, kind, "{fault:X?}: {error}");
        assert!(begun.elapsed() < HANG, "{fault:X?}");
        let tries = fake.count(CONNECT);
        assert!((2..=10).contains(&tries), "{fault:X?}: {tries} connections");
    }
    // An absent card is retried only once.
    fake.set_faults(&[Fault::Returns(CONNECT, NO_SMARTCARD); 100]);
    assert!(connect(&backend).is_err());
    assert_eq!(fake.count(CONNECT), 2);
}

#[test]
fn protocol_mismatch_during_a_transmit_counts_as_a_card_reset() {
    in_a_process_of_its_own("on_the_way");
}

#[test]
#[ignore = "run by protocol_mismatch_during_a_transmit_counts_as_a_card_reset"]
fn on_the_way() {
    let Some((fake, backend)) = fake() else {
        return;
    };
    let after = [
        vec![],
        vec![Fault::Returns(RECONNECT, PROTO_MISMATCH)],
        vec![Fault::Returns(RECONNECT, RESET_CARD)],
        vec![Fault::Returns(STATUS, RESET_CARD)],
        vec![Fault::Returns(STATUS, PROTO_MISMATCH)],
        vec![Fault::LosesProtocol(RECONNECT)],
        vec![Fault::LosesAtr(RECONNECT)],
    ];
    for first in [
        Fault::Returns(TRANSMIT, PROTO_MISMATCH),
        Fault::Returns(TRANSMIT, RESET_CARD),
        Fault::Returns(BEGIN, RESET_CARD),
    ] {
        for then in &after {
            fake.set_faults(&[]);
            let mut card = connect(&backend).unwrap();
            let faults = [vec![first], then.clone()].concat();
            fake.set_faults(&faults);
            let epoch = card.epoch();
            match command(&mut *card) {
                // A transaction that has not begun continues with the card as it is now.
                Ok(_) => assert!(matches!(first, Fault::Returns(BEGIN, _)), "{faults:X?}"),
                Err(error) => {
                    assert_eq!(
                        error.kind,
                        TransportErrorKind::CardReset,
                        "{faults:X?}: {error}"
                    );
                }
            }
            assert!(fake.all_happened() && card.epoch() != epoch, "{faults:X?}");
            assert_eq!(command(&mut *card).unwrap(), [0x90, 0x00], "{faults:X?}");
        }
    }
}
