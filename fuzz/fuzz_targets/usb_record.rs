#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| claviger_driver::usb::claim::record::fuzz(bytes));
