//! From some moment on, the kernel ends the process when it makes another thread, or refuses it.

use std::{io, mem};

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// Another thread ends the process. For all threads there are.
///
/// # Errors
/// Where the kernel, or what contains this process, has no seccomp.
pub fn forbid() -> io::Result<()> {
    instead_of_a_thread(KILL)
}

/// Another thread is refused, as where a limit of threads is reached.
///
/// # Errors
/// As [`forbid`].
pub fn refuse() -> io::Result<()> {
    instead_of_a_thread(libc::SECCOMP_RET_ERRNO | libc::EAGAIN.cast_unsigned())
}

fn instead_of_a_thread(verdict: u32) -> io::Result<()> {
    let mut filter = [
        load(mem::offset_of!(libc::seccomp_data, nr)),
        on(libc::SYS_clone),
        end(verdict),
        on(libc::SYS_clone3),
        end(verdict),
        end(ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: sets a flag of this process.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: the program is copied.
    done(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    })
}

fn done(code: libc::c_long) -> io::Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn load(offset: usize) -> libc::sock_filter {
    let code = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    instruction(code, 0, offset as u32)
}

/// Goes on to the next instruction for this system call, else over it.
fn on(call: libc::c_long) -> libc::sock_filter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    instruction(code, 1, call as u32)
}

fn end(verdict: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, verdict)
}

fn instruction(code: u32, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}
