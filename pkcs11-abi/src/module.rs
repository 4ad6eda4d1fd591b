//! The life of the module: C_Initialize to C_Finalize, and who is inside.

use std::{
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_driver::{Backend, pcsc::PcscBackend, socket::SocketBackend};
use claviger_token::{AppletKind, PinRule};
use cryptoki_sys::{CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{
    card::{ReaderCard, TokenFacts},
    config::{Config, TransportKind},
    events::Events,
    idle::{Idle, Readers},
    rv::{Failure, Rule},
    sessions::{Session, Sessions},
    slots::{CardCount, KnownReader},
};

/// How long C_Finalize waits for calls that are inside; one stuck in a wedged service keeps its own memory.
const LEAVE: Duration = Duration::from_secs(10);

/// One generation of the module, from C_Initialize to C_Finalize. Calls hold it while they are inside, so a
/// waiter of an old generation can never mistake the next one for its own.
#[derive(Debug)]
pub(crate) struct Module {
    generation: u64,
    pub(crate) events: Arc<Events>,
    pub(crate) sessions: Sessions,
    backends: Vec<Arc<dyn Backend>>,
    readers: Readers,
    idle: Arc<Idle>,
    calls: Arc<Calls>,
    broken: AtomicBool,
}

/// A slot with a card in it.
pub(crate) struct Occupied {
    pub(crate) applet: AppletKind,
    pub(crate) card: CardCount,
    pub(crate) reader: Arc<ReaderCard>,
}

impl Module {
    fn new(config: &Config, may_create_threads: bool) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        let backend = |kind: &TransportKind| -> Arc<dyn Backend> {
            match kind {
                TransportKind::Pcsc => Arc::new(PcscBackend::new()),
                TransportKind::Socket => Arc::new(SocketBackend::new(config.sockets.clone())),
            }
        };
        let backends: Vec<_> = config.transports.iter().map(backend).collect();
        let readers = Readers::default();
        let idle = Arc::new(Idle::new(Arc::clone(&readers), may_create_threads));
        Self {
            generation: GENERATION.fetch_add(1, Ordering::Relaxed) + 1,
            events: Arc::new(Events::new(&backends, may_create_threads, &idle)),
            sessions: Sessions::default(),
            backends,
            idle,
            readers,
            calls: Arc::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// After a panic nothing can be promised any more; only C_Finalize helps.
    pub(crate) fn mark_broken(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The reader and applet of a slot.
    ///
    /// # Errors
    /// SLOT_ID_INVALID.
    pub(crate) fn slot(&self, id: CK_SLOT_ID) -> Result<(AppletKind, KnownReader), Failure> {
        let table = self.events.table();
        let (slot, reader) = table.slot(id).ok_or(Rule::SLOT_ID_INVALID)?;
        Ok((slot.applet, reader.clone()))
    }

    /// The card in a slot.
    ///
    /// # Errors
    /// SLOT_ID_INVALID; TOKEN_NOT_PRESENT for an empty slot, TOKEN_NOT_RECOGNIZED for a mute card.
    pub(crate) fn occupied(&self, id: CK_SLOT_ID) -> Result<Occupied, Failure> {
        let (applet, known) = self.slot(id)?;
        match known.presence {
            claviger_driver::Presence::Card(_) => {}
            claviger_driver::Presence::Empty => return Err(Rule::TOKEN_NOT_PRESENT.into()),
            claviger_driver::Presence::Mute => return Err(Rule::TOKEN_NOT_RECOGNIZED.into()),
        }
        let reader = self.reader(&known)?;
        Ok(Occupied {
            applet,
            card: known.card,
            reader,
        })
    }

    /// The facts of the token in a slot; asks a card that is new.
    ///
    /// # Errors
    /// As [`Module::occupied`], TOKEN_NOT_PRESENT for a card without the slot's applet, or of the transport.
    pub(crate) fn token(&self, id: CK_SLOT_ID) -> Result<TokenFacts, Failure> {
        let occupied = self.occupied(id)?;
        occupied.reader.token(occupied.card, occupied.applet)
    }

    fn reader(&self, known: &KnownReader) -> Result<Arc<ReaderCard>, Failure> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers.get(&known.id) {
            return Ok(Arc::clone(reader));
        }
        let backend = self
            .backends
            .iter()
            .find(|backend| backend.name() == known.id.backend());
        let backend = backend
            .ok_or_else(|| Failure::Environment(format!("no transport for reader {}", known.id)))?;
        let reader = Arc::new(ReaderCard::new(
            known.id.clone(),
            Arc::clone(backend),
            Arc::clone(&self.events),
            Arc::clone(&self.idle),
        ));
        readers.insert(known.id.clone(), Arc::clone(&reader));
        Ok(reader)
    }

    /// A session that is alive.
    ///
    /// # Errors
    /// SESSION_HANDLE_INVALID, also when its card has left; the session is then gone.
    pub(crate) fn session(&self, handle: CK_SESSION_HANDLE) -> Result<Arc<Session>, Failure> {
        let session = self
            .sessions
            .get(handle)
            .ok_or(Rule::SESSION_HANDLE_INVALID)?;
        let (_, reader) = self.slot(session.slot)?;
        if reader.card == session.card {
            return Ok(session);
        }
        self.sessions.remove(handle);
        Err(Rule::SESSION_HANDLE_INVALID.into())
    }

    /// Closes a session: the last one of a token logs its user out.
    ///
    /// # Errors
    /// SESSION_HANDLE_INVALID.
    pub(crate) fn close_session(&self, handle: CK_SESSION_HANDLE) -> Result<(), Failure> {
        let session = self.session(handle)?;
        let Some((_, last)) = self.sessions.remove(handle) else {
            return Err(Rule::SESSION_HANDLE_INVALID.into());
        };
        if last {
            session
                .reader
                .last_session_closed(session.card, session.applet);
        }
        Ok(())
    }

    /// After a logout nothing that needs the user may go on, in any session of the token.
    pub(crate) fn end_private_operations(&self, of: &Session) {
        for handle in self.sessions.on_slot(of.slot) {
            if let Some(session) = self.sessions.get(handle) {
                session
                    .operations()
                    .signature
                    .take_if(|signature| signature.operation.key.pin != PinRule::Never);
            }
        }
    }

    /// Ends this generation: users are logged out, cards let go. What a call is still talking to is left to it.
    fn close(&self) {
        for handle in self.sessions.all() {
            self.sessions.remove(handle);
        }
        let readers =
            std::mem::take(&mut *self.readers.lock().unwrap_or_else(PoisonError::into_inner));
        readers.values().for_each(|reader| reader.close());
    }
}

impl Drop for Module {
    /// Nothing is left to do here, unless a call outlived C_Finalize and held a card.
    fn drop(&mut self) {
        self.close();
    }
}

/// Calls that are inside.
#[derive(Debug, Default)]
struct Calls {
    inside: Mutex<usize>,
    left: Condvar,
}

impl Calls {
    fn inside(&self) -> MutexGuard<'_, usize> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let mut inside = self.inside();
        *inside -= 1;
        if *inside == 0 {
            self.left.notify_all();
        }
    }

    /// Waits until nobody is inside; false when somebody still is after `patience`.
    fn wait_until_empty(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inside = self.inside();
        while *inside > 0 {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            inside = self
                .left
                .wait_timeout(inside, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// A call that is inside the module: keeps its generation alive, and is counted until that is let go.
#[derive(Debug)]
pub(crate) struct Call {
    // Dropped in this order: C_Finalize must not return while a call still holds the module.
    module: Arc<Module>,
    _inside: Inside,
}

/// Counted as inside until dropped.
#[derive(Debug)]
struct Inside(Arc<Calls>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Deref for Call {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.module
    }
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Absent,
    Running(Arc<Module>),
    Ending,
}

/// Where the module lives in this process.
#[derive(Debug, Default)]
pub(crate) struct Home {
    phase: Mutex<Phase>,
    ended: Condvar,
}

impl Home {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call.
    ///
    /// # Errors
    /// CRYPTOKI_NOT_INITIALIZED, also while C_Finalize is at work.
    pub(crate) fn enter(&self) -> Result<Call, Failure> {
        match &*self.phase() {
            Phase::Running(module) => {
                // Counted under the lock: C_Finalize sees every call that was not refused.
                *module.calls.inside() += 1;
                Ok(Call {
                    module: Arc::clone(module),
                    _inside: Inside(Arc::clone(&module.calls)),
                })
            }
            Phase::Absent | Phase::Ending => Err(Rule::NOT_INITIALIZED.into()),
        }
    }

    /// C_Initialize. A C_Finalize still at work in another thread is waited for.
    ///
    /// # Errors
    /// CRYPTOKI_ALREADY_INITIALIZED.
    pub(crate) fn initialize(&self, may_create_threads: bool) -> Result<(), Failure> {
        let mut phase = self.phase();
        while matches!(*phase, Phase::Ending) {
            phase = self
                .ended
                .wait(phase)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if matches!(*phase, Phase::Running(_)) {
            return Err(Rule::ALREADY_INITIALIZED.into());
        }
        let config = Config::load();
        crate::log::start(config.log, config.log_file.as_deref());
        for complaint in &config.complaints {
            tracing::warn!("{complaint}");
        }
        let module = Module::new(&config, may_create_threads);
        tracing::debug!(
            "generation {} begins, transports {:?}, threads {}",
            module.generation,
            config.transports,
            if may_create_threads {
                "allowed"
            } else {
                "not allowed"
            }
        );
        *phase = Phase::Running(Arc::new(module));
        Ok(())
    }

    /// C_Finalize, in its written order: refuse new calls, stop and join the watchers, wake the waiters, wait
    /// until everybody has left, log out, let the cards go.
    ///
    /// # Errors
    /// CRYPTOKI_NOT_INITIALIZED.
    pub(crate) fn finalize(&self) -> Result<(), Failure> {
        let module = {
            let mut phase = self.phase();
            match std::mem::replace(&mut *phase, Phase::Ending) {
                Phase::Running(module) => module,
                other => {
                    *phase = other;
                    return Err(Rule::NOT_INITIALIZED.into());
                }
            }
        };
        let end = Ending(self);
        module.events.stop();
        module.idle.stop();
        if !module.calls.wait_until_empty(LEAVE) {
            tracing::error!(
                "C_Finalize: a call has not come back after {LEAVE:?}; it is left behind with its card"
            );
        }
        module.close();
        tracing::debug!("generation {} has ended", module.generation);
        drop(module);
        drop(end);
        Ok(())
    }
}

/// Ends the phase of ending on every path.
struct Ending<'a>(&'a Home);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        *self.0.phase() = Phase::Absent;
        self.0.ended.notify_all();
    }
}
