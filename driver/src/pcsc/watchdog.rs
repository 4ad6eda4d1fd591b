//! Keeps every connection to pcscd and every call on one in sight, so that none lasts longer than it may.
//!
//! libpcsclite has no timeouts. Where threads are allowed, one that sleeps until the first deadline ends the
//! calls that overstay theirs; without it they last until pcscd answers, dies, or [`Keeper::cut`] is called.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ::pcsc::{Context, Error, Scope};

use super::{daemon, library};
use crate::{
    fork_guard,
    socket_shutdown::{Line, Lines, Sockets},
    threads,
    wait::Stop,
};

/// How every path ends at which pcscd listens.
const SERVER: &str = "/pcscd.comm";
/// How long the thread may take to end.
const PATIENCE: Duration = Duration::from_secs(1);
/// A call may last as long as a person takes to touch a key; every so often it is looked whether pcscd still answers.
const LOOK: Duration = Duration::from_secs(10);
/// How long pcscd may take to answer that.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// How long pcscd may take to let go of a context.
const RELEASE: Duration = Duration::from_secs(2);

/// A context and its connection to pcscd, where that could be told from others.
pub(super) struct Established {
    keeper: Arc<Keeper>,
    /// Empty only while it is being dropped.
    context: Option<Context>,
    line: Option<Arc<Line>>,
}

impl Established {
    pub(super) fn context(&self) -> Result<&Context, Error> {
        self.context.as_ref().ok_or(Error::InvalidHandle)
    }

    pub(super) fn line(&self) -> Option<&Arc<Line>> {
        self.line.as_ref()
    }

    /// Runs a call on the connection, which is cut when the call is not through by `until`.
    pub(super) fn bound<T>(&self, until: Instant, call: impl FnOnce() -> T) -> T {
        match &self.line {
            Some(line) => self.keeper.during(On::Line(Arc::clone(line)), until, call),
            None => call(),
        }
    }

    /// The same for a call that pcscd answers at once; no fork comes in between.
    pub(super) fn bound_at_once<T>(&self, until: Instant, call: impl FnOnce() -> T) -> T {
        self.bound(until, || {
            let _pass = fork_guard::enter();
            call()
        })
    }

    /// Whether pcscd, or the connection to it, is gone.
    pub(super) fn is_over(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_over())
    }

    /// Whether the connection was given up because pcscd did not answer.
    pub(super) fn is_cut(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_cut())
    }
}

impl Drop for Established {
    fn drop(&mut self) {
        if self.keeper.hangs()
            && let Some(line) = &self.line
        {
            line.cut();
        }
        let context = self.context.take();
        self.bound_at_once(Instant::now() + RELEASE, || drop(context));
        self.keeper.rest();
    }
}

/// What a running call waits on.
#[derive(Clone, Debug)]
enum On {
    Line(Arc<Line>),
    /// A connection being made: it is not among these.
    New {
        before: Arc<Sockets>,
        is_for_a_watch: bool,
    },
}

/// What a context is for.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// A watch until it is stopped.
    Watch(&'a Stop),
    Card,
}

impl Purpose<'_> {
    fn is_over(self) -> bool {
        matches!(self, Self::Watch(stop) if stop.is_set())
    }
}

#[derive(Debug)]
struct Running {
    number: u64,
    on: On,
    until: Instant,
    /// When it is looked whether pcscd still answers.
    look: Instant,
}

