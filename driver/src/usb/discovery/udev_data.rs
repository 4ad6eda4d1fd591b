//! Reads udev's data of a device in `/run/udev/data`: lines of a letter, a colon and a value, `E:` for properties.
//!
//! A rule that sets `PCSCLITE_IGNORE` makes pcscd ignore a device.

/// Bytes of a file that are read; udev writes some hundred.
pub(crate) const MAX_FILE: u64 = 1 << 16;
/// Lines of it.
const MAX_LINES: usize = 2048;
/// The property, as a rule of `70-claviger.rules` sets it.
const KEY: &[u8] = b"PCSCLITE_IGNORE";
const YES: &[u8] = b"1";

/// Returns whether a udev rule makes pcscd ignore the device. The last of several settings counts.
#[must_use]
pub fn is_ignored_by_pcscd(data: &[u8]) -> bool {
    let lines = data.split(|byte| *byte == b'\n').take(MAX_LINES);
    lines.filter_map(value).last() == Some(YES)
}

/// Returns the value of the property, if the line holds it.
fn value(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(b"E:")?
        .strip_prefix(KEY)?
        .strip_prefix(b"=")
}

/// Reads arbitrary bytes; for the fuzz target beside this file.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let line = [b"E:", KEY, b"=", YES].concat();
    let is_there = bytes.windows(line.len()).any(|part| part == line);
    assert!(
        !is_ignored_by_pcscd(bytes) || is_there,
        "said of no such line"
    );
    if bytes.iter().filter(|byte| **byte == b'\n').count() < MAX_LINES - 1 {
        assert!(is_ignored_by_pcscd(&[bytes, b"\n", &line].concat()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &[u8] =
        b"N:bus/usb/003/007\nI:8411312\nE:ID_MODEL=Nitrokey_3\nE:ID_SMARTCARD_READER=1\n\
        E:PCSCLITE_IGNORE=1\nG:uaccess\nQ:uaccess\nV:1\n";

    #[test]
    fn pcsclite_ignore_of_1_marks_a_device() {
        assert!(is_ignored_by_pcscd(TOKEN));
        assert!(is_ignored_by_pcscd(b"E:PCSCLITE_IGNORE=1"), "no line end");
    }

    #[test]
    fn device_without_pcsclite_ignore_of_1_is_not_marked() {
        for data in [
            &b""[..],
            b"E:ID_MODEL=Nitrokey_3\n",
            b"E:PCSCLITE_IGNORE=0\n",
            b"E:PCSCLITE_IGNORE=\n",
            b"E:PCSCLITE_IGNORE=11\n",
            b"E:PCSCLITE_IGNORED=1\n",
            b"E:ID_MODEL=E:PCSCLITE_IGNORE=1\n",
            b"G:PCSCLITE_IGNORE=1\n",
            b"PCSCLITE_IGNORE=1\n",
        ] {
            assert!(!is_ignored_by_pcscd(data), "{}", data.escape_ascii());
        }
    }

    #[test]
    fn last_of_two_pcsclite_ignore_marks_counts() {
        assert!(!is_ignored_by_pcscd(
            b"E:PCSCLITE_IGNORE=1\nE:PCSCLITE_IGNORE=0\n"
        ));
        assert!(is_ignored_by_pcscd(
            b"E:PCSCLITE_IGNORE=0\nE:PCSCLITE_IGNORE=1\n"
        ));
    }
}
