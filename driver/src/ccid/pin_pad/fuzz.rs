//! Checks that hold for every request and every response. It parses the structures as a reader would.

use claviger_apdu::Sent;

use super::{
    Digits, LONGEST, Numbers, Operations, PadQuirks, PinEntry, PinForm, PinPad, PinRequest,
    Purpose, T1Entry, T1Step, Trust,
};
use crate::{
    ccid::{message::SlotError, quirks::Quirks},
    protocol::parameters::ErrorDetection,
};

/// The fields of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Structure<'a> {
    pub(super) timeout: u8,
    /// bmFormatString, bmPINBlockString, bmPINLengthFormat.
    pub(super) places: [u8; 3],
    /// bInsertionOffsetOld and bInsertionOffsetNew.
    pub(super) offsets: Option<[u8; 2]>,
    pub(super) digits: [u8; 2],
    pub(super) confirmation: Option<u8>,
    pub(super) end_of_entry: u8,
    pub(super) number_message: u8,
    pub(super) language: u16,
    pub(super) indexes: &'a [u8],
    pub(super) prologue: [u8; 3],
    pub(super) template: &'a [u8],
}

/// The bytes that are not parsed yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn some(&mut self, count: usize) -> Option<&'a [u8]> {
        let (some, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(some)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.some(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }
}

impl<'a> Structure<'a> {
    /// Parses a structure of CCID, with bPINOperation. A modification has as many indexes as bNumberMessage implies,
    /// or all.
    pub(super) fn of_ccid(data: &'a [u8], all_indexes: bool) -> Option<Self> {
        let mut rest = Rest(data);
        let change = rest.byte()? == 1;
        let timeout = rest.byte()?;
        let indexes = |number| match number {
            _ if !change => 1,
            _ if all_indexes => 3,
            0 => 1,
            1 | 2 => 2,
            _ => 3,
        };
        let structure = Self::fields(&mut rest, timeout, change, indexes, |_| Some(()))?;
        Some(structure)
    }

    /// Parses a structure of PC/SC part 10. ulDataLength must be the length of the rest.
    pub(super) fn of_part10(data: &'a [u8], change: bool) -> Option<Self> {
        let mut rest = Rest(data);
        let [timeout, _] = rest.array()?;
        let indexes = |_| if change { 3 } else { 1 };
        Self::fields(&mut rest, timeout, change, indexes, |rest| {
            let length = u32::from_le_bytes(rest.array()?);
            (usize::try_from(length) == Ok(rest.0.len())).then_some(())
        })
    }

