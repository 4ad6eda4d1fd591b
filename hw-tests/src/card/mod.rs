//! Virtual cards with real firmware: the PIV and OpenPGP applets of the Nitrokey 3, in this process.
//!
//! They have PIV with RSA 2048 to 4096, P-256 and P-384 (no attestation, no metadata), and OpenPGP 3.4 with
//! Ed25519, X25519, P-256, P-384, P-521 and RSA 2048 to 4096. Factory PINs: 123456, PUK and admin PIN 12345678,
//! PIV management key 3DES 0102030405060708 three times.
//!
//! ```
//! use claviger_hw_tests::card::{CardConfig, VirtualCard};
//! let card = VirtualCard::power_up(CardConfig::default())?;
//! let response = card.transmit(&[0x00, 0xA4, 0x04, 0x00, 0x06, 0xD2, 0x76, 0x00, 0x01, 0x24, 0x01]);
//! assert_eq!(response, [0x90, 0x00]);
//! # Ok::<(), std::io::Error>(())
//! ```

mod applets;
mod config;
mod kernel;
mod storage;

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use claviger_apdu::{Call, ResponseBuffer, Transmit, TransportError, TransportErrorKind};

use self::{
    applets::{Applets, NO_DIAGNOSIS, Wiring},
    kernel::SystemCall,
};
pub use self::{
    config::{CardConfig, NITROKEY_3_ATR},
    storage::State,
};

/// A powered card. Dropping it ends its thread.
///
/// It executes one command at a time. Calls from several threads wait for each other.
#[derive(Debug)]
pub struct VirtualCard {
    config: CardConfig,
    line: Mutex<Line>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Line {
    /// `None` while the card is being dropped.
    commands: Option<Sender<Signal>>,
    answers: Receiver<Vec<u8>>,
}

/// A signal at the contacts of a card. Each gets a response, which is empty for a power cycle.
enum Signal {
    Frame(Vec<u8>),
    PowerCycle,
}

impl VirtualCard {
    /// Makes a card and powers it up.
    ///
    /// # Errors
    /// If its memory cannot be read, or its thread cannot be started.
    pub fn power_up(config: CardConfig) -> io::Result<Self> {
        let (commands, signals) = mpsc::channel();
        let (outbox, answers) = mpsc::channel();
        let (powered, ready) = mpsc::channel();
        let firmware = config.clone();
        let thread = std::thread::Builder::new()
            .name("virtual-card".into())
            .stack_size(16 << 20)
            .spawn(move || run(&firmware, &powered, &signals, &outbox))?;
        ready
            .recv()
            .map_err(|_| io::Error::other("the virtual card's firmware did not start"))??;
        Ok(Self {
            config,
            line: Mutex::new(Line {
                commands: Some(commands),
                answers,
            }),
            thread: Some(thread),
        })
    }

    /// The configuration of the card.
    #[must_use]
    pub const fn config(&self) -> &CardConfig {
        &self.config
    }

    /// Sends one frame, as over T=1. Returns the response: data and status word. The response is 6F00 if the firmware has
    /// panicked.
    pub fn transmit(&self, frame: &[u8]) -> Vec<u8> {
        self.signal(Signal::Frame(frame.to_vec()))
            .unwrap_or_else(|| NO_DIAGNOSIS.to_vec())
    }

    /// Power-cycles the card: the selection, verified PINs and all other volatile state are lost.
    pub fn reset(&self) {
        let _ = self.signal(Signal::PowerCycle);
    }

    /// Power-cycles the card and waits until its firmware has started, as the firmware of a USB token starts before its device.
    pub(crate) fn boot(&self) {
        self.reset();
        // The restarted firmware responds to this one.
        self.reset();
    }

    fn signal(&self, signal: Signal) -> Option<Vec<u8>> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.commands.as_ref()?.send(signal).ok()?;
        line.answers.recv().ok()
    }
}

impl Drop for VirtualCard {
    fn drop(&mut self) {
        self.line
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets provisioning use the card without a reader.
impl Transmit for &VirtualCard {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        _: Call,
    ) -> Result<(), TransportError> {
        let answer = VirtualCard::transmit(self, frame);
        let too_long = |_| {
            TransportError::before_card(
                TransportErrorKind::Protocol,
                "virtual card: response too long",
            )
        };
        response.set(&answer).map_err(too_long)
    }
}

/// The card's thread. Reports once on `powered` whether the memory could be opened, then responds to every signal.
fn run(
    config: &CardConfig,
    powered: &Sender<io::Result<()>>,
    signals: &Receiver<Signal>,
    outbox: &Sender<Vec<u8>>,
) {
    let mut memory = match config.state.open() {
        Ok(memory) => memory,
        Err(error) => return drop(powered.send(Err(error))),
    };
    memory.with_store(|store| {
        let wiring = Wiring::default();
        let kernel = SystemCall::boot(store, config.seed);
        let _ = powered.send(Ok(()));
        while let Some(mut applets) = Applets::power_up(config, &kernel, &wiring) {
            let mut is_fresh = true;
            loop {
                let answer = match signals.recv() {
                    Ok(Signal::Frame(frame)) => {
                        is_fresh = false;
                        applets.answer(frame)
                    }
                    // A card without a command has no state to lose.
                    Ok(Signal::PowerCycle) if is_fresh => Vec::new(),
                    Ok(Signal::PowerCycle) => break,
                    Err(_) => return,
                };
                let _ = outbox.send(answer);
            }
            drop(applets);
            let _ = outbox.send(Vec::new());
        }
    });
}
