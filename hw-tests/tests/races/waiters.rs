//! C_Finalize against blocked waiters, in many rounds: every waiter must return at once.
//!
//! `make races` runs 10,000 rounds and enforces [`PROMPT`] for each combination. `make test` runs fewer and prints the times.

use std::{
    fmt,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use claviger_hw_tests::{
    fixture::{
        figures,
        function_list::FunctionList,
        module_process::{HANG, ModuleProcess, ServiceKind, eventually, with_card},
        process::{Watchdog, left_threads, open_files},
        waiter::{this_task, until_asleep},
    },
    provision::CardProfile,
};
use cryptoki_sys::{
    CK_FLAGS, CKF_LIBRARY_CANT_CREATE_OS_THREADS, CKF_OS_LOCKING_OK, CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_OK,
};

/// How soon after the start of C_Finalize its waiters are back, in 99 of 100 rounds.
const PROMPT: Duration = Duration::from_millis(10);
/// The same where every instruction is emulated.
const EMULATED: Duration = Duration::from_secs(1);
/// What no round takes, wherever: the shortest of the module's waits that C_Finalize has to end.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);
/// Longest pause between the start of the waiters and C_Finalize.
const LONGEST_PAUSE: u64 = 2000;
/// Time for the first query of the slots. Changes before it are no events.
const FIRST_QUERY: Duration = Duration::from_millis(1);
/// How long a waiter that comes too late for its generation is left in the next one.
const LATE: Duration = Duration::from_millis(20);
/// Rounds in all, where `make races` does not say.
const FEW: usize = 960;

const OWN_THREADS: CK_FLAGS = CKF_OS_LOCKING_OK;
const NO_THREADS: CK_FLAGS = CKF_LIBRARY_CANT_CREATE_OS_THREADS | CKF_OS_LOCKING_OK;
const CROWDS: [usize; 4] = [1, 2, 4, 20];

/// What is varied.
#[derive(Clone, Copy)]
struct Combination {
    service: ServiceKind,
    flags: CK_FLAGS,
    waiters: usize,
    /// Whether the thread that finalises initialises again at once.
    again: bool,
    /// Whether a card is inserted or removed at the moment of C_Finalize.
    event: bool,
}

impl Combination {
    /// All combinations of a service without reader events.
    fn of(service: ServiceKind) -> Vec<Self> {
        let mut all = Vec::new();
        for flags in [OWN_THREADS, NO_THREADS] {
            for waiters in CROWDS {
                all.extend([false, true].map(|again| Self {
                    service,
                    flags,
                    waiters,
                    again,
                    event: false,
                }));
            }
        }
        all
    }

    /// All combinations of a service with a reader event at each C_Finalize.
    fn with_event(service: ServiceKind) -> Vec<Self> {
        let event = |combination| Self {
            event: true,
            ..combination
        };
        Self::of(service).into_iter().map(event).collect()
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.flags == OWN_THREADS {
            "own thread"
        } else {
            "no thread"
        };
        let again = if self.again { "again" } else { "end" };
        let service = format!("{:?}", self.service);
        let text = format!("{service:6} {threads:10} {:2} {again:5}", self.waiters);
        f.pad(&text)
    }
}

/// Numbers that can be had again from their seed (SplitMix64).
struct Random(u64);

impl Random {
    /// From `CLAVIGER_RACE_SEED`, else from the clock; the seed is printed.
    fn seeded() -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let given = std::env::var("CLAVIGER_RACE_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| clock().as_nanos() as u64);
        println!("CLAVIGER_RACE_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn micros(&mut self, up_to: u64) -> Duration {
        Duration::from_micros(self.below(up_to + 1))
    }

    /// No pause at all in one round of four.
    fn pause(&mut self) -> Duration {
        match self.below(4) {
            0 => Duration::ZERO,
            _ => self.micros(LONGEST_PAUSE),
        }
    }
}

/// The times of one round, after the start of the waiters.
#[derive(Clone, Copy, Debug)]
struct Moment {
    finalize: Duration,
    /// The card's own moment, if it has one.
    event: Option<Duration>,
    /// Whether all waiters are blocked before the time begins.
    settled: bool,
}

impl Moment {
    fn random(random: &mut Random, combination: Combination, number: usize) -> Self {
        if !combination.event {
            let settled = number % 2 == 1;
            let finalize = random.pause();
            return Self {
                finalize,
                event: None,
                settled,
            };
        }
        // A change of the card takes about a third of a millisecond through its server.
        let finalize = FIRST_QUERY + random.pause();
        let event = finalize - random.micros(1000);
        Self {
            finalize,
            event: Some(event),
            settled: false,
        }
    }
}

/// The result of a waiter: the time of its return at C_Finalize, and its number of events before.
struct WaiterOutcome {
    at: Instant,
    events: usize,
}

type Waiting = Vec<JoinHandle<WaiterOutcome>>;

/// Waits until C_Finalize; anything but events before it is a failure.
fn wait_for_finalize(raw: FunctionList) -> WaiterOutcome {
    let mut events = 0;
    loop {
        match raw.wait(0) {
            (CKR_OK, slot) => {
                assert!(slot < 4, "an event of slot {slot}");
                events += 1;
            }
            (code, _) => {
                let at = Instant::now();
                assert_eq!(code, CKR_CRYPTOKI_NOT_INITIALIZED);
                return WaiterOutcome { at, events };
            }
        }
    }
}

/// The waiters of one round, started together. With `settled`, each is already blocked.
fn start_waiters(raw: FunctionList, count: usize, settled: bool) -> Waiting {
    let start = Arc::new(Barrier::new(count + 1));
    let past = Arc::new(AtomicUsize::new(0));
    let (sender, tasks) = mpsc::channel();
    let wait = |_| {
        let (start, past, sender) = (Arc::clone(&start), Arc::clone(&past), sender.clone());
        thread::spawn(move || {
            sender.send(this_task()).unwrap();
            start.wait();
            past.fetch_add(1, Ordering::SeqCst);
            wait_for_finalize(raw)
        })
    };
    let waiting = (0..count).map(wait).collect();
    start.wait();
    if settled {
        // Past the barrier, the one place left to sleep is inside the call.
        while past.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
        tasks
            .iter()
            .take(count)
            .for_each(|task| until_asleep(&task));
    }
    waiting
}

/// One round: when each C_Finalize began, and what became of the waiters.
fn round(
    combination: Combination,
    raw: FunctionList,
    moment: Moment,
    event: impl FnOnce() + Send,
) -> (Vec<Instant>, Vec<WaiterOutcome>) {
    assert_eq!(raw.initialize(combination.flags), CKR_OK);
    let waiting = start_waiters(raw, combination.waiters, moment.settled);
    let begun = thread::scope(|scope| {
        if let Some(pause) = moment.event {
            scope.spawn(move || {
                thread::sleep(pause);
                event();
            });
        }
        thread::sleep(moment.finalize);
        let begun = Instant::now();
        assert_eq!(raw.finalize(), CKR_OK);
        begun
    });
    if !combination.again {
        return (vec![begun], join_all(waiting));
    }
    assert_eq!(raw.initialize(combination.flags), CKR_OK);
    if moment.settled {
        // All waiters were in the generation that has ended, and must return by that alone.
        let outcomes = join_all(waiting);
        assert_eq!(raw.finalize(), CKR_OK);
        return (vec![begun], outcomes);
    }
    // A waiter that enters only now belongs to the new generation, and returns at its C_Finalize.
    leave_late_comers(&waiting);
    let ends = vec![begun, Instant::now()];
    assert_eq!(raw.finalize(), CKR_OK);
    (ends, join_all(waiting))
}

fn join_all(waiting: Waiting) -> Vec<WaiterOutcome> {
    let outcomes = waiting.into_iter().map(|waiter| waiter.join().unwrap());
    outcomes.collect()
}

fn leave_late_comers(waiting: &Waiting) {
    let deadline = Instant::now() + LATE;
    while !waiting.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
        thread::sleep(Duration::from_micros(100));
    }
}

/// What came of the rounds of one combination.
#[derive(Default)]
struct Figures {
    times: Vec<Duration>,
    events: usize,
    /// Waiters that returned at the C_Finalize of the next generation.
    late: usize,
}

impl Figures {
    /// Adds one round: from the start of the C_Finalize that was meant to the return of the last waiter.
    fn add(&mut self, ends: &[Instant], outcomes: &[WaiterOutcome]) {
        let meant = |outcome: &WaiterOutcome| {
            let begun = ends.iter().rev().find(|begun| **begun <= outcome.at);
            *begun.unwrap_or(&ends[0])
        };
        let took = |outcome: &WaiterOutcome| outcome.at.saturating_duration_since(meant(outcome));
        self.times.push(outcomes.iter().map(took).max().unwrap());
        self.events += outcomes.iter().map(|outcome| outcome.events).sum::<usize>();
        self.late += outcomes
            .iter()
            .filter(|outcome| meant(outcome) != ends[0])
            .count();
    }

    fn at(&self, share: f64) -> Duration {
        self.times[((self.times.len() - 1) as f64 * share) as usize]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            times,
            events,
            late,
        } = self;
        let [median, p99, worst] =
            [0.5, 0.99, 1.0].map(|share| self.at(share).as_secs_f64() * 1000.0);
        let rounds = times.len();
        write!(
            f,
            "{rounds:6} {median:8.3} {p99:8.3} {worst:8.3} {events:6} {late:5}"
        )
    }
}

