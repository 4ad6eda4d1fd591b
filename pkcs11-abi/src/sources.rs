//! The backends' watches, and the way from their pictures to the slot table.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use claviger_apdu::Call;
use claviger_driver::{
    Backend, Pollable, Readers, Stopped, Watch, pollable,
    usb::discovery::precedence::PcscdPrecedence,
};

use crate::{
    event_queue::Board,
    idle::Idle,
    slots::SlotTable,
    trouble::{Role, Troubles},
};

/// How long a first look at the readers may take: pcscd waits for every reader to power its card.
pub(crate) const LOOK: Duration = Duration::from_secs(5);
/// How long readers on the USB may take to leave the table when pcscd has come and is to show them.
const LEAVE: Duration = Duration::from_secs(1);

/// What watchers, waiters and all other calls share.
pub(crate) struct Shared {
    pub(crate) board: Board<SlotTable>,
    idle: Weak<Idle>,
    /// Backends nobody has looked at yet.
    unseen: AtomicUsize,
    /// Somebody went on without the first look at all backends: what it shows has happened since.
    is_late: AtomicBool,
    troubles: Mutex<Troubles>,
    /// Between pcscd and the readers on the USB, where both are asked.
    gate: Option<Arc<PcscdPrecedence>>,
}

impl Shared {
    /// `sources` backends that nobody has looked at.
    pub(crate) fn new(
        sources: usize,
        idle: &Arc<Idle>,
        gate: Option<Arc<PcscdPrecedence>>,
    ) -> Self {
        Self {
            board: Board::default(),
            idle: Arc::downgrade(idle),
            unseen: AtomicUsize::new(sources),
            is_late: AtomicBool::new(false),
            troubles: Mutex::default(),
            gate,
        }
    }

    /// Waits until every backend was looked at once, or until nobody can be expected to wait longer.
    pub(crate) fn wait_for_first_look(&self) {
        let seen = |_: &SlotTable| self.unseen.load(Ordering::SeqCst) == 0;
        if self.unseen.load(Ordering::SeqCst) > 0
            && !self.board.wait_until(Instant::now() + LOOK, seen)
            && !self.board.is_stopped()
        {
            self.is_late.store(true, Ordering::SeqCst);
            tracing::warn!("no picture of the readers after {LOOK:?}; going on without");
        }
    }

    fn apply(&self, source: &Source, picture: &Readers) {
        let first = !source.looked;
        let applied = self.board.update(|table| {
            if first {
                // Under the board's lock, so that who waits for the first look cannot miss it.
                self.unseen.fetch_sub(1, Ordering::SeqCst);
            }
            if source.role == Role::Usb
                && self
                    .gate
                    .as_ref()
                    .is_some_and(|gate| gate.snapshot_applied())
            {
                table.give_up_lost_services();
            }
            let silent = first && !self.is_late.load(Ordering::SeqCst);
            table.apply(source.backend, picture, silent, Instant::now())
        });
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        if applied.other_cards {
            idle.look_at(Instant::now());
        }
        if let Some(at) = applied.look_again {
            idle.look_at(at);
        }
    }

    /// Says what is wrong with a backend.
    fn tell(&self, source: &Source, picture: &Readers) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let line = troubles.hear(source.backend, source.role, picture);
        // A watch that was ended finds its service gone.
        if let Some(line) = line.filter(|_| !self.board.is_stopped()) {
            tracing::warn!("{line}");
        }
    }

    /// Waits until the readers on the USB that were ours are not shown any more, now that pcscd has them.
    fn wait_for_the_usb_to_leave(&self) {
        let Some(gate) = &self.gate else { return };
        let until = Instant::now() + LEAVE;
        if !self.board.wait_until(until, |_| gate.is_applied()) {
            tracing::debug!("readers on the USB were not let go within {LEAVE:?}");
        }
    }
}

/// One backend's watch, until a thread takes it.
pub(crate) struct Source {
    pub(crate) backend: usize,
    role: Role,
    pub(crate) watch: Box<dyn Watch>,
    looked: bool,
    /// The last picture had nothing in it.
    is_empty: bool,
}

