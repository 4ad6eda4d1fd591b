//! Sends commands to one applet. Any status word but 9000 is an error.

use claviger_apdu::{
    CommandApdu, CommandBudget, Expected, Limits, StatusWord, Transaction, Transmit,
    TransportError, tlv::TlvError,
};
use x509_cert::{builder, der};

/// Why a card could not be provisioned.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The card rejected a command.
    #[error("{step}: {status}")]
    Refused {
        /// The step that failed.
        step: String,
        /// The status word.
        status: StatusWord,
    },
    /// The exchange failed.
    #[error("{step}: {error}")]
    Transport {
        /// The step that failed.
        step: String,
        /// The error.
        error: TransportError,
    },
    /// The response is not encoded as the standard says.
    #[error("response of the card: {0}")]
    Answer(#[from] TlvError),
    /// The response contains a malformed key or challenge.
    #[error("response of the card: {0}")]
    Form(&'static str),
    /// The applet has no such kind of key.
    #[error("the applet does not support {0:?}")]
    Algorithm(super::KeyAlgorithm),
    /// The certificate could not be built.
    #[error("certificate: {0}")]
    Certificate(#[from] builder::Error),
    /// A public key, or a certificate, could not be encoded.
    #[error("DER: {0}")]
    Der(#[from] der::Error),
    /// The card's folder could not be used.
    #[error("the card's memory: {0}")]
    Memory(#[from] std::io::Error),
}

/// A channel to a selected applet.
pub(super) struct AppletChannel<'a> {
    transaction: Transaction<'a>,
}

impl<'a> AppletChannel<'a> {
    /// Selects the applet with this AID.
    pub(super) fn open(link: &'a mut dyn Transmit, aid: &[u8]) -> Result<Self, ProvisionError> {
        let mut channel = Self {
            transaction: Transaction::new(link, Limits::SHORT),
        };
        channel.exchange("SELECT", [0x00, 0xA4, 0x04, 0x00], aid)?;
        Ok(channel)
    }

    /// Sends a short-running command. Returns the response data.
    pub(super) fn exchange(
        &mut self,
        step: &str,
        header: [u8; 4],
        data: &[u8],
    ) -> Result<Vec<u8>, ProvisionError> {
        self.command(
            step,
            CommandApdu {
                data,
                expected: Expected::All,
                ..CommandApdu::header(header)
            },
        )
    }

    /// Sends a command that generates a key. Returns the response data.
    pub(super) fn generate(
        &mut self,
        step: &str,
        header: [u8; 4],
        data: &[u8],
    ) -> Result<Vec<u8>, ProvisionError> {
        let class = CommandBudget::KeyGeneration;
        self.command(
            step,
            CommandApdu {
                data,
                expected: Expected::All,
                budget: class,
                ..CommandApdu::header(header)
            },
        )
    }

    fn command(&mut self, step: &str, command: CommandApdu<'_>) -> Result<Vec<u8>, ProvisionError> {
        let answer =
            self.transaction
                .exchange(&command)
                .map_err(|error| ProvisionError::Transport {
                    step: step.to_owned(),
                    error,
                })?;
        match answer.ok() {
            Ok(data) => Ok(data.expose().to_vec()),
            Err(status) => Err(ProvisionError::Refused {
                step: step.to_owned(),
                status,
            }),
        }
    }
}
