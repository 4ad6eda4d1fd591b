//! Keeps every connection to pcscd and every call on one in sight, so that none lasts longer than it may.
//!
//! libpcsclite has no timeouts. Where threads are allowed, one that sleeps until the first deadline ends the
//! calls that overstay theirs; without it they last until pcscd answers, dies, or [`CallWatchdog::abort_all`] is called.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ::pcsc::{Context, Error, Scope};

use super::{daemon, library};
use crate::{
    fork_guard,
    socket_shutdown::{KnownSockets, ShutdownHandle, ShutdownHandles},
    threads,
    wait::StopFlag,
};

/// How every path ends at which pcscd listens.
const SOCKET_SUFFIX: &str = "/pcscd.comm";
/// How long the thread may take to end.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// A call may last as long as a person takes to touch a key; every so often it is looked whether pcscd still answers.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long pcscd may take to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long pcscd may take to let go of a context.
const RELEASE: Duration = Duration::from_secs(2);

/// A context and its connection to pcscd, where that could be told from others.
pub(super) struct WatchedContext {
    watchdog: Arc<CallWatchdog>,
    /// Empty only while it is being dropped.
    context: Option<Context>,
    line: Option<Arc<ShutdownHandle>>,
}

impl WatchedContext {
    pub(super) fn context(&self) -> Result<&Context, Error> {
        self.context.as_ref().ok_or(Error::InvalidHandle)
    }

    pub(super) fn line(&self) -> Option<&Arc<ShutdownHandle>> {
        self.line.as_ref()
    }

    /// Runs a call on the connection, which is cut when the call is not through by `until`.
    pub(super) fn run_until<T>(&self, deadline: Instant, call: impl FnOnce() -> T) -> T {
        match &self.line {
            Some(line) => self
                .watchdog
                .during(CallTarget::Line(Arc::clone(line)), deadline, call),
            None => call(),
        }
    }

    /// The same for a call that pcscd answers at once; no fork comes in between.
    pub(super) fn run_short<T>(&self, deadline: Instant, call: impl FnOnce() -> T) -> T {
        self.run_until(deadline, || {
            let _pass = fork_guard::enter();
            call()
        })
    }

    /// Whether pcscd, or the connection to it, is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_closed())
    }

    /// Whether the connection was given up because pcscd did not answer.
    pub(super) fn was_aborted(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.was_shut_down())
    }
}

impl Drop for WatchedContext {
    fn drop(&mut self) {
        if self.watchdog.is_unresponsive()
            && let Some(line) = &self.line
        {
            line.shut_down();
        }
        let context = self.context.take();
        self.run_short(Instant::now() + RELEASE, || drop(context));
        self.watchdog.wake_if_idle();
    }
}

/// What a running call waits on.
#[derive(Clone, Debug)]
enum CallTarget {
    Line(Arc<ShutdownHandle>),
    /// A connection being made: it is not among these.
    New {
        before: Arc<KnownSockets>,
        is_for_a_watch: bool,
    },
}

/// What a context is for.
#[derive(Clone, Copy)]
pub(super) enum ContextPurpose<'a> {
    /// A watch until it is stopped.
    Watch(&'a StopFlag),
    Card,
}

impl ContextPurpose<'_> {
    fn is_stopped(self) -> bool {
        matches!(self, Self::Watch(stop) if stop.is_set())
    }
}

