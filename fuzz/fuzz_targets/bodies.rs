#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| antiphon::fuzzing::run("bodies", bytes));
