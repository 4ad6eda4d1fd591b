//! Chip card interface devices (USB CCID 1.1): the descriptors of a reader, and its commands and responses. This
//! module only converts values. It does no I/O and reads no clock.

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
