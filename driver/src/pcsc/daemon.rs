//! Where pcscd is reached, and whether it answers at all. libpcsclite is not asked: it would wait for an answer for ever.

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

/// Where libpcsclite looks for pcscd unless `PCSCLITE_CSOCK_NAME` says otherwise.
const SOCKET: &str = "/run/pcscd/pcscd.comm";
/// `CMD_VERSION` of pcscd's protocol, unchanged since pcsc-lite 1.6: a header of size and command, then major and
/// minor version and a result, each 32 bits in the machine's own order. Every pcscd answers it, be it with no.
const CMD_VERSION: [u32; 5] = [12, 0x11, 4, 4, 0];

/// Where pcscd is reached; the bytes of the variable as they are, for it may be anything.
pub(super) fn socket() -> PathBuf {
    let socket = std::env::var_os("PCSCLITE_CSOCK_NAME").map(OsString::into_vec);
    PathBuf::from(OsString::from_vec(socket.unwrap_or_else(|| SOCKET.into())))
}

/// Whether the pcscd at `socket` answers within `patience`. One that is not there counts as answering: who
/// connects is told so at once.
pub(super) fn is_responsive(socket: &Path, patience: Duration) -> bool {
    match query_version(socket, Instant::now() + patience) {
        Ok(answered) => answered,
        // The queue of connections is full: nobody takes them.
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
    let question: Vec<u8> = CMD_VERSION
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    rustix::net::send(&socket, &question, SendFlags::NOSIGNAL)?;
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
                let mut question = [0; 20];
                client.read_exact(&mut question).unwrap();
                assert_eq!(question[4..8], 0x11_u32.to_ne_bytes(), "CMD_VERSION");
                client.write_all(&question[8..]).unwrap();
            });
            assert!(is_responsive(&path, Duration::from_secs(10)));
        });
    }
}
