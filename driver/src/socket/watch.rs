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
    stream::{Stream, StreamError, shown},
};
use crate::{
    backend::Watch,
    path_watch::PathWatch,
    pollable::{self, Pollable, WaitSet},
    reader::{Presence, ReaderId, ReaderState, Readers},
    stop::{Stopped, Wake},
    wait::{Pauses, Stop, earliest, readable},
};

/// How long the first picture of [`Watch::next`] waits for servers that have just been greeted.
const GREETING: Duration = Duration::from_secs(1);
/// A request this small fits the empty buffer of a new connection.
const AT_ONCE: Duration = Duration::from_millis(100);

/// See [`Watch`]; one picture over all paths.
pub(super) struct SocketWatch {
    places: Vec<Place>,
    folders: Option<PathWatch>,
    stop: Arc<Stop>,
    shown: Option<Vec<ReaderState>>,
}

/// One path and what is behind it.
struct Place {
    path: PathBuf,
    id: ReaderId,
    link: Link,
    pauses: Pauses,
    /// Added to the server's count, so that a server's own restart counts as well.
    base: u32,
}

enum Link {
    Down { why: TransportError, again: Again },
    Up(Server),
}

/// A connection, what the server calls itself, and what it last said of its card.
struct Server {
    stream: Stream,
    name: Option<String>,
    card: Option<(Presence, u32)>,
}

/// When a path without a server is tried again.
#[derive(Clone, Copy)]
enum Again {
    At(Instant),
    /// Nothing can have changed before its folder says so.
    WhenTold,
}

impl SocketWatch {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let places = paths.iter().map(|path| Place::new(path)).collect();
        Self {
            places,
            folders: None,
            stop: Arc::new(Stop::new()),
            shown: None,
        }
    }

    /// Reads what has come and tries what is due, then waits for more until `until` or the stop.
    fn turn(&mut self, until: Option<Instant>) {
        self.connect_due();
        let until = earliest(until, self.due());
        let descriptors: Vec<_> = self.descriptors().collect();
        let mut ready: VecDeque<bool> = match readable(&descriptors, &self.stop, until) {
            Ok(ready) => ready.into(),
            Err(errno) => {
                // Out of memory is all that is left for poll(2) to complain of.
                tracing::warn!("socket readers: poll failed ({errno})");
                std::thread::sleep(AT_ONCE);
                return;
            }
        };
        let mut lost = false;
        for place in self
            .places
            .iter_mut()
            .filter(|place| place.server().is_some())
        {
            if ready.pop_front() == Some(true) {
                lost |= !place.attend();
            }
        }
        if ready.pop_front() == Some(true) && self.folders.as_ref().is_some_and(PathWatch::changed)
        {
            self.folders = None;
            self.places.iter_mut().for_each(Place::try_now);
        }
        if lost {
            // The folders are watched anew, with the lost one's; what the old watch knew must be looked at.
            self.folders = None;
            self.places.iter_mut().for_each(Place::look_again);
        }
    }

    /// Of the servers that are there, then of the folders.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let up = self.places.iter().filter_map(Place::server);
        let folders = self.folders.as_ref().and_then(PathWatch::descriptor);
        up.map(|server| server.stream.descriptor()).chain(folders)
    }

    /// When some path is to be tried without being told.
    fn due(&self) -> Option<Instant> {
        self.places.iter().filter_map(Place::due).min()
    }

    /// Tries the paths whose time has come. For those without a server their folders are watched and they are
    /// tried once more, so that a server which appears in between is not missed.
    fn connect_due(&mut self) {
        if self.folders.is_none() {
            // The kernel takes milliseconds to close a folder watch: none is made for servers that are there.
            for place in self.try_due(true) {
                if let Some(place) = self.places.get_mut(place) {
                    place.try_again_at_once();
                }
            }
        }
        if self.places.iter().all(|place| place.server().is_some()) {
            self.folders = None;
            return;
        }
        let down = self.places.iter().filter(|place| place.server().is_none());
        let paths = down.map(|place| place.path.as_path());
        let blind = self
            .folders
            .get_or_insert_with(|| PathWatch::new(paths))
            .is_blind();
        self.try_due(blind);
    }

    /// Tries the paths whose time has come; which of them have no server.
    fn try_due(&mut self, blind: bool) -> Vec<usize> {
        let now = Instant::now();
        let mut failed = Vec::new();
        for (number, place) in self.places.iter_mut().enumerate() {
            if place.due().is_some_and(|due| due <= now) {
                place.try_to_connect(blind);
                if place.server().is_none() {
                    failed.push(number);
                }
            }
        }
        failed
    }

    fn picture(&self) -> Vec<ReaderState> {
        self.places.iter().filter_map(Place::state).collect()
    }

    fn present(&mut self) -> Readers {
        let readers = self.picture();
        self.shown = Some(readers.clone());
        Readers {
            readers,
            trouble: self.trouble(),
            // Each path has a server of its own, whose restarts are counted as changes.
            service: Some(0),
        }
    }

    /// What keeps readers from the picture, all paths in one text.
    fn trouble(&self) -> Option<TransportError> {
        let troubles: Vec<TransportError> = self.places.iter().filter_map(Place::trouble).collect();
        let what = troubles
            .iter()
            .map(|trouble| trouble.what.as_str())
            .collect::<Vec<_>>()
            .join("; ");
        let kind = troubles.first()?.kind;
        Some(TransportError::before_card(kind, what))
    }

    /// Sees what has come, tries every path and waits for those that have been greeted.
    fn settle(&mut self, until: Instant) {
        self.turn(Some(Instant::now()));
        self.places.iter_mut().for_each(Place::try_now);
        self.turn(Some(Instant::now()));
        let greeting = |watch: &Self| watch.places.iter().any(Place::is_greeting);
        while greeting(self) && Instant::now() < until && !self.stop.is_set() {
            self.turn(Some(until));
        }
    }
}

