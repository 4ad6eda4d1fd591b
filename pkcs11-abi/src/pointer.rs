//! Checked access to the caller's memory.
//!
//! The function list makes an [`Input`] or [`Output`] from a C parameter, for the length of the call. Making one is unsafe:
//! the caller promises that a pointer that is not null points to the memory that the standard requires. The methods check for
//! null and for the length. They write through raw pointers and never through a reference, so input and output buffers may
//! overlap.

use std::{ffi::CStr, marker::PhantomData};

use claviger_token::{TemplateFault, TokenError};
use cryptoki_sys::{CK_ATTRIBUTE, CK_MECHANISM, CK_ULONG};

use crate::rv::{Failure, ReturnCode};

/// The caller's memory, to read.
#[derive(Clone, Copy)]
pub(crate) struct Input<'call, T> {
    pointer: *const T,
    call: PhantomData<&'call T>,
}

/// The caller's memory, to write, and perhaps to read first.
#[derive(Clone, Copy)]
pub(crate) struct Output<'call, T> {
    pointer: *mut T,
    call: PhantomData<&'call T>,
}

impl<'call, T: Copy> Input<'call, T> {
    /// # Safety
    /// `pointer` is null, or valid for reads of the memory that the function's other parameters describe, until the function
    /// returns.
    pub(crate) const unsafe fn new(pointer: *const T) -> Self {
        Self {
            pointer,
            call: PhantomData,
        }
    }

    pub(crate) const fn is_null(self) -> bool {
        self.pointer.is_null()
    }

    /// Copies the value. It may be unaligned.
    pub(crate) fn get(self) -> Result<T, Failure> {
        if self.pointer.is_null() {
            return Err(ReturnCode::ARGUMENTS_BAD.into());
        }
        // SAFETY: not null, so by the promise of `new` readable; alignment is not assumed.
        Ok(unsafe { self.pointer.read_unaligned() })
    }

    /// Copies `count` values. Null with a count of 0 is an empty list.
    pub(crate) fn list(self, count: CK_ULONG) -> Result<Vec<T>, Failure> {
        let count = checked_count::<T>(count)?;
        if count > 0 && self.pointer.is_null() {
            return Err(ReturnCode::ARGUMENTS_BAD.into());
        }
        let mut list = Vec::new();
        list.try_reserve_exact(count)
            .map_err(|_| ReturnCode::ARGUMENTS_BAD)?;
        for index in 0..count {
            // SAFETY: `index` is within the array the caller promised; alignment is not assumed.
            list.push(unsafe { self.pointer.wrapping_add(index).read_unaligned() });
        }
        Ok(list)
    }
}

impl<'call> Input<'call, u8> {
    /// Returns `len` bytes without copying. With a length of 0, any pointer is an empty slice.
    pub(crate) fn bytes(self, len: CK_ULONG) -> Result<&'call [u8], Failure> {
        let len = checked_count::<u8>(len)?;
        match (self.pointer.is_null(), len) {
            (_, 0) => Ok(&[]),
            (true, _) => Err(ReturnCode::ARGUMENTS_BAD.into()),
            // SAFETY: not null, so by the promise of `new` readable for `len` bytes during the call.
            (false, _) => Ok(unsafe { std::slice::from_raw_parts(self.pointer, len) }),
        }
    }

    /// Returns whether the NUL-terminated string equals `text`. Reads no byte after the first difference.
    pub(crate) fn is_text(self, text: &CStr) -> bool {
        let mut bytes = text.to_bytes_with_nul().iter().enumerate();
        // SAFETY: all bytes before `index` were equal and not NUL, so the string has a byte at `index`.
        let byte = |index| unsafe { self.pointer.wrapping_add(index).read() };
        !self.pointer.is_null() && bytes.all(|(index, expected)| byte(index) == *expected)
    }
}

impl<'call, T: Copy> Output<'call, T> {
    /// # Safety
    /// `pointer` is null, or valid for reads and writes of the memory that the function's other parameters describe, until
    /// the function returns.
    pub(crate) const unsafe fn new(pointer: *mut T) -> Self {
        Self {
            pointer,
            call: PhantomData,
        }
    }

    pub(crate) const fn is_null(self) -> bool {
        self.pointer.is_null()
    }

