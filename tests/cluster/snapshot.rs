//! A member that lacks what the logs no longer hold takes over the state.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, eventually};

/// A log that forgets at once, in small files, so that hundreds of writes make a member need the state.
pub const FORGETFUL: [&str; 6] =
    ["--kept-log-entries", "50", "--lag-patience-ms", "500", "--segment-bytes", "64KiB"];
const RECORDS_PER_WRITE: u64 = 10;

/// Writes through whichever running member takes it.
pub async fn write(cluster: &mut Cluster, topic: &str, writes: u64) {
    for _ in 0..writes {
        let data = "x".repeat(300);
        let records: Vec<Value> =
            (0..RECORDS_PER_WRITE).map(|number| json!({ "data": [number, data] })).collect();
        let key = format!("{:032x}", rand::random::<u128>());
        let body = json!({ "records": records, "idempotency_key": key });
        let mut number = 0;
        eventually("a write is acked", PATIENCE, async || {
            number = (number + 1) % cluster.members.len();
            if !cluster.members[number].is_running() {
                return None;
            }
            cluster.client.post(&cluster.topic_url(number, topic), &body).await.ok()
        })
        .await;
    }
}

/// Waits until all members have applied the same and hold the same.
pub async fn all_agree(cluster: &Cluster) {
    eventually("all members hold the same state", PATIENCE, async || {
        let mut states = Vec::new();
        for member in &cluster.members {
            let url = format!("{}/v0/cluster?consistency=eventual", member.url());
            let view = cluster.client.get(&url).await.ok()?;
            states.push((view["applied"].clone(), view["digest"].clone()));
        }
        states.iter().all(|state| *state == states[0]).then_some(())
    })
    .await;
}

/// Everything that a member has of a topic, by its own applied state.
pub async fn read_all(cluster: &Cluster, number: usize, topic: &str) -> Vec<Value> {
    let url = format!("{}/diff", cluster.topic_url(number, topic));
    let (mut records, mut from_seq) = (Vec::new(), 0);
    loop {
        let body = json!({ "from_seq": from_seq, "limit": 1000, "consistency": "eventual" });
        // One that has just started from the state is not ready at once.
        let page = eventually("a page", PATIENCE, async || cluster.client.post(&url, &body).await.ok()).await;
        records.extend(page["records"].as_array().expect("records").iter().cloned());
        from_seq = page["next_from_seq"].as_u64().expect("a cursor");
        if page["caught_up"] == true {
            return records;
        }
    }
}

/// Waits until a member's log says that it started from a state that it took over.
pub async fn took_over(cluster: &Cluster, number: usize, times: usize) {
    let what = format!("{} takes over the state", cluster.members[number].name);
    eventually(&what, PATIENCE, async || {
        (cluster.members[number].log().matches("starting from it").count() >= times).then_some(())
    })
    .await;
}

/// Makes the logs of the others forget what the stopped member lacks.
pub async fn write_until_it_is_forgotten(cluster: &mut Cluster, topic: &str) {
    // Longer than the patience, with several purges in it.
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        write(cluster, topic, 20).await;
    }
}

#[tokio::test]
async fn a_member_that_lags_too_far_takes_over_the_state_while_writes_go_on() {
    let mut cluster = Cluster::start_with(3, &FORGETFUL).await;
    write(&mut cluster, "before", 30).await;
    cluster.members[2].kill();
    write_until_it_is_forgotten(&mut cluster, "while").await;
    cluster.spawn(2);
    write(&mut cluster, "after", 50).await;
    took_over(&cluster, 2, 1).await;
    all_agree(&cluster).await;
    for topic in ["before", "while", "after"] {
        assert_eq!(read_all(&cluster, 2, topic).await, read_all(&cluster, 0, topic).await, "{topic}");
    }
    // It is as good as any: the others can go, one after the other.
    cluster.members[0].kill();
    write(&mut cluster, "after", 5).await;
    assert_eq!(read_all(&cluster, 2, "before").await.len() as u64, 30 * RECORDS_PER_WRITE);
}

#[tokio::test]
async fn a_kill_of_either_side_while_the_state_is_taken_over_harms_nothing() {
    let mut cluster = Cluster::start_with(3, &FORGETFUL).await;
    write(&mut cluster, "kept", 200).await;
    for round in 0..4 {
        cluster.members[2].kill();
        write_until_it_is_forgotten(&mut cluster, "churn").await;
        cluster.spawn(2);
        // At any moment of it, before, within or after.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..1500))).await;
        let victim = if round % 2 == 0 { 2 } else { cluster.leader().await };
        cluster.members[victim].kill();
        write(&mut cluster, "kept", 5).await;
        cluster.spawn(victim);
        all_agree(&cluster).await;
    }
    let expected = read_all(&cluster, 0, "kept").await;
    assert_eq!(expected.len() as u64, (200 + 4 * 5) * RECORDS_PER_WRITE);
    assert_eq!(read_all(&cluster, 2, "kept").await, expected);
}
