//! One provisioned card within a module's reach: the short way into a test.
//!
//! ```no_run
//! use claviger_hw_tests::{provision::Plan, rig::Rig};
//! let rig = Rig::socket(Plan::piv4());
//! let mut client = rig.command("pkcs11-tool");
//! client.arg("--module").arg(claviger_hw_tests::paths::module_path()).arg("--list-slots");
//! rig.card().zero();
//! let output = rig.run(&mut client).expect_success();
//! assert!(output.stdout.contains("Slot"));
//! assert!(rig.card().counts().apdus < 20);
//! ```

#![allow(clippy::expect_used, clippy::panic, reason = "a harness fails loudly")]

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::{
    card::{State, VirtualCard},
    client::{self, Output},
    paths,
    pcscd::{Pcscd, SOCKET_VARIABLE},
    provision::{Issued, Plan, provisioned},
    reader::Reader,
    server::SocketServer,
    skip,
    usb::{Model, UsbReader, UsbWay},
    vpcd::VpcdClient,
};

/// How long a client of [`Rig::run`] may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A card of a plan in a reader, or several, and the service a module finds it by; everything ends when it is dropped.
#[derive(Debug)]
pub struct Rig {
    /// Dropped first: cards leave before their service does.
    places: Vec<Place>,
    service: Service,
    folder: TempDir,
}

/// A reader with its card.
#[derive(Debug)]
struct Place {
    plan: Plan,
    reader: Reader,
    issued: Issued,
    /// Its line to pcscd, if that is the service.
    vpcd: Option<VpcdClient>,
}

#[derive(Debug)]
enum Service {
    /// A server for each reader; none while they are stopped.
    Socket(Vec<SocketServer>),
    Pcscd(Pcscd),
    /// On the USB of this machine, and how the module gets there.
    Usb(Vec<UsbReader>, UsbWay),
}

impl Rig {
    /// The card behind the socket reader.
    ///
    /// # Panics
    /// When the card cannot be made.
    #[must_use]
    pub fn socket(plan: Plan) -> Self {
        Self::socket_cards(&[plan])
    }

    /// As [`Rig::socket`] with several cards, each behind a socket of its own.
    ///
    /// # Panics
    /// As [`Rig::socket`].
    #[must_use]
    pub fn socket_cards(plans: &[Plan]) -> Self {
        if let Some(way) = UsbWay::of_environment() {
            return Self::usb_cards(plans, way);
        }
        let place = |plan: &Plan| Place::new(plan.clone(), "Claviger virtual reader");
        let mut rig = Self {
            places: plans.iter().map(place).collect(),
            service: Service::Socket(Vec::new()),
            folder: scratch_folder(),
        };
        rig.restart_service();
        rig
    }

