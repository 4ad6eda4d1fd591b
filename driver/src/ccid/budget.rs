//! What a device may cost: every bound on its behaviour, in one place.

use std::time::Duration;

/// Answers to other commands that are dropped while one answer is awaited.
pub const STALE_ANSWERS: usize = 16;
/// Transfers without a byte in a row, which some readers send for no reason.
pub const EMPTY_TRANSFERS: usize = 16;
/// Requests for more time that one command may make: more than a reader that asks every 50 ms makes within [`MESSAGE`]. The
/// caller's deadline comes first as a rule.
pub const TIME_EXTENSIONS: usize = 1 << 15;
/// Parts of one command or one answer when the reader cuts them by wLevelParameter.
pub const CHAINED_PARTS: usize = 2048;
/// Longest answer of a card, data and status word.
pub const ANSWER: usize = 65_538;
/// How long the system may take to give a cancelled transfer back.
pub const CANCEL: Duration = Duration::from_secs(1);
/// How long a reader may take to confirm an Abort.
pub const ABORT: Duration = Duration::from_secs(1);
/// How long a reader may take to say what is in a slot.
pub const STATUS: Duration = Duration::from_secs(2);
/// How often a slot's status is asked for before the reader is given up.
pub const STATUS_TRIES: usize = 3;
/// Between two attempts to recover a slot of a slow or busy reader: at first, and at most.
pub const RECOVERY_PAUSES: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_secs(1));
/// What a call keeps of its time for a reset of the device, and for the power-on of the card after it.
pub const DEVICE_RESET: Duration = Duration::from_secs(3);
/// How long one message may be waited for, whatever card and reader ask for: a key of 4096 bits is made in less.
pub const MESSAGE: Duration = Duration::from_secs(15 * 60);
/// How long a reader that takes APDUs, and has asked for more time, may stay silent for each time that it asked for (CCID 1.1,
/// 6.2.6). Real ones ask every second or two.
pub const EXTENSION: Duration = Duration::from_secs(10);
/// How long a reader may be silent before it is asked whether it is there at all, and how often it may then say nothing.
pub const SILENCE: Duration = Duration::from_secs(5);
/// See [`SILENCE`].
pub const SILENCES: usize = 2;
/// What is added to the time a card has, so that the reader can say first that the card is silent.
pub const MARGIN: Duration = Duration::from_secs(1);
/// How long a card may take to answer its reset at one voltage, before it asks for more.
pub const POWER_ON: Duration = Duration::from_secs(10);
/// How often a reader that is activating a card by itself (bError F2) is sent IccPowerOn.
pub const AUTO_SEQUENCE_TRIES: usize = 20;
/// Between two of these.
pub const AUTO_SEQUENCE_INTERVAL: Duration = Duration::from_millis(100);
/// Slots of one reader that are looked after; real ones have eight at most, and a descriptor can say 256.
pub const SLOTS: u8 = 16;
/// How often a token of the control pipe may say that it is still busy; each time costs [`ICCD_POLL`] at least.
pub const ICCD_POLLS: usize = 1 << 17;
/// Between two such questions, where the token names no time.
pub const ICCD_POLL: Duration = Duration::from_millis(10);
/// What one request to the control pipe may take, as nothing but its end can be waited for. A device has to begin its
/// answer within half a second (USB 2.0, 9.2.6.4).
pub const CONTROL: Duration = Duration::from_secs(1);
