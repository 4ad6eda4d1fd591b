#![no_main]

#[path = "../sequence/mod.rs"]
mod sequence;
#[path = "../sequence/target.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| target::fuzz(bytes));
