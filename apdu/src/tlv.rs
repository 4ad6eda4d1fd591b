//! BER-TLV (ISO 7816-4, 5.2.2), parsed by a strict cursor.
//!
//! Tags and encoding follow `iso7816-tlv`. The parser of that crate copies every value and recurses as deep as the card
//! nests its data. [`Cursor`] reads one level at a time, borrows the values, and never reads past the end.

use iso7816_tlv::ber;

/// A data object does not parse. `offset` counts from the start of the cursor's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlvError {
    /// The bytes end inside a tag, a length or a value.
    #[error("the data object at byte {offset} is truncated")]
    Truncated {
        /// Offset of the object.
        offset: usize,
    },
    /// A tag over three bytes, or one that begins with 00 or FF.
    #[error("the data object at byte {offset} has an invalid tag")]
    BadTag {
        /// Offset of the object.
        offset: usize,
    },
    /// An indefinite length or one over three bytes.
    #[error("the data object at byte {offset} has an invalid length")]
    BadLength {
        /// Offset of the object.
        offset: usize,
    },
    /// The object has another tag than required here, or there is no object.
    #[error("the data object with tag {expected:X} is missing")]
    Unexpected {
        /// The required tag.
        expected: u32,
    },
    /// Bytes after the last object.
    #[error("{len} bytes follow the last data object")]
    Trailing {
        /// The number of bytes.
        len: usize,
    },
}

/// Reads data objects one after the other.
///
/// ```
/// use claviger_apdu::tlv::Cursor;
/// let mut cursor = Cursor::new(&[0x70, 0x02, 0xAA, 0xBB, 0x71, 0x01, 0x00]);
/// assert_eq!(cursor.expect(0x70), Ok(&[0xAA, 0xBB][..]));
/// assert_eq!(cursor.next_object(), Ok(Some((0x71, &[0x00][..]))));
/// assert_eq!(cursor.finish(), Ok(()));
/// ```
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
        }
    }

    /// Returns tag and value of the next object, or `None` at the end.
    ///
    /// # Errors
    /// [`TlvError`] if the next bytes are not a data object.
    pub fn next_object(&mut self) -> Result<Option<(u32, &'a [u8])>, TlvError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let offset = self.offset;
        let (tag, after_tag) = split_tag(self.rest, offset)?;
        let (len, after_len) = split_length(after_tag, offset)?;
        let (value, rest) = after_len
            .split_at_checked(len)
            .ok_or(TlvError::Truncated { offset })?;
        self.offset += self.rest.len() - rest.len();
        self.rest = rest;
        Ok(Some((tag, value)))
    }

    /// Returns the value of the next object, which must have `tag`.
    ///
    /// # Errors
    /// [`TlvError::Unexpected`] for another tag or at the end; any other [`TlvError`] if the object does not parse.
    pub fn expect(&mut self, tag: u32) -> Result<&'a [u8], TlvError> {
        match self.next_object()? {
            Some((found, value)) if found == tag => Ok(value),
            _ => Err(TlvError::Unexpected { expected: tag }),
        }
    }

    /// Checks that no bytes are left.
    ///
    /// # Errors
    /// [`TlvError::Trailing`] if bytes are left.
    pub const fn finish(&self) -> Result<(), TlvError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(TlvError::Trailing {
                len: self.rest.len(),
            })
        }
    }
}

/// Returns the value of the one object that `bytes` consists of.
///
/// # Errors
/// [`TlvError`] if the object has another tag or if bytes follow.
pub fn only(bytes: &[u8], tag: u32) -> Result<&[u8], TlvError> {
    let mut cursor = Cursor::new(bytes);
    let value = cursor.expect(tag)?;
    cursor.finish()?;
    Ok(value)
}

/// Returns the value of the first object with `tag` on this level. All of `bytes` must parse.
///
/// # Errors
/// [`TlvError`] if an object of the level does not parse.
pub fn find(bytes: &[u8], tag: u32) -> Result<Option<&[u8]>, TlvError> {
    let mut cursor = Cursor::new(bytes);
    let mut found = None;
    while let Some((next, value)) = cursor.next_object()? {
        if next == tag && found.is_none() {
            found = Some(value);
        }
    }
    Ok(found)
}

/// Encodes one object with the shortest length field. `tag` is written as given, and `value` is not checked.
///
/// # Panics
/// Never panics for the tags of a standard, which have 1 to 3 bytes.
#[must_use]
pub fn encode(tag: u32, value: &[u8]) -> Vec<u8> {
    let tag_bytes = tag.to_be_bytes();
    let skip = tag_bytes
        .iter()
        .take_while(|byte| **byte == 0)
        .count()
        .min(3);
    let mut object = Vec::with_capacity(value.len() + 8);
    object.extend(tag_bytes.iter().skip(skip));
    let len = value.len().to_be_bytes();
    let significant: Vec<u8> = len.iter().copied().skip_while(|byte| *byte == 0).collect();
    match significant.as_slice() {
        [] => object.push(0),
        [short] if *short < 0x80 => object.push(*short),
        long => {
            object.push(0x80 | u8::try_from(long.len()).unwrap_or(0));
            object.extend(long);
        }
    }
    object.extend(value);
    object
}