#[derive(Debug)]
struct RunningCall {
    number: u64,
    on: CallTarget,
    deadline: Instant,
    /// When it is looked whether pcscd still answers.
    look: Instant,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<RunningCall>,
    last_number: u64,
    /// When the thread looks next; `None` while it waits to be told.
    looks_at: Option<Instant>,
    establishing: bool,
    /// It did not answer when it was asked, and no connection was made since.
    hangs: bool,
    over: bool,
    /// No call lasts beyond it.
    last: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: ShutdownHandles,
    state: Mutex<State>,
    changed: Condvar,
    /// A connection was made, or was not.
    established: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, on: &CallTarget) {
        match on {
            CallTarget::Line(line) => line.shut_down(),
            CallTarget::New { before, .. } => {
                if let Some(line) = before.find_new(&self.lines) {
                    line.shut_down();
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct CallWatchdog {
    shared: Arc<Shared>,
    may_create_threads: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl CallWatchdog {
    pub(super) fn new(may_create_threads: bool) -> Self {
        Self {
            shared: Arc::default(),
            may_create_threads,
            thread: Mutex::default(),
        }
    }

    /// Makes a context, one at a time: the one socket that is new is its own.
    pub(super) fn establish(
        self: &Arc<Self>,
        purpose: ContextPurpose<'_>,
        deadline: Instant,
    ) -> Result<WatchedContext, Error> {
        self.wait_for_turn(purpose, deadline)?;
        let turn = EstablishGuard(&self.shared);
        let before = Arc::new(KnownSockets::to(SOCKET_SUFFIX));
        let on = CallTarget::New {
            before: Arc::clone(&before),
            is_for_a_watch: matches!(purpose, ContextPurpose::Watch(_)),
        };
        let context = self.during(on, deadline, || {
            // Whoever stops a watch later finds it in here.
            if purpose.is_stopped() {
                return Err(Error::Cancelled);
            }
            library::load()?;
            let _pass = fork_guard::enter();
            Context::establish(Scope::User)
        })?;
        let line = before.find_new(&self.shared.lines);
        let mut state = self.shared.state();
        state.hangs = false;
        let over = state.over;
        drop(state);
        drop(turn);
        if line.is_none() {
            tracing::debug!("PC/SC: the connection to pcscd could not be told from others");
        }
        let established = WatchedContext {
            watchdog: Arc::clone(self),
            context: Some(context),
            line,
        };
        if over {
            return Err(Error::Cancelled);
        }
        Ok(established)
    }

    /// Whether pcscd did not answer when it was last asked.
    pub(super) fn is_unresponsive(&self) -> bool {
        self.shared.state().hangs
    }

    /// Ends every call that is inside, and every later one as soon as it waits. No connection is made any more.
    pub(super) fn abort_all(&self) {
        let mut state = self.shared.state();
        state.over = true;
        let running: Vec<CallTarget> = state.running.iter().map(|call| call.on.clone()).collect();
        drop(state);
        self.shared.established.notify_all();
        running.iter().for_each(|on| self.shared.end(on));
        self.shared.lines.shut_down();
    }

    /// From now on no call lasts beyond `last`.
    pub(super) fn cap_deadlines(&self, last: Instant) {
        let mut state = self.shared.state();
        state.last = Some(last);
        for call in &mut state.running {
            call.deadline = call.deadline.min(last);
            call.look = call.look.min(last);
        }
        self.shared.changed.notify_one();
    }

    pub(super) fn has_contexts(&self) -> bool {
        !self.shared.lines.is_empty()
    }

    /// Ends the making of a connection for a watch, as soon as it has a socket; whether there is one being made.
    pub(super) fn abort_new_watch(&self) -> bool {
        let is_new_watch = |call: &&RunningCall| {
            matches!(
                call.on,
                CallTarget::New {
                    is_for_a_watch: true,
                    ..
                }
            )
        };
        let state = self.shared.state();
        let running = state.running.iter().find(is_new_watch);
        let on = running.map(|call| call.on.clone());
        drop(state);
        self.shared.established.notify_all();
        on.iter().for_each(|on| self.shared.end(on));
        on.is_some()
    }

    /// A connection is gone: the thread need not look again when there is no call.
    fn wake_if_idle(&self) {
        let state = self.shared.state();
        if state.running.is_empty() && state.looks_at.is_some() {
            self.shared.changed.notify_one();
        }
    }

    fn wait_for_turn(&self, purpose: ContextPurpose<'_>, deadline: Instant) -> Result<(), Error> {
        let mut state = self.shared.state();
        let is_over = |state: &State| state.over || purpose.is_stopped();
        while state.establishing && !is_over(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout);
            }
            let woken = self.shared.established.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if is_over(&state) {
            return Err(Error::Cancelled);
        }
        state.establishing = true;
        Ok(())
    }

    fn during<T>(&self, on: CallTarget, deadline: Instant, call: impl FnOnce() -> T) -> T {
        let number = self.register(on, deadline);
        let inside = RunningCallGuard {
            shared: &self.shared,
            number,
        };
        let result = call();
        drop(inside);
        result
    }

    fn register(&self, on: CallTarget, deadline: Instant) -> u64 {
        let mut state = self.shared.state();
        let deadline = state.last.map_or(deadline, |last| deadline.min(last));
        state.last_number += 1;
        let number = state.last_number;
        let look = deadline.min(Instant::now() + PING_INTERVAL);
        state.running.push(RunningCall {
            number,
            on,
            deadline,
            look,
        });
        if self.may_create_threads && state.looks_at.is_none_or(|at| look < at) {
            state.looks_at = Some(look);
            drop(state);
            self.start_thread();
            self.shared.changed.notify_one();
        }
        number
    }

    fn start_thread(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            *thread = std::thread::Builder::new()
                .name("claviger-limit".to_owned())
                .spawn(move || run(&shared))
                .inspect_err(|error| {
                    tracing::warn!("PC/SC: no thread to end calls that hang: {error}");
                })
                .ok();
        }
    }
}

impl Drop for CallWatchdog {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut();
        let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        threads::join_within(thread, "the thread that ends calls to pcscd", JOIN_TIMEOUT);
    }
}

/// A connection is being made, until dropped.
struct EstablishGuard<'a>(&'a Shared);

impl Drop for EstablishGuard<'_> {
    fn drop(&mut self) {
        self.0.state().establishing = false;
        self.0.established.notify_one();
    }
}

