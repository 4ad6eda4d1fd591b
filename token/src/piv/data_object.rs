//! The table of data objects (SP 800-73-4 part 1, table 3), with the commands that read and write them.

use std::borrow::Cow;

use claviger_apdu::{
    CommandApdu, CommandBudget, Expected, ResponseApdu, Secret, StatusWord,
    tlv::{self, TlvError},
};

use super::key_reference::{KeyReference, RetiredNumber};
use crate::{applet::OwnedCommand, error::TokenError};

/// The condition for reading an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// No condition.
    Always,
    /// The user PIN must be verified.
    Pin,
    /// No condition, but only cards with Yubico's objects have the object.
    Yubico,
}

/// One data object of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataObject {
    /// The tag for GET DATA.
    pub(super) tag: u32,
    /// OpenSC's name where it has one, else the standard's.
    pub(super) name: Cow<'static, str>,
    /// The condition for reading the object.
    pub(super) access: Access,
    /// The key whose certificate the object holds.
    pub(super) key: Option<KeyReference>,
    /// Content octets of the object identifier below 2.16.840.1.101.3.7; empty without one.
    suffix: Cow<'static, [u8]>,
}

/// 2.16.840.1.101.3.7.
const PIV_ARC: [u8; 7] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x07];

/// Card Holder Unique Identifier.
pub(super) const CHUID: u32 = 0x5F_C102;
/// Key History Object.
pub(super) const KEY_HISTORY: u32 = 0x5F_C10C;
/// Discovery Object. Its content has its own template instead of 53.
pub(super) const DISCOVERY: u32 = 0x7E;
/// Biometric Information Templates Group Template. Its content has its own template instead of 53.
const BIOMETRIC_GROUP: u32 = 0x7F61;
/// Certificate of the first retired key. The others follow.
const RETIRED_1: u32 = 0x5F_C10D;

const fn row(tag: u32, name: &'static str, access: Access, suffix: &'static [u8]) -> DataObject {
    DataObject {
        tag,
        name: Cow::Borrowed(name),
        access,
        key: None,
        suffix: Cow::Borrowed(suffix),
    }
}

const fn certificate(
    tag: u32,
    name: &'static str,
    key: KeyReference,
    suffix: &'static [u8],
) -> DataObject {
    DataObject {
        tag,
        name: Cow::Borrowed(name),
        access: Access::Always,
        key: Some(key),
        suffix: Cow::Borrowed(suffix),
    }
}

/// All data objects except the certificates of retired keys.
#[rustfmt::skip]
static TABLE: [DataObject; 24] = [
    row(0x5F_C107, "Card Capability Container", Access::Always, &[0x01, 0x81, 0x5B, 0x00]),
    row(CHUID, "Card Holder Unique Identifier", Access::Always, &[0x02, 0x30, 0x00]),
    certificate(0x5F_C105, "X.509 Certificate for PIV Authentication", KeyReference::Authentication, &[0x02, 0x01, 0x01]),
    row(0x5F_C103, "Cardholder Fingerprints", Access::Pin, &[0x02, 0x60, 0x10]),
    row(0x5F_C109, "Printed Information", Access::Pin, &[0x02, 0x30, 0x01]),
    row(0x5F_C108, "Cardholder Facial Image", Access::Pin, &[0x02, 0x60, 0x30]),
    certificate(0x5F_C10A, "X.509 Certificate for Digital Signature", KeyReference::Signature, &[0x02, 0x01, 0x00]),
    certificate(0x5F_C10B, "X.509 Certificate for Key Management", KeyReference::Management, &[0x02, 0x01, 0x02]),
    certificate(0x5F_C101, "X.509 Certificate for Card Authentication", KeyReference::CardAuthentication, &[0x02, 0x05, 0x00]),
    row(0x5F_C106, "Security Object", Access::Always, &[0x02, 0x81, 0x10, 0x00]),
    row(DISCOVERY, "Discovery Object", Access::Always, &[0x02, 0x60, 0x50]),
    row(KEY_HISTORY, "Key History Object", Access::Always, &[0x02, 0x60, 0x60]),
    row(0x5F_C121, "Cardholder Iris Image", Access::Pin, &[0x02, 0x10, 0x15]),
    row(BIOMETRIC_GROUP, "Biometric Information Templates Group Template", Access::Always, &[0x02, 0x10, 0x16]),
    row(0x5F_C122, "Secure Messaging Certificate Signer", Access::Always, &[0x02, 0x10, 0x17]),
    row(0x5F_C123, "Pairing Code Reference Data Container", Access::Pin, &[0x02, 0x10, 0x18]),
    row(0x5F_FF00, "Yubico Administrative Data", Access::Yubico, &[]),
    row(0x5F_FF01, "Yubico Attestation Certificate", Access::Yubico, &[]),
    row(0x5F_FF10, "Microsoft Container Map", Access::Yubico, &[]),
    row(0x5F_FF11, "Microsoft Root Certificates 1", Access::Yubico, &[]),
    row(0x5F_FF12, "Microsoft Root Certificates 2", Access::Yubico, &[]),
    row(0x5F_FF13, "Microsoft Root Certificates 3", Access::Yubico, &[]),
    row(0x5F_FF14, "Microsoft Root Certificates 4", Access::Yubico, &[]),
    row(0x5F_FF15, "Microsoft Root Certificates 5", Access::Yubico, &[]),
];

