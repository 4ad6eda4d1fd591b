//! What the crate pcsc-sys 1.3 declares, for the crate `pcsc`, over a libpcsclite that is loaded and not linked.
//!
//! [`load`] opens `libpcsclite.so.1`, of the system's own folders, once for the life of the process. Every function of
//! PC/SC does so before it calls the library's function of its name, and answers [`SCARD_E_NO_SERVICE`] where that
//! cannot be. So a program runs where pcsc-lite is not installed, and where another library exports functions with
//! these names (WinPR does) it is pcsc-lite that is called.
//!
//! A load takes the dynamic loader's lock; it must be over before the process forks.

#![allow(
    missing_docs,
    non_snake_case,
    non_camel_case_types,
    non_upper_case_globals,
    reason = "the names are those of PC/SC, which documents them"
)]
// An error's number is unsigned in PC/SC's documents, and LONG has 32 bits on some systems.
#![allow(overflowing_literals)]

mod functions;
mod values;

pub use functions::*;
pub use values::*;
