//! The sanitizer in this program, and its options.

use std::ffi::CStr;

/// A sanitizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Address,
    Thread,
}

/// The exit code of a process with something to report.
pub(crate) const REPORTED: i32 = 66;

impl Tool {
    /// The one this program was built with.
    pub(crate) fn of_this_program() -> Option<Self> {
        if find(c"__tsan_acquire").is_some() {
            return Some(Self::Thread);
        }
        find(c"__asan_region_is_poisoned").map(|_| Self::Address)
    }

    /// The environment variable with its options, and what they are here.
    pub(crate) fn options(self, suppressions: Option<&str>) -> (&'static str, String) {
        let (variable, own) = match self {
            Self::Address => (
                "ASAN_OPTIONS",
                "detect_leaks=1:detect_stack_use_after_return=1",
            ),
            // The past it keeps, so that a report shows the other side's stack too.
            Self::Thread => ("TSAN_OPTIONS", "history_size=4"),
        };
        let mut options = format!("exitcode={REPORTED}:{own}");
        if let Some(file) = suppressions.filter(|_| self == Self::Thread) {
            options += &format!(":suppressions={file}:print_suppressions=1");
        }
        (variable, options)
    }
}

/// Bytes that are allocated now, where a sanitizer counts them.
pub(crate) fn allocated() -> Option<usize> {
    type Count = extern "C" fn() -> usize;
    let found = find(c"__sanitizer_get_current_allocated_bytes")?;
    // SAFETY: the function of this name has this type in every sanitizer.
    let count = unsafe { std::mem::transmute::<*mut libc::c_void, Count>(found) };
    Some(count())
}

fn find(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: looks a name up among those of the loaded libraries.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}
