//! Pairs of TCP ports, reserved among all tests of the machine.

#![allow(clippy::expect_used, reason = "a harness fails loudly")]

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    process,
};

/// The range of ports, below those that the kernel assigns.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_998;

/// A free port and its successor, reserved until dropped.
#[derive(Debug)]
pub(super) struct PortPair {
    first: u16,
    /// An abstract socket. The kernel releases its name even if this process is killed.
    _reservation: UnixListener,
}

impl PortPair {
    pub(super) fn take() -> Self {
        let pairs = (FIRST..LAST).step_by(2);
        let begin = usize::try_from(process::id()).unwrap_or(0) * 8 % pairs.len();
        let mut order = pairs.clone().skip(begin).chain(pairs.take(begin));
        order.find_map(Self::reserve).expect("a free pair of ports")
    }

    pub(super) const fn first(&self) -> u16 {
        self.first
    }

    fn reserve(first: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("claviger-test-port-{first}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        // vpcd listens on all addresses.
        let free = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        (free(first) && free(first + 1)).then_some(Self {
            first,
            _reservation: reservation,
        })
    }
}
