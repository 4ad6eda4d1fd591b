//! Arguments of one call: mostly what the function asks for, sometimes what it must refuse.

use cryptoki_sys::{
    CK_MECHANISM_TYPE, CK_RV, CKF_DONT_BLOCK, CKF_RW_SESSION, CKF_SERIAL_SESSION, CKM_AES_CTR,
    CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_DES3_CBC, CKM_EC_KEY_PAIR_GEN, CKM_ECDH1_DERIVE, CKM_EDDSA,
    CKM_MD5, CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS_OAEP, CKM_RSA_PKCS_PSS, CKM_SHA256,
    CKM_SHA256_HMAC_GENERAL, CKM_VENDOR_DEFINED, CKR_BUFFER_TOO_SMALL, CKR_OK,
    CKU_CONTEXT_SPECIFIC, CKU_SO, CKU_USER,
};

use super::{
    calls::{Function, Kind},
    memory::{LONGEST, Memory, Use},
    object::{Known, Nature},
    source::Source,
};

const WORD: usize = size_of::<usize>();
/// How many outputs are remembered as inputs of later calls.
const REMEMBERED: usize = 8;
/// Numbers with a story.
const NUMBERS: [usize; 10] = [
    0,
    1,
    2,
    3,
    8,
    0x100,
    0x7FFF_FFFF,
    0x8000_0000,
    usize::MAX - 1,
    usize::MAX,
];
const LENGTHS: [usize; 14] = [0, 1, 15, 16, 20, 24, 32, 48, 51, 64, 128, 256, 300, 4096];

/// Mechanisms that fit no key here, or none at all.
const OTHER_MECHANISMS: &[CK_MECHANISM_TYPE] = &[
    CKM_SHA256,
    CKM_RSA_PKCS_KEY_PAIR_GEN,
    CKM_EC_KEY_PAIR_GEN,
    CKM_DES3_CBC,
    CKM_MD5,
    CKM_AES_KEY_GEN,
    CKM_AES_GCM,
    CKM_RSA_PKCS_OAEP,
    CKM_RSA_PKCS_PSS,
    CKM_ECDH1_DERIVE,
    CKM_EDDSA,
    CKM_SHA256_HMAC_GENERAL,
    CKM_AES_CTR,
    CKM_VENDOR_DEFINED,
];

/// The sources of arguments: the bytes, the memory, and the results of earlier calls.
#[derive(Debug)]
pub(crate) struct ArgumentSource<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) memory: Memory,
    pub(crate) known: Known,
    pub(crate) pin: &'static [u8],
    /// No PIN that a card would count is wrong any more.
    pub(crate) wrong_pin_given: bool,
    remembered: Vec<Vec<u8>>,
    asked: usize,
    user: usize,
    target: Option<(usize, Nature)>,
    input: Option<usize>,
}

/// The arguments of one call, and what to do with its results.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub(crate) words: Vec<usize>,
    results: Vec<Result>,
}

#[derive(Clone, Copy, Debug)]
enum Result {
    Session(usize),
    Object(usize),
    Objects { list: usize, count: usize },
    Slots { list: usize, count: usize },
    Bytes { buffer: Option<usize>, count: usize },
    Input(usize),
}

impl<'a> ArgumentSource<'a> {
    pub(crate) fn new(source: Source<'a>, pin: &'static [u8]) -> Self {
        Self {
            source,
            memory: Memory::new(),
            known: Known::default(),
            pin,
            wrong_pin_given: false,
            remembered: Vec::new(),
            asked: 64,
            user: 0,
            target: None,
            input: None,
        }
    }

    /// Arguments for `function`.
    pub(crate) fn arguments(&mut self, function: &Function) -> Call {
        self.memory.clear();
        (self.target, self.input) = (None, None);
        let mut call = Call::default();
        for kind in function.kinds {
            self.argument(*kind, function.name, &mut call);
        }
        call
    }

