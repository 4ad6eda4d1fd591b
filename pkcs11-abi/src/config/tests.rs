use super::*;

fn read(text: &str) -> Config {
    let mut config = Config::default();
    config.read_text(text, "test.toml");
    config
}

#[test]
fn settings_are_read() {
    let config = read(
        "transports = [\"socket\"]\nsockets = [\"/run/a\"]\nlog = \"debug\"\nlog_file = \"/tmp/l\"",
    );
    assert_eq!(config.transports, [BackendKind::Socket]);
    assert_eq!(config.sockets, [PathBuf::from("/run/a")]);
    assert_eq!(config.log, Level::DEBUG);
    assert_eq!(config.problems, [""; 0]);
}

#[test]
fn usb_backend_setting_must_name_a_known_library() {
    let config = read("transports = [\"usb\"]\nusb_backend = \"nusb\"");
    assert_eq!(config.transports, [BackendKind::Usb]);
    assert_eq!(config.usb_backend, UsbLibrary::Nusb);
    assert_eq!(config.problems, [""; 0]);
    let config = read("usb_backend = \"libusb\"");
    assert_eq!(config.usb_backend, UsbLibrary::Rusb);
    assert!(config.problems[0].contains("line 1: usb_backend: unknown USB library \"libusb\""));
}

#[test]
fn lock_folder_is_that_of_the_login_if_there_is_one() {
    let login = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| OsString::from("/run/me"));
    assert_eq!(lock_folders(&login)[0], PathBuf::from("/run/me/claviger"));
    let none = lock_folders(&|_| None);
    let user = crate::privilege::user();
    assert_eq!(none[0], PathBuf::from(format!("/run/user/{user}/claviger")));
    assert_eq!(none.len(), 3);
}

#[test]
fn the_release_of_idle_cards_is_in_seconds_or_never() {
    let config = read("idle_release = 0.25\nidle_release_logged_in = \"never\"");
    assert_eq!(config.release.idle, Some(Duration::from_millis(250)));
    assert_eq!(config.release.logged_in, None);
    assert_eq!(config.problems, [""; 0]);
    for bad in ["-1", "1e9", "nan", "\"soon\"", "true"] {
        let config = read(&format!("idle_release = {bad}"));
        assert_eq!(config.release, IdleTimeouts::default(), "{bad}");
        assert_eq!(config.problems.len(), 1, "{bad}");
    }
}

#[test]
fn visibility_is_set_by_lists_and_labels_by_a_table() {
    let config = read(
        "applets = [\"openpgp\"]\nids = \"ykcs11\"\nreaders.deny = [\"Gemalto\"]\n\
         [tokens]\nallow = [\"2d70697600000001\"]\n[labels]\n\"PIV AUTH key\" = \"mine\"",
    );
    assert_eq!(config.problems, [""; 0]);
    let visibility = &config.visibility;
    assert_eq!(visibility.applets, [AppletKind::OpenPgp]);
    assert!(!visibility.shows_reader("Gemalto PC Twin Reader 00 00"));
    assert!(visibility.shows_token("2d70697600000001") && !visibility.shows_token("00000000"));
    assert_eq!(visibility.naming.ids, IdScheme::Ykcs11);
    assert_eq!(visibility.naming.label("PIV AUTH key"), "mine");
}

#[test]
fn applets_have_one_order_however_they_are_configured() {
    let config = read("applets = [\"openpgp\", \"piv\", \"piv\"]");
    assert_eq!(config.visibility, Visibility::default());
    assert_eq!(config.problems, [""; 0]);
}

#[test]
fn bad_setting_in_a_table_is_reported_by_name_and_line_and_others_apply() {
    for (text, problem) in [
        ("ids = \"pkcs15\"", "line 1: ids: unknown scheme \"pkcs15\""),
        (
            "applets = [\"fido\"]",
            "line 1: applets: unknown applet \"fido\"",
        ),
        ("applets = []", "line 1: applets: at least one applet"),
        ("tokens = [\"1\"]", "line 1: tokens: a table is expected"),
        ("labels = 7", "line 1: labels: a table is expected"),
        (
            "[tokens]\nonly = [\"1\"]",
            "line 2: tokens.only: no such setting",
        ),
        (
            "\nreaders.allow = \"a\"",
            "line 2: readers.allow: a list of strings",
        ),
        (
            "[readers]\ndeny = [\"\"]",
            "line 2: readers.deny: an empty name",
        ),
        (
            "[labels]\n\"SIGN key\" = 7",
            "line 2: labels.SIGN key: a string",
        ),
    ] {
        let config = read(&format!("{text}\n[labels2]\n"));
        assert_eq!(config.visibility, Visibility::default(), "{text}");
        assert_eq!(config.problems.len(), 2, "{:?}", config.problems);
        let problems = config.problems.join("\n");
        assert!(problems.contains(problem), "{problems}");
    }
    let config = read("[labels]\n\"SIGN key\" = 7\n\"KEY MAN key\" = \"mine\"");
    assert_eq!(config.visibility.naming.label("KEY MAN key"), "mine");
}

#[test]
fn an_unknown_key_is_reported_by_name_and_line_and_ignored() {
    let config = read("log = \"info\"\n\ncolour = 3\n");
    assert_eq!(
        config.problems,
        ["test.toml, line 3: colour: no such setting; ignored"]
    );
    assert_eq!(config.log, Level::INFO);
}

#[test]
fn a_bad_value_keeps_the_default() {
    let config = read("transports = [\"usb2\"]\nlog = 7\n");
    assert_eq!(
        config.transports,
        [BackendKind::Pcsc, BackendKind::Usb],
        "the defaults"
    );
    assert_eq!(config.problems.len(), 2);
    for line in ["line 1: transports", "line 2: log"] {
        let reported = |problem: &String| problem.contains(line);
        assert!(
            config.problems.iter().any(reported),
            "{:?}",
            config.problems
        );
    }
}

#[test]
fn a_file_that_is_no_toml_is_reported_and_the_rest_is_used() {
    let config = read("log = \"debug\"\n= = =\n");
    assert!(
        config
            .problems
            .iter()
            .any(|problem| problem.contains("line 2")),
        "{:?}",
        config.problems
    );
}

#[test]
fn environment_overrides_files() {
    let mut config = read("log = \"info\"");
    let variable = |name: &str| match name {
        "CLAVIGER_LOG" => Some(OsString::from("trace")),
        "CLAVIGER_SOCKET" => Some(OsString::from("/a:/b")),
        "CLAVIGER_TRANSPORTS" => Some(OsString::from("socket, pcsc")),
        _ => None,
    };
    config.read_environment(&variable);
    assert_eq!(config.log, Level::TRACE);
    assert_eq!(config.sockets.len(), 2);
    assert_eq!(config.transports, [BackendKind::Socket, BackendKind::Pcsc]);
}
