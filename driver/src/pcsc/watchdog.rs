//! A watchdog over PC/SC calls. It aborts a call past its deadline, and every call once pcscd stops responding.
//!
//! libpcsclite has no timeouts. Where threads are allowed, a thread sleeps until the first deadline and aborts the
//! calls that are past theirs. Without threads, a call lasts until pcscd responds, until pcscd ends, or until
//! [`CallWatchdog::abort_all`].

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

/// The end of every path on which pcscd listens.
const SOCKET_SUFFIX: &str = "/pcscd.comm";
/// How long the thread may take to end.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to check during a call whether pcscd is responsive. A call may last long, because a person may have to
/// touch a key.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long pcscd may take to respond to that check.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long pcscd may take to release a context.
const RELEASE: Duration = Duration::from_secs(2);

/// A context and the shutdown handle of its connection to pcscd. There is no handle if the socket could not be
/// identified.
pub(super) struct WatchedContext {
    watchdog: Arc<CallWatchdog>,
    /// `None` only during the drop.
    context: Option<Context>,
    shutdown_handle: Option<Arc<ShutdownHandle>>,
}

impl WatchedContext {
    pub(super) fn context(&self) -> Result<&Context, Error> {
        self.context.as_ref().ok_or(Error::InvalidHandle)
    }

    pub(super) fn shutdown_handle(&self) -> Option<&Arc<ShutdownHandle>> {
        self.shutdown_handle.as_ref()
    }

    /// Runs a call. If the call has not returned by `deadline`, the watchdog shuts the connection down.
    pub(super) fn run_until<T>(&self, deadline: Instant, call: impl FnOnce() -> T) -> T {
        match &self.shutdown_handle {
            Some(shutdown_handle) => self.watchdog.run_registered(
                CallTarget::Connection(Arc::clone(shutdown_handle)),
                deadline,
                call,
            ),
            None => call(),
        }
    }

    /// Does the same for a short call, during which no fork can happen.
    pub(super) fn run_short<T>(&self, deadline: Instant, call: impl FnOnce() -> T) -> T {
        self.run_until(deadline, || {
            let _pass = fork_guard::enter();
            call()
        })
    }

    /// Returns whether the connection to pcscd is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.shutdown_handle
            .as_ref()
            .is_some_and(|shutdown_handle| shutdown_handle.is_closed())
    }

    /// Returns whether this process shut the connection down, because of a late call or an unresponsive pcscd.
    pub(super) fn was_aborted(&self) -> bool {
        self.shutdown_handle
            .as_ref()
            .is_some_and(|shutdown_handle| shutdown_handle.was_shut_down())
    }
}

impl Drop for WatchedContext {
    fn drop(&mut self) {
        if self.watchdog.is_unresponsive()
            && let Some(shutdown_handle) = &self.shutdown_handle
        {
            shutdown_handle.shut_down();
        }
        let context = self.context.take();
        self.run_short(Instant::now() + RELEASE, || drop(context));
        self.watchdog.wake_if_idle();
    }
}

/// The connection on which a running call waits.
#[derive(Clone, Debug)]
enum CallTarget {
    Connection(Arc<ShutdownHandle>),
    /// A connection that is being made. Its socket is not among `before`.
    New {
        before: Arc<KnownSockets>,
        is_for_a_watch: bool,
    },
}

/// The purpose of a context.
#[derive(Clone, Copy)]
pub(super) enum ContextPurpose<'a> {
    /// For a watch, until the watch is stopped.
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
    /// When to check whether pcscd is responsive.
    check_at: Instant,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<RunningCall>,
    last_number: u64,
    /// When the thread checks next. `None` while it waits without a timeout.
    next_check: Option<Instant>,
    establishing: bool,
    /// pcscd did not respond to the last check, and no context was made since.
    unresponsive: bool,
    aborted: bool,
    /// The latest deadline of all calls.
    latest: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    handles: ShutdownHandles,
    state: Mutex<State>,
    changed: Condvar,
    /// An attempt to make a connection has ended.
    established: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, on: &CallTarget) {
        match on {
            CallTarget::Connection(shutdown_handle) => shutdown_handle.shut_down(),
            CallTarget::New { before, .. } => {
                if let Some(shutdown_handle) = before.find_new(&self.handles) {
                    shutdown_handle.shut_down();
                }
            }
        }
    }
}

