//! The test double of a USB device behaves as a device on a bus does, so that what is proved with it is proved of one.

use std::{thread, time::Duration};

use claviger_apdu::Secret;
use rustix::event::{PollFd, Timespec};

use super::{ABORT, IN, NOTIFY, OUT, all, exchange, of, pipes};
use crate::usb::host::{
    fake::{DeviceMessage, EndpointLayout, Event, FakeDevice, Fault},
    transfer::{Completion, EndpointAddress, EndpointQueue, OpenError, TransferError},
};

/// A device that repeats what it is sent.
fn parrot() -> FakeDevice {
    FakeDevice::new(EndpointLayout::default(), |transfer: &[u8]| {
        vec![DeviceMessage::Bulk(transfer.to_vec())]
    })
}

/// Returns whether a descriptor is ready now, or within a time that only a defect exceeds.
fn ready(pipes: &dyn EndpointQueue, within: Duration) -> bool {
    let descriptors = pipes.poll_fds();
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    let limit = Timespec::try_from(within).unwrap();
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0
}

#[test]
fn response_ends_with_a_short_packet_or_an_empty_one() {
    let device = parrot();
    let mut pipes = pipes(&device);
    for length in [1, 63, 64, 65, 128, 1000] {
        let message = vec![7; length];
        assert_eq!(exchange(&mut *pipes, &message), Some(message), "{length}");
        assert_eq!(pipes.pending(IN), 0);
    }
}

#[test]
fn cancelled_transfer_gives_the_data_of_a_device_that_omits_the_zlp() {
    let layout = EndpointLayout {
        zlp: false,
        ..EndpointLayout::default()
    };
    let device = FakeDevice::new(layout, |transfer: &[u8]| {
        vec![DeviceMessage::Bulk(transfer.to_vec())]
    });
    let mut pipes = pipes(&device);
    assert_eq!(exchange(&mut *pipes, &[7; 64]), None);
    assert_eq!(pipes.pending(IN), 1);
    pipes.cancel(IN);
    let done = of(&mut *pipes, IN).unwrap();
    assert_eq!(done.result, Err(TransferError::Cancelled));
    assert_eq!((done.transferred, done.buffer.expose()), (64, &[7; 64][..]));
}

#[test]
fn response_longer_than_its_buffer_continues_in_the_next_transfer() {
    let mut pipes = pipes(&parrot());
    pipes.submit_in(IN, 64);
    pipes.submit_out(OUT, Secret::copy_from(&[9; 100]));
    assert_eq!(of(&mut *pipes, IN).unwrap().transferred, 64);
    pipes.submit_in(IN, 64);
    assert_eq!(of(&mut *pipes, IN).unwrap().transferred, 36);
}

#[test]
fn unread_response_is_read_by_the_next_transfer() {
    let device = parrot();
    let mut pipes = pipes(&device);
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    assert!(of(&mut *pipes, OUT).unwrap().result.is_ok());
    assert_eq!(exchange(&mut *pipes, &[2]), Some(vec![1]));
}

#[test]
fn fake_device_refuses_what_a_bus_would_refuse() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.open_queue(&[OUT, IN]).unwrap();
    assert!(interface.open_queue(&[NOTIFY]).is_ok());
    assert!(interface.open_queue(&[IN]).is_err(), "it has an owner");
    assert!(interface.open_queue(&[EndpointAddress(0x81)]).is_err());
    pipes.submit_in(IN, 65);
    pipes.submit_in(NOTIFY, 64);
    pipes.submit_in(OUT, 64);
    let refused = all(&mut *pipes);
    assert_eq!(refused.len(), 3);
    let failed = |one: &Completion| matches!(one.result, Err(TransferError::Fault(_)));
    assert!(refused.iter().all(failed));
    assert!(matches!(device.claim(), Err(OpenError::Busy(_))));
}

