//! The readers of a backend, as its watch last saw them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Station;
use crate::reader::ReaderId;

/// The readers the watch saw last.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<Vec<Arc<Station>>>);

impl Registry {
    fn stations(&self) -> MutexGuard<'_, Vec<Arc<Station>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, stations: Vec<Arc<Station>>) {
        *self.stations() = stations;
    }

    pub(crate) fn station(&self, id: &ReaderId) -> Option<Arc<Station>> {
        let stations = self.stations();
        stations
            .iter()
            .find(|station| station.site.id == *id)
            .cloned()
    }
}
