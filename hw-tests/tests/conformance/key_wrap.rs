//! AES key wrap with session keys (PKCS #11 3.2, 6.14; RFC 3394 and RFC 5649).

use claviger_hw_tests::{
    fixture::token_fixture::{TokenFixture, hex, plain},
    for_each_card,
};
use cryptoki::{error::RvError, mechanism::Mechanism, object::KeyType};
use cryptoki_sys::{CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP};

use crate::wrap::{SECRET, pair, secret, template, unwrap, value, wrap, wrapper};

for_each_card! { [piv piv_rsa openpgp_rsa] [
    aes_key_wrap_is_that_of_the_standard
    aes_key_wrap_with_padding_takes_any_length
    a_forged_wrapped_key_is_invalid
] }

/// RFC 3394, 4.1 and 4.6.
fn aes_key_wrap_is_that_of_the_standard(fixture: &TokenFixture<'_>) {
    let (session, ..) = pair(fixture);
    for (kek, data, expected) in [
        (
            "000102030405060708090a0b0c0d0e0f",
            "00112233445566778899aabbccddeeff",
            "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5",
        ),
        (
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f",
            "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21",
        ),
    ] {
        let wrapper = wrapper(&session, &hex(kek), true);
        let key = secret(&session, &hex(data));
        let wrapped = session
            .wrap_key(&Mechanism::AesKeyWrap, wrapper, key)
            .expect("C_WrapKey");
        assert_eq!(wrapped, hex(expected));
        let kind = template(KeyType::GENERIC_SECRET, true);
        let again = session.unwrap_key(&Mechanism::AesKeyWrap, wrapper, &wrapped, &kind);
        assert_eq!(value(&session, again.expect("C_UnwrapKey")), hex(data));
    }
}

/// RFC 5649, section 6, and lengths around the block.
fn aes_key_wrap_with_padding_takes_any_length(fixture: &TokenFixture<'_>) {
    let (session, ..) = pair(fixture);
    let kek = wrapper(
        &session,
        &hex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"),
        true,
    );
    let (kwp, kind) = (
        plain(CKM_AES_KEY_WRAP_KWP),
        template(KeyType::GENERIC_SECRET, true),
    );
    let wrap = |data: &[u8]| {
        let key = secret(&session, data);
        wrap(&session, kwp, kek.handle(), key.handle(), 256).expect("C_WrapKey")
    };
    let expected = "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a";
    assert_eq!(
        wrap(&hex("c37b7e6492584340bed12207808941155068f738")),
        hex(expected)
    );
    for len in [1, 7, 8, 9, 15, 16, 17, 100] {
        let data = vec![0x6E; len];
        let again = unwrap(&session, kwp, kek.handle(), &wrap(&data), &kind).expect("C_UnwrapKey");
        assert_eq!(value(&session, again), data, "{len}");
    }
}

fn a_forged_wrapped_key_is_invalid(fixture: &TokenFixture<'_>) {
    let (session, ..) = pair(fixture);
    let kek = wrapper(&session, &[9; 32], true);
    let key = secret(&session, &SECRET);
    let kind = template(KeyType::GENERIC_SECRET, true);
    for mechanism in [plain(CKM_AES_KEY_WRAP), plain(CKM_AES_KEY_WRAP_KWP)] {
        let mut wrapped = wrap(&session, mechanism, kek.handle(), key.handle(), 256).unwrap();
        let short = unwrap(&session, mechanism, kek.handle(), &wrapped[1..], &kind).map(drop);
        assert_eq!(short, Err(RvError::WrappedKeyLenRange));
        wrapped[3] ^= 1;
        let forged = unwrap(&session, mechanism, kek.handle(), &wrapped, &kind).map(drop);
        assert_eq!(forged, Err(RvError::WrappedKeyInvalid));
    }
}
