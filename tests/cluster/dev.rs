//! `antiphon dev`: three members that end with it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PATIENCE, antiphon, eventually, free_ports, one_cluster};
use crate::settings::one_line;

/// A base whose six ports are free.
pub fn free_base() -> u16 {
    loop {
        let base = free_ports(1)[0] - 1;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (1..=3).all(|number| free(base + number) && free(base + 100 + number)) {
            return base;
        }
    }
}

fn command(base: u16, dir: &std::path::Path) -> Command {
    let mut command = antiphon();
    command.args(["dev", "--base-port", &base.to_string(), "--dir"]).arg(dir);
    command
}

/// Reads until the greeting's last line; gives all of it and the members' pids.
pub fn greeting(child: &mut Child) -> (String, Vec<Pid>) {
    let mut text = String::new();
    let mut reader = BufReader::new(child.stdout.take().expect("stdout was piped"));
    while !text.contains("Ctrl-C stops") {
        let read = reader.read_line(&mut text).expect("read the greeting");
        assert!(read > 0, "it ended early: {text}");
    }
    // What comes later goes nowhere, but it must not break the pipe.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let members = text.lines().filter(|line| line.starts_with('m'));
    let pids = members.filter_map(|line| line.split_once(" pid ")?.1.split_whitespace().next());
    let pids = pids.map(|pid| Pid::from_raw(pid.parse().expect("a pid")).expect("a pid")).collect();
    (text, pids)
}

/// Whether the process has ended. In a container nobody may ever wait for an orphan, so it may stay as a
/// zombie.
fn is_gone(pid: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

/// Files and directories below `dir` that others than their owner may open.
fn readable_by_others(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("list a directory").flatten() {
        let metadata = entry.metadata().expect("a file that stays");
        if metadata.mode() & 0o077 != 0 {
            found.push(entry.path());
        }
        if metadata.is_dir() {
            found.extend(readable_by_others(&entry.path()));
        }
    }
    found
}

/// Runs `dev`, ends it by `signal`, and waits until all members are gone.
async fn ends_with(signal: Signal) {
    let dir = tempfile::tempdir().expect("make a directory");
    let base = free_base();
    let mut child = command(base, dir.path()).stdout(Stdio::piped()).spawn().expect("start antiphon dev");
    let pid_file = dir.path().join("m2.pid");
    let (text, pids) = tokio::task::spawn_blocking(move || {
        let (text, pids) = greeting(&mut child);
        let pid_file = std::fs::read_to_string(pid_file).expect("a file with a pid");
        assert_eq!(pid_file, format!("{}\n", pids[1].as_raw_nonzero()), "{text}");
        let dev = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid");
        kill_process(dev, signal).expect("send a signal");
        let status = child.wait().expect("wait for dev");
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
        (text, pids)
    })
    .await
    .expect("the greeting came");
    assert_eq!(pids.len(), 3, "{text}");
    assert!(text.contains("leads") && text.matches("curl ").count() == 3, "{text}");
    eventually("the members end with dev", PATIENCE, async || {
        pids.iter().all(|pid| is_gone(*pid)).then_some(())
    })
    .await;
    assert!(dir.path().join("cluster-secret").exists(), "the secret is kept");
    let readable = readable_by_others(dir.path());
    assert!(readable.is_empty(), "only the owner reads what is in there: {readable:?}");
}

#[tokio::test]
async fn dev_runs_three_members_that_end_with_it_stopped_or_killed() {
    let _permit = one_cluster().await;
    ends_with(Signal::TERM).await;
    ends_with(Signal::KILL).await;
}

#[test]
fn dev_names_a_taken_port() {
    let dir = tempfile::tempdir().expect("make a directory");
    let base = free_base();
    let _holder = TcpListener::bind(("127.0.0.1", base + 102)).expect("take a port");
    let line = one_line(command(base, dir.path()), 1);
    assert!(line.contains(&format!("port {}", base + 102)) && line.contains("--base-port"), "{line}");
}
