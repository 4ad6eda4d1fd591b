//! libusb's asynchronous transfers. This is the only file of the module with raw pointers.
//!
//! libusb owns a transfer from its submission until its callback. The callback may run on any thread that handles the device's
//! events, and only puts the transfer's address into the completion queue of its endpoint queue. Only the code that takes the
//! address out again may access the transfer.

use std::{
    ffi::{c_int, c_uint, c_void},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::rusb::{Context, DeviceHandle, UsbContext as _, ffi};
use claviger_apdu::Secret;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    completions::{CompletedTransfer, CompletionQueue},
    error,
};
use crate::{
    fork_closed::{ForkClosed, Registration},
    fork_guard,
    usb::host::transfer::{Completion, EndpointAddress, TransferError},
};

/// libusb's value for no timeout: the waiting thread has the deadline.
const NO_TIMEOUT: c_uint = 0;
/// The default control pipe (USB 2.0, 5.5.4), and the size of the setup packet (9.3).
const DEFAULT_PIPE: EndpointAddress = EndpointAddress(0);
pub(super) const SETUP_LENGTH: usize = 8;
/// libusb's maximum (MAX_CTRL_BUFFER_LENGTH).
const MAX_CONTROL_TRANSFER: usize = SETUP_LENGTH + 4096;
/// More descriptors than a context of one device has: its event, its timer, the node.
const MAX_DESCRIPTORS: usize = 16;

/// An open device and the libusb context made for it.
pub(super) struct OpenDevice {
    /// Dropped before the node it uses. `None` only while dropping.
    device: Option<DeviceHandle<Context>>,
    /// libusb's own descriptors, registered for as long as libusb has them open.
    registrations: Vec<Registration>,
    node: ForkClosed<OwnedFd>,
    /// The descriptors that libusb polls, including the node.
    polled: Vec<(RawFd, PollFlags)>,
}

impl OpenDevice {
    pub(super) fn open(node: ForkClosed<OwnedFd>) -> ::rusb::Result<Self> {
        let _pass = fork_guard::enter();
        disable_discovery()?;
        let context = Context::new()?;
        // SAFETY: the descriptor is open, and belongs to the same value as the handle, which is dropped first.
        let device = unsafe { context.open_device_with_fd(node.as_raw_fd()) }?;
        let polled = polled(&context)?;
        let own = polled.iter().filter(|(fd, _)| *fd != node.as_raw_fd());
        Ok(Self {
            registrations: own.map(|(fd, _)| Registration::new(*fd)).collect(),
            polled,
            device: Some(device),
            node,
        })
    }

    pub(super) fn device(&self) -> ::rusb::Result<&DeviceHandle<Context>> {
        self.device.as_ref().ok_or(::rusb::Error::NoDevice)
    }

    /// Returns whether this process is a child of the process that opened the device.
    pub(super) fn is_inherited(&self) -> bool {
        self.node.is_inherited()
    }

    /// Lets libusb see what has happened, without waiting; callbacks run.
    pub(super) fn handle_events(&self) {
        if let Ok(device) = self.device() {
            let _pass = fork_guard::enter();
            // An event that could not be handled now keeps its descriptor ready.
            let _ = device.context().handle_events(Some(Duration::ZERO));
        }
    }

    /// Returns whether the device was disconnected. Its node is then ready for ever.
    pub(super) fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.node, PollFlags::empty())];
        matches!(
            rustix::event::poll(&mut polled, Some(&Timespec::default())),
            Ok(1)
        )
    }

    /// Returns the descriptors to poll. The node is left out if no more events are expected from it.
    pub(super) fn descriptors(&self, with_node: bool) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let node = self.node.as_raw_fd();
        let wanted = self
            .polled
            .iter()
            .filter(|(fd, _)| with_node || *fd != node);
        wanted
            .map(|(fd, flags)| {
                // SAFETY: libusb's own descriptors live as long as its context, the node as long as this value.
                (unsafe { BorrowedFd::borrow_raw(*fd) }, *flags)
            })
            .collect()
    }
}

/// Disables device discovery for all later contexts. This is set once, before the first context: libusb would later apply it to
/// the oldest context too, which another thread may be about to free.
fn disable_discovery() -> ::rusb::Result<()> {
    static DISABLED: Mutex<bool> = Mutex::new(false);
    let mut disabled = DISABLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*disabled {
        ::rusb::disable_device_discovery()?;
        *disabled = true;
    }
    Ok(())
}