/// Watches the calls of all contexts. The module's documentation describes how.
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

    /// Makes a context. Contexts are made one at a time, so that the only new socket belongs to the new context.
    pub(super) fn establish(
        self: &Arc<Self>,
        purpose: ContextPurpose<'_>,
        deadline: Instant,
    ) -> Result<WatchedContext, Error> {
        self.wait_to_establish(purpose, deadline)?;
        let guard = EstablishGuard(&self.shared);
        let before = Arc::new(KnownSockets::to(SOCKET_SUFFIX));
        let on = CallTarget::New {
            before: Arc::clone(&before),
            is_for_a_watch: matches!(purpose, ContextPurpose::Watch(_)),
        };
        let context = self.run_registered(on, deadline, || {
            // A later stop of the watch finds this call among the running calls.
            if purpose.is_stopped() {
                return Err(Error::Cancelled);
            }
            library::load()?;
            let _pass = fork_guard::enter();
            Context::establish(Scope::User)
        })?;
        let shutdown_handle = before.find_new(&self.shared.handles);
        let mut state = self.shared.state();
        state.unresponsive = false;
        let aborted = state.aborted;
        drop(state);
        drop(guard);
        if shutdown_handle.is_none() {
            tracing::debug!(
                "PC/SC: the socket of the new context is unknown; SCardCancel is used instead of its shutdown"
            );
        }
        let established = WatchedContext {
            watchdog: Arc::clone(self),
            context: Some(context),
            shutdown_handle,
        };
        if aborted {
            return Err(Error::Cancelled);
        }
        Ok(established)
    }

    /// Returns whether pcscd did not respond to the last check.
    pub(super) fn is_unresponsive(&self) -> bool {
        self.shared.state().unresponsive
    }

    /// Aborts every running call, and every later call as soon as it waits. No context can be made afterwards.
    pub(super) fn abort_all(&self) {
        let mut state = self.shared.state();
        state.aborted = true;
        let running: Vec<CallTarget> = state.running.iter().map(|call| call.on.clone()).collect();
        drop(state);
        self.shared.established.notify_all();
        running.iter().for_each(|on| self.shared.end(on));
        self.shared.handles.shut_down();
    }

    /// Limits all running and later calls to `latest`.
    pub(super) fn cap_deadlines(&self, latest: Instant) {
        let mut state = self.shared.state();
        state.latest = Some(latest);
        for call in &mut state.running {
            call.deadline = call.deadline.min(latest);
            call.check_at = call.check_at.min(latest);
        }
        self.shared.changed.notify_one();
    }

    pub(super) fn has_contexts(&self) -> bool {
        !self.shared.handles.is_empty()
    }

    /// Aborts a context that is being made for a watch, as soon as it has a socket. Returns whether one is being
    /// made.
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

    /// Wakes the thread if no call is running, so that it cancels its next check.
    fn wake_if_idle(&self) {
        let state = self.shared.state();
        if state.running.is_empty() && state.next_check.is_some() {
            self.shared.changed.notify_one();
        }
    }

    fn wait_to_establish(
        &self,
        purpose: ContextPurpose<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut state = self.shared.state();
        let is_over = |state: &State| state.aborted || purpose.is_stopped();
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

    fn run_registered<T>(&self, on: CallTarget, deadline: Instant, call: impl FnOnce() -> T) -> T {
        let number = self.register(on, deadline);
        let guard = RunningCallGuard {
            shared: &self.shared,
            number,
        };
        let result = call();
        drop(guard);
        result
    }

    fn register(&self, on: CallTarget, deadline: Instant) -> u64 {
        let mut state = self.shared.state();
        let deadline = state.latest.map_or(deadline, |latest| deadline.min(latest));
        state.last_number += 1;
        let number = state.last_number;
        let check_at = deadline.min(Instant::now() + PING_INTERVAL);
        state.running.push(RunningCall {
            number,
            on,
            deadline,
            check_at,
        });
        if self.may_create_threads && state.next_check.is_none_or(|at| check_at < at) {
            state.next_check = Some(check_at);
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
                    tracing::warn!(
                        "PC/SC: no watchdog thread ({error}); a call that hangs is not aborted"
                    );
                })
                .ok();
        }
    }
}

impl Drop for CallWatchdog {
    fn drop(&mut self) {
        self.shared.state().aborted = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut();
        let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        threads::join_within(thread, "the watchdog thread of pcscd", JOIN_TIMEOUT);
    }
}

/// Marks that a context is being made. Dropping it lets the next one begin.
struct EstablishGuard<'a>(&'a Shared);

impl Drop for EstablishGuard<'_> {
    fn drop(&mut self) {
        self.0.state().establishing = false;
        self.0.established.notify_one();
    }
}

/// Marks a call as running until dropped.
struct RunningCallGuard<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for RunningCallGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let is_this_call = |call: &RunningCall| call.number == self.number;
        if let Some(index) = state.running.iter().position(is_this_call) {
            state.running.swap_remove(index);
        }
    }
}

fn run(shared: &Shared) {
    let mut state = shared.state();
    while !state.aborted || !state.running.is_empty() {
        let now = Instant::now();
        if state.running.iter().any(|call| call.check_at <= now) {
            drop(state);
            end_overdue_calls(shared, now);
            state = shared.state();
            continue;
        }
        state.next_check = state.running.iter().map(|call| call.check_at).min();
        state = match state.next_check {
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

/// Aborts the calls past their deadline. If pcscd is unresponsive, aborts all calls that are due for a check. Other
/// calls get a new check time.
///
/// A late call does not mean that pcscd hangs, because a card may take that long. So the thread checks pcscd, unless
/// pcscd is known to be unresponsive and every due call is late.
fn end_overdue_calls(shared: &Shared, now: Instant) {
    let is_late = |call: &RunningCall| call.deadline <= now;
    let is_due = |call: &RunningCall| call.check_at <= now;
    let state = shared.state();
    let is_known = state.unresponsive
        && state
            .running
            .iter()
            .all(|call| !is_due(call) || is_late(call));
    drop(state);
    let unresponsive = is_known || !daemon::is_responsive(&daemon::socket(), PING_TIMEOUT);
    let mut ended = Vec::new();
    let mut state = shared.state();
    state.running.retain_mut(|call| {
        let ends = is_due(call) && (unresponsive || is_late(call));
        if ends {
            ended.push(call.on.clone());
        } else if is_due(call) {
            call.check_at = call.deadline.min(now + PING_INTERVAL);
        }
        !ends
    });
    state.unresponsive |= unresponsive;
    drop(state);
    for on in &ended {
        tracing::warn!("PC/SC: pcscd has not responded in time; the connection is shut down");
        shared.end(on);
    }
}
