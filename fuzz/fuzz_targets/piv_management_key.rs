#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claviger_token::piv::fuzz::management_key(bytes));
