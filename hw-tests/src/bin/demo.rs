//! `make demo`: from C_Initialize to a signature that OpenSSL verifies, with no card, no pcscd and no root.
//!
//! This process serves a card with the firmware of a Nitrokey 3 over a socket. The same program, started again as a client,
//! loads the built module and uses it as any application would. With `--pcscd` the card is in a reader of the demo's own
//! pcscd.

use std::{
    env,
    error::Error,
    fmt::Display,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::mpsc,
    time::Instant,
};

use claviger_hw_tests::{
    card::{State, VirtualCard},
    control,
    pcscd::{Pcscd, SOCKET_VARIABLE},
    provision::{CardProfile, PIN, provision},
    reader::Reader,
    server::SocketServer,
    vpcd::VpcdClient,
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const MESSAGE: &[u8] = b"The first signature of many.\n";

fn main() -> ExitCode {
    let outcome = match env::args_os().nth(1) {
        None => hold_the_card(false),
        Some(option) if option == "--pcscd" => hold_the_card(true),
        Some(folder) => use_the_card(Path::new(&folder)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The service with the card. Dropping it ends the service.
enum Place {
    Socket(SocketServer),
    Pcscd { service: Pcscd, _line: VpcdClient },
}

impl Place {
    fn new(pcscd: bool, folder: &Path, reader: &Reader) -> Outcome<Self> {
        if !pcscd {
            return Ok(Self::Socket(SocketServer::start(
                folder.join("reader"),
                reader,
            )?));
        }
        if let Some(obstacle) = Pcscd::obstacle() {
            return Err(obstacle.into());
        }
        let service = Pcscd::start(1);
        let line = VpcdClient::start(service.port(0), reader)?;
        service.wait_for_cards(1);
        Ok(Self::Pcscd {
            service,
            _line: line,
        })
    }

    /// The backend, and the variable with the path of the socket.
    fn environment(&self) -> (&'static str, &'static str, PathBuf) {
        match self {
            Self::Socket(server) => ("socket", "CLAVIGER_SOCKET", server.path().to_owned()),
            Self::Pcscd { service, .. } => ("pcsc", SOCKET_VARIABLE, service.socket()),
        }
    }
}

/// Makes a card in a reader and starts the client.
fn hold_the_card(pcscd: bool) -> Outcome {
    heading("A card");
    let folder = tempfile::tempdir()?;
    let started = Instant::now();
    let profile = CardProfile::both();
    let card = VirtualCard::power_up(profile.card(State::Fresh))?;
    let issued = provision(&card, &profile)?;
    fact(
        "firmware",
        "opcard and piv-authenticator, as on a Nitrokey 3",
    );
    fact(
        "personalised",
        format!(
            "PIV with 4 keys, OpenPGP with 3, in {:.1?}",
            started.elapsed()
        ),
    );
    issued.write(folder.path())?;
    let reader = Reader::new("Claviger virtual reader", card);
    let place = Place::new(pcscd, folder.path(), &reader)?;
    let (end, _ended) = mpsc::channel();
    control::listen(&folder.path().join("control"), reader.clone(), end)?;
    let (transport, variable, socket) = place.environment();
    fact(
        "reader",
        format!("transport {transport}, {}", socket.display()),
    );

    let status = Command::new(env::current_exe()?)
        .arg(folder.path())
        .env("CLAVIGER_CONFIG", "/dev/null")
        .env("CLAVIGER_TRANSPORTS", transport)
        .env(variable, socket)
        .status()?;
    if !status.success() {
        return Err(format!("the client ended with {status}").into());
    }
    let counts = reader.counts();
    fact("at the card", format!("{} APDUs in all", counts.apdus));
    Ok(())
}

fn use_the_card(folder: &Path) -> Outcome {
    let module = module_path()?;
    heading("C_Initialize");
    let pkcs11 = Pkcs11::new(&module)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let info = pkcs11.get_library_info()?;
    fact("module", module.display());
    fact(
        "library",
        format!("{} {}", info.library_description(), info.library_version()),
    );

    heading("Slots");
    let slots = pkcs11.get_slots_with_token()?;
    for slot in &slots {
        let token = pkcs11.get_token_info(*slot)?;
        fact(
            &format!("slot {}", slot.id()),
            format!(
                "{} ({} {}, serial {})",
                token.label(),
                token.manufacturer_id(),
                token.model(),
                token.serial_number()
            ),
        );
    }
    let [piv, openpgp] = slots.as_slice() else {
        return Err(format!("two tokens expected, {} found", slots.len()).into());
    };

    let signer = Signer {
        pkcs11: &pkcs11,
        folder,
    };
    signer.show_objects(*piv)?;
    signer.show_objects(*openpgp)?;
    signer.sign_with_piv(*piv)?;
    signer.sign_with_openpgp(*openpgp)?;

    heading("The card is pulled");
    let asked = send_line(folder, "remove")?;
    let started = Instant::now();
    let slot = pkcs11.wait_for_slot_event()?;
    fact("asked", format!("remove, {asked}"));
    fact(
        "slot event",
        format!("slot {}, {:.1?} later", slot.id(), started.elapsed()),
    );
    fact("tokens left", pkcs11.get_slots_with_token()?.len());

    heading("C_Finalize");
    pkcs11.finalize()?;
    fact("result", "CKR_OK");
    Ok(())
}

struct Signer<'a> {
    pkcs11: &'a Pkcs11,
    folder: &'a Path,
}

impl Signer<'_> {
    fn show_objects(&self, slot: Slot) -> Outcome {
        heading(&format!(
            "Objects of {}",
            self.pkcs11.get_token_info(slot)?.label()
        ));
        let session = self.pkcs11.open_ro_session(slot)?;
        for class in [ObjectClass::CERTIFICATE, ObjectClass::PUBLIC_KEY] {
            for object in session.find_objects(&[Attribute::Class(class)])? {
                fact(&class.to_string(), describe(&session, object)?);
            }
        }
        Ok(())
    }

    fn log_in(&self, slot: Slot) -> Outcome<Session> {
        let session = self.pkcs11.open_ro_session(slot)?;
        session.login(UserType::User, Some(&AuthPin::new(PIN.into())))?;
        fact("C_Login", "CKR_OK");
        Ok(session)
    }

    /// Signs with key 9A. OpenSSL verifies the signature with the key of its certificate.
    fn sign_with_piv(&self, slot: Slot) -> Outcome {
        heading("A signature with the PIV P-256 key");
        let session = self.log_in(slot)?;
        let key = find(&session, ObjectClass::PRIVATE_KEY, 1)?;
        let started = Instant::now();
        let signature = session.sign(&Mechanism::EcdsaSha256, key, MESSAGE)?;
        fact(
            "C_Sign",
            format!("{} bytes in {:.1?}", signature.len(), started.elapsed()),
        );
        // PKCS #11 concatenates r and s. OpenSSL needs them in DER.
        let der = p256::ecdsa::Signature::from_slice(&signature)?.to_der();
        let [message, signature] = self.save("piv", der.as_bytes())?;
        let certificate = self.folder.join("piv-9A.der");
        let public = self.folder.join("piv.pem");
        let pem = openssl(
            &["x509", "-inform", "DER", "-noout", "-pubkey", "-in"],
            &[&certificate],
        )?;
        fs::write(&public, pem)?;
        let verdict = openssl(
            &["dgst", "-sha256", "-verify"],
            &[&public, Path::new("-signature"), &signature, &message],
        )?;
        fact("openssl dgst -verify", verdict.trim());
        session.logout()?;
        fact("C_Logout", "CKR_OK");
        Ok(())
    }

    /// Signs with the signature key. OpenSSL verifies the signature with the token's public key.
    fn sign_with_openpgp(&self, slot: Slot) -> Outcome {
        heading("A signature with the OpenPGP Ed25519 key");
        let session = self.log_in(slot)?;
        let key = find(&session, ObjectClass::PRIVATE_KEY, 1)?;
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
        session.sign_init(&mechanism, key)?;
        // The key needs a context login for each signature: CKA_ALWAYS_AUTHENTICATE.
        session.login(UserType::ContextSpecific, Some(&AuthPin::new(PIN.into())))?;
        fact(
            "C_Login, once more",
            "CKR_OK: this key wants the PIN each time",
        );
        let started = Instant::now();
        session.sign_update(MESSAGE)?;
        let signature = session.sign_final()?;
        fact(
            "C_SignFinal",
            format!("{} bytes in {:.1?}", signature.len(), started.elapsed()),
        );
        let [message, signature] = self.save("openpgp", &signature)?;
        let public = self.folder.join("openpgp.der");
        fs::write(&public, public_key_info(&session)?)?;
        let verdict = openssl(
            &[
                "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-rawin", "-inkey",
            ],
            &[
                &public,
                Path::new("-in"),
                &message,
                Path::new("-sigfile"),
                &signature,
            ],
        )?;
        fact("openssl pkeyutl -verify", verdict.trim());
        session.logout()?;
        fact("C_Logout", "CKR_OK");
        Ok(())
    }

    fn save(&self, name: &str, signature: &[u8]) -> Outcome<[PathBuf; 2]> {
        let message = self.folder.join(format!("{name}.txt"));
        let signed = self.folder.join(format!("{name}.sig"));
        fs::write(&message, MESSAGE)?;
        fs::write(&signed, signature)?;
        Ok([message, signed])
    }
}

fn find(session: &Session, class: ObjectClass, id: u8) -> Outcome<ObjectHandle> {
    let found = session.find_objects(&[Attribute::Class(class), Attribute::Id(vec![id])])?;
    found
        .first()
        .copied()
        .ok_or_else(|| format!("no {class} with id {id:02x}").into())
}

fn public_key_info(session: &Session) -> Outcome<Vec<u8>> {
    let key = find(session, ObjectClass::PUBLIC_KEY, 1)?;
    match session
        .get_attributes(key, &[AttributeType::PublicKeyInfo])?
        .pop()
    {
        Some(Attribute::PublicKeyInfo(info)) => Ok(info),
        _ => Err("the public key has no CKA_PUBLIC_KEY_INFO".into()),
    }
}

fn describe(session: &Session, object: ObjectHandle) -> Outcome<String> {
    let mut text = String::new();
    for attribute in session.get_attributes(object, &[AttributeType::Label, AttributeType::Id])? {
        match attribute {
            Attribute::Label(label) => text.push_str(&String::from_utf8_lossy(&label)),
            Attribute::Id(id) => id
                .iter()
                .for_each(|byte| text.push_str(&format!(", id {byte:02x}"))),
            _ => {}
        }
    }
    Ok(text)
}

/// The module beside this program.
fn module_path() -> Outcome<PathBuf> {
    let path = env::current_exe()?.with_file_name("libclaviger_pkcs11.so");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!(
            "{} is not there; build it first: cargo build --release -p claviger-pkcs11",
            path.display()
        )
        .into())
    }
}

/// Sends one line to the control socket of the card. Returns the reply.
fn send_line(folder: &Path, line: &str) -> Outcome<String> {
    let mut stream = UnixStream::connect(folder.join("control"))?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

fn openssl(arguments: &[&str], paths: &[&Path]) -> Outcome<String> {
    let output = Command::new("openssl")
        .args(arguments)
        .args(paths)
        .output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "openssl {} failed: {}",
            arguments.join(" "),
            complaint.trim()
        )
        .into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn heading(text: &str) {
    let (bold, plain) = if is_coloured() {
        ("\x1b[1;36m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!("\n{bold}{text}{plain}");
}

fn fact(name: &str, value: impl Display) {
    let (green, plain) = if is_coloured() {
        ("\x1b[32m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!("  {name:24} {green}{value}{plain}");
}

/// Returns whether to use colours: on a terminal, unless `NO_COLOR` is set.
fn is_coloured() -> bool {
    use std::io::IsTerminal as _;
    env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal()
}
