//! The recipes of `deploy/mirrors` do what they show.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use crate::harness::antiphon;

/// The first of so many free ports that follow each other.
fn free_stretch(count: u16) -> u16 {
    for _ in 0..1000 {
        let base: u16 = rand::random_range(12_000..32_000);
        let held: Vec<_> =
            (base..base + count).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).collect();
        if held.len() == usize::from(count) {
            return base;
        }
    }
    panic!("no {count} free ports in a row");
}

/// Runs a recipe; what it printed.
fn run(script: &str, clusters: u16) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mirrors").join(script);
    let output = std::process::Command::new("bash")
        .arg(path)
        .env("ANTIPHON", antiphon().get_program())
        .env("BASE_PORT", free_stretch(clusters).to_string())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}:\n{printed}\n{said}");
    printed.into_owned()
}

#[test]
fn each_recipe_shows_every_record_once_in_every_cluster() {
    for (script, clusters, records) in
        [("two-clusters.sh", 2, 3), ("full-mesh.sh", 3, 3), ("hub-and-spokes.sh", 4, 4)]
    {
        let printed = run(script, clusters);
        let written: Vec<&str> =
            printed.lines().filter_map(|line| line.strip_prefix("written in ")?.split(": ").nth(1)).collect();
        assert_eq!(written.len(), records, "{script}: {printed}");
        for text in written {
            let shown = printed.lines().filter(|line| line.ends_with(&format!("\"{text}\""))).count();
            assert_eq!(shown, usize::from(clusters), "{script}, {text:?}: {printed}");
        }
        assert!(!printed.contains("DIFFERENT"), "{script}: {printed}");
    }
}
