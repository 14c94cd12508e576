//! One member, from start to end.
//!
//! The only place that knows every room: it opens the data directory, starts the log's writer, the state,
//! Raft, the peers and the API in that order, hands each what it needs, and takes them down in the
//! opposite order. What comes from the machine (clocks, random numbers, disk, network) is chosen here and
//! handed in.

pub mod chores;
pub mod damage;
mod file_limit;
mod loading;
pub mod opening;

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, Api, ApiLimits, ConnectionLimits, Cors, Envelope, WebGuard};
use crate::auth::Keys;
use crate::clock::{Random, SystemClock, SystemRandom};
use crate::config::Settings;
use crate::engine::{Engine, EngineOptions, Hub, TokenKeys};
use crate::limits::HEAD_TIMEOUT_MS;
use crate::raft::{
    ClusterTime, DATA_FORMAT, IdentityKeeper, Installer, ListedMember, LogTail, Me, Member, Node, Parts,
    PeerListener, PeerTransport, Peers, TcpTransport, Timers, found_alone, found_listed,
};
use crate::router::{self, HttpRemote, PullBudget, Targets};
use crate::state::ClusterLimits;
use crate::storage::{Disk, RealDisk, Room};
use crate::telemetry;
use crate::telemetry::seldom;
use crate::telemetry::version::VERSION_AND_COMMIT;
use chores::{Chores, PeerPort};
use file_limit::FileShares;

/// How long a stopping member waits for another one to lead.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it waits for requests that are under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes after a member has ended well.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it was told to stop.
    Stop,
    /// It took over the state of its cluster and has to start from it, as a new process with the same settings.
    StartAgain,
}

