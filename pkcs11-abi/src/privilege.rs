//! The privileges of this process.

/// Returns whether the process is set-uid, set-gid or has file capabilities. Its environment comes from a user with fewer
/// rights and must not be trusted.
pub(crate) fn is_elevated() -> bool {
    // SAFETY: reads a value that the kernel gave the process at its start. Any argument is allowed.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Returns the effective user ID.
pub(crate) fn user() -> u32 {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}
