//! Follows all socket readers from one thread, with one connection for each reader, one stop flag and one watch on
//! the folders.

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

/// How long the first snapshot of [`Watch::next_snapshot`] waits for servers that have just been sent Hello.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long sending a request may take. Such a small request fits the empty buffer of a new connection.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Follows all socket readers, with one snapshot for all paths. See [`Watch`].
pub(super) struct SocketWatch {
    readers: Vec<SocketReader>,
    folders: Option<PathWatch>,
    stop: Arc<StopFlag>,
    reported: Option<Vec<ReaderState>>,
}

/// The path of one reader, and the state of its server.
struct SocketReader {
    path: PathBuf,
    id: ReaderId,
    server_state: ServerState,
    backoff: Backoff,
    /// This is added to the server's count, so that a restart of the server counts as a change too.
    change_offset: u32,
}

enum ServerState {
    Disconnected {
        why: TransportError,
        retry_at: RetryAt,
    },
    Connected(ServerConnection),
}

/// A connection, the server's name, and the last reported state of the card.
struct ServerConnection {
    stream: Stream,
    name: Option<String>,
    card: Option<(Presence, u32)>,
}

/// When to connect again to a path without a server.
#[derive(Clone, Copy)]
enum RetryAt {
    At(Instant),
    /// Connect only after the folder has changed.
    OnFolderChange,
}

