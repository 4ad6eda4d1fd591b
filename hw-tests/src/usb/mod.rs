//! A CCID reader on this machine's USB: the kernel's virtual host controller (vhci-hcd) at one end of a socket, a
//! [`Reader`] with its card at the other. Only the guest of `scripts/usb-guest` has that controller.

mod descriptors;
mod slot;
mod way;
mod wire;

use std::{
    collections::VecDeque,
    fs, io,
    net::Shutdown,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

pub use self::{descriptors::Model, way::UsbWay};
use self::{
    slot::{Message, Slot},
    wire::{Request, Transfer},
};
use crate::reader::{Reader, Stop};

/// Endpoints, without their direction bit.
const BULK_OUT: u8 = 1;
const BULK_IN: u8 = 2;
const INTERRUPT: u8 = 3;
/// The controller.
const CONTROLLER: &str = "/sys/devices/platform/vhci_hcd.0";
/// A card that takes longer asks for more time.
const EXTENSION: Duration = Duration::from_secs(1);

/// Why there can be no reader on this machine's USB.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    (!Path::new(CONTROLLER).is_dir()).then_some("this machine has no virtual USB controller")
}

/// Transfers so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// To the reader.
    pub bulk_out: usize,
    /// From the reader.
    pub bulk_in: usize,
    /// Of the interrupt endpoint.
    pub interrupt: usize,
    /// Control requests.
    pub control: usize,
}

/// A reader and the port it is plugged into; dropped, it is unplugged.
#[derive(Debug)]
pub struct UsbReader {
    reader: Reader,
    model: Arc<Model>,
    port: u32,
    plugged: Option<Plugged>,
}

#[derive(Debug)]
struct Plugged {
    device: Arc<Device>,
    watcher: u64,
    threads: Vec<JoinHandle<()>>,
}

/// The device at our end of the socket.
#[derive(Debug)]
struct Device {
    model: Arc<Model>,
    line: UnixStream,
    stop: Stop,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_over: bool,
    is_silent: bool,
    pending_in: VecDeque<(u32, usize)>,
    pending_interrupt: VecDeque<u32>,
    answers: VecDeque<Vec<u8>>,
    notifications: VecDeque<Vec<u8>>,
    received: Vec<u8>,
    commands: VecDeque<Vec<u8>>,
    /// The thread of the card has a command in hand.
    is_busy: bool,
    work: Option<Work>,
    transfers: Transfers,
}