impl DataObject {
    /// Returns every object that a card can have, in the order of listings.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let retired = (1..=RetiredNumber::MAX).filter_map(RetiredNumber::new);
        TABLE.iter().cloned().chain(retired.map(Self::retired))
    }

    /// Returns the object with `tag`.
    pub(super) fn by_tag(tag: u32) -> Option<Self> {
        Self::all().find(|object| object.tag == tag)
    }

    /// Returns the object that holds the certificate of `key`. Every key has one.
    pub(super) fn certificate_of(key: KeyReference) -> Option<Self> {
        match key {
            KeyReference::Retired(number) => Some(Self::retired(number)),
            _ => TABLE.iter().find(|object| object.key == Some(key)).cloned(),
        }
    }

    fn retired(number: RetiredNumber) -> Self {
        let n = number.get();
        Self {
            tag: RETIRED_1 + u32::from(n) - 1,
            name: format!("Retired X.509 Certificate for Key Management {n}").into(),
            access: Access::Always,
            key: Some(KeyReference::Retired(number)),
            suffix: vec![0x02, 0x10, n].into(),
        }
    }

    /// Returns the content octets of the object identifier; empty without one.
    pub(super) fn oid(&self) -> Vec<u8> {
        if self.suffix.is_empty() {
            Vec::new()
        } else {
            [&PIV_ARC, &*self.suffix].concat()
        }
    }

    /// Builds GET DATA (SP 800-73-4 part 2, 3.1.2).
    pub(super) fn get_data(&self) -> OwnedCommand {
        OwnedCommand {
            header: [0x00, 0xCB, 0x3F, 0xFF],
            data: Secret::new(self.tag_list()),
            expected: Expected::All,
            budget: CommandBudget::Fast,
        }
    }

    /// Builds PUT DATA (SP 800-73-4 part 2, 3.3.1) with content in the form of [`DataObject::content`]. Empty content
    /// removes the object.
    pub(super) fn put_data(&self, content: &[u8]) -> OwnedCommand {
        let data = match (self.has_own_template(), content) {
            (true, []) => tlv::encode(self.tag, &[]),
            (true, template) => template.to_vec(),
            (false, content) => [self.tag_list(), tlv::encode(0x53, content)].concat(),
        };
        OwnedCommand {
            header: [0x00, 0xDB, 0x3F, 0xFF],
            data: Secret::new(data),
            expected: Expected::Nothing,
            budget: CommandBudget::Fast,
        }
    }

    /// Returns whether `content` is in the form of [`DataObject::content`]: some bytes, or the object's own template.
    pub(super) fn holds(&self, content: &[u8]) -> bool {
        match self.has_own_template() {
            true => tlv::only(content, self.tag).is_ok_and(|inner| !inner.is_empty()),
            false => !content.is_empty(),
        }
    }

    const fn has_own_template(&self) -> bool {
        matches!(self.tag, DISCOVERY | BIOMETRIC_GROUP)
    }

    /// Builds `5C { tag }`.
    fn tag_list(&self) -> Vec<u8> {
        let tag = self.tag.to_be_bytes();
        let zeros = tag.iter().take_while(|byte| **byte == 0).count();
        tlv::encode(0x5C, tag.get(zeros..).unwrap_or(&tag))
    }

    /// Returns the content in a response to [`DataObject::get_data`]. Returns `None` if the card does not have the
    /// object or does not show it, for which cards use several status words.
    pub(super) fn content(&self, response: &ResponseApdu) -> Result<Option<Vec<u8>>, TokenError> {
        match response.status {
            StatusWord::OK => {}
            StatusWord::NOT_FOUND
            | StatusWord::REFERENCE_NOT_FOUND
            | StatusWord::SECURITY_STATUS_NOT_SATISFIED => return Ok(None),
            status => {
                let operation = format!("PIV GET DATA of {}", self.name);
                return Err(TokenError::refused(operation, status));
            }
        }
        let content = self
            .unwrap(response.data.expose())
            .map_err(|fault| TokenError::malformed(&self.name, fault))?;
        Ok(content.map(<[u8]>::to_vec))
    }

    /// Returns the value of 53, or the whole template of an object that has its own.
    fn unwrap<'a>(&self, data: &'a [u8]) -> Result<Option<&'a [u8]>, TlvError> {
        let own_template = self.has_own_template();
        let content = match data {
            [] => data,
            _ => tlv::only(data, if own_template { self.tag } else { 0x53 })?,
        };
        let value = if own_template { data } else { content };
        Ok((!content.is_empty()).then_some(value))
    }
}