#[test]
fn fake_queue_is_ready_from_the_first_completion_until_none_is_left() {
    let device = parrot();
    let mut pipes = pipes(&device);
    pipes.submit_in(NOTIFY, 64);
    assert!(!ready(&*pipes, Duration::ZERO));
    let sender = device.clone();
    let other = thread::spawn(move || sender.send(DeviceMessage::Notification(vec![0x50, 3])));
    assert!(ready(&*pipes, Duration::from_secs(60)));
    other.join().unwrap();
    assert_eq!(all(&mut *pipes).len(), 1);
    assert!(!ready(&*pipes, Duration::ZERO));
}

#[test]
fn dropped_queue_ends_its_transfers_and_the_claim_lasts_until_its_last_owner() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.open_queue(&[IN]).unwrap();
    pipes.submit_in(IN, 64);
    drop(interface);
    assert!(device.claimed() && device.queues() == 1);
    drop(pipes);
    assert!(!device.claimed() && device.queues() == 0);
    let events = device.events();
    assert_eq!(events.last(), Some(&Event::Released));
    assert!(events.contains(&Event::Completed(IN, 0, Err(TransferError::Cancelled))));
    assert!(device.claim().is_ok());
}

#[test]
fn unplugged_device_ends_its_transfers_and_refuses_claims() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.open_queue(&[IN, NOTIFY, OUT]).unwrap();
    pipes.submit_in(IN, 64);
    pipes.submit_in(NOTIFY, 64);
    device.leave();
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    let done = all(&mut *pipes);
    assert_eq!(done.len(), 3);
    assert!(
        done.iter()
            .all(|one| one.result == Err(TransferError::Disconnected))
    );
    assert_eq!(pipes.clear_halt(IN), Err(TransferError::Disconnected));
    assert_eq!(interface.reset(), Err(TransferError::Disconnected));
    assert_eq!(
        interface.control(ABORT, &mut [], Duration::from_secs(1)),
        Err(TransferError::Disconnected)
    );
    drop((interface, pipes));
    assert!(matches!(device.claim(), Err(OpenError::Disconnected)));
}

#[test]
fn a_halted_endpoint_stays_so_until_it_is_cleared() {
    let device = parrot();
    let mut pipes = pipes(&device);
    device.inject(Fault::Stall, 0);
    pipes.submit_in(IN, 64);
    pipes.submit_in(IN, 64);
    let stalled = all(&mut *pipes);
    assert_eq!(stalled.len(), 2);
    assert!(
        stalled
            .iter()
            .all(|one| one.result == Err(TransferError::Stall))
    );
    pipes.clear_halt(IN).unwrap();
    assert_eq!(exchange(&mut *pipes, &[5]), Some(vec![5]));
}

#[test]
fn device_reset_clears_halts_responses_and_transfers() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.open_queue(&[IN, OUT]).unwrap();
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    device.inject(Fault::Stall, 0);
    pipes.submit_out(OUT, Secret::copy_from(&[2]));
    pipes.submit_out(OUT, Secret::copy_from(&[2]));
    all(&mut *pipes);
    device.inject(Fault::Drop, 0);
    pipes.submit_in(IN, 64);
    interface.reset().unwrap();
    assert_eq!(
        of(&mut *pipes, IN).unwrap().result,
        Err(TransferError::Disconnected),
        "as of a device that left, but it works"
    );
    assert_eq!(exchange(&mut *pipes, &[3]), Some(vec![3]));
}

#[test]
fn a_delayed_transfer_completes_when_released_and_a_dropped_one_when_cancelled() {
    let device = parrot();
    let mut pipes = pipes(&device);
    device.inject(Fault::Delay, 1);
    assert_eq!(exchange(&mut *pipes, &[1]), None, "the OUT is held");
    device.release();
    assert_eq!(of(&mut *pipes, IN).unwrap().buffer.expose(), [1]);
    device.inject(Fault::Drop, 3);
    assert_eq!(exchange(&mut *pipes, &[2]), None, "the IN's end is lost");
    device.release();
    assert!(of(&mut *pipes, IN).is_none());
    pipes.cancel(IN);
    let cancelled = of(&mut *pipes, IN).unwrap();
    assert_eq!(cancelled.result, Err(TransferError::Cancelled));
    assert_eq!(cancelled.transferred, 0);
    assert_eq!(exchange(&mut *pipes, &[3]), Some(vec![3]));
}

