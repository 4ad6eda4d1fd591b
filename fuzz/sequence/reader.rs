//! A socket reader whose card answers by rules, as those of the target `card`; docs/socket-reader.md has the frames.
//!
//! ```text
//! | length | ATR | then, to the end: | length | pattern | length, 2 bytes | answer |
//! pattern: how the frame begins after CLA; 00, as no frame does, is the beginning of a transaction
//! length FF01 to FF04: no answer, but the card reset, busy, out and in again, the connection lost
//! ```

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{self, Refusal, Reply, Request, VERSION};

const NOT_FOUND: [u8; 2] = [0x6A, 0x82];
const BEGIN: &[u8] = &[0];

/// The reader; its server lives as long as the process.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    place: Arc<Mutex<ReaderState>>,
    path: PathBuf,
    /// Those that serve a connection, or did.
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

#[derive(Debug, Default)]
struct ReaderState {
    atr: Vec<u8>,
    rules: Vec<Rule>,
    /// The rule to try first.
    next: usize,
    /// Insertions and removals; the card is always in again.
    changes: u32,
    watchers: Vec<UnixStream>,
}

#[derive(Clone, Debug)]
struct Rule {
    pattern: Vec<u8>,
    response: Answer,
}

#[derive(Clone, Debug)]
enum Answer {
    Frame(Vec<u8>),
    Refused(Refusal),
    Removed,
    Lost,
}

impl Reader {
    /// Serves at `path` from now on.
    pub(crate) fn serve(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let reader = Self {
            place: Arc::default(),
            path: path.to_owned(),
            threads: Arc::default(),
        };
        let served = reader.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let reader = served.clone();
                let mut threads = served.threads();
                threads.push(std::thread::spawn(move || drop(reader.converse(stream))));
            }
        });
        Ok(reader)
    }

    /// Waits until every connection has been served to its end; the clients have closed theirs. What a thread that is
    /// just ending still holds is a leak to LeakSanitizer, which looks after each input.
    pub(crate) fn settle(&self) -> io::Result<()> {
        // Connections are taken in their order: once this one is served, all are that were made before.
        let mut last = UnixStream::connect(&self.path)?;
        let hello = Request::Hello { version: VERSION };
        last.write_all(hello.encode().expose())?;
        last.read_exact(&mut [0])?;
        drop(last);
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            thread.join().map_err(|_| io::ErrorKind::Other)?;
        }
        Ok(())
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in another card, which answers as `script` says.
    pub(crate) fn insert(&self, script: &[u8]) {
        let mut place = self.place();
        let (atr, mut rest) = split(script, 1).unwrap_or_default();
        place.atr = if atr.is_empty() {
            vec![0x3B, 0]
        } else {
            atr.to_vec()
        };
        place.rules.clear();
        while let Some((rule, after)) = Rule::split(rest) {
            place.rules.push(rule);
            rest = after;
        }
        place.next = 0;
        place.exchange();
    }

    fn place(&self) -> MutexGuard<'_, ReaderState> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut connected = None;
        loop {
            let request = receive(&mut stream)?;
            let mut place = self.place();
            let reply = match request {
                Request::Hello { .. } => Reply::Welcome {
                    version: VERSION,
                    name: "Reader of scripted cards".to_owned(),
                },
                Request::Watch => {
                    let watcher = stream.try_clone()?;
                    place.watchers.push(watcher);
                    place.state()
                }
                Request::Connect | Request::Reset => {
                    connected = Some(place.changes);
                    Reply::Connected {
                        atr: place.atr.clone(),
                    }
                }
                _ if connected != Some(place.changes) => refused(Refusal::CardRemoved),
                Request::Transmit(frame) => {
                    let event = frame.expose().get(1..).unwrap_or_default();
                    place.response(event, None)?
                }
                Request::Begin => place.response(BEGIN, Some(Reply::Begun))?,
                Request::End => Reply::Ended,
            };
            send(&mut stream, &reply)?;
        }
    }
}

impl ReaderState {
    fn state(&self) -> Reply {
        Reply::State {
            atr: self.atr.clone(),
            changes: self.changes,
        }
    }

    /// The card is out and in again.
    fn exchange(&mut self) {
        self.changes += 2;
        let state = self.state();
        self.watchers
            .retain_mut(|watcher| send(watcher, &state).is_ok());
    }

    fn rule(&mut self, event: &[u8]) -> Option<Answer> {
        let mut turns = (self.next..self.rules.len()).chain(0..self.next);
        let at = turns.find(|at| self.rules[*at].is_for(event))?;
        self.next = at + 1;
        Some(self.rules[at].response.clone())
    }

    /// What the rules say; without one, `otherwise` or that there is no such thing.
    fn response(&mut self, event: &[u8], otherwise: Option<Reply>) -> io::Result<Reply> {
        Ok(match self.rule(event) {
            Some(Answer::Frame(_)) | None if otherwise.is_some() => {
                otherwise.unwrap_or(Reply::Begun)
            }
            Some(Answer::Frame(response)) => Reply::Response(Secret::new(response)),
            None => Reply::Response(Secret::copy_from(&NOT_FOUND)),
            Some(Answer::Refused(refusal)) => refused(refusal),
            Some(Answer::Removed) => {
                self.exchange();
                refused(Refusal::CardRemoved)
            }
            Some(Answer::Lost) => return Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

impl Rule {
    fn is_for(&self, event: &[u8]) -> bool {
        if event == BEGIN {
            self.pattern == BEGIN
        } else {
            event.starts_with(&self.pattern)
        }
    }

    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (pattern, rest) = split(bytes, 1)?;
        let (response, rest) = match rest {
            [0xFF, 0x01, rest @ ..] => (Answer::Refused(Refusal::CardReset), rest),
            [0xFF, 0x02, rest @ ..] => (Answer::Refused(Refusal::Busy), rest),
            [0xFF, 0x03, rest @ ..] => (Answer::Removed, rest),
            [0xFF, 0x04, rest @ ..] => (Answer::Lost, rest),
            _ => split(rest, 2).map(|(response, rest)| (Answer::Frame(response.to_vec()), rest))?,
        };
        let pattern = pattern.to_vec();
        Some((Self { pattern, response }, rest))
    }
}

/// What a length of `size` bytes announces, or as much as there is, and the rest; `None` at the end.
pub(crate) fn split(bytes: &[u8], size: usize) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_at_checked(size)?;
    let len = len
        .iter()
        .fold(0, |len, byte| len << 8 | usize::from(*byte));
    Some(rest.split_at(len.min(rest.len())))
}

fn refused(refusal: Refusal) -> Reply {
    let text = String::new();
    Reply::Refused { refusal, text }
}

fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    stream.write_all(reply.encode().expose())
}

fn receive(stream: &mut UnixStream) -> io::Result<Request> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; frame::body_len(length).map_err(io::Error::other)?];
    stream.read_exact(&mut body)?;
    Request::parse(&body).map_err(io::Error::other)
}
