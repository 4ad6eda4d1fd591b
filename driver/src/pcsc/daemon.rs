//! The path of pcscd's socket, and a check whether pcscd is responsive. The check does not use libpcsclite, which
//! would wait for a response for ever.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::wait::wait_one;

/// The socket of pcscd unless `PCSCLITE_CSOCK_NAME` is set.
const SOCKET: &str = "/run/pcscd/pcscd.comm";
/// `CMD_VERSION` of pcscd's protocol, unchanged since pcsc-lite 1.6. The header has size and command. The body has
/// the major version, the minor version and a result. Each is 32 bits in the machine's byte order. Every pcscd
/// responds to it, even if it rejects the version.
const CMD_VERSION: [u32; 5] = [12, 0x11, 4, 4, 0];

/// Returns the path of pcscd's socket. The value of the variable need not be UTF-8.
pub(super) fn socket() -> PathBuf {
    let socket = std::env::var_os("PCSCLITE_CSOCK_NAME").map(OsString::into_vec);
    PathBuf::from(OsString::from_vec(socket.unwrap_or_else(|| SOCKET.into())))
}

/// Returns whether the pcscd at `socket` responds within `timeout`. An absent pcscd counts as responsive, because a
/// connection to it fails at once.
pub(super) fn is_responsive(socket: &Path, timeout: Duration) -> bool {
    match query_version(socket, Instant::now() + timeout) {
        Ok(is_responsive) => is_responsive,
        // The queue of connections is full, because pcscd does not accept them.
        Err(rustix::io::Errno::AGAIN) => false,
        Err(_) => true,
    }
}

fn query_version(path: &Path, deadline: Instant) -> Result<bool, rustix::io::Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let request: Vec<u8> = CMD_VERSION
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    rustix::net::send(&socket, &request, SendFlags::NOSIGNAL)?;
    wait_one(&socket, PollFlags::IN, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
    };

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ping-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn daemon_that_accepts_no_connections_is_unresponsive() {
        let path = path("frozen");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(!is_responsive(&path, Duration::from_millis(20)));
    }

    #[test]
    fn absent_daemon_counts_as_responsive() {
        assert!(is_responsive(&path("absent"), Duration::from_secs(10)));
    }

    #[test]
    fn daemon_that_returns_its_version_is_responsive() {
        let path = path("alive");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let mut request = [0; 20];
                client.read_exact(&mut request).unwrap();
                assert_eq!(request[4..8], 0x11_u32.to_ne_bytes(), "CMD_VERSION");
                client.write_all(&request[8..]).unwrap();
            });
            assert!(is_responsive(&path, Duration::from_secs(10)));
        });
    }
}