/// A message with the type, slot and sequence number of a response.
const ANSWER: [u8; 12] = [0x80, 2, 0, 0, 0, 0, 4, 0, 0, 0, 0x90, 0x00];

#[test]
fn response_is_altered_as_the_fault_says() {
    let spoiled = |fault| {
        let device = parrot();
        let mut pipes = pipes(&device);
        device.inject(fault, 0);
        let first = exchange(&mut *pipes, &ANSWER);
        assert!(device.fault_struck());
        pipes.submit_in(IN, 64);
        let second = of(&mut *pipes, IN).map(|one| one.buffer.expose().to_vec());
        (first, second)
    };
    let changed = |at: usize, to: u8| {
        let mut answer = ANSWER.to_vec();
        answer[at] = to;
        Some(answer)
    };
    let whole = Some(ANSWER.to_vec());
    let extension = Some(vec![0x80, 0, 0, 0, 0, 0, 4, 0x80, 1, 0]);
    let longer = Some([&ANSWER[..], &[0xAA]].concat());
    for (fault, first, second) in [
        (Fault::Duplicate, whole.clone(), whole.clone()),
        (Fault::ZlpFirst, Some(vec![]), whole.clone()),
        (Fault::StaleFirst, changed(6, 3), whole),
        (Fault::Short, Some(ANSWER[..11].to_vec()), None),
        (Fault::OverLong, longer, None),
        (Fault::WrongSlot, changed(5, 1), None),
        (Fault::WrongSequence, changed(6, 0x59), None),
        (Fault::WrongType, changed(0, 0x83), None),
        (Fault::EndlessTimeExtension, extension.clone(), extension),
        (Fault::Overflow, None, None),
    ] {
        assert_eq!(spoiled(fault), (first, second), "{fault:?}");
    }
}

#[test]
fn every_fault_strikes_once_at_every_step_and_the_device_works_afterwards() {
    let mut tried = 0;
    for fault in Fault::ALL {
        for step in 0..20 {
            let device = parrot();
            let mut pipes = pipes(&device);
            device.inject(fault, step);
            for _ in 0..2 {
                exchange(&mut *pipes, &ANSWER);
            }
            if !device.fault_struck() {
                assert!(step >= 7, "{fault:?} {step}");
                break;
            }
            tried += 1;
            drop(pipes);
            assert_eq!(device.queues(), 0);
            if fault == Fault::Disconnected {
                assert!(device.claim().is_err());
                continue;
            }
            let interface = device.claim().unwrap();
            interface.reset().unwrap();
            let mut pipes = interface.open_queue(&[IN, OUT]).unwrap();
            assert_eq!(
                exchange(&mut *pipes, &[1]),
                Some(vec![1]),
                "{fault:?} {step}"
            );
        }
    }
    assert!(tried >= 7 * Fault::ALL.len(), "{tried}");
}

#[test]
fn fake_device_records_transfer_counts_and_the_order_of_events() {
    let device = parrot();
    let mut pipes = pipes(&device);
    device.forget();
    exchange(&mut *pipes, &[1]);
    let counts = device.counts();
    assert_eq!(
        (counts.bulk_in, counts.bulk_out, counts.completed),
        (1, 1, 2)
    );
    let expected = [
        Event::SubmitIn(IN, 4096),
        Event::SubmitOut(OUT, 1),
        Event::Completed(OUT, 1, Ok(())),
        Event::Completed(IN, 1, Ok(())),
    ];
    assert_eq!(device.events(), expected);
}
