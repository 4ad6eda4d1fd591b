//! A CCID reader on this machine's USB: the kernel's virtual host controller (vhci-hcd) is at one end of a
//! socket, a [`Reader`] with its card is at the other. Only the guest of `scripts/usb-guest` has that controller.

mod access;
mod descriptors;
mod device;
mod fault;
mod slot;
mod usbip;

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use self::device::Device;
pub use self::{access::UsbAccess, descriptors::Model, device::Transfers, fault::UsbFault};
use crate::reader::Reader;

/// Folder of the virtual host controller in sysfs.
const CONTROLLER: &str = "/sys/devices/platform/vhci_hcd.0";
/// Timeout for the controller to release the port of an unplugged device.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why this machine cannot have a virtual reader on its USB. Returns `None` if it can.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    (!Path::new(CONTROLLER).is_dir()).then_some("this machine has no virtual USB controller")
}

/// A reader in a USB port. Dropping it unplugs the reader.
#[derive(Debug)]
pub struct UsbReader {
    reader: Reader,
    model: Arc<Model>,
    port: u32,
    plugged: Option<Attachment>,
}

#[derive(Debug)]
struct Attachment {
    device: Arc<Device>,
    watcher: u64,
    threads: Vec<JoinHandle<()>>,
}

impl UsbReader {
    /// Plugs `reader` into the first free port, as a device of this model.
    ///
    /// # Errors
    /// If the controller has no free port, or refuses the device.
    pub fn plug(reader: &Reader, model: Model) -> io::Result<Self> {
        let mut plugged = Self {
            reader: reader.clone(),
            model: Arc::new(model),
            port: free_port()?,
            plugged: None,
        };
        plugged.replug()?;
        Ok(plugged)
    }

    /// Plugs the reader into its port again. The firmware of the card starts before.
    ///
    /// # Errors
    /// If the controller refuses the device.
    pub fn replug(&mut self) -> io::Result<()> {
        self.unplug();
        self.reader.boot();
        let (ours, kernels) = UnixStream::pair()?;
        let device = Arc::new(Device::new(Arc::clone(&self.model), ours));
        let threads = vec![
            spawn("usb-line", &device, Device::serve)?,
            spawn("usb-card", &device, {
                let reader = self.reader.clone();
                move |device| device.run(&reader)
            })?,
        ];
        let notified = Arc::clone(&device);
        let watcher = self.reader.watch(move |presence| {
            notified.notify(vec![0x50, if presence.present { 3 } else { 2 }]);
        });
        self.plugged = Some(Attachment {
            device,
            watcher,
            threads,
        });
        // The kernel takes over its end of the socket. 2 is full speed.
        let line = format!(
            "{} {} {} 2",
            self.port,
            kernels.as_raw_fd(),
            0x1_0002 + self.port
        );
        retry(|| fs::write(format!("{CONTROLLER}/attach"), &line))
    }

    /// Unplugs the reader, even while transfers are pending.
    pub fn unplug(&mut self) {
        let Some(plugged) = self.plugged.take() else {
            return;
        };
        plugged.device.end();
        self.reader.unwatch(plugged.watcher);
        self.reader.stop(plugged.device.stop());
        for thread in plugged.threads {
            let _ = thread.join();
        }
    }

    /// The transfers since the reader was plugged in, or since [`UsbReader::zero`].
    #[must_use]
    pub fn transfers(&self) -> Transfers {
        let device = self.plugged.as_ref().map(|plugged| &plugged.device);
        device.map_or_else(Transfers::default, |device| device.transfers())
    }

    /// Clears the counts.
    pub fn zero(&self) {
        if let Some(plugged) = &self.plugged {
            plugged.device.zero();
        }
    }

    /// Injects a fault. It applies once, or lasts until [`UsbReader::heal`].
    pub fn misbehave(&self, fault: UsbFault) {
        if let Some(plugged) = &self.plugged {
            plugged.device.misbehave(Some(fault));
        }
    }

    /// Clears the fault. Sends what the fault has held back.
    pub fn heal(&self) {
        if let Some(plugged) = &self.plugged {
            plugged.device.misbehave(None);
        }
    }
}

impl Drop for UsbReader {
    fn drop(&mut self) {
        self.unplug();
    }
}

fn spawn(
    name: &str,
    device: &Arc<Device>,
    run: impl FnOnce(&Device) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let device = Arc::clone(device);
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(move || run(&device))
}

/// Retries while the controller is busy with a device that was unplugged.
fn retry(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let end = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}

/// The first free port of the high-speed hub: one in state 4.
fn free_port() -> io::Result<u32> {
    let status = fs::read_to_string(format!("{CONTROLLER}/status"))?;
    let free = status.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_free = words.next()? == "hs";
        let port = words.next()?.parse().ok()?;
        (is_free && words.next()? == "004").then_some(port)
    });
    free.ok_or_else(|| io::Error::other("no free port on the virtual controller"))
}