impl Watch for SocketWatch {
    fn now(&mut self, call: Call) -> Readers {
        self.settle(call.deadline);
        self.present()
    }

    fn next(&mut self) -> Result<Readers, Stopped> {
        pollable::next(self)
    }

    fn pollable(&mut self) -> Option<&mut dyn Pollable> {
        Some(self)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.stop) as Arc<dyn Wake>
    }
}

impl Pollable for SocketWatch {
    fn begin(&mut self) {
        if self.shown.is_none() {
            self.settle(Instant::now() + GREETING);
        }
    }

    fn step(&mut self) -> Result<Option<Readers>, Stopped> {
        if !self.stop.is_set() {
            self.turn(Some(Instant::now()));
        }
        if self.stop.is_set() {
            return Err(Stopped);
        }
        let is_new = self.shown.as_ref() != Some(&self.picture());
        Ok(is_new.then(|| self.present()))
    }

    fn waits_on(&self) -> WaitSet<'_> {
        let mut set = WaitSet::until(&self.stop);
        set.readable(self.descriptors());
        set.due(self.due());
        set
    }
}

impl Place {
    fn new(path: &Path) -> Self {
        let why = TransportError::before_card(TransportErrorKind::NoService, "not tried yet");
        let pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(2));
        let link = Link::Down {
            why,
            again: Again::At(Instant::now()),
        };
        Self {
            path: path.to_owned(),
            id: id(path),
            link,
            pauses,
            base: 0,
        }
    }

    fn server(&self) -> Option<&Server> {
        match &self.link {
            Link::Up(server) => Some(server),
            Link::Down { .. } => None,
        }
    }

    /// When to try again without being told.
    fn due(&self) -> Option<Instant> {
        match self.link {
            Link::Down {
                again: Again::At(when),
                ..
            } => Some(when),
            _ => None,
        }
    }

    /// Makes a path without a server due at once, as something may have changed.
    fn try_now(&mut self) {
        if let Link::Down { again, .. } = &mut self.link {
            *again = Again::At(Instant::now());
            self.pauses.start_over();
        }
    }

    /// Makes a path due that has just been tried.
    fn try_again_at_once(&mut self) {
        if let Link::Down { again, .. } = &mut self.link {
            *again = Again::At(Instant::now());
        }
    }

    /// Tries a path that only waits to be told, without hurrying one that was given a pause.
    fn look_again(&mut self) {
        if let Link::Down {
            again: again @ Again::WhenTold,
            ..
        } = &mut self.link
        {
            *again = Again::At(Instant::now());
        }
    }

    fn try_to_connect(&mut self, blind: bool) {
        match Server::greet(&self.path) {
            Ok(server) => self.link = Link::Up(server),
            Err(error) => self.go_down(error, blind),
        }
    }

    /// Takes in what the server sent; `false` when the connection is over.
    fn attend(&mut self) -> bool {
        let Link::Up(server) = &mut self.link else {
            return false;
        };
        match server.attend(self.base) {
            Ok(()) => true,
            Err(error) => {
                self.go_down(error, true);
                false
            }
        }
    }

    /// Forgets the connection; the reader leaves the picture.
    fn go_down(&mut self, error: StreamError, blind: bool) {
        if let Link::Up(Server {
            card: Some((_, changes)),
            ..
        }) = &self.link
        {
            self.base = changes.wrapping_add(1);
        }
        tracing::debug!("socket reader {}: {error}", self.path.display());
        // A server must make its socket anew, and the folder tells; only one caught between bind(2) and
        // listen(2) is worth a few more attempts. A path that cannot be watched is tried for ever.
        let again = match error {
            StreamError::NoServer(Errno::NOENT | Errno::NOTDIR) | StreamError::Denied(_)
                if !blind =>
            {
                Again::WhenTold
            }
            StreamError::NoServer(_) if !blind && self.pauses.at_limit() => Again::WhenTold,
            _ => Again::At(Instant::now() + self.pauses.next_pause()),
        };
        self.link = Link::Down {
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
            changes,
            model: self.id.name().to_owned(),
        })
    }

    fn is_greeting(&self) -> bool {
        self.server().is_some_and(|server| server.card.is_none())
    }

    fn trouble(&self) -> Option<TransportError> {
        match &self.link {
            Link::Down { why, .. } => Some(why.clone()),
            Link::Up(Server { card: None, .. }) => Some(StreamError::TimedOut.about(&self.path)),
            Link::Up(_) => None,
        }
    }
}

impl Server {
    fn greet(path: &Path) -> Result<Self, StreamError> {
        let mut stream = Stream::connect(path)?;
        stream.send(
            &Request::Hello { version: VERSION },
            Instant::now() + AT_ONCE,
        )?;
        Ok(Self {
            stream,
            name: None,
            card: None,
        })
    }

    fn attend(&mut self, base: u32) -> Result<(), StreamError> {
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
                self.name = Some(shown(&name));
                self.stream.send(&Request::Watch, Instant::now() + AT_ONCE)
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