    /// Returns the same memory as an input.
    pub(crate) const fn as_in(self) -> Input<'call, T> {
        Input {
            pointer: self.pointer,
            call: PhantomData,
        }
    }

    /// Fails for a null pointer. Call this before the work begins.
    pub(crate) fn check(self) -> Result<Self, Failure> {
        if self.pointer.is_null() {
            Err(ReturnCode::ARGUMENTS_BAD.into())
        } else {
            Ok(self)
        }
    }

    /// Writes one value.
    pub(crate) fn write(self, value: T) -> Result<(), Failure> {
        self.put_all(&[value])
    }

    /// Writes `values` one after the other. The caller of this method must have checked that the buffer has room for them.
    pub(crate) fn put_all(self, values: &[T]) -> Result<(), Failure> {
        self.check()?;
        for (index, value) in values.iter().enumerate() {
            // SAFETY: not null, and the caller has compared the room with `values.len()`. Alignment is not assumed.
            unsafe { self.pointer.wrapping_add(index).write_unaligned(*value) };
        }
        Ok(())
    }

    /// Writes output of variable length (PKCS #11 2.40, 5.2). The number of values is always written. Without a buffer,
    /// nothing else is. A buffer that is too small is an error. Otherwise `values` are written too.
    pub(crate) fn write_counted(
        self,
        count: Output<'_, CK_ULONG>,
        values: &[T],
    ) -> Result<(), Failure> {
        match fit(self, count, values.len())? {
            OutputFit::LengthQuery => Ok(()),
            OutputFit::Fits => self.put_all(values),
        }
    }
}

impl<'call> Output<'call, u8> {
    /// Divides `len` bytes into pieces of at most `size`, each with its length. Null with a length of 0 gives no pieces.
    pub(crate) fn pieces(
        self,
        len: CK_ULONG,
        size: usize,
    ) -> Result<impl Iterator<Item = (Self, usize)>, Failure> {
        let len = checked_count::<u8>(len)?;
        if len > 0 {
            self.check()?;
        }
        Ok((0..len).step_by(size).map(move |at| {
            let piece = Self {
                pointer: self.pointer.wrapping_add(at),
                call: PhantomData,
            };
            (piece, size.min(len - at))
        }))
    }
}

/// The two outcomes of [`fit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFit {
    /// The caller wants only the length, which has been written.
    LengthQuery,
    /// The caller wants the value. The buffer has room for it, and the length has been written.
    Fits,
}

impl From<()> for OutputFit {
    /// Converts the result of a function without output.
    fn from((): ()) -> Self {
        Self::Fits
    }
}

/// Compares the size of `buffer` with `needed`. Writes `needed` to `count` in every case.
pub(crate) fn fit<T: Copy>(
    buffer: Output<'_, T>,
    count: Output<'_, CK_ULONG>,
    needed: usize,
) -> Result<OutputFit, Failure> {
    let available = count.as_in().get()?;
    let needed = CK_ULONG::try_from(needed).map_err(|_| ReturnCode::ARGUMENTS_BAD)?;
    count.write(needed)?;
    match (buffer.is_null(), needed <= available) {
        (true, _) => Ok(OutputFit::LengthQuery),
        (false, true) => Ok(OutputFit::Fits),
        (false, false) => Err(ReturnCode::BUFFER_TOO_SMALL.into()),
    }
}

/// Converts a number of elements. Their size in bytes must fit into the address space.
fn checked_count<T>(count: CK_ULONG) -> Result<usize, Failure> {
    usize::try_from(count)
        .ok()
        .filter(|count| {
            count
                .checked_mul(size_of::<T>().max(1))
                .is_some_and(|bytes| isize::try_from(bytes).is_ok())
        })
        .ok_or_else(|| ReturnCode::ARGUMENTS_BAD.into())
}

/// The limit for the length of an attribute. Valid values are shorter, and copying a longer one could exhaust the memory.
const MAX_VALUE: CK_ULONG = 1 << 20;

/// Copies the value of one attribute of a template.
///
/// # Errors
/// ATTRIBUTE_VALUE_INVALID for null with a length, or an impossible length (PKCS #11 3.1, 4.1.1).
pub(crate) fn attribute_bytes(attribute: &CK_ATTRIBUTE) -> Result<Vec<u8>, Failure> {
    let nowhere = attribute.pValue.is_null() && attribute.ulValueLen > 0;
    if nowhere || attribute.ulValueLen > MAX_VALUE {
        return Err(TokenError::Template {
            fault: TemplateFault::ValueInvalid,
            attribute: attribute.type_,
        }
        .into());
    }
    // SAFETY: the attribute was read from a template of the caller. The caller promises its pointer and length.
    let value = unsafe { Input::new(attribute.pValue.cast::<u8>().cast_const()) };
    Ok(value.bytes(attribute.ulValueLen)?.to_vec())
}

/// Copies the parameter bytes of a mechanism.
pub(crate) fn mechanism_parameter(mechanism: &CK_MECHANISM) -> Result<Vec<u8>, Failure> {
    // SAFETY: the mechanism was read from the caller. The caller promises its parameter and length.
    let parameter = unsafe { Input::new(mechanism.pParameter.cast::<u8>().cast_const()) };
    Ok(parameter.bytes(mechanism.ulParameterLen)?.to_vec())
}

