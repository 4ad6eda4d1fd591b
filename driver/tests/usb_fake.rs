//! The test double of a USB device behaves as a device on a bus does, so that what is proved with it is proved of one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails loudly"
)]

use std::{thread, time::Duration};

use claviger_apdu::Secret;
use claviger_driver::usb::{
    fake::{
        Answer, Event, FakeDevice, FakeReader, Fault, Layout,
        reader::{FakeCard, ReaderConfig, echo},
    },
    open::OpenError,
    transfer::{Completion, EndpointAddress, Pipes, Setup, TransferError},
};
use rustix::event::{PollFd, Timespec};

const OUT: EndpointAddress = EndpointAddress(0x02);
const IN: EndpointAddress = EndpointAddress(0x82);
const NOTIFY: EndpointAddress = EndpointAddress(0x83);
const ABORT: Setup = Setup {
    request_type: 0x21,
    request: 1,
    value: 0x0700,
    index: 0,
};

/// A device that repeats what it is sent.
fn parrot() -> FakeDevice {
    FakeDevice::new(Layout::default(), |transfer: &[u8]| {
        vec![Answer::Bulk(transfer.to_vec())]
    })
}

fn pipes(device: &FakeDevice) -> Box<dyn Pipes> {
    let interface = device.claim().unwrap();
    interface.pipes(&[OUT, IN, NOTIFY]).unwrap()
}

/// Whether a descriptor is ready within a time that only a defect exceeds, or now.
fn ready(pipes: &dyn Pipes, within: Duration) -> bool {
    let descriptors = pipes.descriptors();
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    let limit = Timespec::try_from(within).unwrap();
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0
}

fn all(pipes: &mut dyn Pipes) -> Vec<Completion> {
    std::iter::from_fn(|| pipes.completed()).collect()
}

/// The next completion of an endpoint, all others dropped.
fn of(pipes: &mut dyn Pipes, endpoint: EndpointAddress) -> Option<Completion> {
    all(pipes).into_iter().find(|one| one.endpoint == endpoint)
}

/// A message and its answer, if one comes.
fn exchange(pipes: &mut dyn Pipes, message: &[u8]) -> Option<Vec<u8>> {
    pipes.submit_in(IN, 4096);
    pipes.submit_out(OUT, Secret::copy_from(message));
    let answer = of(pipes, IN)?;
    answer.result.ok()?;
    Some(answer.buffer.expose().to_vec())
}

fn command(kind: u8, sequence: u8, specific: [u8; 3], data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    message.extend([0, sequence]);
    message.extend(specific);
    message.extend(data);
    message
}

#[test]
fn an_answer_ends_with_a_short_packet_or_an_empty_one() {
    let device = parrot();
    let mut pipes = pipes(&device);
    for length in [1, 63, 64, 65, 128, 1000] {
        let message = vec![7; length];
        assert_eq!(exchange(&mut *pipes, &message), Some(message), "{length}");
        assert_eq!(pipes.pending(IN), 0);
    }
}

