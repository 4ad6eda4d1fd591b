//! The readers on a bus: what the watch shows of them, and when it has them claimed.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use claviger_apdu::TransportErrorKind;

use super::{
    answered,
    bench::{Machine, PATIENCE, connect, echo, holds_card, id, look, only, reader, token},
};
use crate::{
    backend::{Backend, Stopped},
    reader::{Presence, Readers},
    usb::{
        backend::UsbBackend,
        fake::{
            FakeReader,
            reader::{FakeCard, ReaderConfig},
        },
    },
};

fn key() -> (FakeReader, ReaderConfig) {
    (FakeReader::with_card(token(), FakeCard::echo()), token())
}

/// A thread that follows the readers, and its pictures.
struct Followed {
    pictures: mpsc::Receiver<Readers>,
    waker: std::sync::Arc<dyn crate::backend::Wake>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Followed {
    fn new(program: &UsbBackend) -> Self {
        let mut watch = program.watch();
        let waker = watch.waker();
        let (send, pictures) = mpsc::channel();
        let follow = move || {
            let _ = send.send(look(&mut *watch));
            while let Ok(picture) = watch.next() {
                let _ = send.send(picture);
            }
        };
        Self {
            pictures,
            waker,
            thread: Some(thread::spawn(follow)),
        }
    }

    fn picture(&self) -> Readers {
        self.pictures.recv_timeout(PATIENCE).expect("a picture")
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.waker.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until `is_so`.
#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it never was");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_token_is_shown_with_its_card_and_left_to_others() {
    let machine = Machine::new("shown");
    let (reader, config) = key();
    machine.plug("3-1.2", &reader, &config);
    let program = machine.program();
    let picture = look(&mut *program.watch());
    let state = only(&picture);
    assert_eq!(
        (&state.id, state.name.as_str()),
        (&id("3-1.2"), "Maker Key 42b2")
    );
    assert!(holds_card(state) && picture.trouble.is_none());
    assert!(!reader.device().claimed(), "nobody uses it");
    reader.device().forget();
    let again = look(&mut *program.watch());
    assert_eq!(again.readers.len(), 1);
    assert_eq!(
        reader.device().counts(),
        Default::default(),
        "its card cannot have left"
    );
}

#[test]
fn no_reader_and_no_bus_are_an_empty_picture() {
    let machine = Machine::new("empty");
    let program = machine.program();
    let picture = look(&mut *program.watch());
    assert!(picture.readers.is_empty() && picture.trouble.is_none() && picture.service.is_some());
    std::fs::remove_dir_all(machine.folder()).unwrap();
    let picture = look(&mut *program.watch());
    assert!(picture.readers.is_empty() && picture.trouble.is_none());
}

#[test]
fn a_reader_that_comes_goes_and_comes_back_has_one_name_and_another_count() {
    let machine = Machine::new("comes");
    let program = machine.program();
    let followed = Followed::new(&program);
    assert!(followed.picture().readers.is_empty());
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let first = only(&followed.picture()).clone();
    machine.unplug("3-1");
    assert!(followed.picture().readers.is_empty());
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let second = only(&followed.picture()).clone();
    assert_eq!(first.id, second.id);
    assert_ne!(first.changes, second.changes);
}

#[test]
fn a_reader_exchanged_between_two_looks_at_the_same_address_is_another() {
    let machine = Machine::new("exchanged");
    let program = machine.program();
    let mut watch = program.watch();
    let (reader, config) = key();
    machine.plug_at("3-1", 9, &reader, &config);
    let first = only(&look(&mut *watch)).clone();
    // A folder kept open, as the kernel's own counter never gives a number twice.
    let held = std::fs::File::open(machine.folder().join("sys/3-1")).unwrap();
    machine.unplug("3-1");
    let (reader, config) = key();
    machine.plug_at("3-1", 9, &reader, &config);
    drop(held);
    let second = only(&look(&mut *watch)).clone();
    assert_eq!((&first.id, &first.presence), (&second.id, &second.presence));
    assert_ne!(first.changes, second.changes);
}

#[test]
fn a_connection_claims_the_reader_and_gives_it_back() {
    let machine = Machine::new("claims");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let program = machine.program();
    let mut watch = program.watch();
    let _ = look(&mut *watch);
    let mut card = connect(&program, "3-1");
    assert!(reader.device().claimed());
    let epoch = card.epoch();
    reader.device().forget();
    assert_eq!(echo(&mut *card, b"hello").unwrap(), answered(b"hello"));
    let counts = reader.device().counts();
    assert_eq!((counts.bulk_out, counts.bulk_in, counts.control), (1, 1, 0));
    drop(card);
    assert!(!reader.device().claimed());
    let mut card = connect(&program, "3-1");
    assert_eq!(card.epoch(), epoch, "nobody has used it since");
    assert_eq!(echo(&mut *card, b"again").unwrap(), answered(b"again"));
    assert!(reader.powered(0));
}

#[test]
fn what_another_process_knows_costs_nothing_and_resets_no_card() {
    let machine = Machine::new("told");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let (ours, theirs) = (machine.program(), machine.program());
    let mut one = ours.watch();
    let _ = look(&mut *one);
    let mut first = connect(&ours, "3-1");
    reader.device().forget();
    let mut other = theirs.watch();
    let picture = look(&mut *other);
    assert!(holds_card(only(&picture)));
    assert_eq!(reader.device().counts(), Default::default());
    echo(&mut *first, b"a").unwrap();
    drop(first);
    let powers = |reader: &FakeReader| {
        let messages = reader.messages();
        messages.iter().filter(|(kind, _)| *kind == 0x62).count()
    };
    let before = powers(&reader);
    let mut second = connect(&theirs, "3-1");
    assert_eq!(echo(&mut *second, b"b").unwrap(), answered(b"b"));
    assert_eq!(powers(&reader), before, "the card was not reset");
}

#[test]
fn two_programs_take_turns_and_each_notices_that_the_other_had_the_card() {
    let machine = Machine::new("turns");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let programs = [machine.program(), machine.program()];
    let followed = programs.each_ref().map(Followed::new);
    for followed in &followed {
        assert!(holds_card(only(&followed.picture())));
    }
    let mut first = connect(&programs[0], "3-1");
    let epoch = first.epoch();
    echo(&mut *first, b"a").unwrap();
    // The first is idle, and lets go because its watch hears the second knock.
    let mut second = connect(&programs[1], "3-1");
    echo(&mut *second, b"b").unwrap();
    assert_eq!(echo(&mut *first, b"c").unwrap(), answered(b"c"));
    assert!(
        first.epoch() > epoch,
        "the second may have changed the card's state"
    );
    assert_eq!(echo(&mut *second, b"d").unwrap(), answered(b"d"));
}

#[test]
fn a_transaction_is_never_interrupted_by_who_knocks() {
    let machine = Machine::new("transaction");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let programs = [machine.program(), machine.program()];
    let followed = programs.each_ref().map(Followed::new);
    for followed in &followed {
        assert!(holds_card(only(&followed.picture())));
    }
    let mut first = connect(&programs[0], "3-1");
    let (begun, is_begun) = mpsc::channel();
    thread::scope(|scope| {
        let second = &programs[1];
        let other = scope.spawn(move || {
            is_begun.recv().unwrap();
            let mut second = connect(second, "3-1");
            (echo(&mut *second, b"b").unwrap(), Instant::now())
        });
        let mut ended = None;
        first
            .transact(claviger_apdu::Call::within(PATIENCE), &mut |card| {
                begun.send(()).unwrap();
                for _ in 0..20 {
                    let mut response = claviger_apdu::ResponseBuffer::new();
                    let call = claviger_apdu::Call::within(PATIENCE);
                    card.transmit(&super::command(b"x"), &mut response, call)
                        .unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
                ended = Some(Instant::now());
            })
            .unwrap();
        let (answer, at) = other.join().unwrap();
        assert_eq!(answer, answered(b"b"));
        assert!(at > ended.unwrap(), "after the transaction, not in it");
    });
}

#[test]
fn a_reader_somebody_else_has_is_not_shown_until_he_lets_go() {
    let machine = Machine::new("busy");
    let (reader, config) = key();
    let theirs = reader.device().claim().unwrap();
    machine.plug("3-1", &reader, &config);
    let program = machine.program();
    let followed = Followed::new(&program);
    let picture = followed.picture();
    assert!(picture.readers.is_empty());
    let trouble = picture.trouble.expect("it is said why");
    assert_eq!(trouble.kind, TransportErrorKind::Busy);
    assert!(trouble.what.contains("Maker Key 42b2"), "{trouble}");
    drop(theirs);
    let picture = followed.picture();
    assert!(holds_card(only(&picture)) && picture.trouble.is_none());
}

#[test]
fn rights_that_are_granted_later_are_noticed() {
    let machine = Machine::new("rights");
    let (reader, config) = key();
    let none = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    let some = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    machine.plug_at("3-1", 7, &reader, &config);
    let node = machine.folder().join("dev/003/007");
    std::fs::set_permissions(&node, none).unwrap();
    let program = machine.program();
    let followed = Followed::new(&program);
    let picture = followed.picture();
    assert!(picture.readers.is_empty());
    assert_eq!(picture.trouble.unwrap().kind, TransportErrorKind::Denied);
    std::fs::set_permissions(&node, some).unwrap();
    assert!(holds_card(only(&followed.picture())));
}

#[test]
fn a_card_put_in_and_taken_out_is_told_by_the_interrupt_endpoint() {
    let machine = Machine::new("interrupt");
    let slot = FakeReader::new(reader());
    machine.plug("3-1", &slot, &reader());
    let program = machine.program();
    let followed = Followed::new(&program);
    let empty = only(&followed.picture()).clone();
    assert_eq!(empty.presence, Presence::Empty);
    until(|| slot.device().claimed());
    slot.insert(0, FakeCard::echo());
    let first = only(&followed.picture()).clone();
    assert!(holds_card(&first));
    slot.swap(0, FakeCard::echo());
    let second = only(&followed.picture()).clone();
    assert!(holds_card(&second));
    assert_ne!(
        first.changes, second.changes,
        "another card, though it looks the same"
    );
    slot.remove(0);
    assert_eq!(only(&followed.picture()).presence, Presence::Empty);
}

#[test]
fn a_reader_without_an_interrupt_endpoint_is_looked_at_from_time_to_time() {
    let machine = Machine::new("polled");
    let mut config = reader();
    config.layout.interrupt = None;
    let slot = FakeReader::new(config.clone());
    machine.plug("3-1", &slot, &config);
    let program = machine.program();
    let followed = Followed::new(&program);
    assert_eq!(only(&followed.picture()).presence, Presence::Empty);
    slot.insert(0, FakeCard::echo());
    assert!(holds_card(only(&followed.picture())));
    slot.remove(0);
    assert_eq!(only(&followed.picture()).presence, Presence::Empty);
}

#[test]
fn a_card_that_is_listened_for_can_be_used_all_the_same() {
    let machine = Machine::new("both");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    let program = machine.program();
    let followed = Followed::new(&program);
    assert!(holds_card(only(&followed.picture())));
    let mut card = connect(&program, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
    slot.remove(0);
    assert_eq!(only(&followed.picture()).presence, Presence::Empty);
    let error = echo(&mut *card, b"b").unwrap_err();
    assert!(card.is_over(), "{error}");
}

#[test]
fn who_listens_for_cards_leaves_the_reader_to_another_process_that_has_one() {
    let machine = Machine::new("listens");
    let slot = FakeReader::with_card(reader(), FakeCard::echo());
    machine.plug("3-1", &slot, &reader());
    let (ours, theirs) = (machine.program(), machine.program());
    let followed = Followed::new(&ours);
    assert!(holds_card(only(&followed.picture())));
    until(|| slot.device().claimed());
    let mut watch = theirs.watch();
    assert!(holds_card(only(&look(&mut *watch))));
    let mut card = connect(&theirs, "3-1");
    assert_eq!(echo(&mut *card, b"a").unwrap(), answered(b"a"));
}

#[test]
fn a_reader_that_leaves_in_the_middle_ends_its_connection() {
    let machine = Machine::new("leaves");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let program = machine.program();
    let followed = Followed::new(&program);
    assert!(holds_card(only(&followed.picture())));
    let mut card = connect(&program, "3-1");
    reader.hold();
    thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"a"));
        until(|| reader.card_commands(0) > 0 || reader.device().counts().bulk_out > 2);
        machine.unplug("3-1");
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.kind, TransportErrorKind::NoReader, "{error}");
    });
    assert!(card.is_over());
    assert!(followed.picture().readers.is_empty());
}

