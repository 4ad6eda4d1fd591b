//! Readers as pictures: what there is and what is in it.

use std::{fmt, sync::Arc};

use claviger_apdu::{Atr, TransportError};

/// Names one reader for the life of the process, across unplugging and a restart of its service.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId(Arc<str>);

impl ReaderId {
    /// The reader `name` of `backend`.
    #[must_use]
    pub fn new(backend: &str, name: &str) -> Self {
        Self(format!("{backend}:{name}").into())
    }

    /// The backend's part.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.0.split_once(':').map_or("", |(backend, _)| backend)
    }

    /// The reader's own name within its backend.
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

/// What a reader holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Empty,
    /// A card that answered its reset.
    Card(Atr),
    /// A card that does not answer, or not sensibly.
    Mute,
}

/// One reader at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderState {
    /// Which reader.
    pub id: ReaderId,
    /// Name for a person.
    pub name: String,
    /// What it holds.
    pub presence: Presence,
    /// Grows or wraps with every insertion and removal: two pictures of one life of the service with a card and
    /// different counts have seen it leave in between.
    pub change_count: u32,
    /// What its name is apart from the number its service gave it: when it comes back under another number, this
    /// stays.
    pub stable_name: String,
}

/// All readers of one backend at one moment.
#[derive(Clone, Debug, Default)]
pub struct ReaderSnapshot {
    /// In the backend's own order.
    pub readers: Vec<ReaderState>,
    /// Why there are none, or fewer than there could be.
    pub error: Option<TransportError>,
    /// Which life of the backend's service this is a picture of; `None` while the service is out of reach, when
    /// nobody knows what its readers hold. In another life a reader may hold another card under the same count.
    pub service_instance: Option<u32>,
}
