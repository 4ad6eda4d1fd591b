//! libpcsclite is loaded on demand, may be missing, and is not confused with another library.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use claviger_hw_tests::{
    client,
    fixture::{
        card_fixture::CardFixture,
        fork::{Descendant, in_descendant},
        function_list::{FunctionList, NO_THREADS, OWN_THREAD},
        module_process::{ModuleProcess, ServiceKind, eventually, in_module_process, with_card},
        subprocess,
    },
    paths, pcscd,
    provision::CardProfile,
    skip,
};
use cryptoki_sys::{CK_FLAGS, CKF_DONT_BLOCK, CKR_NO_EVENT, CKR_OK};
use libloading::Library;
use object::{elf, read::elf::FileHeader as _};

const LIBRARY: &str = "libpcsclite.so.1";
const LIMIT: Duration = Duration::from_secs(60);
const FORKS: usize = 30;
/// Lays a file over another in a mount namespace, and runs a program there.
const MASKED: &str = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;
/// Path of the library's file. Set in scenarios.
const MASK: &str = "CLAVIGER_TEST_MASK";
/// The log message about it.
const MISSING: &str = "libpcsclite.so.1 is not installed";

/// The file of libpcsclite in this process, if it is loaded.
fn loaded() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = |line: &str| line.split_once('/').map(|(_, path)| format!("/{path}"));
    let mut paths = maps.lines().filter_map(path);
    paths
        .find(|path| path.contains("libpcsclite"))
        .map(PathBuf::from)
}

#[test]
fn module_needs_no_system_library_but_the_c_library() {
    let bytes = fs::read(paths::module_path()).unwrap();
    let data = bytes.as_slice();
    let header = elf::FileHeader64::<object::Endianness>::parse(data).expect("an ELF file");
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, data).unwrap();
    let (entries, strings) = sections.dynamic(endian, data).unwrap().expect("dynamic");
    let strings = sections.strings(endian, data, strings).unwrap();
    let needed = entries
        .iter()
        .filter(|entry| entry.d_tag.get(endian) == u64::from(elf::DT_NEEDED));
    let name = |entry: &elf::Dyn64<_>| {
        let offset = u32::try_from(entry.d_val.get(endian)).unwrap();
        String::from_utf8_lossy(strings.get(offset).unwrap()).into_owned()
    };
    let needed: Vec<String> = needed.map(name).collect();
    assert!(!needed.is_empty());
    let of_the_compiler = [
        "libc.",
        "libgcc_s.",
        "ld-",
        "libm.",
        "libdl.",
        "libpthread.",
        "librt.",
    ];
    for name in &needed {
        let known = of_the_compiler.iter().any(|known| name.starts_with(known));
        assert!(known, "{needed:?}");
    }
}

#[test]
fn pcsc_library_is_loaded_by_the_first_query_of_pcscds_readers() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(OWN_THREAD), CKR_OK);
        assert_eq!(loaded(), None, "C_Initialize");
        assert_eq!(raw.slots(true).len(), 1);
        assert!(loaded().is_some());
        assert_eq!(raw.finalize(), CKR_OK);
    });
}

#[test]
fn the_library_is_not_loaded_where_pcscd_is_not_configured() {
    with_card(ServiceKind::Socket, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            assert_eq!(raw.slots(true).len(), 1);
            assert_eq!(raw.finalize(), CKR_OK);
        }
        assert_eq!(loaded(), None);
    });
}

#[test]
fn the_library_is_loaded_in_a_child_of_a_process_without_it() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |_| {
        let raw = FunctionList::load();
        for flags in [OWN_THREAD, NO_THREADS] {
            assert_eq!(raw.initialize(flags), CKR_OK);
            for descent in Descendant::ALL {
                in_descendant(descent, || {
                    assert_eq!(raw.initialize(flags), CKR_OK);
                    assert_eq!(raw.slots(true).len(), 1);
                    assert_eq!(raw.finalize(), CKR_OK);
                });
            }
            assert_eq!(raw.finalize(), CKR_OK);
        }
        assert_eq!(loaded(), None);
    });
}

/// Runs `scenario` with an empty file in place of the library. Returns the log.
fn without_the_library(process: &ModuleProcess, scenario: &str) -> Option<String> {
    // SAFETY: its initialisers set up its own data only.
    let library = unsafe { Library::new(LIBRARY) }.expect("pcscd brought it");
    let file = fs::canonicalize(loaded().unwrap()).unwrap();
    drop(library);
    let Some(mut command) = pcscd::namespace() else {
        skip::because("this user may not make mount namespaces (unshare --mount)");
        return None;
    };
    let empty = process.folder().join("empty");
    fs::write(&empty, "").unwrap();
    command
        .args(["sh", "-c", MASKED, "sh"])
        .args([&empty, &file]);
    command.arg(env::current_exe().unwrap()).env(MASK, &file);
    let output = process
        .run_scenario_under(command, scenario, LIMIT)
        .expect_success();
    assert!(output.stdout.contains("1 passed"), "{output}");
    Some(output.stderr)
}

/// Returns whether the library is missing.
fn is_missing() -> bool {
    // SAFETY: as above, should it be there.
    unsafe { Library::new(LIBRARY) }.is_err()
}

/// Puts the library back.
fn install() {
    let mut umount = Command::new("umount");
    umount.arg(env::var_os(MASK).unwrap());
    let _ = client::run(&mut umount, LIMIT).expect_success();
    assert!(!is_missing());
}

