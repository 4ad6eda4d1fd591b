//! `make install` and `make uninstall`, into a folder of their own, as each distribution has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Somewhere to install to, on a distribution that says this of itself.
struct Place(TempDir);

impl Place {
    fn of(os_release: &str) -> Self {
        let place = Self(TempDir::new().unwrap());
        fs::create_dir(place.destination()).unwrap();
        fs::write(place.0.path().join("os-release"), os_release).unwrap();
        fs::write(place.0.path().join("module.so"), "a module").unwrap();
        place
    }

    fn destination(&self) -> PathBuf {
        self.0.path().join("destination")
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(root().join("scripts/install"))
            .args(arguments)
            .env("DESTDIR", self.destination())
            .env("OS_RELEASE", self.0.path().join("os-release"))
            .env_remove("PREFIX")
            .env_remove("MODULE_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn install(&self) -> String {
        self.run(&["install", self.0.path().join("module.so").to_str().unwrap()])
    }

    /// Every file below the destination.
    fn files(&self) -> Vec<String> {
        let mut folders = vec![self.destination()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let below = path.strip_prefix(self.destination()).unwrap();
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
        let place = Place::of(os_release);
        let said = place.install();
        assert_eq!(place.files(), expected(modules), "{os_release}");
        for file in place.files() {
            assert!(said.contains(&file), "{file} is not named in: {said}");
        }
    }
}

#[test]
fn installed_files_are_those_of_the_repository() {
    let place = Place::of("ID=arch\n");
    place.install();
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
        let installed = fs::read(place.destination().join(file)).unwrap();
        assert_eq!(installed, fs::read(root().join(source)).unwrap(), "{file}");
    }
    let module = place
        .destination()
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
    let place = Place::of("ID=debian\n");
    let other = place
        .destination()
        .join("usr/share/p11-kit/modules/other.module");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, "module: other.so\n").unwrap();
    place.install();
    place.run(&["uninstall"]);
    assert_eq!(place.files(), ["/usr/share/p11-kit/modules/other.module"]);
    // Once more does no harm.
    place.run(&["uninstall"]);
}
