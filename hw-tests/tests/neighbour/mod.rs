//! Another program at the same card: with a context of its own at pcscd, a connection at the socket reader, or a driver of its
//! own on the USB.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "shared by several test programs; a test fails loudly"
)]

use std::{env, ffi::CString, path::PathBuf, time::Duration};

use claviger_apdu::{Call, ResponseBuffer, Transmit, Transport};
use claviger_driver::{
    Backend as _, Watch,
    socket::frame::{Refusal, Request, VERSION},
    usb::{
        backend::{UsbBackend, UsbOptions},
        host::open::UsbLibrary,
    },
};
use claviger_hw_tests::provision::{ADMIN_PIN, PIN};
use pcsc::{Card, Context, Disposition, Error, Protocols, Scope, ShareMode};

use crate::bench::{Client, Said};

/// SELECT of the OpenPGP applet.
pub const SELECT_OPENPGP: [u8; 11] = [
    0x00, 0xA4, 0x04, 0x00, 6, 0xD2, 0x76, 0x00, 0x01, 0x24, 0x01,
];
/// VERIFY that forgets a verified PIV PIN (SP 800-73-4 part 2, 3.2.1).
pub const PIV_LOGOUT: [u8; 4] = [0x00, 0x20, 0xFF, 0x80];
/// What a card says that did it.
pub const DONE: [u8; 2] = [0x90, 0x00];

/// Only a hang takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// See above.
pub enum Neighbour {
    Pcscd(Card),
    Socket(Client),
    Usb(UsbNeighbour),
}

impl Neighbour {
    /// One that shares the card.
    pub fn shared() -> Self {
        match env::var("CLAVIGER_TRANSPORTS").as_deref() {
            Ok("socket") => {
                let path = env::var_os("CLAVIGER_SOCKET").expect("a socket");
                Self::Socket(guest(path.as_ref()))
            }
            Ok("usb") => Self::Usb(UsbNeighbour::new()),
            _ => Self::Pcscd(connect(ShareMode::Shared).expect("SCardConnect")),
        }
    }

    /// One that has the card for itself, if it is to be had: as GnuPG's scdaemon. Over pcscd only.
    pub fn exclusive() -> Option<Self> {
        match connect(ShareMode::Exclusive) {
            Ok(card) => Some(Self::Pcscd(card)),
            Err(Error::SharingViolation) => None,
            Err(error) => panic!("SCardConnect: {error}"),
        }
    }

    /// One command, at a time when nobody else is in a transaction.
    pub fn transmit(&mut self, frame: &[u8]) -> Vec<u8> {
        self.hold(|held| held.transmit(frame))
    }

    /// Keeps the card while `body` runs.
    pub fn hold<R>(&mut self, body: impl FnOnce(&mut Held<'_>) -> R) -> R {
        match self {
            Self::Pcscd(card) => {
                let transaction = begin(card);
                let result = body(&mut Held::Pcscd(&transaction));
                let _ = transaction.end(Disposition::LeaveCard);
                result
            }
            Self::Socket(client) => {
                while client.ask(&Request::Begin) != Said::Begun {
                    let connected = client.ask(&Request::Connect);
                    assert!(matches!(connected, Said::Connected(_)), "{connected:?}");
                }
                let result = body(&mut Held::Socket(client));
                assert_eq!(client.ask(&Request::End), Said::Ended);
                result
            }
            Self::Usb(driver) => driver.hold(body),
        }
    }

    /// Resets the card, as soon as nobody else is in a transaction.
    pub fn reset(&mut self) {
        match self {
            Self::Pcscd(card) => {
                while let Err(error) = reconnect(card, Disposition::ResetCard) {
                    assert_eq!(error, Error::SharingViolation);
                }
            }
            Self::Socket(client) => loop {
                match client.ask(&Request::Reset) {
                    Said::Connected(_) => return,
                    Said::Refused(Refusal::Busy) => {}
                    Said::Refused(Refusal::CardReset) => {
                        client.ask(&Request::Connect);
                    }
                    other => panic!("Reset: {other:?}"),
                }
            },
            Self::Usb(_) => panic!("no reset is asked for on the USB"),
        }
    }

    /// Goes, and leaves the card so. Over pcscd only.
    pub fn leave(self, disposition: Disposition) {
        let Self::Pcscd(card) = self else {
            panic!("pcscd alone has such a thing");
        };
        let left = card.disconnect(disposition);
        left.map_err(|(_, error)| error).expect("SCardDisconnect");
    }
}

/// A neighbour that keeps the card.
pub enum Held<'a> {
    Pcscd(&'a pcsc::Transaction<'a>),
    Socket(&'a mut Client),
    Usb(&'a mut dyn Transmit),
}

impl Held<'_> {
    pub fn transmit(&mut self, frame: &[u8]) -> Vec<u8> {
        match self {
            Self::Pcscd(transaction) => {
                let mut answer = [0; pcsc::MAX_BUFFER_SIZE];
                let answer = transaction.transmit(frame, &mut answer);
                answer.expect("SCardTransmit").to_vec()
            }
            Self::Socket(client) => match client.transmit(frame) {
                Said::Response(answer) => answer,
                other => panic!("{other:?}"),
            },
            Self::Usb(card) => {
                let mut answer = ResponseBuffer::new();
                let sent = card.transmit(frame, &mut answer, Call::within(PATIENCE));
                sent.expect("a response");
                answer.frame().to_vec()
            }
        }
    }
}

/// One with a driver of its own, which takes its turn at the rig's lock files as another process does. Nothing is claimed
/// between two holds.
pub struct UsbNeighbour {
    driver: UsbBackend,
    watch: Box<dyn Watch>,
}

impl UsbNeighbour {
    fn new() -> Self {
        let folder = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let driver = UsbBackend::new(&UsbOptions {
            library: UsbLibrary::Rusb,
            has_watch_thread: false,
            lock_folders: vec![folder.expect("the rig's folder").join("claviger")],
        });
        Self {
            watch: driver.watch(),
            driver,
        }
    }

