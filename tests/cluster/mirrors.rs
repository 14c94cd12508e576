//! Clusters that mirror each other while members die, ways are cut, topics are made anew and records are evicted.
//! `ANTIPHON_SOAK_S` says for how many seconds there is trouble.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{PATIENCE, eventually};
use crate::network::{CONVERGENCE, Network, Writer, numbers_of};

/// How long there is trouble when nothing else is asked for.
const DEFAULT_TROUBLE: Duration = Duration::from_secs(4);
const TOPIC: &str = "t";

fn trouble() -> Instant {
    let asked = std::env::var("ANTIPHON_SOAK_S").ok();
    let asked = asked.map(|text| Duration::from_secs(text.parse().expect("ANTIPHON_SOAK_S is a number")));
    Instant::now() + asked.unwrap_or(DEFAULT_TROUBLE)
}

/// Any pause up to this one: what is hit must not be chosen by the test.
async fn any_pause(most_ms: u64) {
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..=most_ms))).await;
}

fn writers(network: &Network) -> Vec<Writer> {
    (0..network.clusters.len()).map(|cluster| network.writer(cluster, TOPIC)).collect()
}

async fn finish(writers: Vec<Writer>) -> Vec<u64> {
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.finish().await);
    }
    written
}

/// Waits until `cluster` has so many records, and gives the numbers of each of three writers.
async fn has(network: &Network, cluster: usize, count: usize) -> [Vec<u64>; 3] {
    eventually(&format!("c{cluster} has {count} records"), PATIENCE, async || {
        let (records, _) = network.read(cluster, 0, TOPIC).await;
        (records.len() >= count).then(|| [0, 1, 2].map(|writer| numbers_of(&records, writer)))
    })
    .await
}

fn up_to(last: u64) -> Vec<u64> {
    (1..=last).collect()
}

/// C-MIRROR-09, C-MIRROR-10, C-MIRROR-11, C-ROUTE-05, C-ROUTE-07
#[tokio::test]
async fn a_full_mesh_has_every_record_once_whatever_happens() {
    let mut network = Network::start_mesh(&[3, 1, 1]).await;
    let (writers, end) = (writers(&network), trouble());
    let ways = network.ways();
    for round in 0.. {
        let (to, from) = ways[rand::random_range(0..ways.len())];
        network.cut(to, from);
        any_pause(300).await;
        match round % 3 {
            0 => network.kill_leader(0, Duration::from_millis(200)).await,
            other => network.kill_leader(other, Duration::ZERO).await,
        }
        network.heal(to, from);
        any_pause(200).await;
        if Instant::now() >= end && round >= 2 {
            break;
        }
    }
    let written = finish(writers).await;
    network.converges(TOPIC, &written).await;
    network.check(TOPIC, &written).await;
    network.all_run().await;
}

/// C-MIRROR-09, C-MIRROR-10, C-ROUTE-05: the ones that pull are killed between any two steps.
#[tokio::test]
async fn a_ring_has_every_record_once_whenever_its_members_are_killed() {
    let mut network = Network::start(&[1, 1, 1]).await;
    for to in 0..3 {
        network.mirror(to, (to + 2) % 3).await;
    }
    let (writers, end) = (writers(&network), trouble());
    while Instant::now() < end {
        any_pause(150).await;
        network.kill_leader(rand::random_range(0..3), Duration::ZERO).await;
    }
    let written = finish(writers).await;
    network.converges(TOPIC, &written).await;
    network.check(TOPIC, &written).await;
    network.all_run().await;
}

