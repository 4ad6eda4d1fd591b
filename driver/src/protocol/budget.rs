//! What one command may cost. A card decides how long an exchange takes only within these.

/// Times one block is sent again before the next means is tried (ISO 7816-3, 11.6.3.2, rules 6.4 and 7).
pub const RETRIES: u8 = 3;
/// Longest answer, an extended-length APDU's.
pub const ANSWER_BYTES: usize = claviger_apdu::ResponseBuffer::MAX;
/// Blocks of one T=1 answer: 65 538 bytes in blocks of eight.
pub const ANSWER_BLOCKS: u32 = 8_192;
/// S(WTX) requests of one command: fifteen minutes at the shortest block waiting time in use, about 0.1 s.
pub const WAITING_TIME_EXTENSIONS: u32 = 10_000;
/// S-blocks other than S(WTX) that a card may send in a row.
pub const SUPERVISORY_BLOCKS: u8 = 8;
/// NULL procedure bytes of one T=0 command: fifteen minutes at one in 0.1 s.
pub const NULL_BYTES: u32 = 10_000;
/// Times a reader of the character level may return fewer bytes than it was asked for, in a row.
pub const SHORT_READS: u8 = 8;
