//! The events of a card: exact counts, and a log of every byte. The PINs in it are those of test cards.

use std::{
    fmt,
    fs::File,
    io::{self, Write as _},
    ops::Sub,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The number of events of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that reached the card.
    pub apdus: u64,
    /// VERIFY frames among them that carried a PIN.
    pub verifies: u64,
    /// Bytes of these frames.
    pub command_bytes: u64,
    /// Bytes of their responses, status words included.
    pub response_bytes: u64,
    /// Connects to the card, reconnects included. With pcscd: one for each insertion.
    pub connects: u64,
    /// Transactions begun. With pcscd: none, because pcscd manages them itself.
    pub begins: u64,
    /// Transactions ended.
    pub ends: u64,
    /// Resets by a user or by the test.
    pub resets: u64,
    /// Times the card was powered on.
    pub power_ups: u64,
    /// Times pcscd powered the card off.
    pub power_downs: u64,
    /// Insertions.
    pub insertions: u64,
    /// Removals.
    pub removals: u64,
    /// Time that the card itself took for its responses.
    pub card_time: Duration,
}

impl Sub for Counts {
    type Output = Self;

    /// The events between `earlier` and now.
    fn sub(self, earlier: Self) -> Self {
        Self {
            apdus: self.apdus - earlier.apdus,
            verifies: self.verifies - earlier.verifies,
            command_bytes: self.command_bytes - earlier.command_bytes,
            response_bytes: self.response_bytes - earlier.response_bytes,
            connects: self.connects - earlier.connects,
            begins: self.begins - earlier.begins,
            ends: self.ends - earlier.ends,
            resets: self.resets - earlier.resets,
            power_ups: self.power_ups - earlier.power_ups,
            power_downs: self.power_downs - earlier.power_downs,
            insertions: self.insertions - earlier.insertions,
            removals: self.removals - earlier.removals,
            card_time: self.card_time.saturating_sub(earlier.card_time),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            apdus,
            verifies,
            command_bytes,
            response_bytes,
            connects,
            ..
        } = self;
        let Self {
            begins,
            ends,
            resets,
            power_ups,
            power_downs,
            insertions,
            removals,
            card_time,
            ..
        } = self;
        write!(
            f,
            "apdus={apdus} command_bytes={command_bytes} response_bytes={response_bytes} "
        )?;
        write!(
            f,
            "connects={connects} begins={begins} ends={ends} resets={resets} "
        )?;
        write!(f, "power_ups={power_ups} power_downs={power_downs} ")?;
        write!(
            f,
            "verifies={verifies} insertions={insertions} removals={removals} card_us={}",
            card_time.as_micros()
        )
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One frame and its response.
    Exchange(Exchange),
    /// A user connected to the card.
    Connect,
    /// A user began a transaction.
    Begin,
    /// A user ended its transaction.
    End,
    /// The card was reset.
    Reset,
    /// The card was powered on.
    PowerUp,
    /// The card was powered off.
    PowerDown,
    /// The card was inserted.
    Insert,
    /// The card was removed.
    Remove,
    /// A remark of the test.
    Mark(String),
}

/// One frame and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The frame.
    pub command: Vec<u8>,
    /// Data and status word.
    pub response: Vec<u8>,
    /// The time that the card took.
    pub took: Duration,
}

impl Exchange {
    /// CLA INS P1 P2, or the whole frame if it is shorter.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        self.command.get(..4).unwrap_or(&self.command)
    }

    /// SW1 and SW2.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response
            .last_chunk()
            .map_or(0, |status| u16::from_be_bytes(*status))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(Exchange {
                command,
                response,
                took,
            }) => {
                write!(
                    f,
                    "{} > {} ({} us)",
                    Hex(command),
                    Hex(response),
                    took.as_micros()
                )
            }
            Self::Mark(text) => write!(f, "# {text}"),
            other => write!(f, "{other:?}"),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

/// An event, when it happened and through whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Since the reader was made.
    pub at: Duration,
    /// The user's number, from 1 in order of arrival; 0 for the test itself.
    pub user: u64,
    /// What happened.
    pub event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:12.6} {:3} {}",
            self.at.as_secs_f64(),
            self.user,
            self.event
        )
    }
}

/// Counts and entries of one reader.
#[derive(Debug)]
pub(super) struct ApduLog {
    start: Instant,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    counts: Counts,
    entries: Vec<Entry>,
    file: Option<File>,
}

impl ApduLog {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            pages: Mutex::default(),
        }
    }

    /// Writes entries to `path` as well, from now on, at its end.
    pub(super) fn log_to(&self, path: &Path) -> io::Result<()> {
        let file = File::options().create(true).append(true).open(path)?;
        self.pages().file = Some(file);
        Ok(())
    }

    pub(super) fn write(&self, user: u64, event: Event) {
        let mut pages = self.pages();
        let entry = Entry {
            at: self.start.elapsed(),
            user,
            event,
        };
        pages.counts.add(&entry.event);
        if let Some(file) = &mut pages.file {
            // A full disk must not stop the card.
            let _ = file.write_all(format!("{entry}\n").as_bytes());
        }
        pages.entries.push(entry);
    }

    pub(super) fn counts(&self) -> Counts {
        self.pages().counts
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.pages().entries.clone()
    }

    pub(super) fn clear(&self) {
        let mut pages = self.pages();
        pages.counts = Counts::default();
        pages.entries.clear();
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add(&mut self, event: &Event) {
        match event {
            Event::Exchange(Exchange {
                command,
                response,
                took,
            }) => {
                self.apdus += 1;
                self.verifies += u64::from(is_verify(command));
                self.command_bytes += command.len() as u64;
                self.response_bytes += response.len() as u64;
                self.card_time += *took;
            }
            Event::Connect => self.connects += 1,
            Event::Begin => self.begins += 1,
            Event::End => self.ends += 1,
            Event::Reset => self.resets += 1,
            Event::PowerUp => self.power_ups += 1,
            Event::PowerDown => self.power_downs += 1,
            Event::Insert => self.insertions += 1,
            Event::Remove => self.removals += 1,
            Event::Mark(_) => {}
        }
    }
}

/// VERIFY with data; without, it only asks or logs out.
fn is_verify(command: &[u8]) -> bool {
    command.get(1) == Some(&0x20) && command.len() > 5
}
