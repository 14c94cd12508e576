//! Clusters of real processes.
//!
//! Every process is a child that dies with this one: by `Drop` if a test ends, and by the pipe on its
//! stdin if the test itself is killed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::client::{Client, Reply};
use crate::link::Link;

/// Two cores cannot run two clusters and still elect a leader in time.
static ONE_CLUSTER: Semaphore = Semaphore::const_new(1);

/// Waits until no other test has a cluster.
pub async fn one_cluster() -> SemaphorePermit<'static> {
    ONE_CLUSTER.acquire().await.expect("the semaphore is never closed")
}

pub const SECRET: &str = "a secret for tests only";
pub const CLUSTER: &str = "tests";
/// How long anything may take that has no bound of its own.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Starts of a whole cluster before it counts as failed, as others may take a port in between.
const START_TRIES: usize = 5;

/// Asks `probe` until it has an answer; panics with `what` if that takes too long.
pub async fn eventually<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The binary under test with no setting from outside.
pub fn antiphon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antiphon"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANTIPHON_") {
            command.env_remove(name);
        }
    }
    command
}

/// Ports that are free now, and that no outgoing connection is given: a reconnect to a dead member
/// would otherwise take, or even answer, the very port that it calls.
pub fn free_ports(count: usize) -> Vec<u16> {
    let mut held = Vec::new();
    while held.len() < count {
        let port = rand::random_range(12_000..32_000);
        // Held until all are found, so that none is found twice.
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
    }
    held.into_iter().map(|(port, _)| port).collect()
}

/// One member: its place, and its process if it runs.
pub struct Member {
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    log_path: PathBuf,
    running: Option<(Child, ChildStdin)>,
}

impl Member {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("the member runs").0.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|(child, _)| matches!(child.try_wait(), Ok(None)))
    }

    /// Ends the process as a power cut would end it, but for the page cache.
    pub fn kill(&mut self) {
        if let Some((mut child, _stdin)) = self.running.take() {
            child.kill().expect("send SIGKILL");
            child.wait().expect("wait for a killed process");
        }
    }

    /// Asks the process to end, waits for it, and says how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal_term();
        eventually(&format!("{} ends after SIGTERM", self.name.clone()), PATIENCE, async || self.ended())
            .await
    }

    /// How the process ended; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let (child, _) = self.running.as_mut().expect("the member was started");
        let status = child.try_wait().expect("wait for a process")?;
        self.running = None;
        Some(status)
    }

    pub fn signal_term(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("send a signal");
    }
}

/// A cluster in its own directory.
pub struct Cluster {
    pub members: Vec<Member>,
    pub client: Client,
    /// The ways on which the members reach each other, if they can be cut.
    pub links: Vec<Link>,
    has_links: bool,
    name: String,
    arguments: Vec<String>,
    dir: TempDir,
    /// `None` if it runs beside others.
    _permit: Option<SemaphorePermit<'static>>,
}

impl Cluster {
    /// A cluster of `size` members that are all ready.
    pub async fn start(size: usize) -> Cluster {
        Cluster::start_with(size, &[]).await
    }

    /// As [`Cluster::start`], with further flags for every member.
    pub async fn start_with(size: usize, arguments: &[&str]) -> Cluster {
        let permit = one_cluster().await;
        let dir = tempfile::tempdir().expect("make a directory");
        Cluster::start_in(dir, Some(permit), size, arguments).await
    }

    /// As [`Cluster::start_with`]; every member is reached over a [`Link`].
    pub async fn start_linked(size: usize, arguments: &[&str]) -> Cluster {
        let permit = one_cluster().await;
        let dir = tempfile::tempdir().expect("make a directory");
        Cluster::start_somehow(CLUSTER, dir, Some(permit), size, arguments, true).await
    }

    /// As [`Cluster::start_with`], in a directory of the caller's choice, and beside other clusters if there
    /// is no permit.
    pub async fn start_in(
        dir: TempDir,
        permit: Option<SemaphorePermit<'static>>,
        size: usize,
        arguments: &[&str],
    ) -> Cluster {
        Cluster::start_named(CLUSTER, dir, permit, size, arguments).await
    }

