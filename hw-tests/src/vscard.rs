//! The card side of QEMU's reader: makes a [`Reader`]'s card available to `usb-ccid` with `ccid-card-passthru`.
//!
//! QEMU listens at a socket. Its client reports the card and transmits for it (libcacard's `vscard_common.h`).
//!
//! ```text
//! | type | reader | length | payload |     the first three of 4 bytes each, big endian
//! ```
//!
//! QEMU's reader forwards TPDUs unchanged and supports T=0 only, so the card uses T=0 there. The protocol has no message for
//! power: a card that the guest powers off and on keeps its state.

use std::{
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use claviger_driver::socket::frame::Refusal;

use crate::{
    reader::{CardUser, Presence, Reader, Stop},
    t0::T0,
};

/// The answer to reset for T=0, with a Nitrokey 3's historical bytes. No check byte follows (ISO 7816-3, 8.2.5).
pub const T0_ATR: [u8; 17] = [
    0x3B, 0x0F, 0x80, 0x5D, 0x4E, 0x69, 0x74, 0x72, 0x6F, 0x6B, 0x65, 0x79, 0, 0, 0, 0, 0,
];

/// Types of messages.
const INIT: u32 = 1;
const ERROR: u32 = 2;
const READER_ADD: u32 = 3;
const READER_REMOVE: u32 = 4;
const ATR: u32 = 5;
const CARD_REMOVE: u32 = 6;
const APDU: u32 = 7;

/// Content of the first message: the magic word, version 0.0.2, no capabilities.
const GREETING: [u8; 12] = *b"VSCD\0\0\0\x02\0\0\0\0";
/// Number of the only reader.
const READER: u32 = 0;
/// Codes of [`ERROR`].
const SUCCESS: [u8; 4] = [0; 4];
const GENERAL_ERROR: [u8; 4] = [0, 0, 0, 1];
/// Maximum length of a message.
const MAX_MESSAGE: u32 = 1 << 16;
/// Interval between attempts to connect to QEMU.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Reports the reader's card to QEMU while it is present, until dropped.
#[derive(Debug)]
pub struct VscardClient {
    reader: Reader,
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Line {
    path: PathBuf,
    stop: Stop,
    /// Insertions and removals so far.
    changes: AtomicU32,
    /// The open connection, so that other threads can write to it and shut it down.
    stream: Mutex<Option<UnixStream>>,
}

impl VscardClient {
    /// Connects the card of `reader` to the QEMU at `path`. Retries until QEMU listens.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(path: impl AsRef<Path>, reader: &Reader) -> io::Result<Self> {
        let line = Arc::new(Line {
            path: path.as_ref().to_owned(),
            stop: Stop::default(),
            changes: AtomicU32::new(0),
            stream: Mutex::default(),
        });
        let (running, source) = (line.clone(), reader.clone());
        let thread = std::thread::Builder::new()
            .name("vscard".into())
            .spawn(move || running.run(&source))?;
        Ok(Self {
            reader: reader.clone(),
            line,
            thread: Some(thread),
        })
    }
}

impl Drop for VscardClient {
    fn drop(&mut self) {
        self.reader.stop(&self.line.stop);
        // QEMU does not notice the end of a connection.
        let _ = self.line.send(CARD_REMOVE, &[]);
        let _ = self.line.send(READER_REMOVE, &[]);
        self.line.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Line {
    fn run(self: &Arc<Self>, reader: &Reader) {
        while !self.stop.is_set() {
            if let Ok(stream) = UnixStream::connect(&self.path) {
                let _ = self.serve(stream, reader);
                self.shut_down();
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    /// Serves one connection. The watcher reports the current card to QEMU, and then each change.
    fn serve(self: &Arc<Self>, stream: UnixStream, reader: &Reader) -> io::Result<()> {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        self.send(INIT, &GREETING)?;
        self.send(READER_ADD, reader.name().as_bytes())?;
        let line = self.clone();
        let watcher = reader.watch(move |presence| line.report(presence));
        let ended = self.answer(stream, reader);
        reader.unwatch(watcher);
        ended
    }

    fn report(&self, presence: Presence) {
        self.changes.store(presence.changes, Ordering::Release);
        // The reading thread notices that the connection has ended.
        let _ = match presence.present {
            true => self.send(ATR, &T0_ATR),
            false => self.send(CARD_REMOVE, &[]),
        };
    }

    fn answer(&self, mut stream: UnixStream, reader: &Reader) -> io::Result<()> {
        let mut card = None;
        while !self.stop.is_set() {
            match receive(&mut stream)? {
                (APDU, tpdu) => match self.transmit(&mut card, &stream, reader, &tpdu) {
                    Ok(answer) => self.send(APDU, &answer)?,
                    Err(_) => self.send(ERROR, &GENERAL_ERROR)?,
                },
                (ERROR, code) if code != SUCCESS => {
                    return Err(io::Error::other("QEMU reports an error"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn transmit(
        &self,
        card: &mut Option<Card>,
        stream: &UnixStream,
        reader: &Reader,
        tpdu: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let changes = self.changes.load(Ordering::Acquire);
        let mut inserted = match card.take().filter(|card| card.changes == changes) {
            Some(card) => card,
            None => {
                let peer = stream.try_clone().map_err(|_| Refusal::NoCard)?;
                let mut user = CardUser::new(reader, self.stop.clone(), peer.into());
                user.attach()?;
                let t0 = T0::default();
                Card { changes, user, t0 }
            }
        };
        let answer = inserted.answer(tpdu);
        *card = Some(inserted);
        answer
    }

    fn send(&self, kind: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let header = [kind, READER, length].map(u32::to_be_bytes).concat();
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(&[&header, payload].concat())
    }

    fn shut_down(&self) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One insertion of the card.
struct Card {
    changes: u32,
    user: CardUser,
    t0: T0,
}

impl Card {
    /// Executes a TPDU. A reset by the test is not reported, like a reset by bad contacts.
    fn answer(&mut self, tpdu: &[u8]) -> Result<Vec<u8>, Refusal> {
        let Self { user, t0, .. } = self;
        t0.answer(tpdu, |apdu| match user.transmit(apdu) {
            Err(Refusal::CardReset) => {
                user.attach()?;
                user.transmit(apdu)
            }
            done => done,
        })
    }
}

/// Type and payload of the next message.
fn receive(stream: &mut UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let mut word = || {
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        Ok::<_, io::Error>(u32::from_be_bytes(word))
    };
    let (kind, _, length) = (word()?, word()?, word()?);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("the message is too long"));
    }
    let mut payload = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    stream.read_exact(&mut payload)?;
    Ok((kind, payload))
}