fn prompt() -> Duration {
    match std::env::var_os("CLAVIGER_USB_GUEST") {
        Some(_) => EMULATED,
        None => PROMPT,
    }
}

/// A client that runs combinations.
struct Races<'a> {
    process: &'a ModuleProcess,
    raw: FunctionList,
    random: Random,
    watchdog: Watchdog,
    /// Of each combination.
    rounds: usize,
}

impl<'a> Races<'a> {
    fn new(process: &'a ModuleProcess) -> Self {
        let all = std::env::var("CLAVIGER_ROUNDS")
            .ok()
            .map(|rounds| rounds.parse().unwrap());
        let combinations = services()
            .iter()
            .flat_map(|service| Combination::of(*service))
            .chain(Combination::with_event(ServiceKind::Socket))
            .count();
        println!("{:28} rounds   median      p99 worst/ms events  late", "");
        let raw = FunctionList::load();
        // Resources that stay until the process ends, such as nusb's own thread, exist before the count begins.
        assert_eq!(raw.initialize(OWN_THREADS), CKR_OK);
        assert_eq!(raw.slot_count(false).0, CKR_OK);
        assert_eq!(raw.finalize(), CKR_OK);
        Self {
            process,
            raw,
            random: Random::seeded(),
            watchdog: Watchdog::new(HANG),
            rounds: all.unwrap_or(FEW).div_ceil(combinations),
        }
    }