/// Runs one member until it is told to stop (SIGTERM, Ctrl-C), has to start again, or cannot go on.
pub async fn run(settings: Settings) -> anyhow::Result<Next> {
    // First: process 1 of a container is reached only by signals that it waits for.
    let mut stop_signals = StopSignals::new()?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let random = SystemRandom::shared();
    let files = FileShares::raise().map_err(|line| anyhow!(line))?;
    if let Some(line) = files.warning(settings.max_sse_connections) {
        tracing::warn!("{line}");
    }
    let keys = match &settings.api_keys {
        Some(secret) => Keys::parse(secret.expose()).map_err(|error| anyhow!("{error}"))?,
        None => Keys::default(),
    };

    // Ports first: a taken one is the commonest mistake, and nothing has been touched yet.
    let client_listener = TcpListener::bind(settings.listen())
        .await
        .with_context(|| format!("cannot listen for clients on {} (--host, --port)", settings.listen()))?;
    let transport = TcpTransport::shared();
    let peer_listener = listen_for_peers(&settings, &*transport).await?;

    let lock = lock_directory(&settings.data_dir)?;
    let opening = {
        let (settings, disk, random) = (settings.clone(), disk.clone(), random.clone());
        // With the lock, as it may go on for a moment when nobody waits for it any more.
        tokio::task::spawn_blocking(move || (opening::open(&settings, &disk, &*random), lock))
    };
    // It may take long. Who is told to stop meanwhile ends as if it were killed.
    let (opened, _lock) = tokio::select! {
        biased;
        signal = stop_signals.recv() => return stopped_early(signal),
        opened = opening => opened.context("opening the data")?,
    };
    let (identity, storage) = opened?;
    let had_data = opening::had_data(&settings)?;
    let can_be_filled_again = opening::can_be_filled_again(&settings);
    tracing::info!(
        "antiphon {} starts: member {} of cluster {}, data in {} (format {DATA_FORMAT}) up to entry {}, state as of \
         {}; clients on {}, members on {}; {} open files",
        VERSION_AND_COMMIT,
        settings.member,
        settings.cluster,
        settings.data_dir.display(),
        storage.log.last_id().map_or(0, |id| id.index),
        storage.applied.index(),
        client_listener.local_addr().map_or(settings.listen(), |address| address.to_string()),
        if peer_listener.is_some() { &settings.peer_listen } else { "no port" },
        files.limit
    );
    let room = Room::new(disk.clone(), settings.data_dir.clone(), settings.min_free_bytes);
    let installer = Installer::new(storage.log.clone(), room.clone(), storage.stores.clone());

    let member = Member {
        name: settings.member.clone(),
        peer_address: settings.peer_advertise.clone(),
        client_url: settings.advertise_url.clone(),
    };
    let secret = settings.cluster_secret.as_ref().map_or(Vec::new(), |secret| secret.expose().into());
    // A blank member that had data is no new one: it founds nothing, and nobody founds anything with it.
    let me = Me::new(&identity, member, secret, had_data);
    let keeper = IdentityKeeper::new(disk.clone(), settings.data_dir.clone(), identity, me.clone());
    let listed = settings.members.iter().map(|peer| (peer.name.clone(), peer.address.clone()));
    let peers = Peers::new(me, transport, random.clone(), listed.collect());
    let hub = Arc::new(Hub::default());
    let parts = Parts {
        log: storage.log.clone(),
        applied: storage.applied.clone(),
        observer: hub.clone(),
        time: ClusterTime::new(SystemClock::shared()),
        room: room.clone(),
        installer: installer.clone(),
        random: random.clone(),
    };
    let node = tokio::select! {
        biased;
        signal = stop_signals.recv() => {
            storage.close();
            return stopped_early(signal);
        }
        node = Node::start(peers, parts, timers(&settings)) => node,
    };
    if node.is_err() && can_be_filled_again {
        damage::leave_mark_at_start(&storage.log, &*disk, &settings.data_dir)?;
    }
    let node = match node {
        Ok(node) => node,
        Err(line) => {
            storage.close();
            bail!(line);
        }
    };

    let mut services = Services::default();
    services.spawn("telling what comes often", tell_what_comes_often());
    let peer_port = peer_listener.map(|listener| PeerPort {
        listener,
        keeper: keeper.clone(),
        limits: files.peers,
        others: other_addresses(&settings),
    });
    let chores = Chores {
        node: node.clone(),
        log: storage.log.clone(),
        applied: storage.applied.clone(),
        room: room.clone(),
        disk: disk.clone(),
        data_dir: settings.data_dir.clone(),
        is_restored: storage.is_restored,
        tail: log_tail(&settings),
        peers: peer_port,
        can_be_filled_again,
    };
    chores.all().into_iter().for_each(|(name, chore)| services.spawn(name, chore));
    let last_index = storage.log.last_id().map_or(0, |id| id.index);
    let aside = loading::aside_of(&storage.stores.checkpoint_dir());
    services.spawn(
        "removing a damaged checkpoint",
        damage::remove_damaged_checkpoint(storage.applied.clone(), last_index, aside),
    );
    if had_data {
        let removing = damage::remove_when_voter(node.clone(), room.clone(), settings.data_dir.clone());
        services.spawn("removing damaged data", removing);
    }
    let founding = found(settings.clone(), node.clone(), keeper, random.clone());
    services.spawn("founding", async { founding.await.map_err(std::io::Error::other) });

    let options = EngineOptions {
        request_timeout: Duration::from_millis(settings.request_timeout_ms),
        quorum_loss_after: Duration::from_millis(2 * settings.election_timeout_max_ms + 1000),
        limits: ClusterLimits {
            max_topics: settings.max_topics,
            max_total_bytes: settings.max_total_bytes,
            max_routers: settings.max_routers,
            max_idempotency_keys: settings.max_idempotency_keys,
        },
        max_watch_sessions: settings.max_watch_sessions,
        watch_session_ttl: Duration::from_millis(settings.watch_session_ttl_ms),
        max_streams: settings.max_sse_connections,
        token_keys: Arc::new(TokenKeys::new(
            settings.cluster_secret.as_ref(),
            settings.cluster_secret_previous.as_ref(),
        )),
    };
    let engine = Engine::new(node.clone(), storage.log.clone(), hub, random.clone(), options);
    let targets = Targets {
        allow: settings.connector_allow.clone(),
        deny: settings.connector_deny.clone(),
        peers: settings.peer_addresses(),
        has_keys: settings.api_keys.is_some(),
    };
    let remote =
        HttpRemote::new(targets).map_err(|why| anyhow!("cannot prepare to ask other clusters: {why}"))?;
    let routing = router::Context {
        engine: engine.clone(),
        remote: Arc::new(remote),
        pulls: PullBudget::new(files.mirrors),
        random,
    };
    services.spawn("routers", router::run_routers(routing));
    let limits = ApiLimits {
        max_body_bytes: settings.max_body_bytes,
        max_inflight_bytes: settings.max_inflight_bytes,
        probe_auth: settings.probe_auth,
        max_inflight_per_key: settings.max_inflight_per_key,
        max_streams_per_key: settings.max_sse_connections_per_key,
        max_watch_sessions_per_key: settings.max_watch_sessions_per_key,
        ..ApiLimits::default()
    };
    let guard = if keys.is_off() { WebGuard::new(settings.allowed_hosts.clone()) } else { WebGuard::off() };
    let api = Api::new(engine.clone(), Arc::new(keys), limits);
    let (stop_clients, mut clients_stopping) = watch::channel(false);
    let members = engine.clone();
    let is_member = Arc::new(move |url: &str| members.has_member_at(url));
    let cors = Cors::new(settings.cors_allow_origins.clone(), is_member);
    let metrics = api.metrics();
    let envelope = Envelope::new(api::router(api), cors, guard, metrics);
    let stopping = async move {
        let _ = clients_stopping.wait_for(|is_stopping| *is_stopping).await;
    };
    let connection_limits = ConnectionLimits {
        max_connections: match settings.max_connections {
            0 => files.clients,
            max => max.min(files.clients),
        },
        head_timeout: Duration::from_millis(HEAD_TIMEOUT_MS),
        slow_after: Duration::from_millis(settings.slow_reader_ms),
        linger_bytes: settings.max_body_bytes,
    };
    let mut serving = tokio::spawn(api::serve(client_listener, envelope, connection_limits, stopping));
    tracing::info!(
        "member {} of cluster {} serves clients on {}",
        settings.member,
        settings.cluster,
        settings.advertise_url
    );

    let mut outcome = tokio::select! {
        biased;
        signal = stop_signals.recv() => {
            tracing::info!("{signal}: stopping");
            Ok(Next::Stop)
        }
        () = installer.installed() => Ok(Next::StartAgain),
        reason = node.stopped() => Err(anyhow!("this member cannot go on: {reason}")),
        failed = services.failed() => Err(failed),
        served = &mut serving => Err(anyhow!("the client listener ended: {served:?}")),
    };
    if outcome.is_ok() {
        engine.drain();
        node.hand_over(HAND_OVER_TIMEOUT).await;
    }
    if let Ok(Next::Stop) = outcome
        && settings.drain_ms > 0
    {
        tracing::info!("serving on for {} ms; told again it stops at once", settings.drain_ms);
        tokio::select! {
            biased;
            // Also one that came during the hand-over.
            signal = stop_signals.recv() => {
                tracing::info!("{signal} again: stopping now");
            }
            reason = node.stopped() => outcome = Err(anyhow!("this member cannot go on: {reason}")),
            failed = services.failed() => outcome = Err(failed),
            () = tokio::time::sleep(Duration::from_millis(settings.drain_ms)) => {}
        }
    }
    if outcome.is_ok() {
        telemetry::stopping();
        // It may have come back.
        node.hand_over(HAND_OVER_TIMEOUT).await;
        engine.close();
        let _ = stop_clients.send(true);
        // A WebSocket is no request any more.
        let all_ended = async { tokio::join!(&mut serving, engine.streams_ended()) };
        if tokio::time::timeout(CLOSE_TIMEOUT, all_ended).await.is_err() {
            tracing::warn!("some requests did not end in time; their clients must ask again");
        }
    }
    let marked = if outcome.is_err() && can_be_filled_again {
        damage::leave_mark(&storage.log, &node, &*disk, &settings.data_dir).await
    } else {
        Ok(())
    };
    node.shut_down().await;
    let saved = match outcome {
        Ok(Next::Stop) => storage.save(&room).await,
        _ => Ok(()),
    };
    // Whatever went wrong before: a log that is not closed has nobody who speaks for its last group.
    storage.close();
    marked?;
    saved?;
    seldom::tell_all();
    if let Ok(Next::Stop) = outcome {
        tracing::info!("stopped");
    }
    if let Ok(Next::StartAgain) = outcome {
        installer.adopt().context("the state that was taken over cannot be started from")?;
    }
    outcome
}

