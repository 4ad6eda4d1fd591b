#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claviger_driver::protocol::t1::fuzz::fuzz(bytes));
