//! OpenPGP cards, given by their application related data, and the parts of session scripts.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the tests' own helpers: a failure here is a failure of the test"
)]

use std::{fmt::Display, sync::Arc};

use claviger_apdu::{Secret, tlv};
use claviger_token::{AppletKind, Card, Object, Template, Token};
use cryptoki_sys::{
    CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CKA_CLASS, CKA_ID, CKA_LABEL, CKO_PRIVATE_KEY, CKO_PROFILE,
};

use crate::common::{
    Script, hex,
    signing::{begin, context_login},
    text,
};

/// A P-256 certificate.
pub(crate) const P256: &[u8] = include_bytes!("../data/p256.der");
/// An RSA-2048 certificate.
pub(crate) const RSA: &[u8] = include_bytes!("../data/rsa2048.der");
/// An Ed25519 certificate.
pub(crate) const ED25519: &[u8] = include_bytes!("../data/ed25519.der");

/// SELECT of the application.
pub(crate) const SELECT: &str = "> 00A4040006 D27600012401 00 \n < 9000 \n";
/// SELECT of PIV on a card that has none.
pub(crate) const NO_PIV: &str = "> 00A4040009 A00000030800001000 00 \n < 6A82 \n";
/// VERIFY of 123456 for everything except signatures.
pub(crate) const VERIFY_82: &str = "> 0020008206 313233343536 \n";
/// VERIFY of 123456 for signatures.
pub(crate) const VERIFY_81: &str = "> 0020008106 313233343536 \n";

/// The card's description of itself.
#[derive(Clone)]
pub(crate) struct Sheet {
    pub(crate) version: &'static str,
    pub(crate) manufacturer: &'static str,
    /// Compact TLV of the historical bytes.
    pub(crate) capabilities: &'static str,
    /// First byte of the extended capabilities.
    pub(crate) features: u8,
    /// Most random bytes of one GET CHALLENGE.
    pub(crate) challenge: u8,
    pub(crate) attributes: [&'static str; 3],
    pub(crate) password_status: [u8; 7],
    /// First byte of each fingerprint. The other bytes are zero.
    pub(crate) fingerprints: [u8; 3],
    /// 0 no key, 1 generated, 2 imported. Old cards do not report it.
    pub(crate) status: Option<[u8; 3]>,
}

pub(crate) const ATTRIBUTES_P256: &str = "13 2A8648CE3D030107";
pub(crate) const ATTRIBUTES_P521: &str = "13 2B81040023";
pub(crate) const ATTRIBUTES_ED25519: &str = "16 2B06010401DA470F01";
pub(crate) const ATTRIBUTES_X25519: &str = "12 2B060104019755010501";
pub(crate) const ATTRIBUTES_RSA: &str = "01 0800 0020 00";

impl Sheet {
    /// Ed25519, X25519 and P-256, on a card whose PIN verification lasts for several signatures.
    pub(crate) const CURVES: Self = Self {
        version: "0304",
        manufacturer: "FFFE",
        capabilities: "73 C00180",
        features: 0x3E,
        challenge: 0,
        attributes: [ATTRIBUTES_ED25519, ATTRIBUTES_X25519, ATTRIBUTES_P256],
        password_status: [1, 0x7F, 0x7F, 0x7F, 3, 0, 3],
        fingerprints: [0x11, 0x22, 0x33],
        status: Some([1, 2, 1]),
    };

    /// Returns the value of 6E.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut inner = tlv::encode(
            0xC0,
            &[self.features, 0, 0, self.challenge, 4, 0, 4, 0, 0, 0],
        );
        for (tag, attributes) in (0xC1..).zip(self.attributes) {
            inner.extend(tlv::encode(tag, &hex(attributes)));
        }
        inner.extend(tlv::encode(0xC4, &self.password_status));
        let fingerprints: Vec<u8> = self
            .fingerprints
            .iter()
            .flat_map(|first| [&[*first][..], &[0; 19]].concat())
            .collect();
        inner.extend(tlv::encode(0xC5, &fingerprints));
        if let Some([signature, decryption, authentication]) = self.status {
            let pairs = [1, signature, 2, decryption, 3, authentication];
            inner.extend(tlv::encode(0xDE, &pairs));
        }
        let aid = format!(
            "D27600012401 {} {} 0AB00042 0000",
            self.version, self.manufacturer
        );
        let historical = format!("00 31F5 {} 05 9000", self.capabilities);
        [
            tlv::encode(0x4F, &hex(&aid)),
            tlv::encode(0x5F52, &hex(&historical)),
            tlv::encode(0x73, &inner),
        ]
        .concat()
    }

    /// Scripts GET DATA 6E in a short frame.
    pub(crate) fn probe(&self) -> String {
        exchange("00CA006E00", &self.bytes())
    }

    /// Scripts the discovery of this card, which has no PIV.
    pub(crate) fn discovery(&self) -> String {
        format!("{SELECT}{}{NO_PIV}", self.probe())
    }
}