    fn argument(&mut self, kind: Kind, function: &str, call: &mut Call) {
        let one = match kind {
            Kind::Session => self.session(),
            Kind::Slot => self.of_these(|known| known.slots.clone()),
            Kind::Object => self.object(),
            Kind::Mechanism => self.mechanism(function),
            Kind::MechanismType => self.mechanism_type(None, function),
            Kind::Struct(len) => self.structure(&vec![0; len], Use::Output).0,
            Kind::NewSession => self.place_for(call, Result::Session),
            Kind::NewObject => self.place_for(call, Result::Object),
            Kind::User => {
                let users = [
                    CKU_USER,
                    CKU_USER,
                    CKU_CONTEXT_SPECIFIC,
                    CKU_SO,
                    3,
                    u64::MAX,
                ];
                self.user = self.source.pick(&users) as usize;
                self.user
            }
            Kind::Label => self.structure(&[b' '; 32], Use::Input).0,
            Kind::Text => {
                let texts: [&[u8]; 4] = [b"PKCS 11\0", b"PKCS 11 \0", b"\0", b"C_Sign\0"];
                let text = self.source.pick(&texts);
                self.structure(text, Use::Input).0
            }
            Kind::Version => {
                let versions = [[3, 2], [3, 0], [2, 40], [9, 9]];
                let version = self.source.pick(&versions);
                self.structure(&version, Use::Input).0
            }
            Kind::SessionFlags => {
                let both = (CKF_SERIAL_SESSION | CKF_RW_SESSION) as usize;
                let serial = CKF_SERIAL_SESSION as usize;
                self.source
                    .pick(&[both, both, serial, serial, 0, usize::MAX])
            }
            Kind::WaitFlags => self.number() | CKF_DONT_BLOCK as usize,
            Kind::Number => self.number(),
            Kind::Bool => self.source.pick(&[0, 1, 1, 0xFF]),
            Kind::Reserved => usize::from(self.source.once_in(8)) * 8,
            Kind::Opaque => self.source.word(),
            Kind::InitializeArgs => self.initialize_args(),
            pair => return self.pair(pair, function, call),
        };
        call.words.push(one);
    }

    /// Arguments that come with a length or a number.
    fn pair(&mut self, kind: Kind, function: &str, call: &mut Call) {
        match kind {
            Kind::Input => {
                let words = self.input_bytes();
                call.words.extend(words);
                call.results.extend(self.input.map(Result::Input));
            }
            Kind::Parameter if !self.source.once_in(8) => call.words.extend([0, 0]),
            Kind::Parameter => call.words.extend(self.input_bytes()),
            Kind::Template => call.words.extend(self.template(function)),
            Kind::Attributes => call.words.extend(self.attributes()),
            Kind::Output => self.output(call),
            Kind::Random => {
                let room = self.length();
                let piece = self.structure(&vec![0; room], Use::Output);
                call.words.extend([piece.0, self.length_of(piece, room)]);
            }
            Kind::List(size) => self.list(size, call),
            Kind::Found => self.found(call),
            Kind::Pin => call.words.extend(self.pin_words()),
            Kind::ImpossiblePin => {
                let piece = self.structure(b"1", Use::Input);
                call.words.extend([piece.0, self.length_of(piece, 1)]);
            }
            single => unreachable!("{single:?} is one argument"),
        }
    }

    /// Bytes past the end of a piece's address, for pointers that are not aligned.
    pub(crate) fn tail(&mut self) -> usize {
        if self.source.once_in(8) {
            self.source.below(8) + 1
        } else {
            0
        }
    }

    /// A pointer to this, seldom null, and the number of the piece.
    pub(crate) fn structure(&mut self, content: &[u8], purpose: Use) -> (usize, Option<usize>) {
        if self.source.once_in(24) {
            return (0, None);
        }
        let tail = self.tail();
        let (pointer, piece) = self.memory.place(content, tail, purpose);
        (pointer as usize, Some(piece))
    }

    /// A length for a piece: never more than it has, unless it is null.
    pub(crate) fn length_of(&mut self, (pointer, _): (usize, Option<usize>), len: usize) -> usize {
        match (pointer, self.source.byte() % 12) {
            (0, _) => self.source.pick(&[0, 1, len, usize::MAX / 24, usize::MAX]),
            (_, 10) => 0,
            (_, 11) => len.saturating_sub(1),
            _ => len,
        }
    }

    fn place_for(&mut self, call: &mut Call, result: fn(usize) -> Result) -> usize {
        let (pointer, piece) = self.structure(&[0; WORD], Use::Output);
        call.results.extend(piece.map(result));
        pointer
    }

    pub(crate) fn number(&mut self) -> usize {
        if self.source.once_in(4) {
            self.source.word()
        } else {
            self.source.pick(&NUMBERS)
        }
    }