    fn fields(
        rest: &mut Rest<'a>,
        timeout: u8,
        change: bool,
        indexes: impl Fn(u8) -> usize,
        length: impl Fn(&mut Rest<'a>) -> Option<()>,
    ) -> Option<Self> {
        let places = rest.array()?;
        let offsets = if change { Some(rest.array()?) } else { None };
        let digits = rest.array()?;
        let confirmation = if change { Some(rest.byte()?) } else { None };
        let [end_of_entry, number_message] = rest.array()?;
        let language = u16::from_le_bytes(rest.array()?);
        let indexes = rest.some(indexes(number_message))?;
        let prologue = rest.array()?;
        length(rest)?;
        Some(Self {
            timeout,
            places,
            offsets,
            digits,
            confirmation,
            end_of_entry,
            number_message,
            language,
            indexes,
            prologue,
            template: rest.0,
        })
    }
}

/// Makes a request, a reader's quirks and a card's responses from `bytes` and runs the entry, for the fuzz target
/// `pin_pad`. Fourteen bytes are the request and the reader. The responses with their lengths follow.
pub fn fuzz(bytes: &[u8]) {
    let Some((head, responses)) = bytes.split_first_chunk::<14>() else {
        return;
    };
    let [
        a,
        b,
        c,
        d,
        purpose,
        form,
        padding,
        min,
        max,
        timeout,
        low,
        high,
        quirks,
        pad_digits,
    ] = *head;
    let request = PinRequest {
        header: [a, b, c, d],
        purpose: match purpose & 0x07 {
            bits @ 4.. => Purpose::Change {
                old: bits & 2 != 0,
                twice: bits & 1 != 0,
            },
            _ => Purpose::Verify,
        },
        form: match form {
            0xFF => PinForm::Variable,
            block => PinForm::Padded { block, padding },
        },
        digits: Digits { min, max },
        timeout,
        language: u16::from_le_bytes([low, high]),
    };
    let quirks = Quirks {
        pin_pad: true,
        pad: pad_quirks(quirks, pad_digits),
        ..Quirks::default()
    };
    let (verify, modify) = (true, purpose & 0x08 == 0);
    let pad = PinPad::new(Operations { verify, modify }, &quirks, Trust::Table);
    let Ok(pad) = pad else {
        return;
    };
    if let Ok(entry) = pad.entry(&request) {
        check(&request, &quirks.pad, &entry);
        respond(&entry, purpose, responses);
    }
}

/// Sets the quirks from eight bits. A quirk without its own bit shares one.
fn pad_quirks(bits: u8, digits: u8) -> PadQuirks {
    let bit = |at: u8| bits >> at & 1 != 0;
    let (min, max) = (digits >> 4, digits & 0x0F);
    PadQuirks {
        key_only: bit(0),
        no_message: bit(1),
        three_messages: bit(2),
        all_indexes: bit(3),
        blind_change: bit(4),
        swapped: bit(5),
        append: bit(6),
        fixed: bit(7),
        pause: bit(1),
        digits: (min > 0 && min <= max).then_some(Digits { min, max }),
    }
}

/// Checks that the encoded entry matches the request.
fn check(request: &PinRequest, quirks: &PadQuirks, entry: &PinEntry) {
    let change = request.purpose != Purpose::Verify;
    let data = entry.ccid();
    assert!(data.len() <= LONGEST, "{} bytes", data.len());
    let all = quirks.all_indexes || quirks.blind_change;
    let ccid = Structure::of_ccid(&data, all);
    let part10 = entry.part10();
    let part10 = Structure::of_part10(&part10, change);
    let (Some(mut ccid), Some(part10)) = (ccid, part10) else {
        assert!(ccid.is_some() && part10.is_some(), "both can be read");
        return;
    };
    if quirks.swapped {
        ccid.digits.reverse();
    }
    assert_eq!(ccid.template, entry.template(), "the template ends it");
    let [max, min] = ccid.digits;
    assert!(request.digits.min <= min && min <= max && max <= request.digits.max);
    assert!((1..=7).contains(&ccid.end_of_entry), "the XX44 crashes");
    assert_eq!(ccid.template.first_chunk(), Some(&request.header));
    assert_eq!(ccid.timeout, request.timeout);
    assert_eq!(ccid.language, request.language);
    let of_ccid = (ccid.places, ccid.offsets, ccid.digits, ccid.confirmation);
    let of_part10 = (
        part10.places,
        part10.offsets,
        part10.digits,
        part10.confirmation,
    );
    assert_eq!(of_ccid, of_part10, "both structures are equal");
    assert_eq!(ccid.template, part10.template);
}

/// Passes the responses to the entry over T=1. Each is a length and that many bytes. A length of 0 is an error of the
/// reader, and its code follows.
fn respond(entry: &PinEntry, seed: u8, mut responses: &[u8]) {
    let numbers = Numbers {
        send: seed & 0x10 != 0,
        receive: seed & 0x20 != 0,
    };
    let detection = match seed & 0x40 {
        0 => ErrorDetection::Lrc,
        _ => ErrorDetection::Crc,
    };
    let mut exchange = T1Entry::new(entry, numbers, detection);
    assert!(exchange.data().len() <= LONGEST);
    while let [length, rest @ ..] = responses {
        let (given, rest) = rest.split_at(usize::from(*length).max(1).min(rest.len()));
        responses = rest;
        let given = match (length, given) {
            (0, [0, ..]) => Err(SlotError::PinCancelled),
            (0, [1, ..]) => Err(SlotError::PinTimeout),
            (0, _) => Err(SlotError::Parity),
            _ => Ok(given),
        };
        match exchange.receive(given) {
            T1Step::Send { block, .. } => assert!(block.len() <= 6, "an S-block"),
            T1Step::Ended {
                outcome,
                numbers: now,
            } => {
                let unchanged = now == Some(numbers);
                assert_eq!(unchanged, outcome.sent == Sent::No, "the toggle is undone");
                return;
            }
        }
    }
}
