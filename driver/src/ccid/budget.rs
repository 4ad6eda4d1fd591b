//! Every limit and timeout on the behaviour of a device.

use std::time::Duration;

/// How many responses to other commands are dropped while one response is awaited.
pub const STALE_ANSWERS: usize = 16;
/// How many empty transfers in a row are tolerated. Some readers send them without reason.
pub const EMPTY_TRANSFERS: usize = 16;
/// How many time extensions one command may request. A reader that requests one every 50 ms stays below this within
/// [`MESSAGE`]. Usually the caller's deadline comes first.
pub const TIME_EXTENSIONS: usize = 1 << 15;
/// How many parts one command or one response may have if the reader splits it by wLevelParameter.
pub const CHAINED_PARTS: usize = 2048;
/// The longest response of a card: data and status word.
pub const ANSWER: usize = 65_538;
/// How long the system may take to return a cancelled transfer.
pub const CANCEL: Duration = Duration::from_secs(1);
/// How long a reader may take to confirm an Abort.
pub const ABORT: Duration = Duration::from_secs(1);
/// How long a reader may take to return the status of a slot.
pub const STATUS: Duration = Duration::from_secs(2);
/// How many queries of a slot's status may fail before the reader counts as unresponsive.
pub const STATUS_TRIES: usize = 3;
/// The delay between two attempts to recover a slot of a slow or busy reader: the first and the longest.
pub const RECOVERY_PAUSES: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_secs(1));
/// How much of its time a call reserves for a reset of the device and the power-on of the card after it.
pub const DEVICE_RESET: Duration = Duration::from_secs(3);
/// How long to wait for one message, whatever card and reader request. Generating a key of 4096 bits takes less.
pub const MESSAGE: Duration = Duration::from_secs(15 * 60);
/// How long a reader of the APDU levels may send nothing for each time extension that it requested (CCID 1.1, 6.2.6).
/// Real readers request one every second or two.
pub const EXTENSION: Duration = Duration::from_secs(10);
/// How long a reader may send nothing before the driver checks whether it is responsive.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How many of these checks may fail.
pub const SILENCES: usize = 2;
/// This margin is added to a card's timeout, so that the reader reports first that the card sent no response.
pub const MARGIN: Duration = Duration::from_secs(1);
/// How long a card may take to send its answer to reset at one voltage, unless it requests more time.
pub const POWER_ON: Duration = Duration::from_secs(10);
/// How often IccPowerOn is sent to a reader that is activating a card automatically (bError F2).
pub const AUTO_SEQUENCE_TRIES: usize = 20;
/// The interval between two of these attempts.
pub const AUTO_SEQUENCE_INTERVAL: Duration = Duration::from_millis(100);
/// How many slots of one reader are used. Real readers have up to eight, but a descriptor can state 256.
pub const SLOTS: u8 = 16;
/// How often a token of the control pipe may report that it is busy. Each time takes at least [`ICCD_POLL`].
pub const ICCD_POLLS: usize = 1 << 17;
/// The interval between two such polls if the token states none.
pub const ICCD_POLL: Duration = Duration::from_millis(10);
/// How long one request to the control pipe may take. The driver can only wait for its end. A device has to begin its
/// response within half a second (USB 2.0, 9.2.6.4).
pub const CONTROL: Duration = Duration::from_secs(1);