impl Source {
    /// The watches of `backends`, each of which depends on none behind it.
    pub(crate) fn of(
        backends: &[Arc<dyn Backend>],
        gate: Option<&Arc<PcscdPrecedence>>,
    ) -> Vec<Self> {
        let role = |name| match (gate, name) {
            (Some(_), "pcsc") => Role::Pcscd,
            (Some(_), "usb") => Role::Usb,
            _ => Role::Own,
        };
        let source = |(backend, of): (usize, &Arc<dyn Backend>)| Self {
            backend,
            role: role(of.name()),
            watch: of.watch(),
            looked: false,
            is_empty: true,
        };
        let mut sources: Vec<Self> = backends.iter().enumerate().map(source).collect();
        let place = |role| sources.iter().position(|source| source.role == role);
        if let (Some(usb), Some(pcscd)) = (place(Role::Usb), place(Role::Pcscd))
            && usb < pcscd
        {
            sources.swap(usb, pcscd);
        }
        sources
    }

    /// Whether nothing can be seen here before pcscd goes, but for a device that pcscd leaves to us.
    fn is_behind_pcscd(&self, shared: &Shared) -> bool {
        let is_shut = || {
            shared
                .gate
                .as_ref()
                .is_some_and(|gate| gate.pcscd_has_precedence())
        };
        self.role == Role::Usb && self.is_empty && is_shut()
    }

    /// Moves the gate; whether readers on the USB have to leave first.
    fn move_gate(&self, picture: &Readers, shared: &Shared) -> bool {
        let gate = shared.gate.as_ref();
        self.role == Role::Pcscd && gate.is_some_and(|gate| gate.take_pcscd_snapshot(picture))
    }

    fn take_in(&mut self, picture: &Readers, shared: &Shared) {
        shared.tell(self, picture);
        shared.apply(self, picture);
        self.looked = true;
        self.is_empty = picture.readers.is_empty() && picture.trouble.is_none();
    }
}

/// Some backends' watches that one thread follows: pcscd's before that of the USB, which depends on it.
pub(crate) struct Sources<'a> {
    pub(crate) all: &'a mut [Source],
    pub(crate) shared: &'a Shared,
}

impl Sources<'_> {
    pub(crate) fn look(&mut self) {
        for number in 0..self.all.len() {
            self.look_at(number);
        }
    }

    pub(crate) fn look_at(&mut self, number: usize) {
        if let Some(source) = self.all.get_mut(number) {
            let picture = source.watch.now(Call::within(LOOK));
            self.take_in(number, &picture);
        }
    }

    /// Waits inside the watch, which must be the only one.
    pub(crate) fn follow_only(&mut self) -> Result<(), Stopped> {
        let Some(only) = self.all.first_mut() else {
            return Err(Stopped);
        };
        let picture = only.watch.next()?;
        self.take_in(0, &picture);
        Ok(())
    }

    /// Waits for all that can be waited for together, until `until` at most.
    pub(crate) fn follow_pollable(&mut self, until: Option<Instant>) -> Result<(), Stopped> {
        let watches = self.all.iter_mut().enumerate();
        let pollable = watches.filter_map(|(number, source)| {
            let watch = source.watch.pollable()?;
            Some((number, watch))
        });
        let (numbers, mut watches): (Vec<usize>, Vec<&mut dyn Pollable>) = pollable.unzip();
        if let Some((changed, picture)) = pollable::next_of(&mut watches, until)?
            && let Some(number) = numbers.get(changed)
        {
            self.take_in(*number, &picture);
        }
        Ok(())
    }

    fn take_in(&mut self, number: usize, picture: &Readers) {
        let shared = self.shared;
        let source = self.all.get(number);
        if source.is_some_and(|source| source.move_gate(picture, shared)) {
            match self.all.iter().position(|source| source.role == Role::Usb) {
                Some(usb) => self.look_at(usb),
                None => shared.wait_for_the_usb_to_leave(),
            }
        }
        if let Some(source) = self.all.get_mut(number) {
            source.take_in(picture, shared);
        }
    }

    /// The one that can only be followed by itself.
    pub(crate) fn blocking(&mut self) -> Option<usize> {
        let mut all = self.all.iter_mut();
        all.position(|source| source.watch.pollable().is_none())
    }

    /// Whether nothing happens at any but `number` without it.
    pub(crate) fn depend_on(&self, number: usize) -> bool {
        let mut all = self.all.iter().enumerate();
        all.all(|(other, source)| other == number || source.is_behind_pcscd(self.shared))
    }
}