impl SocketWatch {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let readers = paths.iter().map(|path| SocketReader::new(path)).collect();
        Self {
            readers,
            folders: None,
            stop: Arc::new(StopFlag::new()),
            reported: None,
        }
    }

    /// Reads all pending input and connects to the paths that are due. Then waits for more until `deadline` or the
    /// stop.
    fn poll_once(&mut self, deadline: Option<Instant>) {
        self.connect_due();
        let deadline = earliest(deadline, self.due());
        let descriptors: Vec<_> = self.descriptors().collect();
        let mut ready: VecDeque<bool> = match wait_readable(&descriptors, &self.stop, deadline) {
            Ok(ready) => ready.into(),
            Err(errno) => {
                // With valid descriptors, poll(2) fails only for lack of memory.
                tracing::warn!("socket readers: poll failed ({errno}); it is tried again");
                std::thread::sleep(SEND_TIMEOUT);
                return;
            }
        };
        let mut has_lost_server = false;
        for reader in self
            .readers
            .iter_mut()
            .filter(|reader| reader.server().is_some())
        {
            if ready.pop_front() == Some(true) {
                has_lost_server |= !reader.handle_input();
            }
        }
        if ready.pop_front() == Some(true) && self.folders.as_ref().is_some_and(PathWatch::changed)
        {
            self.folders = None;
            self.readers.iter_mut().for_each(SocketReader::try_now);
        }
        if has_lost_server {
            // A new watch includes the folder of the lost server. The paths that waited for the old watch are tried,
            // because its pending events are lost.
            self.folders = None;
            self.readers
                .iter_mut()
                .for_each(SocketReader::retry_if_waiting);
        }
    }

    /// Returns the descriptors of the connected servers, then the descriptor of the folder watch.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connected = self.readers.iter().filter_map(SocketReader::server);
        let folders = self.folders.as_ref().and_then(PathWatch::descriptor);
        connected
            .map(|server| server.stream.descriptor())
            .chain(folders)
    }

    /// Returns when the first path is due by time.
    fn due(&self) -> Option<Instant> {
        self.readers.iter().filter_map(SocketReader::due).min()
    }

    /// Connects to the paths that are due. The folders of the failed paths are then watched, and the paths are tried
    /// once more, so that a server which appears in between is not missed.
    fn connect_due(&mut self) {
        if self.folders.is_none() {
            // The kernel takes milliseconds to close a folder watch, so no watch is made if all servers are
            // connected.
            for reader in self.try_due(true) {
                if let Some(reader) = self.readers.get_mut(reader) {
                    reader.try_again_at_once();
                }
            }
        }
        if self.readers.iter().all(|reader| reader.server().is_some()) {
            self.folders = None;
            return;
        }
        let disconnected = self
            .readers
            .iter()
            .filter(|reader| reader.server().is_none());
        let paths = disconnected.map(|reader| reader.path.as_path());
        let needs_polling = self
            .folders
            .get_or_insert_with(|| PathWatch::new(paths))
            .needs_polling();
        self.try_due(needs_polling);
    }

    /// Connects to the paths that are due. Returns the paths without a server.
    fn try_due(&mut self, needs_polling: bool) -> Vec<usize> {
        let now = Instant::now();
        let mut failed = Vec::new();
        for (number, reader) in self.readers.iter_mut().enumerate() {
            if reader.due().is_some_and(|due| due <= now) {
                reader.try_to_connect(needs_polling);
                if reader.server().is_none() {
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

    fn report(&mut self) -> ReaderSnapshot {
        let readers = self.reader_states();
        self.reported = Some(readers.clone());
        ReaderSnapshot {
            readers,
            error: self.last_error(),
            // Each path has its own server. The restarts of that server count as changes.
            service_instance: Some(0),
        }
    }

    /// Returns why readers are missing from the snapshot, with the errors of all paths in one text.
    fn last_error(&self) -> Option<TransportError> {
        let errors: Vec<TransportError> = self
            .readers
            .iter()
            .filter_map(SocketReader::last_error)
            .collect();
        let what = errors
            .iter()
            .map(|error| error.what.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        let kind = errors.first()?.kind;
        Some(TransportError::before_card(kind, what))
    }

    /// Reads all pending input, tries every path, and waits for the first state of every connected server.
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
        self.report()
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
        if self.reported.is_none() {
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
        let is_new = self.reported.as_ref() != Some(&self.reader_states());
        Ok(is_new.then(|| self.report()))
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
        let why = TransportError::before_card(
            TransportErrorKind::NoService,
            "no connection has been tried yet",
        );
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let server_state = ServerState::Disconnected {
            why,
            retry_at: RetryAt::At(Instant::now()),
        };
        Self {
            path: path.to_owned(),
            id: id(path),
            server_state,
            backoff,
            change_offset: 0,
        }
    }

    fn server(&self) -> Option<&ServerConnection> {
        match &self.server_state {
            ServerState::Connected(server) => Some(server),
            ServerState::Disconnected { .. } => None,
        }
    }

    /// Returns when to try again, if that is a matter of time.
    fn due(&self) -> Option<Instant> {
        match self.server_state {
            ServerState::Disconnected {
                retry_at: RetryAt::At(when),
                ..
            } => Some(when),
            _ => None,
        }
    }

    /// Makes a path without a server due at once, because something may have changed. Resets its delays.
    fn try_now(&mut self) {
        if let ServerState::Disconnected { retry_at, .. } = &mut self.server_state {
            *retry_at = RetryAt::At(Instant::now());
            self.backoff.reset();
        }
    }

    /// Makes a path without a server due at once. Keeps its delays.
    fn try_again_at_once(&mut self) {
        if let ServerState::Disconnected { retry_at, .. } = &mut self.server_state {
            *retry_at = RetryAt::At(Instant::now());
        }
    }

    /// Makes a path due that waits for its folder. A path that waits for a delay keeps the delay.
    fn retry_if_waiting(&mut self) {
        if let ServerState::Disconnected {
            retry_at: retry_at @ RetryAt::OnFolderChange,
            ..
        } = &mut self.server_state
        {
            *retry_at = RetryAt::At(Instant::now());
        }
    }

    fn try_to_connect(&mut self, needs_polling: bool) {
        match ServerConnection::greet(&self.path) {
            Ok(server) => self.server_state = ServerState::Connected(server),
            Err(error) => self.disconnect(error, needs_polling),
        }
    }

    /// Handles the server's input. Returns false if the connection has ended.
    fn handle_input(&mut self) -> bool {
        let ServerState::Connected(server) = &mut self.server_state else {
            return false;
        };
        match server.handle_input(self.change_offset) {
            Ok(()) => true,
            Err(error) => {
                self.disconnect(error, true);
                false
            }
        }
    }

    /// Drops the connection. The reader disappears from the snapshot.
    fn disconnect(&mut self, error: StreamError, needs_polling: bool) {
        if let ServerState::Connected(ServerConnection {
            card: Some((_, changes)),
            ..
        }) = &self.server_state
        {
            self.change_offset = changes.wrapping_add(1);
        }
        tracing::debug!("socket reader {}: {error}", self.path.display());
        // A new server makes a new socket, which the folder watch reports. A server between bind(2) and listen(2)
        // needs a few more attempts. A path that cannot be watched is tried for ever.
        let retry_at = match error {
            StreamError::NoServer(Errno::NOENT | Errno::NOTDIR) | StreamError::Denied(_)
                if !needs_polling =>
            {
                RetryAt::OnFolderChange
            }
            StreamError::NoServer(_) if !needs_polling && self.backoff.at_limit() => {
                RetryAt::OnFolderChange
            }
            _ => RetryAt::At(Instant::now() + self.backoff.next_delay()),
        };
        self.server_state = ServerState::Disconnected {
            why: error.about(&self.path),
            retry_at,
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
        match &self.server_state {
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

    fn handle_input(&mut self, change_offset: u32) -> Result<(), StreamError> {
        for reply in self.stream.received()? {
            self.handle_reply(reply, change_offset)?;
        }
        Ok(())
    }

    /// Handles a reply: first Welcome, after which Watch is sent, then each State.
    fn handle_reply(&mut self, reply: Reply, change_offset: u32) -> Result<(), StreamError> {
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
                self.card = Some((presence(&atr), change_offset.wrapping_add(changes)));
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
