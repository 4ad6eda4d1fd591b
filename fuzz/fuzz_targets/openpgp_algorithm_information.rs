#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claviger_token::openpgp::algorithm_information::fuzz(bytes));
