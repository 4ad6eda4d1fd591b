//! A connection to a socket reader's server that carries requests and replies, and is closed after an error.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use claviger_apdu::{Call, Sent, TransportError, TransportErrorKind};
use rustix::io::Errno;

use super::{
    frame::{Refusal, Reply, Request, VERSION},
    stream::{Stream, StreamError, sanitized},
};
use crate::{
    socket_shutdown::{ShutdownHandle, ShutdownHandles},
    wait::Backoff,
};

/// Ends the requests of all channels of a backend.
#[derive(Debug, Default)]
pub(super) struct ShutdownControl {
    pub(super) handles: ShutdownHandles,
    /// The latest deadline of all requests.
    pub(super) shutdown_deadline: OnceLock<Instant>,
}

/// A connection on which each request has one reply.
///
/// A timeout or a malformed frame closes the connection for good, because a late reply would be taken for the next
/// request's reply. Closing the connection also gives the card back.
pub(super) struct RequestChannel {
    path: PathBuf,
    state: ChannelState,
    control: Arc<ShutdownControl>,
    /// Keeps the connection registered in `control`.
    _shutdown_handle: Option<Arc<ShutdownHandle>>,
}

enum ChannelState {
    Open(Stream),
    /// Every later request returns this error.
    Closed(TransportError),
}

impl RequestChannel {
    /// Connects and sends Hello. A server that accepts slowly gets the time of `call`.
    pub(super) fn open(
        control: &Arc<ShutdownControl>,
        path: &Path,
        call: Call,
    ) -> Result<Self, TransportError> {
        let stream = connect(path, call).map_err(|error| error.about(path))?;
        let shutdown_handle = stream.duplicate().map(|socket| control.handles.add(socket));
        let mut channel = Self {
            path: path.to_owned(),
            state: ChannelState::Open(stream),
            control: Arc::clone(control),
            _shutdown_handle: shutdown_handle,
        };
        match channel.round_trip(&Request::Hello { version: VERSION }, call)? {
            Reply::Welcome {
                version: VERSION, ..
            } => Ok(channel),
            Reply::Welcome { version, .. } => {
                Err(channel.fail(StreamError::Version(version), Sent::No))
            }
            Reply::Refused { refusal, text } => Err(channel.refusal_error(refusal, &text)),
            _ => Err(channel.out_of_order(Sent::No)),
        }
    }

    /// Sends `request` and waits for its reply. A refusal is a reply, not an error.
    pub(super) fn round_trip(
        &mut self,
        request: &Request,
        call: Call,
    ) -> Result<Reply, TransportError> {
        let stream = match &mut self.state {
            ChannelState::Open(stream) => stream,
            ChannelState::Closed(why) => return Err(why.clone()),
        };
        let shutdown_deadline = self.control.shutdown_deadline.get().copied();
        let deadline = shutdown_deadline.map_or(call.deadline, |shutdown_deadline| {
            call.deadline.min(shutdown_deadline)
        });
        if Instant::now() >= deadline {
            return Err(self.about(
                TransportErrorKind::TimedOut,
                "the deadline had passed before the request was sent",
            ));
        }
        if let Err(error) = stream.send(request, deadline) {
            return Err(self.fail(error, Sent::No));
        }
        let sent = if matches!(request, Request::Transmit(_)) {
            Sent::Maybe
        } else {
            Sent::No
        };
        stream
            .receive(deadline)
            .map_err(|error| match (request, error) {
                (Request::Begin, StreamError::TimedOut) => self.begin_timed_out(),
                _ => self.fail(error, sent),
            })
    }

    /// Returns the error that a refusal means. Closes the connection if it is unusable after the refusal.
    pub(super) fn refusal_error(&mut self, refusal: Refusal, text: &str) -> TransportError {
        let (kind, meaning) = match refusal {
            Refusal::NoCard => (TransportErrorKind::NoCard, "no card"),
            Refusal::CardRemoved => (TransportErrorKind::CardRemoved, "the card was removed"),
            Refusal::CardReset => (TransportErrorKind::CardReset, "another user reset the card"),
            Refusal::Busy => (TransportErrorKind::Busy, "another user holds the card"),
            Refusal::Protocol => (
                TransportErrorKind::Protocol,
                "the server reports that the request is out of order",
            ),
        };
        let error = match sanitized(text) {
            text if text.is_empty() => self.about(kind, meaning),
            text => self.about(kind, &format!("{meaning} ({text})")),
        };
        if matches!(refusal, Refusal::CardRemoved | Refusal::Protocol) {
            self.close(&error);
        }
        error
    }

    /// Closes the connection, because the reply does not fit the request.
    pub(super) fn out_of_order(&mut self, sent: Sent) -> TransportError {
        self.fail(StreamError::OutOfOrder, sent)
    }

    /// Closes the connection. Every later request returns `why`.
    pub(super) fn close(&mut self, why: &TransportError) {
        let what = format!("{}; the connection was closed", why.what);
        self.state = ChannelState::Closed(TransportError::before_card(why.kind, what));
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, ChannelState::Closed(_))
    }

    pub(super) fn about(&self, kind: TransportErrorKind, what: &str) -> TransportError {
        TransportError::before_card(
            kind,
            format!("socket reader {}: {what}", self.path.display()),
        )
    }

    fn fail(&mut self, error: StreamError, sent: Sent) -> TransportError {
        let error = error.about(&self.path);
        self.close(&error);
        TransportError { sent, ..error }
    }

    fn begin_timed_out(&mut self) -> TransportError {
        let error = self.about(
            TransportErrorKind::TimedOut,
            "another user held the card until the deadline",
        );
        self.close(&error);
        error
    }
}

fn connect(path: &Path, call: Call) -> Result<Stream, StreamError> {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
    loop {
        match Stream::connect(path) {
            Err(StreamError::Os(Errno::AGAIN)) => {}
            done => return done,
        }
        let left = call.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StreamError::TimedOut);
        }
        std::thread::sleep(backoff.next_delay().min(left));
    }
}
