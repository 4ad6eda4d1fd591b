//! The content of a certificate's data object (SP 800-73-4 part 1, table 10), plain or compressed.
//!
//! ```text
//! 70 certificate   71 CertInfo, bit 0: compressed   72 MSCUID   FE error detection code
//! ```

use std::io::{Read, Write};

use claviger_apdu::tlv;
use flate2::{
    Compression,
    bufread::{DeflateDecoder, GzDecoder, ZlibDecoder},
    write::GzEncoder,
};

use crate::{certificate::Certificate, error::TokenError};

/// The largest certificate that is taken from a compressed object. A card holds a few kilobytes.
const MAX_INFLATED: u64 = 64 * 1024;
const THING: &str = "PIV certificate object";
/// The largest certificate that is sent uncompressed. A YubiKey's largest object has 3052 bytes, and no card's is
/// larger.
pub(super) const MAX_PLAIN: usize = 3036;

/// Returns the content of an object with this certificate.
pub(super) fn plain(der: &[u8]) -> Vec<u8> {
    content(der, 0x00)
}

/// Returns the content of an object with this certificate compressed.
///
/// # Errors
/// [`TokenError::ValueInvalid`] if the certificate is longer than [`MAX_INFLATED`].
pub(super) fn compressed(der: &[u8]) -> Result<Vec<u8>, TokenError> {
    if !u64::try_from(der.len()).is_ok_and(|len| len <= MAX_INFLATED) {
        let what = format!(
            "the certificate has {} bytes; at most {MAX_INFLATED} are possible",
            der.len()
        );
        return Err(TokenError::value(what));
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let packed = encoder.write_all(der).and_then(|()| encoder.finish());
    let packed = packed.map_err(|fault| TokenError::malformed(THING, fault))?;
    Ok(content(&packed, 0x01))
}

fn content(bytes: &[u8], info: u8) -> Vec<u8> {
    [
        tlv::encode(0x70, bytes),
        tlv::encode(0x71, &[info]),
        tlv::encode(0xFE, &[]),
    ]
    .concat()
}

/// The encoding of the bytes under tag 70. CertInfo is often wrong, so the bytes decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form<'a> {
    /// The uncompressed certificate.
    Plain(&'a [u8]),
    /// RFC 1952, which the standard requires.
    Gzip(&'a [u8]),
    /// RFC 1950, which some issuers write.
    Zlib(&'a [u8]),
    /// RFC 1951 without a header.
    Deflate(&'a [u8]),
}

/// Returns the certificate in `content`, the content of the object's 53.
///
/// # Errors
/// [`TokenError::Malformed`], also if it inflates to more than 64 KiB.
pub(super) fn certificate(content: &[u8]) -> Result<Certificate, TokenError> {
    let (bytes, compressed) = split(content)?;
    Certificate::parse(&inflate(form(bytes, compressed))?)
}

/// Returns the bytes under tag 70, and whether CertInfo marks them as compressed.
fn split(content: &[u8]) -> Result<(&[u8], bool), TokenError> {
    // Some cards hold the certificate without any tag.
    if content.starts_with(&[0x30, 0x82]) {
        return Ok((content, false));
    }
    let bytes = tlv::find(content, 0x70).map_err(TokenError::tlv(THING))?;
    let bytes = bytes.ok_or_else(|| TokenError::malformed(THING, "no certificate in it"))?;
    let info = tlv::find(content, 0x71).map_err(TokenError::tlv(THING))?;
    let compressed = info
        .and_then(<[u8]>::first)
        .is_some_and(|info| info & 0x01 != 0);
    Ok((bytes, compressed))
}

fn form(bytes: &[u8], compressed: bool) -> Form<'_> {
    match bytes {
        [0x1F, 0x8B, ..] => Form::Gzip(bytes),
        [0x78, ..] => Form::Zlib(bytes),
        // Net iD: 01 00, the inflated length in two bytes, zlib.
        [0x01, 0x00, _, _, stream @ ..] if stream.starts_with(&[0x78]) => Form::Zlib(stream),
        [0x30, ..] => Form::Plain(bytes),
        _ if compressed => Form::Deflate(bytes),
        _ => Form::Plain(bytes),
    }
}

/// Inflates the whole of a stream to at most [`MAX_INFLATED`] bytes.
fn inflate(form: Form<'_>) -> Result<Vec<u8>, TokenError> {
    let (Form::Plain(mut rest)
    | Form::Gzip(mut rest)
    | Form::Zlib(mut rest)
    | Form::Deflate(mut rest)) = form;
    let inflated = match form {
        Form::Plain(bytes) => return Ok(bytes.to_vec()),
        Form::Gzip(_) => bounded(GzDecoder::new(&mut rest)),
        Form::Zlib(_) => bounded(ZlibDecoder::new(&mut rest)),
        Form::Deflate(_) => bounded(DeflateDecoder::new(&mut rest)),
    }?;
    if rest.is_empty() {
        Ok(inflated)
    } else {
        let fault = format!("{} bytes after the compressed certificate", rest.len());
        Err(TokenError::malformed(THING, fault))
    }
}

fn bounded(decoder: impl Read) -> Result<Vec<u8>, TokenError> {
    let mut inflated = Vec::new();
    decoder
        .take(MAX_INFLATED + 1)
        .read_to_end(&mut inflated)
        .map_err(|fault| TokenError::malformed(THING, fault))?;
    if u64::try_from(inflated.len()).is_ok_and(|len| len <= MAX_INFLATED) {
        Ok(inflated)
    } else {
        let fault = format!("inflates to more than {MAX_INFLATED} bytes");
        Err(TokenError::malformed(THING, fault))
    }
}

/// Parses arbitrary bytes as an object's content. This is the entry of the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = certificate(bytes);
    for compressed in [false, true] {
        if let Ok(inflated) = inflate(form(bytes, compressed)) {
            let limit = MAX_INFLATED.max(bytes.len() as u64);
            assert!(inflated.len() as u64 <= limit, "never more than allowed");
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::write::{DeflateEncoder, ZlibEncoder};

    use super::*;

    const DER: &[u8] = include_bytes!("../../tests/data/rsa2048.der");

    use super::content as object;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_certificate_is_found_in_every_form_issuers_write() {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(DER).unwrap();
        let len = u16::try_from(DER.len()).unwrap().to_le_bytes();
        let net_id = [&[0x01, 0x00], &len[..], &zlib(DER)].concat();
        for content in [
            object(DER, 0),
            object(DER, 1),
            object(&gzip(DER), 1),
            object(&gzip(DER), 0),
            object(&zlib(DER), 1),
            object(&net_id, 0),
            object(&deflate.finish().unwrap(), 1),
            tlv::encode(0x70, DER),
            DER.to_vec(),
        ] {
            assert_eq!(certificate(&content).unwrap().der, DER);
        }
    }

    #[test]
    fn written_certificate_object_is_read_back() {
        assert_eq!(certificate(&plain(DER)).unwrap().der, DER);
        let packed = compressed(DER).unwrap();
        assert_eq!(certificate(&packed).unwrap().der, DER);
        assert_ne!(packed, plain(DER));
        assert!(plain(&[0; MAX_PLAIN]).len() <= 3052 - 4, "with its 53");
        assert!(compressed(&vec![0; 64 * 1024 + 1]).is_err());
    }

    #[test]
    fn certificate_that_inflates_beyond_the_limit_is_refused() {
        let bomb = object(&gzip(&vec![0x30; 1024 * 1024]), 1);
        assert!(bomb.len() < 2048);
        let error = certificate(&bomb).unwrap_err().to_string();
        assert!(error.contains("inflates to more than"), "{error}");
    }

    #[test]
    fn damaged_objects_are_refused() {
        let packed = gzip(DER);
        assert!(certificate(&object(&packed[..packed.len() - 1], 1)).is_err());
        assert!(certificate(&object(&[&packed[..], &[0]].concat(), 1)).is_err());
        assert!(certificate(&tlv::encode(0x71, &[0])).is_err());
        assert!(certificate(&[0x70, 0x82]).is_err());
        assert!(certificate(&object(&[], 0)).is_err());
    }
}
