//! SIGTERM: a member leaves in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{Cluster, PATIENCE, eventually};
use crate::oracle::{Oracle, more_acks};
use crate::writers::Writers;

/// Without a hand-over the others wait for a lease (800 ms) and an election timeout (at least 500 ms).
const WITHOUT_HAND_OVER: Duration = Duration::from_millis(1300);

/// C-CLU-07, C-MEMB-09, C-OPS-05: a leader that is asked to stop hands over, finishes what runs, and
/// exits with 0; nothing that it acked is lost.
#[tokio::test]
async fn a_leader_asked_to_stop_hands_over_and_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let oracle = Arc::new(Oracle::new("stop"));
    let writers = Writers::start(&oracle, &cluster.urls());
    more_acks(&oracle, 100, PATIENCE).await;
    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    let asked = Instant::now();
    cluster.members[leader].signal_term();
    eventually("a survivor names another leader", PATIENCE, async || {
        cluster.leader_seen_by(survivor).await.filter(|seen| *seen != leader)
    })
    .await;
    let gap = asked.elapsed();
    let status = eventually("the old leader ends", PATIENCE, async || cluster.members[leader].ended()).await;
    println!("leadership moved {gap:?} after SIGTERM, the process ended after {:?}", asked.elapsed());
    assert!(status.success(), "SIGTERM ended with {status}");
    assert!(gap < WITHOUT_HAND_OVER, "{gap:?} is no hand-over but an election");
    more_acks(&oracle, 100, PATIENCE).await;
    cluster.restart(leader).await;
    writers.finish().await;
    println!("{}", oracle.check(&mut cluster).await);
}
