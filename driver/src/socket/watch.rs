//! Follows all socket readers from one thread: one connection each, one stop, one watch on their folders.

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use claviger_apdu::{Atr, Call, TransportError, TransportErrorKind};
use rustix::io::Errno;

use super::{
    frame::{Reply, Request, VERSION},
    reader_id::id,
    stream::{Stream, StreamError, sanitized},
};
use crate::{
    backend::Watch,
    path_watch::PathWatch,
    pollable::{self, Pollable, WaitSet},
    reader::{Presence, ReaderId, ReaderSnapshot, ReaderState},
    stop::{StopHandle, Stopped},
    wait::{Backoff, StopFlag, earliest, wait_readable},
};

/// How long the first picture of [`Watch::next_snapshot`] waits for servers that have just been greeted.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// A request this small fits the empty buffer of a new connection.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// See [`Watch`]; one picture over all paths.
pub(super) struct SocketWatch {
    readers: Vec<SocketReader>,
    folders: Option<PathWatch>,
    stop: Arc<StopFlag>,
    shown: Option<Vec<ReaderState>>,
}

/// One path and what is behind it.
struct SocketReader {
    path: PathBuf,
    id: ReaderId,
    link: ServerState,
    pauses: Backoff,
    /// Added to the server's count, so that a server's own restart counts as well.
    change_offset: u32,
}

enum ServerState {
    Disconnected { why: TransportError, again: RetryAt },
    Connected(ServerConnection),
}

/// A connection, what the server calls itself, and what it last said of its card.
struct ServerConnection {
    stream: Stream,
    name: Option<String>,
    card: Option<(Presence, u32)>,
}

/// When a path without a server is tried again.
#[derive(Clone, Copy)]
enum RetryAt {
    At(Instant),
    /// Nothing can have changed before its folder says so.
    WhenTold,
}

impl SocketWatch {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let readers = paths.iter().map(|path| SocketReader::new(path)).collect();
        Self {
            readers,
            folders: None,
            stop: Arc::new(StopFlag::new()),
            shown: None,
        }
    }

    /// Reads what has come and tries what is due, then waits for more until `until` or the stop.
    fn poll_once(&mut self, deadline: Option<Instant>) {
        self.connect_due();
        let deadline = earliest(deadline, self.due());
        let descriptors: Vec<_> = self.descriptors().collect();
        let mut ready: VecDeque<bool> = match wait_readable(&descriptors, &self.stop, deadline) {
            Ok(ready) => ready.into(),
            Err(errno) => {
                // Out of memory is all that is left for poll(2) to complain of.
                tracing::warn!("socket readers: poll failed ({errno})");
                std::thread::sleep(SEND_TIMEOUT);
                return;
            }
        };
        let mut lost = false;
        for place in self
            .readers
            .iter_mut()
            .filter(|place| place.server().is_some())
        {
            if ready.pop_front() == Some(true) {
                lost |= !place.handle_input();
            }
        }
        if ready.pop_front() == Some(true) && self.folders.as_ref().is_some_and(PathWatch::changed)
        {
            self.folders = None;
            self.readers.iter_mut().for_each(SocketReader::try_now);
        }
        if lost {
            // The folders are watched anew, with the lost one's; what the old watch knew must be looked at.
            self.folders = None;
            self.readers
                .iter_mut()
                .for_each(SocketReader::retry_if_waiting);
        }
    }

    /// Of the servers that are there, then of the folders.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let up = self.readers.iter().filter_map(SocketReader::server);
        let folders = self.folders.as_ref().and_then(PathWatch::descriptor);
        up.map(|server| server.stream.descriptor()).chain(folders)
    }

    /// When some path is to be tried without being told.
    fn due(&self) -> Option<Instant> {
        self.readers.iter().filter_map(SocketReader::due).min()
    }

    /// Tries the paths whose time has come. For those without a server their folders are watched and they are
    /// tried once more, so that a server which appears in between is not missed.
    fn connect_due(&mut self) {
        if self.folders.is_none() {
            // The kernel takes milliseconds to close a folder watch: none is made for servers that are there.
            for place in self.try_due(true) {
                if let Some(place) = self.readers.get_mut(place) {
                    place.try_again_at_once();
                }
            }
        }
        if self.readers.iter().all(|place| place.server().is_some()) {
            self.folders = None;
            return;
        }
        let down = self.readers.iter().filter(|place| place.server().is_none());
        let paths = down.map(|place| place.path.as_path());
        let blind = self
            .folders
            .get_or_insert_with(|| PathWatch::new(paths))
            .needs_polling();
        self.try_due(blind);
    }

    /// Tries the paths whose time has come; which of them have no server.
    fn try_due(&mut self, blind: bool) -> Vec<usize> {
        let now = Instant::now();
        let mut failed = Vec::new();
        for (number, place) in self.readers.iter_mut().enumerate() {
            if place.due().is_some_and(|due| due <= now) {
                place.try_to_connect(blind);
                if place.server().is_none() {
                    failed.push(number);
                }
            }
        }
        failed
    }

    fn reader_states(&self) -> Vec<ReaderState> {
        self.readers
            .iter()
            .filter_map(SocketReader::state)
            .collect()
    }

    fn present(&mut self) -> ReaderSnapshot {
        let readers = self.reader_states();
        self.shown = Some(readers.clone());
        ReaderSnapshot {
            readers,
            error: self.last_error(),
            // Each path has a server of its own, whose restarts are counted as changes.
            service_instance: Some(0),
        }
    }

    /// What keeps readers from the picture, all paths in one text.
    fn last_error(&self) -> Option<TransportError> {
        let troubles: Vec<TransportError> = self
            .readers
            .iter()
            .filter_map(SocketReader::last_error)
            .collect();
        let what = troubles
            .iter()
            .map(|trouble| trouble.what.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        let kind = troubles.first()?.kind;
        Some(TransportError::before_card(kind, what))
    }

    /// Sees what has come, tries every path and waits for those that have been greeted.
    fn query_all(&mut self, deadline: Instant) {
        self.poll_once(Some(Instant::now()));
        self.readers.iter_mut().for_each(SocketReader::try_now);
        self.poll_once(Some(Instant::now()));
        let greeting = |watch: &Self| watch.readers.iter().any(SocketReader::is_greeting);
        while greeting(self) && Instant::now() < deadline && !self.stop.is_set() {
            self.poll_once(Some(deadline));
        }
    }
}