/// The end of a member that was told to stop before it served anybody.
fn stopped_early(signal: &str) -> anyhow::Result<Next> {
    tracing::info!("{signal} during the start: stopped");
    Ok(Next::Stop)
}

/// Has the log say what was held back because it came often, also if nothing follows.
async fn tell_what_comes_often() -> std::io::Result<()> {
    loop {
        tokio::time::sleep(seldom::LOOK_INTERVAL).await;
        seldom::tell_due();
    }
}

/// What the log keeps of itself; `None` if that is all of it.
fn log_tail(settings: &Settings) -> Option<LogTail> {
    (settings.kept_log_entries > 0).then_some(LogTail {
        entries: settings.kept_log_entries,
        bytes: if settings.kept_log_bytes > 0 { settings.kept_log_bytes } else { u64::MAX },
        patience: Duration::from_millis(settings.lag_patience_ms),
    })
}

fn timers(settings: &Settings) -> Timers {
    Timers {
        heartbeat_ms: settings.heartbeat_ms,
        election_timeout_min_ms: settings.election_timeout_min_ms,
        election_timeout_max_ms: settings.election_timeout_max_ms,
    }
}

/// A member without a secret has no peers and opens no port for them.
async fn listen_for_peers(
    settings: &Settings,
    transport: &dyn PeerTransport,
) -> anyhow::Result<Option<Box<dyn PeerListener>>> {
    if settings.cluster_secret.is_none() {
        return Ok(None);
    }
    let listener = transport.listen(&settings.peer_listen).await;
    Ok(Some(listener.with_context(|| {
        format!("cannot listen for other members on {} (--peer-listen)", settings.peer_listen)
    })?))
}

