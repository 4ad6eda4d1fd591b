//! `make install` and `make uninstall`, into a temporary folder, for each distribution.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A destination folder, with the os-release file of a distribution.
struct Destination(TempDir);

impl Destination {
    fn of(os_release: &str) -> Self {
        let destination = Self(TempDir::new().unwrap());
        fs::create_dir(destination.folder()).unwrap();
        fs::write(destination.0.path().join("os-release"), os_release).unwrap();
        fs::write(destination.0.path().join("module.so"), "a module").unwrap();
        destination
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("destination")
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(root().join("scripts/install"))
            .args(arguments)
            .env("DESTDIR", self.folder())
            .env("OS_RELEASE", self.0.path().join("os-release"))
            .env_remove("PREFIX")
            .env_remove("MODULE_DIR")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn install(&self) -> String {
        self.run(&["install", self.0.path().join("module.so").to_str().unwrap()])
    }

    /// All files below the destination.
    fn files(&self) -> Vec<String> {
        let mut folders = vec![self.folder()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let below = path.strip_prefix(self.folder()).unwrap();
                    files.push(format!("/{}", below.display()));
                }
            }
        }
        files.sort();
        files
    }
}

fn expected(modules: &str) -> Vec<String> {
    let mut files = vec![
        format!("{modules}/libclaviger_pkcs11.so"),
        "/usr/lib/udev/rules.d/70-claviger.rules".to_owned(),
        "/usr/share/doc/claviger/50-claviger-pcscd.rules.example".to_owned(),
        "/usr/share/p11-kit/modules/claviger.module".to_owned(),
    ];
    files.sort();
    files
}

#[test]
fn each_distribution_gets_the_module_where_its_p11_kit_looks() {
    let debian = format!("/usr/lib/{}-linux-gnu/pkcs11", std::env::consts::ARCH);
    for (os_release, modules) in [
        ("ID=debian\n", debian.as_str()),
        (
            "NAME=Mint\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
            debian.as_str(),
        ),
        ("ID=fedora\nVERSION_ID=42\n", "/usr/lib64/pkcs11"),
        (
            "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
            "/usr/lib64/pkcs11",
        ),
        ("ID=arch\n", "/usr/lib/pkcs11"),
        ("", "/usr/lib/pkcs11"),
    ] {
        let destination = Destination::of(os_release);
        let output = destination.install();
        assert_eq!(destination.files(), expected(modules), "{os_release}");
        for file in destination.files() {
            assert!(output.contains(&file), "{file} is not named in: {output}");
        }
    }
}

#[test]
fn installed_files_are_those_of_the_repository() {
    let destination = Destination::of("ID=arch\n");
    destination.install();
    for (file, source) in [
        (
            "usr/lib/udev/rules.d/70-claviger.rules",
            "udev/70-claviger.rules",
        ),
        (
            "usr/share/p11-kit/modules/claviger.module",
            "udev/claviger.module",
        ),
    ] {
        let installed = fs::read(destination.folder().join(file)).unwrap();
        assert_eq!(installed, fs::read(root().join(source)).unwrap(), "{file}");
    }
    let module = destination
        .folder()
        .join("usr/lib/pkcs11/libclaviger_pkcs11.so");
    assert_eq!(fs::read(module).unwrap(), b"a module");
}

#[test]
fn the_p11_kit_file_names_the_module_as_it_is_installed() {
    let text = fs::read_to_string(root().join("udev/claviger.module")).unwrap();
    assert!(
        text.lines()
            .any(|line| line == "module: libclaviger_pkcs11.so")
    );
}

#[test]
fn uninstall_removes_all_installed_files_and_nothing_else() {
    let destination = Destination::of("ID=debian\n");
    let other = destination
        .folder()
        .join("usr/share/p11-kit/modules/other.module");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, "module: other.so\n").unwrap();
    destination.install();
    destination.run(&["uninstall"]);
    assert_eq!(
        destination.files(),
        ["/usr/share/p11-kit/modules/other.module"]
    );
    // A second uninstall succeeds too.
    destination.run(&["uninstall"]);
}
