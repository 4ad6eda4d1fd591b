//! Chip card interface devices (USB CCID 1.1): what a reader says of itself, and the messages it takes and
//! gives. Values only: no I/O, no clock.

pub mod apdu_level;
pub mod budget;
pub mod configuration;
pub mod descriptor;
pub mod iccd;
pub mod message;
pub mod notification;
pub mod pin_pad;
pub mod protocol_data;
pub mod quirks;

mod udev_rules;

pub use udev_rules::udev_rules;
