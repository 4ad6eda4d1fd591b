//! Halted endpoints.

use crate::usb::host::transfer::{Completion, EndpointAddress, EndpointQueue, TransferError};

/// Endpoints whose transfers showed a halt. Only a halt that was seen is cleared: CLEAR_FEATURE resets the data toggle, on one
/// side only if the device does not agree.
#[derive(Debug, Default)]
pub(super) struct HaltedEndpoints(Vec<EndpointAddress>);

impl HaltedEndpoints {
    /// Takes in how a transfer ended. Overflow halts the endpoint as a stall does.
    pub(super) fn note(&mut self, completion: &Completion) {
        let halted = matches!(
            completion.result,
            Err(TransferError::Stall | TransferError::Overflow)
        );
        if halted && !self.0.contains(&completion.endpoint) {
            self.0.push(completion.endpoint);
        }
    }

    /// Clears the halt of `endpoint`, if it has one and no transfer is pending.
    pub(super) fn clear(&mut self, pipes: &mut dyn EndpointQueue, endpoint: EndpointAddress) {
        let Some(at) = self.0.iter().position(|halted| *halted == endpoint) else {
            return;
        };
        if pipes.pending(endpoint) > 0 {
            return;
        }
        match pipes.clear_halt(endpoint) {
            Ok(()) => drop(self.0.swap_remove(at)),
            Err(error) => tracing::debug!("usb: CLEAR_FEATURE(HALT) on {endpoint:?}: {error}"),
        }
    }
}