impl Watch for SocketWatch {
    fn snapshot(&mut self, call: Call) -> ReaderSnapshot {
        self.query_all(call.deadline);
        self.present()
    }

    fn next_snapshot(&mut self) -> Result<ReaderSnapshot, Stopped> {
        pollable::next(self)
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        Some(self)
    }

    fn stop_handle(&self) -> Arc<dyn StopHandle> {
        Arc::clone(&self.stop) as Arc<dyn StopHandle>
    }
}

impl Pollable for SocketWatch {
    fn begin(&mut self) {
        if self.shown.is_none() {
            self.query_all(Instant::now() + GREETING_TIMEOUT);
        }
    }

    fn step(&mut self) -> Result<Option<ReaderSnapshot>, Stopped> {
        if !self.stop.is_set() {
            self.poll_once(Some(Instant::now()));
        }
        if self.stop.is_set() {
            return Err(Stopped);
        }
        let is_new = self.shown.as_ref() != Some(&self.reader_states());
        Ok(is_new.then(|| self.present()))
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let mut set = WaitSet::until_stopped(&self.stop);
        set.readable(self.descriptors());
        set.due(self.due());
        set
    }
}

impl SocketReader {
    fn new(path: &Path) -> Self {
        let why = TransportError::before_card(TransportErrorKind::NoService, "not tried yet");
        let pauses = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let link = ServerState::Disconnected {
            why,
            again: RetryAt::At(Instant::now()),
        };
        Self {
            path: path.to_owned(),
            id: id(path),
            link,
            pauses,
            change_offset: 0,
        }
    }

    fn server(&self) -> Option<&ServerConnection> {
        match &self.link {
            ServerState::Connected(server) => Some(server),
            ServerState::Disconnected { .. } => None,
        }
    }

    /// When to try again without being told.
    fn due(&self) -> Option<Instant> {
        match self.link {
            ServerState::Disconnected {
                again: RetryAt::At(when),
                ..
            } => Some(when),
            _ => None,
        }
    }

    /// Makes a path without a server due at once, as something may have changed.
    fn try_now(&mut self) {
        if let ServerState::Disconnected { again, .. } = &mut self.link {
            *again = RetryAt::At(Instant::now());
            self.pauses.reset();
        }
    }

