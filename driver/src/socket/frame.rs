//! The frames of the socket reader's protocol, in both directions. `docs/socket-reader.md` describes them.
//!
//! ```text
//! | length N, 4 bytes big endian | kind, 1 byte | body, N - 1 bytes |
//! ```

use claviger_apdu::{ResponseBuffer, Secret};

/// The version of the protocol, sent in Hello and in Welcome.
pub const VERSION: u8 = 1;
/// The longest frame after its length field: the largest response, its kind byte and some spare bytes.
pub const MAX: usize = ResponseBuffer::MAX + 16;

/// A request of the client.
#[derive(Debug)]
pub enum Request {
    /// The first request of every connection.
    Hello {
        /// The protocol version, [`VERSION`].
        version: u8,
    },
    /// Requests a [`Reply::State`] at once, and another at each change.
    Watch,
    /// Connects to the card, or reconnects after [`Refusal::CardReset`].
    Connect,
    /// Sends one APDU frame to the card.
    Transmit(Secret),
    /// Waits until no other connection holds the card, then begins a transaction.
    Begin,
    /// Ends the transaction.
    End,
    /// Power-cycles the card, for all connections.
    Reset,
}

/// A reply of the server.
#[derive(Debug)]
pub enum Reply {
    /// The reply to [`Request::Hello`].
    Welcome {
        /// The protocol version, [`VERSION`].
        version: u8,
        /// The reader's name, to show to a person.
        name: String,
    },
    /// The reply to [`Request::Watch`]. The server also sends it unasked at each change.
    State {
        /// The card's answer to reset. It is empty without a card.
        atr: Vec<u8>,
        /// Counts insertions and removals.
        changes: u32,
    },
    /// The reply to [`Request::Connect`] and [`Request::Reset`].
    Connected {
        /// The card's answer to reset.
        atr: Vec<u8>,
    },
    /// The reply to [`Request::Transmit`]: data and status word.
    Response(Secret),
    /// The reply to [`Request::Begin`].
    Begun,
    /// The reply to [`Request::End`].
    Ended,
    /// The reply to any request that failed. After a refused [`Request::Transmit`], the card has not received the
    /// frame, unless the refusal is [`Refusal::CardRemoved`].
    Refused {
        /// The reason.
        refusal: Refusal,
        /// The reason as text for a person.
        text: String,
    },
}

/// Why the server refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no card.
    NoCard,
    /// The card of this connection was removed. The connection is unusable.
    CardRemoved,
    /// Another connection reset the card. The client has to send [`Request::Connect`] again.
    CardReset,
    /// Another connection holds the card.
    Busy,
    /// The request was out of order.
    Protocol,
}

/// A malformed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is 0 or over [`MAX`].
    #[error("the frame has an invalid length of {0} bytes")]
    Length(u32),
    /// The kind byte is unknown.
    #[error("the frame kind {0:02X} is unknown")]
    Kind(u8),
    /// The body does not fit the kind.
    #[error("the body of frame kind {0:02X} is malformed")]
    Body(u8),
}

/// Checks the length field of a frame. Returns the number of bytes that follow it.
///
/// # Errors
/// [`FrameError::Length`].
pub fn body_len(length: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(length);
    match usize::try_from(length) {
        Ok(len) if (1..=MAX).contains(&len) => Ok(len),
        _ => Err(FrameError::Length(length)),
    }
}

fn frame(kind: u8, parts: &[&[u8]]) -> Secret {
    let len = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut frame = Secret::new(Vec::with_capacity(4 + len));
    frame.extend(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(&[kind]);
    parts.iter().for_each(|part| frame.extend(part));
    frame
}

impl Request {
    /// Returns the whole frame, its length field included.
    #[must_use]
    pub fn encode(&self) -> Secret {
        match self {
            Self::Hello { version } => frame(0x01, &[&[*version]]),
            Self::Watch => frame(0x02, &[]),
            Self::Connect => frame(0x03, &[]),
            Self::Transmit(apdu) => frame(0x04, &[apdu.expose()]),
            Self::Begin => frame(0x05, &[]),
            Self::End => frame(0x06, &[]),
            Self::Reset => frame(0x07, &[]),
        }
    }

    /// Parses a frame without its length field.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (kind, body) = bytes.split_first().ok_or(FrameError::Length(0))?;
        match (*kind, body) {
            (0x01, [version]) => Ok(Self::Hello { version: *version }),
            (0x02, []) => Ok(Self::Watch),
            (0x03, []) => Ok(Self::Connect),
            (0x04, apdu) => Ok(Self::Transmit(Secret::copy_from(apdu))),
            (0x05, []) => Ok(Self::Begin),
            (0x06, []) => Ok(Self::End),
            (0x07, []) => Ok(Self::Reset),
            (kind @ 0x01..=0x07, _) => Err(FrameError::Body(kind)),
            (kind, _) => Err(FrameError::Kind(kind)),
        }
    }
}

impl Reply {
    /// Returns the whole frame, its length field included.
    #[must_use]
    pub fn encode(&self) -> Secret {
        match self {
            Self::Welcome { version, name } => frame(0x81, &[&[*version], name.as_bytes()]),
            Self::State { atr, changes } => frame(0x82, &[&changes.to_be_bytes(), atr]),
            Self::Connected { atr } => frame(0x83, &[atr]),
            Self::Response(data) => frame(0x84, &[data.expose()]),
            Self::Begun => frame(0x85, &[]),
            Self::Ended => frame(0x86, &[]),
            Self::Refused { refusal, text } => frame(0x8F, &[&[refusal.code()], text.as_bytes()]),
        }
    }

    /// Parses a frame without its length field. Invalid UTF-8 in a text is replaced, because the text is only shown.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (kind, body) = bytes.split_first().ok_or(FrameError::Length(0))?;
        match (*kind, body) {
            (0x81, [version, name @ ..]) => Ok(Self::Welcome {
                version: *version,
                name: String::from_utf8_lossy(name).into_owned(),
            }),
            (0x82, [a, b, c, d, atr @ ..]) => Ok(Self::State {
                atr: atr.to_vec(),
                changes: u32::from_be_bytes([*a, *b, *c, *d]),
            }),
            (0x83, atr) => Ok(Self::Connected { atr: atr.to_vec() }),
            (0x84, data) => Ok(Self::Response(Secret::copy_from(data))),
            (0x85, []) => Ok(Self::Begun),
            (0x86, []) => Ok(Self::Ended),
            (0x8F, [code, text @ ..]) => Ok(Self::Refused {
                refusal: Refusal::from_code(*code).ok_or(FrameError::Body(0x8F))?,
                text: String::from_utf8_lossy(text).into_owned(),
            }),
            (kind @ (0x81..=0x86 | 0x8F), _) => Err(FrameError::Body(kind)),
            (kind, _) => Err(FrameError::Kind(kind)),
        }
    }
}

impl Refusal {
    const ALL: [Self; 5] = [
        Self::NoCard,
        Self::CardRemoved,
        Self::CardReset,
        Self::Busy,
        Self::Protocol,
    ];

    fn code(self) -> u8 {
        match self {
            Self::NoCard => 1,
            Self::CardRemoved => 2,
            Self::CardReset => 3,
            Self::Busy => 4,
            Self::Protocol => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }
}

/// Parses arbitrary bytes as a request and as a reply, for the fuzz target `socket_frame`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        assert_eq!(
            request.encode().expose().get(4..),
            Some(bytes),
            "a request encodes as it came"
        );
    }
    let _ = Reply::parse(bytes);
}
