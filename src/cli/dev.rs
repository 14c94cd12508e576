//! `antiphon dev`: a cluster of three members on this machine, to try things on.
//!
//! The members are real processes of the same binary, not tasks in this one: killing one is what a
//! developer wants to try first, and it must be the same thing that happens in production. Nothing is
//! restarted, for the same reason.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::ChildStdin;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fail;
use super::serve::EXIT_WITH_STDIN;

const MEMBERS: u16 = 3;
/// A member's peer port is this far above its client port.
const PEER_PORT_OFFSET: u16 = 100;
const READY_DEADLINE: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(100);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn command() -> Command {
    let highest = i64::from(u16::MAX - PEER_PORT_OFFSET - MEMBERS);
    Command::new("dev")
        .about("Run a cluster of three members on this machine")
        .arg(
            Arg::new("base-port")
                .long("base-port")
                .value_name("PORT")
                .value_parser(value_parser!(u16).range(1..=highest))
                .default_value("4000")
                .help("Clients on PORT+1 to PORT+3, members among themselves on PORT+101 to PORT+103"),
        )
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .default_value("./antiphon-dev")
                .help("Directory for the members' data and logs"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    // Both have defaults.
    let base_port = matches.get_one::<u16>("base-port").copied().unwrap_or(4000);
    let dir = matches.get_one::<PathBuf>("dir").cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.context("start the runtime").and_then(|runtime| runtime.block_on(dev(base_port, &dir)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// The members' processes. Dropping it kills them.
#[derive(Default)]
struct Processes {
    /// Those that run, by name: the process's id, and the pipe whose end the member takes as ours.
    running: BTreeMap<String, (u32, ChildStdin)>,
    ends: JoinSet<(String, std::io::Result<ExitStatus>)>,
}

async fn dev(base_port: u16, dir: &Path) -> anyhow::Result<()> {
    for number in 1..=MEMBERS {
        check_port(base_port + number)?;
        check_port(base_port + PEER_PORT_OFFSET + number)?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let secret = secret_file(dir)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;

    let mut processes = Processes::default();
    for number in 1..=MEMBERS {
        processes.start(number, base_port, dir, &secret)?;
    }
    println!("data and logs are in {} (m1.log, m2.log, m3.log)", dir.display());
    tokio::select! {
        biased;
        _ = interrupt.recv() => return processes.stop().await,
        _ = terminate.recv() => return processes.stop().await,
        ready = processes.wait_ready(base_port, dir) => match ready {
            Ok(leader) => println!("{}", greeting(base_port, &processes.pids(), &leader)),
            Err(error) => {
                processes.stop().await?;
                return Err(error);
            }
        },
    }
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return processes.stop().await,
            _ = terminate.recv() => return processes.stop().await,
            ended = processes.next_end() => match ended {
                Some((name, how)) => println!("{name} ended: {how}"),
                None => bail!("all members have ended; their logs are in {}", dir.display()),
            },
        }
    }
}

impl Processes {
    fn start(&mut self, number: u16, base_port: u16, dir: &Path, secret: &Path) -> anyhow::Result<()> {
        let name = format!("m{number}");
        let log_path = log_path(dir, &name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        let peer = |number: u16| format!("127.0.0.1:{}", base_port + PEER_PORT_OFFSET + number);
        let members: Vec<String> =
            (1..=MEMBERS).map(|number| format!("m{number}={}", peer(number))).collect();
        let program = std::env::current_exe().context("find the path of this program")?;
        let mut command = tokio::process::Command::new(program);
        // Variables meant for a real member (its host, its data) would end up in all three.
        for (variable, _) in std::env::vars_os() {
            let ours = variable.to_string_lossy().starts_with("ANTIPHON_");
            if ours && variable != "ANTIPHON_LOG" && variable != "ANTIPHON_LOG_FORMAT" {
                command.env_remove(variable);
            }
        }
        command
            .arg("serve")
            .arg(format!("--{EXIT_WITH_STDIN}"))
            .args(["--cluster", "dev", "--member", &name])
            .args(["--host", "127.0.0.1", "--port", &(base_port + number).to_string()])
            .args(["--peer-listen", &peer(number), "--members", &members.join(",")])
            .arg("--data-dir")
            .arg(dir.join(&name))
            .arg("--cluster-secret-file")
            .arg(secret)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("open the log twice")?)
            .stderr(log)
            // Ctrl-C goes to this process alone, which then stops the members in order.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        // Both are there: the pipe was asked for, and the process was not waited for yet.
        let (Some(id), Some(stdin)) = (child.id(), child.stdin.take()) else {
            bail!("{name} ended before it began")
        };
        self.running.insert(name.clone(), (id, stdin));
        self.ends.spawn(async move { (name, child.wait().await) });
        Ok(())
    }

    fn pids(&self) -> Vec<(String, u32)> {
        self.running.iter().map(|(name, (pid, _))| (name.clone(), *pid)).collect()
    }

    /// The next member that ends and how, or `None` if none runs.
    async fn next_end(&mut self) -> Option<(String, String)> {
        let (name, status) = self.ends.join_next().await?.ok()?;
        self.running.remove(&name);
        let how = status.map_or_else(|error| format!("unknown: {error}"), |status| status.to_string());
        Some((name, how))
    }

    /// Waits until all members are ready; gives the name of the leader.
    async fn wait_ready(&mut self, base_port: u16, dir: &Path) -> anyhow::Result<String> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + READY_DEADLINE;
        let mut leader = None;
        let mut number = 1;
        while number <= MEMBERS {
            match ready(&client, base_port + number).await {
                Some(seen) => {
                    leader = seen.or(leader);
                    number += 1;
                }
                None if Instant::now() > deadline => bail!(
                    "m{number} was not ready within {} s; see {}",
                    READY_DEADLINE.as_secs(),
                    log_path(dir, &format!("m{number}")).display()
                ),
                None => tokio::select! {
                    biased;
                    Some((name, how)) = self.next_end() => bail!(
                        "{name} ended before it was ready ({how}); see {}",
                        log_path(dir, &name).display()
                    ),
                    () = tokio::time::sleep(READY_POLL) => {}
                },
            }
        }
        Ok(leader.unwrap_or_else(|| "unknown".to_owned()))
    }

    /// Stops all members: asks first, then insists.
    async fn stop(&mut self) -> anyhow::Result<()> {
        for (pid, _) in self.running.values() {
            // A process that has just ended is no error; it has not been waited for, so its id is its own.
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let all = async { while self.next_end().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_err() {
            let names: Vec<&str> = self.running.keys().map(String::as_str).collect();
            println!(
                "killed, as {} s were not enough to stop: {}",
                STOP_DEADLINE.as_secs(),
                names.join(", ")
            );
            self.ends.shutdown().await;
        }
        Ok(())
    }
}

fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

fn check_port(port: u16) -> anyhow::Result<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!(
                "port {port} cannot be used ({error}): stop what uses it, or choose others with --base-port"
            )
        }
    }
}

/// The file with the secret that the members share: made once, for this directory.
fn secret_file(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("cluster-secret");
    let make = || -> std::io::Result<()> {
        // Written under another name first: a file cut short would be taken as the secret next time.
        let fresh = dir.join("cluster-secret.new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{:032x}", rand::random::<u128>())?;
        std::fs::rename(&fresh, &path)
    };
    if !path.exists() {
        make().with_context(|| format!("write {}", path.display()))?;
    }
    Ok(path)
}

/// The leader that the member at `port` names once it is ready; `None` before.
async fn ready(client: &reqwest::Client, port: u16) -> Option<Option<String>> {
    let response = client.get(format!("http://127.0.0.1:{port}/v0/ready")).send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
    Some(body["leader"].as_str().map(str::to_owned))
}

fn greeting(base_port: u16, pids: &[(String, u32)], leader: &str) -> String {
    let url = |number: u16| format!("http://127.0.0.1:{}", base_port + number);
    let mut text = String::new();
    for (number, (name, pid)) in (1..).zip(pids) {
        let note = if name == leader { "  leads" } else { "" };
        text += &format!("{name}  {}  pid {pid}{note}\n", url(number));
    }
    text += &format!(
        "\nappend:     curl -s {}/v0/topics/hello -H 'Content-Type: application/json' \
         -d '{{\"records\":[{{\"data\":\"hello\"}}]}}'\n\
         read:       curl -s -X POST {}/v0/topics/hello/diff\n\
         who leads:  curl -s {}/v0/cluster\n\n\
         Ctrl-C stops all three; kill -9 a pid to see the others go on.",
        url(1),
        url(2),
        url(3)
    );
    text
}
