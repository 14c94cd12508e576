//! Members that lose their disk, directories that come back, and processes under a name that is taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Cluster, PATIENCE, eventually, free_ports};
use crate::oracle::{Fate, Oracle, more_acks};
use crate::snapshot::{FORGETFUL, all_agree, read_all, took_over, write, write_until_it_is_forgotten};
use crate::start::{names, refusal, with_flag};
use crate::writers::Writers;

/// The old id must have been down for 10 s; then the new one catches up.
const HEAL_LIMIT: Duration = Duration::from_secs(40);
/// Longer than it takes to replace a member: what has not happened by then does not happen.
const LONG: Duration = Duration::from_secs(14);
const ACKS: usize = 100;

fn identity(dir: &Path) -> BTreeMap<String, String> {
    // A process that has only just been started has none yet.
    let text = fs::read_to_string(dir.join("identity")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Kills a member and takes its directory away; says where it is now.
fn lose_disk(cluster: &mut Cluster, number: usize, aside: &str) -> PathBuf {
    cluster.kill(number);
    let dir = &cluster.members[number].data_dir;
    let aside = dir.with_extension(aside);
    fs::rename(dir, &aside).expect("move the directory aside");
    aside
}

/// Roles by member, as member `number` sees them.
async fn roles(cluster: &Cluster, number: usize) -> Option<BTreeMap<String, String>> {
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[number].url());
    let view = cluster.client.get(&url).await.ok()?;
    let members = view["members"].as_array()?.iter();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    members.map(|member| Some((text(&member["id"])?, text(&member["role"])?))).collect()
}

/// Waits until all members are ready, and all see three that vote.
async fn all_vote(cluster: &mut Cluster) {
    for number in 0..3 {
        let what = format!("m{} sees three voters", number + 1);
        eventually(&what, HEAL_LIMIT, async || {
            assert!(cluster.members[number].is_running(), "m{} ended", number + 1);
            let roles = roles(cluster, number).await?;
            let voters = roles.values().filter(|role| *role != "learner").count();
            (roles.len() == 3 && voters == 3).then_some(())
        })
        .await;
    }
    cluster.wait_all_ready().await;
}

/// C-CLU-07, C-MEMB-02, C-MEMB-03: whoever it is, under load.
#[tokio::test]
async fn a_member_that_lost_its_disk_heals_by_itself() {
    let mut cluster = Cluster::start(3).await;
    let mut lost = Vec::new();
    for round in 0..3 {
        let leader = cluster.leader().await;
        let victim = match round {
            0 => (1..3).find(|number| *number != leader).expect("one of two does not lead"),
            1 => leader,
            // The first of the static list is the one that founds; it must not found anew.
            _ => 0,
        };
        let before = identity(&cluster.members[victim].data_dir);
        let oracle = Arc::new(Oracle::new(&format!("lost-{round}")));
        let writers = Writers::start(&oracle, &cluster.urls());
        more_acks(&oracle, ACKS, PATIENCE).await;

        lost.push((victim, lose_disk(&mut cluster, victim, &format!("lost{round}"))));
        cluster.spawn(victim);
        let name = cluster.members[victim].name.clone();
        let other = (victim + 1) % 3;
        eventually("it has a new id that votes", HEAL_LIMIT, async || {
            let seen = roles(&cluster, victim).await?;
            let seen_by_other = roles(&cluster, other).await?;
            let votes =
                |roles: &BTreeMap<String, String>| roles.get(&name).is_some_and(|role| role != "learner");
            (votes(&seen) && votes(&seen_by_other)).then_some(())
        })
        .await;
        all_vote(&mut cluster).await;
        more_acks(&oracle, ACKS, PATIENCE).await;
        writers.finish().await;
        println!("m{} is back: {}", victim + 1, oracle.check(&mut cluster).await);

        let after = identity(&cluster.members[victim].data_dir);
        assert_ne!(after["node_id"], before["node_id"], "a blank directory has an id of its own");
        assert_eq!(after["cluster_id"], before["cluster_id"], "no other cluster was founded");
    }

    // What is replaced never comes back, also where the place itself has been lost again.
    for (number, aside) in lost {
        cluster.kill(number);
        let command = with_flag(&cluster.command(number), "--data-dir", aside.to_str().expect("is UTF-8"));
        let name = cluster.members[number].name.clone();
        names(&refusal(command).await, &[&name, "took this one's place", "move this one aside"]);
        cluster.restart(number).await;
    }
    all_vote(&mut cluster).await;
    // The newcomers count: any two are a quorum.
    for number in 0..3 {
        cluster.kill(number);
        eventually("the other two take writes", PATIENCE, async || {
            cluster.append((number + 1) % 3, "after", json!(number)).await.is(200).then_some(())
        })
        .await;
        cluster.restart(number).await;
    }
}

/// The same when the logs of the others do not reach back to the beginning.
#[tokio::test]
async fn a_member_that_lost_its_disk_takes_over_what_the_logs_have_forgotten() {
    let mut cluster = Cluster::start_with(3, &FORGETFUL).await;
    write(&mut cluster, "before", 30).await;
    write_until_it_is_forgotten(&mut cluster, "while").await;
    let victim = cluster.follower().await;
    lose_disk(&mut cluster, victim, "lost");
    cluster.spawn(victim);
    write(&mut cluster, "after", 30).await;
    eventually("the others let it in", HEAL_LIMIT, async || {
        cluster.members[victim].log().contains("taking over the state").then_some(())
    })
    .await;
    took_over(&cluster, victim, 1).await;
    all_vote(&mut cluster).await;
    all_agree(&cluster).await;
    let other = (victim + 1) % 3;
    for topic in ["before", "while", "after"] {
        assert_eq!(
            read_all(&cluster, victim, topic).await,
            read_all(&cluster, other, topic).await,
            "{topic}"
        );
    }
}

/// Restarted as what it was, a member is never replaced, however long it was away.
#[tokio::test]
async fn a_second_process_under_a_live_name_ends_and_harms_nobody() {
    let mut cluster = Cluster::start(3).await;
    cluster.append(0, "t", json!(1)).await.expect("append");
    let ids: Vec<_> = (0..3).map(|number| identity(&cluster.members[number].data_dir)).collect();
    for number in [0, 1] {
        let ports = free_ports(2);
        let dir = cluster.members[number].data_dir.with_extension("second");
        let command = with_flag(&cluster.command(number), "--port", &ports[0].to_string());
        let command = with_flag(&command, "--peer-listen", &format!("127.0.0.1:{}", ports[1]));
        let command = with_flag(&command, "--data-dir", dir.to_str().expect("is UTF-8"));
        let name = cluster.members[number].name.clone();
        names(&refusal(command).await, &[&name, "is alive", "--member"]);
    }
    all_vote(&mut cluster).await;
    let late = cluster.follower().await;
    cluster.kill(late);
    tokio::time::sleep(LONG).await;
    cluster.restart(late).await;
    all_vote(&mut cluster).await;
    for (number, before) in ids.iter().enumerate() {
        assert_eq!(identity(&cluster.members[number].data_dir), *before, "m{}", number + 1);
        let page = cluster.diff(number, "t", "strong").await.expect("a strong read");
        assert_eq!(page["head_seq"], json!(1));
    }
}

/// Two of three are more than can be borne: nothing goes on, nothing is founded, what survives stays.
#[tokio::test]
async fn two_lost_disks_of_three_stop_the_cluster_and_found_no_other() {
    let mut cluster = Cluster::start_with(3, &["--request-timeout-ms", "2000"]).await;
    let oracle = Oracle::new("survivor");
    let survivor = 2;
    let url = cluster.members[survivor].url();
    let acked = oracle.append(&cluster.client, &[&url], "before", 5, false).await;
    assert!(matches!(acked, Fate::Acked { .. }), "{acked:?}");
    // Two have acked it; what the third does not have yet would be lost with them.
    eventually("the survivor has it too", PATIENCE, async || {
        let page = cluster.diff(survivor, "survivor", "eventual").await.ok()?;
        (page["head_seq"] == json!(5)).then_some(())
    })
    .await;
    let before = identity(&cluster.members[survivor].data_dir);

    for number in [0, 1] {
        lose_disk(&mut cluster, number, "lost");
        cluster.spawn(number);
    }
    for number in [0, 1] {
        eventually("a blank member finds a cluster without a leader", PATIENCE, async || {
            cluster.members[number].log().contains("has no leader that could let it in").then_some(())
        })
        .await;
    }
    tokio::time::sleep(LONG).await;
    for number in 0..3 {
        let name = &cluster.members[number].name;
        let reply = cluster.append(number, "survivor", json!("more")).await;
        assert!(reply.is(503), "{name} takes a write: {reply:?}");
    }
    let page = cluster.diff(survivor, "survivor", "eventual").await.expect("an eventual read");
    assert_eq!(page["head_seq"], json!(5), "{page}");
    let state = digest(&cluster, survivor).await.expect("the survivor's digest");

    // The blank ones meet while the survivor is away: they cannot know that there was a cluster.
    cluster.kill(survivor);
    cluster.kill(0);
    cluster.spawn(0);
    eventually("the first of the list waits for the third", PATIENCE, async || {
        cluster.members[0].log().contains("not founded yet: member m3 at").then_some(())
    })
    .await;
    cluster.spawn(survivor);
    eventually("the first of the list finds the cluster again", PATIENCE, async || {
        let log = cluster.members[0].log();
        (log.matches("this one founds no other").count() == 2).then_some(())
    })
    .await;
    eventually("the survivor has what it had", PATIENCE, async || {
        (digest(&cluster, survivor).await? == state).then_some(())
    })
    .await;
    assert_eq!(identity(&cluster.members[survivor].data_dir), before);
    for number in [0, 1] {
        assert_eq!(identity(&cluster.members[number].data_dir)["cluster_id"], "none", "m{}", number + 1);
        assert!(cluster.members[number].is_running(), "m{} ended", number + 1);
    }
}

/// What member `number` has applied, and the digest of it.
async fn digest(cluster: &Cluster, number: usize) -> Option<(serde_json::Value, serde_json::Value)> {
    let url = format!("{}/v0/cluster?consistency=eventual", cluster.members[number].url());
    let view = cluster.client.get(&url).await.ok()?;
    Some((view["applied"].clone(), view["digest"].clone()))
}
