//! The socket reader's server keeps each rule of `docs/socket-reader.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of a test fail loudly"
)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use claviger_apdu::Secret;
use claviger_driver::socket::frame::{Refusal, Reply, Request, VERSION, body_len};
use claviger_hw_tests::{
    card::{CardConfig, NITROKEY_3_ATR, VirtualCard},
    reader::{Event, Fate, Reader},
    server::SocketServer,
};
use tempfile::TempDir;

const SELECT_PIV: [u8; 15] = [
    0x00, 0xA4, 0x04, 0x00, 9, 0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0x00, 0x00,
];
const VERIFY_STATUS: [u8; 4] = [0x00, 0x20, 0x00, 0x80];
/// What a card with nothing selected answers to [`VERIFY_STATUS`].
const NOT_SELECTED: [u8; 2] = [0x6A, 0x82];
const PIV_SELECTED: [u8; 2] = [0x63, 0xC3];
/// Long enough for a thread to reach its wait, on a busy machine too.
const MOMENT: Duration = Duration::from_millis(100);

struct Bench {
    reader: Reader,
    server: Option<SocketServer>,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let card = VirtualCard::power_up(CardConfig::default()).expect("a card in RAM");
        let reader = Reader::new("Virtual reader", card);
        let folder = tempfile::tempdir().expect("a folder");
        let server = SocketServer::start(folder.path().join("reader"), &reader).expect("a socket");
        Self {
            reader,
            server: Some(server),
            folder,
        }
    }

    fn stranger(&self) -> Client {
        Client::open(&self.folder.path().join("reader"))
    }

    fn guest(&self) -> Client {
        let mut client = self.stranger();
        assert!(
            matches!(client.ask(&Request::Hello { version: VERSION }), Said::Welcome(name) if name == "Virtual reader")
        );
        client
    }

    fn user(&self) -> Client {
        let mut client = self.guest();
        assert_eq!(
            client.ask(&Request::Connect),
            Said::Connected(NITROKEY_3_ATR.to_vec())
        );
        client
    }

    fn watcher(&self) -> Client {
        let mut client = self.guest();
        client.say(&Request::Watch);
        client
    }
}

struct Client(UnixStream);

/// A reply that can be compared.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Welcome(String),
    State(Vec<u8>, u32),
    Connected(Vec<u8>),
    Response(Vec<u8>),
    Begun,
    Ended,
    Refused(Refusal),
    Closed,
    Nothing,
}

impl Client {
    fn open(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the server listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        Self(stream)
    }

    fn say(&mut self, request: &Request) {
        self.0
            .write_all(request.encode().expose())
            .expect("the server reads");
    }

    fn ask(&mut self, request: &Request) -> Said {
        self.say(request);
        self.hear()
    }

    fn transmit(&mut self, frame: &[u8]) -> Said {
        self.ask(&Request::Transmit(Secret::copy_from(frame)))
    }

    fn hear(&mut self) -> Said {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                return Said::Closed;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Said::Nothing,
            Err(error) => panic!("{error}"),
        }
        let mut body = vec![0; body_len(length).expect("a length")];
        self.0.read_exact(&mut body).expect("a whole frame");
        match Reply::parse(&body).expect("a reply") {
            Reply::Welcome { name, .. } => Said::Welcome(name),
            Reply::State { atr, changes } => Said::State(atr, changes),
            Reply::Connected { atr } => Said::Connected(atr),
            Reply::Response(answer) => Said::Response(answer.expose().to_vec()),
            Reply::Begun => Said::Begun,
            Reply::Ended => Said::Ended,
            Reply::Refused { refusal, text } => {
                assert!(!text.is_empty(), "a refusal has text for a person");
                Said::Refused(refusal)
            }
        }
    }

    /// Nothing comes for a moment.
    fn is_silent(&mut self) -> bool {
        self.0
            .set_read_timeout(Some(MOMENT))
            .expect("a socket option");
        let heard = self.hear();
        self.0
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket option");
        heard == Said::Nothing
    }
}

