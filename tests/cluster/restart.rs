//! Members that come back find what they had.

use std::sync::Arc;

use crate::harness::{Cluster, PATIENCE};
use crate::oracle::{Oracle, more_acks};
use crate::writers::Writers;

/// No death of all processes at once loses an acked record or gives its seq away again. What was not synced stays in
/// the system's memory here: C-DUR-07 is asserted where machines lose power, in `tests/sim` and `tests/storage`.
#[tokio::test]
async fn all_members_killed_at_once_come_back_with_every_acked_write() {
    let mut cluster = Cluster::start(3).await;
    let oracle = Arc::new(Oracle::new("all-at-once"));
    for _ in 0..2 {
        let writers = Writers::start(&oracle, &cluster.urls());
        more_acks(&oracle, 200, PATIENCE).await;
        (0..3).for_each(|number| cluster.kill(number));
        writers.finish().await;
        (0..3).for_each(|number| cluster.spawn(number));
        cluster.wait_all_ready().await;
        println!("{}", oracle.check(&mut cluster).await);
    }
}

/// C-MEMB-11, C-CFG-09, C-DUR-08: a cluster of one is a full cluster, killed or stopped.
#[tokio::test]
async fn a_cluster_of_one_comes_back_with_its_data() {
    let mut cluster = Cluster::start(1).await;
    let config = serde_json::json!({ "cap_records": 1_000_000, "priority": 7 });
    let put = cluster.client.put(&cluster.topic_url(0, "one"), &config).await.expect("make a topic");
    let mut configs = Vec::new();
    for class in ["fsync", "disk", "memory"] {
        let config = serde_json::json!({ "durability": class, "cap_records": 7, "priority": -3 });
        let put = cluster.client.put(&cluster.topic_url(0, class), &config).await.expect("make a topic");
        configs.push((class, put["config"].clone()));
    }
    let records = serde_json::json!({ "records": [{ "data": 1 }, { "data": 2 }, { "data": 3 }] });
    for topic in ["pruned", "gone"] {
        cluster.client.post(&cluster.topic_url(0, topic), &records).await.expect("append");
    }
    let member = cluster.members[0].url();
    let router = serde_json::json!({ "source": "pruned", "dest": "copies" });
    cluster.client.put(&format!("{member}/v0/routers/kept"), &router).await.expect("make a router");
    let below = serde_json::json!({ "before_seq": 3 });
    cluster.client.post(&format!("{}/delete", cluster.topic_url(0, "pruned")), &below).await.expect("delete");
    cluster.client.delete(&cluster.topic_url(0, "gone")).await.expect("delete a topic");
    let oracle = Arc::new(Oracle::new("one"));
    for kill in [true, false, true] {
        let writers = Writers::start(&oracle, &cluster.urls());
        more_acks(&oracle, 100, PATIENCE).await;
        if kill {
            cluster.kill(0);
        } else {
            let status = cluster.members[0].terminate().await;
            assert!(status.success(), "SIGTERM ended with {status}");
        }
        writers.finish().await;
        cluster.restart(0).await;
        println!("{}", oracle.check(&mut cluster).await);
        for (class, config) in &configs {
            let state = cluster.client.get(&cluster.topic_url(0, class)).await.expect("the topic's state");
            assert_eq!(&state["config"], config);
        }
        let page = cluster.diff(0, "pruned", "strong").await.expect("read");
        let left = page["records"].as_array().expect("records");
        assert_eq!((left.len(), &left[0]["$seq"]), (1, &serde_json::json!(3)), "{page}");
        assert!(cluster.client.get(&cluster.topic_url(0, "gone")).await.is(404));
        let shown = cluster.client.get(&format!("{member}/v0/routers/kept")).await.expect("the router");
        assert_eq!(shown["source"], "pruned");
    }
    let state = cluster.client.get(&cluster.topic_url(0, "one")).await.expect("the topic's state");
    assert_eq!(state["config"], put["config"], "the config is what it was");
}

/// A checkpoint is derived: one that was damaged, cut short or lost is noticed and made again from the log.
#[tokio::test]
async fn a_damaged_checkpoint_is_made_again_from_the_log() {
    let mut cluster = Cluster::start(1).await;
    let oracle = Arc::new(Oracle::new("damaged-checkpoint"));
    let dir = cluster.members[0].data_dir.join("checkpoint");
    let damages: [fn(&std::path::Path); 3] = [
        |dir| {
            let file = std::fs::File::options().read(true).write(true).open(dir.join("db")).expect("open it");
            let len = file.metadata().expect("measure it").len();
            let noise: Vec<u8> = (0..len / 2).map(|at| (at * 7) as u8).collect();
            std::os::unix::fs::FileExt::write_all_at(&file, &noise, len / 4).expect("overwrite it");
        },
        |dir| {
            let file = std::fs::File::options().write(true).open(dir.join("db")).expect("open it");
            file.set_len(file.metadata().expect("measure it").len() / 2).expect("cut it");
        },
        |dir| std::fs::remove_dir_all(dir).expect("remove it"),
    ];
    for damage in damages {
        let writers = Writers::start(&oracle, &cluster.urls());
        more_acks(&oracle, 100, PATIENCE).await;
        let status = cluster.members[0].terminate().await;
        assert!(status.success(), "SIGTERM ended with {status}");
        writers.finish().await;
        damage(&dir);
        cluster.restart(0).await;
        println!("{}", oracle.check(&mut cluster).await);
    }
}
