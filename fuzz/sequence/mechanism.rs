//! Parameters of mechanisms: the right structure, another one, lengths that are none, and pointers that are null.

use cryptoki_sys::*;

use super::{
    arguments::{ArgumentSource, words},
    memory::Use,
};

const HASHES: [CK_MECHANISM_TYPE; 6] = [
    CKM_SHA_1,
    CKM_SHA256,
    CKM_SHA384,
    CKM_SHA512,
    CKM_MD5,
    CK_ULONG::MAX,
];
/// The base points of P-256 and of X25519.
const P256: [u8; 65] = *b"\x04\
    \x6B\x17\xD1\xF2\xE1\x2C\x42\x47\xF8\xBC\xE6\xE5\x63\xA4\x40\xF2\x77\x03\x7D\x81\x2D\xEB\x33\xA0\xF4\xA1\x39\x45\xD8\x98\xC2\x96\
    \x4F\xE3\x42\xE2\xFE\x1A\x7F\x9B\x8E\xE7\xEB\x4A\x7C\x0F\x9E\x16\x2B\xCE\x33\x57\x6B\x31\x5E\xCE\xCB\xB6\x40\x68\x37\xBF\x51\xF5";
const X25519: [u8; 32] = {
    let mut point = [0; 32];
    point[0] = 9;
    point
};

impl ArgumentSource<'_> {
    /// A parameter for the mechanism of this number: pointer and length.
    pub(crate) fn parameter(&mut self, kind: usize) -> (usize, usize) {
        let content = match self.source.byte() % 12 {
            11 => self.content(),
            10 => return (0, self.source.pick(&[1, 16, usize::MAX])),
            9 => self.parameter_of(CKM_ECDH1_DERIVE),
            8 => self.parameter_of(CKM_AES_GCM),
            _ => self.parameter_of(kind as CK_MECHANISM_TYPE),
        };
        if content.is_empty() {
            return (self.source.pick(&[0, 0, 0, 8]), 0);
        }
        let piece = self.structure(&content, Use::Input);
        (piece.0, self.length_of(piece, content.len()))
    }

    fn parameter_of(&mut self, kind: CK_MECHANISM_TYPE) -> Vec<u8> {
        match kind {
            CKM_RSA_PKCS_PSS
            | CKM_SHA1_RSA_PKCS_PSS
            | CKM_SHA256_RSA_PKCS_PSS
            | CKM_SHA384_RSA_PKCS_PSS => {
                let (hash, mgf) = self.hash_and_mgf();
                let salt = self.some_number(&[20, 32, 48, 0, 222]);
                words(&[hash, mgf, salt])
            }
            CKM_RSA_PKCS_OAEP => {
                let (hash, mgf) = self.hash_and_mgf();
                let source = self.some_number(&[CKZ_DATA_SPECIFIED as usize, 0]);
                let [label, len] = self.nested(b"label");
                words(&[hash, mgf, source, label, len])
            }
            CKM_ECDH1_DERIVE | CKM_ECDH1_COFACTOR_DERIVE => {
                let kdf = self.some_number(&[CKD_NULL as usize, CKD_SHA256_KDF as usize, 2, 1]);
                let [shared, shared_len] = self.nested(b"shared");
                let points = [&P256[..], &X25519[..]];
                let point = self.source.pick(&points);
                let [public, public_len] = self.nested(point);
                // Mostly without shared data, as the null function wants it.
                if self.source.once_in(3) {
                    words(&[kdf, shared_len, shared, public_len, public])
                } else {
                    words(&[kdf, 0, 0, public_len, public])
                }
            }
            CKM_EDDSA => {
                let context = self.nested(b"context");
                let flag = self.source.below(3);
                words(&[flag, context[1], context[0]])
            }
            CKM_SHA_1_HMAC_GENERAL | CKM_SHA256_HMAC_GENERAL | CKM_SHA384_HMAC_GENERAL => {
                words(&[self.some_number(&[20, 16, 32, 1, 0, 49])])
            }
            CKM_AES_CBC | CKM_AES_CBC_PAD => vec![7; self.source.pick(&[16, 16, 16, 15, 17])],
            CKM_AES_KEY_WRAP | CKM_AES_KEY_WRAP_KWP => vec![0xA6; self.source.pick(&[0, 8, 4, 5])],
            CKM_AES_CTR => {
                let mut counter = words(&[self.some_number(&[128, 32, 8, 1, 0, 129])]);
                counter.extend([0xFF; 16]);
                counter
            }
            CKM_AES_GCM => {
                let [iv, iv_len] = self.nested(&[1; 12]);
                let [aad, aad_len] = self.nested(b"additional");
                let tag = self.some_number(&[128, 96, 32, 0, 129, 8]);
                words(&[iv, iv_len, iv_len.wrapping_mul(8), aad, aad_len, tag])
            }
            _ => Vec::new(),
        }
    }

    fn hash_and_mgf(&mut self) -> (usize, usize) {
        let at = self.source.below(HASHES.len());
        let mgf = self.some_number(&[1, 2, 3, 4]);
        // The functions have their hashes' order, SHA-1 first (PKCS #11 3.1, 6.1.6).
        let fitting = [1, 2, 3, 4].get(at).copied().unwrap_or(mgf);
        let mgf = if self.source.once_in(4) { mgf } else { fitting };
        (HASHES[at] as usize, mgf)
    }

    /// One of these, seldom any other; the first is the most frequent.
    fn some_number(&mut self, among: &[usize]) -> usize {
        match self.source.byte() % 8 {
            7 => self.number(),
            0..4 => among[0],
            _ => self.source.pick(among),
        }
    }

    /// What a structure points to: pointer and length.
    fn nested(&mut self, content: &[u8]) -> [usize; 2] {
        match self.source.byte() % 12 {
            11 => [0, self.source.pick(&[1, 12, 65, 0x1_0001, usize::MAX])],
            10 => [0, 0],
            9 => {
                let other = self.content();
                let piece = self.structure(&other, Use::Input);
                [piece.0, self.length_of(piece, other.len())]
            }
            _ => {
                let piece = self.structure(content, Use::Input);
                [piece.0, self.length_of(piece, content.len())]
            }
        }
    }
}