    /// As [`Cluster::start_in`], of a cluster with another name.
    pub async fn start_named(
        name: &str,
        dir: TempDir,
        permit: Option<SemaphorePermit<'static>>,
        size: usize,
        arguments: &[&str],
    ) -> Cluster {
        Cluster::start_somehow(name, dir, permit, size, arguments, false).await
    }

    async fn start_somehow(
        name: &str,
        dir: TempDir,
        permit: Option<SemaphorePermit<'static>>,
        size: usize,
        arguments: &[&str],
        has_links: bool,
    ) -> Cluster {
        let mut cluster = Cluster {
            members: Vec::new(),
            client: Client::new(),
            links: Vec::new(),
            has_links,
            name: name.to_owned(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            dir,
            _permit: permit,
        };
        for attempt in 1.. {
            cluster.place(size).await;
            (0..size).for_each(|number| cluster.spawn(number));
            if cluster.all_came_up().await {
                break;
            }
            assert!(attempt < START_TRIES, "the ports of {attempt} clusters were taken");
        }
        cluster
    }

    /// Gives `size` members new ports and empty directories.
    async fn place(&mut self, size: usize) {
        let dir = self.dir.path();
        self.members = free_ports(2 * size)
            .chunks(2)
            .zip(1..)
            .map(|(ports, number)| {
                let data_dir = dir.join(format!("m{number}"));
                let _ = fs::remove_dir_all(&data_dir);
                Member {
                    name: format!("m{number}"),
                    client_port: ports[0],
                    peer_port: ports[1],
                    data_dir,
                    log_path: dir.join(format!("m{number}.log")),
                    running: None,
                }
            })
            .collect();
        self.links.clear();
        for member in self.members.iter().filter(|_| self.has_links) {
            self.links.push(Link::to(member.peer_port).await);
        }
    }

    /// Where the other members reach member `number`.
    fn peer_port(&self, number: usize) -> u16 {
        self.links.get(number).map_or(self.members[number].peer_port, |link| link.port)
    }

    /// Waits until all members are ready; `false` if one of them found its port taken.
    async fn all_came_up(&mut self) -> bool {
        for number in 0..self.members.len() {
            let what = format!("{} is ready at first", self.members[number].name);
            let up = eventually(&what, PATIENCE, async || {
                if self.client.get(&format!("{}/v0/ready", self.members[number].url())).await.is(200) {
                    return Some(true);
                }
                for member in &mut self.members {
                    if let Some(how) = member.ended() {
                        let name = &member.name;
                        assert!(member.log().contains("in use"), "{name} ended at its first start: {how}");
                        return Some(false);
                    }
                }
                None
            })
            .await;
            if !up {
                self.members.iter_mut().for_each(Member::kill);
                return false;
            }
        }
        true
    }

    /// The command that runs member `number`, with its usual flags.
    pub fn command(&self, number: usize) -> Command {
        let member = &self.members[number];
        let mut command = antiphon();
        command
            .arg("serve")
            .args(["--cluster", &self.name, "--member", &member.name])
            .args(["--host", "127.0.0.1", "--port", &member.client_port.to_string()])
            .args(["--peer-listen", &format!("127.0.0.1:{}", member.peer_port)])
            .arg("--data-dir")
            .arg(&member.data_dir)
            .args(&self.arguments);
        if !self.arguments.iter().any(|argument| argument == "--drain-ms") {
            command.args(["--drain-ms", "0"]);
        }
        if self.members.len() > 1 {
            let all = (self.members.iter().enumerate())
                .map(|(number, peer)| format!("{}=127.0.0.1:{}", peer.name, self.peer_port(number)));
            command.args(["--members", &all.collect::<Vec<_>>().join(","), "--cluster-secret", SECRET]);
        }
        command
    }

    /// Starts the process of member `number` and does not wait for it.
    pub fn spawn(&mut self, number: usize) {
        let command = self.command(number);
        self.spawn_as(number, command);
    }

    /// Starts the process of member `number` by another command than its usual one.
    pub fn spawn_as(&mut self, number: usize, mut command: Command) {
        let member = &mut self.members[number];
        assert!(member.running.is_none(), "{} runs already", member.name);
        let log = File::options().create(true).append(true).open(&member.log_path).expect("open a log");
        let mut child = command
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("open a log twice"))
            .stderr(log)
            .spawn()
            .expect("start antiphon");
        let stdin = child.stdin.take().expect("stdin was piped");
        member.running = Some((child, stdin));
    }

