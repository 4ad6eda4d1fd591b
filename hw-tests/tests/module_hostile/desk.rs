//! Calls by the names of functions, each argument in memory of its own.

use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_RV, CK_TRUE,
    CK_ULONG, CKA_CLASS, CKA_DECRYPT, CKA_DERIVE, CKA_ENCRYPT, CKA_KEY_TYPE, CKA_SIGN, CKA_TOKEN,
    CKA_UNWRAP, CKA_VALUE, CKA_VERIFY, CKA_WRAP, CKK_AES, CKK_GENERIC_SECRET, CKO_DATA,
    CKO_SECRET_KEY, CKR_BUFFER_TOO_SMALL, CKR_GENERAL_ERROR, CKR_OK,
};

use crate::{
    Bench,
    calls::Function,
    memory::{Memory, Use},
};

pub const HUGE: usize = usize::MAX;
const WORD: usize = size_of::<usize>();

/// An attribute: its value may be anywhere.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Bytes(&'a [u8]),
    Word(CK_ULONG),
    /// Pointer and length as they are.
    Raw(usize, usize),
}

pub type Entry<'a> = (CK_ATTRIBUTE_TYPE, Value<'a>);

/// What is given to a function: one word or two.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// As it is.
    Word(usize),
    /// Where these bytes are.
    In(&'a [u8]),
    /// Where these bytes are, at an odd address.
    Odd(&'a [u8]),
    /// Where these bytes are, and their number.
    Bytes(&'a [u8]),
    /// A mechanism with this parameter, none when it is empty.
    Mechanism(CK_MECHANISM_TYPE, &'a [u8]),
    /// A mechanism whose parameter is a pointer and a length as they are.
    Bare(CK_MECHANISM_TYPE, usize, usize),
    /// Attributes and their number.
    Template(&'a [Entry<'a>]),
    /// The same, all at odd addresses.
    OddTemplate(&'a [Entry<'a>]),
    /// Room for so many bytes, and where their number is.
    Out(usize),
    /// No buffer, and where the number goes.
    Asked,
    /// Where the handle of a new object goes.
    Handle,
}

pub const NULL: Arg<'static> = Arg::Word(0);

/// What a call said.
#[derive(Debug)]
pub struct Told {
    pub code: CK_RV,
    /// What was written, as far as was said.
    pub output: Vec<u8>,
    /// The number that was told.
    pub len: usize,
    pub handle: CK_OBJECT_HANDLE,
}

pub struct Desk<'a> {
    pub bench: &'a Bench<'a>,
    pub memory: Memory,
}

#[derive(Default)]
struct Places {
    out: Option<usize>,
    count: Option<usize>,
    handle: Option<usize>,
}

