//! What the log says at the moments that matter.

use crate::harness::{Cluster, PATIENCE, eventually};

async fn says(cluster: &Cluster, number: usize, what: &str) {
    eventually(&format!("m{} says {what:?}", number + 1), PATIENCE, async || {
        cluster.members[number].log().contains(what).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_tells_of_leaders_members_readiness_and_of_an_orderly_end() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let version = env!("CARGO_PKG_VERSION");
    for number in 0..3 {
        let (name, port) = (cluster.members[number].name.clone(), cluster.members[number].client_port);
        says(&cluster, number, &format!("starts: member {name} of cluster tests, data in")).await;
        says(&cluster, number, &format!("antiphon {version} (commit ")).await;
        says(&cluster, number, &format!("clients on 127.0.0.1:{port}, members on 127.0.0.1:")).await;
        says(&cluster, number, "this member is ready").await;
    }
    let leader_name = cluster.members[leader].name.clone();
    says(&cluster, leader, "this member leads in term").await;
    for number in others {
        says(&cluster, number, &format!("member {leader_name} leads in term")).await;
    }

    cluster.kill(leader);
    let next = eventually("another leads", PATIENCE, async || {
        let seen = cluster.leader_seen_by(others[0]).await?;
        (seen != leader).then_some(seen)
    })
    .await;
    for number in others {
        says(&cluster, number, &format!("member {leader_name} is down")).await;
    }
    // What it told last stays known, so that no alarm on its lag fires with nonsense.
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[next].url());
    let view = cluster.client.get(&url).await.expect("the cluster");
    let shown = view["members"].as_array().expect("members").iter().find(|shown| shown["id"] == *leader_name);
    let shown = shown.expect("the member that is down");
    assert_eq!((&shown["state"], &shown["version"]), (&"down".into(), &version.into()), "{view}");
    assert!(shown["applied"].as_u64() > Some(0), "{view}");
    let last = others.into_iter().find(|number| *number != next).expect("there are three");
    cluster.kill(last);
    says(&cluster, next, "a majority of the voters does not answer it").await;
    says(&cluster, next, "this member is not ready any more: no_leader").await;
    cluster.spawn(last);
    cluster.wait_ready(next).await;
    cluster.restart(leader).await;

    // Whoever leads has most to let go of.
    let next = cluster.leader().await;
    let before = cluster.members[next].log().len();
    assert!(cluster.members[next].terminate().await.success());
    let log = cluster.members[next].log();
    let lines: Vec<&str> = log[before..].lines().collect();
    assert!(lines.first().is_some_and(|line| line.contains("SIGTERM")), "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.ends_with("stopped")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("ERROR")), "{lines:?}");
}
