//! The card side of vsmartcard's virtual reader: puts a [`Reader`]'s card into pcscd.
//!
//! vpcd listens at a TCP port; a card is in its reader as long as a connection to that port is open.
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

/// What stands for the failure of a frame to a card without power. The card does not see the frame.
const NO_DIAGNOSIS: [u8; 2] = [0x6F, 0x00];
/// Pause before the next try to reach a vpcd that does not listen.
const RETRY: Duration = Duration::from_millis(20);

/// Keeps the reader's card in vpcd's reader whenever it is present; until dropped.
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
    /// The open connection, so that it can be cut from outside.
    stream: Mutex<Option<TcpStream>>,
}

impl VpcdClient {
    /// Puts the card of `reader` into the vpcd that listens at `port` of this host, now or as soon as it does.
    ///
    /// # Errors
    /// When the thread cannot be started.
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
        let cutting = line.clone();
        let watcher = reader.watch(move |presence| {
            if !presence.present {
                cutting.cut();
            }
        });
        Ok(Self {
            reader: reader.clone(),
            line,
            watcher,
            thread: Some(thread),
        })
    }

    /// Where the vpcd listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.line.port
    }
}

impl Drop for VpcdClient {
    fn drop(&mut self) {
        self.reader.unwatch(self.watcher);
        self.reader.stop(&self.line.stop);
        self.line.cut();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl VpcdConnection {
    fn run(&self, reader: &Reader) {
        while reader.wait_for_card(&self.stop) {
            let ended = self.serve(reader);
            self.cut();
            if ended.is_err() {
                std::thread::sleep(RETRY);
            }
        }
    }

    /// One insertion of the card, from connection to cut.
    fn serve(&self, reader: &Reader) -> io::Result<()> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_nodelay(true)?;
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
        let mut user = CardUser::new(reader, self.stop.clone(), stream.try_clone()?.into());
        // The card may have gone before there was a connection to cut.
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
                // A reader fails the exchange; vpcd knows nothing between an answer and a card that is gone.
                _ if !has_power => channel.send(&NO_DIAGNOSIS)?,
                frame => match transmit(&mut user, frame) {
                    Ok(answer) => channel.send(&answer)?,
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    fn cut(&self) {
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

/// A reset by the test goes unnoticed here, as one by bad contacts would: the frame meets a card that forgot.
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

    /// vpcd sends length and message in two segments; unless the first is acknowledged at once, Nagle's
    /// algorithm holds the second back for 40 ms. The kernel forgets the option, so it is set each time.
    fn read(&mut self, into: &mut [u8]) -> io::Result<()> {
        rustix::net::sockopt::set_tcp_quickack(&self.0, true)?;
        self.0.read_exact(into)
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let len = u16::try_from(message.len()).map_err(io::Error::other)?;
        self.0.write_all(&[&len.to_be_bytes(), message].concat())
    }
}
