//! Remote control of a reader or of a card fixture: lines of text over a Unix socket, with one reply line each.
//!
//! | line | action | reply |
//! |---|---|---|
//! | `insert`, `remove`, `reset` | as [`Reader`]'s methods | `ok` and the time, seconds since 1970 |
//! | `counts` | | [`Counts`](crate::reader::Counts) as `name=value` |
//! | `sent INS` | | number of frames with this instruction that carried data |
//! | `zero` | clears counts and entries | `ok` |
//! | `mark TEXT` | writes a remark to the log | `ok` |
//! | `fault INS NTH FATE` | applies the [`FrameFault`] FATE to the NTH such frame from now on, and to no other | `ok` |
//! | `caught` | | `yes` if that frame has arrived, else `no` |
//! | `heal` | removes the fault | `ok` |
//! | `quit` | ends the program | `ok` |
//!
//! INS is an instruction in hex, or `any`. FATE is `delay MS`, `silence`, `pull` or `pull-after`. A card fixture applies the
//! commands above to its first card, and has these in addition:
//!
//! | line | action | reply |
//! |---|---|---|
//! | `card N LINE` | runs LINE for card N, counted from 0 | as LINE |
//! | `service stop` | as [`CardFixture::stop_service`] | `ok` and the time at which the stop began |
//! | `service WHAT` | `start`, `crash`, `begin`, `freeze` or `thaw`: as [`CardFixture`]'s methods | `ok` |
//! | `settle` | as [`CardFixture::wait_until_seen`] | `ok` |
//! | `swap` | as [`CardFixture::swap_cards`] | `ok` |
//! | `exchange` | as [`CardFixture::exchange_card`] | `ok` |
//!
//! The reply to any other line is `error` and a reason.

use std::{
    fmt::Display,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, mpsc::Sender},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    fixture::card_fixture::CardFixture,
    reader::{FrameFault, Reader},
};

/// Longest accepted line.
const MAX_LINE: u64 = 4096;

/// Something that executes control lines.
pub trait RemoteControlled: Send + Sync + 'static {
    /// Executes `line`. Returns the reply.
    fn execute(&self, line: &str) -> String;
}

/// Listens at `path` until the process ends. Sends on `end` after `quit`.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(path: &Path, controlled: impl RemoteControlled, end: Sender<()>) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let controlled = Arc::new(controlled);
    let serve = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (controlled, end) = (Arc::clone(&controlled), end.clone());
            std::thread::spawn(move || serve_connection(&stream, &*controlled, &end));
        }
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(serve)
        .map(drop)
}

fn serve_connection(
    stream: &UnixStream,
    controlled: &impl RemoteControlled,
    end: &Sender<()>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if io::Read::take(&mut lines, MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = controlled.execute(line.trim());
        let mut outbox = stream;
        writeln!(outbox, "{answer}")?;
        if line.trim() == "quit" {
            let _ = end.send(());
        }
    }
}

impl RemoteControlled for Reader {
    fn execute(&self, line: &str) -> String {
        let (verb, text) = line.split_once(' ').unwrap_or((line, ""));
        match (verb, text) {
            ("insert", "") => timed(|| self.insert()),
            ("remove", "") => timed(|| self.remove()),
            ("reset", "") => timed(|| self.reset()),
            ("counts", "") => self.counts().to_string(),
            ("sent", instruction) => match u8::from_str_radix(instruction, 16) {
                Ok(instruction) => frames_with_data(self, instruction).to_string(),
                Err(error) => refused(&format!("{instruction:?}: {error}")),
            },
            ("zero", "") => done(|| self.zero()),
            ("mark", text) => done(|| self.mark(text)),
            ("fault", text) => match Fault::parse(text) {
                Some(fault) => done(|| fault.inject(self)),
                None => refused(&format!("{text:?} is no fault")),
            },
            ("caught", "") => if self.has_caught() { "yes" } else { "no" }.to_owned(),
            ("heal", "") => done(|| self.heal()),
            ("quit", "") => done(|| ()),
            _ => refused(&format!("{line:?} is no command")),
        }
    }
}

fn frames_with_data(reader: &Reader, instruction: u8) -> usize {
    // The header and one length byte have five bytes. A longer frame carries data.
    let carries = |frame: &[u8]| frame.get(1) == Some(&instruction) && frame.len() > 5;
    let exchanges = reader.exchanges();
    exchanges
        .iter()
        .filter(|exchange| carries(&exchange.command))
        .count()
}

/// A fault for one frame.
struct Fault {
    /// `None` for any instruction.
    instruction: Option<u8>,
    nth: usize,
    fate: FrameFault,
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [instruction, nth, fate @ ..] = words.as_slice() else {
            return None;
        };
        let instruction = match *instruction {
            "any" => None,
            hex => Some(u8::from_str_radix(hex, 16).ok()?),
        };
        let fate = match fate {
            ["delay", time] => FrameFault::Delay(Duration::from_millis(time.parse().ok()?)),
            ["silence"] => FrameFault::Silence,
            ["pull"] => FrameFault::Pull,
            ["pull-after"] => FrameFault::PullAfter,
            _ => return None,
        };
        let nth = nth.parse().ok().filter(|nth| *nth > 0)?;
        Some(Self {
            instruction,
            nth,
            fate,
        })
    }

    fn inject(self, reader: &Reader) {
        let mut seen = 0;
        reader.on_frame(move |frame| {
            let meant = |instruction: u8| frame.get(1) == Some(&instruction);
            seen += usize::from(self.instruction.is_none_or(meant));
            if seen == self.nth && self.instruction.is_none_or(meant) {
                return self.fate.clone();
            }
            FrameFault::Answer
        });
    }
}

impl RemoteControlled for Weak<Mutex<CardFixture>> {
    fn execute(&self, line: &str) -> String {
        match self.upgrade() {
            Some(fixture) => fixture.execute(line),
            None => refused(&"the card fixture was dropped"),
        }
    }
}

impl RemoteControlled for Mutex<CardFixture> {
    fn execute(&self, line: &str) -> String {
        let fixture = || self.lock().unwrap_or_else(PoisonError::into_inner);
        let (verb, text) = line.split_once(' ').unwrap_or((line, ""));
        match (verb, text) {
            ("card", text) => match numbered(&fixture(), text) {
                // The lock of the fixture is released while the card executes the line.
                Some((card, line)) => card.execute(line),
                None => refused(&format!("{text:?}: no such card")),
            },
            ("service", "stop") => timed(|| fixture().stop_service()),
            ("service", "start") => done(|| fixture().restart_service()),
            ("service", "crash") => done(|| fixture().crash_service()),
            ("service", "begin") => done(|| fixture().start_service()),
            ("service", "freeze") => done(|| fixture().suspend_pcscd()),
            ("service", "thaw") => done(|| fixture().resume_pcscd()),
            ("settle", "") => done(|| fixture().wait_until_seen()),
            ("swap", "") => done(|| fixture().swap_cards()),
            ("exchange", "") => done(|| fixture().exchange_card()),
            _ => {
                let card = fixture().card().clone();
                card.execute(line)
            }
        }
    }
}

fn numbered<'a>(fixture: &CardFixture, text: &'a str) -> Option<(Reader, &'a str)> {
    let (n, line) = text.split_once(' ')?;
    Some((fixture.cards().nth(n.parse().ok()?)?.clone(), line))
}

fn done(action: impl FnOnce()) -> String {
    action();
    "ok".to_owned()
}

fn timed(action: impl FnOnce()) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    action();
    format!("ok {:.6}", now.as_secs_f64())
}

fn refused(why: &impl Display) -> String {
    format!("error {why}")
}