    fn of_these(&mut self, valid: impl Fn(&Known) -> Vec<usize>) -> usize {
        let valid = valid(&self.known);
        match self.source.byte() % 24 {
            20 => 0,
            21 => usize::MAX,
            22 => self.number(),
            23 if !self.known.stale.is_empty() => self.source.pick(&self.known.stale),
            _ if valid.is_empty() => 0,
            _ => self.source.pick(&valid),
        }
    }

    /// Mostly the session that was used last, so that what one call begins another goes on with.
    fn session(&mut self) -> usize {
        if let Some(last) = self.known.last_session()
            && !self.source.once_in(12)
        {
            return last;
        }
        let session = self.of_these(|known| known.sessions.clone());
        self.known.use_session(session);
        session
    }

    fn object(&mut self) -> usize {
        if let Some((target, _)) = self.target.take()
            && !self.source.once_in(8)
        {
            return target;
        }
        self.of_these(|known| known.objects.iter().map(|(object, _)| *object).collect())
    }

    fn mechanism(&mut self, function: &str) -> usize {
        if !self.known.objects.is_empty() {
            self.target = Some(self.source.pick(&self.known.objects));
        }
        let nature = self.target.map(|(_, nature)| nature);
        let kind = self.mechanism_type(nature, function);
        let (parameter, len) = self.parameter(kind);
        self.structure(&words(&[kind, parameter, len]), Use::Input)
            .0
    }

    fn mechanism_type(&mut self, nature: Option<Nature>, function: &str) -> usize {
        let nature = match function {
            "C_DigestInit" => Some(Nature::Nothing),
            "C_GenerateKey" => Some(Nature::Birth),
            _ => nature,
        };
        let suited = nature.map_or(&[][..], Nature::mechanisms);
        match self.source.byte() % 8 {
            7 => self.number(),
            6 => self.source.pick(OTHER_MECHANISMS) as usize,
            _ if suited.is_empty() => self.source.pick(OTHER_MECHANISMS) as usize,
            _ => self.source.pick(suited) as usize,
        }
    }

    fn length(&mut self) -> usize {
        match self.source.byte() % 8 {
            7 => self.source.below(LONGEST),
            6 => self.source.below(300),
            _ => self.source.pick(&LENGTHS),
        }
    }

    /// Something to sign, encrypt, verify …: often what an earlier call was given or gave.
    pub(crate) fn content(&mut self) -> Vec<u8> {
        if self.remembered.is_empty() || self.source.once_in(2) {
            let (len, byte) = (self.length(), self.source.byte());
            return vec![byte; len];
        }
        let at = self.source.below(self.remembered.len());
        let mut content = self.remembered[at].clone();
        if self.source.once_in(4) && !content.is_empty() {
            let at = self.source.below(content.len());
            content[at] ^= 1;
        }
        content
    }

    fn input_bytes(&mut self) -> [usize; 2] {
        let content = self.content();
        let piece = self.structure(&content, Use::Input);
        self.input = piece.1;
        [piece.0, self.length_of(piece, content.len())]
    }

    /// Room for bytes: none, too little, enough, or the very bytes of the input.
    fn output(&mut self, call: &mut Call) {
        let room = match self.source.byte() % 8 {
            0 => self.asked.saturating_sub(1),
            1 => self.length(),
            2 => 0,
            _ => self.asked.clamp(32, LONGEST),
        };
        let overlapped = self.input.filter(|_| self.source.once_in(12));
        let (asks, lost) = (self.source.once_in(4), self.source.once_in(24));
        let room = overlapped.map_or(room, |input| self.memory.at(input).1);
        let count = match (asks, lost) {
            (_, true) => None,
            (true, _) => Some(self.number()),
            _ => Some(room),
        };
        let count = count.map(|count| {
            let tail = self.tail();
            self.memory.place(&count.to_ne_bytes(), tail, Use::Free)
        });
        let count_piece = count.map(|(_, piece)| piece);
        let purpose = count_piece.map_or(Use::Input, |count| Use::Counted { count, size: 1 });
        let (pointer, buffer) = match overlapped {
            _ if asks => (0, None),
            Some(input) => {
                self.memory.release(input);
                (self.memory.at(input).0 as usize, Some(input))
            }
            None => {
                let (pointer, piece) = self.memory.place(&vec![0; room], 0, purpose);
                (pointer as usize, Some(piece))
            }
        };
        call.words
            .extend([pointer, count.map_or(0, |(pointer, _)| pointer as usize)]);
        call.results
            .extend(count_piece.map(|count| Result::Bytes { buffer, count }));
    }

