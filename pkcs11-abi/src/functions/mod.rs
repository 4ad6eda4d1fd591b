//! The functions of Cryptoki, one file for each chapter of the standard. Their C entry points are in `function_list`.

pub(crate) mod administration;
pub(crate) mod cipher;
pub(crate) mod digest;
pub(crate) mod dual;
pub(crate) mod general;
pub(crate) mod key;
pub(crate) mod message;
pub(crate) mod object;
mod operation;
pub(crate) mod random;
pub(crate) mod session;
pub(crate) mod sign;
pub(crate) mod slot_token;
mod template;
pub(crate) mod unsupported;
pub(crate) mod verify;

/// Returns a blank-padded field of `N` bytes. Longer text is truncated between characters (PKCS #11 2.40, 3.1).
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let mut end = text.len().min(N);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in field.iter_mut().zip(text.bytes().take(end)) {
        *to = from;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::padded;

    #[test]
    fn text_fields_are_blank_padded_and_truncated_between_characters() {
        assert_eq!(&padded::<4>("ab"), b"ab  ");
        assert_eq!(&padded::<4>("abcdef"), b"abcd");
        assert_eq!(&padded::<4>("abcé"), b"abc ");
    }
}
