//! The PKCS #11 module `libclaviger_pkcs11.so`.
//!
//! Terms are the standard's: a *slot* is one reader with one applet; a *token* is in it; a *session* belongs to one
//! token; the *module* lives from C_Initialize to C_Finalize, and each such life is a *generation*.
//!
//! A call walks: its entry point in `function_list` → the boundary in `entry` (panic, generation, fork, log) → one safe
//! function in `functions` → `TokenRef::with_token` in `card` → `claviger_token::Token`. What lasts longer than a call is in
//! `operations`. An event walks: `Watch::next_snapshot` → the slot-event thread's loop in `events` → `sources` → `SlotTable::apply`.
//!
//! Who may block: C_WaitForSlotEvent until an event or C_Finalize; a call that needs a card, as long as that card
//! takes; nothing else. Locks held while a card works: that card's lock and its session's operations. No other.
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