/// Returns the descriptors that a context polls. They are queried once, before another thread has the context: libusb owns the
/// entries, and any thread that handles the loss of the device frees them.
fn polled(context: &Context) -> ::rusb::Result<Vec<(RawFd, PollFlags)>> {
    // SAFETY: the context is alive.
    let list = unsafe { ffi::libusb_get_pollfds(context.as_raw()) };
    if list.is_null() {
        return Err(::rusb::Error::NoMem);
    }
    let mut polled = Vec::new();
    for at in 0..MAX_DESCRIPTORS {
        // SAFETY: within the list, whose last entry, a null pointer, ends the loop.
        let entry = unsafe { list.add(at) };
        // SAFETY: as above.
        let entry = unsafe { *entry };
        // SAFETY: an entry points to a descriptor that no thread changes here.
        let Some(entry) = (unsafe { entry.as_ref() }) else {
            break;
        };
        let flags = PollFlags::from_bits_truncate(entry.events.cast_unsigned());
        polled.push((entry.fd, flags));
    }
    // SAFETY: the list came from libusb and is not used any more.
    unsafe { ffi::libusb_free_pollfds(list) };
    Ok(polled)
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // In a child the claim is the parent's, which shares the open file: it is not released, only closed.
        if self.is_inherited() {
            std::mem::forget(self.device.take());
            return;
        }
        let _pass = fork_guard::enter();
        self.registrations.clear();
        self.device = None;
    }
}

/// A submitted transfer.
pub(super) struct Transfer {
    raw: NonNull<ffi::libusb_transfer>,
    pub(super) endpoint: EndpointAddress,
    /// Bytes of the buffer before the data: the setup packet of a control transfer.
    setup_length: usize,
    /// The data that libusb may use until the callback. `None` only after the callback has run, or if nothing was submitted.
    in_flight: Option<InFlight>,
}

struct InFlight {
    buffer: Secret,
    /// Kept alive for the callback and for the kernel's view of the device.
    _inbox: Arc<CompletionQueue>,
    _handle: Arc<OpenDevice>,
}

/// The data for a new transfer.
struct NewTransfer {
    transfer: *mut ffi::libusb_transfer,
    device: *mut ffi::libusb_device_handle,
    buffer: *mut u8,
    queue: *mut c_void,
}

// SAFETY: libusb's functions may be called from any thread, and the pointer is used by the owner alone.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Submits `buffer`, to be sent or filled; `interrupt` is the endpoint's type.
    pub(super) fn submit(
        handle: &Arc<OpenDevice>,
        completions: &Arc<CompletionQueue>,
        endpoint: EndpointAddress,
        interrupt: bool,
        bytes: Vec<u8>,
    ) -> Result<Self, TransferError> {
        let length = c_int::try_from(bytes.len());
        let fill = if interrupt {
            ffi::libusb_fill_interrupt_transfer
        } else {
            ffi::libusb_fill_bulk_transfer
        };
        Self::submit_filled(handle, completions, endpoint, bytes, |filled| {
            let length = length.map_err(|_| error::invalid())?;
            // SAFETY: the transfer is new; handle, buffer and inbox stay until its callback has run, for they are lent.
            unsafe {
                fill(
                    filled.transfer,
                    filled.device,
                    endpoint.0,
                    filled.buffer,
                    length,
                    ended,
                    filled.queue,
                    NO_TIMEOUT,
                );
            }
            Ok(())
        })
    }

    /// Submits a control request. `bytes` are the setup packet, and the data to send or space for the data to receive.
    pub(super) fn submit_control(
        handle: &Arc<OpenDevice>,
        completions: &Arc<CompletionQueue>,
        bytes: Vec<u8>,
    ) -> Result<Self, TransferError> {
        let fits = matches!(
            bytes.first_chunk::<SETUP_LENGTH>(),
            Some([.., low, high])
                if SETUP_LENGTH + usize::from(u16::from_le_bytes([*low, *high])) == bytes.len()
                    && bytes.len() <= MAX_CONTROL_TRANSFER
        );
        let mut transfer =
            Self::submit_filled(handle, completions, DEFAULT_PIPE, bytes, |filled| {
                if !fits {
                    return Err(error::invalid());
                }
                // SAFETY: as above. The buffer has the setup packet, followed by as many bytes as the setup packet states.
                unsafe {
                    ffi::libusb_fill_control_transfer(
                        filled.transfer,
                        filled.device,
                        filled.buffer,
                        ended,
                        filled.queue,
                        NO_TIMEOUT,
                    );
                }
                Ok(())
            })?;
        transfer.setup_length = SETUP_LENGTH;
        Ok(transfer)
    }

    /// Allocates a transfer, lets `fill` fill it, and submits it.
    fn submit_filled(
        handle: &Arc<OpenDevice>,
        completions: &Arc<CompletionQueue>,
        endpoint: EndpointAddress,
        mut bytes: Vec<u8>,
        fill: impl FnOnce(&NewTransfer) -> Result<(), TransferError>,
    ) -> Result<Self, TransferError> {
        let address = bytes.as_mut_ptr();
        // Wiped whatever becomes of it. The bytes do not move with the value.
        let buffer = Secret::new(bytes);
        let device = handle.device().map_err(error::transfer)?.as_raw();
        let mut transfer = Self::allocate(endpoint)?;
        fill(&NewTransfer {
            transfer: transfer.raw.as_ptr(),
            device,
            buffer: address,
            queue: Arc::as_ptr(completions).cast_mut().cast(),
        })?;
        transfer.in_flight = Some(InFlight {
            buffer,
            _inbox: Arc::clone(completions),
            _handle: Arc::clone(handle),
        });
        // SAFETY: filled above, and not submitted before.
        let submitted = unsafe { ffi::libusb_submit_transfer(transfer.raw.as_ptr()) };
        if submitted != 0 {
            // Nothing was submitted, so there is nothing lent: the buffer is wiped here.
            transfer.in_flight = None;
            return Err(error::submission(submitted));
        }
        Ok(transfer)
    }

    fn allocate(endpoint: EndpointAddress) -> Result<Self, TransferError> {
        // SAFETY: a plain allocation, for no isochronous packets.
        let raw = unsafe { ffi::libusb_alloc_transfer(0) };
        Ok(Self {
            raw: NonNull::new(raw).ok_or(error::no_memory())?,
            endpoint,
            setup_length: 0,
            in_flight: None,
        })
    }

    /// Asks for its end. One that has ended already cannot be cancelled, which does no harm.
    pub(super) fn cancel(&self) {
        // SAFETY: the transfer is not freed before this value is dropped.
        let _ = unsafe { ffi::libusb_cancel_transfer(self.raw.as_ptr()) };
    }

    pub(super) fn is(&self, ended: &CompletedTransfer) -> bool {
        self.raw.as_ptr().addr() == ended.0
    }

    /// Returns the completion. Returns `None` unless `ended` is this transfer.
    pub(super) fn into_completion(mut self, ended: &CompletedTransfer) -> Option<Completion> {
        if !self.is(ended) {
            return None;
        }
        let mut buffer = self.in_flight.take()?.buffer;
        // SAFETY: the callback has run, so libusb does not use the transfer any more.
        let raw = unsafe { self.raw.as_ref() };
        let (status, transferred) = (raw.status, usize::try_from(raw.actual_length).unwrap_or(0));
        buffer.truncate(self.setup_length.saturating_add(transferred));
        Some(Completion {
            endpoint: self.endpoint,
            buffer,
            transferred,
            result: error::status(status),
        })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // The kernel may still write into the buffer, and the callback still run: memory is lost rather than freed.
        if let Some(lent) = self.in_flight.take() {
            return std::mem::forget(lent);
        }
        // SAFETY: the transfer was never submitted, or its callback has run. No other code has the pointer.
        unsafe { ffi::libusb_free_transfer(self.raw.as_ptr()) };
    }
}