/// C-MIRROR-14, C-ROUTE-07: of a topic that is deleted and written again nothing returns but what others wrote.
#[tokio::test]
async fn a_topic_that_is_made_anew_gets_what_others_wrote_and_gives_what_is_new() {
    let network = Network::start_mesh(&[1, 1, 1]).await;
    for cluster in 0..3 {
        network.write(cluster, TOPIC, 1..=40).await;
    }
    network.converges(TOPIC, &[40, 40, 40]).await;
    // One way learns of it late.
    network.cut(1, 0);
    let client = &network.clusters[0].client;
    client.delete(&network.clusters[0].topic_url(0, TOPIC)).await.expect("a deletion");
    for cluster in 0..3 {
        network.write(cluster, TOPIC, 41..=60).await;
    }
    assert_eq!(has(&network, 0, 140).await, [(41..=60).collect(), up_to(60), up_to(60)]);
    network.heal(1, 0);
    for cluster in [1, 2] {
        assert_eq!(has(&network, cluster, 180).await, [up_to(60), up_to(60), up_to(60)]);
    }
    let anew = eventually("all have taken the same", PATIENCE, async || {
        let (one, two) = (network.origins(1, TOPIC).await?, network.origins(2, TOPIC).await?);
        (one == two && one.len() == 4).then_some(one)
    })
    .await;
    // The one that was made anew has all but its own former life.
    let own = network.origins(0, TOPIC).await.expect("origins");
    let former = anew.iter().filter(|(key, taken)| own.get(*key) != Some(*taken)).map(|(key, _)| key);
    assert_eq!(former.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["c0"]);
    network.all_run().await;
    for (cluster, count) in [(0, 140), (1, 180), (2, 180)] {
        let (records, gaps) = network.read(cluster, 0, TOPIC).await;
        assert_eq!((records.len(), gaps.len()), (count, 0), "c{cluster}");
    }
}

/// C-MIRROR-13, C-ROUTE-15, C-GAP-08, C-GAP-09: along a line, so that nobody else has what went.
#[tokio::test]
async fn what_was_evicted_behind_a_cut_is_a_gap_and_nothing_else_is() {
    let mut network = Network::start(&[1, 1, 1]).await;
    let topic_url = network.clusters[0].topic_url(0, TOPIC);
    network.clusters[0].client.put(&topic_url, &json!({ "cap_records": 20 })).await.expect("a topic");
    network.mirror(1, 0).await;
    network.mirror(2, 1).await;
    network.write(0, TOPIC, 1..=10).await;
    has(&network, 2, 10).await;
    network.cut(1, 0);
    network.write(1, TOPIC, 1..=5).await;
    network.write(0, TOPIC, 11..=100).await;
    eventually("the cut is noticed", PATIENCE, async || {
        let shown = network.router(1, "from-c0").await;
        (shown["state"] == "retrying" && shown["last_error"]["code"] == "unreachable").then_some(())
    })
    .await;
    network.heal(1, 0);
    let expected: Vec<u64> = up_to(10).into_iter().chain(81..=100).collect();
    for cluster in [1, 2] {
        assert_eq!(has(&network, cluster, 35).await, [expected.clone(), up_to(5), vec![]]);
        let (records, gaps) = network.read(cluster, 0, TOPIC).await;
        let told: Vec<Value> = gaps.iter().map(|gap| json!([gap["reason"], gap["origin"]])).collect();
        let origin = json!({ "cluster": "c0", "topic": TOPIC, "gap_from": 11, "gap_to": 80 });
        assert_eq!(told, [json!(["source_trim", origin])], "c{cluster}");
        // At its place: what was there before comes before it, and the rest behind.
        let place = gaps[0]["gap_from"].as_u64().expect("a seq");
        assert_eq!(gaps[0]["gap_to"], place);
        for record in records.iter().filter(|record| record["data"]["by"] == "c0") {
            let is_before = record["$seq"].as_u64() < Some(place);
            assert_eq!(is_before, record["data"]["n"].as_u64() <= Some(10), "c{cluster}: {record}");
        }
        let origins = network.origins(cluster, TOPIC).await.expect("origins");
        let lost: Vec<&Value> =
            origins.iter().filter(|((name, _), _)| name == "c0").map(|(_, it)| &it[2]).collect();
        assert_eq!(lost, [&json!([{ "from": 11, "to": 80 }])], "c{cluster}");
    }
    network.all_run().await;
}