/// Copies the parameter of a mechanism as a structure. Returns `None` for another size or for null.
pub(crate) fn parameter_struct<T: Copy>(mechanism: &CK_MECHANISM) -> Option<T> {
    if usize::try_from(mechanism.ulParameterLen) != Ok(size_of::<T>()) {
        return None;
    }
    // SAFETY: as in `mechanism_parameter`. The length equals the size of the structure.
    unsafe { Input::new(mechanism.pParameter.cast::<T>().cast_const()) }
        .get()
        .ok()
}

/// Copies bytes that a parameter's structure points to. Returns `None` for null with a length.
pub(crate) fn nested_bytes(pointer: *mut u8, len: CK_ULONG) -> Option<Vec<u8>> {
    // SAFETY: pointer and length were read from a structure of the caller. The caller promises both.
    let bytes = unsafe { Input::new(pointer.cast_const()) };
    Some(bytes.bytes(len).ok()?.to_vec())
}

/// Returns the output buffer of one attribute.
pub(crate) fn attribute_room<'call>(attribute: &CK_ATTRIBUTE) -> Output<'call, u8> {
    // SAFETY: as in `attribute_bytes`. The caller of this function compares `ulValueLen` before it writes.
    unsafe { Output::new(attribute.pValue.cast::<u8>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T>(result: Result<T, Failure>) -> u64 {
        result.map_or_else(|failure| failure.code(), |_| 0)
    }

    #[test]
    fn null_with_a_length_is_refused_and_null_without_is_empty() {
        // SAFETY: null is allowed.
        let nothing = unsafe { Input::<u8>::new(std::ptr::null()) };
        assert_eq!(nothing.bytes(0).unwrap(), b"");
        assert_eq!(code(nothing.bytes(1)), cryptoki_sys::CKR_ARGUMENTS_BAD);
        assert_eq!(code(nothing.get()), cryptoki_sys::CKR_ARGUMENTS_BAD);
    }

    #[test]
    fn string_is_compared_up_to_its_first_difference() {
        // SAFETY: each byte string ends with NUL, or differs before it ends.
        let is = |bytes: &[u8]| unsafe { Input::new(bytes.as_ptr()) }.is_text(c"PKCS 11");
        assert!(is(b"PKCS 11\0"));
        assert!(!is(b"PKCS 11 \0"));
        assert!(!is(b"PKCS 1\0"));
        assert!(!is(b"Q"));
        // SAFETY: null is allowed.
        assert!(!unsafe { Input::new(std::ptr::null()) }.is_text(c""));
    }

    #[test]
    fn length_past_the_address_space_is_refused_without_reading() {
        let byte = 7u8;
        // SAFETY: the pointer is valid for the one byte that may be read.
        let bytes = unsafe { Input::new(&raw const byte) };
        assert_eq!(
            code(bytes.bytes(CK_ULONG::MAX)),
            cryptoki_sys::CKR_ARGUMENTS_BAD
        );
        // SAFETY: as above; eight times the count overflows before anything is read.
        let words = unsafe { Input::new((&raw const byte).cast::<u64>()) };
        assert_eq!(
            code(words.list(CK_ULONG::MAX / 4)),
            cryptoki_sys::CKR_ARGUMENTS_BAD
        );
    }

    #[test]
    fn small_buffer_stays_unwritten_and_gets_the_length() {
        let mut buffer = [0u8; 4];
        let mut len: CK_ULONG = 2;
        // SAFETY: points to a live local.
        let out = unsafe { Output::new(buffer.as_mut_ptr()) };
        // SAFETY: as above.
        let count = unsafe { Output::new(&raw mut len) };
        assert_eq!(
            code(out.write_counted(count, &[1, 2, 3])),
            cryptoki_sys::CKR_BUFFER_TOO_SMALL
        );
        assert_eq!((len, buffer), (3, [0; 4]));
        len = 4;
        assert_eq!(code(out.write_counted(count, &[1, 2, 3])), 0);
        assert_eq!((len, buffer), (3, [1, 2, 3, 0]));
    }

    #[test]
    fn unaligned_memory_is_read_and_written() {
        let mut memory = [0u8; 17];
        // SAFETY: eight bytes at offset 1 lie within `memory`.
        let odd = unsafe { Output::new(memory.as_mut_ptr().wrapping_add(1).cast::<CK_ULONG>()) };
        odd.write(0x0102_0304).unwrap();
        assert_eq!(odd.as_in().get().unwrap(), 0x0102_0304);
    }
}
