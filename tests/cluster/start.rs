//! What a member refuses to start with: one line, and no harm to the others.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Cluster, PATIENCE, SECRET, antiphon, eventually, free_ports};

/// How long a member may take to see that it cannot start.
const REFUSAL_LIMIT: Duration = Duration::from_secs(20);

/// The line that `command` ends with. It must end by itself, soon, and say nothing else.
pub async fn refusal(mut command: Command) -> String {
    // Logging off: what is left on stderr is the line for the operator.
    let mut child = command
        .args(["--log", "off"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start antiphon");
    let deadline = std::time::Instant::now() + REFUSAL_LIMIT;
    let mut killed = false;
    let status = eventually("the process ends", 2 * REFUSAL_LIMIT, async || {
        if std::time::Instant::now() > deadline && !killed {
            child.kill().expect("kill a process");
            killed = true;
        }
        child.try_wait().expect("wait for a process")
    })
    .await;
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().expect("stderr was piped");
    std::io::Read::read_to_string(&mut pipe, &mut stderr).expect("read stderr");
    assert!(!killed, "it did not end within {REFUSAL_LIMIT:?}; stderr: {stderr}");
    assert!(!status.success(), "it ended with success; stderr: {stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("antiphon: "), "not one line: {stderr}");
    lines[0].to_owned()
}

#[track_caller]
pub fn names(line: &str, parts: &[&str]) {
    println!("{line}");
    parts.iter().for_each(|part| assert!(line.contains(part), "{part:?} is not in: {line}"));
}

/// A later flag does not win over an earlier one: one of them is a mistake. So a changed flag takes the
/// place of the usual one.
pub fn with_flag(command: &Command, name: &str, value: &str) -> Command {
    let mut changed = antiphon();
    let mut arguments = command.get_args();
    while let Some(argument) = arguments.next() {
        changed.arg(argument);
        if argument == name {
            arguments.next().expect("a flag has a value");
            changed.arg(value);
        }
    }
    changed
}

/// C-MEMB-10, and section 8 of the design.
#[tokio::test]
async fn a_member_of_one_refuses_a_foreign_or_newer_directory_and_a_taken_port() {
    let mut cluster = Cluster::start(1).await;
    cluster.append(0, "t", serde_json::json!(1)).await.expect("append");
    let usual = cluster.command(0);
    let identity = cluster.members[0].data_dir.join("identity");

    let free: Vec<String> = free_ports(2).iter().map(u16::to_string).collect();
    let (other_port, other_peer) = (free[0].as_str(), format!("127.0.0.1:{}", free[1]));
    let other_dir = cluster.members[0].data_dir.with_extension("other");
    let elsewhere = with_flag(&usual, "--data-dir", other_dir.to_str().expect("is UTF-8"));
    let port = cluster.members[0].client_port.to_string();
    names(&refusal(with_flag(&elsewhere, "--peer-listen", &other_peer)).await, &[&port]);
    let peer_port = cluster.members[0].peer_port.to_string();
    // Only a member with a secret has peers to listen for; the one that runs has none.
    let holder = TcpListener::bind(("127.0.0.1", cluster.members[0].peer_port)).expect("take the peer port");
    let mut with_secret = with_flag(&elsewhere, "--port", other_port);
    with_secret.args(["--cluster-secret", SECRET]);
    names(&refusal(with_secret).await, &[&peer_port]);
    drop(holder);
    let same_dir = with_flag(&with_flag(&usual, "--port", other_port), "--peer-listen", &other_peer);
    names(&refusal(same_dir).await, &[cluster.members[0].data_dir.to_str().expect("is UTF-8")]);

    let status = cluster.members[0].terminate().await;
    assert!(status.success(), "SIGTERM ended with {status}");
    names(&refusal(with_flag(&usual, "--member", "m9")).await, &["m1", "m9"]);
    names(&refusal(with_flag(&usual, "--cluster", "elsewhere")).await, &["tests", "elsewhere"]);

    let before = fs::read_to_string(&identity).expect("read the identity file");
    assert!(before.lines().any(|line| line == "format 1"), "{before}");
    fs::write(&identity, before.replace("format 1", "format 999")).expect("write the identity file");
    names(&refusal(usual).await, &["999"]);
    assert_eq!(
        fs::read_to_string(&identity).expect("read it again"),
        before.replace("format 1", "format 999")
    );

    fs::write(&identity, &before).expect("restore the identity file");
    cluster.restart(0).await;
    let page = cluster.diff(0, "t", "strong").await.expect("diff");
    assert_eq!(page["head_seq"], serde_json::json!(1), "the refusals did no harm");
}

/// C-AUTH-11: a wrong secret is told in one line on either side and harms nobody. The member goes on trying: which of
/// two members has the wrong one, neither can know.
#[tokio::test]
async fn a_member_with_a_wrong_secret_says_so_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    let victim = cluster.follower().await;
    cluster.kill(victim);
    let command = with_flag(&cluster.command(victim), "--cluster-secret", "not the secret of the others");
    cluster.spawn_as(victim, command);
    let lines = |log: String| log.lines().filter(|line| line.contains("cluster-secret")).count();
    for number in 0..3 {
        eventually("the log tells of the secret", PATIENCE, async || {
            (lines(cluster.members[number].log()) > 0).then_some(())
        })
        .await;
    }
    let ready = cluster.client.get(&format!("{}/v0/ready", cluster.members[victim].url())).await;
    assert!(ready.is(503), "a member that no other trusts is not ready");
    for other in (0..3).filter(|number| *number != victim) {
        assert!(cluster.members[other].is_running(), "m{} ended too", other + 1);
        cluster.append(other, "t", serde_json::json!(other)).await.expect("the others go on");
    }
    for member in &cluster.members {
        assert!(lines(member.log()) <= 4, "{} says the same again and again", member.name);
    }
    cluster.kill(victim);
    cluster.restart(victim).await;
}

/// Process 1 of a container is reached only by signals that it waits for.
#[tokio::test]
async fn who_is_told_to_stop_while_it_opens_its_data_stops_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let identity = dir.path().join("identity");
    // Nobody writes to it, so whoever opens it to read waits.
    mknodat(CWD, &identity, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("make a pipe");
    let ports: Vec<String> = free_ports(2).iter().map(u16::to_string).collect();
    let mut child = antiphon()
        .args(["serve", "--port", &ports[0], "--peer-listen", &format!("127.0.0.1:{}", ports[1])])
        .arg("--data-dir")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start antiphon");
    eventually("it opens its data", REFUSAL_LIMIT, async || {
        assert!(child.try_wait().expect("look at a process").is_none(), "it ended by itself");
        dir.path().join("lock").exists().then_some(())
    })
    .await;
    let pid = Pid::from_raw(child.id() as i32).expect("a pid");
    kill_process(pid, Signal::TERM).expect("send a signal");
    let deadline = std::time::Instant::now() + REFUSAL_LIMIT;
    let status = eventually("it stops", 2 * REFUSAL_LIMIT, async || {
        if std::time::Instant::now() > deadline {
            child.kill().expect("kill a process");
        }
        child.try_wait().expect("wait for a process")
    })
    .await;
    assert!(status.success(), "{status}");
}
