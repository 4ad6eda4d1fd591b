//! One command after the other to one applet; anything but 9000 ends it.

use claviger_apdu::{
    CommandApdu, CommandBudget, Expected, Limits, StatusWord, Transaction, Transmit,
    TransportError, tlv::TlvError,
};
use x509_cert::{builder, der};

/// Why a card could not be made what its plan says.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The card said no.
    #[error("{step}: {status}")]
    Refused {
        /// What was to be done.
        step: String,
        /// What it answered.
        status: StatusWord,
    },
    /// The command or its answer did not get through.
    #[error("{step}: {error}")]
    Transport {
        /// What was to be done.
        step: String,
        /// Why.
        error: TransportError,
    },
    /// The card answered something else than the standard says.
    #[error("answer of the card: {0}")]
    Answer(#[from] TlvError),
    /// The card answered a key or a challenge of a wrong form.
    #[error("answer of the card: {0}")]
    Form(&'static str),
    /// The applet has no such kind of key.
    #[error("{0:?} is not of this applet")]
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

/// Where an issuer serves one card.
pub(super) struct AppletChannel<'a> {
    transaction: Transaction<'a>,
}

impl<'a> AppletChannel<'a> {
    /// Selects the applet called `aid`.
    pub(super) fn open(link: &'a mut dyn Transmit, aid: &[u8]) -> Result<Self, ProvisionError> {
        let mut channel = Self {
            transaction: Transaction::new(link, Limits::SHORT),
        };
        channel.exchange("SELECT", [0x00, 0xA4, 0x04, 0x00], aid)?;
        Ok(channel)
    }

    /// A quick command; the data it answers.
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

    /// A command that makes a key; the data it answers.
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