    pub fn kill(&mut self, number: usize) {
        self.members[number].kill();
    }

    /// Starts a member that was stopped, and waits until it is ready.
    pub async fn restart(&mut self, number: usize) {
        self.spawn(number);
        self.wait_ready(number).await;
    }

    pub async fn wait_ready(&mut self, number: usize) {
        let url = format!("{}/v0/ready", self.members[number].url());
        eventually(&format!("m{} is ready", number + 1), PATIENCE, async || {
            assert!(self.members[number].is_running(), "m{} ended instead of becoming ready", number + 1);
            self.client.get(&url).await.is(200).then_some(())
        })
        .await;
    }

    pub async fn wait_all_ready(&mut self) {
        for number in 0..self.members.len() {
            self.wait_ready(number).await;
        }
    }

    /// The member that all running members take for the leader, which then runs too.
    pub async fn leader(&mut self) -> usize {
        eventually("all running members name one running leader", PATIENCE, async || {
            let mut named = Vec::new();
            for number in 0..self.members.len() {
                if self.members[number].is_running() {
                    named.push(self.leader_seen_by(number).await?);
                }
            }
            let first = *named.first()?;
            (named.iter().all(|leader| *leader == first) && self.members[first].is_running()).then_some(first)
        })
        .await
    }

    /// Whom member `number` takes for the leader; `None` while it is not ready.
    pub async fn leader_seen_by(&self, number: usize) -> Option<usize> {
        let reply = self.client.get(&format!("{}/v0/ready", self.members[number].url())).await;
        let leader = reply.ok()?["leader"].as_str()?.to_owned();
        self.members.iter().position(|member| member.name == leader)
    }

    /// A member that does not lead.
    pub async fn follower(&mut self) -> usize {
        let leader = self.leader().await;
        (leader + 1) % self.members.len()
    }

    pub fn topic_url(&self, number: usize, topic: &str) -> String {
        format!("{}/v0/topics/{topic}", self.members[number].url())
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(Member::url).collect()
    }

    /// Appends one record that holds `data`.
    pub async fn append(&self, number: usize, topic: &str, data: Value) -> Reply {
        let body = serde_json::json!({ "records": [{ "data": data }] });
        self.client.post(&self.topic_url(number, topic), &body).await
    }

    /// One page from the start of `topic`, as member `number` reads it.
    pub async fn diff(&self, number: usize, topic: &str, consistency: &str) -> Reply {
        let body = serde_json::json!({ "limit": 1000, "consistency": consistency });
        self.client.post(&format!("{}/diff", self.topic_url(number, topic)), &body).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some((mut child, _)) = member.running.take() {
                // Nothing can be done about a process that cannot be killed; the next one must be tried.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        let panicked: Vec<&str> = self
            .members
            .iter()
            .filter(|m| m.log().contains("panicked at"))
            .map(|m| m.name.as_str())
            .collect();
        if std::thread::panicking() {
            self.members.iter().for_each(|member| print_log(&member.name, &member.log_path));
        } else {
            assert!(panicked.is_empty(), "panics in the logs of {panicked:?}");
        }
    }
}

/// Prints the end of a log of a test that failed.
fn print_log(name: &str, path: &Path) {
    const LINES: usize = 80;
    let log = fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = log.lines().collect();
    eprintln!("---- log of {name}, {} lines, the last {LINES} of them:", lines.len());
    lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| eprintln!("{line}"));
}
