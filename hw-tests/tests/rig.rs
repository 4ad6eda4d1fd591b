//! Rigs: the short way into a test.

#![allow(clippy::expect_used, reason = "helpers of a test fail loudly")]

use std::{
    env, fs,
    os::unix::net::UnixStream,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use claviger_hw_tests::{
    client,
    control::Controlled as _,
    fixture::card_fixture::Rig,
    provision::{KeyAlgorithm, PivPlan, Plan},
    reader::Reader,
    skip,
};

fn variable(rig: &Rig, name: &str) -> Option<String> {
    let found = rig
        .module_env()
        .into_iter()
        .find(|(variable, _)| *variable == name);
    found.map(|(_, value)| value.into_string().expect("a value of this test"))
}

#[test]
fn a_client_of_the_socket_rig_finds_its_card_and_nothing_else() {
    let rig = Rig::socket(Plan::factory());
    assert_eq!(variable(&rig, "CLAVIGER_TRANSPORTS").unwrap(), "socket");
    assert_eq!(variable(&rig, "CLAVIGER_CONFIG").unwrap(), "/dev/null");
    let socket = variable(&rig, "CLAVIGER_SOCKET").unwrap();
    assert!(UnixStream::connect(&socket).is_ok());
    let output = rig
        .run(rig.command("env").env("PATH", env::var_os("PATH").unwrap()))
        .expect_success();
    assert!(
        output
            .stdout
            .contains(&format!("CLAVIGER_SOCKET={socket}\n")),
        "{output}"
    );
    assert!(
        output
            .stdout
            .contains(&format!("HOME={}\n", rig.folder().display())),
        "{output}"
    );
    drop(rig);
    assert!(!fs::exists(socket).unwrap());
}

#[test]
fn a_client_of_the_pcscd_rig_finds_its_card_and_nothing_else() {
    let Some(rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    assert_eq!(variable(&rig, "CLAVIGER_TRANSPORTS").unwrap(), "pcsc");
    assert_eq!(
        variable(&rig, "PCSCLITE_CSOCK_NAME").unwrap(),
        rig.socket_path().to_str().unwrap()
    );
    assert_eq!(variable(&rig, "CLAVIGER_SOCKET"), None);
    assert_eq!(
        rig.card().name(),
        rig.pcscd_service().unwrap().reader_name(0)
    );
}

#[test]
fn cards_of_one_plan_have_the_same_keys_and_lives_of_their_own() {
    let plan = || Plan::piv(PivPlan::authentication(KeyAlgorithm::P384));
    let (a, b) = (Rig::socket(plan()), Rig::socket(plan()));
    assert_eq!(a.certificate("piv-9A"), b.certificate("piv-9A"));
    assert_eq!(a.plan(), b.plan());
    let other = Rig::socket(plan().serial(2));
    assert_ne!(a.certificate("piv-9A"), other.certificate("piv-9A"));
    let yubi = Rig::socket(plan().yubi());
    assert_eq!(
        a.certificate("piv-9A"),
        yubi.certificate("piv-9A"),
        "the keys do not depend on the dispatcher"
    );
    a.remove();
    assert!(!a.card().is_present() && b.card().is_present());
}

#[test]
fn a_stopped_service_comes_back_where_it_was() {
    let mut rig = Rig::socket(Plan::factory());
    rig.stop_service();
    assert!(UnixStream::connect(rig.socket_path()).is_err());
    let reader: Reader = rig.card().clone();
    rig.remove();
    rig.restart_service();
    assert!(UnixStream::connect(rig.socket_path()).is_ok());
    assert!(!reader.is_present(), "the card is as it was");
}

/// Run by [`a_skipped_test_is_said_aloud_and_is_a_failure_where_none_may_be`].
#[test]
#[ignore = "skips itself for the test below"]
fn skips_itself() {
    skip::because("for the sake of it");
}

#[test]
fn a_skipped_test_is_said_aloud_and_is_a_failure_where_none_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("skipped");
    let run = |forbidden: bool| {
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--ignored", "--exact", "skips_itself"])
            .env_remove(skip::NO_SKIP)
            .env(skip::RECORD, &record);
        if forbidden {
            test.env(skip::NO_SKIP, "1");
        }
        client::run(&mut test, Duration::from_secs(20))
    };
    let allowed = run(false).expect_success();
    assert!(
        allowed
            .stderr
            .contains("test skips_itself ... SKIPPED: for the sake of it"),
        "{allowed}"
    );
    assert_eq!(
        fs::read_to_string(&record).unwrap(),
        "skips_itself: for the sake of it\n"
    );
    assert!(!run(true).success());
}

#[test]
fn each_card_of_a_socket_rig_has_its_own_socket() {
    let rig = Rig::socket_cards(&[Plan::factory(), Plan::factory().serial(2)]);
    let sockets = variable(&rig, "CLAVIGER_SOCKET").unwrap();
    let sockets: Vec<&str> = sockets.split(':').collect();
    assert_eq!(sockets.len(), 2);
    assert!(sockets.iter().all(|path| UnixStream::connect(path).is_ok()));
    assert_eq!(rig.cards().count(), 2);
}

#[test]
fn a_rig_obeys_lines_for_each_card() {
    let rig = Rig::socket_cards(&[Plan::factory(), Plan::factory()]);
    let rig = Arc::new(Mutex::new(rig));
    let remote = Arc::downgrade(&rig);
    let cards: Vec<Reader> = rig.lock().unwrap().cards().cloned().collect();
    assert!(remote.obey("card 1 remove").starts_with("ok "));
    assert!(cards[0].is_present() && !cards[1].is_present());
    assert_eq!(remote.obey("sent 20"), "0");
    assert_eq!(remote.obey("fault 20 2 pull-after"), "ok");
    assert!(remote.obey("service stop").starts_with("ok "));
    for nonsense in [
        "card 2 insert",
        "card",
        "fault 20 0 pull",
        "fault 20 1 explode",
        "sent",
        "service",
        "insert all",
    ] {
        assert!(remote.obey(nonsense).starts_with("error "), "{nonsense}");
    }
    assert!(UnixStream::connect(rig.lock().unwrap().socket_path()).is_err());
    drop(rig);
    assert!(remote.obey("insert").starts_with("error "));
}
