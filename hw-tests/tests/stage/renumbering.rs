//! A way to pcscd on which the first reader can have another number, as one that was unplugged and came back may.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use claviger_hw_tests::{
    control::{self, Controlled},
    pcscd::SOCKET_VARIABLE,
    rig::Rig,
};

/// The first reader's name ends with the one, or with the other.
const NUMBERS: [&[u8; 7]; 2] = [b"0 00 00", b"0 01 00"];

/// Where [`renumber`] and [`restart`] are heard; set in the client's process only.
const CONTROL: &str = "CLAVIGER_TEST_RENUMBERING";

/// Has the client reach pcscd this way. It takes a process that is not the client's, whose sockets the module knows.
pub fn interpose(rig: &Rig, client: &mut Command) {
    let folder = rig.folder().join("between");
    fs::create_dir(&folder).unwrap();
    let between = Renumbering {
        path: folder.join("pcscd.comm"),
        shared: Arc::new(Shared {
            pcscd: rig.socket_path(),
            renumbered: AtomicBool::new(false),
            open: Mutex::default(),
        }),
    };
    client
        .env(SOCKET_VARIABLE, &between.path)
        .env(CONTROL, folder.join("control"));
    between.listen();
    let (end, _) = mpsc::channel();
    control::listen(&folder.join("control"), between, end).unwrap();
}

/// From now on pcscd has given the reader another number; nobody is told.
pub fn renumber() {
    say("renumber");
}

/// Closes all connections and listens anew, as a pcscd that restarts.
pub fn restart() {
    say("restart");
}

fn say(line: &str) {
    let control = PathBuf::from(env::var_os(CONTROL).unwrap());
    super::say_to(&control, line);
}

/// Passes on what clients and pcscd say to each other.
struct Renumbering {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    pcscd: PathBuf,
    renumbered: AtomicBool,
    open: Mutex<Vec<UnixStream>>,
}

impl Controlled for Renumbering {
    fn obey(&self, line: &str) -> String {
        match line {
            "renumber" => drop(self.shared.renumbered.fetch_xor(true, Ordering::SeqCst)),
            "restart" => self.restart(),
            _ => return format!("error {line:?}"),
        }
        "ok".to_owned()
    }
}

impl Renumbering {
    fn restart(&self) {
        fs::remove_file(&self.path).unwrap();
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.listen();
    }

    fn listen(&self) {
        // One whose path is gone hears of nobody any more.
        let listener = UnixListener::bind(&self.path).unwrap();
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Without pcscd the client finds its connection closed.
                let _ = Shared::connect(&shared, client);
            }
        });
    }
}

impl Shared {
    fn connect(this: &Arc<Self>, client: UnixStream) -> io::Result<()> {
        let pcscd = UnixStream::connect(&this.pcscd)?;
        let both = [client.try_clone()?, pcscd.try_clone()?];
        this.open.lock().unwrap().extend(both);
        let [told, asked] = NUMBERS;
        this.pass_on(pcscd.try_clone()?, client.try_clone()?, told, asked);
        this.pass_on(client, pcscd, asked, told);
        Ok(())
    }

    /// Copies `from` to `into`; one number becomes the other.
    fn pass_on(
        self: &Arc<Self>,
        mut from: UnixStream,
        mut into: UnixStream,
        number: &'static [u8; 7],
        other: &'static [u8; 7],
    ) {
        let shared = Arc::clone(self);
        thread::spawn(move || {
            // Longer than any message of theirs, each of which is written at once.
            let mut buffer = vec![0; 1 << 17];
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                let message = &mut buffer[..len];
                if shared.renumbered.load(Ordering::SeqCst) {
                    replace(message, number, other);
                }
                if into.write_all(message).is_err() {
                    break;
                }
            }
            let _ = into.shutdown(Shutdown::Both);
        });
    }
}

fn replace(message: &mut [u8], number: &[u8; 7], other: &[u8; 7]) {
    for at in 0..message.len().saturating_sub(number.len()) {
        let part = &mut message[at..at + number.len()];
        if part == number {
            part.copy_from_slice(other);
        }
    }
}