/// Scripts a frame and its response with 9000.
pub(crate) fn exchange(frame: impl Display, response: &[u8]) -> String {
    format!("> {frame}\n < {} 9000\n", text(response))
}

/// Scripts the reading of the public key `point`, whose control reference template is `template`.
pub(crate) fn read_point(template: &str, point: &[u8]) -> String {
    let response = tlv::encode(0x7F49, &tlv::encode(0x86, point));
    exchange(format!("0047810002 {template} 00"), &response)
}

/// Returns the uncompressed point whose coordinates consist of `byte`.
pub(crate) fn point(byte: u8, len: usize) -> Vec<u8> {
    [&[4][..], &vec![byte; 2 * len]].concat()
}

/// Scripts the reading of the keys of [`Sheet::CURVES`].
pub(crate) fn read_keys() -> String {
    [
        read_point("B600", &[0xE1; 32]),
        read_point("B800", &[0xE2; 32]),
        read_point("A400", &point(0xE3, 32)),
    ]
    .concat()
}

/// GET DATA of the certificate at the card's position.
pub(crate) const READ_FIRST: &str = "00CA7F2100";
/// GET NEXT DATA of the certificate after it.
pub(crate) const READ_NEXT: &str = "00CC7F2100";

/// Scripts SELECT DATA of one of the certificates.
pub(crate) fn select_data(occurrence: u8) -> String {
    exchange(format!("00A5{occurrence:02X}0406 60045C027F21"), &[])
}

/// Returns the number of frames in `session`.
pub(crate) fn frames(session: &str) -> usize {
    session
        .lines()
        .filter(|line| line.trim_start().starts_with('>'))
        .count()
}

/// Returns the card of `session`, with its discovered OpenPGP token.
pub(crate) fn open(session: &str) -> (Card, Token) {
    let mut card = Card::new(Script::card(session));
    let mut tokens = Token::discover(&mut card).unwrap();
    assert_eq!(tokens.len(), 1);
    let token = tokens.remove(0);
    assert_eq!(token.kind(), AppletKind::OpenPgp);
    (card, token)
}

/// Scripts a session of `sheet` up to the login, then `rest`. If each signature needs its own PIN, the login has one
/// VERIFY less.
pub(crate) fn logged_in(sheet: &Sheet, rest: &str) -> (Card, Token) {
    let signing = if sheet.password_status[0] == 1 {
        format!("{VERIFY_81} < 9000 \n")
    } else {
        String::new()
    };
    let session = format!(
        "{}{SELECT}{VERIFY_82} < 9000 \n {signing}{rest}",
        sheet.discovery()
    );
    let (mut card, mut token) = open(&session);
    token.login(&mut card, &pin()).unwrap();
    (card, token)
}

pub(crate) fn pin() -> Secret {
    Secret::copy_from(b"123456")
}

/// Returns a search by class, and by id unless it is 0.
pub(crate) fn by(class: CK_OBJECT_CLASS, id: u8) -> Template {
    let mut template = vec![(CKA_CLASS, class.to_ne_bytes().to_vec())];
    if id != 0 {
        template.push((CKA_ID, vec![id]));
    }
    Template(template)
}

/// Returns every object of the card as "class id label". The module's own profile objects are left out.
pub(crate) fn names(objects: &[Arc<Object>]) -> Vec<String> {
    let value = |object: &Object, attribute| {
        let value = object.get(attribute).and_then(|value| value.encode());
        value.unwrap().into_owned()
    };
    objects
        .iter()
        .filter(|object| object.id.class != CKO_PROFILE)
        .map(|object| {
            let label = String::from_utf8(value(object, CKA_LABEL)).unwrap();
            let id = text(&value(object, CKA_ID));
            format!("{} {id} {label}", object.id.class)
        })
        .collect()
}

/// Signs `message` with private key `id`, after a context login if `once` is true.
pub(crate) fn sign(
    card: &mut Card,
    token: &mut Token,
    id: u8,
    mechanism: CK_MECHANISM_TYPE,
    message: &[u8],
    once: bool,
) -> Result<Vec<u8>, claviger_token::TokenError> {
    let found = token.find(card, &by(CKO_PRIVATE_KEY, id))?;
    let mut operation = begin(mechanism, &found[0])?;
    operation.update(message)?;
    if once {
        context_login(token, card, &mut operation, pin())?;
    }
    token
        .sign(card, &mut operation)
        .map(|signature| signature.expose().to_vec())
}