#[test]
fn connections_share_one_card_and_connecting_never_resets_it() {
    let bench = Bench::new();
    let (mut a, mut b) = (bench.user(), bench.user());
    a.transmit(&SELECT_PIV);
    assert_eq!(
        b.transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
    let mut c = bench.user();
    assert_eq!(
        c.transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
    assert_eq!(bench.reader.counts().power_ups, 1);
}

#[test]
fn a_connection_closed_and_made_again_finds_the_card_as_it_was() {
    let bench = Bench::new();
    bench.user().transmit(&SELECT_PIV);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(PIV_SELECTED.to_vec())
    );
}

#[test]
fn a_watch_hears_of_each_change_in_order() {
    let bench = Bench::new();
    let mut watcher = bench.watcher();
    let atr = NITROKEY_3_ATR.to_vec();
    assert_eq!(watcher.hear(), Said::State(atr.clone(), 0));
    bench.reader.remove();
    bench.reader.remove();
    bench.reader.insert();
    bench.reader.insert();
    bench.reader.remove();
    assert_eq!(watcher.hear(), Said::State(Vec::new(), 1));
    assert_eq!(watcher.hear(), Said::State(atr, 2));
    assert_eq!(watcher.hear(), Said::State(Vec::new(), 3));
    bench.reader.reset();
    assert!(
        watcher.is_silent(),
        "a reset is neither an insertion nor a removal"
    );
    assert_eq!(
        bench.watcher().hear(),
        Said::State(Vec::new(), 3),
        "a later watch begins with the present"
    );
}

#[test]
fn a_reader_without_a_card_refuses_until_one_comes() {
    let bench = Bench::new();
    bench.reader.remove();
    let mut user = bench.guest();
    assert_eq!(user.ask(&Request::Connect), Said::Refused(Refusal::NoCard));
    bench.reader.insert();
    assert_eq!(
        user.ask(&Request::Connect),
        Said::Connected(NITROKEY_3_ATR.to_vec())
    );
}

#[test]
fn removal_answers_every_later_request_also_when_a_card_is_back() {
    let bench = Bench::new();
    let mut user = bench.user();
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    bench.reader.remove();
    assert_eq!(
        user.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    bench.reader.insert();
    for _ in 0..2 {
        assert_eq!(
            user.transmit(&VERIFY_STATUS),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Connect),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Begin),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            user.ask(&Request::Reset),
            Said::Refused(Refusal::CardRemoved)
        );
        assert_eq!(
            holder.ask(&Request::End),
            Said::Refused(Refusal::CardRemoved)
        );
    }
    let mut newcomer = bench.user();
    assert_eq!(
        newcomer.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec()),
        "removal ended the hold"
    );
}

