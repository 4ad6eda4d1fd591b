//! Queries the state of a reader's first slot repeatedly, and prints how long each query takes.
//!
//! ```sh
//! usb_echo [--nusb|--rusb] NODE INTERFACE BULK_OUT BULK_IN [COUNT]
//! usb_echo --rusb /dev/bus/usb/001/004 0 02 82 1000
//! ```
//!
//! Endpoint addresses are in hexadecimal. The program ends while a transfer is pending, and fails if a descriptor
//! stays open.

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

use claviger_apdu::Secret;
use claviger_driver::usb::host::{
    open::{UsbLibrary, open},
    transfer::{Completion, EndpointAddress, EndpointQueue},
};
use rustix::event::{PollFd, Timespec};

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of the receive buffer, a multiple of every packet size.
const BUFFER_SIZE: usize = 1024;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let library = match arguments.first().map(String::as_str) {
        Some("--nusb") => UsbLibrary::Nusb,
        _ => UsbLibrary::Rusb,
    };
    arguments.retain(|argument| !argument.starts_with("--"));
    let (reader, count) = match arguments.as_slice() {
        [node, interface, out, r#in] => ((node, interface, out, r#in), 100),
        [node, interface, out, r#in, count] => ((node, interface, out, r#in), count.parse()?),
        _ => return Err("usb_echo [--nusb|--rusb] NODE INTERFACE BULK_OUT BULK_IN [COUNT]".into()),
    };
    let (node, interface, out, r#in) = reader;
    let endpoint = |text: &str| u8::from_str_radix(text, 16).map(EndpointAddress);
    let pair = [endpoint(out)?, endpoint(r#in)?];
    // The first use of a USB library opens descriptors that stay open.
    run(Path::new(node), interface.parse()?, library, pair, 1)?;
    let before = open_files()?;
    let mut times = run(Path::new(node), interface.parse()?, library, pair, count)?;
    times.sort();
    if let (Some(least), Some(median), Some(most)) =
        (times.first(), times.get(times.len() / 2), times.last())
    {
        println!(
            "{library:?}: {count} exchanges, median {median:?}, least {least:?}, most {most:?}"
        );
    }
    match open_files()? {
        after if after == before => Ok(()),
        after => Err(format!("{before} descriptors before, {after} after").into()),
    }
}

fn open_files() -> Result<usize, Failure> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Returns the times of `count` exchanges.
fn run(
    node: &Path,
    interface: u8,
    library: UsbLibrary,
    pair: [EndpointAddress; 2],
    count: usize,
) -> Result<Vec<Duration>, Failure> {
    let claimed = open(node, interface, library)?;
    let mut queue = claimed.open_queue(&pair)?;
    let mut times = Vec::with_capacity(count);
    for sequence in (0..=u8::MAX).cycle().take(count) {
        let begun = Instant::now();
        exchange(&mut *queue, pair, sequence)?;
        times.push(begun.elapsed());
    }
    let [_, r#in] = pair;
    queue.submit_in(r#in, BUFFER_SIZE);
    Ok(times)
}

/// Sends GetSlotStatus and receives its response. The transfer for the response is queued first (CCID 1.1, 6.1.3 and
/// 6.2.2).
fn exchange(
    queue: &mut dyn EndpointQueue,
    [out, r#in]: [EndpointAddress; 2],
    sequence: u8,
) -> Result<(), Failure> {
    let message = [0x65, 0, 0, 0, 0, 0, sequence, 0, 0, 0];
    queue.submit_in(r#in, BUFFER_SIZE);
    queue.submit_out(out, Secret::copy_from(&message));
    let deadline = Instant::now() + EXCHANGE_TIMEOUT;
    let (mut sent, mut response) = (false, None);
    while !sent || response.is_none() {
        let done = next(queue, deadline)?;
        done.result
            .map_err(|error| format!("{:?}: {error}", done.endpoint))?;
        if done.endpoint == r#in {
            response = Some(done.buffer);
        } else {
            sent = true;
        }
    }
    match response.as_ref().map(Secret::expose) {
        Some([0x81, _, _, _, _, _, received, ..]) if *received == sequence => Ok(()),
        other => Err(format!("not the response to command {sequence}: {other:02X?}").into()),
    }
}

fn next(queue: &mut dyn EndpointQueue, deadline: Instant) -> Result<Completion, Failure> {
    loop {
        if let Some(done) = queue.next_completion() {
            return Ok(done);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no response within {EXCHANGE_TIMEOUT:?}").into());
        }
        let descriptors = queue.poll_fds();
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        rustix::event::poll(&mut polled, Some(&Timespec::try_from(left)?))?;
    }
}
