#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    claviger_token::padding::fuzz::oaep_decrypt(bytes);
});
