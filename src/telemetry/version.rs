//! Which build this is.

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was made from, or `unknown` (`build.rs`).
pub const COMMIT: &str = env!("ANTIPHON_BUILT_COMMIT");
/// Both, for people.
pub const VERSION_AND_COMMIT: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ANTIPHON_BUILT_COMMIT"), ")");
