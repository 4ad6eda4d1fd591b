//! A test's client in a process of its own: the module has one life per process and reads its environment once.
//!
//! The test starts itself again with [`STAGE`] set; there, the body runs with the module and a line to the card.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::macro_metavars_in_unsafe,
    reason = "shared by several test programs; a test fails loudly, and its figures are small"
)]

pub mod bystander;
pub mod every_function;
pub mod figures;
pub mod fork;
pub mod lives;
pub mod memory;
pub mod no_threads;
pub mod piv_session;
pub mod process;
pub mod raw;
pub mod raw_session;
pub mod renumbering;
pub mod scene;
pub mod signer;
pub mod waiter;

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use claviger_hw_tests::{client, control, paths, provision::Plan, rig::Rig};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};

/// Path of the card's control socket; set in the client's process only.
const STAGE: &str = "CLAVIGER_TEST_STAGE";
/// Which way the client's process plays, in tests that go both.
const WAY: &str = "CLAVIGER_TEST_WAY";
/// What the client says when its body is through.
const PLAYED: &str = "the client is through";
/// Only a hang takes longer, on a busy machine too.
pub const HANG: Duration = Duration::from_secs(20);
/// No test takes longer, but those of `make races` where every instruction is emulated. That machine has a limit of its own.
const LIMIT: Duration = Duration::from_secs(240);
const EMULATED_RACES: Duration = Duration::from_secs(7200);

fn limit() -> Duration {
    let has = |variable| env::var_os(variable).is_some();
    if has("CLAVIGER_USB_GUEST") && (has("CLAVIGER_ROUNDS") || has("CLAVIGER_PLUG_CYCLES")) {
        EMULATED_RACES
    } else {
        LIMIT
    }
}

/// How the client reaches the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Socket,
    Pcscd,
    /// A pcscd that a client starts who connects, as under systemd.
    PcscdBySocket,
}

/// A test of each rule for each way: `MODULE::RULE`.
#[macro_export]
macro_rules! each_way {
    (@one $way:ident $module:ident { $($rule:ident: $plan:expr;)* }) => {
        mod $module {
            use claviger_hw_tests::provision::Plan;
            $(
                #[test]
                fn $rule() {
                    super::stage::with_card(super::stage::Way::$way, $plan, super::$rule);
                }
            )*
        }
    };
    ([$($way:ident $module:ident),+] $rules:tt) => {
        $($crate::each_way!(@one $way $module $rules);)+
    };
}

/// What a client has: the module and a line to its card.
#[derive(Clone)]
pub struct Stage {
    control: PathBuf,
}

/// What the client's process wrote to its standard error output: the module's log.
pub struct Log(pub String);

impl Log {
    /// The one line that holds all of `words`.
    #[track_caller]
    pub fn line(&self, words: &[&str]) -> &str {
        let holds = |line: &&str| words.iter().all(|word| line.contains(word));
        let line = self.0.lines().find(holds);
        line.unwrap_or_else(|| panic!("no line with {words:?} in the log:\n{}", self.0))
    }
}

/// Runs `body` in a process of its own that reaches a card of `plan` by `way`; `prepare` works on the rig first,
/// in the process that holds the card. The log is for that process; the client gets none.
pub fn play(
    way: Way,
    plan: Plan,
    prepare: impl FnOnce(&Rig, &mut Command),
    body: impl FnOnce(&Stage),
) -> Option<Log> {
    play_cards(way, &[plan], prepare, body)
}

/// As [`play`] with several cards, each in a reader of its own.
pub fn play_cards(
    way: Way,
    plans: &[Plan],
    prepare: impl FnOnce(&Rig, &mut Command),
    body: impl FnOnce(&Stage),
) -> Option<Log> {
    if let Some(control) = env::var_os(STAGE) {
        if env::var_os(WAY).is_some_and(|mine| mine == *format!("{way:?}")) {
            body(&Stage {
                control: control.into(),
            });
            println!("{PLAYED}");
        }
        return None;
    }
    let name = thread::current()
        .name()
        .expect("a test has a name")
        .to_owned();
    let rig = match way {
        Way::Socket => Rig::socket_cards(plans),
        Way::Pcscd => Rig::pcscd_cards(plans)?,
        Way::PcscdBySocket => Rig::pcscd_by_socket(plans)?,
    };
    let control = rig.folder().join("control");
    let mut command = rig.command(env::current_exe().expect("this program"));
    let how = ["--exact", "--include-ignored", "--nocapture"];
    command.arg(&name).args(how).arg("--test-threads=1");
    command
        .env(WAY, format!("{way:?}"))
        .env(STAGE, &control)
        .env("CLAVIGER_LOG", "warn");
    prepare(&rig, &mut command);
    let rig = Arc::new(Mutex::new(rig));
    let (end, _ended) = mpsc::channel();
    control::listen(&control, Arc::downgrade(&rig), end).expect("a control socket");
    let output = client::run(&mut command, limit()).expect_success();
    assert!(
        output.stdout.contains(PLAYED),
        "the client ran no test: {output}"
    );
    // Figures and log lines of the client, for whoever reads the run.
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    Some(Log(output.stderr))
}