/// C-ROUTE-15, C-MIRROR-09: what comes by another way is not lost.
#[tokio::test]
async fn what_was_evicted_behind_a_cut_comes_by_another_way_without_a_gap() {
    let network = Network::start_mesh(&[1, 1, 1]).await;
    let topic_url = network.clusters[0].topic_url(0, TOPIC);
    network.clusters[0].client.put(&topic_url, &json!({ "cap_records": 20 })).await.expect("a topic");
    network.write(0, TOPIC, 1..=10).await;
    has(&network, 1, 10).await;
    network.cut(1, 0);
    for first in (11..=91).step_by(10) {
        network.write(0, TOPIC, first..=first + 9).await;
        // Before it is evicted.
        has(&network, 2, first as usize + 9).await;
    }
    has(&network, 1, 100).await;
    network.heal(1, 0);
    network.all_run().await;
    for cluster in [1, 2] {
        let (records, gaps) = network.read(cluster, 0, TOPIC).await;
        assert_eq!((numbers_of(&records, 0), gaps.len()), (up_to(100), 0), "c{cluster}");
    }
}

/// C-MIRROR-01, C-MIRROR-11: whoever is asked says nothing any more, and its connections stay open.
#[tokio::test]
async fn a_mirror_goes_on_with_another_member_when_one_stands_still() {
    let mut network = Network::start(&[3, 1]).await;
    network.mirror(1, 0).await;
    network.write(0, TOPIC, 1..=3).await;
    has(&network, 1, 3).await;
    // It goes on with the first of its addresses as long as that is well.
    network.clusters[0].members[0].signal(Signal::STOP);
    eventually("the others go on", PATIENCE, async || {
        network.clusters[0].append(1, TOPIC, json!({ "by": "c0", "n": 4 })).await.ok()
    })
    .await;
    assert_eq!(has(&network, 1, 4).await, [up_to(4), vec![], vec![]]);
    network.clusters[0].members[0].signal(Signal::CONT);
    network.clusters[0].wait_all_ready().await;
    network.all_run().await;
}

/// C-MIRROR-15: a cluster that lost everything is another one, even at the same address.
#[tokio::test]
async fn a_remote_that_was_founded_anew_is_not_gone_on_with() {
    let mut network = Network::start(&[1, 1]).await;
    network.mirror(1, 0).await;
    network.write(0, TOPIC, 1..=5).await;
    has(&network, 1, 5).await;
    network.clusters[0].kill(0);
    std::fs::remove_dir_all(&network.clusters[0].members[0].data_dir).expect("remove a directory");
    network.clusters[0].restart(0).await;
    network.write(0, TOPIC, 1..=9).await;
    eventually("the mirror says so", PATIENCE, async || {
        let shown = network.router(1, "from-c0").await;
        (shown["state"] == "blocked" && shown["last_error"]["code"] == "source_diverged").then_some(())
    })
    .await;
    assert_eq!(has(&network, 1, 5).await, [up_to(5), vec![], vec![]]);
    // Whoever knows what happened makes it anew.
    let url = format!("{}/v0/routers/from-c0", network.clusters[1].members[0].url());
    network.clusters[1].client.delete(&url).await.expect("a deletion");
    network.mirror(1, 0).await;
    has(&network, 1, 14).await;
    network.all_run().await;
}

/// C-ROUTE-05, C-ROUTE-22: local routers go on under the next leader.
#[tokio::test]
async fn local_routers_lose_and_repeat_nothing_when_leaders_die() {
    let mut network = Network::start(&[3]).await;
    let member = network.clusters[0].members[0].url();
    for (source, dest) in [("t", "t-b"), ("t-b", "t-c"), ("t", "t-c"), ("t", "t-paused")] {
        let config = json!({ "source": source, "dest": dest });
        let url = format!("{member}/v0/routers/{source}->{dest}");
        network.clusters[0].client.put(&url, &config).await.expect("a router");
    }
    let pause = format!("{member}/v0/routers/t->t-paused");
    network.clusters[0].client.post(&format!("{pause}/pause"), &json!({})).await.expect("a pause");
    let (writer, end) = (network.writer(0, TOPIC), trouble());
    let mut kills = 0;
    while kills < 2 || Instant::now() < end {
        any_pause(300).await;
        network.kill_leader(0, Duration::from_millis(200)).await;
        kills += 1;
    }
    let last = writer.finish().await;
    network.clusters[0].wait_all_ready().await;
    assert_eq!(network.router(0, "t->t-paused").await["state"], "paused");
    network.clusters[0].client.post(&format!("{pause}/resume"), &json!({})).await.expect("a resumption");
    for topic in ["t-b", "t-c", "t-paused"] {
        eventually(&format!("{topic} has all"), PATIENCE, async || {
            let (records, _) = network.read(0, 0, topic).await;
            (records.len() as u64 >= last).then_some(())
        })
        .await;
        for number in 0..3 {
            let (records, gaps) = network.read(0, number, topic).await;
            assert_eq!((numbers_of(&records, 0), gaps.len()), (up_to(last), 0), "{topic} at m{}", number + 1);
        }
    }
}

