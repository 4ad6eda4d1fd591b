//! The readers of a backend, as its watch last saw them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::UsbReader;
use crate::reader::ReaderId;

/// The readers of the last listing.
#[derive(Debug, Default)]
pub(crate) struct ReaderRegistry(Mutex<Vec<Arc<UsbReader>>>);

impl ReaderRegistry {
    fn readers(&self) -> MutexGuard<'_, Vec<Arc<UsbReader>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, readers: Vec<Arc<UsbReader>>) {
        *self.readers() = readers;
    }

    pub(crate) fn find(&self, id: &ReaderId) -> Option<Arc<UsbReader>> {
        let readers = self.readers();
        readers
            .iter()
            .find(|reader| reader.info().id == *id)
            .cloned()
    }
}
