//! What one command may cost. A card decides how long an exchange takes only within these.

/// T=1: answers in a row that may be damaged, missing or out of order before S(RESYNCH) (ISO 7816-3, 11.6.3.2).
pub const RETRIES: u8 = 3;
/// T=1: times a request of ours, S(IFS), S(ABORT) or S(RESYNCH), is sent.
pub const REQUESTS: u8 = 3;
/// Longest answer, an extended-length APDU's.
pub const ANSWER_BYTES: usize = claviger_apdu::ResponseBuffer::MAX;
/// T=1: blocks of one answer: 65 538 bytes in blocks of eight.
pub const ANSWER_BLOCKS: u32 = 8_192;
/// T=1: S(WTX) requests of one command: fifteen minutes at the shortest block waiting time in use, about 0.1 s.
pub const WAITING_TIME_EXTENSIONS: u32 = 10_000;
/// T=1: other S-blocks that a card may send in a row.
pub const SUPERVISORY_BLOCKS: u8 = 8;
/// T=0: NULL bytes of one command: fifteen minutes at one in 0.1 s.
pub const NULL_BYTES: u32 = 10_000;
/// Character level: times in a row the reader may give fewer bytes than it was asked for.
pub const SHORT_READS: u8 = 8;
