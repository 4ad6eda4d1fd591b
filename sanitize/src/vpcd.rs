//! The card in pcscd's virtual reader: there as long as a connection to vpcd's port is open.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    time::Duration,
};

use crate::card::{ATR, Card};

/// Puts the card in for `present` and takes it out for `absent`, until the process ends.
pub(crate) fn serve(port: u16, present: Duration, absent: Duration) {
    std::thread::spawn(move || {
        loop {
            // A vpcd that does not listen, or has had enough, is tried again like a card taken out.
            let _ = insert(port, present);
            std::thread::sleep(absent);
        }
    });
}

fn insert(port: u16, present: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    let cut = stream.try_clone()?;
    std::thread::spawn(move || {
        std::thread::sleep(present);
        cut.shutdown(Shutdown::Both)
    });
    let mut card = Card::default();
    loop {
        match receive(&mut stream)?.as_slice() {
            // Power off, power on, reset.
            [0..=2] => card = Card::default(),
            [4] => send(&mut stream, &ATR)?,
            frame => send(&mut stream, &card.answer(frame))?,
        }
    }
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    read(stream, &mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    read(stream, &mut message)?;
    Ok(message)
}

/// Without quick acknowledgements each message takes 40 ms; the kernel forgets the option.
fn read(stream: &mut TcpStream, into: &mut [u8]) -> io::Result<()> {
    rustix::net::sockopt::set_tcp_quickack(&*stream, true)?;
    stream.read_exact(into)
}

fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}