    /// As [`Rig::usb_cards`] with one card.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn usb(plan: Plan, way: UsbWay) -> Self {
        Self::usb_cards(&[plan], way)
    }

    /// Cards on the USB of this machine, each in a token of its own. They are seen by every other test of the machine,
    /// so these tests run one after the other.
    ///
    /// # Panics
    /// Where [`usb::obstacle`] has something to say.
    #[must_use]
    pub fn usb_cards(plans: &[Plan], way: UsbWay) -> Self {
        let place = |plan: &Plan| Place::new(plan.clone(), "Claviger virtual reader");
        let places: Vec<Place> = plans.iter().map(place).collect();
        if way == UsbWay::Libccid {
            // pcscd shows the readers of the rig before for a moment.
            way.wait_for_cards(0);
        }
        let plug = |place: &Place| {
            UsbReader::plug(&place.reader, Model::of_environment()).expect("a free port")
        };
        let readers = places.iter().map(plug).collect();
        let rig = Self {
            places,
            service: Service::Usb(readers, way),
            folder: scratch_folder(),
        };
        rig.settle();
        rig
    }

    /// The reader on the USB.
    ///
    /// # Panics
    /// In a rig of another kind.
    pub fn on_usb(&mut self) -> &mut UsbReader {
        match &mut self.service {
            Service::Usb(readers, _) => readers.first_mut().expect("a reader"),
            _ => panic!("a rig on the USB"),
        }
    }

    /// The card behind a pcscd of its own; `None`, and the test counted as skipped, where that cannot be.
    ///
    /// # Panics
    /// When the card or pcscd cannot be made though nothing stands against it.
    #[must_use]
    pub fn pcscd(plan: Plan) -> Option<Self> {
        Self::pcscd_cards(&[plan])
    }

    /// As [`Rig::pcscd`] with several cards, 8 at most, each in its own reader.
    ///
    /// # Panics
    /// As [`Rig::pcscd`].
    #[must_use]
    pub fn pcscd_cards(plans: &[Plan]) -> Option<Self> {
        Self::in_pcscd(Pcscd::start, plans)
    }

    /// As [`Rig::pcscd_cards`], with a pcscd that a client starts who connects ([`Pcscd::start_by_socket`]).
    ///
    /// # Panics
    /// As [`Rig::pcscd`].
    #[must_use]
    pub fn pcscd_by_socket(plans: &[Plan]) -> Option<Self> {
        Self::in_pcscd(Pcscd::start_by_socket, plans)
    }

    fn in_pcscd(start: impl FnOnce(usize) -> Pcscd, plans: &[Plan]) -> Option<Self> {
        if let Some(obstacle) = Pcscd::obstacle() {
            skip::because(obstacle);
            return None;
        }
        let pcscd = start(plans.len());
        let connect = |(n, plan): (usize, &Plan)| {
            let mut place = Place::new(plan.clone(), &pcscd.reader_name(n));
            place.vpcd = Some(VpcdClient::start(pcscd.port(n), &place.reader).expect("a thread"));
            place
        };
        let places = plans.iter().enumerate().map(connect).collect();
        let rig = Self {
            places,
            service: Service::Pcscd(pcscd),
            folder: scratch_folder(),
        };
        rig.settle();
        Some(rig)
    }

    /// The card in its reader: counts, log, faults, presence.
    ///
    /// # Panics
    /// In a rig without cards.
    #[must_use]
    pub fn card(&self) -> &Reader {
        self.card_at(0)
    }

    /// What the card was made of.
    ///
    /// # Panics
    /// In a rig without cards.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.places.first().expect("a card of this rig").plan
    }

    /// Card `n` of [`Rig::pcscd_cards`] or [`Rig::socket_cards`].
    ///
    /// # Panics
    /// When there is no such card.
    #[must_use]
    pub fn card_at(&self, n: usize) -> &Reader {
        self.cards().nth(n).expect("a card of this rig")
    }

    /// All cards, in the order of their plans.
    pub fn cards(&self) -> impl Iterator<Item = &Reader> {
        self.places.iter().map(|place| &place.reader)
    }

    /// Puts the card in; pcscd may take half a second to see it ([`Rig::settle`]).
    pub fn insert(&self) {
        self.card().insert();
    }

    /// Pulls the card; pcscd may take half a second to see it ([`Rig::settle`]).
    pub fn remove(&self) {
        self.card().remove();
    }

    /// Power-cycles the card behind everybody's back; the socket reader tells its users, pcscd does not know.
    pub fn reset(&self) {
        self.card().reset();
    }

    /// Waits until the service tells its clients what cards there are; the socket reader does so at once.
    ///
    /// # Panics
    /// When pcscd does not get there.
    pub fn settle(&self) {
        let cards = self.cards().filter(|card| card.is_present()).count();
        match &self.service {
            Service::Pcscd(pcscd) => pcscd.wait_for_cards(cards),
            Service::Usb(_, way) => way.wait_for_cards(cards),
            Service::Socket(_) => {}
        }
    }

    /// Ends the service under its clients: the socket is gone, or pcscd is.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_service(&mut self) {
        match &mut self.service {
            Service::Socket(servers) => servers.clear(),
            Service::Pcscd(pcscd) => pcscd.stop(),
            Service::Usb(readers, _) => readers.iter_mut().for_each(UsbReader::unplug),
        }
    }

    /// Starts the service again, for the same clients; the cards are as [`Rig::stop_service`] found them.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart_service(&mut self) {
        self.stop_service();
        self.begin_service();
        self.settle();
    }

    /// Ends the service as a crash does ([`Pcscd::crash`]); the socket reader leaves nothing behind either way.
    ///
    /// # Panics
    /// When it does not run.
    pub fn crash_service(&mut self) {
        match &mut self.service {
            Service::Socket(servers) => servers.clear(),
            Service::Pcscd(pcscd) => pcscd.crash(),
            Service::Usb(readers, _) => readers.iter_mut().for_each(UsbReader::unplug),
        }
    }

    /// Starts the service after [`Rig::stop_service`] or [`Rig::crash_service`], and waits until clients reach it.
    /// pcscd takes half a second more to see its cards ([`Rig::settle`]).
    ///
    /// # Panics
    /// When it does not start.
    pub fn begin_service(&mut self) {
        let paths: Vec<PathBuf> = (0..self.places.len())
            .map(|n| self.reader_path(n))
            .collect();
        match &mut self.service {
            Service::Socket(servers) => {
                let readers = self.places.iter().map(|place| &place.reader);
                let start = |(path, reader)| SocketServer::start(path, reader).expect("a socket");
                *servers = paths.into_iter().zip(readers).map(start).collect();
            }
            Service::Pcscd(pcscd) => pcscd.begin(),
            Service::Usb(readers, _) => {
                let replugged = readers.iter_mut().try_for_each(UsbReader::replug);
                replugged.expect("its port is free");
            }
        }
    }

    /// Puts another card in the first card's place while the service is down: the same plan with the next serial
    /// number, and for the service nothing to tell them apart by.
    ///
    /// # Panics
    /// When the card cannot be made.
    pub fn exchange_card(&mut self) {
        let old = self.places.first_mut().expect("a card of this rig");
        old.vpcd = None;
        let plan = old.plan.clone().serial(old.plan.serial + 1);
        let mut place = Place::new(plan, old.reader.name());
        if let Service::Pcscd(pcscd) = &self.service {
            place.vpcd = Some(VpcdClient::start(pcscd.port(0), &place.reader).expect("a thread"));
        }
        *old = place;
    }

    /// Stops pcscd in its tracks, as a suspended machine does, until [`Rig::thaw_service`].
    ///
    /// # Panics
    /// Without a pcscd that runs.
    pub fn freeze_service(&self) {
        self.pcscd_service().expect("a pcscd").freeze();
    }

    /// Lets a pcscd go on that was stopped by [`Rig::freeze_service`].
    ///
    /// # Panics
    /// Without a pcscd that runs.
    pub fn thaw_service(&self) {
        self.pcscd_service().expect("a pcscd").thaw();
    }

    /// Pulls the first two cards and puts each where the other was; pcscd only.
    ///
    /// # Panics
    /// Without a pcscd, or without two cards.
    pub fn swap(&mut self) {
        let [one, other, ..] = self.places.as_mut_slice() else {
            panic!("a swap needs two cards");
        };
        let (here, there) = (one.port(), other.port());
        one.move_to(there);
        other.move_to(here);
    }

    /// The pcscd of this rig, if it has one.
    #[must_use]
    pub const fn pcscd_service(&self) -> Option<&Pcscd> {
        match &self.service {
            Service::Pcscd(pcscd) => Some(pcscd),
            Service::Socket(_) | Service::Usb(..) => None,
        }
    }

    /// The environment in which the module finds this rig's cards and nothing else.
    ///
    /// # Panics
    /// When the folder of temporary files has a colon in its name.
    #[must_use]
    pub fn module_env(&self) -> Vec<(&'static str, OsString)> {
        let (transport, variable, path) = match &self.service {
            Service::Socket(_) => {
                let paths = (0..self.places.len()).map(|n| self.reader_path(n));
                let paths = env::join_paths(paths).expect("no colon in a path");
                ("socket", "CLAVIGER_SOCKET", paths)
            }
            Service::Pcscd(pcscd) => ("pcsc", SOCKET_VARIABLE, pcscd.socket().into()),
            Service::Usb(_, way) => {
                let (transport, backend) = way.environment();
                (transport, "CLAVIGER_USB_BACKEND", backend.into())
            }
        };
        let mut variables = vec![
            ("CLAVIGER_TRANSPORTS", transport.into()),
            (variable, path),
            ("CLAVIGER_CONFIG", "/dev/null".into()),
        ];
        if matches!(self.service, Service::Usb(..)) {
            // Where the lock files of its readers are made.
            variables.push(("XDG_RUNTIME_DIR", self.folder().into()));
        }
        variables
    }

    /// A client with [`Rig::module_env`] and a home folder of its own.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .envs(self.module_env())
            .env("HOME", self.folder())
            .env_remove("XDG_CONFIG_HOME");
        command
            .env_remove("XDG_CACHE_HOME")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Runs a client, for a minute at most.
    #[must_use]
    pub fn run(&self, command: &mut Command) -> Output {
        client::run(command, LIMIT)
    }

    /// A certificate in DER by its name: `ca`, `piv-9A`, `openpgp-03` and so on.
    ///
    /// # Panics
    /// When the plan has no such certificate.
    #[must_use]
    pub fn certificate(&self, name: &str) -> &[u8] {
        let issued = &self.places.first().expect("a card").issued;
        issued
            .certificate(name)
            .unwrap_or_else(|| panic!("no certificate {name} in this plan"))
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where clients find the service: the first reader's socket, or pcscd's.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        match &self.service {
            Service::Socket(_) => self.reader_path(0),
            Service::Pcscd(pcscd) => pcscd.socket(),
            Service::Usb(..) => PathBuf::new(),
        }
    }

    fn reader_path(&self, n: usize) -> PathBuf {
        let name = match n {
            0 => "reader".to_owned(),
            n => format!("reader-{n}"),
        };
        self.folder.path().join(name)
    }
}

