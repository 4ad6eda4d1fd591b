//! A fake USB device in memory, behind [`UsbInterface`].
//!
//! ```text
//! FakeReader   a CCID reader with cards         or any Firmware, also a closure
//!     FakeDevice   for the test: pushes responses and notifications, injects faults, reads the counts
//!         claim()      for the driver: UsbInterface, then EndpointQueue
//! ```
//!
//! Transfers are split into packets as on a bus. So a message whose length is a multiple of the packet size needs its zero-length
//! packet, and a response that is not read waits for the next transfer. Time does not pass in the device: the firmware runs
//! inside the `submit_out` or `control` that reaches it, on that thread. The test pushes everything that comes later, from any
//! thread. Submissions in one order give completions in the same order.

mod bus;
mod endpoint;
mod engine;
pub mod fault;
mod queue;
pub mod reader;
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use self::{engine::DeviceState, queue::FakeQueue};
pub use self::{fault::Fault, reader::FakeReader};
use super::transfer::{
    EndpointAddress, EndpointQueue, OpenError, SetupPacket, TransferError, UsbInterface,
};

/// The firmware of the device, which handles everything that the host sends.
pub trait Firmware: Send {
    /// A bulk-OUT transfer has arrived; a message may take several.
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage>;

    /// A control request: `data` is what was sent, or is filled. How many bytes there were.
    ///
    /// # Errors
    /// [`TransferError::Stall`] for one it does not know.
    fn control(&mut self, setup: SetupPacket, data: &mut [u8]) -> Result<usize, TransferError> {
        let _ = (setup, data);
        Err(TransferError::Stall)
    }

    /// The device was reset.
    fn reset(&mut self) {}
}

impl<F: FnMut(&[u8]) -> Vec<DeviceMessage> + Send> Firmware for F {
    fn bulk_out(&mut self, transfer: &[u8]) -> Vec<DeviceMessage> {
        self(transfer)
    }
}

/// A message of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceMessage {
    /// A message on bulk-IN.
    Bulk(Vec<u8>),
    /// A message on interrupt-IN; lost when there is none.
    Notification(Vec<u8>),
}

/// The endpoints of the one interface.
#[derive(Clone, Copy, Debug)]
pub struct EndpointLayout {
    /// Bulk to the device.
    pub bulk_out: EndpointAddress,
    /// Bulk from the device.
    pub bulk_in: EndpointAddress,
    /// Interrupt from the device.
    pub interrupt: Option<EndpointAddress>,
    /// wMaxPacketSize of all of them.
    pub packet: usize,
    /// Whether an empty packet follows a message that fills its last packet, as USB requires.
    pub zlp: bool,
}

impl Default for EndpointLayout {
    fn default() -> Self {
        Self {
            bulk_out: EndpointAddress(0x02),
            bulk_in: EndpointAddress(0x82),
            interrupt: Some(EndpointAddress(0x83)),
            packet: 64,
            zlp: true,
        }
    }
}

/// An event at the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transfer from the device was queued, of up to so many bytes.
    SubmitIn(EndpointAddress, usize),
    /// A transfer of so many bytes to the device was queued.
    SubmitOut(EndpointAddress, usize),
    /// A transfer ended, with so many bytes over the bus.
    Completed(EndpointAddress, usize, Result<(), TransferError>),
    /// A control request.
    Control(SetupPacket),
    /// The transfers of an endpoint were cancelled.
    Cancel(EndpointAddress),
    /// A halt was cleared.
    ClearHalt(EndpointAddress),
    /// The device was reset.
    Reset,
    /// The interface was claimed.
    Claimed,
    /// The last of the claim's owners was dropped.
    Released,
}

/// Counts of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferCounts {
    /// Transfers from the device on bulk-IN.
    pub bulk_in: usize,
    /// Transfers to the device.
    pub bulk_out: usize,
    /// Transfers from the device on interrupt-IN.
    pub interrupt: usize,
    /// Control requests.
    pub control: usize,
    /// Transfers that ended, of whatever endpoint.
    pub completed: usize,
}

