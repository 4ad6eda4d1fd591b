//! The management key as SO PIN: the authentication, and the responses of other cards.

use aes::{
    Aes192,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use claviger_apdu::{
    Atr, Call, Epoch, Limits, ResponseBuffer, Transmit, Transport, TransportError, tlv,
};
use claviger_token::{Card, Token, TokenError};
use des::TdesEde3;

use crate::{
    KEY, NO_METADATA, PROBE, authenticate, common::Script, common::piv, managed, open, secret,
    so_login, task,
};

/// The factory-set key of many cards. It is a key for 3DES and for AES-192.
const FACTORY: &str = "010203040506070801020304050607080102030405060708";
const WITNESS: [u8; 16] = [0xC3; 16];

/// How a card behaves in the authentication with its management key.
#[derive(Clone, Copy)]
enum Conduct {
    Honest,
    /// The card has another key.
    OtherKey,
    /// The card has no key and responds as if it had one.
    Pretender,
    /// The card's blocks are too short.
    Short,
}

/// A card that plays a script, except for the commands of its management key.
struct Keyholder {
    script: Box<dyn Transport>,
    key: Key,
}

struct Key {
    algorithm: u8,
    conduct: Conduct,
}

impl Key {
    /// Returns the block enciphered with [`FACTORY`].
    fn encipher(&self, block: &[u8]) -> Vec<u8> {
        let key = crate::common::hex(FACTORY);
        let mut block = block.to_vec();
        if self.algorithm == 0x03 {
            let mut one: Array<u8, _> = block.as_slice().try_into().unwrap();
            TdesEde3::new_from_slice(&key)
                .unwrap()
                .encrypt_block(&mut one);
            block.copy_from_slice(&one);
        } else {
            let cipher = Aes192::new_from_slice(&key).unwrap();
            let mut one: Array<u8, _> = block.as_slice().try_into().unwrap();
            cipher.encrypt_block(&mut one);
            let mut back = one;
            cipher.decrypt_block(&mut back);
            assert_eq!(back.as_slice(), block, "the sent block can be deciphered");
            block.copy_from_slice(&one);
        }
        block
    }

    fn witness(&self) -> &'static [u8] {
        &WITNESS[..if self.algorithm == 0x03 { 8 } else { 16 }]
    }

    /// Returns the response to a command of the management key, `None` for other commands.
    fn response(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let [0x00, 0x87, algorithm, 0x9B, len, data @ ..] = frame else {
            return None;
        };
        if *algorithm != self.algorithm {
            return Some(vec![0x6A, 0x86]);
        }
        let fields = tlv::only(&data[..usize::from(*len)], 0x7C).unwrap();
        let field = |tag| tlv::find(fields, tag).unwrap();
        let response = match (field(0x80), field(0x81)) {
            (Some([]), None) => tlv::encode(0x80, &self.encipher(self.witness())),
            (Some(witness), Some(challenge)) => {
                assert_ne!(
                    challenge,
                    self.witness(),
                    "the challenge is of the host's own"
                );
                match self.conduct {
                    Conduct::OtherKey => return Some(vec![0x69, 0x82]),
                    Conduct::Honest | Conduct::Short => assert_eq!(witness, self.witness()),
                    Conduct::Pretender => {}
                }
                let proof = match self.conduct {
                    Conduct::Pretender => challenge.to_vec(),
                    _ => self.encipher(challenge),
                };
                tlv::encode(0x82, &proof)
            }
            other => panic!("{other:02X?}"),
        };
        let response = match self.conduct {
            Conduct::Short => response[..response.len() - 1].to_vec(),
            _ => response,
        };
        Some([tlv::encode(0x7C, &response), vec![0x90, 0x00]].concat())
    }
}

struct Link<'a> {
    script: &'a mut dyn Transmit,
    key: &'a Key,
}