/// Splits off a tag of one to three bytes. `iso7816-tlv` decides whether the tag is valid.
fn split_tag(bytes: &[u8], offset: usize) -> Result<(u32, &[u8]), TlvError> {
    let (first, mut rest) = bytes.split_first().ok_or(TlvError::Truncated { offset })?;
    let mut tag = u32::from(*first);
    if first & 0x1F == 0x1F {
        loop {
            let (next, after) = rest.split_first().ok_or(TlvError::Truncated { offset })?;
            if tag > 0xFFFF {
                return Err(TlvError::BadTag { offset });
            }
            tag = tag << 8 | u32::from(*next);
            rest = after;
            if next & 0x80 == 0 {
                break;
            }
        }
    }
    if matches!(first, 0x00 | 0xFF) || ber::Tag::try_from(tag).is_err() {
        return Err(TlvError::BadTag { offset });
    }
    Ok((tag, rest))
}

/// Splits off a definite length of up to three bytes. A longer form than needed is accepted, because real cards send
/// it.
fn split_length(bytes: &[u8], offset: usize) -> Result<(usize, &[u8]), TlvError> {
    let (first, rest) = bytes.split_first().ok_or(TlvError::Truncated { offset })?;
    let count = match first {
        0x00..=0x7F => return Ok((usize::from(*first), rest)),
        0x81..=0x83 => usize::from(first & 0x7F),
        _ => return Err(TlvError::BadLength { offset }),
    };
    let (len, rest) = rest
        .split_at_checked(count)
        .ok_or(TlvError::Truncated { offset })?;
    Ok((
        len.iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte)),
        rest,
    ))
}

/// Parses arbitrary bytes four levels deep. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    fn walk(bytes: &[u8], depth: u8) {
        let mut cursor = Cursor::new(bytes);
        let mut seen = 0;
        while let Ok(Some((tag, value))) = cursor.next_object() {
            seen += value.len();
            let again = encode(tag, value);
            assert_eq!(only(&again, tag), Ok(value), "encoding and parsing agree");
            if depth < 4 {
                walk(value, depth + 1);
            }
        }
        assert!(seen <= bytes.len(), "values never exceed their source");
    }
    walk(bytes, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_one_two_and_three_bytes() {
        let bytes = [0x53, 1, 0xAA, 0x7F, 0x49, 0, 0x5F, 0xC1, 0x05, 2, 1, 2];
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.next_object(), Ok(Some((0x53, &[0xAA][..]))));
        assert_eq!(cursor.next_object(), Ok(Some((0x7F49, &[][..]))));
        assert_eq!(cursor.next_object(), Ok(Some((0x5F_C105, &[1, 2][..]))));
        assert_eq!(cursor.next_object(), Ok(None));
        assert_eq!(cursor.finish(), Ok(()));
    }

    #[test]
    fn a_value_longer_than_its_source_is_refused() {
        assert_eq!(
            only(&[0x53, 0x82, 0xFF, 0xFF, 1], 0x53),
            Err(TlvError::Truncated { offset: 0 })
        );
        assert_eq!(
            only(&[0x53, 0x84, 0, 0, 0, 1, 9], 0x53),
            Err(TlvError::BadLength { offset: 0 })
        );
        assert_eq!(
            only(&[0x53, 0x80, 0, 0], 0x53),
            Err(TlvError::BadLength { offset: 0 })
        );
        assert_eq!(only(&[0x5F], 0x5F), Err(TlvError::Truncated { offset: 0 }));
        assert_eq!(
            only(&[0x5F, 0xFF, 0xFF, 0xFF, 1], 0x5F),
            Err(TlvError::BadTag { offset: 0 })
        );
    }

    #[test]
    fn only_consumes_everything() {
        assert_eq!(
            only(&[0x53, 1, 9, 0], 0x53),
            Err(TlvError::Trailing { len: 1 })
        );
        assert_eq!(
            only(&[0x54, 1, 9], 0x53),
            Err(TlvError::Unexpected { expected: 0x53 })
        );
    }

    #[test]
    fn find_requires_the_whole_level_to_parse() {
        assert_eq!(find(&[0x70, 1, 9, 0x71, 1, 0], 0x71), Ok(Some(&[0][..])));
        assert_eq!(find(&[0x70, 1, 9], 0x71), Ok(None));
        assert_eq!(
            find(&[0x70, 1, 9, 0x71], 0x70),
            Err(TlvError::Truncated { offset: 3 })
        );
    }

    #[test]
    fn lengths_are_encoded_in_their_shortest_form_and_read_in_any() {
        assert_eq!(encode(0x53, &[0; 127])[..2], [0x53, 0x7F]);
        assert_eq!(encode(0x53, &[0; 128])[..3], [0x53, 0x81, 0x80]);
        assert_eq!(
            encode(0x5F_C105, &[0; 256])[..6],
            [0x5F, 0xC1, 0x05, 0x82, 1, 0]
        );
        assert_eq!(only(&[0x53, 0x82, 0, 1, 7], 0x53), Ok(&[7][..]));
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            bytes.extend([0x7C, 0x83, 0x01, 0x00, 0x00]);
        }
        assert_eq!(only(&bytes, 0x7C), Err(TlvError::Truncated { offset: 0 }));
        fuzz(&bytes);
    }
}
