//! Exchanges with readers at the APDU level.

use claviger_apdu::{Call, Secret, Sent, TransportError, TransportErrorKind};

use super::CcidSlot;
use crate::{
    ccid::{
        apdu_level::{ApduExchange, Progress},
        message::Command,
    },
    usb::pipe::bulk::BulkError,
};

impl CcidSlot {
    /// Sends `frame`, in parts where it is longer than a message. How long the card may take is the reader's to know.
    pub(super) fn exchange_apdu(
        &mut self,
        frame: &[u8],
        call: Call,
    ) -> Result<Secret, TransportError> {
        let mut exchange = ApduExchange::new(frame, self.reader.max_block());
        let mut begun = false;
        loop {
            let (level_parameter, data) = exchange.block();
            let block = Command::XfrBlock {
                bwi: 0,
                level_parameter,
                data,
            };
            let reply = self.command(&block, call.deadline).map_err(|error| {
                let sent = if begun { Sent::Maybe } else { error.sent };
                self.transfer_error("the command", BulkError { sent, ..error })
            })?;
            if let Some(error) = reply.error {
                return Err(self.block_error(error, &reply, !begun, Sent::Maybe));
            }
            begun = true;
            match exchange.receive(reply.specific, reply.data()) {
                Ok(Progress::Send) => {}
                Ok(Progress::Done(answer)) => return Ok(answer),
                Err(error) => {
                    self.pipe.mark_desynchronized();
                    let what = format!("the reader violated the CCID protocol: {error}");
                    return Err(self.error(TransportErrorKind::Protocol, Sent::Maybe, &what));
                }
            }
        }
    }
}
