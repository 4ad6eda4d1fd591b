//! The three cardholder certificates, which share one tag (OpenPGP card 3.4, 4.4.3.3, 7.2.5 to 7.2.7).

use claviger_apdu::{CommandApdu, Expected, StatusWord};

use crate::{
    card::AppletTransaction,
    certificate::Certificate,
    error::TokenError,
    openpgp::{data_object, key::KeyRole, quirks::Quirks},
};

/// GET DATA: reads the occurrence at the card's position.
const GET_DATA: CommandApdu<'static> = CommandApdu {
    expected: Expected::All,
    ..CommandApdu::header([0x00, 0xCA, 0x7F, 0x21])
};
/// GET NEXT DATA: reads the occurrence after the one read last.
const GET_NEXT_DATA: CommandApdu<'static> = CommandApdu {
    expected: Expected::All,
    ..CommandApdu::header([0x00, 0xCC, 0x7F, 0x21])
};
/// The data of SELECT DATA: 7F21, in a tag list 5C in a general reference 60. The length comes first.
const PATH: [u8; 7] = [0x06, 0x60, 0x04, 0x5C, 0x02, 0x7F, 0x21];

/// The result of reading an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum ReadState<T> {
    /// Not read yet.
    #[default]
    Unread,
    /// The card has no such object.
    Absent,
    /// The card has the object but refuses it, or its content is invalid.
    Unreadable,
    /// The object was read.
    Found(T),
}

impl<T> ReadState<T> {
    pub(super) const fn found(&self) -> Option<&T> {
        match self {
            Self::Found(value) => Some(value),
            _ => None,
        }
    }

    pub(super) const fn is_unread(&self) -> bool {
        matches!(self, Self::Unread)
    }
}

/// Reads certificates with as few commands as the card's position allows.
///
/// The card keeps its position when another program takes over. So the position is known only after a SELECT, and
/// [`CertificateReader::finish`] must restore it.
#[derive(Debug)]
pub(super) struct CertificateReader {
    quirks: Quirks,
    /// Whether the card supports SELECT DATA, and with it several certificates.
    selects: bool,
    /// The occurrence that GET DATA would read, if known.
    position: Option<u8>,
    /// The response to GET DATA at the position. GET NEXT DATA continues from there.
    last: Option<Vec<u8>>,
}

impl CertificateReader {
    /// Returns a reader for a card of `version`. After a SELECT the card is at the first occurrence.
    pub(super) fn new(version: (u8, u8), quirks: Quirks, just_selected: bool) -> Self {
        let selects = version >= (3, 0);
        Self {
            quirks,
            selects,
            position: (just_selected || !selects).then_some(0),
            last: None,
        }
    }

    /// Reads the certificate of `key`.
    ///
    /// # Errors
    /// An error of the transaction.
    pub(super) fn read(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
    ) -> Result<ReadState<Certificate>, TokenError> {
        let found = match self.read_next(tx, key.occurrence())? {
            Some(next) => next,
            None => match self.read_selected(tx, key.occurrence())? {
                Ok(selected) => selected,
                Err(status) => return Ok(refused(key, status)),
            },
        };
        let read = parse(key, data_object::value_of(&found, data_object::CERTIFICATE));
        self.last = Some(found);
        Ok(read)
    }

    /// Writes the certificate of `key`. Empty data removes it. The position is unknown afterwards.
    ///
    /// # Errors
    /// [`TokenError::ValueInvalid`] if the card has no certificate for the key, [`TokenError::NoSpace`], or an error of
    /// the transaction.
    pub(super) fn write(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
        der: &[u8],
    ) -> Result<(), TokenError> {
        let status = self.select(tx, key.occurrence())?;
        if !status.is_ok() {
            let what = format!("the card has no certificate object for the {}", key.name());
            return Err(match status {
                StatusWord::REFERENCE_NOT_FOUND => TokenError::value(what),
                status => TokenError::refused(format!("OpenPGP SELECT DATA: {what}"), status),
            });
        }
        let command = CommandApdu {
            data: der,
            ..CommandApdu::header([0x00, 0xDA, 0x7F, 0x21])
        };
        let status = tx.exchange(&command)?.status;
        // Cards differ in the position after PUT DATA.
        self.position = None;
        if status.is_ok() {
            return Ok(());
        }
        let operation = format!("OpenPGP PUT DATA of the certificate of the {}", key.name());
        Err(TokenError::not_written(operation, status))
    }

