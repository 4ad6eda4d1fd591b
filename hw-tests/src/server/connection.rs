//! One connection of a client: a greeting, then either a watch or requests for the card.

use std::{
    io::{self, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{Refusal, Reply, Request, VERSION, body_len};

use crate::reader::{CardUser, Presence, Reader, Stop};

/// Timeout for a write to a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    inbox: BufReader<UnixStream>,
    outbox: UnixStream,
    reader: Reader,
    stop: Stop,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, reader: Reader, stop: Stop) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self {
            inbox: BufReader::new(stream.try_clone()?),
            outbox: stream,
            reader,
            stop,
        })
    }

    /// Serves the client until it disconnects, violates the protocol, or the server stops.
    pub(super) fn run(mut self) {
        let ended = self.serve();
        if let Err(error) = ended
            && error.kind() == io::ErrorKind::InvalidData
        {
            let reply = Reply::Refused {
                refusal: Refusal::Protocol,
                text: error.to_string(),
            };
            let _ = self.send(&reply);
        }
        let _ = self.outbox.shutdown(Shutdown::Both);
    }

    fn serve(&mut self) -> io::Result<()> {
        match self.receive()? {
            Request::Hello { version: VERSION } => {}
            Request::Hello { version } => {
                return Err(out_of_order(&format!(
                    "version {version}; {VERSION} is spoken here"
                )));
            }
            _ => return Err(out_of_order("Hello comes first")),
        }
        self.send(&Reply::Welcome {
            version: VERSION,
            name: self.reader.name().to_owned(),
        })?;
        let first = self.receive()?;
        if matches!(first, Request::Watch) {
            return self.watch();
        }
        let peer = self.outbox.try_clone()?.into();
        let mut user = CardUser::new(&self.reader, self.stop.clone(), peer);
        self.answer(&mut user, &first)?;
        loop {
            let request = self.receive()?;
            self.answer(&mut user, &request)?;
        }
    }

    fn answer(&mut self, user: &mut CardUser, request: &Request) -> io::Result<()> {
        let done = match request {
            Request::Hello { .. } | Request::Watch => Err(Refusal::Protocol),
            Request::Connect => user.connect().map(|()| self.connected()),
            Request::Transmit(frame) => user
                .transmit(frame.expose())
                .map(|answer| Reply::Response(Secret::new(answer))),
            Request::Begin => user.begin().map(|()| Reply::Begun),
            Request::End => user.end().map(|()| Reply::Ended),
            Request::Reset => user.reset().map(|()| self.connected()),
        };
        match done {
            Ok(reply) => self.send(&reply),
            Err(Refusal::Protocol) => {
                Err(out_of_order(&format!("{} is out of order", name(request))))
            }
            Err(refusal) => self.send(&Reply::Refused {
                refusal,
                text: text(refusal).to_owned(),
            }),
        }
    }

    /// Sends each change of the card to the client. The client may only disconnect.
    fn watch(&mut self) -> io::Result<()> {
        let mut outbox = self.outbox.try_clone()?;
        let atr = self.reader.atr().to_vec();
        let watcher = self.reader.watch(move |Presence { present, changes }| {
            let atr = if present { atr.clone() } else { Vec::new() };
            if outbox
                .write_all(Reply::State { atr, changes }.encode().expose())
                .is_err()
            {
                let _ = outbox.shutdown(Shutdown::Both);
            }
        });
        let request = self.receive();
        self.reader.unwatch(watcher);
        request.and_then(|request| Err(out_of_order(&format!("{} after Watch", name(&request)))))
    }

    fn connected(&self) -> Reply {
        Reply::Connected {
            atr: self.reader.atr().to_vec(),
        }
    }

    fn send(&mut self, reply: &Reply) -> io::Result<()> {
        self.outbox.write_all(reply.encode().expose())
    }

    fn receive(&mut self) -> io::Result<Request> {
        let mut length = [0; 4];
        self.inbox.read_exact(&mut length)?;
        let len = body_len(length).map_err(|error| out_of_order(&error.to_string()))?;
        let mut body = vec![0; len];
        self.inbox.read_exact(&mut body)?;
        Request::parse(&body).map_err(|error| out_of_order(&error.to_string()))
    }
}

fn out_of_order(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

const fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "Hello",
        Request::Watch => "Watch",
        Request::Connect => "Connect",
        Request::Transmit(_) => "Transmit",
        Request::Begin => "Begin",
        Request::End => "End",
        Request::Reset => "Reset",
    }
}

const fn text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoCard => "there is no card in the reader",
        Refusal::CardRemoved => "the card was removed",
        Refusal::CardReset => "the card was reset by another user",
        Refusal::Busy => "another user holds the card",
        Refusal::Protocol => "out of order",
    }
}