/// The message the card is at work on.
#[derive(Debug)]
struct Work {
    /// What asks for more time.
    extension: Vec<u8>,
    /// When to ask next.
    due: Instant,
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
        let device = Arc::new(Device {
            model: Arc::clone(&self.model),
            line: ours,
            stop: Stop::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
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
        self.plugged = Some(Plugged {
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
        self.reader.stop(&plugged.device.stop);
        for thread in plugged.threads {
            let _ = thread.join();
        }
    }

    /// Transfers since it was plugged in, or since [`UsbReader::zero`].
    #[must_use]
    pub fn transfers(&self) -> Transfers {
        let device = self.plugged.as_ref().map(|plugged| &plugged.device);
        device.map_or_else(Transfers::default, |device| device.state().transfers)
    }

    /// Forgets the counts.
    pub fn zero(&self) {
        if let Some(plugged) = &self.plugged {
            plugged.device.state().transfers = Transfers::default();
        }
    }

    /// Says nothing any more, or goes on.
    pub fn be_silent(&self, is_silent: bool) {
        if let Some(plugged) = &self.plugged {
            plugged.device.state().is_silent = is_silent;
            plugged.device.pump();
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
    for _ in 0..200 {
        if attempt().is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    attempt()
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

impl Device {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
        let _ = self.line.shutdown(Shutdown::Both);
    }

    fn notify(&self, notification: Vec<u8>) {
        if self.model.interrupt {
            self.state().notifications.push_back(notification);
            self.pump();
        }
    }

    /// Answers the kernel until the line is cut, and asks it for more time while the card is at work.
    fn serve(&self) {
        let mut line = &self.line;
        while self.wait_for_request().is_ok()
            && let Ok(request) = Request::read(&mut line)
        {
            let answered = match request {
                Request::Unlink { number, victim } => self.unlink(number, victim),
                Request::Submit(transfer) => self.submit(transfer),
            };
            if answered.is_err() {
                break;
            }
        }
        self.end();
    }

    /// Waits until the kernel asks for something. The thread that reads the line is the one timer there is: what
    /// gives the card work comes over the line, so nobody has to wake it for a new deadline.
    fn wait_for_request(&self) -> io::Result<()> {
        loop {
            let limit = self.time_until_extension();
            let limit = limit.map(Timespec::try_from).transpose();
            let limit = limit.map_err(io::Error::other)?;
            match poll(
                &mut [PollFd::new(&self.line, PollFlags::IN)],
                limit.as_ref(),
            ) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Asks for more time if that is due, and says when to look again; `None` while the card has nothing to do.
    fn time_until_extension(&self) -> Option<Duration> {
        let mut state = self.state();
        let now = Instant::now();
        let Some(work) = &mut state.work else {
            // What has come is about to be begun.
            return (state.is_busy || !state.commands.is_empty()).then_some(EXTENSION);
        };
        if work.due <= now {
            work.due = now + EXTENSION;
            let extension = work.extension.clone();
            state.answers.push_back(extension);
            drop(state);
            self.pump();
            return Some(EXTENSION);
        }
        Some(work.due.saturating_duration_since(now))
    }

    fn unlink(&self, number: u32, victim: u32) -> io::Result<()> {
        let mut state = self.state();
        let pending = |state: &State| state.pending_in.len() + state.pending_interrupt.len();
        let before = pending(&state);
        state.pending_in.retain(|(number, _)| *number != victim);
        state.pending_interrupt.retain(|number| *number != victim);
        wire::unlinked(&mut &self.line, number, pending(&state) < before)
    }

    fn submit(&self, transfer: Transfer) -> io::Result<()> {
        let Transfer {
            number,
            endpoint,
            is_in,
            length,
            setup,
            data,
        } = transfer;
        let mut state = self.state();
        match (endpoint, is_in) {
            (0, _) => {
                state.transfers.control += 1;
                return match self.control(setup, &mut state) {
                    Some(mut answer) => {
                        answer.truncate(length);
                        let sent = if is_in { 0 } else { data.len() };
                        wire::done(&mut &self.line, number, sent, &answer)
                    }
                    None => wire::stalled(&mut &self.line, number),
                };
            }
            (BULK_OUT, false) => {
                state.transfers.bulk_out += 1;
                state.received.extend(&data);
                let received = std::mem::take(&mut state.received);
                state.commands.push_back(received);
                self.changed.notify_all();
                return wire::done(&mut &self.line, number, data.len(), &[]);
            }
            (BULK_IN, true) => state.pending_in.push_back((number, length)),
            (INTERRUPT, true) => state.pending_interrupt.push_back(number),
            _ => return wire::stalled(&mut &self.line, number),
        }
        drop(state);
        self.pump();
        Ok(())
    }

    /// Gives what there is to the transfers that wait for it.
    fn pump(&self) {
        let mut state = self.state();
        let state = &mut *state;
        while !state.is_silent && !state.pending_in.is_empty() && !state.answers.is_empty() {
            let (Some((number, length)), Some(mut answer)) =
                (state.pending_in.pop_front(), state.answers.pop_front())
            else {
                return;
            };
            if answer.len() > length {
                state.answers.push_front(answer.split_off(length));
            }
            state.transfers.bulk_in += 1;
            let _ = wire::done(&mut &self.line, number, 0, &answer);
        }
        while !state.pending_interrupt.is_empty() && !state.notifications.is_empty() {
            let (Some(number), Some(notification)) = (
                state.pending_interrupt.pop_front(),
                state.notifications.pop_front(),
            ) else {
                return;
            };
            state.transfers.interrupt += 1;
            let _ = wire::done(&mut &self.line, number, 0, &notification);
        }
    }

    /// The standard requests the kernel makes, and ABORT; `None` is a stall.
    fn control(&self, setup: [u8; 8], state: &mut State) -> Option<Vec<u8>> {
        let [kind, request, low, high, ..] = setup;
        match (kind, request) {
            (0x80, 6) => match high {
                1 => Some(self.model.device()),
                2 => Some(self.model.configuration()),
                3 => Some(self.model.string(low)),
                _ => None,
            },
            (0x80..=0x82, 0) => Some(vec![0, 0]),
            (0x80, 8) => Some(vec![1]),
            (0x81, 10) => Some(vec![0]),
            // SET_CONFIGURATION begins afresh.
            (0, 9) => {
                state.notifications.clear();
                Some(Vec::new())
            }
            (0..=2, 1 | 3 | 5 | 11) | (0x21, 1) => Some(Vec::new()),
            _ => None,
        }
    }

    /// Does what the messages say, one after the other.
    fn run(&self, reader: &Reader) {
        let Ok(peer) = self.line.try_clone() else {
            return;
        };
        let Ok(mut slot) = Slot::new(reader, &self.stop, peer.into()) else {
            return;
        };
        let mut bytes = Vec::new();
        while let Some(more) = self.next_command() {
            bytes.extend(more);
            while let Some(message) = Message::take(&mut bytes) {
                self.state().work = Some(Work {
                    extension: message.extension(),
                    due: Instant::now() + EXTENSION,
                });
                let answer = slot.obey(&message);
                let mut state = self.state();
                state.work = None;
                state.answers.push_back(answer);
                drop(state);
                self.pump();
            }
        }
    }

    fn next_command(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if state.is_over {
                return None;
            }
            let command = state.commands.pop_front();
            state.is_busy = command.is_some();
            if command.is_some() {
                return command;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
