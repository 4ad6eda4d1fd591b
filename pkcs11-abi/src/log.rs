//! The log: one line for each event, in one write, without a lock that a fork could leave held.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// The log level. Each level includes the lower levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(u8);

impl Level {
    pub(crate) const OFF: Self = Self(0);
    pub(crate) const ERROR: Self = Self(1);
    pub(crate) const WARN: Self = Self(2);
    pub(crate) const INFO: Self = Self(3);
    pub(crate) const DEBUG: Self = Self(4);
    pub(crate) const TRACE: Self = Self(5);

    fn of(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::ERROR,
            tracing::Level::WARN => Self::WARN,
            tracing::Level::INFO => Self::INFO,
            tracing::Level::DEBUG => Self::DEBUG,
            tracing::Level::TRACE => Self::TRACE,
        }
    }
}

/// Returns the level with this name.
pub(crate) fn level(name: &str) -> Option<Level> {
    match name {
        "off" => Some(Level::OFF),
        "error" => Some(Level::ERROR),
        "warn" => Some(Level::WARN),
        "info" => Some(Level::INFO),
        "debug" => Some(Level::DEBUG),
        "trace" => Some(Level::TRACE),
        _ => None,
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::WARN.0);
static FILE: OnceLock<File> = OnceLock::new();

/// Sets the level. The first call with a file opens that file for appending; later calls do not change the file.
pub(crate) fn start(level: Level, file: Option<&Path>) {
    LEVEL.store(level.0, Ordering::Relaxed);
    // The dispatcher is this library's own copy, not the application's. A later call fails, because the dispatcher is set.
    let _ = tracing::subscriber::set_global_default(LineSubscriber);
    if let Some(path) = file
        && FILE.get().is_none()
    {
        match File::options().create(true).append(true).open(path) {
            Ok(file) => drop(FILE.set(file)),
            Err(error) => tracing::error!(
                "log file {}: {error}; logging to standard error",
                path.display()
            ),
        }
    }
    tracing::callsite::rebuild_interest_cache();
}

/// Writes each event as one line.
struct LineSubscriber;

impl Subscriber for LineSubscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Level::of(*metadata.level()).0 <= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::with_capacity(120));
        let _ = write!(
            line.0,
            "claviger[{}] {}",
            std::process::id(),
            event.metadata().level()
        );
        if event.metadata().target() == "apdu" {
            line.0.push_str(" apdu");
        }
        event.record(&mut line);
        // Devices supply names. A control character in a name must not forge a line or control a terminal.
        line.0.retain(|character| !character.is_control());
        line.0.push('\n');
        // One write keeps the lines of several processes whole. A log that cannot be written must not fail a call.
        match FILE.get() {
            Some(mut file) => drop(file.write_all(line.0.as_bytes())),
            // The standard library's stderr takes a lock, which a fork may leave held.
            None => drop(rustix::io::write(
                rustix::stdio::stderr(),
                line.0.as_bytes(),
            )),
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, ": {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
