//! Where things are: the build's folders and the modules under test.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The module's file name.
const MODULE: &str = "libclaviger_pkcs11.so";

/// The module under test: `CLAVIGER_MODULE`, or what cargo built beside this test.
///
/// # Panics
/// When there is none; it says how to build it.
#[must_use]
pub fn module_path() -> PathBuf {
    if let Some(path) = env::var_os("CLAVIGER_MODULE") {
        return PathBuf::from(path);
    }
    let beside = |folder: &Path| Some(folder.join(MODULE)).filter(|path| path.is_file());
    let found = profile_folder().as_deref().and_then(beside);
    found.unwrap_or_else(|| {
        panic!("no {MODULE}: run cargo build --release -p claviger-pkcs11, or set CLAVIGER_MODULE")
    })
}

/// OpenSC's module, where it is installed (Debian: opensc-pkcs11).
#[must_use]
pub fn opensc_module_path() -> Option<PathBuf> {
    installed("opensc-pkcs11.so")
}

/// Yubico's module, where it is installed (Debian: ykcs11).
#[must_use]
pub fn ykcs11_module_path() -> Option<PathBuf> {
    installed("libykcs11.so").or_else(|| installed("libykcs11.so.2"))
}

/// Where a program is, by `PATH` and the administrator's folders.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administrators)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A folder of the build for what tests share; it outlives them.
pub(crate) fn scratch() -> PathBuf {
    let folder = profile_folder()
        .and_then(|profile| profile.parent().map(|target| target.join("tmp")))
        .unwrap_or_else(|| env::temp_dir().join("claviger-tests"));
    let _ = fs::create_dir_all(&folder);
    folder
}

/// `target/release` or its like: the folder above `deps`, or that of a program.
fn profile_folder() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let folder = program.parent()?;
    let up = matches!(folder.file_name()?.to_str()?, "deps" | "examples");
    if up {
        folder.parent().map(Path::to_owned)
    } else {
        Some(folder.to_owned())
    }
}

fn installed(module: &str) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .map(PathBuf::from)
        .into();
    let triplets = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    folders.extend(
        triplets
            .map(|entry| entry.path())
            .filter(|path| path.join("libc.so.6").exists()),
    );
    let places = folders
        .into_iter()
        .flat_map(|folder| [folder.join(module), folder.join("pkcs11").join(module)]);
    places.into_iter().find(|path| path.is_file())
}