    fn list(&mut self, size: usize, call: &mut Call) {
        let room: usize = self.source.pick(&[0, 1, 2, 8, 64]);
        let tail = self.tail();
        let (number, count) = self.memory.place(&room.to_ne_bytes(), tail, Use::Free);
        let purpose = Use::Counted { count, size };
        let asks = self.source.once_in(3);
        let (pointer, piece) = if asks {
            (0, None)
        } else {
            self.structure(&vec![0; room * size], purpose)
        };
        call.words.extend([pointer, number as usize]);
        if size == WORD {
            call.results
                .extend(piece.map(|list| Result::Slots { list, count }));
        }
    }

    fn found(&mut self, call: &mut Call) {
        let room: usize = self.source.pick(&[0, 1, 2, 64]);
        let tail = self.tail();
        let (number, count) = self.memory.place(&room.to_ne_bytes(), tail, Use::Output);
        let piece = self.structure(&vec![0; room * WORD], Use::Counted { count, size: WORD });
        // A count that stays where it was when the search finds nothing says what was there before.
        call.words.extend([
            piece.0,
            if piece.0 == 0 { self.number() } else { room },
            number as usize,
        ]);
        call.results
            .extend(piece.1.map(|list| Result::Objects { list, count }));
    }

    /// The right PIN, one that no card looks at, or once in a sequence a wrong one.
    fn pin_words(&mut self) -> [usize; 2] {
        let countable = self.user != CKU_SO as usize;
        let pin = match self.source.byte() % 12 {
            11 if countable && !self.wrong_pin_given => {
                self.wrong_pin_given = true;
                b"999999".to_vec()
            }
            10 => vec![b'1'; 200],
            9 => b"1".to_vec(),
            _ if !countable => b"1".to_vec(),
            _ => self.pin.to_vec(),
        };
        let piece = self.structure(&pin, Use::Input);
        // One byte less than a long PIN, or than a right one, is a PIN no card looks at either.
        let len = match pin.as_slice() {
            b"999999" => pin.len(),
            _ => self.length_of(piece, pin.len()),
        };
        [piece.0, len]
    }

    fn initialize_args(&mut self) -> usize {
        let callback = usize::from(self.source.once_in(8));
        let other = usize::from(self.source.once_in(8));
        let flags = self.source.pick(&[2, 3, 2, 3, 0, usize::MAX]);
        let reserved = usize::from(self.source.once_in(16));
        let arguments = [callback, other, callback, callback, flags, reserved];
        self.structure(&words(&arguments), Use::Input).0
    }

    /// Keeps the results of a call.
    pub(crate) fn conclude(&mut self, call: &Call, code: CK_RV) -> Vec<usize> {
        let mut born = Vec::new();
        for result in &call.results {
            match *result {
                Result::Session(at) if code == CKR_OK => {
                    self.known.add_session(self.memory.number(at, 0));
                }
                Result::Object(at) if code == CKR_OK => born.push(self.memory.number(at, 0)),
                Result::Objects { list, count } if code == CKR_OK => {
                    born.extend(self.numbers(list, count));
                }
                Result::Slots { list, count } if code == CKR_OK => {
                    let slots = self.numbers(list, count);
                    self.known.learn_slots(&slots);
                }
                Result::Bytes { buffer, count } => self.learn_bytes(buffer, count, code),
                Result::Input(at) if code == CKR_OK => {
                    let content = self.memory.content(at).to_vec();
                    self.remember(content);
                }
                _ => {}
            }
        }
        born
    }

    fn numbers(&self, list: usize, count: usize) -> Vec<usize> {
        let number = |at| self.memory.number(list, at * WORD);
        (0..self.memory.number(count, 0)).map(number).collect()
    }

    fn learn_bytes(&mut self, buffer: Option<usize>, count: usize, code: CK_RV) {
        let said = self.memory.number(count, 0);
        match (code, buffer) {
            (CKR_OK, Some(buffer)) => {
                let content = self.memory.content(buffer).get(..said).map(<[u8]>::to_vec);
                self.remember(content.expect("no more than there is room"));
            }
            (CKR_OK, None) | (CKR_BUFFER_TOO_SMALL, _) => self.asked = said.min(LONGEST),
            _ => {}
        }
    }

    fn remember(&mut self, bytes: Vec<u8>) {
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(bytes);
    }
}

/// Words as they lie in a C structure.
pub(crate) fn words(words: &[usize]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
