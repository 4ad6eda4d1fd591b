//! Prints the readers and every change: `cargo run -p claviger-driver --example watch [SOCKET...]`. Without a socket,
//! it prints the readers of pcscd.

use std::path::PathBuf;

use claviger_driver::{
    Backend, Presence, ReaderSnapshot, pcsc::PcscBackend, socket::SocketBackend,
};

fn main() {
    let sockets: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut watch = if sockets.is_empty() {
        PcscBackend::new(true).watch()
    } else {
        SocketBackend::new(sockets).watch()
    };
    while let Ok(readers) = watch.next_snapshot() {
        print(&readers);
    }
}

fn print(readers: &ReaderSnapshot) {
    println!("{} readers", readers.readers.len());
    for reader in &readers.readers {
        let card = match &reader.presence {
            Presence::Empty => "empty".to_owned(),
            Presence::Card(atr) => format!("card {atr}"),
            Presence::Mute => "a card without a valid answer to reset".to_owned(),
        };
        println!("  {}: {card}, {} changes", reader.name, reader.change_count);
    }
    if let Some(error) = &readers.error {
        println!("  {error}");
    }
}