/// A device, as the test sees it. A clone is the same device.
#[derive(Clone)]
pub struct FakeDevice {
    state: Arc<Mutex<DeviceState>>,
}

impl FakeDevice {
    /// A device with an unclaimed interface.
    #[must_use]
    pub fn new(layout: EndpointLayout, firmware: impl Firmware + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(DeviceState::new(layout, Box::new(firmware)))),
        }
    }

    /// Claims the interface, as opening a device does.
    ///
    /// # Errors
    /// [`OpenError::Busy`] while it is claimed, [`OpenError::Disconnected`] after the device left.
    pub fn claim(&self) -> Result<Arc<dyn UsbInterface>, OpenError> {
        self.state().claim()?;
        Ok(Arc::new(FakeInterface {
            claim: Arc::new(ClaimedInterface {
                device: self.clone(),
            }),
        }))
    }

    /// Returns whether the interface is claimed, or transfers of it are still in use.
    #[must_use]
    pub fn claimed(&self) -> bool {
        self.state().claimed
    }

    /// Returns how many [`EndpointQueue`] exist.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.state().queues()
    }

    /// Sends a message, after all that was sent before.
    pub fn send(&self, answer: DeviceMessage) {
        self.state().send(answer);
    }

    /// The device leaves the bus; whatever is pending ends with [`TransferError::Disconnected`].
    pub fn leave(&self) {
        self.state().leave();
    }

    /// Lets `fault` take effect at the event after so many others: a submission, a control request, or a completion that no
    /// cancel caused. Replaces a fault that has not taken effect.
    pub fn inject(&self, fault: Fault, after: usize) {
        self.state().inject(fault, after);
    }

    /// Returns whether the last injected fault has taken effect: its event has come, and the response that it affects, if any.
    #[must_use]
    pub fn fault_struck(&self) -> bool {
        self.state().fault_struck()
    }

    /// From now on every interrupt transfer that is submitted fails with this errno.
    pub fn break_interrupt(&self, errno: i32) {
        self.state().broken_interrupt = Some(errno);
    }

    /// Makes the device accept all data without any response, or respond again.
    pub fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    /// Makes the device accept all data without any response, until it is reset.
    pub fn hang(&self) {
        let mut state = self.state();
        state.silent = true;
        state.hangs = true;
    }

    /// Lets go what [`Fault::Delay`] held.
    pub fn release(&self) {
        self.state().release();
    }

    /// Returns the counts of all events so far.
    #[must_use]
    pub fn counts(&self) -> TransferCounts {
        self.state().counts
    }

    /// Returns how many transfers and control requests there have been, from any sender and with any result.
    #[must_use]
    pub fn transfer_count(&self) -> u64 {
        self.state().transfer_count
    }

    /// The last few thousand events, the oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.state().events()
    }

    /// Forgets the events and sets the counts to zero.
    pub fn forget(&self) {
        self.state().forget();
    }

    fn state(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeDevice")
    }
}

/// The claim, which lasts as long as the interface and its queues.
#[derive(Debug)]
struct ClaimedInterface {
    device: FakeDevice,
}

impl Drop for ClaimedInterface {
    fn drop(&mut self) {
        self.device.state().unclaim();
    }
}

#[derive(Debug)]
struct FakeInterface {
    claim: Arc<ClaimedInterface>,
}

impl UsbInterface for FakeInterface {
    fn open_queue(
        &self,
        endpoints: &[EndpointAddress],
    ) -> Result<Box<dyn EndpointQueue>, TransferError> {
        let pipes = FakeQueue::new(Arc::clone(&self.claim), endpoints)?;
        Ok(Box::new(pipes))
    }

    fn control(
        &self,
        setup: SetupPacket,
        data: &mut [u8],
        _limit: Duration,
    ) -> Result<usize, TransferError> {
        self.claim.device.state().control(setup, data)
    }

    fn reset(&self) -> Result<(), TransferError> {
        self.claim.device.state().reset()
    }
}
