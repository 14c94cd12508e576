//! A cluster of member processes on this machine, for `dev` and `bench`.
//!
//! The members are real processes of the same binary, not tasks in this one: killing one, or counting what
//! one costs, must be the same thing that it is in production. Nothing is restarted, for the same reason.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::ChildStdin;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::serve::EXIT_WITH_STDIN;

const READY_DEADLINE: Duration = Duration::from_secs(60);
const READY_POLL: Duration = Duration::from_millis(100);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Where one member is found.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
}

impl Place {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }
}

/// The members' processes. Dropping it kills them.
pub(super) struct LocalCluster {
    /// Holds the members' data and logs, and the secret.
    dir: PathBuf,
    cluster: String,
    places: Vec<Place>,
    /// Those that run, by name: the process's id, and the pipe whose end the member takes as ours.
    running: BTreeMap<String, (u32, ChildStdin)>,
    ends: JoinSet<(String, std::io::Result<ExitStatus>)>,
}

impl LocalCluster {
    /// Starts one member at each of `places`, of the cluster named `cluster`, and does not wait for them.
    pub fn start(dir: &Path, cluster: &str, places: Vec<Place>) -> anyhow::Result<Self> {
        super::keep_files_private();
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        // Also from elsewhere, as the member's command line is told.
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        let mut local = LocalCluster {
            dir,
            cluster: cluster.to_owned(),
            places,
            running: BTreeMap::new(),
            ends: JoinSet::new(),
        };
        make_secret(&local.secret_path())?;
        for place in local.places.clone() {
            local.start_member(&place)?;
        }
        Ok(local)
    }

    fn secret_path(&self) -> PathBuf {
        self.dir.join("cluster-secret")
    }

    fn start_member(&mut self, place: &Place) -> anyhow::Result<()> {
        let name = &place.name;
        let log_path = self.log_path(name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("open {}", log_path.display()))?;
        let program = std::env::current_exe().context("find the path of this program")?;
        let mut command = tokio::process::Command::new(program);
        // Variables meant for a real member (its host, its data) would end up in all of these.
        for (variable, _) in std::env::vars_os() {
            let ours = variable.to_string_lossy().starts_with("ANTIPHON_");
            if ours && variable != "ANTIPHON_LOG" && variable != "ANTIPHON_LOG_FORMAT" {
                command.env_remove(variable);
            }
        }
        command
            .arg("serve")
            .arg(format!("--{EXIT_WITH_STDIN}"))
            .args(self.arguments(place))
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
        let pid_path = self.pid_path(name);
        std::fs::write(&pid_path, format!("{id}\n"))
            .with_context(|| format!("write {}", pid_path.display()))?;
        self.running.insert(name.clone(), (id, stdin));
        let name = name.clone();
        self.ends.spawn(async move { (name, child.wait().await) });
        Ok(())
    }

    /// The flags of a member's `serve`.
    fn arguments(&self, place: &Place) -> Vec<OsString> {
        let members = self.places.iter().map(|place| format!("{}={}", place.name, place.peer_address()));
        let members = members.collect::<Vec<_>>().join(",");
        let port = place.client_port.to_string();
        let mut arguments: Vec<OsString> =
            ["--cluster", &self.cluster, "--member", &place.name].map(Into::into).into();
        arguments.extend(["--host", "127.0.0.1", "--port", &port].map(OsString::from));
        arguments.extend(["--peer-listen", &place.peer_address(), "--members", &members].map(OsString::from));
        // Nobody has to be sent elsewhere.
        arguments.extend(["--drain-ms", "0"].map(OsString::from));
        arguments.extend(["--data-dir".into(), self.dir.join(&place.name).into_os_string()]);
        arguments.extend(["--cluster-secret-file".into(), self.secret_path().into_os_string()]);
        arguments
    }

    /// What starts the member `name` again, to be typed.
    pub fn command_line(&self, name: &str) -> Option<String> {
        let place = self.places.iter().find(|place| place.name == name)?;
        let program = std::env::current_exe().unwrap_or_else(|_| "antiphon".into());
        let words = [program.into_os_string(), "serve".into()].into_iter().chain(self.arguments(place));
        Some(words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" "))
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The processes that run: name and id.
    pub fn pids(&self) -> Vec<(String, u32)> {
        self.running.iter().map(|(name, (pid, _))| (name.clone(), *pid)).collect()
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Holds a member's process id while it runs, for `kill`.
    fn pid_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pid"))
    }

    /// The next member that ends and how, or `None` if none runs.
    pub async fn next_end(&mut self) -> Option<(String, String)> {
        let (name, status) = self.ends.join_next().await?.ok()?;
        self.running.remove(&name);
        // The id may soon be another process's. A file that stays behind is overwritten by the next start.
        let _ = std::fs::remove_file(self.pid_path(&name));
        let how = status.map_or_else(|error| format!("unknown: {error}"), |status| status.to_string());
        Some((name, how))
    }

    /// Waits until all members are ready; gives the name of the leader.
    pub async fn wait_ready(&mut self) -> anyhow::Result<String> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + READY_DEADLINE;
        let mut leader = None;
        let places = self.places.clone();
        let mut waiting = places.iter();
        let mut next = waiting.next();
        while let Some(place) = next {
            match ready(&client, &place.url()).await {
                Some(seen) => {
                    leader = seen.or(leader);
                    next = waiting.next();
                }
                None if Instant::now() > deadline => bail!(
                    "{} was not ready within {} s; see {}",
                    place.name,
                    READY_DEADLINE.as_secs(),
                    self.log_path(&place.name).display()
                ),
                None => tokio::select! {
                    biased;
                    Some((name, how)) = self.next_end() => bail!(
                        "{name} ended before it was ready ({how}); see {}",
                        self.log_path(&name).display()
                    ),
                    () = tokio::time::sleep(READY_POLL) => {}
                },
            }
        }
        Ok(leader.unwrap_or_else(|| "unknown".to_owned()))
    }

    /// Stops all members: asks first, then insists. Gives what to say about those that had to be killed.
    pub async fn stop(&mut self) -> Option<String> {
        for (pid, _) in self.running.values() {
            // A process that has just ended is no error; it has not been waited for, so its id is its own.
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let all = async { while self.next_end().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, all).await.is_ok() {
            return None;
        }
        let names: Vec<&str> = self.running.keys().map(String::as_str).collect();
        let seconds = STOP_DEADLINE.as_secs();
        let note = format!("killed, as {seconds} s were not enough to stop: {}", names.join(", "));
        self.ends.shutdown().await;
        Some(note)
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./=,:".contains(&byte));
    if is_plain && !word.is_empty() { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Makes the file with the secret that the members share, once for its directory.
fn make_secret(path: &Path) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        // Written under another name first: a file cut short would be taken as the secret next time.
        let fresh = path.with_extension("new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{:032x}", rand::random::<u128>())?;
        std::fs::rename(&fresh, path)
    };
    if !path.exists() {
        make().with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The leader that the member at `url` names once it is ready; `None` before.
async fn ready(client: &reqwest::Client, url: &str) -> Option<Option<String>> {
    let response = client.get(format!("{url}/v0/ready")).send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.ok()?).ok()?;
    Some(body["leader"].as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_see_more_in_it() {
        assert_eq!(quoted("m1=127.0.0.1:4101,m2"), "m1=127.0.0.1:4101,m2");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
