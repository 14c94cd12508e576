//! Members are killed under load, again and again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::client::Client;
use crate::harness::{Cluster, PATIENCE};
use crate::oracle::{Fate, Oracle, more_acks};
use crate::writers::Writers;

/// Kills when nothing else is asked for.
const DEFAULT_KILLS: usize = 6;
/// Kills between two full checks, each of which starts a new topic: the book is held in memory.
const KILLS_PER_TOPIC: usize = 25;
/// Acks between a member's return and the next kill.
const ACKS_BETWEEN: usize = 100;
/// Between two probes of one survivor: the resolution of what is measured.
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// How long to go on: `ANTIPHON_KILLS` kills, or `ANTIPHON_SOAK_S` seconds, or a few kills.
struct Length {
    kills: usize,
    until: Option<Instant>,
}

impl Length {
    fn asked_for() -> Length {
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")))
        };
        match (number("ANTIPHON_KILLS"), number("ANTIPHON_SOAK_S")) {
            (Some(kills), _) => Length { kills: kills as usize, until: None },
            (None, Some(seconds)) => {
                Length { kills: usize::MAX, until: Some(Instant::now() + Duration::from_secs(seconds)) }
            }
            (None, None) => Length { kills: DEFAULT_KILLS, until: None },
        }
    }

    fn goes_on(&self, kills: usize) -> bool {
        kills < self.kills && self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// C-CLU-04, C-CLU-05, C-CLU-06, C-CLU-07, C-CLU-08: whoever dies, every acked record is at the seq that its ack
/// named, none is there twice, and none is there that was refused.
#[tokio::test]
async fn acked_writes_survive_kills_of_leaders_and_followers() {
    let mut cluster = Cluster::start(3).await;
    let length = Length::asked_for();
    let mut gaps: Vec<Duration> = Vec::new();
    let mut kills = 0;
    while length.goes_on(kills) {
        let oracle = Arc::new(Oracle::new(&format!("kills-{kills}")));
        let writers = Writers::start(&oracle, &cluster.urls());
        more_acks(&oracle, ACKS_BETWEEN, PATIENCE).await;
        let end = kills + KILLS_PER_TOPIC;
        while kills < end && length.goes_on(kills) {
            let kill_leader = kills % 2 == 0;
            let victim = if kill_leader { cluster.leader().await } else { cluster.follower().await };
            cluster.kill(victim);
            let gap = time_to_ack(&cluster, &oracle, victim).await;
            if kill_leader {
                gaps.push(gap);
            }
            cluster.restart(victim).await;
            more_acks(&oracle, ACKS_BETWEEN, PATIENCE).await;
            kills += 1;
        }
        writers.finish().await;
        cluster.wait_all_ready().await;
        let tally = oracle.check(&mut cluster).await;
        println!("{kills} kills, {}: {tally}", oracle.topic);
    }
    gaps.sort();
    println!(
        "from the kill of a leader to the next ack at a survivor, {} times: median {:?}, longest {:?}",
        gaps.len(),
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1]
    );
}

/// From now to the first ack of a write that is sent from now on to a member that survived `victim`. A
/// write that was under way may be acked by what happened before.
pub async fn time_to_ack(cluster: &Cluster, oracle: &Oracle, victim: usize) -> Duration {
    let killed = Instant::now();
    let client = Client::new();
    let urls = cluster.urls();
    let mut probes: FuturesUnordered<_> = (0..urls.len())
        .filter(|number| *number != victim)
        .map(|number| {
            let (client, url, oracle) = (&client, &urls[number], &oracle);
            async move {
                let name = format!("probe of {killed:?} at {number}");
                let deadline = killed + PATIENCE;
                while Instant::now() < deadline {
                    if let Fate::Acked { .. } = oracle.append(client, &[url], &name, 1, false).await {
                        return Some(killed.elapsed());
                    }
                    // A quick refusal must not become a load of its own.
                    tokio::time::sleep(PROBE_PAUSE).await;
                }
                None
            }
        })
        .collect();
    let mut first = None;
    // All are heard to the end: an attempt that is dropped would only be one more unknown.
    while let Some(gap) = probes.next().await {
        first = first.or(gap);
    }
    first.expect("a survivor acks a write")
}

/// C-CLU-02, C-CLU-06, C-CLU-08: writes that a follower carries to the leader, while the leader dies.
#[tokio::test]
async fn writes_through_followers_survive_the_death_of_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let oracle = Arc::new(Oracle::new("through-followers"));
    let leader = cluster.leader().await;
    let mut followers = cluster.urls();
    followers.remove(leader);
    let writers = Writers::start(&oracle, &followers);
    more_acks(&oracle, ACKS_BETWEEN, PATIENCE).await;
    cluster.kill(leader);
    more_acks(&oracle, ACKS_BETWEEN, PATIENCE).await;
    writers.finish().await;
    println!("before the leader is back: {}", oracle.check(&mut cluster).await);
    cluster.restart(leader).await;
    println!("after it is back: {}", oracle.check(&mut cluster).await);
}
