//! Scripts and helpers for sessions with PIV cards.

use std::sync::Arc;

use claviger_apdu::tlv;
use claviger_token::{AppletKind, Card, Object, Template, Token, Value};
use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_OBJECT_CLASS, CKA_CLASS, CKA_LABEL};

use super::{Script, text};

// Certificates of test keys, issued with openssl.
pub(crate) const P256: &[u8] = include_bytes!("../data/p256.der");
pub(crate) const RSA: &[u8] = include_bytes!("../data/rsa2048.der");

/// A card that announces extended length in its answer to reset, and its discovery: SELECT OpenPGP, SELECT PIV, and the
/// CHUID with FASC-N of agency 9999 and a GUID.
pub(crate) const DISCOVERED: &str = "
    @ 3B 85 01 80 73 00 00 40 37
    [
    > 00 A4 04 00 06 D2 76 00 01 24 01 00
    < 6A82
    > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
    < 61 11 4F 06 00 00 10 00 01 00 79 07 4F 05 A0 00 00 03 08 9000
    > 00 CB 3F FF 00 00 05 5C 03 5F C1 02 00 00
    < 53 2D 30 19 D4E739DA739CED39CE739D836858210842108421C84210C3EB
      34 10 00112233445566778899AABBCCDDEEFF 9000
    ]
";
/// The answer to reset of a YubiKey 5.
pub(crate) const YUBIKEY: &str = "3BFD1300008131FE158073C021C057597562694B657940";
/// The answer to reset of a Nitrokey 3, which takes extended length and does not announce it.
pub(crate) const NITROKEY: &str = "3B8F01805D4E6974726F6B657900000000006A";

pub(crate) fn discover(script: &str) -> (Card, Token) {
    let mut card = Card::new(Script::card(script));
    let mut tokens = Token::discover(&mut card).unwrap();
    assert_eq!(tokens.len(), 1);
    let token = tokens.remove(0);
    assert_eq!(token.kind(), AppletKind::Piv);
    (card, token)
}

/// Returns the response with a plain certificate, status word included.
pub(crate) fn certificate(der: &[u8]) -> String {
    certificate_object(der, 0)
}

pub(crate) fn certificate_object(bytes: &[u8], info: u8) -> String {
    let content = [
        tlv::encode(0x70, bytes),
        tlv::encode(0x71, &[info]),
        tlv::encode(0xFE, &[]),
    ]
    .concat();
    format!("{} 9000", text(&tlv::encode(0x53, &content)))
}

pub(crate) fn template(attributes: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Template {
    Template(
        attributes
            .iter()
            .map(|(kind, value)| (*kind, value.to_vec()))
            .collect(),
    )
}

pub(crate) fn of_class(class: CK_OBJECT_CLASS) -> Template {
    template(&[(CKA_CLASS, &class.to_ne_bytes())])
}

/// Returns class and label of each object.
pub(crate) fn labels(objects: &[Arc<Object>]) -> Vec<(CK_OBJECT_CLASS, String)> {
    let label = |object: &Object| match object.get(CKA_LABEL) {
        Some(Value::Bytes(label)) => String::from_utf8(label.clone()).unwrap(),
        other => panic!("label {other:?}"),
    };
    objects
        .iter()
        .map(|object| (object.id.class, label(object)))
        .collect()
}

pub(crate) fn flag(object: &Object, attribute: CK_ATTRIBUTE_TYPE) -> bool {
    match object.get(attribute) {
        Some(Value::Bool(flag)) => *flag,
        other => panic!("flag {other:?}"),
    }
}

/// Scripts one GET DATA of the object with `tag`, and the card's response.
pub(crate) fn read(tag: &str, response: &str) -> String {
    let len = tag.len() / 2;
    format!(
        "> 00 CB 3F FF 00 00 {:02X} 5C {len:02X} {tag} 00 00\n< {response}\n",
        len + 2
    )
}
