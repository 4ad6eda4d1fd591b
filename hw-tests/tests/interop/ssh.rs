//! OpenSSH with this module: keys of the card, and an SSH login with them through `ssh-agent`.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::JoinHandle,
};

use claviger_hw_tests::{
    client::Output,
    fixture::{
        card_fixture::CardFixture,
        clients::{Clients, Needed, background::Background, piv_with},
    },
    over_both_services, paths,
    provision::{CardProfile, KeyAlgorithm, OpenPgpPlan, PIN},
};

const NEEDED: [Needed; 5] = [
    ("openssl", "openssl"),
    ("ssh", "openssh-client"),
    ("ssh-agent", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
];

over_both_services! { NEEDED;
    ssh_keygen_prints_the_certified_piv_keys: CardProfile::piv4();
    ssh_keygen_prints_the_certified_openpgp_key: CardProfile::pgp3();
    a_login_with_a_piv_p256_key: piv_with(KeyAlgorithm::P256);
    a_login_with_a_piv_rsa_key: piv_with(KeyAlgorithm::Rsa2048);
    a_login_with_the_openpgp_authentication_key: CardProfile::pgp3();
    a_login_with_an_openpgp_rsa_key: CardProfile::openpgp(OpenPgpPlan::rsa());
    a_wrong_pin_adds_no_key_and_costs_one_try: piv_with(KeyAlgorithm::P256);
}

/// Type and blob of each key in lines of `authorized_keys`; comments aside.
fn keys(lines: &str) -> Vec<(String, String)> {
    let key = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    lines.lines().filter_map(key).collect()
}

/// The key of a certificate as OpenSSH writes it.
fn certified(clients: &Clients<'_>, certificate: &str) -> (String, String) {
    let pem = clients.public_key_of(certificate);
    let mut convert = clients.command("ssh-keygen");
    convert.args(["-i", "-m", "PKCS8", "-f"]).arg(pem);
    let output = clients.run(&mut convert).expect_success();
    keys(&output.stdout).into_iter().next().unwrap()
}

fn keys_of_the_card(clients: &Clients<'_>) -> Output {
    clients
        .run(
            clients
                .command("ssh-keygen")
                .arg("-D")
                .arg(clients.module()),
        )
        .expect_success()
}

fn ssh_keygen_prints_the_certified_piv_keys(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let output = keys_of_the_card(&clients);
    let expected = ["piv-9A", "piv-9C", "piv-9D", "piv-9E"].map(|name| certified(&clients, name));
    assert_eq!(keys(&output.stdout), expected, "{output}");
    let labels: Vec<&str> = output
        .stdout
        .lines()
        .map(|line| line.splitn(3, ' ').last().unwrap())
        .collect();
    assert_eq!(
        labels,
        [
            "PIV AUTH pubkey",
            "SIGN pubkey",
            "KEY MAN pubkey",
            "CARD AUTH pubkey"
        ]
    );
}

/// Ed25519 keys of tokens are known to OpenSSH 10.1 and later, X25519 keys are not for ssh.
fn ssh_keygen_prints_the_certified_openpgp_key(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let output = keys_of_the_card(&clients);
    let mut printed = keys(&output.stdout);
    printed.retain(|(kind, _)| kind != "ssh-ed25519");
    assert_eq!(printed, [certified(&clients, "openpgp-03")], "{output}");
}

/// An agent that may load the module, in the environment of the fixture. Dropping it kills the agent.
struct Agent<'a> {
    clients: &'a Clients<'a>,
    socket: PathBuf,
    _process: Background,
}