#[test]
fn a_device_that_omits_the_empty_packet_leaves_the_transfer_waiting_and_a_cancel_gives_its_data() {
    let layout = Layout {
        zlp: false,
        ..Layout::default()
    };
    let device = FakeDevice::new(layout, |transfer: &[u8]| {
        vec![Answer::Bulk(transfer.to_vec())]
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
fn an_answer_longer_than_the_room_goes_on_in_the_next_transfer() {
    let mut pipes = pipes(&parrot());
    pipes.submit_in(IN, 64);
    pipes.submit_out(OUT, Secret::copy_from(&[9; 100]));
    assert_eq!(of(&mut *pipes, IN).unwrap().transferred, 64);
    pipes.submit_in(IN, 64);
    assert_eq!(of(&mut *pipes, IN).unwrap().transferred, 36);
}

#[test]
fn an_answer_nobody_read_is_read_by_the_next_transfer() {
    let device = parrot();
    let mut pipes = pipes(&device);
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    assert!(of(&mut *pipes, OUT).unwrap().result.is_ok());
    assert_eq!(exchange(&mut *pipes, &[2]), Some(vec![1]));
}

#[test]
fn what_a_bus_would_not_take_is_refused() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.pipes(&[OUT, IN]).unwrap();
    assert!(interface.pipes(&[NOTIFY]).is_ok());
    assert!(interface.pipes(&[IN]).is_err(), "it has an owner");
    assert!(interface.pipes(&[EndpointAddress(0x81)]).is_err());
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
fn the_descriptor_is_ready_from_the_first_completion_until_none_is_left() {
    let device = parrot();
    let mut pipes = pipes(&device);
    pipes.submit_in(NOTIFY, 64);
    assert!(!ready(&*pipes, Duration::ZERO));
    let sender = device.clone();
    let other = thread::spawn(move || sender.send(Answer::Notification(vec![0x50, 3])));
    assert!(ready(&*pipes, Duration::from_secs(60)));
    other.join().unwrap();
    assert_eq!(all(&mut *pipes).len(), 1);
    assert!(!ready(&*pipes, Duration::ZERO));
}

#[test]
fn dropping_the_queue_ends_its_transfers_and_the_claim_lasts_until_the_last_owner_left() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.pipes(&[IN]).unwrap();
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
fn a_device_that_leaves_ends_everything() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.pipes(&[IN, NOTIFY, OUT]).unwrap();
    pipes.submit_in(IN, 64);
    pipes.submit_in(NOTIFY, 64);
    device.leave();
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    let done = all(&mut *pipes);
    assert_eq!(done.len(), 3);
    assert!(
        done.iter()
            .all(|one| one.result == Err(TransferError::Gone))
    );
    assert_eq!(pipes.clear_halt(IN), Err(TransferError::Gone));
    assert_eq!(interface.reset(), Err(TransferError::Gone));
    assert_eq!(
        interface.control(ABORT, &mut [], Duration::from_secs(1)),
        Err(TransferError::Gone)
    );
    drop((interface, pipes));
    assert!(matches!(device.claim(), Err(OpenError::Gone)));
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
fn a_reset_forgets_halts_answers_and_transfers() {
    let device = parrot();
    let interface = device.claim().unwrap();
    let mut pipes = interface.pipes(&[IN, OUT]).unwrap();
    pipes.submit_out(OUT, Secret::copy_from(&[1]));
    device.inject(Fault::Stall, 0);
    pipes.submit_out(OUT, Secret::copy_from(&[2]));
    interface.reset().unwrap();
    all(&mut *pipes);
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

/// A message of the type, slot and sequence of an answer.
const ANSWER: [u8; 12] = [0x80, 2, 0, 0, 0, 0, 4, 0, 0, 0, 0x90, 0x00];

#[test]
fn an_answer_is_spoiled_as_the_fault_says() {
    let spoiled = |fault| {
        let device = parrot();
        let mut pipes = pipes(&device);
        device.inject(fault, 0);
        let first = exchange(&mut *pipes, &ANSWER);
        assert!(device.struck());
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
            if !device.struck() {
                assert!(step >= 7, "{fault:?} {step}");
                break;
            }
            tried += 1;
            drop(pipes);
            assert_eq!(device.queues(), 0);
            if fault == Fault::Gone {
                assert!(device.claim().is_err());
                continue;
            }
            let interface = device.claim().unwrap();
            interface.reset().unwrap();
            let mut pipes = interface.pipes(&[IN, OUT]).unwrap();
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
fn the_counts_say_what_was_submitted_and_the_events_in_which_order() {
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

#[test]
fn a_reader_powers_its_card_and_passes_apdus_in_one_message_or_chained() {
    for max_message in [3072, 64] {
        let config = ReaderConfig {
            max_message,
            ..ReaderConfig::extended()
        };
        let reader = FakeReader::with_card(config, FakeCard::echo());
        let mut pipes = pipes(reader.device());
        let atr = exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
        assert_eq!(atr[..2], [0x80, 15 - 4]);
        assert!(reader.powered(0));
        let apdu: Vec<u8> = [&[0, 0x2A, 0, 0, 200][..], &[5; 200]].concat();
        let mut response = Vec::new();
        let room = usize::try_from(max_message).unwrap() - 10;
        let parts: Vec<&[u8]> = apdu.chunks(room).collect();
        let mut answer = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let level = match (at == 0, at + 1 == parts.len()) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            answer = exchange(&mut *pipes, &command(0x6F, 1, [0, level, 0], part)).unwrap();
        }
        for _ in 0..8 {
            response.extend_from_slice(&answer[10..]);
            if matches!(answer[9], 0 | 2) {
                break;
            }
            answer = exchange(&mut *pipes, &command(0x6F, 2, [0, 0x10, 0], &[])).unwrap();
        }
        assert_eq!(response, echo(&apdu));
        assert_eq!(reader.card_commands(0), 1);
    }
}

#[test]
fn a_tpdu_reader_passes_blocks_of_t1_and_chains_at_the_size_it_was_told() {
    let reader = FakeReader::with_card(ReaderConfig::tpdu(), FakeCard::echo());
    let mut pipes = pipes(reader.device());
    let unpowered = exchange(&mut *pipes, &command(0x6F, 0, [0; 3], &[0, 0xC0, 0, 0xC0]));
    assert_eq!(unpowered.unwrap()[7..9], [0x41, 0xFE]);
    exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
    let mut block = |bytes: &[u8]| {
        let check = bytes.iter().fold(0, |sum, byte| sum ^ byte);
        let whole = [bytes, &[check]].concat();
        exchange(&mut *pipes, &command(0x6F, 1, [0; 3], &whole)).unwrap()[10..].to_vec()
    };
    assert_eq!(block(&[0, 0xC1, 1, 64])[..4], [0, 0xE1, 1, 64]);
    let first = block(&[0, 0x00, 5, 0, 0xB0, 0, 0, 100]);
    assert_eq!(first[..3], [0, 0x20, 64], "more is to come");
    let wrong = block(&[0, 0x80, 0]);
    assert_eq!(wrong, first, "the same block again");
    let last = block(&[0, 0x90, 0]);
    assert_eq!(last[..3], [0, 0x40, 38]);
    assert_eq!(last[39..41], [0x90, 0x00]);
    assert_eq!(
        block(&[0, 0x00, 1, 1])[..2],
        [0, 0x92],
        "the number expected is 1"
    );
}

#[test]
fn a_tpdu_reader_passes_commands_of_t0_and_their_responses_are_fetched() {
    let reader = FakeReader::with_card(ReaderConfig::tpdu(), FakeCard::echo_t0());
    let mut pipes = pipes(reader.device());
    exchange(&mut *pipes, &command(0x62, 0, [0; 3], &[])).unwrap();
    let mut tpdu = |bytes: &[u8]| {
        exchange(&mut *pipes, &command(0x6F, 1, [0; 3], bytes)).unwrap()[10..].to_vec()
    };
    assert_eq!(tpdu(&[0, 0x20, 0, 0, 3, 1, 2, 3]), [0x61, 3]);
    assert_eq!(tpdu(&[0, 0xC0, 0, 0, 9]), [0x6C, 3]);
    assert_eq!(tpdu(&[0, 0xC0, 0, 0, 3]), [1, 2, 3, 0x90, 0]);
    assert_eq!(tpdu(&[0, 0xB0, 0, 0, 4]), [0, 0, 0, 0, 0x90, 0]);
}

#[test]
fn an_abort_frees_a_slot_that_is_busy_unless_the_reader_ignores_it() {
    let reader = FakeReader::with_card(ReaderConfig::extended(), FakeCard::echo());
    let interface = reader.device().claim().unwrap();
    let mut pipes = interface.pipes(&[IN, OUT]).unwrap();
    exchange(&mut *pipes, &command(0x62, 5, [0; 3], &[])).unwrap();
    reader.hold();
    assert_eq!(
        exchange(&mut *pipes, &command(0x6F, 6, [0; 3], &[0; 4])),
        None
    );
    pipes.submit_out(OUT, Secret::new(command(0x65, 9, [0; 3], &[])));
    let busy = of(&mut *pipes, IN).unwrap();
    assert_eq!(busy.buffer.expose()[7..9], [0x40, 0xE0]);
    reader.honour_abort(false);
    let second = Duration::from_secs(1);
    assert_eq!(
        interface.control(ABORT, &mut [], second),
        Err(TransferError::Stall)
    );
    reader.honour_abort(true);
    assert_eq!(interface.control(ABORT, &mut [], second), Ok(0));
    let status = exchange(&mut *pipes, &command(0x72, 7, [0; 3], &[])).unwrap();
    assert_eq!(status[..9], [0x81, 0, 0, 0, 0, 0, 7, 0, 0]);
    reader.release();
    let answer = exchange(&mut *pipes, &command(0x6F, 8, [0; 3], &[0; 4])).unwrap();
    assert_eq!((answer[6], &answer[10..]), (8, &[0x90, 0][..]));
    assert_eq!(reader.messages().last(), Some(&(0x6F, 8)));
}

#[test]
fn cards_that_come_and_go_are_told_on_the_interrupt_pipe() {
    let config = ReaderConfig {
        slots: 5,
        ..ReaderConfig::extended()
    };
    let reader = FakeReader::new(config);
    let mut pipes = pipes(reader.device());
    let mut told = |change: &dyn Fn()| {
        pipes.submit_in(NOTIFY, 64);
        change();
        of(&mut *pipes, NOTIFY).unwrap().buffer.expose().to_vec()
    };
    assert_eq!(told(&|| reader.insert(4, FakeCard::echo())), [0x50, 0, 3]);
    assert_eq!(
        told(&|| reader.insert(1, FakeCard::echo())),
        [0x50, 0x0C, 1]
    );
    assert_eq!(told(&|| reader.swap(1, FakeCard::echo())), [0x50, 0x0C, 1]);
    assert_eq!(told(&|| reader.remove(4)), [0x50, 0x04, 2]);
    assert_eq!(told(&|| reader.hardware_error(1, 9, 1)), [0x51, 1, 9, 1]);
}

#[test]
fn time_is_asked_for_as_often_as_was_said() {
    let reader = FakeReader::with_card(ReaderConfig::short(), FakeCard::echo());
    reader.extend_time(2);
    let mut pipes = pipes(reader.device());
    let first = exchange(&mut *pipes, &command(0x62, 1, [0; 3], &[])).unwrap();
    assert_eq!(first, [0x80, 0, 0, 0, 0, 0, 1, 0x80, 1, 0]);
    pipes.submit_in(IN, 64);
    assert_eq!(of(&mut *pipes, IN).unwrap().buffer.expose(), first);
    pipes.submit_in(IN, 320);
    assert_eq!(of(&mut *pipes, IN).unwrap().buffer.expose()[10], 0x3B);
}

#[test]
fn the_descriptors_have_the_lengths_they_say() {
    for interrupt in [Some(NOTIFY), None] {
        let mut config = ReaderConfig::extended();
        config.layout.interrupt = interrupt;
        let bytes = FakeReader::new(config).descriptors();
        let total = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        assert_eq!(bytes.len(), 18 + total);
        let mut at = 0;
        let mut kinds = Vec::new();
        while at < bytes.len() {
            kinds.push(bytes[at + 1]);
            at += usize::from(bytes[at]);
        }
        assert_eq!(at, bytes.len());
        let expected = [1, 2, 4, 0x21, 5, 5, 5];
        assert_eq!(kinds, expected[..6 + usize::from(interrupt.is_some())]);
    }
}
