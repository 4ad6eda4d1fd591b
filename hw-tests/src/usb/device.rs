//! The virtual USB device: its endpoints, and the thread of its card.

use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    descriptors::{BULK_IN, BULK_OUT, INTERRUPT, Model},
    fault::{Part, UsbFault},
    slot::{Message, Slot},
    usbip::{self, Request, Transfer},
};
use crate::reader::{Reader, Stop};

/// Interval at which the reader requests a time extension for a running command.
const EXTENSION: Duration = Duration::from_secs(1);
/// wValue of CLEAR_FEATURE that ends the halt of the endpoint in wIndex (USB 2.0, table 9-6).
const ENDPOINT_HALT: u8 = 0;

/// The number of transfers of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Bulk transfers to the reader.
    pub bulk_out: usize,
    /// Bulk transfers from the reader.
    pub bulk_in: usize,
    /// Interrupt transfers.
    pub interrupt: usize,
    /// Control requests.
    pub control: usize,
}

/// A USB device at one end of the socket. The kernel is at the other.
#[derive(Debug)]
pub(super) struct Device {
    model: Arc<Model>,
    line: UnixStream,
    stop: Stop,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    fault: Option<UsbFault>,
    /// Whether the bulk endpoint to the host is halted.
    is_halted: bool,
    /// Requests to the control endpoint without a reply.
    pending_control: Vec<u32>,
    pending_in: VecDeque<(u32, usize)>,
    pending_interrupt: VecDeque<u32>,
    answers: VecDeque<Part>,
    notifications: VecDeque<Vec<u8>>,
    received: Vec<u8>,
    commands: VecDeque<Vec<u8>>,
    /// Whether the thread of the card executes a command.
    is_busy: bool,
    work: Option<Work>,
    transfers: Transfers,
}

/// The message that the card executes.
#[derive(Debug)]
struct Work {
    /// The message that requests a time extension.
    extension: Vec<u8>,
    /// Time of the next request.
    due: Instant,
}

impl State {
    fn is_silent(&self) -> bool {
        self.fault.is_some_and(UsbFault::lasts)
    }

    /// Returns the fault if it is due now. A fault that does not last is then over.
    fn meets(&mut self, is_due: impl FnOnce(UsbFault) -> bool) -> Option<UsbFault> {
        let fault = self.fault.filter(|fault| is_due(*fault))?;
        if !fault.lasts() {
            self.fault = None;
        }
        Some(fault)
    }
}

