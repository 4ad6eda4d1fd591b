//! Snapshots of readers and of the cards in them.

use std::{fmt, sync::Arc};

use claviger_apdu::{Atr, TransportError};

/// Identifies one reader as long as the process runs, across unplugging and a restart of its service.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId(Arc<str>);

impl ReaderId {
    /// Returns the identifier of the reader `name` of `backend`.
    #[must_use]
    pub fn new(backend: &str, name: &str) -> Self {
        Self(format!("{backend}:{name}").into())
    }

    /// Returns the name of the backend.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.0.split_once(':').map_or("", |(backend, _)| backend)
    }

    /// Returns the reader's name within its backend.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for ReaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReaderId({self})")
    }
}

/// Whether a reader holds a card, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The reader holds no card.
    Empty,
    /// The reader holds a card that sent an answer to reset.
    Card(Atr),
    /// The reader holds a card that sent no answer to reset, or a malformed one.
    Mute,
}

/// One reader at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderState {
    /// Identifies the reader.
    pub id: ReaderId,
    /// The name to show to a person.
    pub name: String,
    /// The card in the reader.
    pub presence: Presence,
    /// Changes with every insertion and removal, and wraps. If two snapshots of one service instance show a card but
    /// different counts, the card was removed in between.
    pub change_count: u32,
    /// The name without the number that the service assigns. It identifies the reader after renumbering.
    pub stable_name: String,
}

/// All readers of one backend at one moment.
#[derive(Clone, Debug, Default)]
pub struct ReaderSnapshot {
    /// The readers, in the backend's order.
    pub readers: Vec<ReaderState>,
    /// Why readers are missing. `None` if the backend reached all its readers.
    pub error: Option<TransportError>,
    /// The instance of the backend's service. `None` while the service is unreachable; the state of its readers is
    /// then unknown. Under another instance, a reader may hold another card with the same change count.
    pub service_instance: Option<u32>,
}
