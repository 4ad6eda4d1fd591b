//! One card or one machine for several: programs, applets, readers.

mod coexistence;
mod isolation;
mod logout;
mod scdaemon;
mod sessions;
