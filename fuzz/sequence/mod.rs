//! Sequences of Cryptoki calls that bytes decide: functions, arguments and, where it is a scripted one, the card.
//!
//! Whatever the calls, they come back with a code, write nothing beside what they were given, nothing at all when they
//! fail, and no more than they say; a call that failed has left the objects as they were; and C_Finalize, C_Initialize
//! and a new session work as ever. No token gets more than one wrong PIN before the right one.

mod afterwards;
mod arguments;
mod calls;
mod mechanism;
mod memory;
mod object;
mod reader;
mod source;
mod template;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicPtr, Ordering},
};

use cryptoki_sys::*;

use arguments::ArgumentSource;
use calls::{FUNCTIONS, Function};
use object::Nature;
pub(crate) use reader::{Reader, split};
use source::Source;

/// Most calls of one sequence.
const MOST: usize = 150;
/// How many of the last calls a failure names.
const NAMED: usize = 12;

/// How often each function gave each code.
pub(crate) type Reached = BTreeMap<(&'static str, CK_RV), u64>;

/// The running function, for the report of a crash.
pub(crate) static UNDER_WAY: AtomicPtr<&'static str> = AtomicPtr::new(std::ptr::null_mut());

/// The module, and how its cards are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceFixture {
    pub(crate) list: &'static CK_FUNCTION_LIST_3_2,
    /// The PIN of the user.
    pub(crate) pin: &'static [u8],
    /// Whether the card has its keys, so that its signatures can be verified.
    pub(crate) signs: bool,
}

/// Plays a scripted card and the calls after it, then a card that answers as cards do.
///
/// ```text
/// | length of the script, 2 bytes | script | calls |
/// ```
pub(crate) fn scripted(
    fixture: SequenceFixture,
    reader: &Reader,
    sound: &[u8],
    bytes: &[u8],
) -> Reached {
    let (script, calls) = split(bytes, 2).unwrap_or_default();
    reader.insert(script);
    let reached = play(fixture, calls);
    reader.insert(sound);
    fixture.works_afterwards();
    reader.settle().expect("the reader's server ends");
    reached
}

/// Plays the calls that `bytes` say; the module is finalized before and after.
pub(crate) fn play(fixture: SequenceFixture, bytes: &[u8]) -> Reached {
    let mut play = SequenceRun {
        fixture,
        desk: ArgumentSource::new(Source::new(bytes), fixture.pin),
        next: Vec::new(),
        log: Vec::new(),
        reached: Reached::new(),
    };
    play.prelude();
    for _ in 0..MOST {
        if play.desk.source.is_empty() {
            break;
        }
        play.step();
    }
    fixture.finalize();
    play.reached
}

struct SequenceRun<'a> {
    fixture: SequenceFixture,
    desk: ArgumentSource<'a>,
    /// What would sensibly come next.
    next: Vec<&'static Function>,
    log: Vec<String>,
    reached: Reached,
}

