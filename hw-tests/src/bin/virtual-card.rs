//! A virtual card for users and scripts: in a socket reader, in vsmartcard's vpcd, in QEMU's reader, or in several.

use std::{
    error::Error,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::mpsc,
};

use claviger_hw_tests::{
    card::{State, VirtualCard},
    control,
    provision::{
        CardProfile, IssuedCertificates, OpenPgpPlan, PivPlan, ProvisionError, provision,
        provisioned,
    },
    reader::Reader,
    server::SocketServer,
    vpcd::VpcdClient,
    vscard::VscardClient,
};
use lexopt::{Arg, Parser, ValueExt as _};

const HELP: &str = "\
virtual-card: a smart card with the Nitrokey 3's applets, without hardware

  --socket PATH      serve the socket reader protocol there
  --vpcd PORT        put the card into the vpcd that listens at this port of this host
  --vscard PATH      put the card into the usb-ccid of the QEMU that listens there; it speaks T=0 then
  --apps LIST        applets: piv,openpgp (default: both)
  --serial N         serial number (default 1)
  --state DIR        keep the card in this folder; without it, the card is forgotten at the end
  --provision WHAT   make keys and certificates: piv4, pgp3 or both; a card in DIR keeps the ones it has
  --certificates DIR write the certificates there, as NAME.der
  --log FILE         append one line for each APDU; all bytes, PINs included
  --control PATH     take lines there: insert, remove, reset, counts, zero, quit and more; see control.rs
  --name NAME        the reader's name
  --yubi             select PIV by its 5-byte RID and imply Le, as YubiKeys do
  --absent           begin without the card

PINs: 123456; PUK and admin PIN: 12345678; PIV management key: 3DES, 0102030405060708 three times.
";

fn main() -> ExitCode {
    match Options::parse(Parser::from_env())
        .and_then(|options| options.map_or(Ok(()), Options::run))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtual-card: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    socket: Option<PathBuf>,
    vpcd: Option<u16>,
    vscard: Option<PathBuf>,
    profile: CardProfile,
    state: Option<PathBuf>,
    certificates: Option<PathBuf>,
    log: Option<PathBuf>,
    control: Option<PathBuf>,
    name: String,
    absent: bool,
}

impl Options {
    /// Parses the arguments. Returns `None` after printing the help.
    fn parse(mut parser: Parser) -> Result<Option<Self>, Box<dyn Error>> {
        let mut options = Self {
            socket: None,
            vpcd: None,
            vscard: None,
            profile: CardProfile::factory(),
            state: None,
            certificates: None,
            log: None,
            control: None,
            name: "Claviger virtual reader".to_owned(),
            absent: false,
        };
        let mut contents = None;
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long("socket") => options.socket = Some(parser.value()?.into()),
                Arg::Long("vpcd") => options.vpcd = Some(parser.value()?.parse()?),
                Arg::Long("vscard") => options.vscard = Some(parser.value()?.into()),
                Arg::Long("apps") => restrict(&mut options.profile, &parser.value()?.string()?)?,
                Arg::Long("serial") => options.profile.serial = parser.value()?.parse()?,
                Arg::Long("state") => options.state = Some(parser.value()?.into()),
                Arg::Long("provision") => contents = Some(parser.value()?.string()?),
                Arg::Long("certificates") => options.certificates = Some(parser.value()?.into()),
                Arg::Long("log") => options.log = Some(parser.value()?.into()),
                Arg::Long("control") => options.control = Some(parser.value()?.into()),
                Arg::Long("name") => options.name = parser.value()?.string()?,
                Arg::Long("yubi") => options.profile.yubi = true,
                Arg::Long("absent") => options.absent = true,
                Arg::Long("help") | Arg::Short('h') => {
                    print!("{HELP}");
                    return Ok(None);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if options.socket.is_none() && options.vpcd.is_none() && options.vscard.is_none() {
            return Err("say --socket PATH, --vpcd PORT or --vscard PATH, or --help".into());
        }
        if options.profile.yubi && options.vscard.is_some() {
            return Err("--yubi implies Le, which a card of T=0 (--vscard) cannot".into());
        }
        contents.map_or(Ok(()), |contents| fill(&mut options.profile, &contents))?;
        Ok(Some(options))
    }

    fn run(self) -> Result<(), Box<dyn Error>> {
        let (card, issued) = match &self.state {
            Some(folder) => provisioned(folder, &self.profile)?,
            None => fresh(&self.profile)?,
        };
        if let Some(folder) = &self.certificates {
            std::fs::create_dir_all(folder)?;
            issued.write(folder)?;
        }
        let reader = Reader::new(&self.name, card);
        if self.absent {
            reader.remove();
        }
        if let Some(path) = &self.log {
            reader.log_to(path)?;
        }
        self.serve(&reader)
    }

    /// Serves until `quit` arrives over the control socket, or until a signal.
    fn serve(self, reader: &Reader) -> Result<(), Box<dyn Error>> {
        let (end, ended) = mpsc::channel();
        if let Some(path) = &self.control {
            control::listen(path, reader.clone(), end.clone())?;
        }
        let server = self
            .socket
            .map(|path| SocketServer::start(path, reader))
            .transpose()?;
        let client = self
            .vpcd
            .map(|port| VpcdClient::start(port, reader))
            .transpose()?;
        let in_qemu = self
            .vscard
            .map(|path| VscardClient::start(path, reader))
            .transpose()?;
        println!("ready");
        io::stdout().flush()?;
        let _ = ended.recv();
        drop((server, client, in_qemu, end));
        Ok(())
    }
}

fn fresh(profile: &CardProfile) -> Result<(VirtualCard, IssuedCertificates), ProvisionError> {
    let card = VirtualCard::power_up(profile.card(State::Fresh))?;
    let issued = provision(&card, profile)?;
    Ok((card, issued))
}

fn restrict(profile: &mut CardProfile, applets: &str) -> Result<(), Box<dyn Error>> {
    let applets: Vec<&str> = applets.split(',').collect();
    if let Some(unknown) = applets
        .iter()
        .find(|applet| !["piv", "openpgp"].contains(applet))
    {
        return Err(format!("--apps: {unknown:?} is neither piv nor openpgp").into());
    }
    profile.piv = profile.piv.take().filter(|_| applets.contains(&"piv"));
    profile.openpgp = profile.openpgp.filter(|_| applets.contains(&"openpgp"));
    Ok(())
}

fn fill(profile: &mut CardProfile, contents: &str) -> Result<(), Box<dyn Error>> {
    let (piv, openpgp) = match contents {
        "piv4" => (true, false),
        "pgp3" => (false, true),
        "both" => (true, true),
        other => return Err(format!("--provision: {other:?} is none of piv4, pgp3, both").into()),
    };
    if piv && profile.piv.is_none() || openpgp && profile.openpgp.is_none() {
        return Err(
            format!("--provision {contents} needs an applet that --apps leaves out").into(),
        );
    }
    if piv {
        profile.piv = Some(PivPlan::four_keys());
    }
    if openpgp {
        profile.openpgp = Some(OpenPgpPlan::three_keys());
    }
    Ok(())
}
