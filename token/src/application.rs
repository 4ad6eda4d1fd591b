//! The applications of a card that are tokens, and how each is selected and recognised.

use claviger_apdu::{CommandApdu, ResponseApdu, StatusWord};

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

    /// What SELECT is sent; cards accept it cut on the right.
    #[must_use]
    pub const fn aid(self) -> &'static [u8] {
        match self {
            Self::Piv => crate::piv::AID,
            Self::OpenPgp => crate::openpgp::AID,
        }
    }

    /// A harmless command whose success, and nothing else, proves that the applet is selected; useful to
    /// read anyway before a PIN is sent.
    #[must_use]
    pub const fn probe(self) -> CommandApdu<'static> {
        match self {
            Self::Piv => crate::piv::PROBE,
            Self::OpenPgp => crate::openpgp::PROBE,
        }
    }

    /// Whether `response` to [`AppletKind::probe`] is this applet's.
    #[must_use]
    pub fn proves(self, response: &ResponseApdu) -> bool {
        response.status.is_ok()
            && match self {
                Self::Piv => crate::piv::is_discovery(response.data.expose()),
                Self::OpenPgp => crate::openpgp::is_application_data(response.data.expose()),
            }
    }

    /// Whether `status` is what a command gets that arrives at another applet, or at none, or after a
    /// reset; the command was then not executed.
    #[must_use]
    pub const fn smells_lost(status: StatusWord) -> bool {
        matches!(
            status.0,
            0x6D00 | 0x6E00 | 0x6A82 | 0x6A86 | 0x6A88 | 0x6982 | 0x6985 | 0x6B00 | 0x6881
        )
    }
}
