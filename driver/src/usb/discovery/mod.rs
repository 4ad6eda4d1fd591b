//! Which readers are on the bus: sysfs lists them, udev or the kernel reports changes.

pub mod hotplug;
pub mod precedence;
pub(crate) mod reader_info;
pub(crate) mod suspend;
pub mod sysfs;
pub mod udev_data;
mod udev_filter;
pub mod uevent;
