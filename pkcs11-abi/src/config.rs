//! Settings: read from files, then from the environment. The module works without any of them.
//!
//! The files are `/etc/claviger.toml` and then `$XDG_CONFIG_HOME/claviger/config.toml` (or `~/.config/…`). If
//! `CLAVIGER_CONFIG` names a file, only that file is read. An unknown key or a value of the wrong type is reported with its
//! line and ignored. A set-uid process reads `/etc` alone and no environment variables.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use claviger_driver::usb::host::open::UsbLibrary;
use claviger_token::{AppletKind, IdScheme};
use toml::de::{DeTable, DeValue};

use crate::{
    idle::IdleTimeouts,
    log::Level,
    visibility::{Filter, Visibility},
};

/// The largest idle time that can be configured, in seconds: one day.
const MAX_RELEASE: f64 = 86_400.0;

/// A backend that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    Pcsc,
    Socket,
    Usb,
}

impl BackendKind {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "pcsc" => Some(Self::Pcsc),
            "socket" => Some(Self::Socket),
            "usb" => Some(Self::Usb),
            _ => None,
        }
    }
}

/// All settings, with their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The backends, in the order of their slots.
    pub(crate) transports: Vec<BackendKind>,
    /// The Unix sockets of socket readers.
    pub(crate) sockets: Vec<PathBuf>,
    /// The USB library that moves the transfers of the `usb` backend.
    pub(crate) usb_backend: UsbLibrary,
    /// Folders for the lock files of USB readers, the best one first.
    pub(crate) lock_folders: Vec<PathBuf>,
    /// The idle times after which cards are released.
    pub(crate) release: IdleTimeouts,
    /// Which readers, applets and tokens are visible, and the names of objects.
    pub(crate) visibility: Visibility,
    /// The log level.
    pub(crate) log: Level,
    /// The log file, instead of standard error.
    pub(crate) log_file: Option<PathBuf>,
    /// Errors in the settings. They are logged once the log has been started.
    pub(crate) problems: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transports: vec![BackendKind::Pcsc, BackendKind::Usb],
            sockets: Vec::new(),
            usb_backend: UsbLibrary::default(),
            lock_folders: Vec::new(),
            release: IdleTimeouts::default(),
            visibility: Visibility::default(),
            log: Level::WARN,
            log_file: None,
            problems: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the files and the environment of this process.
    pub(crate) fn load() -> Self {
        let trusted = !crate::privilege::is_elevated();
        let variable = |name: &str| if trusted { env::var_os(name) } else { None };
        let mut config = Self::default();
        for file in files(&variable) {
            config.read_file(&file);
        }
        config.read_environment(&variable);
        config.lock_folders = lock_folders(&variable);
        config
    }

    fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_text(&text, &path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => self
                .problems
                .push(format!("{}: {error}; ignored", path.display())),
        }
    }

    fn read_text(&mut self, text: &str, file: &str) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        for error in &errors {
            let line = error.span().map_or(0, |span| line(span.start));
            self.problems
                .push(format!("{file}, line {line}: {}; ignored", error.message()));
        }
        self.read_table(None, table.get_ref(), &|at| {
            format!("{file}, line {}", line(at))
        });
    }

    /// Reads the settings of a table. `within` is its name, or `None` for the top level of the file.
    fn read_table(
        &mut self,
        within: Option<&str>,
        table: &DeTable<'_>,
        place: &dyn Fn(usize) -> String,
    ) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let set = match (within, name, value.get_ref()) {
                (None, "labels" | "readers" | "tokens", DeValue::Table(inner)) => {
                    self.read_table(Some(name), inner, place);
                    continue;
                }
                (None, "labels" | "readers" | "tokens", _) => Err("a table is expected".to_owned()),
                (None, _, value) => self.set(name, value),
                (Some(within), _, value) => self.set_within(within, name, value),
            };
            if let Err(why) = set {
                let prefix = within.map_or(String::new(), |within| format!("{within}."));
                let place = place(key.span().start);
                self.problems
                    .push(format!("{place}: {prefix}{name}: {why}; ignored"));
            }
        }
    }

    fn set_within(&mut self, table: &str, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        let filter: &mut Filter = match table {
            "readers" => &mut self.visibility.readers,
            "tokens" => &mut self.visibility.tokens,
            _ => {
                let label = string(value)?.to_owned();
                let naming = Arc::make_mut(&mut self.visibility.naming);
                naming.labels.insert(key.to_owned(), label);
                return Ok(());
            }
        };
        match key {
            "allow" => filter.allow = Some(names(value)?),
            "deny" => filter.deny = names(value)?,
            _ => return Err("no such setting; expected allow or deny".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        match key {
            "applets" => self.set_applets(&strings(value)?),
            "ids" => self.set_ids(string(value)?),
            "transports" => self.set_transports(strings(value)?),
            "sockets" => {
                self.sockets = strings(value)?.into_iter().map(PathBuf::from).collect();
                self.use_sockets();
                Ok(())
            }
            "usb_backend" => self.set_usb_backend(string(value)?),
            "idle_release" => {
                self.release.idle = release(value)?;
                Ok(())
            }
            "idle_release_logged_in" => {
                self.release.logged_in = release(value)?;
                Ok(())
            }
            "log" => self.set_log(string(value)?),
            "log_file" => {
                self.log_file = Some(PathBuf::from(string(value)?));
                Ok(())
            }
            _ => Err("no such setting".to_owned()),
        }
    }

    fn read_environment(&mut self, variable: &dyn Fn(&str) -> Option<OsString>) {
        if let Some(paths) = variable("CLAVIGER_SOCKET") {
            self.sockets = env::split_paths(&paths)
                .filter(|path| !path.as_os_str().is_empty())
                .collect();
            self.use_sockets();
        }
        if let Some(file) = variable("CLAVIGER_LOG_FILE") {
            self.log_file = Some(file.into());
        }
        let mut text =
            |name: &str, set: &mut dyn FnMut(&mut Self, String) -> Result<(), String>| {
                let Some(value) = variable(name) else { return };
                let set = set(self, value.to_string_lossy().into_owned());
                if let Err(why) = set {
                    self.problems
                        .push(format!("environment variable {name}: {why}; ignored"));
                }
            };
        text("CLAVIGER_LOG", &mut |config, value| config.set_log(&value));
        text("CLAVIGER_USB_BACKEND", &mut |config, value| {
            config.set_usb_backend(&value)
        });
        text("CLAVIGER_TRANSPORTS", &mut |config, value| {
            config.set_transports(
                value
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect(),
            )
        });
    }

    fn set_transports(&mut self, names: Vec<String>) -> Result<(), String> {
        let parse = |name: String| {
            BackendKind::from_name(&name)
                .ok_or_else(|| format!("unknown backend {name:?}; expected pcsc, usb or socket"))
        };
        self.transports = names.into_iter().map(parse).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn set_usb_backend(&mut self, name: &str) -> Result<(), String> {
        self.usb_backend = match name {
            "nusb" => UsbLibrary::Nusb,
            "rusb" => UsbLibrary::Rusb,
            _ => {
                return Err(format!(
                    "unknown USB library {name:?}; expected nusb or rusb"
                ));
            }
        };
        Ok(())
    }

    fn set_applets(&mut self, wanted: &[String]) -> Result<(), String> {
        let kind = |name: &String| match name.as_str() {
            "piv" => Ok(AppletKind::Piv),
            "openpgp" => Ok(AppletKind::OpenPgp),
            _ => Err(format!("unknown applet {name:?}; expected piv or openpgp")),
        };
        let wanted: Vec<AppletKind> = wanted.iter().map(kind).collect::<Result<_, _>>()?;
        if wanted.is_empty() {
            return Err("at least one applet is expected".to_owned());
        }
        self.visibility.applets = AppletKind::ALL.to_vec();
        self.visibility.applets.retain(|kind| wanted.contains(kind));
        Ok(())
    }

    fn set_ids(&mut self, name: &str) -> Result<(), String> {
        Arc::make_mut(&mut self.visibility.naming).ids = match name {
            "opensc" => IdScheme::OpenSc,
            "ykcs11" => IdScheme::Ykcs11,
            _ => {
                return Err(format!(
                    "unknown scheme {name:?}; expected opensc or ykcs11"
                ));
            }
        };
        Ok(())
    }

    fn set_log(&mut self, name: &str) -> Result<(), String> {
        self.log = crate::log::level(name).ok_or_else(|| {
            format!("unknown level {name:?}; expected off, error, warn, info, debug or trace")
        })?;
        Ok(())
    }

    /// Adds the `socket` backend if sockets are configured.
    fn use_sockets(&mut self) {
        if !self.sockets.is_empty() && !self.transports.contains(&BackendKind::Socket) {
            self.transports.push(BackendKind::Socket);
        }
    }
}

fn files(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(only) = variable("CLAVIGER_CONFIG") {
        return vec![only.into()];
    }
    let home = || variable("HOME").map(|home| Path::new(&home).join(".config"));
    let user = variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let user = user.map(|folder| folder.join("claviger/config.toml"));
    [Some(PathBuf::from("/etc/claviger.toml")), user]
        .into_iter()
        .flatten()
        .collect()
}

/// Returns the folders for lock files: first the user's runtime folder, then one named for the user in `/run/lock` and in
/// `/tmp`.
fn lock_folders(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let user = crate::privilege::user();
    let own = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    let own = own.unwrap_or_else(|| PathBuf::from(format!("/run/user/{user}")));
    let shared = ["/run/lock", "/tmp"].map(|folder| format!("{folder}/claviger-{user}").into());
    [own.join("claviger")].into_iter().chain(shared).collect()
}

fn string<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value
        .as_str()
        .ok_or_else(|| "a string is expected".to_owned())
}

/// Parses a number of seconds, or `"never"`, for which it returns `None`.
fn release(value: &DeValue<'_>) -> Result<Option<Duration>, String> {
    let number = match value {
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        DeValue::Float(number) => number.as_str(),
        DeValue::String(text) if text == "never" => return Ok(None),
        _ => return Err("a number of seconds or \"never\" is expected".to_owned()),
    };
    match number.parse() {
        Ok(seconds) if (0.0..=MAX_RELEASE).contains(&seconds) => {
            Ok(Some(Duration::from_secs_f64(seconds)))
        }
        _ => Err(format!(
            "{number} is not between 0 and {MAX_RELEASE} seconds"
        )),
    }
}

fn strings(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let list = value
        .as_array()
        .ok_or_else(|| "a list of strings is expected".to_owned())?;
    list.iter()
        .map(|item| string(item.get_ref()).map(str::to_owned))
        .collect()
}

/// Parses a list of names. An empty name is an error, because it is part of every name.
fn names(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let names = strings(value)?;
    match names.iter().any(String::is_empty) {
        true => Err("an empty name is not allowed".to_owned()),
        false => Ok(names),
    }
}

#[cfg(test)]
mod tests;
