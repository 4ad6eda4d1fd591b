//! The PKCS #11 module `libclaviger_pkcs11.so`.
//!
//! A *slot* is one reader with one applet. It holds a *token*. A *session* belongs to one token. A *generation* of the module
//! lasts from C_Initialize to C_Finalize.
//!
//! The path of a call: its entry point in `function_list` → the boundary in `entry` (panic, generation, fork, log) → one safe
//! function in `functions` → `TokenRef::with_token` in `card` → `claviger_token::Token`. State that lasts longer than a call
//! is in `operations`. The path of an event: `Watch::next_snapshot` → the loop of the watcher in `events` → `sources` →
//! `SlotTable::apply`.
//!
//! C_WaitForSlotEvent blocks until an event or C_Finalize. A call that uses a card blocks as long as the card takes. All other
//! waits are bounded: for a snapshot of the readers, and in C_Finalize for the active calls. Locks held while a card works: that
//! card's lock and its session's operations. No other.
//!
//! The exported symbols are the functions of Cryptoki, and nothing else.

mod card;
mod card_state;
mod config;
mod entry;
mod error_report;
mod event_queue;
mod events;
mod fork;
mod function_list;
mod functions;
mod handle;
mod idle;
mod known_reader;
mod lifecycle;
mod log;
mod module;
mod object_handles;
mod operations;
mod parameter;
mod pointer;
mod privilege;
mod rv;
mod sessions;
mod slots;
mod sources;
mod sync;
mod threads;
mod visibility;
