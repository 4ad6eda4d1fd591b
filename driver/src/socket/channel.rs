//! One connection to a socket reader's card, and when it is over.

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

/// What ends conversations from outside.
#[derive(Debug, Default)]
pub(super) struct ShutdownControl {
    pub(super) lines: ShutdownHandles,
    /// No request lasts beyond it.
    pub(super) shutdown_deadline: OnceLock<Instant>,
}

/// A connection and its rule: one request, one answer.
///
/// After a timeout or a broken frame it is closed for good, because a late answer would be taken for the next
/// request's. Closing it also gives the card back.
pub(super) struct RequestChannel {
    path: PathBuf,
    link: ChannelState,
    ends: Arc<ShutdownControl>,
    /// Its connection, among those that `ends` knows.
    _line: Option<Arc<ShutdownHandle>>,
}

enum ChannelState {
    Open(Stream),
    /// What every later request is told.
    Gone(TransportError),
}

impl RequestChannel {
    /// Connects and exchanges greetings; a server that is slow to accept gets the time of `call`.
    pub(super) fn open(
        ends: &Arc<ShutdownControl>,
        path: &Path,
        call: Call,
    ) -> Result<Self, TransportError> {
        let stream = connect(path, call).map_err(|error| error.about(path))?;
        let line = stream.duplicate().map(|socket| ends.lines.add(socket));
        let mut channel = Self {
            path: path.to_owned(),
            link: ChannelState::Open(stream),
            ends: Arc::clone(ends),
            _line: line,
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

    /// Sends `request` and waits for its answer; a refusal is an answer.
    pub(super) fn round_trip(
        &mut self,
        request: &Request,
        call: Call,
    ) -> Result<Reply, TransportError> {
        let stream = match &mut self.link {
            ChannelState::Open(stream) => stream,
            ChannelState::Gone(why) => return Err(why.clone()),
        };
        let last = self.ends.shutdown_deadline.get().copied();
        let deadline = last.map_or(call.deadline, |last| call.deadline.min(last));
        if Instant::now() >= deadline {
            return Err(self.about(
                TransportErrorKind::TimedOut,
                "no time was left for the request",
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

    /// What a refusal means; one after which the connection is of no use closes it.
    pub(super) fn refusal_error(&mut self, refusal: Refusal, text: &str) -> TransportError {
        let (kind, meaning) = match refusal {
            Refusal::NoCard => (TransportErrorKind::NoCard, "no card"),
            Refusal::CardRemoved => (TransportErrorKind::CardRemoved, "the card was removed"),
            Refusal::CardReset => (TransportErrorKind::CardReset, "another user reset the card"),
            Refusal::Busy => (TransportErrorKind::Busy, "another user holds the card"),
            Refusal::Protocol => (
                TransportErrorKind::Protocol,
                "the server finds the request out of order",
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

    /// The answer was none to the request.
    pub(super) fn out_of_order(&mut self, sent: Sent) -> TransportError {
        self.fail(StreamError::OutOfOrder, sent)
    }

    /// Closes the connection; every later request is told why.
    pub(super) fn close(&mut self, why: &TransportError) {
        let what = format!("{}; the connection was closed", why.what);
        self.link = ChannelState::Gone(TransportError::before_card(why.kind, what));
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.link, ChannelState::Gone(_))
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
    let mut pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
    loop {
        match Stream::connect(path) {
            Err(StreamError::Os(Errno::AGAIN)) => {}
            done => return done,
        }
        let left = call.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(StreamError::TimedOut);
        }
        std::thread::sleep(pauses.next_delay().min(left));
    }
}
