//! A pcscd of the test's own, and OpenSC as a client of it.

#![allow(clippy::expect_used, reason = "helpers of a test fail loudly")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use claviger_hw_tests::{
    card::{CardConfig, VirtualCard},
    client::{self, Output},
    fixture::card_fixture::Rig,
    paths,
    pcscd::{Pcscd, SOCKET_VARIABLE},
    provision::{KeyAlgorithm, PivPlan, Plan},
    reader::{Fate, Reader},
    skip,
    vpcd::VpcdClient,
};

const LIMIT: Duration = Duration::from_secs(30);
const NITROKEY_3: &str = "3b:8f:01:80:5d:4e:69:74:72:6f:6b:65:79:00:00:00:00:00:6a";

fn opensc(rig: &Rig, arguments: &[&str]) -> Output {
    let module = paths::opensc_module_path().expect("opensc-pkcs11 is installed where opensc is");
    rig.run(
        rig.command("pkcs11-tool")
            .arg("--module")
            .arg(module)
            .args(arguments),
    )
}

#[test]
fn opensc_sees_the_provisioned_piv_card() {
    let Some(rig) = Rig::pcscd(Plan::piv4()) else {
        return;
    };
    let atr = rig
        .run(rig.command("opensc-tool").arg("--atr"))
        .expect_success();
    assert_eq!(atr.stdout.trim(), NITROKEY_3);
    let slots = opensc(&rig, &["--list-slots"]).expect_success().stdout;
    assert!(
        slots.contains("Claviger PIV 9A"),
        "the label is the name in the first certificate\n{slots}"
    );
    let objects = opensc(&rig, &["--list-objects"]).expect_success().stdout;
    for label in [
        "PIV Authentication",
        "Digital Signature",
        "Key Management",
        "Card Authentication",
    ] {
        assert!(
            objects.contains(&format!("Certificate for {label}")),
            "{label}\n{objects}"
        );
    }
    assert_eq!(objects.matches("Public Key Object").count(), 4, "{objects}");
}

#[test]
fn opensc_signs_with_the_card_and_the_certificate_verifies_it() {
    let Some(rig) = Rig::pcscd(Plan::piv4()) else {
        return;
    };
    let path = |name: &str| {
        rig.folder()
            .join(name)
            .to_str()
            .expect("a path of this test")
            .to_owned()
    };
    let (data, signature, public) = (path("data"), path("signature"), path("public.pem"));
    fs::write(&data, [7; 32]).unwrap();
    let sign = [
        "--login",
        "--pin",
        "123456",
        "--sign",
        "--mechanism",
        "ECDSA",
        "--id",
        "01",
    ];
    let files = [
        "--signature-format",
        "openssl",
        "--input-file",
        &data,
        "--output-file",
        &signature,
    ];
    opensc(&rig, &[&sign[..], &files].concat()).expect_success();
    fs::write(path("certificate"), rig.certificate("piv-9A")).unwrap();
    let mut extract = rig.command("openssl");
    extract.args([
        "x509",
        "-inform",
        "DER",
        "-in",
        &path("certificate"),
        "-pubkey",
        "-noout",
        "-out",
        &public,
    ]);
    rig.run(&mut extract).expect_success();
    let mut verify = rig.command("openssl");
    verify.args([
        "pkeyutl", "-verify", "-pubin", "-inkey", &public, "-in", &data, "-sigfile", &signature,
    ]);
    rig.run(&mut verify).expect_success();
}

#[test]
fn opensc_sees_the_provisioned_openpgp_card() {
    let Some(rig) = Rig::pcscd(Plan::pgp3()) else {
        return;
    };
    let objects = opensc(&rig, &["--login", "--pin", "123456", "--list-objects"])
        .expect_success()
        .stdout;
    assert!(objects.contains("Authentication key"), "{objects}");
    assert!(objects.contains("AUT certificate"), "{objects}");
    let slots = opensc(&rig, &["--list-slots"]).expect_success().stdout;
    assert!(slots.contains("OpenPGP card (User PIN (sig))"), "{slots}");
}

