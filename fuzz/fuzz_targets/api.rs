//! Any bytes as what a client of the API sends.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| gate_tests::fuzz::api(bytes));