fn flags(scenario: &str) -> CK_FLAGS {
    scenario.parse().unwrap()
}

#[test]
fn without_the_library_there_is_no_service_until_it_is_installed() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        let Some(scenario) = subprocess::role() else {
            for flags in [OWN_THREAD, NO_THREADS] {
                let Some(log) = without_the_library(process, &flags.to_string()) else {
                    return;
                };
                let lines = log.lines().filter(|line| line.contains(MISSING));
                assert_eq!(lines.count(), 2, "once a life: {log}");
            }
            return;
        };
        assert!(is_missing());
        let raw = FunctionList::load();
        let flags = flags(&scenario);
        assert_eq!(raw.initialize(flags), CKR_OK);
        assert_eq!(raw.slot_count(false), (CKR_OK, 0));
        assert_eq!(raw.wait(CKF_DONT_BLOCK).0, CKR_NO_EVENT);
        assert_eq!(raw.finalize(), CKR_OK);

        assert_eq!(raw.initialize(flags), CKR_OK);
        assert_eq!(raw.slot_count(false), (CKR_OK, 0));
        install();
        eventually("the slots of pcscd", || !raw.slots(true).is_empty());
        assert_eq!(raw.finalize(), CKR_OK);
    });
}

#[test]
fn without_the_library_other_readers_are_used() {
    let beside = |_: &CardFixture, client: &mut Command| {
        client.env("CLAVIGER_TRANSPORTS", "pcsc,socket");
    };
    let _ = in_module_process(
        ServiceKind::Socket,
        CardProfile::piv4(),
        beside,
        |process| {
            let Some(scenario) = subprocess::role() else {
                for flags in [OWN_THREAD, NO_THREADS] {
                    let _ = without_the_library(process, &flags.to_string());
                }
                return;
            };
            assert!(is_missing());
            let raw = FunctionList::load();
            assert_eq!(raw.initialize(flags(&scenario)), CKR_OK);
            assert_eq!(raw.slots(true).len(), 1);
            assert_eq!(raw.finalize(), CKR_OK);
        },
    );
}

/// Each query of the parent's thread tries to load the library, and holds the loader's lock meanwhile.
#[test]
fn fork_during_library_loading_leaves_a_working_child() {
    with_card(ServiceKind::Pcscd, CardProfile::piv4(), |process| {
        if subprocess::role().is_none() {
            let _ = without_the_library(process, "forks");
            return;
        }
        assert!(is_missing());
        let raw = FunctionList::load();
        assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let query = || {
                while !enough.load(Ordering::SeqCst) {
                    assert_eq!(raw.slot_count(false), (CKR_OK, 0));
                }
            };
            scope.spawn(query);
            for _ in 0..FORKS {
                in_descendant(Descendant::Child, || {
                    assert_eq!(raw.initialize(NO_THREADS), CKR_OK);
                    assert_eq!(raw.slot_count(false), (CKR_OK, 0));
                    assert_eq!(raw.finalize(), CKR_OK);
                });
            }
            enough.store(true, Ordering::SeqCst);
        });
        assert_eq!(raw.finalize(), CKR_OK);
    });
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lifecycle/foreign")
        .join(name)
}

/// What the C compiler makes of `sources`.
fn compiled(to: PathBuf, options: &[&str], sources: &[&str]) -> PathBuf {
    let mut compiler = Command::new("cc");
    compiler.args(options).arg("-o").arg(&to);
    compiler
        .args(sources.iter().map(|name| source(name)))
        .arg("-ldl");
    let _ = client::run(&mut compiler, LIMIT).expect_success();
    to
}

/// The C compiler, and a card fixture for a program that has functions with PC/SC's names.
fn fixture_for_a_foreign_program() -> Option<CardFixture> {
    if paths::program("cc").is_none() {
        skip::because("cc is not installed (Debian: gcc)");
        return None;
    }
    CardFixture::pcscd(CardProfile::piv4())
}

/// The program's run: tokens found, its own functions not called.
fn finds_the_token(fixture: &CardFixture, command: &mut Command) {
    let output = fixture.run(command).expect_success();
    assert_eq!(output.stdout, "tokens 1, foreign calls 0\n", "{output}");
}

#[test]
fn program_that_defines_scard_functions_does_not_receive_our_calls() {
    let Some(fixture) = fixture_for_a_foreign_program() else {
        return;
    };
    let to = fixture.folder().join("program");
    let program = compiled(to, &["-rdynamic"], &["program.c", "scard.c"]);
    finds_the_token(&fixture, fixture.command(program).arg(paths::module_path()));
}

#[test]
fn library_that_defines_scard_functions_does_not_receive_our_calls() {
    let Some(fixture) = fixture_for_a_foreign_program() else {
        return;
    };
    let library = fixture.folder().join("libforeign.so");
    let library = compiled(library, &["-shared", "-fPIC"], &["scard.c"]);
    let program = compiled(fixture.folder().join("program"), &[], &["program.c"]);
    let module = paths::module_path();
    finds_the_token(
        &fixture,
        fixture.command(&program).args([&module, &library]),
    );
    finds_the_token(
        &fixture,
        fixture
            .command(&program)
            .arg(&module)
            .env("LD_PRELOAD", &library),
    );
}
