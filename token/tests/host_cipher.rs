//! AES on the host: the standards' examples, every division of a message into parts, and invalid messages.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use claviger_apdu::Secret;
use claviger_token::host::cipher::{Cipher, CipherError, Direction, Mode};
use hex_literal::hex;

/// NIST SP 800-38A, F: the keys and the four blocks.
const KEY_128: [u8; 16] = hex!("2b7e151628aed2a6abf7158809cf4f3c");
const KEY_192: [u8; 24] = hex!("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b");
const KEY_256: [u8; 32] = hex!("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
const PLAIN: [u8; 64] = hex!(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
);
const IV: [u8; 16] = hex!("000102030405060708090a0b0c0d0e0f");
const COUNTER: [u8; 16] = hex!("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");

fn cipher(mode: &Mode, key: &[u8], direction: Direction) -> Cipher {
    Cipher::new(mode, &Secret::copy_from(key), direction).unwrap()
}

/// Returns the whole output for input in parts of `step` bytes. Each length must be the announced one.
fn run(mut cipher: Cipher, input: &[u8], step: usize) -> Result<Vec<u8>, CipherError> {
    let mut output = Vec::new();
    for part in input.chunks(step) {
        let told = cipher.update_len(part.len());
        let given = cipher.update(part)?;
        assert_eq!(given.len(), told);
        output.extend_from_slice(given.expose());
    }
    let room = cipher.finish_len();
    let rest = cipher.finish()?;
    assert!(rest.len() <= room);
    output.extend_from_slice(rest.expose());
    Ok(output)
}

/// Checks both directions, in parts of every length.
fn check(mode: &Mode, key: &[u8], plain: &[u8], encrypted: &[u8]) {
    for step in 1..=plain.len().max(1) + 1 {
        let there = run(cipher(mode, key, Direction::Encrypt), plain, step);
        assert_eq!(there.as_deref(), Ok(encrypted), "{mode:?} by {step}");
        let back = run(cipher(mode, key, Direction::Decrypt), encrypted, step);
        assert_eq!(back.as_deref(), Ok(plain), "{mode:?} by {step}");
    }
}

fn decrypt(mode: &Mode, encrypted: &[u8]) -> Result<Vec<u8>, CipherError> {
    run(cipher(mode, &KEY_128, Direction::Decrypt), encrypted, 7)
}

fn encrypt(mode: &Mode, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
    run(cipher(mode, &KEY_128, Direction::Encrypt), plain, 7)
}

/// F.1.1, F.1.3, F.1.5: the first block.
#[test]
fn ecb_is_as_in_sp_800_38a() {
    for (key, first) in [
        (&KEY_128[..], hex!("3ad77bb40d7a3660a89ecaf32466ef97")),
        (&KEY_192, hex!("bd334f1d6e45f25ff712a214571fa5cc")),
        (&KEY_256, hex!("f3eed1bdb5d2a03c064b5a7e3db181f8")),
    ] {
        check(&Mode::Ecb, key, &PLAIN[..16], &first);
    }
}

/// F.2.1, F.2.5.
#[test]
fn cbc_is_as_in_sp_800_38a() {
    let with_128 = hex!(
        "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
        "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7"
    );
    let with_256 = hex!(
        "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
        "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"
    );
    check(&Mode::Cbc { iv: IV }, &KEY_128, &PLAIN, &with_128);
    check(&Mode::Cbc { iv: IV }, &KEY_256, &PLAIN, &with_256);
}

/// F.5.1, F.5.5.
#[test]
fn ctr_is_as_in_sp_800_38a() {
    let with_128 = hex!(
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
    );
    let with_256 = hex!(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    );
    for bits in [16, 32, 64, 128] {
        let mode = Mode::Ctr {
            bits,
            block: COUNTER,
        };
        check(&mode, &KEY_128, &PLAIN, &with_128);
        check(&mode, &KEY_256, &PLAIN, &with_256);
        check(&mode, &KEY_128, &PLAIN[..19], &with_128[..19]);
    }
}

/// PKCS #11 2.40 current mechanisms, AES-CTR: two bits that begin at 1 are enough for three blocks.
#[test]
fn ctr_mode_refuses_data_that_would_repeat_the_counter() {
    let mut block = COUNTER;
    block[15] = 0xF1;
    for (bits, blocks) in [(1, 1), (2, 3), (3, 7), (4, 15), (8, 15)] {
        let mode = Mode::Ctr { bits, block };
        let longest = vec![0x5A; blocks * 16];
        let encrypted = encrypt(&mode, &longest).unwrap();
        assert_eq!(decrypt(&mode, &encrypted).as_ref(), Ok(&longest));
        let longer = vec![0x5A; blocks * 16 + 1];
        assert_eq!(encrypt(&mode, &longer), Err(CipherError::TooLong));
        let mut cipher = cipher(&mode, &KEY_128, Direction::Encrypt);
        assert_eq!(cipher.update(&longer).unwrap_err(), CipherError::TooLong);
        let whole = cipher.update(&longest).unwrap();
        assert_eq!(
            whole.expose(),
            encrypted,
            "a refused part was not processed"
        );
    }
    let last = Mode::Ctr {
        bits: 128,
        block: [0xFF; 16],
    };
    assert!(encrypt(&last, &[0; 16]).is_ok());
    assert_eq!(encrypt(&last, &[0; 17]), Err(CipherError::TooLong));
}

#[test]
fn padding_is_one_to_sixteen_bytes_and_comes_off_again() {
    let mode = Mode::CbcPad { iv: IV };
    for len in 0..=48 {
        let encrypted = encrypt(&mode, &PLAIN[..len]).unwrap();
        assert_eq!(encrypted.len(), len / 16 * 16 + 16);
        check(&mode, &KEY_128, &PLAIN[..len], &encrypted);
        let bare = decrypt(&Mode::Cbc { iv: IV }, &encrypted).unwrap();
        let missing = encrypted.len() - len;
        assert_eq!(bare[..len], PLAIN[..len]);
        assert!(bare[len..].iter().all(|byte| usize::from(*byte) == missing));
    }
}

#[test]
fn wrong_padding_byte_at_any_position_is_refused() {
    let mode = Mode::CbcPad { iv: IV };
    let ends_in = |last: [u8; 16]| {
        let encrypted = encrypt(
            &Mode::Cbc { iv: IV },
            &[PLAIN[..16].to_vec(), last.to_vec()].concat(),
        );
        decrypt(&mode, &encrypted.unwrap())
    };
    for padding in 1..=16u8 {
        let from = 16 - usize::from(padding);
        let mut last = [0xEE; 16];
        last[from..].fill(padding);
        assert_eq!(ends_in(last).unwrap().len(), 16 + from);
        for at in from..15 {
            let mut bad = last;
            bad[at] ^= 1;
            assert_eq!(ends_in(bad), Err(CipherError::Padding), "{padding} at {at}");
        }
    }
    for byte in [0, 17, 0x80, 0xFF] {
        assert_eq!(ends_in([byte; 16]), Err(CipherError::Padding));
    }
}

#[test]
fn incomplete_cipher_block_is_refused() {
    for len in [1, 15, 17, 31] {
        for mode in [Mode::Ecb, Mode::Cbc { iv: IV }] {
            assert_eq!(encrypt(&mode, &PLAIN[..len]), Err(CipherError::Length));
            assert_eq!(decrypt(&mode, &PLAIN[..len]), Err(CipherError::Length));
        }
        let padded = Mode::CbcPad { iv: IV };
        assert_eq!(decrypt(&padded, &PLAIN[..len]), Err(CipherError::Length));
    }
    let nothing = decrypt(&Mode::CbcPad { iv: IV }, &[]);
    assert_eq!(nothing, Err(CipherError::Length));
    assert_eq!(decrypt(&Mode::Ecb, &[]), Ok(Vec::new()));
}

/// The GCM specification (McGrew and Viega), B: test cases 1, 2, 4 to 6, and 16.
#[test]
fn gcm_is_as_in_its_specification() {
    let key = hex!("feffe9928665731c6d6a8f9467308308");
    let key_256 = hex!("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let plain = hex!(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    );
    let aad = hex!("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let long_iv = hex!(
        "9313225df88406e555909c5aff5269aa6a7a9538534f7da1e4c303d2a318a728"
        "c3c0c95156809539fcf0e2429a6b525416aedbf5a0de6a57a637b39b"
    );
    let case = |key: &[u8], iv: &[u8], aad: &[u8], plain: &[u8], encrypted: &[u8]| {
        let mode = Mode::Gcm {
            iv: iv.to_vec(),
            aad: aad.to_vec(),
            tag_bits: 128,
        };
        check(&mode, key, plain, encrypted);
    };
    case(
        &[0; 16],
        &[0; 12],
        &[],
        &[],
        &hex!("58e2fccefa7e3061367f1d57a4e7455a"),
    );
    case(
        &[0; 16],
        &[0; 12],
        &[],
        &[0; 16],
        &hex!("0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"),
    );
    case(
        &key,
        &hex!("cafebabefacedbaddecaf888"),
        &aad,
        &plain,
        &hex!(
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
            "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"
            "5bc94fbc3221a5db94fae95ae7121a47"
        ),
    );
    case(
        &key,
        &hex!("cafebabefacedbad"),
        &aad,
        &plain,
        &hex!(
            "61353b4c2806934a777ff51fa22a4755699b2a714fcdc6f83766e5f97b6c7423"
            "73806900e49f24b22b097544d4896b424989b5e1ebac0f07c23f4598"
            "3612d2e79e3b0785561be14aaca2fccb"
        ),
    );
    case(
        &key,
        &long_iv,
        &aad,
        &plain,
        &hex!(
            "8ce24998625615b603a033aca13fb894be9112a5c3a211a8ba262a3cca7e2ca7"
            "01e4a9a4fba43c90ccdcb281d48c7c6fd62875d2aca417034c34aee5"
            "619cc5aefffe0bfa462af43c1699d050"
        ),
    );
    case(
        &key_256,
        &hex!("cafebabefacedbaddecaf888"),
        &aad,
        &plain,
        &hex!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
            "76fc6ece0f4e1768cddf8853bb2d551b"
        ),
    );
}

fn gcm(aad: &[u8], tag_bits: usize) -> Mode {
    Mode::Gcm {
        iv: COUNTER[..12].to_vec(),
        aad: aad.to_vec(),
        tag_bits,
    }
}

#[test]
fn shorter_gcm_tag_is_a_prefix_of_the_full_one() {
    let whole = encrypt(&gcm(b"aad", 128), &PLAIN).unwrap();
    for tag_bits in (32..=128).step_by(8) {
        let encrypted = encrypt(&gcm(b"aad", tag_bits), &PLAIN).unwrap();
        assert_eq!(encrypted, whole[..64 + tag_bits / 8]);
        check(&gcm(b"aad", tag_bits), &KEY_128, &PLAIN, &encrypted);
    }
}

#[test]
fn gcm_releases_nothing_of_an_altered_message() {
    let encrypted = encrypt(&gcm(b"aad", 96), &PLAIN[..40]).unwrap();
    for bit in 0..encrypted.len() * 8 {
        let mut touched = encrypted.clone();
        touched[bit / 8] ^= 1 << (bit % 8);
        let mut cipher = cipher(&gcm(b"aad", 96), &KEY_128, Direction::Decrypt);
        assert_eq!(cipher.update(&touched).unwrap().len(), 0);
        assert_eq!(cipher.finish().unwrap_err(), CipherError::Tag);
    }
    for len in 0..encrypted.len() {
        let expected = if len < 12 {
            CipherError::Length
        } else {
            CipherError::Tag
        };
        assert_eq!(decrypt(&gcm(b"aad", 96), &encrypted[..len]), Err(expected));
    }
    assert_eq!(decrypt(&gcm(b"aae", 96), &encrypted), Err(CipherError::Tag));
    assert_eq!(decrypt(&gcm(b"", 96), &encrypted), Err(CipherError::Tag));
}

#[test]
fn gcm_buffers_no_more_than_its_limit() {
    let mut cipher = cipher(&gcm(b"", 128), &KEY_128, Direction::Decrypt);
    let part = vec![0; 1024 * 1024];
    for _ in 0..8 {
        cipher.update(&part).unwrap();
    }
    assert_eq!(cipher.update(&[0]).unwrap_err(), CipherError::TooLong);
    assert_eq!(cipher.finish_len(), 8 * 1024 * 1024 - 16);
    assert_eq!(cipher.finish().unwrap_err(), CipherError::Tag);
}

#[test]
fn invalid_keys_and_parameters_are_refused() {
    let new =
        |mode: &Mode, key: &[u8]| Cipher::new(mode, &Secret::copy_from(key), Direction::Encrypt);
    for len in (0..=64).filter(|len| ![16, 24, 32].contains(len)) {
        assert!(new(&Mode::Ecb, &vec![0; len]).is_none());
    }
    for bits in [0, 129, usize::MAX] {
        let mode = Mode::Ctr {
            bits,
            block: COUNTER,
        };
        assert!(new(&mode, &KEY_128).is_none());
    }
    for tag_bits in [0, 24, 31, 33, 100, 136, usize::MAX] {
        assert!(new(&gcm(b"", tag_bits), &KEY_128).is_none());
    }
    for (len, can) in [(0, false), (1, true), (256, true), (257, false)] {
        let mode = Mode::Gcm {
            iv: vec![0; len],
            aad: Vec::new(),
            tag_bits: 128,
        };
        assert_eq!(new(&mode, &KEY_128).is_some(), can, "IV of {len}");
    }
}