extern "system" fn ended(transfer: *mut ffi::libusb_transfer) {
    // SAFETY: libusb calls with a transfer that was submitted; its owner does not free it before it is in the inbox.
    let completions: *const CompletionQueue = unsafe { (*transfer).user_data }.cast_const().cast();
    // SAFETY: the transfer has a count of the inbox; another is taken, because that one may go as soon as it is put.
    unsafe { Arc::increment_strong_count(completions) };
    // SAFETY: the count taken above is given back when this value is dropped.
    let completions = unsafe { Arc::from_raw(completions) };
    completions.push(CompletedTransfer(transfer.addr()));
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        thread,
        time::Instant,
    };

    use super::*;
    use crate::fork;

    /// A context comes and goes, for a file that is no device.
    fn open() -> bool {
        let file = File::open("/dev/null").unwrap();
        OpenDevice::open(ForkClosed::new(file.into())).is_ok()
    }

    #[test]
    fn libusb_contexts_are_made_and_dropped_in_many_threads_at_once() {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| assert!(!open())));
            }
        });
    }

    #[test]
    fn b14_libusb_contexts_are_neither_made_nor_dropped_during_a_fork() {
        let (opened, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let go_beyond = |count: usize| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while opened.load(Ordering::SeqCst) <= count && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            opened.load(Ordering::SeqCst) > count
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    open();
                    opened.fetch_add(1, Ordering::SeqCst);
                }
            });
            let begun = go_beyond(0);
            fork::before_fork();
            // The one that ended just now may not have been counted yet.
            let most = opened.load(Ordering::SeqCst) + 1;
            thread::sleep(Duration::from_millis(100));
            let seen = opened.load(Ordering::SeqCst);
            fork::after_fork_in_parent();
            let went_on = go_beyond(most);
            stop.store(true, Ordering::SeqCst);
            assert!(begun && went_on, "no context for a minute");
            assert!(seen <= most, "{seen} instead of {most}");
        });
    }
}
