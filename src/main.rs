//! The `antiphon` binary.
#![forbid(unsafe_code)]

fn main() {}
