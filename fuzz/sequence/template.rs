//! Templates: what the function asks for, with what does not belong there.

use cryptoki_sys::*;

use super::{
    arguments::{ArgumentSource, words},
    memory::Use,
};

const CERTIFICATE: &[u8] = include_bytes!("../../token/tests/data/p256.der");
/// prime256v1, and a point on it as an OCTET STRING.
const P256: &[u8] = b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07";
const POINT: &[u8] = b"\x04\x41\x04\
    \x6B\x17\xD1\xF2\xE1\x2C\x42\x47\xF8\xBC\xE6\xE5\x63\xA4\x40\xF2\x77\x03\x7D\x81\x2D\xEB\x33\xA0\xF4\xA1\x39\x45\xD8\x98\xC2\x96\
    \x4F\xE3\x42\xE2\xFE\x1A\x7F\x9B\x8E\xE7\xEB\x4A\x7C\x0F\x9E\x16\x2B\xCE\x33\x57\x6B\x31\x5E\xCE\xCB\xB6\x40\x68\x37\xBF\x51\xF5";
const KINDS: [CK_ATTRIBUTE_TYPE; 36] = [
    CKA_CLASS,
    CKA_TOKEN,
    CKA_PRIVATE,
    CKA_LABEL,
    CKA_APPLICATION,
    CKA_VALUE,
    CKA_OBJECT_ID,
    CKA_CERTIFICATE_TYPE,
    CKA_SUBJECT,
    CKA_KEY_TYPE,
    CKA_ID,
    CKA_SENSITIVE,
    CKA_ENCRYPT,
    CKA_DECRYPT,
    CKA_WRAP,
    CKA_UNWRAP,
    CKA_SIGN,
    CKA_VERIFY,
    CKA_DERIVE,
    CKA_START_DATE,
    CKA_MODULUS,
    CKA_MODULUS_BITS,
    CKA_PUBLIC_EXPONENT,
    CKA_VALUE_LEN,
    CKA_EXTRACTABLE,
    CKA_MODIFIABLE,
    CKA_COPYABLE,
    CKA_DESTROYABLE,
    CKA_EC_PARAMS,
    CKA_EC_POINT,
    CKA_ALWAYS_AUTHENTICATE,
    CKA_WRAP_TEMPLATE,
    CKA_UNWRAP_TEMPLATE,
    CKA_ALLOWED_MECHANISMS,
    CKA_VENDOR_DEFINED,
    CK_ULONG::MAX,
];
/// Most attributes of a template.
const MANY: usize = 14;

type Entries = Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>;

fn number(value: CK_ULONG) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn flags(kinds: &[CK_ATTRIBUTE_TYPE]) -> Entries {
    kinds.iter().map(|kind| (*kind, vec![1])).collect()
}

fn secret(key_type: CK_KEY_TYPE, kinds: &[CK_ATTRIBUTE_TYPE]) -> Entries {
    let named = vec![
        (CKA_CLASS, number(CKO_SECRET_KEY)),
        (CKA_KEY_TYPE, number(key_type)),
    ];
    [named, flags(kinds)].concat()
}

