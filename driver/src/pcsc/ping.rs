//! Asks whether pcscd answers at all, without entering libpcsclite, which would wait for it for ever.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::wait::ready;

/// `CMD_VERSION` of pcscd's protocol, unchanged since pcsc-lite 1.6: a header of size and command, then major and
/// minor version and a result, each 32 bits in the machine's own order. Every pcscd answers it, be it with no.
const CMD_VERSION: [u32; 5] = [12, 0x11, 4, 4, 0];

/// Whether the pcscd at `socket` answers within `patience`. One that is not there counts as answering: who
/// connects is told so at once.
pub(super) fn answers(socket: &Path, patience: Duration) -> bool {
    match ask(socket, Instant::now() + patience) {
        Ok(answered) => answered,
        // The queue of connections is full: nobody takes them.
        Err(rustix::io::Errno::AGAIN) => false,
        Err(_) => true,
    }
}

fn ask(path: &Path, until: Instant) -> Result<bool, rustix::io::Errno> {
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
    ready(&socket, PollFlags::IN, until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        path::PathBuf,
    };

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ping-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn a_server_that_takes_no_connections_does_not_answer() {
        let path = path("frozen");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(!answers(&path, Duration::from_millis(20)));
    }

    #[test]
    fn a_server_that_is_not_there_is_no_reason_to_wait() {
        assert!(answers(&path("absent"), Duration::from_secs(10)));
    }

    #[test]
    fn a_server_that_answers_answers() {
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
            assert!(answers(&path, Duration::from_secs(10)));
        });
    }
}
