//! A member without a quorum.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::Reply;
use crate::harness::{Cluster, eventually};
use crate::oracle::{Fate, Oracle};

const REQUEST_TIMEOUT: Duration = Duration::from_millis(3000);
/// What an answer may take beyond the deadline: scheduling on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);

/// C-CLU-03, C-CLU-09, C-CONS-03, C-CONS-04, C-CONS-06, C-OPS-01, C-OPS-03, C-OPS-04: alone, a member refuses in time and
/// without effect, and goes on to answer what it can answer alone. Once as former leader, once as
/// former follower.
#[tokio::test]
async fn a_minority_refuses_in_time_without_effect_and_goes_on_to_read() {
    let timeout_ms = REQUEST_TIMEOUT.as_millis().to_string();
    let mut cluster = Cluster::start_with(3, &["--request-timeout-ms", &timeout_ms]).await;
    let oracle = Oracle::new("minority");
    for survivor_led in [true, false] {
        let leader = cluster.leader().await;
        let alone = if survivor_led { leader } else { (leader + 1) % 3 };
        let others = [(alone + 1) % 3, (alone + 2) % 3];
        let url = cluster.members[alone].url();
        let acked = oracle.append(&cluster.client, &[&url], "before", 3, false).await;
        assert!(matches!(acked, Fate::Acked { .. }), "{acked:?}");

        others.iter().for_each(|other| cluster.kill(*other));
        let ready = format!("{url}/v0/ready");
        eventually("ready turns to 503 without a quorum (C-OPS-04)", Duration::from_secs(5), async || {
            cluster.client.get(&ready).await.is(503).then_some(())
        })
        .await;
        let reply = cluster.client.get(&ready).await;
        assert_eq!((reply.status(), reply.code()), (Some(503), "not_ready"), "{reply:?}");
        let Reply::Answer { body, .. } = &reply else { unreachable!("it has a status") };
        let detail = &body["error"]["detail"];
        assert_eq!(
            (&detail["reason"], &detail["replay_progress"]),
            (&json!("no_leader"), &json!(1.0)),
            "{body}"
        );
        refuses(&cluster, &oracle, alone).await;
        reads_alone(&cluster, alone, survivor_led).await;

        for other in others {
            cluster.spawn(other);
        }
        cluster.wait_all_ready().await;
        println!("{}", oracle.check(&mut cluster).await);
    }
}

/// Writes and strong reads are refused, each within its deadline.
async fn refuses(cluster: &Cluster, oracle: &Oracle, alone: usize) {
    let url = cluster.members[alone].url();
    let sent = Instant::now();
    let writes = (0..3).map(|number| {
        let url = &url;
        async move { oracle.append(&cluster.client, &[url], &format!("alone {number}"), 2, false).await }
    });
    for fate in futures_util::future::join_all(writes).await {
        assert_eq!(fate, Fate::Refused, "a write without a quorum");
    }
    in_time(sent);
    for sent_as in [
        cluster.append(alone, "minority-other", json!(1)).await,
        cluster.client.put(&cluster.topic_url(alone, "minority-put"), &json!({})).await,
        cluster.diff(alone, "minority", "strong").await,
        cluster.client.get(&cluster.topic_url(alone, "minority")).await,
    ] {
        assert_eq!((sent_as.status(), sent_as.code()), (Some(503), "no_leader"), "{sent_as:?}");
        let Reply::Answer { body, has_retry_after, .. } = &sent_as else { unreachable!("it has a status") };
        assert!(has_retry_after, "no Retry-After");
        assert_eq!(body["error"]["detail"]["member"], json!(cluster.members[alone].name));
    }
}

#[track_caller]
fn in_time(sent: Instant) {
    let took = sent.elapsed();
    assert!(took < REQUEST_TIMEOUT + SLACK, "{took:?} with a deadline of {REQUEST_TIMEOUT:?}");
}

/// What needs no quorum goes on.
async fn reads_alone(cluster: &Cluster, alone: usize, first_round: bool) {
    let page = cluster.diff(alone, "minority", "eventual").await.expect("an eventual diff without a quorum");
    assert_eq!(page["head_seq"], json!(if first_round { 3 } else { 6 }), "{page}");
    let url = cluster.members[alone].url();
    for path in ["v0/health", "v0/topics/minority?consistency=eventual", "v0/cluster?consistency=eventual"] {
        cluster.client.get(&format!("{url}/{path}")).await.expect(path);
    }
}
