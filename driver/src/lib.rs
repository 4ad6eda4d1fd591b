//! Smart-card readers and the ways to their cards.
//!
//! Terms: a *backend* is one way to readers (PC/SC, a socket, raw USB); a *reader* is one place for one
//! card; a *watch* tells how a backend's readers change; a *transport* is a connection to one card.
//!
//! Data walks one way: [`Watch::next_snapshot`] gives whole pictures of a backend's readers, never single events, so
//! nothing can be lost between two looks; [`Backend::connect`] gives a [`claviger_apdu::Transport`].
//!
//! Who may block: `Watch::next_snapshot` until something changes or its [`StopHandle`] is used; `connect` and the transport
//! until the deadline of their call; what PC/SC cannot promise of that, [`pcsc`] says. It also starts the one
//! thread there is here, where that is allowed; [`Backend::cut`] ends every call that waits.

pub mod backend;
pub mod ccid;
pub mod fork;
pub mod pcsc;
pub mod pollable;
pub mod protocol;
pub mod reader;
pub mod socket;
pub mod stop;
pub mod threads;
pub mod usb;

mod fork_closed;
mod fork_guard;
mod path_watch;
mod socket_shutdown;
mod wait;

#[cfg(test)]
mod corpora;

pub use backend::{Backend, Demand, Watch};
pub use pollable::Pollable;
pub use reader::{Presence, ReaderId, ReaderSnapshot, ReaderState};
pub use stop::{StopHandle, Stopped};
