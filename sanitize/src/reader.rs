//! A socket reader whose card comes and goes by itself; docs/socket-reader.md has the rules.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{self, Refusal, Reply, Request, VERSION};

use crate::card::{ATR, Card};

/// Serves at `path` until the process ends. The card is in the reader for `present`, then out for `absent`.
pub(crate) fn serve(path: &Path, present: Duration, absent: Duration) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let reader = Arc::new(Reader::default());
    let mover = Arc::clone(&reader);
    std::thread::spawn(move || {
        for stay in [present, absent].into_iter().cycle() {
            std::thread::sleep(stay);
            mover.place().move_card();
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let reader = Arc::clone(&reader);
            std::thread::spawn(move || drop(reader.converse(stream)));
        }
    });
    Ok(())
}

#[derive(Default)]
struct Reader(Mutex<Place>);

/// Where the card is, or is not.
#[derive(Default)]
struct Place {
    /// How often the card was moved; it is in first.
    moves: u32,
    watchers: Vec<UnixStream>,
}

impl Place {
    const fn has_card(&self) -> bool {
        self.moves.is_multiple_of(2)
    }

    fn state(&self) -> Reply {
        let atr = if self.has_card() { &ATR[..] } else { &[] };
        Reply::State {
            atr: atr.to_vec(),
            changes: self.moves,
        }
    }

    fn move_card(&mut self) {
        self.moves += 1;
        let state = self.state();
        self.watchers
            .retain_mut(|watcher| send(watcher, &state).is_ok());
    }
}

impl Reader {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let (mut connected, mut card) = (None, Card::default());
        loop {
            let request = receive(&mut stream)?;
            let reply = match request {
                Request::Hello { .. } => Reply::Welcome {
                    version: VERSION,
                    name: "Reader of a moving card".to_owned(),
                },
                Request::Watch => {
                    let mut place = self.place();
                    send(&mut stream, &place.state())?;
                    place.watchers.push(stream.try_clone()?);
                    continue;
                }
                Request::Connect | Request::Reset => self.connect(&mut connected),
                _ if Some(self.place().moves) != connected => refuse(Refusal::CardRemoved),
                Request::Transmit(frame) => {
                    Reply::Response(Secret::new(card.answer(frame.expose())))
                }
                Request::Begin => Reply::Begun,
                Request::End => Reply::Ended,
            };
            send(&mut stream, &reply)?;
        }
    }

    fn connect(&self, connected: &mut Option<u32>) -> Reply {
        let place = self.place();
        if !place.has_card() {
            return refuse(Refusal::NoCard);
        }
        *connected = Some(place.moves);
        Reply::Connected { atr: ATR.to_vec() }
    }
}

fn refuse(refusal: Refusal) -> Reply {
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
