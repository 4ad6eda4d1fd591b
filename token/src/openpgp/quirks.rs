//! Behaviours of single manufacturers' cards outside the specification. Code queries the behaviour.

/// Behaviours outside the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quirks {
    /// The card signs Ed25519 messages of at most this many bytes, and responds 6A84 to longer ones.
    pub(super) max_message: Option<usize>,
    /// The card takes only hashes of exactly this many bytes for P-521, and responds 6985 to others.
    pub(super) p521_hash_len: Option<usize>,
    /// Some firmware requires one more length byte before the data of SELECT DATA, and refuses the data without it.
    pub(super) select_data_length_twice: bool,
}

/// By the manufacturer in the AID (4.2.1): name, behaviours, where and when seen.
const MAKERS: &[(u16, &str, Quirks)] = &[
    (0x0001, "PPC Card Systems", NONE),
    (0x0002, "Prism", NONE),
    (0x0003, "OpenFortress", NONE),
    (0x0004, "Wewid", NONE),
    (0x0005, "ZeitControl", NONE),
    // Firmware 5.2 to 5.4.3, as yubikit 5.0 sends it (2024).
    (
        0x0006,
        "Yubico",
        Quirks {
            select_data_length_twice: true,
            ..NONE
        },
    ),
    (0x0007, "OpenKMS", NONE),
    (0x0008, "LogoEmail", NONE),
    (0x0009, "Fidesmo", NONE),
    (0x000A, "Dangerous Things", NONE),
    (0x000B, "Feitian Technologies", NONE),
    // opcard 1.11, src/command/pso.rs (2025).
    (
        0x000F,
        "Nitrokey",
        Quirks {
            max_message: Some(1024),
            p521_hash_len: Some(64),
            ..NONE
        },
    ),
    (0x002A, "Magrathea", NONE),
    (0x0042, "GnuPG e.V.", NONE),
    (0x1337, "Warsaw Hackerspace", NONE),
    (0x2342, "warpzone", NONE),
    (0x4354, "Confidential Technologies", NONE),
    (0x5443, "TIF-IT e.V.", NONE),
    (0x63AF, "Trustica", NONE),
    (0xBA53, "c-base e.V.", NONE),
    (0xBD0E, "Paranoidlabs", NONE),
    (0xF517, "FSIJ", NONE),
    (0xF5EC, "F-Secure", NONE),
];

const NONE: Quirks = Quirks {
    max_message: None,
    p521_hash_len: None,
    select_data_length_twice: false,
};

impl Quirks {
    /// Returns the behaviours of `manufacturer`'s cards.
    pub(super) fn of(manufacturer: u16) -> Self {
        row(manufacturer).map_or(NONE, |(.., quirks)| *quirks)
    }
}

/// Returns the name of `manufacturer`. OpenSC's name stands for an unknown one.
pub(super) fn manufacturer_name(manufacturer: u16) -> &'static str {
    row(manufacturer).map_or("OpenPGP project", |(_, name, _)| name)
}

fn row(manufacturer: u16) -> Option<&'static (u16, &'static str, Quirks)> {
    MAKERS.iter().find(|(id, ..)| *id == manufacturer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manufacturers_are_sorted_and_unique() {
        assert!(MAKERS.is_sorted_by(|one, next| one.0 < next.0));
    }

    #[test]
    fn unknown_manufacturer_has_no_quirks_and_the_projects_name() {
        assert_eq!(Quirks::of(0xFFFE), Quirks::default());
        assert_eq!(manufacturer_name(0xFFFE), "OpenPGP project");
        assert_eq!(manufacturer_name(0x0006), "Yubico");
    }
}
