//! Random sequences of calls with random arguments, on scripted cards and on a real one: the module does not fail, and it
//! works afterwards. A sequence is repeated from its seed:
//! `CLAVIGER_SEED=N CLAVIGER_SEQUENCES=1 cargo test … --test hostile sequences`, and `CLAVIGER_SEQUENCE_TRACE=1` prints
//! its calls. `CLAVIGER_SEQUENCES=N` runs N of each kind.

#[path = "../../../fuzz/corpora.rs"]
#[allow(dead_code, reason = "shared with the tests of parsers")]
mod corpora;
#[path = "../../../fuzz/sequence/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unreachable,
    clippy::cast_possible_truncation,
    reason = "shared with a fuzz target; numbers are bits here"
)]
mod sequence;

use std::{
    collections::BTreeSet,
    env,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    fixture::{
        card_fixture::CardFixture,
        function_list::FunctionList,
        module_process::{ModuleProcess, ServiceKind, in_module_process, with_card},
        process::Watchdog,
    },
    provision::{CardProfile, PIN},
};
use cryptoki_sys::CKR_OK;
use sequence::{Reached, Reader, SequenceFixture};

/// No sequence takes as long, on a busy machine too.
const HANG: Duration = Duration::from_secs(60);
/// Bytes that decide a sequence.
const BYTES: usize = 1600;
/// Where the scripted cards are.
const SCRIPTED: &str = "CLAVIGER_SOCKET";

/// The seed or the number of the input of the current sequence.
static SEED: AtomicU64 = AtomicU64::new(0);

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

/// The seeds of this run.
fn seeds(usual: u64) -> impl Iterator<Item = u64> {
    let first = number("CLAVIGER_SEED").unwrap_or(1);
    first..first + number("CLAVIGER_SEQUENCES").unwrap_or(usual)
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

fn fixture(signs: bool) -> SequenceFixture {
    report_crashes();
    SequenceFixture {
        list: FunctionList::load().list(),
        pin: PIN.as_bytes(),
        signs,
    }
}

/// Prints the sequence and the function of a crash, and lets the crash continue.
fn report_crashes() {
    extern "C" fn report_crash(signal: libc::c_int) {
        let function = sequence::UNDER_WAY.load(Ordering::Relaxed);
        // SAFETY: null, or static data.
        let function = unsafe { function.as_ref() }.copied().unwrap_or("nothing");
        // Writing takes only the lock of standard error, which no other thread holds here.
        eprintln!(
            "signal {signal} in sequence {}, in {function}",
            SEED.load(Ordering::Relaxed)
        );
        // SAFETY: the signal is handled as it was before.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: ends the process.
        unsafe { libc::raise(signal) };
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
        // SAFETY: a handler of this type, for faults of this thread.
        unsafe { libc::signal(signal, report_crash as *const () as libc::sighandler_t) };
    }
}

/// Plays inputs one after the other; each must end, and none may fail.
fn play_all(
    what: &str,
    inputs: impl Iterator<Item = (u64, Vec<u8>)>,
    one: impl Fn(&[u8]) -> Reached,
) {
    let watchdog = Watchdog::new(HANG);
    let (start, mut all, mut played, mut longest) =
        (Instant::now(), Reached::new(), 0, Duration::ZERO);
    for (seed, bytes) in inputs {
        SEED.store(seed, Ordering::Relaxed);
        watchdog.begin(format!("{what}, sequence {seed}"));
        let _named = Named(what);
        let begun = Instant::now();
        for (call, times) in one(&bytes) {
            *all.entry(call).or_default() += times;
        }
        longest = longest.max(begun.elapsed());
        played += 1;
    }
    let (calls, good) = (all.values().sum::<u64>(), successes(&all));
    println!(
        "{what}: {played} sequences in {:?}, the longest {longest:?}; {calls} calls, {} pairs of function and code, {} \
         functions succeeded",
        start.elapsed(),
        all.len(),
        good.len()
    );
    if played >= 20 {
        let called: BTreeSet<&str> = all.keys().map(|(name, _)| *name).collect();
        assert_eq!(called.len(), 104, "a function was never called");
        assert!(
            good.len() >= 40,
            "little succeeds, so little is tried: {good:?}"
        );
    }
}

fn successes(reached: &Reached) -> BTreeSet<&'static str> {
    let good = reached.keys().filter(|(_, code)| *code == CKR_OK);
    good.map(|(name, _)| *name).collect()
}

