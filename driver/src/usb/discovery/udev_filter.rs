//! Makes the kernel drop udev messages about other subsystems, so that they wake no thread.
//!
//! A classic BPF program on the socket, as libudev uses it, compares the hash of the subsystem, which udev puts into the header
//! of each message.

use std::{
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SO_ATTACH_FILTER, SOL_SOCKET,
    c_ushort, sock_filter, sock_fprog, socklen_t,
};
use rustix::io::Errno;

/// The offset and the value of the magic number in udev's header.
const MAGIC: (u32, u32) = (8, 0xFEED_CAFE);
/// The offset of the subsystem's hash, and the hash of `usb`: MurmurHash2 with seed 0.
const SUBSYSTEM: (u32, u32) = (24, 0x0577_C5E5);

/// Lets messages about the USB pass, and all messages of the kernel.
pub(super) fn only_usb(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut program = [
        load(MAGIC.0),
        unless(MAGIC.1, 3), // a message of the kernel passes
        load(SUBSYSTEM.0),
        when(SUBSYSTEM.1, 1), // one about the USB passes
        accept_bytes(0),
        accept_bytes(u32::MAX),
    ];
    attach(socket, &mut program)
}

/// Takes four bytes of the message, most significant first; one without them is dropped.
fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, (0, 0), offset)
}

/// Skips so many instructions if the bytes are those.
fn when(bytes: u32, skip: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, (skip, 0), bytes)
}

/// Skips so many instructions if the bytes are others.
fn unless(bytes: u32, skip: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_JEQ | BPF_K, (0, skip), bytes)
}

/// Ends with so many bytes of the message.
fn accept_bytes(bytes: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, (0, 0), bytes)
}

fn instruction(code: u32, (jt, jf): (u8, u8), k: u32) -> sock_filter {
    let code = c_ushort::try_from(code).unwrap_or(0);
    sock_filter { code, jt, jf, k }
}

fn attach(socket: BorrowedFd<'_>, program: &mut [sock_filter]) -> Result<(), Errno> {
    let program = sock_fprog {
        len: c_ushort::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    let length = socklen_t::try_from(size_of::<sock_fprog>()).unwrap_or(0);
    // SAFETY: the descriptor is open as long as it is borrowed; the kernel reads `length` bytes of a sock_fprog, and the
    // instructions it points to, which live until the end of this function; it keeps neither.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_SOCKET,
            SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    if done == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd as _, unix::net::UnixDatagram};

    use super::*;

    /// The beginning of a message of udev, as it was seen on a machine, with this hash of the subsystem.
    fn header(hash: [u8; 4]) -> Vec<u8> {
        let mut header = b"libudev\0\xFE\xED\xCA\xFE\x28\0\0\0\x28\0\0\0\xD5\x03\0\0".to_vec();
        header.extend(hash);
        header.extend([0; 12]);
        header
    }

    #[test]
    fn kernel_accepts_the_udev_socket_filter() {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::RAW,
            Some(rustix::net::netlink::KOBJECT_UEVENT),
        )
        .unwrap();
        assert_eq!(only_usb(socket.as_fd()), Ok(()));
    }

    #[test]
    fn usb_and_kernel_messages_pass_the_filter_and_others_do_not() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        only_usb(ours.as_fd()).unwrap();
        let tty = header([0x8A, 0xFA, 0x90, 0xC8]);
        let usb = header([0x05, 0x77, 0xC5, 0xE5]);
        let kernel = b"add@/devices/usb3/3-1\0ACTION=add\0".to_vec();
        for message in [&tty, &usb, &tty, &kernel, &tty, &b"short".to_vec()] {
            theirs.send(message).unwrap();
        }
        let mut buffer = [0; 256];
        for passed in [usb, kernel] {
            let length = ours.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], passed);
        }
        assert!(ours.recv(&mut buffer).is_err(), "nothing else has come");
    }
}
