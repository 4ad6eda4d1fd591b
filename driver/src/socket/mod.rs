//! A reader behind a Unix socket: the card may be a test firmware, or lent to a container.

pub mod frame;
