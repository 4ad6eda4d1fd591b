//! Responses of a hostile card: every truncation and every flipped bit of real ones is parsed or refused.

use claviger_apdu::tlv;

use super::fuzz;
use crate::{certificate, hex::hex};

const P256: &[u8] = include_bytes!("../../tests/data/p256.der");

fn survives(parse: fn(&[u8]), real: &[u8]) {
    parse(real);
    for len in 0..real.len() {
        parse(&real[..len]);
    }
    for bit in 0..real.len() * 8 {
        let mut flipped = real.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        parse(&flipped);
    }
}

#[test]
fn certificates() {
    survives(certificate::fuzz, P256);
    let plain = [tlv::encode(0x70, P256), tlv::encode(0x71, &[0])].concat();
    survives(fuzz::certificate_object, &plain);
    // gzip of "0"
    let packed = hex("1F8B0800000000000203330000 21DFDBF4 01000000");
    survives(fuzz::certificate_object, &tlv::encode(0x70, &packed));
    survives(fuzz::certificate_object, &packed);
}

#[test]
fn identity_and_discovery() {
    let chuid = hex("30 19 D4E739DA739CED39CE739D836858210842108421C84210C3EB
         34 10 00112233445566778899AABBCCDDEEFF 35 08 3230343031323331 3E 00 FE 00");
    survives(fuzz::chuid, &chuid);
    let discovery = hex("7E 12 4F 0B A000000308000010000100 5F2F 02 6020");
    survives(fuzz::discovery, &discovery);
    survives(fuzz::discovery, &hex("C1 01 02 C2 01 01 F3 01 78 FE 00"));
}

#[test]
fn responses_to_general_authenticate() {
    let ecdsa = hex(&format!(
        "7C 48 82 46 30 44 02 20 {} 02 20 {}",
        "11".repeat(32),
        "22".repeat(32)
    ));
    survives(fuzz::authenticate, &ecdsa);
    let rsa = hex(&format!("7C 82 01 04 82 82 01 00 {}", "5A".repeat(256)));
    survives(fuzz::authenticate, &rsa);
    survives(
        fuzz::authenticate,
        &hex(&format!("7C 42 82 40 {}", "5A".repeat(64))),
    );
}

#[test]
fn metadata() {
    let point = "C5".repeat(64);
    let ec = hex(&format!(
        "01 01 11 02 02 02 01 03 01 01 04 43 86 41 04 {point}"
    ));
    survives(fuzz::metadata, &ec);
    let rsa = format!(
        "01 01 07 04 82 01 09 81 82 01 00 {} 82 03 010001",
        "C5".repeat(256)
    );
    survives(fuzz::metadata, &hex(&rsa));
}
