//! The recipes of `deploy/mirrors` and the lines of the README do what they show.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::dev::{free_base, greeting};
use crate::harness::{Cluster, antiphon, one_cluster};

const README: &str = include_str!("../../README.md");
/// Sections whose lines need several machines, Docker or a compiler.
const ELSEWHERE: [&str; 3] = ["Build and run", "A cluster on several machines", "With Docker"];

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

/// The commands of the README's blocks for a shell, in order; one that goes on over several lines is one.
fn commands() -> Vec<String> {
    let (mut commands, mut heading, mut is_shell) = (Vec::<String>::new(), "", false);
    let mut goes_on = false;
    for line in README.lines() {
        match line.strip_prefix("```") {
            Some(kind) => is_shell = kind == "sh" && !ELSEWHERE.contains(&heading),
            None if is_shell && goes_on => {
                let command = commands.last_mut().expect("its first line");
                command.push('\n');
                command.push_str(line);
            }
            None if is_shell => commands.push(line.to_owned()),
            None => heading = line.strip_prefix("## ").unwrap_or(heading),
        }
        goes_on = is_shell && line.ends_with('\\');
    }
    commands
}

/// Runs the commands in one shell, each with a line before and behind that says which it is and how it ended.
fn run_all(commands: &[String], dir: &Path) -> String {
    let mut script = "set -o pipefail\n".to_owned();
    for (number, command) in commands.iter().enumerate() {
        script += &format!("echo '== {number}'\n{command}\nstatus=$?\necho; echo \"== ended $status\"\n");
    }
    // What goes on in the background ends with it.
    script += "kill $(jobs -p) 2>/dev/null\n";
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(&script).current_dir(dir).stdin(Stdio::null()).process_group(0);
    let path = std::env::var("PATH").expect("a path");
    shell.env("PATH", format!("{}:{path}", dir.join("bin").display()));
    let shell = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash runs");
    let group = Pid::from_raw(i32::try_from(shell.id()).expect("a pid"));
    let output = shell.wait_with_output().expect("it ends");
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Each line of the README works as it is pasted, but for ports; `w1` and `w2` are nobody, so a mirror is made and tries.
#[tokio::test]
async fn the_lines_of_the_readme_do_what_they_say() {
    let _permit = one_cluster().await;
    tokio::task::spawn_blocking(|| {
        let dir = tempfile::tempdir().expect("make a directory");
        let base = free_base();
        std::fs::create_dir(dir.path().join("bin")).expect("make a directory");
        std::os::unix::fs::symlink(antiphon().get_program(), dir.path().join("bin/antiphon"))
            .expect("a link");
        let mut dev = antiphon();
        dev.args(["dev", "--base-port", &base.to_string()]).current_dir(dir.path());
        let mut dev = dev.stdout(Stdio::piped()).spawn().expect("start antiphon dev");
        greeting(&mut dev);
        let commands: Vec<String> = commands()
            .into_iter()
            .filter(|command| !command.starts_with("antiphon mirror check"))
            .map(|command| {
                let command = command.replace("curl -s ", "curl -s --fail-with-body --max-time 30 ");
                (1..=3).fold(command, |command, number| {
                    command.replace(&format!(":{}", 4000 + number), &format!(":{}", base + number))
                })
            })
            .collect();
        assert!(commands.len() > 15, "{commands:?}");
        let printed = run_all(&commands, dir.path());
        let pid = Pid::from_raw(i32::try_from(dev.id()).expect("a pid")).expect("a pid");
        kill_process(pid, Signal::TERM).expect("send a signal");
        dev.wait().expect("it ends");
        let parts: Vec<&str> = printed.split("== ended ").collect();
        for (command, part) in commands.iter().zip(&parts[1..]) {
            assert!(part.starts_with("0\n"), "{command}:\n{printed}");
        }
        let shown_of = |words: &str| {
            let at = commands.iter().position(|command| command.contains(words));
            parts[at.unwrap_or_else(|| panic!("no line with {words}"))]
        };
        assert!(shown_of("still here").contains("\"first_seq\":"), "{printed}");
        let ten = shown_of("--from 991 -n 10 --json");
        assert_eq!(ten.lines().filter(|line| line.starts_with('{')).count(), 10, "{ten}");
        assert!(shown_of("--no-follow").contains("1000"), "{printed}");
    })
    .await
    .expect("the lines work");
}

/// The keys of the README are what a file of keys may hold, and they may what it says.
#[tokio::test]
async fn the_keys_of_the_readme_may_what_it_says() {
    let block = README.split("```").find(|block| block.contains("grafana-")).expect("the keys");
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("keys");
    std::fs::write(&file, block).expect("write them");
    let file = file.to_str().expect("is UTF-8");
    let cluster = Cluster::start_with(1, &["--api-keys-file", file]).await;
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (key, method, path, status) in [
        ("sensors-88ab", "POST", "/v0/topics/meter:a", 201),
        ("sensors-88ab", "POST", "/v0/topics/other", 403),
        ("grafana-4c1e", "GET", "/v0/topics/meter:a", 200),
        ("grafana-4c1e", "GET", "/v0/metrics", 200),
        ("grafana-4c1e", "POST", "/v0/topics/meter:a", 403),
        ("orders-17fd", "POST", "/v0/topics/invoices-1", 201),
        ("orders-17fd", "DELETE", "/v0/topics/invoices-1", 403),
        ("orders-17fd", "GET", "/v0/cluster", 403),
        ("root-0a6f", "GET", "/v0/cluster", 200),
    ] {
        let url = format!("{}{path}", cluster.members[0].url());
        let mut request = http.request(method.parse().expect("a method"), url).bearer_auth(key);
        if method == "POST" {
            request = request.header("content-type", "application/json").body(r#"{"records":[{"data":1}]}"#);
        }
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{key}: {method} {path}");
    }
}