/// A call is running, until dropped.
struct RunningCallGuard<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for RunningCallGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let mine = |call: &RunningCall| call.number == self.number;
        if let Some(place) = state.running.iter().position(mine) {
            state.running.swap_remove(place);
        }
    }
}

fn run(shared: &Shared) {
    let mut state = shared.state();
    while !state.over || !state.running.is_empty() {
        let now = Instant::now();
        if state.running.iter().any(|call| call.look <= now) {
            drop(state);
            end_overdue_calls(shared, now);
            state = shared.state();
            continue;
        }
        state.looks_at = state.running.iter().map(|call| call.look).min();
        state = match state.looks_at {
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let left = at.saturating_duration_since(now);
                let woken = shared.changed.wait_timeout(state, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

/// Ends the calls that have overstayed, and those a pcscd that hangs will never answer; others get more time.
///
/// A late call does not tell of a pcscd that hangs: a card may take that long. So pcscd is asked, unless it is
/// known to hang and there are none but late calls to end.
fn end_overdue_calls(shared: &Shared, now: Instant) {
    let is_late = |call: &RunningCall| call.deadline <= now;
    let is_due = |call: &RunningCall| call.look <= now;
    let state = shared.state();
    let is_known = state.hangs
        && state
            .running
            .iter()
            .all(|call| !is_due(call) || is_late(call));
    drop(state);
    let hangs = is_known || !daemon::is_responsive(&daemon::socket(), PING_TIMEOUT);
    let mut ended = Vec::new();
    let mut state = shared.state();
    state.running.retain_mut(|call| {
        let ends = is_due(call) && (hangs || is_late(call));
        if ends {
            ended.push(call.on.clone());
        } else if is_due(call) {
            call.look = call.deadline.min(now + PING_INTERVAL);
        }
        !ends
    });
    state.hangs |= hangs;
    drop(state);
    for on in &ended {
        tracing::warn!("PC/SC: pcscd has not answered in time; the connection is given up");
        shared.end(on);
    }
}