impl Device {
    /// Makes a device of this model. Its host is at the other end of `line`.
    pub(super) fn new(model: Arc<Model>, line: UnixStream) -> Self {
        Self {
            model,
            line,
            stop: Stop::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The stop flag of the user of its card.
    pub(super) const fn stop(&self) -> &Stop {
        &self.stop
    }

    pub(super) fn transfers(&self) -> Transfers {
        self.state().transfers
    }

    pub(super) fn zero(&self) {
        self.state().transfers = Transfers::default();
    }

    /// Sets or clears the fault. Sends what an earlier fault has held back.
    pub(super) fn misbehave(&self, fault: Option<UsbFault>) {
        let mut state = self.state();
        state.fault = fault;
        for number in std::mem::take(&mut state.pending_control) {
            let _ = usbip::stalled(&mut &self.line, number);
        }
        drop(state);
        self.pump();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self) {
        self.state().is_closed = true;
        self.changed.notify_all();
        let _ = self.line.shutdown(Shutdown::Both);
    }

    pub(super) fn notify(&self, notification: Vec<u8>) {
        if self.model.interrupt {
            self.state().notifications.push_back(notification);
            self.pump();
        }
    }

    /// Serves the kernel until the connection ends. Requests time extensions while the card executes a command.
    pub(super) fn serve(&self) {
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

    /// Waits for a request of the kernel. This thread is also the timer: every command arrives here, so no other thread has to
    /// wake it for a new deadline.
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

    /// Requests a time extension if one is due. Returns the time until the next, or `None` while the card is idle.
    fn time_until_extension(&self) -> Option<Duration> {
        let mut state = self.state();
        let now = Instant::now();
        let Some(work) = &mut state.work else {
            // A received command is about to begin.
            return (state.is_busy || !state.commands.is_empty()).then_some(EXTENSION);
        };
        if work.due <= now {
            work.due = now + EXTENSION;
            let extension = work.extension.clone();
            state.answers.push_back(Part::Bytes(extension));
            drop(state);
            self.pump();
            return Some(EXTENSION);
        }
        Some(work.due.saturating_duration_since(now))
    }

    fn unlink(&self, number: u32, victim: u32) -> io::Result<()> {
        let mut state = self.state();
        let pending = |state: &State| {
            state.pending_in.len() + state.pending_interrupt.len() + state.pending_control.len()
        };
        let before = pending(&state);
        state.pending_control.retain(|number| *number != victim);
        state.pending_in.retain(|(number, _)| *number != victim);
        state.pending_interrupt.retain(|number| *number != victim);
        usbip::unlinked(&mut &self.line, number, pending(&state) < before)
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
                if state.fault == Some(UsbFault::Death) {
                    state.pending_control.push(number);
                    return Ok(());
                }
                return match self.control(setup, &mut state) {
                    Some(mut answer) => {
                        answer.truncate(length);
                        let sent = if is_in { 0 } else { data.len() };
                        usbip::done(&mut &self.line, number, sent, &answer)
                    }
                    None => usbip::stalled(&mut &self.line, number),
                };
            }
            (BULK_OUT, false) => {
                state.transfers.bulk_out += 1;
                state.received.extend(&data);
                let received = std::mem::take(&mut state.received);
                state.commands.push_back(received);
                self.changed.notify_all();
                let is_counted = state
                    .meets(|fault| fault == UsbFault::UncountedOut)
                    .is_none();
                let sent = if is_counted { data.len() } else { 0 };
                return usbip::done(&mut &self.line, number, sent, &[]);
            }
            (BULK_IN, true) => state.pending_in.push_back((number, length)),
            (INTERRUPT, true) => state.pending_interrupt.push_back(number),
            _ => return usbip::stalled(&mut &self.line, number),
        }
        drop(state);
        self.pump();
        Ok(())
    }

    /// Completes pending transfers with the available data.
    fn pump(&self) {
        let mut state = self.state();
        let state = &mut *state;
        self.pump_bulk(state);
        if state.is_silent() {
            return;
        }
        while !state.pending_interrupt.is_empty() && !state.notifications.is_empty() {
            let (Some(number), Some(notification)) = (
                state.pending_interrupt.pop_front(),
                state.notifications.pop_front(),
            ) else {
                return;
            };
            state.transfers.interrupt += 1;
            let _ = usbip::done(&mut &self.line, number, 0, &notification);
        }
    }

    fn pump_bulk(&self, state: &mut State) {
        while let Some((number, length)) = state.pending_in.front().copied() {
            let part = if state.is_halted {
                Some(Part::Halt)
            } else if state.is_silent() {
                None
            } else {
                state.answers.pop_front()
            };
            let Some(part) = part else {
                return;
            };
            state.pending_in.pop_front();
            state.transfers.bulk_in += 1;
            let _ = match part {
                Part::Halt => {
                    state.is_halted = true;
                    usbip::stalled(&mut &self.line, number)
                }
                Part::Bytes(mut bytes) => {
                    if bytes.len() > length {
                        let rest = bytes.split_off(length);
                        state.answers.push_front(Part::Bytes(rest));
                    }
                    usbip::done(&mut &self.line, number, 0, &bytes)
                }
            };
        }
    }

    /// Handles the standard requests of the kernel, and ABORT. Returns `None` for a stall.
    fn control(&self, setup: [u8; 8], state: &mut State) -> Option<Vec<u8>> {
        let [kind, request, low, high, index, ..] = setup;
        if (kind, request, low, index) == (2, 1, ENDPOINT_HALT, BULK_IN | 0x80) {
            state.is_halted = false;
        }
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
            // SET_CONFIGURATION resets the endpoints.
            (0, 9) => {
                state.is_halted = false;
                state.notifications.clear();
                Some(Vec::new())
            }
            (0..=2, 1 | 3 | 5 | 11) | (0x21, 1) => Some(Vec::new()),
            _ => None,
        }
    }

    /// Executes the messages, one after the other.
    pub(super) fn run(&self, reader: &Reader) {
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
                let answer = slot.execute(&message);
                let mut state = self.state();
                state.work = None;
                let is_due = |fault| message.is_to_the_card() && fault != UsbFault::UncountedOut;
                match state.meets(is_due) {
                    Some(fault) => state.answers.extend(fault.instead_of(answer)),
                    None => state.answers.push_back(Part::Bytes(answer)),
                }
                drop(state);
                self.pump();
            }
        }
    }

    fn next_command(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if state.is_closed {
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