#[test]
fn a_stop_ends_the_watch_and_its_claims() {
    let machine = Machine::new("stop");
    let slot = FakeReader::new(reader());
    machine.plug("3-1", &slot, &reader());
    let program = machine.program();
    let mut watch = program.watch();
    let waker = watch.waker();
    thread::scope(|scope| {
        let waits = scope.spawn(move || {
            let first = watch.next().is_ok();
            (first, watch.next().map(drop))
        });
        until(|| slot.device().claimed());
        waker.stop();
        assert_eq!(waits.join().unwrap(), (true, Err(Stopped)));
    });
    assert!(!slot.device().claimed());
}

#[test]
fn a_stop_before_the_watch_begins_still_counts() {
    let machine = Machine::new("before");
    let program = machine.program();
    let mut watch = program.watch();
    watch.waker().stop();
    assert_eq!(watch.next().map(drop), Err(Stopped));
}

#[test]
fn a_backend_that_is_cut_ends_its_connections() {
    let machine = Machine::new("cut");
    let (reader, config) = key();
    machine.plug("3-1", &reader, &config);
    let program = machine.program();
    let mut watch = program.watch();
    let _ = look(&mut *watch);
    let mut card = connect(&program, "3-1");
    reader.hold();
    thread::scope(|scope| {
        let waits = scope.spawn(|| echo(&mut *card, b"a"));
        until(|| reader.device().counts().bulk_out > 2);
        program.cut();
        assert!(waits.join().unwrap().is_err());
    });
    let refused = program.connect(&id("3-1"), claviger_apdu::Call::within(PATIENCE));
    assert!(refused.is_err(), "no connection is made afterwards");
}