/// Topics that are mirrored at once.
const MANY: usize = 20_000;

/// C-MIRROR-04, C-MIRROR-11: what a mirror of very many topics costs follows what changes in them.
#[tokio::test]
async fn a_mirror_of_very_many_topics_starts_and_rests() {
    let mut network = Network::start(&[1, 1]).await;
    let url = format!("{}/v0/append", network.clusters[0].members[0].url());
    for first in (0..MANY).step_by(64) {
        let topics: serde_json::Map<String, Value> = (first..MANY.min(first + 64))
            .map(|number| (format!("t{number:05}"), json!({ "records": [{ "data": number }] })))
            .collect();
        network.clusters[0].client.post(&url, &json!({ "topics": topics })).await.expect("an append");
    }
    network.mirror(1, 0).await;
    eventually("all topics have come", CONVERGENCE, async || {
        let shown = network.router(1, "from-c0").await;
        (shown["forwarded_total"] == MANY && shown["lag"] == 0).then_some(())
    })
    .await;
    network.all_run().await;
    // Longer than a pull waits: some begin meanwhile, none of which names what does not change.
    let before = network.pull_bytes(1, 0);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let sent = network.pull_bytes(1, 0) - before;
    assert!((1..64 << 10).contains(&sent), "an idle mirror has sent {sent} bytes in six seconds");
    // What changes comes at once all the same, also in the last of them and in a new one, and what goes is noticed.
    let last = format!("t{:05}", MANY - 1);
    for topic in [last.as_str(), "t-new"] {
        network.clusters[0].append(0, topic, json!("later")).await.expect("an append");
        eventually(&format!("{topic} follows"), PATIENCE, async || {
            let (records, _) = network.read(1, 0, topic).await;
            records.last().is_some_and(|record| record["data"] == "later").then_some(())
        })
        .await;
    }
    let here = network.clusters[1].topic_url(0, "t00077");
    network.clusters[1].client.delete(&here).await.expect("a deletion");
    eventually("what was deleted here comes back", PATIENCE, async || {
        let (records, _) = network.read(1, 0, "t00077").await;
        (records.len() == 1).then_some(())
    })
    .await;
}

/// C-MIRROR-11: however far a filter has to look for something, each pull gets on.
#[tokio::test]
async fn a_filter_that_drops_nearly_everything_gets_on_in_steps() {
    const RECORDS: usize = 400_000;
    let mut network = Network::start(&[1, 1]).await;
    let source = network.clusters[0].topic_url(0, TOPIC);
    let dropped = vec![json!({ "data": 1, "tag": "dropped" }); 10_000];
    for _ in 0..RECORDS / dropped.len() {
        network.clusters[0].client.post(&source, &json!({ "records": dropped })).await.expect("a write");
    }
    let wanted = json!({ "records": [{ "data": "wanted", "tag": "wanted" }] });
    network.clusters[0].client.post(&source, &wanted).await.expect("a write");
    network.mirror_with(1, 0, json!({ "filter": ["tag", "Eq", "wanted"] })).await;
    eventually("a part of it is behind the mirror", PATIENCE, async || {
        let lag = network.router(1, "from-c0").await["lag"].as_u64().expect("a number");
        (1..RECORDS as u64).contains(&lag).then_some(())
    })
    .await;
    eventually("what passes has come", CONVERGENCE, async || {
        let (records, _) = network.read(1, 0, TOPIC).await;
        (records.len() == 1 && records[0]["data"] == "wanted").then_some(())
    })
    .await;
    network.all_run().await;
}