    /// All rounds must end well; 99 of 100 must be held to [`prompt`]. How many events there were.
    fn run(&mut self, combination: Combination) -> usize {
        let files = open_files();
        let limit = prompt();
        let figures = self.run_once(combination);
        println!("{combination:28} {figures}");
        assert_eq!(left_threads(), Vec::<String>::new(), "{combination}");
        eventually("as many files as before", || open_files() == files);
        figures::hold(
            figures.at(0.99) <= limit,
            &format!("{combination}: one round in 100 took over {limit:?}"),
        );
        let worst = figures.at(1.0);
        figures::hold(
            worst < SHORTEST_WAIT,
            &format!("{combination}: a round took {worst:?}"),
        );
        figures.events
    }

    fn run_once(&mut self, combination: Combination) -> Figures {
        let mut figures = Figures::default();
        for number in 0..self.rounds {
            let moment = Moment::random(&mut self.random, combination, number);
            self.watchdog
                .begin(format!("{combination}, round {number}, {moment:?}"));
            let action = if number.is_multiple_of(2) {
                "remove"
            } else {
                "insert"
            };
            let event = || assert!(self.process.send_command(action).starts_with("ok"));
            let (ends, outcomes) = round(combination, self.raw, moment, event);
            let events = outcomes.iter().map(|outcome| outcome.events).sum::<usize>();
            let most = if combination.event { 2 } else { 0 };
            assert!(
                events <= most,
                "{events} events of a card's two slots, {combination}"
            );
            figures.add(&ends, &outcomes);
        }
        figures.times.sort_unstable();
        self.process.send_command("insert");
        figures
    }
}

/// The services of the rounds. Only one if the fixture's cards are on the USB.
fn services() -> &'static [ServiceKind] {
    match std::env::var_os("CLAVIGER_CARD_FIXTURE") {
        Some(_) => &[ServiceKind::Socket],
        None => &[ServiceKind::Socket, ServiceKind::Pcscd],
    }
}

#[test]
fn every_waiter_is_notified_of_finalize_whatever_the_moment() {
    for &service in services() {
        with_card(service, CardProfile::factory(), |process| {
            let mut races = Races::new(process);
            for combination in Combination::of(service) {
                assert_eq!(races.run(combination), 0, "no card was moved");
            }
        });
    }
}

#[test]
fn a_waiter_has_the_event_or_finalize_when_both_come_at_once() {
    with_card(ServiceKind::Socket, CardProfile::factory(), |process| {
        let mut races = Races::new(process);
        let combinations = Combination::with_event(ServiceKind::Socket);
        let events = combinations
            .into_iter()
            .map(|combination| races.run(combination));
        assert!(events.sum::<usize>() > 0, "no card was ever in time");
    });
}

#[test]
fn concurrent_first_calls_all_see_the_slots() {
    for &service in services() {
        with_card(service, CardProfile::factory(), |_| {
            let raw = FunctionList::load();
            let watchdog = Watchdog::new(HANG);
            for flags in [OWN_THREADS, NO_THREADS] {
                for number in 0..50 {
                    watchdog.begin(format!("{service:?}, flags {flags}, round {number}"));
                    assert_eq!(raw.initialize(flags), CKR_OK);
                    let start = Barrier::new(4);
                    let count = || {
                        start.wait();
                        raw.slot_count(true)
                    };
                    let counts = thread::scope(|scope| {
                        let calls = [(); 4].map(|()| scope.spawn(count));
                        calls.map(|call| call.join().unwrap())
                    });
                    assert_eq!(counts, [(CKR_OK, 2); 4], "flags {flags}, round {number}");
                    assert_eq!(raw.finalize(), CKR_OK);
                }
            }
        });
    }
}