impl ArgumentSource<'_> {
    /// A template for `function`: pointer and number of attributes.
    pub(crate) fn template(&mut self, function: &str) -> [usize; 2] {
        let mut entries = match function {
            "C_CreateObject" => self.new_object(),
            "C_FindObjectsInit" => self.wanted(),
            "C_CopyObject" | "C_SetAttributeValue" => vec![(CKA_LABEL, b"another".to_vec())],
            "C_GenerateKey" => self.generated(),
            "C_UnwrapKey" => self.unwrapped(),
            "C_DeriveKey" => self.derived(),
            _ => self.new_object(),
        };
        while self.source.once_in(4) && entries.len() < MANY {
            let value = self.value();
            entries.push((self.source.pick(&KINDS), value));
        }
        if self.source.once_in(12) && !entries.is_empty() {
            let again = self.source.below(entries.len());
            entries.push(entries[again].clone());
        }
        let attributes: Vec<usize> = entries.iter().flat_map(|entry| self.entry(entry)).collect();
        self.list_of(&words(&attributes), entries.len(), Use::Input)
    }

    fn list_of(&mut self, attributes: &[u8], count: usize, purpose: Use) -> [usize; 2] {
        let piece = self.structure(attributes, purpose);
        let count = match (piece.0, self.source.byte() % 16) {
            (0, _) => self.source.pick(&[0, 1, 1025, usize::MAX / 24, usize::MAX]),
            (_, 15) => 0,
            // More than is there, which is refused before anything is read.
            (_, 14) => usize::MAX,
            _ => count,
        };
        [piece.0, count]
    }

    fn entry(&mut self, (kind, value): &(CK_ATTRIBUTE_TYPE, Vec<u8>)) -> [usize; 3] {
        let kind = *kind as usize;
        match self.source.byte() % 40 {
            39 => [kind, 0, self.source.pick(&[1, 8, 24, 1 << 20, usize::MAX])],
            38 => [kind, 0, 0],
            37 => self.nested_template(),
            36 => {
                let piece = self.structure(&value[..value.len() / 2], Use::Input);
                [
                    kind,
                    piece.0,
                    if piece.0 == 0 { 1 } else { value.len() / 2 },
                ]
            }
            _ => {
                let tail = self.tail();
                let (pointer, _) = self.memory.place(value, tail, Use::Input);
                [kind, pointer as usize, value.len()]
            }
        }
    }

    /// A template in a template, whose length may be no multiple of an attribute's and whose values may be nowhere.
    fn nested_template(&mut self) -> [usize; 3] {
        let kinds = [CKA_WRAP_TEMPLATE, CKA_UNWRAP_TEMPLATE, CKA_DERIVE_TEMPLATE];
        let kind = self.source.pick(&kinds) as usize;
        let inner = [
            CKA_WRAP_TEMPLATE as usize,
            0,
            usize::MAX,
            CKA_CLASS as usize,
            0,
            8,
        ];
        let piece = self.structure(&words(&inner), Use::Input);
        let len = self.source.pick(&[48, 24, 47, 1, 0]);
        [kind, piece.0, len]
    }

    fn value(&mut self) -> Vec<u8> {
        match self.source.byte() % 6 {
            0 => vec![1],
            1 => vec![0],
            2 => vec![self.source.byte()],
            3 => words(&[self.number()]),
            4 => self.content(),
            _ => b"text".to_vec(),
        }
    }

    fn new_object(&mut self) -> Entries {
        let aes = || {
            secret(
                CKK_AES,
                &[
                    CKA_ENCRYPT,
                    CKA_DECRYPT,
                    CKA_WRAP,
                    CKA_UNWRAP,
                    CKA_EXTRACTABLE,
                ],
            )
        };
        let mut entries = match self.source.byte() % 8 {
            0..=2 => {
                let len = self.source.pick(&[16, 32, 24, 17]);
                [aes(), vec![(CKA_VALUE, vec![5; len])]].concat()
            }
            3 | 4 => {
                let len = self.source.pick(&[32, 1, 200, 0]);
                let generic = secret(CKK_GENERIC_SECRET, &[CKA_SIGN, CKA_VERIFY, CKA_EXTRACTABLE]);
                [generic, vec![(CKA_VALUE, vec![6; len])]].concat()
            }
            5 => vec![
                (CKA_CLASS, number(CKO_PUBLIC_KEY)),
                (CKA_KEY_TYPE, number(CKK_EC)),
                (CKA_VERIFY, vec![1]),
                (CKA_EC_PARAMS, P256.to_vec()),
                (CKA_EC_POINT, POINT.to_vec()),
            ],
            6 => vec![
                (CKA_CLASS, number(CKO_PUBLIC_KEY)),
                (CKA_KEY_TYPE, number(CKK_RSA)),
                (CKA_VERIFY, vec![1]),
                (CKA_ENCRYPT, vec![1]),
                (CKA_MODULUS, vec![0xC3; 256]),
                (CKA_PUBLIC_EXPONENT, vec![1, 0, 1]),
            ],
            _ => vec![
                (CKA_CLASS, number(CKO_CERTIFICATE)),
                (CKA_CERTIFICATE_TYPE, number(CKC_X_509)),
                (CKA_SUBJECT, b"\x30\x00".to_vec()),
                (CKA_VALUE, CERTIFICATE.to_vec()),
            ],
        };
        let token = self.source.once_in(16);
        entries.push((CKA_TOKEN, vec![u8::from(token)]));
        entries
    }

    fn wanted(&mut self) -> Entries {
        let classes = [
            CKO_PRIVATE_KEY,
            CKO_PUBLIC_KEY,
            CKO_SECRET_KEY,
            CKO_CERTIFICATE,
            CKO_DATA,
        ];
        match self.source.byte() % 4 {
            0 => vec![(CKA_CLASS, number(self.source.pick(&classes)))],
            _ => Vec::new(),
        }
    }

    fn generated(&mut self) -> Entries {
        let len = self.source.pick(&[16, 32, 64, 4096, 4097, CK_ULONG::MAX]);
        let can = [
            CKA_ENCRYPT,
            CKA_DECRYPT,
            CKA_SIGN,
            CKA_VERIFY,
            CKA_EXTRACTABLE,
        ];
        [flags(&can), vec![(CKA_VALUE_LEN, number(len))]].concat()
    }

    fn unwrapped(&mut self) -> Entries {
        let key_type = self.source.pick(&[CKK_AES, CKK_GENERIC_SECRET]);
        secret(key_type, &[CKA_ENCRYPT, CKA_EXTRACTABLE])
    }

    fn derived(&mut self) -> Entries {
        let key_type = self.source.pick(&[CKK_GENERIC_SECRET, CKK_AES]);
        let mut entries = secret(key_type, &[CKA_EXTRACTABLE]);
        if self.source.once_in(2) {
            let len = self.source.pick(&[16, 32, 64, 0, CK_ULONG::MAX]);
            entries.push((CKA_VALUE_LEN, number(len)));
        }
        entries
    }

    /// Attributes to be read, each with room for its value, with too little, or with none.
    pub(crate) fn attributes(&mut self) -> [usize; 2] {
        let count = self.source.below(6);
        let (list, template) = self.memory.place(&vec![0; count * 24], 0, Use::Free);
        let mut attributes = Vec::new();
        for entry in 0..count {
            let kind = self.source.pick(&KINDS) as usize;
            let room = self.source.pick(&[0, 1, 8, 32, 300, 2048]);
            let (pointer, len) = if self.source.once_in(3) {
                (0, self.number())
            } else {
                let tail = self.tail();
                let purpose = Use::Value { template, entry };
                (
                    self.memory.place(&vec![0; room], tail, purpose).0 as usize,
                    room,
                )
            };
            attributes.extend([kind, pointer, len]);
        }
        self.memory.fill(template, &words(&attributes));
        match self.source.byte() % 16 {
            15 => [0, self.source.pick(&[0, 1, usize::MAX])],
            14 => [list as usize, usize::MAX],
            _ => [list as usize, count],
        }
    }
}