impl Place {
    fn new(plan: Plan, name: &str) -> Self {
        let (state, issued) = memory(&plan);
        let card = VirtualCard::power_up(plan.card(state)).expect("a provisioned card powers up");
        Self {
            reader: Reader::new(name, card),
            issued,
            plan,
            vpcd: None,
        }
    }

    fn port(&self) -> u16 {
        self.vpcd.as_ref().expect("a card of pcscd").port()
    }

    fn move_to(&mut self, port: u16) {
        self.vpcd = None;
        self.vpcd = Some(VpcdClient::start(port, &self.reader).expect("a thread"));
    }
}

/// A copy of the plan's card. Each plan is provisioned once for all tests of the build.
fn memory(plan: &Plan) -> (State, Issued) {
    if plan.is_factory() {
        return (State::Fresh, Issued::default());
    }
    let cards = paths::scratch().join("cards");
    fs::create_dir_all(&cards).expect("a folder of the build");
    let folder = cards.join(plan.folder_name());
    let lock = File::create(folder.with_extension("lock")).expect("a file of the build");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let (card, issued) =
        provisioned(&folder, plan).unwrap_or_else(|error| panic!("{plan:?}: {error}"));
    drop(card);
    (State::CopyOf(folder), issued)
}

fn scratch_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("claviger")
        .tempdir()
        .expect("a temporary folder")
}