#[derive(Debug, Default)]
struct State {
    running: Vec<Running>,
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
    lines: Lines,
    state: Mutex<State>,
    changed: Condvar,
    /// A connection was made, or was not.
    established: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, on: &On) {
        match on {
            On::Line(line) => line.cut(),
            On::New { before, .. } => {
                if let Some(line) = before.newcomer(&self.lines) {
                    line.cut();
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    may_create_threads: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Keeper {
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
        purpose: Purpose<'_>,
        until: Instant,
    ) -> Result<Established, Error> {
        self.wait_for_turn(purpose, until)?;
        let turn = Turn(&self.shared);
        let before = Arc::new(Sockets::to(SERVER));
        let on = On::New {
            before: Arc::clone(&before),
            is_for_a_watch: matches!(purpose, Purpose::Watch(_)),
        };
        let context = self.during(on, until, || {
            // Whoever stops a watch later finds it in here.
            if purpose.is_over() {
                return Err(Error::Cancelled);
            }
            library::load()?;
            let _pass = fork_guard::enter();
            Context::establish(Scope::User)
        })?;
        let line = before.newcomer(&self.shared.lines);
        let mut state = self.shared.state();
        state.hangs = false;
        let over = state.over;
        drop(state);
        drop(turn);
        if line.is_none() {
            tracing::debug!("PC/SC: the connection to pcscd could not be told from others");
        }
        let established = Established {
            keeper: Arc::clone(self),
            context: Some(context),
            line,
        };
        if over {
            return Err(Error::Cancelled);
        }
        Ok(established)
    }

    /// Whether pcscd did not answer when it was last asked.
    pub(super) fn hangs(&self) -> bool {
        self.shared.state().hangs
    }

    /// Ends every call that is inside, and every later one as soon as it waits. No connection is made any more.
    pub(super) fn cut(&self) {
        let mut state = self.shared.state();
        state.over = true;
        let running: Vec<On> = state.running.iter().map(|call| call.on.clone()).collect();
        drop(state);
        self.shared.established.notify_all();
        running.iter().for_each(|on| self.shared.end(on));
        self.shared.lines.cut();
    }

    /// From now on no call lasts beyond `last`.
    pub(super) fn limit_all(&self, last: Instant) {
        let mut state = self.shared.state();
        state.last = Some(last);
        for call in &mut state.running {
            call.until = call.until.min(last);
            call.look = call.look.min(last);
        }
        self.shared.changed.notify_one();
    }

    pub(super) fn has_lines(&self) -> bool {
        !self.shared.lines.is_empty()
    }

    /// Ends the making of a connection for a watch, as soon as it has a socket; whether there is one being made.
    pub(super) fn cut_new_watch(&self) -> bool {
        let is_new_watch = |call: &&Running| {
            matches!(
                call.on,
                On::New {
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
    fn rest(&self) {
        let state = self.shared.state();
        if state.running.is_empty() && state.looks_at.is_some() {
            self.shared.changed.notify_one();
        }
    }

    fn wait_for_turn(&self, purpose: Purpose<'_>, until: Instant) -> Result<(), Error> {
        let mut state = self.shared.state();
        let is_over = |state: &State| state.over || purpose.is_over();
        while state.establishing && !is_over(&state) {
            let left = until.saturating_duration_since(Instant::now());
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

    fn during<T>(&self, on: On, until: Instant, call: impl FnOnce() -> T) -> T {
        let number = self.enter(on, until);
        let inside = Inside {
            shared: &self.shared,
            number,
        };
        let result = call();
        drop(inside);
        result
    }

    fn enter(&self, on: On, until: Instant) -> u64 {
        let mut state = self.shared.state();
        let until = state.last.map_or(until, |last| until.min(last));
        state.last_number += 1;
        let number = state.last_number;
        let look = until.min(Instant::now() + LOOK);
        state.running.push(Running {
            number,
            on,
            until,
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
                .spawn(move || keep(&shared))
                .inspect_err(|error| {
                    tracing::warn!("PC/SC: no thread to end calls that hang: {error}");
                })
                .ok();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut();
        let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        threads::join(thread, "the thread that ends calls to pcscd", PATIENCE);
    }
}

/// A connection is being made, until dropped.
struct Turn<'a>(&'a Shared);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().establishing = false;
        self.0.established.notify_one();
    }
}

/// A call is running, until dropped.
struct Inside<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let mine = |call: &Running| call.number == self.number;
        if let Some(place) = state.running.iter().position(mine) {
            state.running.swap_remove(place);
        }
    }
}

fn keep(shared: &Shared) {
    let mut state = shared.state();
    while !state.over || !state.running.is_empty() {
        let now = Instant::now();
        if state.running.iter().any(|call| call.look <= now) {
            drop(state);
            look(shared, now);
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
fn look(shared: &Shared, now: Instant) {
    let is_late = |call: &Running| call.until <= now;
    let is_due = |call: &Running| call.look <= now;
    let state = shared.state();
    let is_known = state.hangs
        && state
            .running
            .iter()
            .all(|call| !is_due(call) || is_late(call));
    drop(state);
    let hangs = is_known || !daemon::answers(&daemon::socket(), LOOK_PATIENCE);
    let mut ended = Vec::new();
    let mut state = shared.state();
    state.running.retain_mut(|call| {
        let ends = is_due(call) && (hangs || is_late(call));
        if ends {
            ended.push(call.on.clone());
        } else if is_due(call) {
            call.look = call.until.min(now + LOOK);
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
