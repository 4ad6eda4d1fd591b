//! A body in a child, a grandchild or a daemon of this process.

use std::{
    fmt,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::AsRawFd as _,
    panic::{self, AssertUnwindSafe},
    process,
    time::{Duration, Instant},
};

use super::process::backtraces;

/// A descendant that takes longer hangs.
pub const HANG: Duration = Duration::from_secs(20);
/// What a descendant says when its body is through.
const THROUGH: &str = "through";

/// How far the body is from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    Child,
    /// The child lives on until the grandchild has ended.
    Grandchild,
    /// As daemon(3) does it: a new session, and nobody waits.
    Daemon,
}

impl Descent {
    pub const ALL: [Self; 3] = [Self::Child, Self::Grandchild, Self::Daemon];
}

/// What became of a descendant.
#[derive(Debug)]
pub enum Outcome {
    Through,
    /// Its body failed, or it crashed.
    Failed(String),
    /// It was killed; where it was.
    Hung(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through => f.write_str(THROUGH),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Hung(at) => write!(f, "hangs:\n{at}"),
        }
    }
}

/// Runs `body` in a descendant; fails when it does, or when it takes longer than [`HANG`].
#[track_caller]
pub fn in_descendant(descent: Descent, body: impl FnOnce()) {
    let outcome = descend(descent, HANG, body);
    assert!(matches!(outcome, Outcome::Through), "{descent:?} {outcome}");
}

/// Runs `body` in a descendant, for `limit` at most.
pub fn descend(descent: Descent, limit: Duration, body: impl FnOnce()) -> Outcome {
    let (told, teller) = io::pipe().unwrap();
    match fork() {
        0 => {
            drop(told);
            go_on_to(descent);
            perform(teller, body)
        }
        child => {
            drop(teller);
            let outcome = listen(told, child, limit);
            exit_code(child);
            outcome
        }
    }
}

/// A child that does `body`, which does not return.
pub fn child(body: impl FnOnce()) -> libc::pid_t {
    match fork() {
        0 => {
            body();
            leave()
        }
        child => child,
    }
}

/// The exit code of a child; none when a signal ended it.
pub fn exit_code(child: libc::pid_t) -> Option<i32> {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

fn fork() -> libc::pid_t {
    // SAFETY: descendants call only the module, the allocator, which the C library makes whole again, and what
    // asks the kernel alone; that the module works there is what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
    pid
}

/// From the child to where the body runs.
fn go_on_to(descent: Descent) {
    match descent {
        Descent::Child => return,
        Descent::Grandchild => {}
        // SAFETY: no more than the system call.
        Descent::Daemon => assert!(unsafe { libc::setsid() } > 0),
    }
    let grandchild = fork();
    if grandchild > 0 {
        if descent == Descent::Grandchild {
            exit_code(grandchild);
        }
        leave();
    }
}

fn perform(mut teller: PipeWriter, body: impl FnOnce()) -> ! {
    teller.write_all(&process::id().to_ne_bytes()).unwrap();
    let complainer = teller.try_clone().unwrap();
    panic::set_hook(Box::new(move |why| {
        let _ = write!(&complainer, "{why}");
    }));
    if panic::catch_unwind(AssertUnwindSafe(body)).is_ok() {
        teller.write_all(THROUGH.as_bytes()).unwrap();
    }
    leave()
}

/// Ends a descendant without the exit of the test runner.
fn leave() -> ! {
    // SAFETY: no more than the system call.
    unsafe { libc::_exit(0) }
}

/// A descendant says its number and then how it went; its end closes the pipe.
fn listen(mut told: PipeReader, child: libc::pid_t, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    while readable(&told, deadline) {
        match told.read(&mut piece).unwrap() {
            0 => return judge(&heard),
            len => heard.extend_from_slice(&piece[..len]),
        }
    }
    let pid = heard
        .first_chunk()
        .map_or(child, |pid| libc::pid_t::from_ne_bytes(*pid));
    let at = backtraces(pid.cast_unsigned());
    // SAFETY: the descendant has not ended, so that its number is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    Outcome::Hung(at)
}

fn judge(heard: &[u8]) -> Outcome {
    let said = heard.get(4..).unwrap_or_default();
    match String::from_utf8_lossy(said) {
        said if said == THROUGH => Outcome::Through,
        said if said.is_empty() => Outcome::Failed("it crashed".to_owned()),
        said => Outcome::Failed(said.into_owned()),
    }
}

fn readable(pipe: &PipeReader, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut polled = libc::pollfd {
        fd: pipe.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, as said.
    unsafe { libc::poll(&raw mut polled, 1, left.as_millis() as libc::c_int) > 0 }
}
