//! A reader's remote control: lines of text over a Unix socket, one answer line each.
//!
//! | line | does | answers |
//! |---|---|---|
//! | `insert`, `remove`, `reset` | as [`Reader`]'s methods | `ok` and the time, seconds since 1970 |
//! | `counts` | | [`Counts`](crate::reader::Counts) as `name=value` |
//! | `zero` | forgets counts and entries | `ok` |
//! | `mark TEXT` | writes a remark into the log | `ok` |
//! | `quit` | ends the program | `ok` |
//!
//! Anything else answers `error` and why.

use std::{
    fmt::Display,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Arc, mpsc::Sender},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::reader::Reader;

/// Longest line that is read.
const MAX_LINE: u64 = 4096;

/// Listens at `path` until the process ends; `quit` is said on `end`.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path, reader: Reader, end: Sender<()>) -> io::Result<()> {
    serve(path, move |line, reply| {
        reply(&answer(line, &reader))?;
        if line == "quit" {
            let _ = end.send(());
        }
        Ok(())
    })
}

/// Where an answer goes.
pub(crate) type Reply<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Listens at `path` until the process ends, and has `obey` answer each line, on a thread for each connection.
pub(crate) fn serve(
    path: &Path,
    obey: impl Fn(&str, &mut Reply<'_>) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let obey = Arc::new(obey);
    let serve = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let obey = Arc::clone(&obey);
            std::thread::spawn(move || converse(&stream, obey.as_ref()));
        }
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(serve)
        .map(drop)
}

fn converse(
    stream: &UnixStream,
    obey: &impl Fn(&str, &mut Reply<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if io::Read::take(&mut lines, MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut outbox = stream;
        obey(line.trim(), &mut |answer| writeln!(outbox, "{answer}"))?;
    }
}

/// Does what a line says to the reader.
pub(crate) fn answer(line: &str, reader: &Reader) -> String {
    let (verb, text) = line.split_once(' ').unwrap_or((line, ""));
    match (verb, text) {
        ("insert", "") => timed(|| reader.insert()),
        ("remove", "") => timed(|| reader.remove()),
        ("reset", "") => timed(|| reader.reset()),
        ("counts", "") => reader.counts().to_string(),
        ("zero", "") => done(|| reader.zero()),
        ("mark", text) => done(|| reader.mark(text)),
        ("quit", "") => done(|| ()),
        _ => refused(&format!("{line:?} is no command")),
    }
}

pub(crate) fn done(action: impl FnOnce()) -> String {
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

pub(crate) fn refused(why: &impl Display) -> String {
    format!("error {why}")
}