#[test]
fn two_cards_are_in_two_readers() {
    let Some(rig) = Rig::pcscd_cards(&[Plan::piv4(), Plan::factory().serial(2)]) else {
        return;
    };
    let list = rig
        .run(rig.command("opensc-tool").arg("--list-readers"))
        .expect_success()
        .stdout;
    assert_eq!(list.matches("Yes").count(), 2, "{list}");
    let pcscd = rig.pcscd_service().unwrap();
    assert!(
        list.contains(&pcscd.reader_name(0)) && list.contains(&pcscd.reader_name(1)),
        "{list}"
    );
    rig.card_at(1).zero();
    rig.run(rig.command("opensc-tool").args([
        "--reader",
        &pcscd.reader_name(0),
        "--send-apdu",
        "00A40400",
    ]))
    .expect_success();
    assert_eq!(rig.card_at(1).counts().apdus, 0);
}

#[test]
fn removal_and_insertion_reach_pcscd() {
    let Some(rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    for _ in 0..2 {
        rig.remove();
        rig.settle();
        assert!(!rig.run(rig.command("opensc-tool").arg("--atr")).success());
        rig.insert();
        rig.settle();
        rig.run(rig.command("opensc-tool").arg("--atr"))
            .expect_success();
    }
}

#[test]
fn a_restarted_pcscd_finds_the_card_again() {
    let Some(mut rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    rig.stop_service();
    assert!(!rig.run(rig.command("opensc-tool").arg("--atr")).success());
    rig.restart_service();
    rig.run(rig.command("opensc-tool").arg("--atr"))
        .expect_success();
}

#[test]
fn a_crashed_pcscd_leaves_socket_and_pid_file_behind_and_the_next_one_begins() {
    let Some(mut rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    for _ in 0..2 {
        rig.crash_service();
        for name in ["pcscd.comm", "pcscd.pid"] {
            assert!(rig.socket_path().with_file_name(name).exists(), "{name}");
        }
        assert!(!rig.run(rig.command("opensc-tool").arg("--atr")).success());
        rig.begin_service();
        rig.settle();
        rig.run(rig.command("opensc-tool").arg("--atr"))
            .expect_success();
    }
}

#[test]
fn a_client_starts_a_pcscd_whose_socket_is_held_for_it() {
    let Some(mut rig) = Rig::pcscd_by_socket(&[Plan::factory()]) else {
        return;
    };
    for _ in 0..2 {
        rig.crash_service();
        let list = rig.run(rig.command("opensc-tool").arg("--list-readers"));
        assert!(list.expect_success().stdout.contains("Claviger"));
        rig.settle();
        rig.run(rig.command("opensc-tool").arg("--atr"))
            .expect_success();
    }
    rig.restart_service();
    rig.run(rig.command("opensc-tool").arg("--atr"))
        .expect_success();
}

#[test]
fn a_frozen_pcscd_takes_clients_and_serves_none_until_it_thaws() {
    let Some(rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    let pcscd = rig.pcscd_service().unwrap();
    pcscd.freeze();
    assert!(UnixStream::connect(pcscd.socket()).is_ok());
    let mut client = rig.command("opensc-tool");
    let stuck = client::run(client.arg("--atr"), Duration::from_secs(1));
    assert!(stuck.timed_out, "{stuck}");
    pcscd.thaw();
    rig.run(rig.command("opensc-tool").arg("--atr"))
        .expect_success();
}

#[test]
fn an_exchanged_card_is_another_one() {
    let plan = || Plan::piv(PivPlan::authentication(KeyAlgorithm::P256));
    let Some(mut rig) = Rig::pcscd(plan()) else {
        return;
    };
    let certificate = rig.certificate("piv-9A").to_vec();
    rig.crash_service();
    rig.exchange_card();
    rig.begin_service();
    rig.settle();
    assert_ne!(rig.certificate("piv-9A"), certificate);
    let apdus = rig.card().counts().apdus;
    rig.run(rig.command("opensc-tool").args(["--send-apdu", "00200080"]))
        .expect_success();
    assert!(rig.card().counts().apdus > apdus);
}

#[test]
fn an_apdu_over_pcscd_and_vpcd_costs_no_delayed_acknowledgement() {
    let Some(rig) = Rig::pcscd(Plan::factory()) else {
        return;
    };
    let (come, times) = mpsc::channel();
    rig.card().on_frame(move |_| {
        come.send(Instant::now()).unwrap();
        Fate::Answer
    });
    let mut client = rig.command("opensc-tool");
    client.args(["--send-apdu", "00200080"].repeat(100));
    rig.run(&mut client).expect_success();
    let times: Vec<Instant> = times.try_iter().collect();
    let apart = times.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(apart.len() >= 99);
    // A busy machine may be late with some; a delayed acknowledgement is 40 ms late with each.
    let best = apart.min().unwrap();
    assert!(best < Duration::from_millis(39), "{best:?} apart at best");
}

#[test]
fn a_client_that_hangs_is_killed_with_all_it_started() {
    let start = Instant::now();
    let mut client = Command::new("sh");
    client.args(["-c", "echo before; sleep 100 & echo $! ; sleep 100"]);
    let output = client::run(&mut client, Duration::from_millis(300));
    assert!(output.timed_out && !output.success());
    assert!(start.elapsed() < Duration::from_secs(10));
    let mut lines = output.stdout.lines();
    assert_eq!(lines.next(), Some("before"), "what it said before is kept");
    let grandchild = lines.next().unwrap();
    let state = || fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    // Killed, and a zombie until somebody reaps it.
    while !(state().is_empty() || state().contains(") Z ")) {
        assert!(Instant::now() < deadline, "{}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Leaves no pcscd behind, and nothing in the folders of the system's own.
#[test]
fn a_dropped_pcscd_is_gone() {
    if let Some(obstacle) = Pcscd::obstacle() {
        return skip::because(obstacle);
    }
    let pcscd = Pcscd::start(1);
    let socket = pcscd.socket();
    assert!(socket.exists());
    assert!(
        !fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains("/run/pcscd.comm")
    );
    drop(pcscd);
    assert!(!socket.exists());
    let path = socket.to_str().unwrap();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("cmdline"));
    let folder = path.trim_end_matches("/run/pcscd.comm").as_bytes();
    for cmdline in processes.filter_map(|path| fs::read(path).ok()) {
        assert!(
            !cmdline.windows(folder.len()).any(|window| window == folder),
            "{}",
            String::from_utf8_lossy(&cmdline)
        );
    }
}

/// Run by [`an_ordinary_user_has_a_pcscd_too`] as that user.
#[test]
#[ignore = "runs as another user, from the test below"]
fn as_this_user() {
    assert_eq!(Pcscd::obstacle(), None);
    let reader = Reader::new(
        "virtual",
        VirtualCard::power_up(CardConfig::default()).unwrap(),
    );
    let pcscd = Pcscd::start(1);
    let _vpcd = VpcdClient::start(pcscd.port(0), &reader).unwrap();
    pcscd.wait_for_cards(1);
    let mut client = Command::new("opensc-tool");
    client.arg("--atr").env(SOCKET_VARIABLE, pcscd.socket());
    assert_eq!(
        client::run(&mut client, LIMIT)
            .expect_success()
            .stdout
            .trim(),
        NITROKEY_3
    );
}

#[test]
fn an_ordinary_user_has_a_pcscd_too() {
    if let Some(obstacle) = Pcscd::obstacle() {
        return skip::because(obstacle);
    }
    if !rustix::process::geteuid().is_root() {
        return as_this_user();
    }
    // The build's folder may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut nobody = Command::new("setpriv");
    nobody
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ])
        .arg(&program);
    nobody
        .args(["--ignored", "--exact", "as_this_user"])
        .current_dir("/")
        .env_remove("TMPDIR");
    let output = client::run(&mut nobody, LIMIT);
    if output.stdout.contains("may not make mount namespaces") {
        return skip::because("ordinary users may not make user namespaces here");
    }
    assert!(output.expect_success().stdout.contains("1 passed"));
}
