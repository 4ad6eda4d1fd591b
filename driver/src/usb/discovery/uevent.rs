//! Parses the messages of the kernel and of udev about devices: `ACTION=…` and other properties, each terminated by NUL.
//!
//! udev's messages begin with a header of libudev. The kernel's messages begin with `action@devpath`.

use super::sysfs::PortPath;

/// The start of udev's messages, and the number that follows it.
const PREFIX: &[u8] = b"libudev\0";
const MAGIC: u32 = 0xFEED_CAFE;
/// Where the header states the offset and the length of the properties.
const OFFSET: usize = 16;
const LENGTH: usize = 20;
/// No message has more properties.
const MAX_PROPERTIES: usize = 512;

/// A change of a device or an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uevent {
    /// A device or an interface was added, removed or changed.
    DeviceChanged,
    /// An interface of the device in this port was released.
    InterfaceUnbound(PortPath),
}

impl Uevent {
    /// Parses a message. Returns `None` for a malformed message, for other subsystems, and for a claim.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let properties = Properties::of(message)?;
        if properties.subsystem != b"usb" {
            return None;
        }
        match properties.action {
            b"add" | b"remove" | b"change" | b"move" | b"online" | b"offline" => {
                Some(Self::DeviceChanged)
            }
            b"unbind" => properties.port().map(Self::InterfaceUnbound),
            _ => None,
        }
    }
}

/// The properties that matter.
#[derive(Default)]
struct Properties<'a> {
    action: &'a [u8],
    subsystem: &'a [u8],
    path: &'a [u8],
}

impl<'a> Properties<'a> {
    fn of(message: &'a [u8]) -> Option<Self> {
        let mut found = Self::default();
        for line in property_bytes(message)?
            .split(|byte| *byte == 0)
            .take(MAX_PROPERTIES)
        {
            let Some(at) = line.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = line.split_at(at);
            let value = value.get(1..)?;
            match key {
                b"ACTION" => found.action = value,
                b"SUBSYSTEM" => found.subsystem = value,
                b"DEVPATH" => found.path = value,
                _ => {}
            }
        }
        Some(found)
    }

    /// The port of the device, or of the device an interface belongs to (`3-1.2:1.0`).
    fn port(&self) -> Option<PortPath> {
        let name = self.path.rsplit(|byte| *byte == b'/').next()?;
        let device = name.split(|byte| *byte == b':').next()?;
        PortPath::parse(std::str::from_utf8(device).ok()?)
    }
}

/// The properties of a message, from udev or from the kernel.
fn property_bytes(message: &[u8]) -> Option<&[u8]> {
    let Some(rest) = message.strip_prefix(PREFIX) else {
        let end = message.iter().position(|byte| *byte == 0)?;
        return message.get(end + 1..);
    };
    let (magic, _) = rest.split_first_chunk()?;
    if u32::from_be_bytes(*magic) != MAGIC {
        return None;
    }
    let number = |at: usize| {
        let bytes = message.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    };
    let begin = number(OFFSET)?;
    message.get(begin..begin.checked_add(number(LENGTH)?)?)
}

/// Reads arbitrary bytes; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some(Uevent::InterfaceUnbound(port)) = Uevent::parse(bytes) {
        assert_eq!(PortPath::parse(port.as_str()), Some(port), "a port's name");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as udev sends it.
    fn udev(properties: &str) -> Vec<u8> {
        let mut message = PREFIX.to_vec();
        message.extend(MAGIC.to_be_bytes());
        let length = u32::try_from(properties.len()).unwrap();
        for number in [40, 40, length, 0, 0, 0, 0] {
            message.extend(u32::to_ne_bytes(number));
        }
        assert_eq!(message.len(), 40);
        message.extend(properties.as_bytes());
        message
    }

    const DEVICE: &str = "/devices/pci0000:00/0000:00:14.0/usb3/3-1/3-1.2";

    fn properties(action: &str, subsystem: &str, path: &str) -> String {
        format!("ACTION={action}\0DEVPATH={path}\0SUBSYSTEM={subsystem}\0SEQNUM=7\0")
    }

    #[test]
    fn device_uevents_of_udev_and_of_the_kernel_are_recognised() {
        for action in ["add", "remove", "change"] {
            let text = properties(action, "usb", DEVICE);
            assert_eq!(Uevent::parse(&udev(&text)), Some(Uevent::DeviceChanged));
            let kernel = format!("{action}@{DEVICE}\0{text}");
            assert_eq!(
                Uevent::parse(kernel.as_bytes()),
                Some(Uevent::DeviceChanged)
            );
        }
    }

    #[test]
    fn uevent_of_an_interface_unbind_names_its_device() {
        let text = properties("unbind", "usb", &format!("{DEVICE}/3-1.2:1.0"));
        let port = PortPath::parse("3-1.2").unwrap();
        assert_eq!(
            Uevent::parse(&udev(&text)),
            Some(Uevent::InterfaceUnbound(port))
        );
    }

    #[test]
    fn uevents_of_binding_and_of_other_subsystems_are_ignored() {
        for (action, subsystem) in [("bind", "usb"), ("add", "net"), ("unbind", "hid"), ("", "")] {
            let text = properties(action, subsystem, DEVICE);
            assert_eq!(Uevent::parse(&udev(&text)), None, "{action} {subsystem}");
        }
    }

    #[test]
    fn udev_message_with_false_lengths_is_ignored() {
        let good = udev(&properties("add", "usb", DEVICE));
        for at in [OFFSET, LENGTH] {
            for number in [u32::MAX, 4096, u32::MAX - 39] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&number.to_ne_bytes());
                assert_eq!(Uevent::parse(&bad), None, "{number} at {at}");
            }
        }
        for end in 0..good.len() {
            let _ = Uevent::parse(&good[..end]);
        }
        let mut other = good;
        other[8] = 0;
        assert_eq!(Uevent::parse(&other), None, "another magic");
    }
}
