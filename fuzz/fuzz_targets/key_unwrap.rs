#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    claviger_token::host::key_wrap::fuzz(bytes);
});
