//! Runs the plays, each in a process of its own with readers of its own, and says what came of them.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    harness::{
        client::{self, Output},
        pcscd::{Pcscd, SOCKET_VARIABLE},
    },
    reader,
    scenarios::{BackendKind, CardMoves, Outcome, PLAYS, Scenario},
    tool::{REPORTED, Tool},
    vpcd,
};

/// No play takes so long unless it hangs.
const LIMIT: Duration = Duration::from_secs(300);
/// Set where every play must be run: a skip is then a failure.
const NO_SKIP: &str = "CLAVIGER_NO_SKIP";
/// What ThreadSanitizer may not report, each with its reason.
const SUPPRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pcscd.suppressions");

pub(crate) fn run_all() -> ExitCode {
    let Some(tool) = Tool::of_this_program() else {
        eprintln!("no sanitizer is in this program; scripts/sanitize builds it with one");
        return ExitCode::from(2);
    };
    let ended = PLAYS
        .iter()
        .filter(|play| play.tools.contains(&tool))
        .map(|play| run(play, tool));
    if ended.filter(|well| !well).count() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one play and prints a line, or everything when it did not end as it should; whether it did.
fn run(play: &Scenario, tool: Tool) -> bool {
    if let (BackendKind::Pcscd(_), Some(obstacle)) = (play.way, Pcscd::obstacle()) {
        println!("{:22} SKIPPED: {obstacle}", play.name);
        return env::var_os(NO_SKIP).is_none();
    }
    let readers = Readers::of(play.way);
    let mut command = Command::new(env::current_exe().expect("the path of this program"));
    command.arg(play.name);
    readers.lead(&mut command, play.way);
    let suppressions = matches!(play.way, BackendKind::Pcscd(_)).then_some(SUPPRESSIONS);
    let (variable, options) = tool.options(suppressions);
    command.env(variable, options);
    let output = client::run(&mut command, LIMIT);
    match fault(play, &output) {
        None => {
            let said = output
                .stdout
                .lines()
                .filter(|line| *line != Scenario::THROUGH);
            let said = said.collect::<Vec<_>>().join("; ");
            let took = output.took.as_secs_f32();
            println!("{:22} ok {took:5.1} s  {said}", play.name);
            true
        }
        Some(fault) => {
            println!("{:22} FAILED: {fault}\n{output}", play.name);
            println!("--- the module's log, its end\n{}", readers.log());
            false
        }
    }
}

/// What is wrong with the end of a play.
fn fault(play: &Scenario, output: &Output) -> Option<String> {
    let through = output.stdout.lines().last() == Some(Scenario::THROUGH);
    match play.outcome {
        Outcome::Silence if output.success() && through => None,
        Outcome::Silence if output.code == Some(REPORTED) => Some("the tool reports".to_owned()),
        Outcome::Silence => Some("it did not end well".to_owned()),
        Outcome::Report(words) => {
            let reported = output.code == Some(REPORTED) && output.stderr.contains(words);
            (!reported).then(|| format!("the tool does not see a planted fault ({words:?})"))
        }
    }
}

/// The readers of one play. The socket's server and the card end with this process.
struct Readers {
    folder: TempDir,
    pcscd: Option<Pcscd>,
}

impl Readers {
    fn of(way: BackendKind) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = |CardMoves { present, absent }| {
            reader::serve(&folder.path().join("reader"), present, absent).expect("a socket");
        };
        let pcscd = match way {
            BackendKind::None | BackendKind::Absent => None,
            BackendKind::Socket(moves) | BackendKind::Two(moves) => {
                socket(moves);
                None
            }
            BackendKind::Pcscd(CardMoves { present, absent }) => {
                let pcscd = Pcscd::start(1);
                vpcd::serve(pcscd.port(0), present, absent);
                Some(pcscd)
            }
        };
        Self { folder, pcscd }
    }

    /// Shows `command` the way to them, and nothing of this machine.
    fn lead(&self, command: &mut Command, way: BackendKind) {
        let folder = self.folder.path();
        let pcscd = self.pcscd.as_ref().map(Pcscd::socket);
        let transports = match way {
            BackendKind::None | BackendKind::Absent | BackendKind::Pcscd(_) => "pcsc",
            BackendKind::Socket(_) => "socket",
            BackendKind::Two(_) => "socket,pcsc",
        };
        command
            .env("CLAVIGER_CONFIG", "/dev/null")
            .env("CLAVIGER_TRANSPORTS", transports)
            .env(
                SOCKET_VARIABLE,
                pcscd.unwrap_or_else(|| folder.join("no-pcscd")),
            )
            // What is logged is built in several threads, too.
            .env("CLAVIGER_LOG", "debug")
            .env("CLAVIGER_LOG_FILE", log_file(folder));
        if transports.contains("socket") {
            command.env("CLAVIGER_SOCKET", folder.join("reader"));
        }
    }

    /// The last lines of the module's log.
    fn log(&self) -> String {
        let log = fs::read_to_string(log_file(self.folder.path())).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn log_file(folder: &Path) -> std::path::PathBuf {
    folder.join("log")
}