impl Transmit for Link<'_> {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        match self.key.response(frame) {
            Some(bytes) => {
                response.set(&bytes).unwrap();
                Ok(())
            }
            None => self.script.transmit(frame, response, call),
        }
    }
}

impl Transmit for Keyholder {
    fn transmit(
        &mut self,
        frame: &[u8],
        response: &mut ResponseBuffer,
        call: Call,
    ) -> Result<(), TransportError> {
        self.script.transmit(frame, response, call)
    }
}

impl Transport for Keyholder {
    fn atr(&self) -> &Atr {
        self.script.atr()
    }

    fn limits(&self) -> Limits {
        self.script.limits()
    }

    fn epoch(&self) -> Epoch {
        self.script.epoch()
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn transact(
        &mut self,
        call: Call,
        body: &mut dyn FnMut(&mut dyn Transmit),
    ) -> Result<(), TransportError> {
        let key = &self.key;
        self.script
            .transact(call, &mut |script| body(&mut Link { script, key }))
    }
}

/// Returns a card with the factory-set key, which responds to GET METADATA of the key with `metadata`.
fn keyholder(algorithm: u8, conduct: Conduct, metadata: &str, rest: &str) -> (Card, Token) {
    let login = format!("[\n{PROBE}> 00 F7 00 9B 00\n< {metadata}\n]\n");
    let script = format!("{}{login}{rest}", piv::DISCOVERED);
    let mut card = Card::new(Box::new(Keyholder {
        script: Script::card(&script),
        key: Key { algorithm, conduct },
    }));
    let token = Token::discover(&mut card).unwrap().remove(0);
    (card, token)
}

#[test]
fn so_login_authenticates_card_and_host_with_the_keys_cipher() {
    for (algorithm, metadata) in [
        (0x03, "6D00"),
        (0x0A, "6D00"),
        (0x0A, "01 01 0A 02 02 00 01 05 01 01 9000"),
        (0x03, "01 01 FF 9000"),
        (0x03, "01 05 9000"),
    ] {
        let (mut card, mut token) = keyholder(algorithm, Conduct::Honest, metadata, "");
        token.so_login(&mut card, &secret(FACTORY)).unwrap();
        assert!(token.is_so_logged_in());
        assert_eq!(token.so_tries().left, None, "the card counts no tries");
    }
}

#[test]
fn management_key_is_authenticated_again_in_each_transaction() {
    let delete = "> 00 DB 3F FF 07 5C 03 5F C1 05 53 00\n< 9000\n";
    let rest = format!("[\n{PROBE}{delete}]\n").repeat(2);
    let (mut card, mut token) = keyholder(0x0A, Conduct::Honest, "6D00", &rest);
    token.so_login(&mut card, &secret(FACTORY)).unwrap();
    for _ in 0..2 {
        token.put_certificate(&mut card, 0x9A, None).unwrap();
    }
}

#[test]
fn other_management_key_is_a_wrong_so_pin() {
    let (mut card, mut token) = keyholder(0x03, Conduct::OtherKey, "6D00", "");
    let wrong = token.so_login(&mut card, &secret(FACTORY));
    assert!(matches!(wrong, Err(TokenError::WrongSoPin { .. })));
    assert!(!token.is_so_logged_in());
}

#[test]
fn so_login_fails_when_the_card_does_not_know_the_management_key() {
    for conduct in [Conduct::Pretender, Conduct::Short] {
        let (mut card, mut token) = keyholder(0x03, conduct, "6D00", "");
        let refused = token.so_login(&mut card, &secret(FACTORY));
        assert!(matches!(refused, Err(TokenError::Malformed { .. })));
        assert!(!token.is_so_logged_in());
    }
}

#[test]
fn so_login_works_without_mutual_authentication() {
    let (_, token) = managed("");
    assert!(token.is_so_logged_in());
}

#[test]
fn refused_or_mismatched_management_key_is_a_wrong_so_pin() {
    for (end, left) in [("6982", None), ("6A80", None), ("63C4", Some(4))] {
        let session = format!("[\n{PROBE}{NO_METADATA}{}]\n", authenticate(end));
        let (mut card, mut token) = open(&session);
        let wrong = token.so_login(&mut card, &secret(KEY));
        assert!(matches!(wrong, Err(TokenError::WrongSoPin { tries_left }) if tries_left == left));
    }
    let neither = "> 00 87 08 9B 04 7C 02 80 00 00
        < 6A86
        > 00 87 08 9B 04 7C 02 81 00 00
        < 6A86\n";
    let (mut card, mut token) = open(&format!("[\n{PROBE}{NO_METADATA}{neither}]\n"));
    let wrong = token.so_login(&mut card, &secret(KEY));
    assert!(matches!(wrong, Err(TokenError::WrongSoPin { .. })));
}

#[test]
fn a_blocked_key_is_locked() {
    for end in ["6983", "63C0"] {
        let session = format!("[\n{PROBE}{NO_METADATA}{}]\n", authenticate(end));
        let (mut card, mut token) = open(&session);
        let locked = token.so_login(&mut card, &secret(KEY));
        assert!(matches!(locked, Err(TokenError::SoPinLocked)));
    }
}

#[test]
fn malformed_authentication_response_is_refused_and_nothing_sent_after_it() {
    for response in ["7C 00", "7C 03 81 01 00", "81 10", "7C 12 80 10", ""] {
        let session = format!(
            "[\n{PROBE}{NO_METADATA}> 00 87 08 9B 04 7C 02 80 00 00\n< {response} 9000\n]\n"
        );
        let (mut card, mut token) = open(&session);
        let refused = token.so_login(&mut card, &secret(KEY));
        assert!(
            matches!(refused, Err(TokenError::Malformed { .. })),
            "{response}"
        );
    }
}

#[test]
fn changed_management_key_replaces_the_cached_one() {
    let new = "F0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF";
    let set = |status: &str| format!("> 00 FF FF FF 13 08 9B 10 {new}\n< {status}\n");
    let again = format!(
        "[\n{PROBE}{NO_METADATA}{}{}]\n",
        authenticate("9000"),
        set("9000")
    );
    let (mut card, mut token) = managed(&[task(&set("6A80")), again].concat());
    let mut change = || token.set_pin(&mut card, &secret(KEY), &secret(new));
    assert!(matches!(change(), Err(TokenError::NewPinInvalid { .. })));
    change().unwrap();
    assert!(token.is_so_logged_in());
    let (mut card, mut token) = managed(&format!("[\n{PROBE}]\n"));
    let refused = token.set_pin(&mut card, &secret(KEY), &secret("12345678"));
    assert!(matches!(refused, Err(TokenError::NewPinInvalid { .. })));
}

#[test]
fn refused_management_key_ends_the_so_login() {
    let changed = format!("[\n{PROBE}{}]\n", authenticate("6982"));
    let (mut card, mut token) = managed(&changed);
    let wrong = token.put_certificate(&mut card, 0x9A, None);
    assert!(matches!(wrong, Err(TokenError::WrongSoPin { .. })));
    assert!(
        !token.is_so_logged_in(),
        "the management key is not sent a second time"
    );
}

#[test]
fn applet_is_reselected_before_the_management_key_is_used() {
    let lost = "> 00 CB 3F FF 03 5C 01 7E 00
        < 6D00
        > 00 A4 04 00 09 A0 00 00 03 08 00 00 10 00 00
        < 9000\n";
    let delete = "> 00 DB 3F FF 07 5C 03 5F C1 05 53 00\n< 9000\n";
    let session = format!("[\n{lost}{}{delete}]\n", authenticate("9000"));
    let (mut card, mut token) = open(&format!("{}{session}", so_login()));
    token.so_login(&mut card, &secret(KEY)).unwrap();
    token.put_certificate(&mut card, 0x9A, None).unwrap();
}
