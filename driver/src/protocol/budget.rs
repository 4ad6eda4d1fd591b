//! Limits of one command. Within them, the card decides how long an exchange takes.

/// T=1: how many responses in a row may be damaged, missing or out of order before S(RESYNCH) (ISO 7816-3, 11.6.3.2).
pub const RETRIES: u8 = 3;
/// T=1: how often a request of the interface device (S(IFS), S(ABORT) or S(RESYNCH)) is sent.
pub const REQUESTS: u8 = 3;
/// The longest response, which is that to an extended APDU.
pub const ANSWER_BYTES: usize = claviger_apdu::ResponseBuffer::MAX;
/// T=1: blocks of one response. This allows 65 538 bytes in blocks of eight.
pub const ANSWER_BLOCKS: u32 = 8_192;
/// T=1: S(WTX) requests of one command. This allows fifteen minutes at the shortest block waiting time in use, about
/// 0.1 s.
pub const WAITING_TIME_EXTENSIONS: u32 = 10_000;
/// T=1: other S-blocks that a card may send in a row.
pub const SUPERVISORY_BLOCKS: u8 = 8;
/// T=0: NULL bytes of one command. This allows fifteen minutes at one NULL byte every 0.1 s.
pub const NULL_BYTES: u32 = 10_000;
/// Character level: how often in a row the reader may return fewer bytes than requested.
pub const SHORT_READS: u8 = 8;