    fn connect(&mut self) -> Box<dyn Transport> {
        let readers = self.watch.now(Call::within(PATIENCE)).readers;
        let reader = &readers.first().expect("a reader").id;
        let connected = self.driver.connect(reader, Call::within(PATIENCE));
        connected.expect("a card")
    }

    fn hold<R>(&mut self, body: impl FnOnce(&mut Held<'_>) -> R) -> R {
        let (mut body, mut result) = (Some(body), None);
        let held = self
            .connect()
            .transact(Call::within(PATIENCE), &mut |card| {
                let body = body.take().expect("one turn");
                result = Some(body(&mut Held::Usb(card)));
            });
        held.expect("the reader");
        result.expect("a turn")
    }
}

/// The reader that has a card; the others are empty.
fn connect(mode: ShareMode) -> Result<Card, Error> {
    let context = Context::establish(Scope::User)?;
    let readers: Vec<CString> = context.list_readers_owned()?;
    let mut outcomes = readers
        .iter()
        .map(|reader| context.connect(reader, mode, Protocols::ANY));
    let found = outcomes.find(|outcome| !matches!(outcome, Err(Error::NoSmartcard)));
    found.unwrap_or(Err(Error::NoSmartcard))
}

fn reconnect(card: &mut Card, disposition: Disposition) -> Result<(), Error> {
    card.reconnect(ShareMode::Shared, Protocols::ANY, disposition)
}

/// Others may have reset the card since.
fn begin(mut card: &mut Card) -> pcsc::Transaction<'_> {
    loop {
        match card.transaction2() {
            Ok(transaction) => return transaction,
            Err((back, Error::ResetCard)) => {
                reconnect(back, Disposition::LeaveCard).expect("SCardReconnect");
                card = back;
            }
            Err((_, error)) => panic!("SCardBeginTransaction: {error}"),
        }
    }
}

fn guest(path: &std::path::Path) -> Client {
    let mut client = Client::open(path);
    let welcome = client.ask(&Request::Hello { version: VERSION });
    assert!(matches!(welcome, Said::Welcome(_)), "{welcome:?}");
    let connected = client.ask(&Request::Connect);
    assert!(matches!(connected, Said::Connected(_)), "{connected:?}");
    client
}

/// RESET RETRY COUNTER of the PIV PIN, which stays as it is.
pub fn reset_retry_counter() -> Vec<u8> {
    let data = [ADMIN_PIN.as_bytes(), &padded(PIN)].concat();
    [&[0x00, 0x2C, 0x00, 0x80, 16], &data[..]].concat()
}

/// VERIFY with a PIV PIN that is wrong.
pub fn wrong_pin() -> Vec<u8> {
    [&[0x00, 0x20, 0x00, 0x80, 8], &padded("654321")[..]].concat()
}

/// GENERAL AUTHENTICATE: a signature by the P-256 key in 9A.
pub fn sign_with_9a() -> Vec<u8> {
    let template = [0x7C, 0x24, 0x82, 0x00, 0x81, 0x20];
    [
        &[0x00, 0x87, 0x11, 0x9A, 38],
        &template[..],
        &[0x3C; 32],
        &[0x00],
    ]
    .concat()
}

/// INTERNAL AUTHENTICATE: a signature by a P-256 authentication key (OpenPGP card 3.4, 7.2.13).
pub fn authenticate_with_openpgp() -> Vec<u8> {
    [&[0x00, 0x88, 0x00, 0x00, 0x20][..], &[0x3C; 32], &[0x00]].concat()
}

/// A PIV PIN has eight bytes (SP 800-73-4 part 2, 2.4.3).
fn padded(pin: &str) -> [u8; 8] {
    let mut padded = [0xFF; 8];
    padded
        .iter_mut()
        .zip(pin.bytes())
        .for_each(|(to, from)| *to = from);
    padded
}
