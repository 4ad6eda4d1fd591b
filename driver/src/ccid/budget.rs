//! What a device may cost: every bound on its behaviour, in one place.

use std::time::Duration;

/// Answers to other commands that are dropped while one answer is awaited.
pub const STALE_ANSWERS: usize = 16;
/// Transfers without a byte in a row, which some readers send for no reason.
pub const EMPTY_TRANSFERS: usize = 16;
/// Requests for more time that one command may make. The caller's deadline comes first as a rule.
pub const TIME_EXTENSIONS: usize = 4096;
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
/// How long a card may take to answer its reset, with all voltages tried.
pub const POWER_ON: Duration = Duration::from_secs(10);
