//! Paths of the build's folders, of modules and of programs.

#![allow(clippy::panic, reason = "a harness fails loudly")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The module's file name.
const MODULE: &str = "libclaviger_pkcs11.so";

/// Path of the module under test: `CLAVIGER_MODULE`, or the module that cargo built beside this program.
///
/// # Panics
/// If there is no module. The message tells how to build it.
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

/// Path of OpenSC's module, if it is installed (Debian: opensc-pkcs11).
#[must_use]
pub fn opensc_module_path() -> Option<PathBuf> {
    installed("opensc-pkcs11.so")
}

/// Path of Yubico's module, if it is installed (Debian: ykcs11).
#[must_use]
pub fn ykcs11_module_path() -> Option<PathBuf> {
    installed("libykcs11.so").or_else(|| installed("libykcs11.so.2"))
}

/// Path of a program, from `PATH` and the `sbin` folders.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A folder of the build for files that tests share. It is not removed.
pub(crate) fn scratch() -> PathBuf {
    let folder = profile_folder()
        .and_then(|profile| profile.parent().map(|target| target.join("tmp")))
        .unwrap_or_else(|| env::temp_dir().join("claviger-tests"));
    let _ = fs::create_dir_all(&folder);
    folder
}

/// The folder of the build profile, such as `target/release`: the folder of this program, or the one above `deps`.
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
    let candidates = folders
        .into_iter()
        .flat_map(|folder| [folder.join(module), folder.join("pkcs11").join(module)]);
    candidates.into_iter().find(|path| path.is_file())
}
