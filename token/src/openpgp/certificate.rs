//! The three cardholder certificates behind one tag (OpenPGP card 3.4, 4.4.3.3, 7.2.5 to 7.2.7).

use claviger_apdu::{CommandApdu, Expected, StatusWord};

use crate::{
    card::AppletTransaction,
    certificate::Certificate,
    error::TokenError,
    openpgp::{data_object, key::KeyRole, quirks::Quirks},
};

/// GET DATA of the occurrence the card stands at.
const GET_DATA: CommandApdu<'static> = CommandApdu {
    expected: Expected::All,
    ..CommandApdu::header([0x00, 0xCA, 0x7F, 0x21])
};
/// GET NEXT DATA: of the occurrence after the one just read.
const GET_NEXT_DATA: CommandApdu<'static> = CommandApdu {
    expected: Expected::All,
    ..CommandApdu::header([0x00, 0xCC, 0x7F, 0x21])
};
/// What SELECT DATA selects: 7F21, as a tag list 5C in a general reference 60. The length comes before.
const PATH: [u8; 7] = [0x06, 0x60, 0x04, 0x5C, 0x02, 0x7F, 0x21];

/// What came of reading something.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum ReadState<T> {
    /// Nobody asked yet.
    #[default]
    Unread,
    /// The card has none.
    Absent,
    /// The card has one and does not give it, or what it gives is none.
    Unreadable,
    /// It is here.
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
/// The card keeps its position from program to program, so it is known only after a SELECT, and must be
/// given back as it was found: [`CertificateReader::finish`].
#[derive(Debug)]
pub(super) struct CertificateReader {
    quirks: Quirks,
    /// Whether the card has SELECT DATA, and with it more than one certificate.
    selects: bool,
    /// The occurrence GET DATA would read, when known.
    position: Option<u8>,
    /// What GET DATA has just read at the position; GET NEXT DATA goes on from there.
    last: Option<Vec<u8>>,
}

impl CertificateReader {
    /// A reader for a card of `version`, which stands at the first occurrence when it was just selected.
    pub(super) fn new(version: (u8, u8), quirks: Quirks, just_selected: bool) -> Self {
        let selects = version >= (3, 0);
        Self {
            quirks,
            selects,
            position: (just_selected || !selects).then_some(0),
            last: None,
        }
    }

    /// The certificate of `key`.
    ///
    /// # Errors
    /// Of the conversation.
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

    /// Writes the certificate of `key`; an empty one removes it. The position is then no longer known.
    ///
    /// # Errors
    /// [`TokenError::ValueInvalid`] when the card has no place for it, [`TokenError::NoSpace`], or of the conversation.
    pub(super) fn write(
        &mut self,
        tx: &mut AppletTransaction<'_, '_>,
        key: KeyRole,
        der: &[u8],
    ) -> Result<(), TokenError> {
        let status = self.select(tx, key.occurrence())?;
        if !status.is_ok() {
            let what = format!("no place for the certificate of the {}", key.name());
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
        // What PUT DATA does to the position, no card says.
        self.position = None;
        if status.is_ok() {
            return Ok(());
        }
        let operation = format!("OpenPGP PUT DATA of the certificate of the {}", key.name());
        Err(TokenError::not_written(operation, status))
    }

    /// By GET NEXT DATA, if `occurrence` comes after the one just read and the card moves on to it.
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
        // The same again looks like a card that has not moved.
        if !response.status.is_ok() || (next == last && !next.is_empty()) {
            return Ok(None);
        }
        self.position = Some(occurrence);
        Ok(Some(next.to_vec()))
    }

    /// By GET DATA, after SELECT DATA where the card stands elsewhere.
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

    /// SELECT DATA. A card without it has only the first certificate, which is always selected.
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

    /// Leaves the card at the first occurrence, where programs expect it that know of one only.
    ///
    /// # Errors
    /// Of the conversation.
    pub(super) fn finish(mut self, tx: &mut AppletTransaction<'_, '_>) -> Result<(), TokenError> {
        if self.position != Some(0) {
            let status = self.select(tx, 0)?;
            tracing::debug!("OpenPGP SELECT DATA back to the first certificate: {status}");
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
