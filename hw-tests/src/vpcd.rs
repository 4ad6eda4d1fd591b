//! The card side of vsmartcard's virtual reader: makes a [`Reader`]'s card available to pcscd.
//!
//! vpcd listens at a TCP port. It reports a card while a connection to that port is open.
//!
//! ```text
//! | length, 2 bytes, big endian | one APDU, or 00 power off, 01 power on, 02 reset, 04 answer to reset |
//! ```

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use claviger_driver::socket::frame::Refusal;

use crate::reader::{CardUser, Reader, Stop};

/// Response to a frame while the card has no power. The card does not get the frame.
const NO_DIAGNOSIS: [u8; 2] = [0x6F, 0x00];
/// Interval between attempts to connect to vpcd.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Keeps a connection to vpcd while the card is present, until dropped.
#[derive(Debug)]
pub struct VpcdClient {
    reader: Reader,
    line: Arc<VpcdConnection>,
    watcher: u64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct VpcdConnection {
    port: u16,
    stop: Stop,
    /// The open connection, so that other threads can shut it down.
    stream: Mutex<Option<TcpStream>>,
}

impl VpcdClient {
    /// Connects the card of `reader` to the vpcd at `port` of this host. Retries until vpcd listens.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(port: u16, reader: &Reader) -> io::Result<Self> {
        let line = Arc::new(VpcdConnection {
            port,
            stop: Stop::default(),
            stream: Mutex::default(),
        });
        let (running, source) = (line.clone(), reader.clone());
        let thread = std::thread::Builder::new()
            .name("vpcd-card".into())
            .spawn(move || running.run(&source))?;
        let closing = line.clone();
        let watcher = reader.watch(move |presence| {
            if !presence.present {
                closing.shut_down();
            }
        });
        Ok(Self {
            reader: reader.clone(),
            line,
            watcher,
            thread: Some(thread),
        })
    }

    /// The port of vpcd.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.line.port
    }
}

impl Drop for VpcdClient {
    fn drop(&mut self) {
        self.reader.unwatch(self.watcher);
        self.reader.stop(&self.line.stop);
        self.line.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl VpcdConnection {
    fn run(&self, reader: &Reader) {
        while reader.wait_for_card(&self.stop) {
            let ended = self.serve(reader);
            self.shut_down();
            if ended.is_err() {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }

    /// Serves one insertion of the card, over one connection.
    fn serve(&self, reader: &Reader) -> io::Result<()> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        let mut user = CardUser::new(reader, self.stop.clone(), stream.try_clone()?.into());
        // The card may have been removed before the connection could be shut down.
        if self.stop.is_set() || user.attach().is_err() {
            return Ok(());
        }
        let mut channel = Channel(stream);
        let mut has_power = true;
        loop {
            let message = channel.receive()?;
            has_power = match message.as_slice() {
                [0] => false,
                [1 | 2] => true,
                _ => has_power,
            };
            match message.as_slice() {
                [0] => user.power_off(),
                [1] => user.power_on(),
                [2] => user.warm_reset(),
                [4] => channel.send(reader.atr())?,
                // A real reader would report a failed exchange. vpcd knows only a response or a removed card.
                _ if !has_power => channel.send(&NO_DIAGNOSIS)?,
                frame => match transmit(&mut user, frame) {
                    Ok(answer) => channel.send(&answer)?,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn shut_down(&self) {
        if let Some(stream) = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Sends a frame. A reset by the test is not reported, like a reset by bad contacts: the frame reaches a card without state.
fn transmit(user: &mut CardUser, frame: &[u8]) -> Result<Vec<u8>, Refusal> {
    match user.transmit(frame) {
        Err(Refusal::CardReset) => {
            user.attach()?;
            user.transmit(frame)
        }
        done => done,
    }
}

struct Channel(TcpStream);

impl Channel {
    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 2];
        self.read(&mut length)?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        self.read(&mut message)?;
        Ok(message)
    }

    /// Reads with TCP_QUICKACK. vpcd sends length and message in two segments. Nagle's algorithm delays the second by 40 ms
    /// unless the first is acknowledged at once. The kernel resets the option, so it is set each time.
    fn read(&mut self, into: &mut [u8]) -> io::Result<()> {
        rustix::net::sockopt::set_tcp_quickack(&self.0, true)?;
        self.0.read_exact(into)
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let len = u16::try_from(message.len()).map_err(io::Error::other)?;
        self.0.write_all(&[&len.to_be_bytes(), message].concat())
    }
}
