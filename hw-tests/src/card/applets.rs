//! The applets of a powered card, and the dispatcher that selects among them.

use apdu_dispatch::{
    App,
    dispatch::ApduDispatch,
    interchanges::{Channel, Data, Requester},
};
use heapless::VecView;
use iso7816::{Aid, Interface, command::CommandView};
use trussed::pipe::TrussedChannel;

use super::{
    CardConfig,
    kernel::{Client, SystemCall},
};

/// RID and PIX of PIV (SP 800-73-4 part 1, 2.2).
const PIV_AID: [u8; 11] = [0xA0, 0, 0, 0x03, 0x08, 0, 0, 0x10, 0, 0x01, 0];
/// Status word of a card whose firmware cannot respond.
pub(super) const NO_DIAGNOSIS: [u8; 2] = [0x6F, 0x00];
/// Status word for a frame that is too long for the dispatcher.
const WRONG_LENGTH: [u8; 2] = [0x67, 0x00];

/// The channels of the applets and the dispatcher. They outlive [`Applets`].
#[derive(Default)]
pub(super) struct Wiring {
    openpgp: TrussedChannel,
    piv: TrussedChannel,
    contact: Channel,
    contactless: Channel,
}

/// The applets between two power cycles. Dropping them powers the card off.
pub(super) struct Applets<'a> {
    piv: Option<Piv<'a>>,
    openpgp: Option<opcard::Card<Client<'a>>>,
    reader: Requester<'a>,
    dispatch: ApduDispatch<'a>,
    yubi: bool,
}

impl<'a> Applets<'a> {
    /// Powers the card up. Returns `None` if the applets of the last power-up still exist.
    pub(super) fn power_up(
        config: &CardConfig,
        kernel: &SystemCall<'a>,
        wiring: &'a Wiring,
    ) -> Option<Self> {
        let openpgp = match config.openpgp {
            true => Some(opcard::Card::new(
                kernel.client("opcard", &wiring.openpgp)?,
                openpgp_options(config),
            )),
            false => None,
        };
        let piv = match config.piv {
            true => Some(Piv::new(kernel.client("piv", &wiring.piv)?, config)),
            false => None,
        };
        let (reader, contact) = wiring.contact.split()?;
        let contactless = wiring.contactless.responder()?;
        let dispatch = ApduDispatch::new(contact, contactless);
        Some(Self {
            piv,
            openpgp,
            reader,
            dispatch,
            yubi: config.yubi,
        })
    }

    /// Returns the response to one frame.
    pub(super) fn answer(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.yubi && is_case_3_short(&frame) {
            frame.push(0);
        }
        let Ok(request) = Data::from_slice(&frame) else {
            return WRONG_LENGTH.to_vec();
        };
        if self.reader.request(request).is_err() {
            return NO_DIAGNOSIS.to_vec();
        }
        let mut apps: heapless::Vec<&mut dyn App, 2> = heapless::Vec::new();
        if let Some(piv) = &mut self.piv {
            let _ = apps.push(piv);
        }
        if let Some(openpgp) = &mut self.openpgp {
            let _ = apps.push(openpgp);
        }
        self.dispatch.poll(&mut apps);
        self.reader
            .take_response()
            .map_or_else(|| NO_DIAGNOSIS.to_vec(), |response| response.to_vec())
    }
}

/// Returns whether the frame is a short command with data and without Le. A YubiKey returns up to 256 bytes for it, where
/// the dispatcher returns 61xx.
fn is_case_3_short(frame: &[u8]) -> bool {
    matches!(frame, [_, _, _, _, lc, data @ ..] if *lc != 0 && data.len() == usize::from(*lc))
}

fn openpgp_options(config: &CardConfig) -> opcard::Options {
    let mut options = opcard::Options::default();
    options.serial = config.serial.to_be_bytes();
    options.manufacturer = [0x00, 0x0F];
    options.allowed_generation = opcard::AllowedAlgorithms::all();
    options.allowed_imports = opcard::AllowedAlgorithms::all();
    options
}

struct Piv<'a> {
    applet: piv_authenticator::Authenticator<Client<'a>>,
    yubi: bool,
}

impl<'a> Piv<'a> {
    fn new(client: Client<'a>, config: &CardConfig) -> Self {
        let options = piv_authenticator::Options::new().uuid(Some(config.guid()));
        Self {
            applet: piv_authenticator::Authenticator::new(client, options),
            yubi: config.yubi,
        }
    }
}

impl iso7816::App for Piv<'_> {
    fn aid(&self) -> Aid {
        match self.yubi {
            true => Aid::new_truncatable(&PIV_AID, 5),
            false => self.applet.aid(),
        }
    }
}

impl App for Piv<'_> {
    fn select(
        &mut self,
        interface: Interface,
        command: CommandView<'_>,
        reply: &mut VecView<u8>,
    ) -> iso7816::Result {
        App::select(&mut self.applet, interface, command, reply)
    }

    fn call(
        &mut self,
        interface: Interface,
        command: CommandView<'_>,
        reply: &mut VecView<u8>,
    ) -> iso7816::Result {
        App::call(&mut self.applet, interface, command, reply)
    }

    fn deselect(&mut self) {
        App::deselect(&mut self.applet);
    }
}