    /// Reads with GET NEXT DATA. Returns `None` unless `occurrence` follows the one read last and the card moves to it.
    fn read_next(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        occurrence: u8,
    ) -> Result<Option<Vec<u8>>, TokenError> {
        let Some(last) = self.last.take() else {
            return Ok(None);
        };
        if !self.selects || self.position.map(|position| position + 1) != Some(occurrence) {
            return Ok(None);
        }
        self.position = None;
        let response = tx.read(&GET_NEXT_DATA)?;
        let next = response.data.expose();
        // The same data again suggests that the card has not moved.
        if !response.status.is_ok() || (next == last && !next.is_empty()) {
            return Ok(None);
        }
        self.position = Some(occurrence);
        Ok(Some(next.to_vec()))
    }

    /// Reads with GET DATA, after SELECT DATA if the card is at another position.
    fn read_selected(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        occurrence: u8,
    ) -> Result<Result<Vec<u8>, StatusWord>, TokenError> {
        if self.position != Some(occurrence) {
            let status = self.select(tx, occurrence)?;
            if !status.is_ok() {
                return Ok(Err(status));
            }
        }
        let response = tx.read(&GET_DATA)?;
        Ok(response.ok().map(|data| data.expose().to_vec()))
    }

    /// Sends SELECT DATA. A card without it has only the first certificate, which is always selected.
    fn select(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        occurrence: u8,
    ) -> Result<StatusWord, TokenError> {
        if !self.selects {
            return Ok(match occurrence {
                0 => StatusWord::OK,
                _ => StatusWord::REFERENCE_NOT_FOUND,
            });
        }
        self.position = None;
        let [_, path @ ..] = &PATH;
        let header = [0x00, 0xA5, occurrence, 0x04];
        let command = |data| CommandApdu {
            data,
            ..CommandApdu::header(header)
        };
        let mut status = tx.read(&command(path))?.status;
        if status == StatusWord::INSTRUCTION_NOT_SUPPORTED {
            self.selects = false;
            self.position = Some(0);
            status = match occurrence {
                0 => StatusWord::OK,
                _ => StatusWord::REFERENCE_NOT_FOUND,
            };
        } else if !status.is_ok() && self.quirks.select_data_length_twice {
            status = tx.read(&command(&PATH))?.status;
        }
        if status.is_ok() {
            self.position = Some(occurrence);
        }
        Ok(status)
    }

    /// Moves the card to the first occurrence, where programs that know only one certificate expect it.
    ///
    /// # Errors
    /// An error of the transaction.
    pub(super) fn finish(mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        if self.position != Some(0) {
            let status = self.select(tx, 0)?;
            tracing::debug!("OpenPGP SELECT DATA to return to the first certificate: {status}");
        }
        Ok(())
    }
}

fn parse(key: KeyRole, der: &[u8]) -> ReadState<Certificate> {
    if der.is_empty() {
        return ReadState::Absent;
    }
    match Certificate::parse(der) {
        Ok(certificate) => ReadState::Found(certificate),
        Err(error) => {
            tracing::warn!("the certificate of the {} is left out: {error}", key.name());
            ReadState::Unreadable
        }
    }
}

fn refused(key: KeyRole, status: StatusWord) -> ReadState<Certificate> {
    match status {
        StatusWord::REFERENCE_NOT_FOUND | StatusWord::NOT_FOUND => ReadState::Absent,
        _ => {
            tracing::warn!(
                "the certificate of the {} is left out: {status}",
                key.name()
            );
            ReadState::Unreadable
        }
    }
}
