//! Smart-card readers and the backends that reach their cards.
//!
//! A *backend* is one way to readers: PC/SC, a socket or raw USB. A *reader* is one place for one card. A *watch*
//! follows the readers of one backend. A *transport* is an open connection to one card. `docs/glossary.md` defines
//! all words.
//!
//! [`Watch::next_snapshot`] returns snapshots of all readers of a backend, never single events. So a caller that
//! misses one snapshot loses nothing. [`Backend::connect`] returns a [`claviger_apdu::Transport`].
//!
//! Some calls block. `Watch::next_snapshot` blocks until a reader changes or its [`StopHandle`] is used. `connect`
//! and the calls of a transport block until their deadline; [`pcsc`] describes its exceptions.
//! [`Backend::abort_calls`] ends every running call.
//!
//! Where the caller allows threads, a backend may start threads of its own.

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
