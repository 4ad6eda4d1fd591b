//! Whether this process runs with rights its caller does not have.

/// True in a set-uid, set-gid or file-capability process: its environment is the caller's, not to be trusted.
pub(crate) fn is_elevated() -> bool {
    // SAFETY: reads a value the kernel gave the process at its start; any number is allowed.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whose rights this process has.
pub(crate) fn user() -> u32 {
    // SAFETY: asks the kernel for a number, and cannot fail.
    unsafe { libc::geteuid() }
}