impl SequenceRun<'_> {
    /// A sequence mostly begins as applications do.
    fn prelude(&mut self) {
        let skipped = usize::from(self.desk.source.byte() % 16);
        let names = [
            "C_Initialize",
            "C_GetSlotList",
            "C_OpenSession",
            "C_Login",
            "C_CreateObject",
            "C_CreateObject",
            "C_FindObjectsInit",
            "C_FindObjects",
            "C_FindObjectsFinal",
        ];
        for (at, name) in names.into_iter().enumerate() {
            if at != skipped {
                self.call(Function::named(name));
            }
        }
    }

    fn step(&mut self) {
        let follows = !self.next.is_empty() && !self.desk.source.once_in(5);
        let function = if follows {
            self.desk.source.pick(&self.next)
        } else {
            self.any_function()
        };
        self.call(function);
    }

    /// Any function; those that begin something more often, those that end everything less.
    fn any_function(&mut self) -> &'static Function {
        const ENDS: [&str; 5] = [
            "C_Finalize",
            "C_CloseSession",
            "C_CloseAllSessions",
            "C_Logout",
            "C_DestroyObject",
        ];
        let begins = self.desk.source.once_in(2);
        let spared = !self.desk.source.once_in(4);
        let wanted = |function: &&'static Function| {
            let ends = ENDS.contains(&function.name);
            (!begins || function.name.ends_with("Init")) && !(spared && ends)
        };
        let among: Vec<&'static Function> = FUNCTIONS.iter().filter(wanted).collect();
        self.desk.source.pick(&among)
    }

    fn call(&mut self, function: &'static Function) {
        let call = self.desk.arguments(function);
        let before = self.objects_before(function);
        UNDER_WAY.store((&raw const function.name).cast_mut(), Ordering::Relaxed);
        let code = function.call(self.fixture.list, &call.words);
        self.note(function, &call.words, code);
        let fault = self
            .desk
            .memory
            .fault(code == CKR_OK, code == CKR_BUFFER_TOO_SMALL);
        self.hold(fault.as_deref());
        *self.reached.entry((function.name, code)).or_default() += 1;
        if let Some(before) = before.filter(|_| code != CKR_OK) {
            let after = self.objects_before(function);
            let changed = after.is_some_and(|after| after != before);
            self.hold(changed.then_some("a call that failed has changed the objects"));
        }
        let born = self.desk.conclude(&call, code);
        for object in born {
            self.learn(object);
        }
        self.learn_end(function, &call.words, code);
    }

    fn note(&mut self, function: &Function, words: &[usize], code: CK_RV) {
        let words: Vec<String> = words.iter().map(|word| format!("{word:X}")).collect();
        let line = format!("{}({}) = {code:X}", function.name, words.join(", "));
        if std::env::var_os("CLAVIGER_SEQUENCE_TRACE").is_some() {
            eprintln!("{line}");
        }
        self.log.push(line);
        let internal = code == CKR_GENERAL_ERROR;
        self.hold(internal.then_some("an internal error"));
    }

    fn hold(&self, fault: Option<&str>) {
        if let Some(fault) = fault {
            let from = self.log.len().saturating_sub(NAMED);
            panic!("{fault}, in the last of\n{}", self.log[from..].join("\n"));
        }
    }

    /// The objects of the token, where the call makes or changes one and says so by its code alone.
    fn objects_before(&self, function: &Function) -> Option<Vec<Vec<u8>>> {
        const MAKERS: [&str; 7] = [
            "C_CreateObject",
            "C_CopyObject",
            "C_DestroyObject",
            "C_SetAttributeValue",
            "C_GenerateKey",
            "C_UnwrapKey",
            "C_DeriveKey",
        ];
        // The scripted card may answer otherwise at each search.
        let asks = self.fixture.signs && MAKERS.contains(&function.name);
        let slot = self.desk.known.slots.first().filter(|_| asks)?;
        self.fixture.census(*slot)
    }

    fn learn(&mut self, object: usize) {
        if let Some(session) = self.desk.known.last_session() {
            let (class, key_type) = self.fixture.nature(session, object);
            self.desk
                .known
                .add_object(object, Nature::of(class, key_type));
        }
    }

    fn learn_end(&mut self, function: &'static Function, words: &[usize], code: CK_RV) {
        let known = &mut self.desk.known;
        match (function.name, code) {
            ("C_Finalize", CKR_OK) => {
                known.forget();
                self.next = vec![Function::named("C_Initialize")];
            }
            ("C_Initialize", CKR_OK) => self.next = vec![Function::named("C_GetSlotList")],
            ("C_GetSlotList", CKR_OK) if known.sessions.is_empty() => {
                self.next = vec![Function::named("C_OpenSession")];
            }
            ("C_CloseSession", CKR_OK) => {
                known.sessions.retain(|session| *session != words[0]);
                known.stale.push(words[0]);
                self.next = vec![Function::named("C_OpenSession")];
            }
            ("C_CloseAllSessions", CKR_OK) => {
                known.stale.append(&mut known.sessions);
                self.next = vec![Function::named("C_OpenSession")];
            }
            // Its card has left.
            (_, CKR_SESSION_HANDLE_INVALID) if known.sessions.contains(&words[0]) => {
                known.sessions.retain(|session| *session != words[0]);
                self.next = vec![Function::named("C_OpenSession")];
            }
            (_, CKR_CRYPTOKI_NOT_INITIALIZED) => self.next = vec![Function::named("C_Initialize")],
            ("C_OpenSession", CKR_OK) => {
                self.next = vec![
                    Function::named("C_Login"),
                    Function::named("C_FindObjectsInit"),
                ];
            }
            (_, CKR_OK | CKR_BUFFER_TOO_SMALL | CKR_USER_NOT_LOGGED_IN) => {
                self.next = function.followers();
            }
            _ if self.desk.source.once_in(3) => self.next.clear(),
            _ => {}
        }
    }
}
