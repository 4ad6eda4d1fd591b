//! Identifies socket readers in this process.

use std::path::Path;

use crate::reader::ReaderId;

/// The backend's name, in the configuration and in [`ReaderId`].
pub(super) const NAME: &str = "socket";

/// Returns the identifier of the reader at `path`.
pub(super) fn id(path: &Path) -> ReaderId {
    ReaderId::new(NAME, &path.to_string_lossy())
}
