//! A CCID reader on this machine's USB: the kernel's virtual host controller (vhci-hcd) at one end of a socket, a
//! [`Reader`] with its card at the other. Only the guest of `scripts/usb-guest` has that controller.

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

/// The controller.
const CONTROLLER: &str = "/sys/devices/platform/vhci_hcd.0";
/// How long the controller may be busy with a device that has left.
const FREE: Duration = Duration::from_secs(30);

/// Why there can be no reader on this machine's USB.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    (!Path::new(CONTROLLER).is_dir()).then_some("this machine has no virtual USB controller")
}

/// A reader and the port it is plugged into; dropped, it is unplugged.
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
    /// Plugs `reader` into the first free port, as a reader of this model.
    ///
    /// # Errors
    /// [`io::Error`] when the controller has no free port, or refuses.
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

    /// Plugs it into its port again. A token's firmware starts with that.
    ///
    /// # Errors
    /// [`io::Error`] when the controller refuses.
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
        let heard = Arc::clone(&device);
        let watcher = self.reader.watch(move |presence| {
            heard.notify(vec![0x50, if presence.present { 3 } else { 2 }]);
        });
        self.plugged = Some(Attachment {
            device,
            watcher,
            threads,
        });
        // The kernel takes its end; 2 is full speed.
        let line = format!(
            "{} {} {} 2",
            self.port,
            kernels.as_raw_fd(),
            0x1_0002 + self.port
        );
        retry(|| fs::write(format!("{CONTROLLER}/attach"), &line))
    }

    /// Pulls it out, whatever is going on.
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

    /// Transfers since it was plugged in, or since [`UsbReader::zero`].
    #[must_use]
    pub fn transfers(&self) -> Transfers {
        let device = self.plugged.as_ref().map(|plugged| &plugged.device);
        device.map_or_else(Transfers::default, |device| device.transfers())
    }

    /// Forgets the counts.
    pub fn zero(&self) {
        if let Some(plugged) = &self.plugged {
            plugged.device.zero();
        }
    }

    /// Misbehaves so from now on, until it has once or until [`UsbReader::heal`], as the fault says.
    pub fn misbehave(&self, fault: UsbFault) {
        if let Some(plugged) = &self.plugged {
            plugged.device.misbehave(Some(fault));
        }
    }

    /// Misbehaves no more. What it has kept back comes late.
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

/// The controller is busy for a moment after a device has left.
fn retry(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let end = Instant::now() + FREE;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}

/// The first port of the fast hub nothing is plugged into: state 4.
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
