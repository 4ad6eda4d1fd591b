//! A reader behind its socket, and a client of the bare protocol.

#![allow(
    clippy::expect_used,
    clippy::panic,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "helpers of tests fail loudly; no test file uses them all"
)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{Refusal, Reply, Request, VERSION, body_len};
use claviger_hw_tests::{
    card::{CardConfig, NITROKEY_3_ATR, VirtualCard},
    reader::Reader,
    server::SocketServer,
};
use tempfile::TempDir;

pub const SELECT_PIV: [u8; 15] = [
    0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00, 0x00,
];
pub const VERIFY_STATUS: [u8; 4] = [0x00, 0x20, 0x00, 0x80];
/// What a card with nothing selected answers to [`VERIFY_STATUS`].
pub const NOT_SELECTED: [u8; 2] = [0x6A, 0x82];
pub const PIV_SELECTED: [u8; 2] = [0x63, 0xC3];
/// Long enough for a thread to reach its wait, on a busy machine too.
pub const MOMENT: Duration = Duration::from_millis(100);

pub struct Bench {
    pub reader: Reader,
    pub server: Option<SocketServer>,
    pub folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let card = VirtualCard::power_up(CardConfig::default()).expect("a card in RAM");
        let reader = Reader::new("Virtual reader", card);
        let folder = tempfile::tempdir().expect("a folder");
        let server = SocketServer::start(folder.path().join("reader"), &reader).expect("a socket");
        Self {
            reader,
            server: Some(server),
            folder,
        }
    }

    pub fn stranger(&self) -> Client {
        Client::open(&self.folder.path().join("reader"))
    }

    pub fn guest(&self) -> Client {
        let mut client = self.stranger();
        assert!(
            matches!(client.ask(&Request::Hello { version: VERSION }), Said::Welcome(name) if name == "Virtual reader")
        );
        client
    }

    pub fn user(&self) -> Client {
        let mut client = self.guest();
        assert_eq!(
            client.ask(&Request::Connect),
            Said::Connected(NITROKEY_3_ATR.to_vec())
        );
        client
    }

    pub fn watcher(&self) -> Client {
        let mut client = self.guest();
        client.say(&Request::Watch);
        client
    }
}

pub struct Client(pub UnixStream);

/// A reply that can be compared.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Welcome(String),
    State(Vec<u8>, u32),
    Connected(Vec<u8>),
    Response(Vec<u8>),
    Begun,
    Ended,
    Refused(Refusal),
    Closed,
    Nothing,
}

impl Client {
    pub fn open(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the server listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        Self(stream)
    }

    pub fn say(&mut self, request: &Request) {
        self.0
            .write_all(request.encode().expose())
            .expect("the server reads");
    }

    pub fn ask(&mut self, request: &Request) -> Said {
        self.say(request);
        self.hear()
    }

    pub fn transmit(&mut self, frame: &[u8]) -> Said {
        self.ask(&Request::Transmit(Secret::copy_from(frame)))
    }

    pub fn hear(&mut self) -> Said {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return Said::Closed;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Said::Nothing,
            Err(error) => panic!("{error}"),
        }
        let mut body = vec![0; body_len(length).expect("a length")];
        self.0.read_exact(&mut body).expect("a whole frame");
        match Reply::parse(&body).expect("a reply") {
            Reply::Welcome { name, .. } => Said::Welcome(name),
            Reply::State { atr, changes } => Said::State(atr, changes),
            Reply::Connected { atr } => Said::Connected(atr),
            Reply::Response(answer) => Said::Response(answer.expose().to_vec()),
            Reply::Begun => Said::Begun,
            Reply::Ended => Said::Ended,
            Reply::Refused { refusal, text } => {
                assert!(!text.is_empty(), "a refusal has text for a person");
                Said::Refused(refusal)
            }
        }
    }

    /// Nothing comes for a moment.
    pub fn is_silent(&mut self) -> bool {
        self.0
            .set_read_timeout(Some(MOMENT))
            .expect("a socket option");
        let heard = self.hear();
        self.0
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        heard == Said::Nothing
    }
}