async fn found(
    settings: Settings,
    node: Arc<Node>,
    keeper: Arc<IdentityKeeper>,
    random: Arc<dyn Random>,
) -> Result<(), String> {
    let list: Vec<ListedMember> =
        settings.members.iter().map(|peer| (peer.name.clone(), peer.address.clone())).collect();
    if !settings.join.is_empty() {
        return Ok(());
    }
    if list.is_empty() {
        found_alone(&node, &keeper, &*random).await
    } else {
        found_listed(&node, &keeper, &*random, &list).await
    }
}

/// Where other members of this one's cluster may be asked to let it in.
fn other_addresses(settings: &Settings) -> Vec<String> {
    let listed = settings.members.iter().filter(|peer| peer.name != settings.member);
    listed.map(|peer| peer.address.clone()).chain(settings.join.iter().cloned()).collect()
}

/// Holds the data directory for this process.
fn lock_directory(dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write to {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!(
            "the data directory {} is in use by another process: stop that one, or name another --data-dir",
            dir.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Tasks that must go on for the member to go on.
#[derive(Default)]
struct Services {
    tasks: tokio::task::JoinSet<(&'static str, std::io::Result<()>)>,
}

impl Services {
    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = std::io::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until one of them fails. One that ends well has done its work.
    async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((name, Err(error)))) => return anyhow!("{name}: {error}"),
                Some(Err(error)) => return anyhow!("a service ended: {error}"),
                None => std::future::pending::<()>().await,
            }
        }
    }
}

/// What tells this process to stop. What came since it was made is not missed.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        Ok(StopSignals { terminate, interrupt })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;
    use crate::limits::LAST_SAVE_TIMEOUT;

    /// The seconds that stand behind `name` in `text`.
    fn seconds(text: &str, name: &str) -> Duration {
        let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no {name}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Duration::from_secs(digits.parse().expect("a number"))
    }

    #[test]
    fn what_runs_a_member_waits_for_its_end_and_never_gives_it_up() {
        let drain = SETTINGS.iter().find(|setting| setting.name == "drain_ms").expect("a setting");
        let drain = Duration::from_millis(drain.default.expect("a default").parse().expect("a number"));
        let end = 2 * HAND_OVER_TIMEOUT + drain + CLOSE_TIMEOUT + LAST_SAVE_TIMEOUT;
        let unit = include_str!("../deploy/antiphon.service");
        assert!(seconds(unit, "TimeoutStopSec=") >= end + end / 2, "{end:?}");
        assert!(seconds(include_str!("../docker-compose.yml"), "stop_grace_period: ") >= end + end / 2);
        // What ends a start may pass, and a start ends soon.
        let (head, service) = unit.split_once("[Service]").expect("a section");
        assert_eq!(seconds(head, "StartLimitIntervalSec="), Duration::ZERO);
        assert!(seconds(service, "RestartSec=") >= Duration::from_secs(1));
    }

    /// What follows the leader and the other members is one of them: without it a member would learn nothing more.
    #[tokio::test]
    async fn a_service_that_panics_is_a_failure() {
        let mut services = Services::default();
        services.spawn("ends well", async { Ok(()) });
        services.spawn("panics", async { panic!("on purpose") });
        let failed = services.failed().await.to_string();
        assert!(failed.starts_with("a service ended"), "{failed}");
    }
}
