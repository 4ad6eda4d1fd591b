//! Identifies pcscd's readers within the process.

use crate::reader::ReaderId;

/// The backend's name, in the configuration and in [`ReaderId`].
pub(super) const NAME: &str = "pcsc";

/// The identifier of the reader that pcscd calls `name`.
pub(super) fn id(name: &str) -> ReaderId {
    ReaderId::new(NAME, name)
}
