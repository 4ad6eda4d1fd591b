//! The applications of a card that are tokens, and how each is selected and recognised.

use claviger_apdu::{CommandApdu, StatusWord};

/// Which applet; also what a slot is made of, together with its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AppletKind {
    /// NIST SP 800-73.
    Piv,
    /// OpenPGP card 2.x and 3.x.
    OpenPgp,
}

impl AppletKind {
    /// Every applet, in the order their slots are shown.
    pub const ALL: [Self; 2] = [Self::Piv, Self::OpenPgp];

    /// Name for a person.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Piv => "PIV",
            Self::OpenPgp => "OpenPGP",
        }
    }

    /// Whether `status` is what a command gets that arrives at another applet, or at none, or after a
    /// reset; the command was then not executed.
    #[must_use]
    pub const fn may_be_other_applet(status: StatusWord) -> bool {
        matches!(
            status.0,
            0x6D00 | 0x6E00 | 0x6A82 | 0x6A86 | 0x6A88 | 0x6982 | 0x6985 | 0x6B00 | 0x6881
        )
    }
}

/// How a card is asked for an applet, and how the applet is recognised.
pub struct Application {
    /// Which applet it is.
    pub kind: AppletKind,
    /// The data of SELECT. Cards accept an identifier without its last bytes.
    pub aid: &'static [u8],
    /// A command that only reads. Its success, and nothing else, shows that the applet is selected. The answer is
    /// useful anyway before a PIN is sent.
    pub probe: CommandApdu<'static>,
    /// Whether the data of a successful answer to `probe` is this applet's.
    pub is_probe_answer: fn(&[u8]) -> bool,
}
