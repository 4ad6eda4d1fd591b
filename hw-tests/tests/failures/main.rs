//! Cards, readers and services that are lost, exchanged, out of reach or broken.

mod access;
mod bad_input;
mod exchange;
mod frozen;
mod removal;
mod resilience;
mod restart;