/// [`play`] with nothing to prepare.
pub fn with_card(way: Way, plan: Plan, body: impl FnOnce(&Stage)) {
    let _ = play(way, plan, |_, _| {}, body);
}

/// Says one line at a control socket; the answer.
#[track_caller]
fn say_to(control: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(control).expect("a control socket");
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(
        !answer.is_empty() && !answer.starts_with("error"),
        "{line}: {answer}"
    );
    answer.trim().to_owned()
}

impl Stage {
    /// Says one line to the rig, as [`control`] has them; the answer.
    #[track_caller]
    pub fn say(&self, line: &str) -> String {
        say_to(&self.control, line)
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.control.parent().expect("a folder")
    }

    /// Says several lines.
    #[track_caller]
    pub fn order(&self, lines: &[&str]) {
        for line in lines {
            self.say(line);
        }
    }

    /// How many PINs the card was given so far.
    pub fn pins(&self) -> u64 {
        self.count("verifies")
    }

    /// Does `call`, whose frame with `instruction` comes to the card `delay` later than sent; says `lines` while it
    /// is under way.
    pub fn during<R>(
        &self,
        instruction: u8,
        delay: Duration,
        lines: &[&str],
        call: impl FnOnce() -> R,
    ) -> R {
        self.delay(instruction, delay);
        thread::scope(|scope| {
            scope.spawn(|| {
                self.await_delayed();
                self.order(lines);
            });
            call()
        })
    }

    /// The next frame with `instruction` comes to the card `delay` later than sent.
    pub fn delay(&self, instruction: u8, delay: Duration) {
        self.say(&format!(
            "fault {instruction:02X} 1 delay {}",
            delay.as_millis()
        ));
    }

    /// Waits until that frame is on its way.
    pub fn await_delayed(&self) {
        eventually("a frame on its way", || self.say("caught") == "yes");
    }

    /// One of the card's counters by its name.
    pub fn count(&self, name: &str) -> u64 {
        let counts = self.say("counts");
        let value = counts
            .split(' ')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {counts}"))
    }

    /// APDUs at the card while `work` is done.
    pub fn apdus<R>(&self, work: impl FnOnce() -> R) -> (u64, R) {
        let before = self.count("apdus");
        let result = work();
        (self.count("apdus") - before, result)
    }

    /// The module, loaded and not initialised.
    pub fn load(&self) -> Pkcs11 {
        Pkcs11::new(paths::module_path()).expect("the module loads")
    }

    /// The module, initialised.
    pub fn module(&self) -> Pkcs11 {
        let module = self.load();
        module
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .expect("C_Initialize");
        module
    }

    /// A session on the first token.
    pub fn session(&self, module: &Pkcs11) -> Session {
        let slot = *module
            .get_slots_with_token()
            .expect("C_GetSlotList")
            .first()
            .expect("a token");
        module.open_ro_session(slot).expect("C_OpenSession")
    }
}

/// Waits until something is so; nothing takes longer than [`HANG`].
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Does something that must not take longer than [`HANG`], and prints how long it took.
#[track_caller]
pub fn promptly<R>(what: &str, action: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = action();
    let took = start.elapsed();
    println!("{what}: {took:?}");
    assert!(took < HANG, "{what} took {took:?}");
    result
}

/// The code of a call that must fail.
#[track_caller]
pub fn code<T>(result: cryptoki::error::Result<T>) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(error) => panic!("no return code: {error}"),
        Ok(_) => panic!("the call succeeded"),
    }
}

/// The private key with this id.
#[track_caller]
pub fn key(session: &Session, id: u8) -> ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(vec![id]),
    ];
    *session
        .find_objects(&template)
        .unwrap()
        .first()
        .expect("a private key")
}

/// The user PIN of every card.
pub fn pin() -> AuthPin {
    AuthPin::new(claviger_hw_tests::provision::PIN.into())
}

/// Logs the user in.
pub fn log_in(session: &Session) {
    session
        .login(UserType::User, Some(&pin()))
        .expect("C_Login");
}
