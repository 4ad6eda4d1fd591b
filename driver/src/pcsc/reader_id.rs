//! Identifies pcscd's readers in this process.

use crate::reader::ReaderId;

/// The backend's name, in the configuration and in [`ReaderId`].
pub(super) const NAME: &str = "pcsc";

/// Returns the identifier of the reader that pcscd calls `name`.
pub(super) fn id(name: &str) -> ReaderId {
    ReaderId::new(NAME, name)
}