#[test]
fn a_card_put_back_has_forgotten_everything() {
    let bench = Bench::new();
    bench.user().transmit(&SELECT_PIV);
    bench.reader.remove();
    bench.reader.insert();
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn while_one_holds_the_card_the_others_are_refused_at_once_and_not_executed() {
    let bench = Bench::new();
    let (mut holder, mut other) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    assert_eq!(other.transmit(&SELECT_PIV), Said::Refused(Refusal::Busy));
    assert_eq!(other.ask(&Request::Reset), Said::Refused(Refusal::Busy));
    assert_eq!(
        holder.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
    assert_eq!(bench.reader.counts().apdus, 1);
    assert_eq!(holder.ask(&Request::End), Said::Ended);
    assert!(matches!(other.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn holds_are_given_in_order_of_arrival() {
    let bench = Bench::new();
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    let mut waiters: Vec<Client> = (0..4).map(|_| bench.user()).collect();
    for waiter in &mut waiters {
        waiter.say(&Request::Begin);
        assert!(waiter.is_silent());
    }
    assert_eq!(holder.ask(&Request::End), Said::Ended);
    for n in 0..4 {
        assert_eq!(waiters[n].hear(), Said::Begun);
        for later in &mut waiters[n + 1..] {
            assert!(later.is_silent(), "one at a time");
        }
        assert_eq!(waiters[n].ask(&Request::End), Said::Ended);
    }
}

#[test]
fn closing_the_connection_gives_the_card_back() {
    let bench = Bench::new();
    let (mut holder, mut waiter) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    drop(holder);
    assert_eq!(waiter.hear(), Said::Begun);
}

#[test]
fn a_wait_for_the_card_ends_with_its_removal_or_reset() {
    let bench = Bench::new();
    let (mut holder, mut waiter) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    assert!(waiter.is_silent());
    assert!(matches!(holder.ask(&Request::Reset), Said::Connected(_)));
    assert_eq!(waiter.hear(), Said::Refused(Refusal::CardReset));
    assert!(matches!(waiter.ask(&Request::Connect), Said::Connected(_)));
    waiter.say(&Request::Begin);
    assert!(
        waiter.is_silent(),
        "the one that reset the card still holds it"
    );
    bench.reader.remove();
    assert_eq!(waiter.hear(), Said::Refused(Refusal::CardRemoved));
}

#[test]
fn a_reset_is_told_once_to_each_of_the_others() {
    let bench = Bench::new();
    let (mut a, mut b) = (bench.user(), bench.user());
    a.transmit(&SELECT_PIV);
    assert_eq!(
        a.ask(&Request::Reset),
        Said::Connected(NITROKEY_3_ATR.to_vec())
    );
    assert_eq!(
        a.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
    assert_eq!(b.transmit(&SELECT_PIV), Said::Refused(Refusal::CardReset));
    assert_eq!(
        a.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec()),
        "b's frame was not executed"
    );
    assert!(matches!(b.ask(&Request::Connect), Said::Connected(_)));
    assert!(matches!(b.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn a_hold_outlives_a_reset_by_the_test() {
    let bench = Bench::new();
    let (mut holder, mut other) = (bench.user(), bench.user());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    bench.reader.reset();
    assert_eq!(
        holder.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    assert!(matches!(holder.ask(&Request::Connect), Said::Connected(_)));
    assert_eq!(
        other.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    assert!(matches!(other.ask(&Request::Connect), Said::Connected(_)));
    assert_eq!(other.transmit(&VERIFY_STATUS), Said::Refused(Refusal::Busy));
    assert_eq!(holder.ask(&Request::End), Said::Ended);
}

#[test]
fn a_request_out_of_order_ends_the_connection() {
    let frame = || Request::Transmit(Secret::copy_from(&VERIFY_STATUS));
    let bench = Bench::new();
    let refused_and_closed = |mut client: Client, request: &Request| {
        assert_eq!(
            client.ask(request),
            Said::Refused(Refusal::Protocol),
            "{request:?}"
        );
        assert_eq!(client.hear(), Said::Closed, "{request:?}");
    };
    refused_and_closed(bench.stranger(), &Request::Connect);
    refused_and_closed(
        bench.stranger(),
        &Request::Hello {
            version: VERSION + 1,
        },
    );
    refused_and_closed(bench.guest(), &Request::Hello { version: VERSION });
    refused_and_closed(bench.guest(), &frame());
    refused_and_closed(bench.guest(), &Request::Begin);
    refused_and_closed(bench.user(), &Request::Watch);
    refused_and_closed(bench.user(), &Request::End);
    let mut watcher = bench.watcher();
    assert!(matches!(watcher.hear(), Said::State(..)));
    refused_and_closed(watcher, &Request::Connect);
    let mut holder = bench.user();
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    refused_and_closed(holder, &Request::Begin);
    let mut told = bench.user();
    bench.reader.reset();
    assert_eq!(
        told.transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardReset)
    );
    refused_and_closed(told, &frame());
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_and_nothing_else() {
    let bench = Bench::new();
    let mut user = bench.user();
    for garbage in [
        &[0, 0, 0, 0][..],
        &[0xFF; 64],
        &[0, 0, 0, 1, 0x77],
        &[0, 0, 0, 2, 0x03, 0x00],
    ] {
        let mut client = bench.guest();
        client.0.write_all(garbage).unwrap();
        assert_eq!(client.hear(), Said::Refused(Refusal::Protocol));
        assert_eq!(client.hear(), Said::Closed);
    }
    for short in [&[][..], &[0x00], &[0x00, 0xA4, 0x04]] {
        assert!(
            matches!(user.transmit(short), Said::Response(answer) if answer.len() == 2),
            "{short:?}"
        );
    }
    assert!(
        matches!(user.transmit(&[0xA5; 4000]), Said::Response(answer) if answer == [0x67, 0x00])
    );
    assert!(matches!(user.transmit(&SELECT_PIV), Said::Response(_)));
}

#[test]
fn counts_are_exact() {
    let bench = Bench::new();
    let mut user = bench.user();
    bench.reader.zero();
    user.ask(&Request::Connect);
    user.ask(&Request::Begin);
    let Said::Response(answer) = user.transmit(&SELECT_PIV) else {
        panic!("no answer")
    };
    user.transmit(&VERIFY_STATUS);
    user.ask(&Request::End);
    user.ask(&Request::Reset);
    bench.reader.remove();
    bench.reader.insert();
    bench.reader.mark("here");
    let counts = bench.reader.counts();
    assert_eq!((counts.apdus, counts.command_bytes), (2, 15 + 4));
    assert_eq!(counts.response_bytes, answer.len() as u64 + 2);
    assert_eq!(
        (counts.connects, counts.begins, counts.ends, counts.resets),
        (1, 1, 1, 1)
    );
    assert_eq!(
        (counts.insertions, counts.removals, counts.power_ups),
        (1, 1, 0)
    );
    let exchanges = bench.reader.exchanges();
    assert_eq!(exchanges[0].command, SELECT_PIV);
    assert_eq!(exchanges[0].response, answer);
    assert_eq!(
        (exchanges[1].header(), exchanges[1].status()),
        (&VERIFY_STATUS[..], 0x63C3)
    );
    assert_eq!(
        bench.reader.entries().last().unwrap().event,
        Event::Mark("here".into())
    );
}

#[test]
fn a_log_file_has_a_line_for_each_event() {
    let bench = Bench::new();
    let log = bench.folder.path().join("log");
    bench.reader.log_to(&log).unwrap();
    let mut user = bench.user();
    user.transmit(&VERIFY_STATUS);
    bench.reader.mark("done");
    let lines = std::fs::read_to_string(log).unwrap();
    let tails: Vec<&str> = lines.lines().map(|line| line[13..].trim_start()).collect();
    assert_eq!(tails[..2], ["1 Connect", "1 PowerUp"]);
    assert!(tails[2].starts_with("1 00200080 > 6A82 ("), "{}", tails[2]);
    assert_eq!(tails[3], "0 # done");
}

#[test]
fn a_scripted_fate_delays_forges_silences_and_pulls() {
    let bench = Bench::new();
    let mut user = bench.user();
    bench.reader.on_frame(|_| Fate::Forge(vec![0x6F, 0x42]));
    assert_eq!(
        user.transmit(&VERIFY_STATUS),
        Said::Response(vec![0x6F, 0x42])
    );
    assert_eq!(bench.reader.counts().apdus, 0, "the card saw nothing");
    bench.reader.on_frame(|_| Fate::Delay(MOMENT));
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    let before = std::time::Instant::now();
    assert_eq!(user.hear(), Said::Response(NOT_SELECTED.to_vec()));
    assert!(before.elapsed() >= MOMENT);
    bench.reader.on_frame(|_| Fate::Silence);
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(user.is_silent());
    bench.reader.reset();
    assert_eq!(user.hear(), Said::Refused(Refusal::CardReset));
    user.ask(&Request::Connect);
    user.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(user.is_silent());
    bench.reader.remove();
    assert_eq!(user.hear(), Said::Refused(Refusal::CardRemoved));
    bench.reader.insert();
    bench.reader.zero();
    bench.reader.on_frame(|_| Fate::Pull);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    assert_eq!(
        (bench.reader.counts().apdus, bench.reader.is_present()),
        (0, false)
    );
    bench.reader.insert();
    bench.reader.on_frame(|_| Fate::PullAfter);
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Refused(Refusal::CardRemoved)
    );
    assert_eq!(
        (bench.reader.counts().apdus, bench.reader.is_present()),
        (1, false)
    );
    bench.reader.insert();
    bench.reader.heal();
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut patient = bench.user();
    patient.ask(&Request::Begin);
    let mut waiter = bench.user();
    waiter.say(&Request::Begin);
    assert!(waiter.is_silent());
    drop(waiter);
    std::thread::sleep(MOMENT);
    assert_eq!(patient.ask(&Request::End), Said::Ended);
    assert_eq!(
        bench.reader.counts().begins,
        1,
        "nobody got the hold the other had left waiting for"
    );
    bench.reader.on_frame(|_| Fate::Silence);
    let mut impatient = bench.user();
    impatient.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(impatient.is_silent());
    drop(impatient);
    bench.reader.heal();
    assert_eq!(
        patient.transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_server_that_stops_closes_its_connections_whatever_they_wait_for() {
    let mut bench = Bench::new();
    let (mut holder, mut waiter, mut watcher) = (bench.user(), bench.user(), bench.watcher());
    assert_eq!(holder.ask(&Request::Begin), Said::Begun);
    waiter.say(&Request::Begin);
    assert!(matches!(watcher.hear(), Said::State(..)));
    bench.reader.on_frame(|_| Fate::Silence);
    holder.say(&Request::Transmit(Secret::copy_from(&VERIFY_STATUS)));
    assert!(holder.is_silent());
    drop(bench.server.take());
    assert_eq!(watcher.hear(), Said::Closed);
    for mut client in [holder, waiter] {
        while client.hear() != Said::Closed {}
    }
    let path = bench.folder.path().join("reader");
    assert!(UnixStream::connect(&path).is_err());
    bench.reader.heal();
    bench.server = Some(SocketServer::start(&path, &bench.reader).unwrap());
    assert_eq!(
        bench.user().transmit(&VERIFY_STATUS),
        Said::Response(NOT_SELECTED.to_vec())
    );
}

#[test]
fn a_socket_in_use_is_not_taken_over_and_a_stale_one_is() {
    let bench = Bench::new();
    let path = bench.folder.path().join("reader");
    assert!(SocketServer::start(&path, &bench.reader).is_err());
    assert!(matches!(
        bench.user().transmit(&SELECT_PIV),
        Said::Response(_)
    ));
    let stale = bench.folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(SocketServer::start(&stale, &bench.reader).is_ok());
    let file = bench.folder.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    assert!(SocketServer::start(&file, &bench.reader).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn eight_users_that_hold_the_card_in_turn_never_meet() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let mut user = bench.user();
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(user.ask(&Request::Begin), Said::Begun);
                    for _ in 0..3 {
                        assert!(matches!(user.transmit(&VERIFY_STATUS), Said::Response(_)));
                    }
                    assert_eq!(user.ask(&Request::End), Said::Ended);
                }
            });
        }
    });
    let mut holder = None;
    for entry in bench.reader.entries() {
        match entry.event {
            Event::Begin => assert_eq!(holder.replace(entry.user), None),
            Event::End => assert_eq!(holder.take(), Some(entry.user)),
            Event::Exchange(_) => assert_eq!(holder, Some(entry.user)),
            _ => {}
        }
    }
    assert_eq!(bench.reader.counts().begins, 400);
}