impl<'a> Agent<'a> {
    fn start(clients: &'a Clients<'a>, pin: &str) -> Self {
        let askpass = clients.file("askpass", format!("#!/bin/sh\necho {pin}\n"));
        fs::set_permissions(&askpass, fs::Permissions::from_mode(0o700)).unwrap();
        let socket = clients.path("agent");
        let mut agent = clients.command("ssh-agent");
        agent
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .arg("-P")
            .arg(clients.module().canonicalize().unwrap());
        agent
            .env("SSH_ASKPASS", &askpass)
            .env("SSH_ASKPASS_REQUIRE", "force");
        let mut process = Background::start(&mut agent, clients.path("agent.log"));
        process.wait_for("the agent's socket", |_| UnixStream::connect(&socket).ok());
        Self {
            clients,
            socket,
            _process: process,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.clients.command(program);
        command.env("SSH_AUTH_SOCK", &self.socket);
        command
            .env("SSH_ASKPASS", self.clients.path("askpass"))
            .env("SSH_ASKPASS_REQUIRE", "force");
        command
    }

    fn ssh_add(&self, option: &str) -> Output {
        let mut add = self.command("ssh-add");
        add.arg(option).arg(self.clients.module());
        self.clients.run(&mut add)
    }

    fn list(&self) -> Output {
        self.clients.run(self.command("ssh-add").arg("-L"))
    }
}

/// A server for one login: it waits at a port of its own for one connection.
struct Server {
    port: u16,
    log: PathBuf,
    known_hosts: PathBuf,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(clients: &Clients<'_>, authorized: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host_key = clients.path("host-key");
        let mut generate = clients.command("ssh-keygen");
        clients
            .run(
                generate
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(&host_key),
            )
            .expect_success();
        let public = fs::read_to_string(host_key.with_extension("pub")).unwrap();
        let known_hosts = clients.file("known-hosts", format!("[127.0.0.1]:{port} {public}"));
        let log = clients.path("sshd.log");
        let mut sshd = sshd(clients, &host_key, authorized, &log);
        // Its thread ends with the connection; a test that never connects has failed, and its process ends.
        let thread = std::thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            let connection = OwnedFd::from(connection);
            sshd.stdin(connection.try_clone().unwrap())
                .stdout(connection)
                .stderr(Stdio::null());
            let mut process = sshd.spawn().unwrap();
            drop(sshd);
            process.wait().unwrap();
        });
        Self {
            port,
            log,
            known_hosts,
            thread,
        }
    }

    /// Logs in as the user of this test with a key of the agent, and runs a command there.
    fn log_in(self, agent: &Agent<'_>, command: &str) -> Output {
        let mut ssh = agent.command("ssh");
        ssh.args(["-F", "none", "-T", "-p", &self.port.to_string()]);
        ssh.arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "PreferredAuthentications=publickey",
        ] {
            ssh.args(["-o", option]);
        }
        let user = agent
            .clients
            .run(agent.clients.command("id").arg("-un"))
            .expect_success()
            .stdout;
        ssh.args([&format!("{}@127.0.0.1", user.trim()), command]);
        let output = agent.clients.run(&mut ssh);
        assert!(
            output.success(),
            "{output}\n--- sshd\n{}",
            fs::read_to_string(&self.log).unwrap_or_default()
        );
        self.thread.join().unwrap();
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(log.contains("Accepted publickey for"), "{log}");
        output
    }
}

/// `sshd` on its standard input, without the machine's configuration.
fn sshd(clients: &Clients<'_>, host_key: &Path, authorized: &str, log: &Path) -> Command {
    // The chroot folder of sshd's unprivileged process. Usually an init script makes it.
    if rustix::process::geteuid().is_root() {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let authorized = clients.file("authorized-keys", authorized);
    let configuration = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
        host_key.display(),
        authorized.display()
    );
    let configuration = clients.file("sshd.conf", configuration);
    let mut sshd = clients.command(paths::program("sshd").unwrap());
    sshd.arg("-i")
        .arg("-f")
        .arg(configuration)
        .arg("-E")
        .arg(log);
    sshd
}

fn log_in(fixture: &CardFixture, certificate: &str) {
    let clients = Clients::of(fixture);
    let agent = Agent::start(&clients, PIN);
    agent.ssh_add("-s").expect_success();
    let key = certified(&clients, certificate);
    assert!(keys(&agent.list().expect_success().stdout).contains(&key));
    let server = Server::start(&clients, &format!("{} {}\n", key.0, key.1));
    let port = server.port;
    let output = server.log_in(&agent, "echo \"in by $SSH_CONNECTION\"");
    assert!(
        output.stdout.starts_with("in by 127.0.0.1 ")
            && output.stdout.ends_with(&format!(" 127.0.0.1 {port}\n")),
        "{output}"
    );
    agent.ssh_add("-e").expect_success();
    let left = agent.list();
    assert!(
        !left.success() && left.stdout.contains("no identities"),
        "{left}"
    );
}

fn a_login_with_a_piv_p256_key(fixture: &CardFixture) {
    log_in(fixture, "piv-9A");
}

fn a_login_with_a_piv_rsa_key(fixture: &CardFixture) {
    log_in(fixture, "piv-9A");
}

fn a_login_with_the_openpgp_authentication_key(fixture: &CardFixture) {
    log_in(fixture, "openpgp-03");
}

fn a_login_with_an_openpgp_rsa_key(fixture: &CardFixture) {
    log_in(fixture, "openpgp-03");
}

fn a_wrong_pin_adds_no_key_and_costs_one_try(fixture: &CardFixture) {
    let clients = Clients::of(fixture);
    let agent = Agent::start(&clients, "654321");
    fixture.card().zero();
    let refused = agent.ssh_add("-s");
    assert!(!refused.success(), "{refused}");
    assert!(!agent.list().success(), "nothing was added");
    let verify = |command: &[u8]| matches!(command, [0, 0x20, 0, 0x80, 8, ..]);
    let exchanges = fixture.card().exchanges();
    let tries = exchanges
        .iter()
        .filter(|exchange| verify(&exchange.command));
    assert_eq!(tries.count(), 1);
}
