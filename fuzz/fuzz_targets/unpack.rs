#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| phoenix_nvidia_fuzz::unpack::holds(data));
