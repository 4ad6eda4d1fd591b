//! One generation of the module: its backends, readers and sessions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use claviger_driver::{
    Backend,
    pcsc::PcscBackend,
    socket::SocketBackend,
    usb::{
        self, backend::UsbBackend, discovery::precedence::PcscdPrecedence, host::open::UsbLibrary,
    },
};
use claviger_token::AppletKind;
use cryptoki_sys::{CK_SESSION_HANDLE, CK_SLOT_ID};

use crate::{
    card::{CachedToken, ReaderCard, ReaderCards, TokenRef},
    card_state::ReaderAccess,
    config::{BackendKind, Config},
    events::SlotEvents,
    fork::{self, PerProcess},
    idle::IdleReleaser,
    known_reader::KnownReader,
    lifecycle::{Generation, Lifecycle},
    rv::{Failure, ReturnCode},
    sessions::{Session, Sessions},
    slots::READER_RETURN_TIMEOUT,
    visibility::Visibility,
};

/// One generation of the module, from C_Initialize to C_Finalize. An active call keeps its generation, so a waiter never sees
/// the next.
#[derive(Debug)]
pub(crate) struct Module {
    generation: u64,
    pub(crate) events: Arc<SlotEvents>,
    pub(crate) sessions: Sessions,
    backends: Vec<Arc<dyn Backend>>,
    readers: Arc<ReaderCards>,
    idle: Arc<IdleReleaser>,
    visibility: Arc<Visibility>,
    broken: AtomicBool,
}

impl Module {
    fn new(config: &Config, may_create_threads: bool) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(0);
        let precedence = precedence(config);
        let backend = |kind: &BackendKind| -> Arc<dyn Backend> {
            match kind {
                BackendKind::Pcsc => Arc::new(PcscBackend::new(may_create_threads)),
                BackendKind::Socket => Arc::new(SocketBackend::new(config.sockets.clone())),
                BackendKind::Usb => Arc::new(usb(config, may_create_threads, precedence.clone())),
            }
        };
        let backends: Vec<_> = config.transports.iter().map(backend).collect();
        let readers = Arc::<ReaderCards>::default();
        let idle = IdleReleaser::new(readers.clone(), config.release, may_create_threads);
        let idle = Arc::new(idle);
        let visibility = Arc::new(config.visibility.clone());
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(
            "generation {generation} begins, backends {:?}, threads {}",
            config.transports,
            if may_create_threads {
                "allowed"
            } else {
                "not allowed"
            }
        );
        Self {
            generation,
            events: Arc::new(SlotEvents::new(
                &backends,
                may_create_threads,
                &idle,
                Arc::clone(&visibility),
                precedence,
            )),
            sessions: Sessions::default(),
            backends,
            idle,
            visibility,
            readers,
            broken: AtomicBool::new(false),
        }
    }

    /// Marks the generation as broken after a panic. All later calls fail until C_Finalize.
    pub(crate) fn mark_broken(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// Returns the applet and the reader of a slot.
    ///
    /// # Errors
    /// SLOT_ID_INVALID.
    pub(crate) fn slot(&self, id: CK_SLOT_ID) -> Result<(AppletKind, KnownReader), Failure> {
        let mut table = self.events.table();
        let known = table.slot(id, Instant::now());
        let (slot, reader) = known.ok_or(ReturnCode::SLOT_ID_INVALID)?;
        Ok((slot.applet, reader.clone()))
    }

    /// Returns a reference to the token in a slot, without using the card.
    ///
    /// # Errors
    /// SLOT_ID_INVALID. TOKEN_NOT_PRESENT for an empty reader. TOKEN_NOT_RECOGNIZED for a mute card.
    pub(crate) fn token_ref(&self, id: CK_SLOT_ID) -> Result<TokenRef, Failure> {
        let (applet, known) = self.slot(id)?;
        match known.presence {
            claviger_driver::Presence::Card(_) => {}
            claviger_driver::Presence::Empty => return Err(ReturnCode::TOKEN_NOT_PRESENT.into()),
            claviger_driver::Presence::Mute => return Err(ReturnCode::TOKEN_NOT_RECOGNIZED.into()),
        }
        Ok(TokenRef {
            reader: self.reader(&known)?,
            insertion: known.card,
            applet,
        })
    }

    /// Returns the cached properties of the token in a slot. Reads the applets of a new card.
    ///
    /// # Errors
    /// As [`Module::token_ref`] and [`TokenRef::cached`].
    pub(crate) fn token(&self, id: CK_SLOT_ID) -> Result<CachedToken, Failure> {
        self.token_ref(id)?.cached()
    }

    fn reader(&self, known: &KnownReader) -> Result<Arc<ReaderCard>, Failure> {
        self.readers.get_or_insert(known.key, || {
            let mut backends = self.backends.iter();
            let backend = backends
                .find(|backend| backend.name() == known.id.backend())
                .ok_or_else(|| {
                    Failure::Environment(format!("no backend for reader {}", known.id))
                })?;
            let access = ReaderAccess {
                backend: Arc::clone(backend),
                events: Arc::clone(&self.events),
                visibility: Arc::clone(&self.visibility),
            };
            Ok(ReaderCard::new(known.key, access, Arc::clone(&self.idle)))
        })
    }

    /// Returns the session behind a handle.
    ///
    /// # Errors
    /// SESSION_HANDLE_INVALID, also if the card of the session was removed. That session is closed here.
    pub(crate) fn session(&self, handle: CK_SESSION_HANDLE) -> Result<Arc<Session>, Failure> {
        let session = self
            .sessions
            .get(handle)
            .ok_or(ReturnCode::SESSION_HANDLE_INVALID)?;
        let (_, reader) = self.slot(session.slot)?;
        if reader.card == session.token.insertion {
            return Ok(session);
        }
        self.sessions.remove(handle);
        Err(ReturnCode::SESSION_HANDLE_INVALID.into())
    }

    /// Closes a session. Closing the last session of a token logs out.
    ///
    /// # Errors
    /// SESSION_HANDLE_INVALID.
    pub(crate) fn close_session(&self, handle: CK_SESSION_HANDLE) -> Result<(), Failure> {
        let session = self.session(handle)?;
        let Some((_, last)) = self.sessions.remove(handle) else {
            return Err(ReturnCode::SESSION_HANDLE_INVALID.into());
        };
        // If the card was removed, its handles are gone too, and the error does not matter.
        drop(
            session
                .token
                .with_handles(|handles| handles.session_closed(handle)),
        );
        if last {
            session.token.last_session_closed();
        }
        Ok(())
    }

    /// Ends the operations with private keys in all sessions of the slot. A logout calls this.
    pub(crate) fn end_private_operations(&self, of: &Session) {
        for handle in self.sessions.on_slot(of.slot) {
            if let Some(session) = self.sessions.get(handle) {
                session.operations().end_private();
            }
        }
    }

    /// Closes all sessions, logs out of all tokens, and disconnects all cards.
    fn release_all(&self) {
        for handle in self.sessions.all() {
            self.sessions.remove(handle);
        }
        let readers = self.readers.take_all();
        if !readers.is_empty() {
            self.backends
                .iter()
                .for_each(|backend| backend.begin_shutdown());
        }
        readers.iter().for_each(|reader| reader.close());
    }
}