/// GET DATA of the Discovery Object.
pub(super) const GET_DISCOVERY: CommandApdu<'static> = CommandApdu {
    data: &[0x5C, 0x01, 0x7E],
    expected: Expected::UpTo(256),
    ..CommandApdu::header([0x00, 0xCB, 0x3F, 0xFF])
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_and_every_key_has_one_row() {
        let all: Vec<DataObject> = DataObject::all().collect();
        for object in &all {
            let same = all.iter().filter(|other| other.tag == object.tag);
            assert_eq!(same.count(), 1, "{object:?}");
            assert_eq!(DataObject::by_tag(object.tag).as_ref(), Some(object));
        }
        for key in KeyReference::all() {
            let object = DataObject::certificate_of(key).unwrap();
            assert!(object.key == Some(key) && all.contains(&object));
        }
        assert_eq!(all.last().map(|object| object.tag), Some(0x5F_C120));
    }

    #[test]
    fn get_data_names_the_tag_without_leading_zeros() {
        let data = |tag| {
            let object = DataObject::by_tag(tag).unwrap();
            object.get_data().data.expose().to_vec()
        };
        assert_eq!(data(CHUID), [0x5C, 3, 0x5F, 0xC1, 0x02]);
        assert_eq!(data(BIOMETRIC_GROUP), [0x5C, 2, 0x7F, 0x61]);
        assert_eq!(data(DISCOVERY), GET_DISCOVERY.data);
    }

    #[test]
    fn object_identifiers_are_those_of_the_standard() {
        use x509_cert::der::asn1::ObjectIdentifier;
        let oid = |tag| {
            let octets = DataObject::by_tag(tag).unwrap().oid();
            ObjectIdentifier::from_bytes(&octets).unwrap().to_string()
        };
        assert_eq!(oid(0x5F_C107), "2.16.840.1.101.3.7.1.219.0");
        assert_eq!(oid(0x5F_C106), "2.16.840.1.101.3.7.2.144.0");
        assert_eq!(oid(0x5F_C105), "2.16.840.1.101.3.7.2.1.1");
        assert_eq!(oid(0x5F_C120), "2.16.840.1.101.3.7.2.16.20");
    }

    #[test]
    fn object_without_content_is_absent() {
        let object = DataObject::by_tag(CHUID).unwrap();
        let response = |data: &[u8], status| ResponseApdu {
            data: Secret::copy_from(data),
            status: StatusWord(status),
        };
        assert_eq!(object.content(&response(&[0x53, 0], 0x9000)).unwrap(), None);
        assert_eq!(object.content(&response(&[], 0x9000)).unwrap(), None);
        assert_eq!(object.content(&response(&[], 0x6A82)).unwrap(), None);
        assert_eq!(
            object.content(&response(&[0x53, 1, 7], 0x9000)).unwrap(),
            Some(vec![7])
        );
        assert!(object.content(&response(&[0x54, 1, 7], 0x9000)).is_err());
        assert!(object.content(&response(&[0x53, 1, 7, 0], 0x9000)).is_err());
        assert!(object.content(&response(&[], 0x6F00)).is_err());
        let discovery = DataObject::by_tag(DISCOVERY).unwrap();
        assert_eq!(
            discovery.content(&response(&[0x7E, 1, 7], 0x9000)).unwrap(),
            Some(vec![0x7E, 1, 7])
        );
        assert_eq!(
            discovery.content(&response(&[0x7E, 0], 0x9000)).unwrap(),
            None
        );
        assert!(discovery.content(&response(&[0x53, 1, 7], 0x9000)).is_err());
    }
}