/// Names the sequence that makes a test fail.
struct Named<'a>(&'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: CLAVIGER_SEED={}", self.0, SEED.load(Ordering::Relaxed));
        }
    }
}

/// A process whose module finds only a reader for scripted cards.
fn with_scripts(body: impl FnOnce(SequenceFixture, &Reader, &[u8])) {
    let lead = |cards: &CardFixture, command: &mut Command| {
        command.env(SCRIPTED, cards.folder().join("scripted"));
        command.env("CLAVIGER_LOG", "off");
    };
    let _ = in_module_process(ServiceKind::Socket, CardProfile::factory(), lead, |_| {
        let path = PathBuf::from(env::var_os(SCRIPTED).unwrap());
        let reader = Reader::serve(&path).unwrap();
        let cards = corpora::seeds("card");
        let (_, sound) = cards.iter().find(|(name, _)| name == "piv-p256").unwrap();
        body(fixture(false), &reader, sound);
    });
}

/// One of the cards of the corpus, sometimes with a few bytes changed, and calls.
fn card_and_calls(seed: u64, cards: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut dice = Dice(seed);
    let at = usize::try_from(dice.next()).unwrap() % cards.len();
    let mut card = cards[at].1.clone();
    for _ in 0..dice.next() % 4 {
        let at = usize::try_from(dice.next()).unwrap() % card.len();
        card[at] = dice.bytes(1)[0];
    }
    let len = u16::try_from(card.len()).unwrap().to_be_bytes();
    [&len[..], &card, &dice.bytes(BYTES)].concat()
}

#[test]
fn random_call_sequences_on_scripted_cards_do_not_break_the_module() {
    with_scripts(|fixture, reader, sound| {
        let cards = corpora::seeds("card");
        let inputs = seeds(700).map(|seed| (seed, card_and_calls(seed, &cards)));
        play_all("scripted cards", inputs, |bytes| {
            sequence::scripted(fixture, reader, sound, bytes)
        });
    });
}

#[test]
fn chosen_call_sequences_do_not_break_the_module() {
    with_scripts(|fixture, reader, sound| {
        let chosen = corpora::seeds("module_sequence").into_iter();
        let inputs = chosen.enumerate().map(|(at, (name, bytes))| {
            println!("{at}: {name}");
            (at as u64, bytes)
        });
        play_all("chosen sequences", inputs, |bytes| {
            sequence::scripted(fixture, reader, sound, bytes)
        });
    });
}

/// Random calls on a card that answers as cards do.
fn on_a_sound_card(what: &str, usual: u64) {
    let fixture = fixture(true);
    let inputs = seeds(usual).map(|seed| (seed, Dice(seed).bytes(BYTES)));
    play_all(what, inputs, |bytes| {
        let reached = sequence::play(fixture, bytes);
        fixture.works_afterwards();
        reached
    });
}

fn on_piv(_: &ModuleProcess) {
    on_a_sound_card("PIV", 150);
}

fn on_openpgp(_: &ModuleProcess) {
    on_a_sound_card("OpenPGP", 150);
}

#[test]
fn random_call_sequences_on_a_piv_card_do_not_break_the_module() {
    with_card(ServiceKind::Socket, CardProfile::piv4(), on_piv);
}

#[test]
fn random_call_sequences_on_an_openpgp_card_do_not_break_the_module() {
    with_card(ServiceKind::Socket, CardProfile::pgp3(), on_openpgp);
}
