//! The `antiphon` binary.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    antiphon::cli::run()
}