impl Generation for Module {
    fn stop(&self) {
        self.events.stop();
        self.idle.stop();
    }

    fn abort_calls(&self) {
        self.backends
            .iter()
            .for_each(|backend| backend.abort_calls());
    }

    fn release(&self) {
        self.release_all();
        tracing::debug!("generation {} has ended", self.generation);
    }
}

impl Drop for Module {
    /// Releases a card that a call still held when C_Finalize returned. Otherwise C_Finalize has released everything.
    fn drop(&mut self) {
        self.release_all();
    }
}

/// Returns the precedence of pcscd over the USB if both backends are configured.
fn precedence(config: &Config) -> Option<Arc<PcscdPrecedence>> {
    let both = [BackendKind::Pcsc, BackendKind::Usb];
    let both = both.iter().all(|kind| config.transports.contains(kind));
    both.then(|| PcscdPrecedence::new(READER_RETURN_TIMEOUT))
}

/// Returns the `usb` backend. nusb has a thread of its own: it is not allowed without threads, and does not exist in a forked
/// child. Both cases use libusb.
fn usb(
    config: &Config,
    may_create_threads: bool,
    precedence: Option<Arc<PcscdPrecedence>>,
) -> UsbBackend {
    let library = if may_create_threads && !fork::is_child() {
        config.usb_backend
    } else {
        UsbLibrary::Rusb
    };
    let backend = UsbBackend::new(&usb::backend::UsbOptions {
        library,
        has_watch_thread: may_create_threads,
        lock_folders: config.lock_folders.clone(),
    });
    match precedence {
        Some(precedence) => backend.with_precedence(precedence),
        None => backend,
    }
}

/// Returns the lifecycle of the module in this process. A forked child begins without a generation.
pub(crate) fn lifecycle() -> &'static Lifecycle<Module> {
    static LIFECYCLE: PerProcess<Lifecycle<Module>> = PerProcess::new();
    LIFECYCLE.get()
}

/// C_Initialize. Waits for a C_Finalize that is running in another thread.
///
/// # Errors
/// CRYPTOKI_ALREADY_INITIALIZED.
pub(crate) fn initialize(may_create_threads: bool) -> Result<(), Failure> {
    let begun = lifecycle().initialize(|| {
        let config = Config::load();
        crate::log::start(config.log, config.log_file.as_deref());
        for problem in &config.problems {
            tracing::warn!("{problem}");
        }
        Module::new(&config, may_create_threads)
    });
    if begun {
        Ok(())
    } else {
        Err(ReturnCode::ALREADY_INITIALIZED.into())
    }
}