    /// Makes a path due that has just been tried.
    fn try_again_at_once(&mut self) {
        if let ServerState::Disconnected { again, .. } = &mut self.link {
            *again = RetryAt::At(Instant::now());
        }
    }

    /// Tries a path that only waits to be told, without hurrying one that was given a pause.
    fn retry_if_waiting(&mut self) {
        if let ServerState::Disconnected {
            again: again @ RetryAt::WhenTold,
            ..
        } = &mut self.link
        {
            *again = RetryAt::At(Instant::now());
        }
    }

    fn try_to_connect(&mut self, blind: bool) {
        match ServerConnection::greet(&self.path) {
            Ok(server) => self.link = ServerState::Connected(server),
            Err(error) => self.go_down(error, blind),
        }
    }

    /// Takes in what the server sent; `false` when the connection is over.
    fn handle_input(&mut self) -> bool {
        let ServerState::Connected(server) = &mut self.link else {
            return false;
        };
        match server.handle_input(self.change_offset) {
            Ok(()) => true,
            Err(error) => {
                self.go_down(error, true);
                false
            }
        }
    }

    /// Forgets the connection; the reader leaves the picture.
    fn go_down(&mut self, error: StreamError, blind: bool) {
        if let ServerState::Connected(ServerConnection {
            card: Some((_, changes)),
            ..
        }) = &self.link
        {
            self.change_offset = changes.wrapping_add(1);
        }
        tracing::debug!("socket reader {}: {error}", self.path.display());
        // A server must make its socket anew, and the folder tells; only one caught between bind(2) and
        // listen(2) is worth a few more attempts. A path that cannot be watched is tried for ever.
        let again = match error {
            StreamError::NoServer(Errno::NOENT | Errno::NOTDIR) | StreamError::Denied(_)
                if !blind =>
            {
                RetryAt::WhenTold
            }
            StreamError::NoServer(_) if !blind && self.pauses.at_limit() => RetryAt::WhenTold,
            _ => RetryAt::At(Instant::now() + self.pauses.next_delay()),
        };
        self.link = ServerState::Disconnected {
            why: error.about(&self.path),
            again,
        };
    }

    fn state(&self) -> Option<ReaderState> {
        let server = self.server()?;
        let (presence, changes) = server.card.clone()?;
        let name = server.name.clone().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| self.id.name().to_owned());
        Some(ReaderState {
            id: self.id.clone(),
            name,
            presence,
            change_count: changes,
            stable_name: self.id.name().to_owned(),
        })
    }

    fn is_greeting(&self) -> bool {
        self.server().is_some_and(|server| server.card.is_none())
    }

    fn last_error(&self) -> Option<TransportError> {
        match &self.link {
            ServerState::Disconnected { why, .. } => Some(why.clone()),
            ServerState::Connected(ServerConnection { card: None, .. }) => {
                Some(StreamError::TimedOut.about(&self.path))
            }
            ServerState::Connected(_) => None,
        }
    }
}

impl ServerConnection {
    fn greet(path: &Path) -> Result<Self, StreamError> {
        let mut stream = Stream::connect(path)?;
        stream.send(
            &Request::Hello { version: VERSION },
            Instant::now() + SEND_TIMEOUT,
        )?;
        Ok(Self {
            stream,
            name: None,
            card: None,
        })
    }

    fn handle_input(&mut self, base: u32) -> Result<(), StreamError> {
        for reply in self.stream.received()? {
            self.take(reply, base)?;
        }
        Ok(())
    }

    /// First Welcome, which is answered by Watch, then State after State.
    fn take(&mut self, reply: Reply, base: u32) -> Result<(), StreamError> {
        match reply {
            Reply::Welcome { version, .. } if version != VERSION => {
                Err(StreamError::Version(version))
            }
            Reply::Welcome { name, .. } if self.name.is_none() => {
                self.name = Some(sanitized(&name));
                self.stream
                    .send(&Request::Watch, Instant::now() + SEND_TIMEOUT)
            }
            Reply::State { atr, changes } if self.name.is_some() => {
                self.card = Some((presence(&atr), base.wrapping_add(changes)));
                Ok(())
            }
            _ => Err(StreamError::OutOfOrder),
        }
    }
}

fn presence(atr: &[u8]) -> Presence {
    match (atr, Atr::parse(atr)) {
        ([], _) => Presence::Empty,
        (_, Ok(atr)) => Presence::Card(atr),
        (_, Err(_)) => Presence::Mute,
    }
}