pub fn words(words: &[usize]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// CK_TRUE as a value.
pub const YES: Value<'static> = Value::Bytes(&[CK_TRUE]);
/// CK_FALSE as a value.
pub const NO: Value<'static> = Value::Bytes(&[0]);

impl<'a> Desk<'a> {
    pub fn new(bench: &'a Bench<'a>) -> Self {
        Self {
            bench,
            memory: Memory::new(),
        }
    }

    fn attribute(&mut self, (kind, value): &Entry<'_>, tail: usize) -> [usize; 3] {
        let bytes = match value {
            Value::Raw(pointer, len) => return [*kind as usize, *pointer, *len],
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Word(word) => word.to_ne_bytes().to_vec(),
        };
        let (pointer, _) = self.memory.place(&bytes, tail, Use::Input);
        [*kind as usize, pointer as usize, bytes.len()]
    }

    fn template(&mut self, entries: &[Entry<'_>], tail: usize) -> [usize; 2] {
        let list: Vec<usize> = entries
            .iter()
            .flat_map(|entry| self.attribute(entry, tail))
            .collect();
        let (pointer, _) = self.memory.place(&words(&list), tail, Use::Input);
        [pointer as usize, entries.len()]
    }

    fn input(&mut self, bytes: &[u8], tail: usize) -> usize {
        self.memory.place(bytes, tail, Use::Input).0 as usize
    }

    fn mechanism(&mut self, kind: CK_MECHANISM_TYPE, parameter: &[u8]) -> usize {
        let pointer = match parameter {
            [] => 0,
            parameter => self.input(parameter, 0),
        };
        self.input(&words(&[kind as usize, pointer, parameter.len()]), 0)
    }

    fn output(&mut self, room: Option<usize>, places: &mut Places) -> [usize; 2] {
        let said = room.unwrap_or(HUGE);
        let (len, count) = self.memory.place(&said.to_ne_bytes(), 1, Use::Free);
        places.count = Some(count);
        let buffer = room.map(|room| {
            let purpose = Use::Counted { count, size: 1 };
            let (pointer, piece) = self.memory.place(&vec![0; room], 0, purpose);
            places.out = Some(piece);
            pointer as usize
        });
        [buffer.unwrap_or(0), len as usize]
    }

    /// Calls a function and looks at the memory around what it was given.
    #[track_caller]
    pub fn call(&mut self, name: &str, arguments: &[Arg<'_>]) -> Told {
        self.memory.clear();
        let (mut list, mut places) = (Vec::new(), Places::default());
        for argument in arguments {
            match *argument {
                Arg::Word(word) => list.push(word),
                Arg::In(bytes) => list.push(self.input(bytes, 0)),
                Arg::Odd(bytes) => list.push(self.input(bytes, 1)),
                Arg::Bytes(bytes) => list.extend([self.input(bytes, 0), bytes.len()]),
                Arg::Mechanism(kind, parameter) => list.push(self.mechanism(kind, parameter)),
                Arg::Bare(kind, pointer, len) => {
                    list.push(self.input(&words(&[kind as usize, pointer, len]), 0));
                }
                Arg::Template(entries) => list.extend(self.template(entries, 0)),
                Arg::OddTemplate(entries) => list.extend(self.template(entries, 1)),
                Arg::Out(room) => list.extend(self.output(Some(room), &mut places)),
                Arg::Asked => list.extend(self.output(None, &mut places)),
                Arg::Handle => {
                    let (pointer, piece) = self.memory.place(&[0; WORD], 1, Use::Output);
                    places.handle = Some(piece);
                    list.push(pointer as usize);
                }
            }
        }
        let told = self.bare(name, &list);
        self.told(told, &places)
    }

    /// Calls a function with words; what they point to has been placed since [`Memory::clear`].
    #[track_caller]
    pub fn bare(&mut self, name: &str, list: &[usize]) -> CK_RV {
        let code = Function::named(name).call(self.bench.raw.list(), list);
        assert_ne!(code, CKR_GENERAL_ERROR, "{name}: an internal error");
        let fault = self
            .memory
            .fault(code == CKR_OK, code == CKR_BUFFER_TOO_SMALL);
        assert_eq!(fault, None, "{name} = {code:#X}");
        code
    }

    fn told(&self, code: CK_RV, places: &Places) -> Told {
        let number = |piece: Option<usize>| piece.map_or(0, |piece| self.memory.number(piece, 0));
        let len = number(places.count);
        let output = places
            .out
            .filter(|_| code == CKR_OK)
            .map(|piece| self.memory.content(piece)[..len].to_vec());
        Told {
            code,
            output: output.unwrap_or_default(),
            len,
            handle: number(places.handle) as CK_OBJECT_HANDLE,
        }
    }

    /// A call that must be answered with `code`.
    #[track_caller]
    pub fn expect(&mut self, code: CK_RV, name: &str, what: &str, arguments: &[Arg<'_>]) {
        let told = self.call(name, arguments).code;
        assert_eq!(told, code, "{name}, {what}: {told:#X}, not {code:#X}");
    }

    /// A call that must succeed.
    #[track_caller]
    pub fn done(&mut self, name: &str, arguments: &[Arg<'_>]) -> Told {
        let told = self.call(name, arguments);
        assert_eq!(told.code, CKR_OK, "{name}: {:#X}", told.code);
        told
    }

    /// A secret key of the session that may do everything its type can.
    #[track_caller]
    pub fn secret(&mut self, session: Arg<'_>, key_type: CK_ULONG) -> Arg<'static> {
        let aes = [CKA_ENCRYPT, CKA_DECRYPT, CKA_WRAP, CKA_UNWRAP];
        let can: &[CK_ATTRIBUTE_TYPE] = match key_type {
            CKK_AES => &aes,
            _ => &[CKA_SIGN, CKA_VERIFY, CKA_DERIVE],
        };
        let mut entries = secret_key(key_type);
        entries.push((CKA_VALUE, Value::Bytes(&[0x42; 16])));
        entries.extend(can.iter().map(|kind| (*kind, YES)));
        let made = self.done(
            "C_CreateObject",
            &[session, Arg::Template(&entries), Arg::Handle],
        );
        Arg::Word(made.handle as usize)
    }

    #[track_caller]
    pub fn aes(&mut self, session: Arg<'_>) -> Arg<'static> {
        self.secret(session, CKK_AES)
    }

    #[track_caller]
    pub fn generic(&mut self, session: Arg<'_>) -> Arg<'static> {
        self.secret(session, CKK_GENERIC_SECRET)
    }

    /// A data object of the session.
    #[track_caller]
    pub fn data(&mut self, session: Arg<'_>) -> Arg<'static> {
        let made = self.done(
            "C_CreateObject",
            &[session, Arg::Template(&DATA), Arg::Handle],
        );
        Arg::Word(made.handle as usize)
    }
}

pub const DATA: [Entry<'static>; 3] = [
    (CKA_CLASS, Value::Word(CKO_DATA)),
    (CKA_TOKEN, NO),
    (CKA_VALUE, Value::Bytes(b"content")),
];

/// Class and type of a secret key.
pub fn secret_key<'a>(key_type: CK_ULONG) -> Vec<Entry<'a>> {
    let class: CK_OBJECT_CLASS = CKO_SECRET_KEY;
    vec![
        (CKA_CLASS, Value::Word(class)),
        (CKA_KEY_TYPE, Value::Word(key_type)),
    ]
}
