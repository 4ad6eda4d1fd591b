//! The applications of a card that are tokens: how each is selected and recognised.

use claviger_apdu::{CommandApdu, StatusWord};

/// The kind of an applet. A reader and an applet make up a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AppletKind {
    /// NIST SP 800-73.
    Piv,
    /// OpenPGP card 2.x and 3.x.
    OpenPgp,
}

impl AppletKind {
    /// Every applet, in the order of their slots.
    pub const ALL: [Self; 2] = [Self::Piv, Self::OpenPgp];

    /// Returns the name for a person.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Piv => "PIV",
            Self::OpenPgp => "OpenPGP",
        }
    }

    /// Returns whether a command that arrives at another applet, at no applet, or after a reset gets `status`. In these
    /// cases the command was not executed.
    #[must_use]
    pub const fn may_be_other_applet(status: StatusWord) -> bool {
        matches!(
            status.0,
            0x6D00 | 0x6E00 | 0x6A82 | 0x6A86 | 0x6A88 | 0x6982 | 0x6985 | 0x6B00 | 0x6881
        )
    }
}

/// How an applet is selected and recognised.
pub struct Application {
    /// The kind of the applet.
    pub kind: AppletKind,
    /// The data of SELECT. Cards accept an application identifier without its last bytes.
    pub aid: &'static [u8],
    /// The probe: a command that only reads. Only its success confirms that the applet is selected. The response has a
    /// second use: it is needed before a PIN is sent.
    pub probe: CommandApdu<'static>,
    /// Returns whether the data of a successful response to `probe` belongs to this applet.
    pub is_probe_answer: fn(&[u8]) -> bool,
}
