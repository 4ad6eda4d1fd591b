//! A fake server of a socket reader, and helpers of the socket tests.
#![allow(dead_code, unreachable_pub, reason = "shared by several test programs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failing helper is a failing test"
)]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use claviger_apdu::{Call, ResponseBuffer, Secret, Transmit, Transport, TransportError};
use claviger_driver::{
    Backend, ReaderId,
    socket::{
        SocketBackend,
        frame::{self, Refusal, Reply, Request, VERSION},
    },
};

/// A busy machine may pause a process for long. Only a hang exceeds this time.
pub const HANG: Duration = Duration::from_secs(20);

/// An answer to reset that parses.
pub const ATR: [u8; 4] = [0x3B, 0x02, 0x14, 0x50];

/// A new folder for one test, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("claviger-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Listens on a path and runs `script` on each connection. Dropping it ends the server and removes the socket file.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(path: &Path, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let accepting = listener.try_clone().unwrap();
        let streams = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (all, count, script) = (
            Arc::clone(&streams),
            Arc::clone(&accepted),
            Arc::new(script),
        );
        let thread = std::thread::spawn(move || {
            let mut peers = Vec::new();
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::SeqCst);
                all.lock().unwrap().push(stream.try_clone().unwrap());
                let script = Arc::clone(&script);
                peers.push(std::thread::spawn(move || {
                    let mut peer = Peer(stream);
                    script(&mut peer);
                    let _ = peer.0.shutdown(std::net::Shutdown::Both);
                }));
            }
            peers.into_iter().for_each(|peer| peer.join().unwrap());
        });
        Self {
            path: path.to_owned(),
            listener,
            streams,
            accepted,
            thread: Some(thread),
        }
    }

    /// Returns the number of connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Ends the server but leaves its socket file, as a killed process does.
    pub fn die(self) -> PathBuf {
        let aside = self.path.with_extension("aside");
        std::fs::rename(&self.path, &aside).unwrap();
        let path = self.path.clone();
        drop(self);
        std::fs::rename(&aside, &path).unwrap();
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
        // A connection may not be in the list yet when the listener is shut down.
        while self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            for stream in self.streams.lock().unwrap().drain(..) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
            std::thread::yield_now();
        }
        let joined = self.thread.take().unwrap().join();
        assert!(
            std::thread::panicking() || joined.is_ok(),
            "the server's script failed"
        );
    }
}

/// The server's end of one connection.
pub struct Peer(UnixStream);

impl Peer {
    /// Returns the next request, or `None` once the client has closed the connection.
    pub fn next(&mut self) -> Option<Request> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; frame::body_len(length).expect("a length of the protocol")];
        self.0.read_exact(&mut body).ok()?;
        Some(Request::parse(&body).expect("a request of the protocol"))
    }

    pub fn reply(&mut self, reply: &Reply) {
        self.raw(reply.encode().expose());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Receives Hello and replies Welcome.
    pub fn welcome(&mut self, name: &str) -> Option<()> {
        let Request::Hello { version: VERSION } = self.next()? else {
            panic!("Hello comes first")
        };
        self.reply(&Reply::Welcome {
            version: VERSION,
            name: name.to_owned(),
        });
        Some(())
    }

    pub fn state(&mut self, atr: &[u8], changes: u32) {
        self.reply(&Reply::State {
            atr: atr.to_vec(),
            changes,
        });
    }

    pub fn refuse(&mut self, refusal: Refusal) {
        self.reply(&Reply::Refused {
            refusal,
            text: "refused by\nthe test".into(),
        });
    }

    /// Replies to all further requests until the client closes the connection. The card responds 9000 to every
    /// command.
    pub fn serve(&mut self) {
        while let Some(request) = self.next() {
            self.answer(&request);
        }
    }

    /// Sends the usual reply to `request`.
    pub fn answer(&mut self, request: &Request) {
        match request {
            Request::Hello { .. } => {
                self.reply(&Reply::Welcome {
                    version: VERSION,
                    name: "Test reader".into(),
                });
            }
            Request::Watch => self.state(&ATR, 1),
            Request::Connect | Request::Reset => {
                self.reply(&Reply::Connected { atr: ATR.to_vec() });
            }
            Request::Transmit(_) => self.reply(&Reply::Response(Secret::copy_from(&[0x90, 0x00]))),
            Request::Begin => self.reply(&Reply::Begun),
            Request::End => self.reply(&Reply::Ended),
        }
    }
}

impl From<UnixStream> for Peer {
    fn from(stream: UnixStream) -> Self {
        Self(stream)
    }
}

/// Returns the number of voluntary context switches of thread `tid` of this process so far.
pub fn switches(tid: rustix::process::Pid) -> u64 {
    let status = format!("/proc/self/task/{}/status", tid.as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt_switches"))
        .unwrap();
    line.rsplit('\t').next().unwrap().parse().unwrap()
}

/// Returns whether a thread sleeps for a whole `window`. It gets several tries, because it may have to finish other
/// work first.
pub fn sleeps_for(window: Duration, tid: rustix::process::Pid) -> bool {
    (0..10).any(|_| {
        let before = switches(tid);
        std::thread::sleep(window);
        switches(tid) == before
    })
}

/// Returns how long after `begun` a server had accepted `count` connections. Returns `None` if it never had.
pub fn time_of(count: usize, accepted: impl Fn() -> usize, begun: Instant) -> Option<Duration> {
    while accepted() < count {
        if begun.elapsed() > HANG {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(begun.elapsed())
}

pub const SELECT: [u8; 4] = [0x00, 0xA4, 0x04, 0x00];

pub fn soon() -> Call {
    Call::within(HANG)
}

pub fn try_connect(path: &Path, call: Call) -> Result<Box<dyn Transport>, TransportError> {
    let id = ReaderId::new("socket", path.to_str().unwrap());
    SocketBackend::new(vec![path.to_owned()]).connect(&id, call)
}

pub fn connect(path: &Path) -> Box<dyn Transport> {
    try_connect(path, soon()).unwrap()
}

pub fn send(card: &mut dyn Transmit, call: Call) -> Result<Vec<u8>, TransportError> {
    let mut response = ResponseBuffer::new();
    card.transmit(&SELECT, &mut response, call)?;
    Ok(response.frame().to_vec())
}

/// Starts a server that runs `misbehave` at the `at`th request after Connect, and behaves well before and after it.
pub fn misbehaving(
    path: &Path,
    at: usize,
    misbehave: impl Fn(&mut Peer, &Request) + Send + Sync + 'static,
) -> Server {
    Server::start(path, move |peer| {
        let mut count = 0;
        while let Some(request) = peer.next() {
            count += usize::from(!matches!(request, Request::Hello { .. } | Request::Connect));
            if count == at && !matches!(request, Request::Connect) {
                misbehave(peer, &request);
            } else {
                peer.answer(&request);
            }
        }
    })
}

/// Starts a server that records the names of all requests.
pub fn recording(path: &Path) -> (Server, Arc<Mutex<Vec<String>>>) {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&requests);
    let server = Server::start(path, move |peer| {
        while let Some(request) = peer.next() {
            let name = format!("{request:?}");
            let name = name
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap()
                .to_owned();
            record.lock().unwrap().push(name);
            peer.answer(&request);
        }
        record.lock().unwrap().push("closed".into());
    });
    (server, requests)
}
