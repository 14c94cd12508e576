//! Notes the commit that a build is made from, for `antiphon --version`, the log and the metrics.
//!
//! `ANTIPHON_COMMIT` says it where there is no git, as in an image. Otherwise git is asked, but only for builds that are
//! optimised in full, which are the ones that are deployed: the crate is compiled anew with every commit that is noted,
//! and who compiles it twenty times a day knows which one it is. Nothing here makes a build fail.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ANTIPHON_COMMIT");
    let given = env::var("ANTIPHON_COMMIT").unwrap_or_default();
    let is_optimised = env::var("OPT_LEVEL").is_ok_and(|level| level == "3");
    let commit = match given.trim() {
        "" if is_optimised => commit_of_git(),
        "" => None,
        given => Some(given.to_owned()),
    };
    // It becomes part of one line, and the value of a label.
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_plain = |commit: &String| commit.len() <= 64 && commit.bytes().all(is_part);
    if commit.as_ref().is_some_and(|commit| !is_plain(commit)) {
        println!(
            "cargo::warning=ANTIPHON_COMMIT is left out: it has up to 64 letters, digits, '-', '.' and '_'"
        );
    }
    let commit = commit.filter(is_plain).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=ANTIPHON_BUILT_COMMIT={commit}");
}

/// The commit that is checked out here; `None` without git, and where this is a part of somebody else's repository.
fn commit_of_git() -> Option<String> {
    let words = git(&["rev-parse", "--show-cdup", "--short=12", "HEAD"])?;
    // The way up to the top of the repository, which is empty at the top.
    let commit = words.strip_prefix('\n')?;
    // What makes it another build than that of the commit; with a change there the crate is compiled anew in any case.
    println!("cargo::rerun-if-changed=src");
    // One of these changes with every commit; the log is not kept everywhere. A file that is not there would have cargo
    // look again with every build.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let watched = ["logs/HEAD", "HEAD", "packed-refs"].into_iter().chain(branch.as_deref());
    for file in watched {
        if let Some(path) = git(&["rev-parse", "--git-path", file.trim()])
            && Path::new(path.trim()).exists()
        {
            println!("cargo::rerun-if-changed={}", path.trim());
        }
    }
    let is_dirty = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])
        .is_none_or(|changes| !changes.is_empty());
    Some(format!("{}{}", commit.trim(), if is_dirty { "-dirty" } else { "" }))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).current_dir(env::var_os("CARGO_MANIFEST_DIR")?).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}
