//! Random numbers (PKCS #11 3.2, 5.20).

use std::ptr;

use claviger_hw_tests::{
    ck,
    fixture::token_fixture::{TokenFixture, answered, checked},
    for_each_card,
};
use cryptoki::error::RvError;
use cryptoki_sys::CKF_RNG;

for_each_card! { [piv openpgp] [
    generate_random_fills_the_requested_length_and_no_more
    random_bytes_do_not_repeat
    no_bytes_are_no_error
    random_bytes_without_room_are_a_bad_argument
    token_without_the_rng_flag_sends_no_command_for_random_bytes
    a_seed_is_taken_or_refused_as_the_standard_has_it
] }

fn generate_random_fills_the_requested_length_and_no_more(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    for len in [1, 7, 32, 255, 256, 257, 5000] {
        let mut buffer = vec![0_u8; len + 8];
        let code = ck!(
            fixture.raw,
            C_GenerateRandom,
            session.id(),
            buffer.as_mut_ptr(),
            len as u64
        );
        assert_eq!(checked(code), Ok(()), "{len} bytes");
        assert_eq!(buffer[len..], [0; 8], "nothing past the end");
        let zeros = buffer[..len].iter().filter(|byte| **byte == 0).count();
        assert!(len < 32 || zeros < len / 8, "{zeros} zeros in {len} bytes");
    }
}

fn random_bytes_do_not_repeat(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..20 {
        let bytes = answered(session.generate_random_vec(16)).expect("C_GenerateRandom");
        assert!(!seen.contains(&bytes));
        seen.push(bytes);
    }
}

fn no_bytes_are_no_error(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let code = ck!(
        fixture.raw,
        C_GenerateRandom,
        session.id(),
        ptr::null_mut(),
        0
    );
    assert_eq!(checked(code), Ok(()));
}

fn random_bytes_without_room_are_a_bad_argument(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let code = ck!(
        fixture.raw,
        C_GenerateRandom,
        session.id(),
        ptr::null_mut(),
        8
    );
    assert_eq!(checked(code), Err(RvError::ArgumentsBad));
    let code = ck!(fixture.raw, C_SeedRandom, session.id(), ptr::null_mut(), 8);
    let refused = [
        Err(RvError::ArgumentsBad),
        Err(RvError::RandomSeedNotSupported),
    ];
    assert!(refused.contains(&checked(code)));
}

/// CKF_RNG is the token's own generator; the host's is none of it.
fn token_without_the_rng_flag_sends_no_command_for_random_bytes(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let mut info = std::mem::MaybeUninit::<cryptoki_sys::CK_TOKEN_INFO>::zeroed();
    let code = ck!(
        fixture.raw,
        C_GetTokenInfo,
        fixture.slot_id(),
        info.as_mut_ptr()
    );
    assert_eq!(checked(code), Ok(()));
    // SAFETY: all zeroes are a value of this type, of numbers and characters.
    let generator = unsafe { info.assume_init() }.flags & CKF_RNG != 0;
    let (apdus, result) = fixture
        .process
        .apdus(|| answered(session.generate_random_vec(8)));
    assert!(result.is_ok());
    assert!(
        generator || apdus == 0,
        "a card asked for bytes has a generator"
    );
}

fn a_seed_is_taken_or_refused_as_the_standard_has_it(fixture: &TokenFixture<'_>) {
    let session = fixture.read_only();
    let result = fixture.silently(|| answered(session.seed_random(b"seed")));
    let codes = [Ok(()), Err(RvError::RandomSeedNotSupported)];
    assert!(codes.contains(&result), "{result:?}");
}
