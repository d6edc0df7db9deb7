//! Any bytes as a configuration.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| gate_tests::fuzz::config(bytes));
