//! Members that come back at another address, and one that no other reaches.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, eventually, free_ports};
use crate::link::Link;
use crate::start::with_flag;

/// A list as `--members` takes it.
fn list(cluster: &Cluster, ports: &[u16]) -> String {
    let entry = |(member, port): (&crate::harness::Member, &u16)| format!("{}=127.0.0.1:{port}", member.name);
    cluster.members.iter().zip(ports).map(entry).collect::<Vec<_>>().join(",")
}

async fn says(cluster: &Cluster, number: usize, what: &str) {
    eventually(&format!("m{} says {what:?}", number + 1), PATIENCE, async || {
        cluster.members[number].log().contains(what).then_some(())
    })
    .await;
}

/// The whole cluster moves at once: nobody is where the membership has it, only the list knows better. Afterwards
/// the membership does, and a list that is older than it is not followed in silence.
#[tokio::test]
async fn a_cluster_that_is_started_with_a_new_list_of_addresses_finds_itself() {
    let mut cluster = Cluster::start(3).await;
    cluster.append(0, "t", json!("before")).await.expect("append");
    let old_ports: Vec<u16> = cluster.members.iter().map(|member| member.peer_port).collect();
    for member in &mut cluster.members {
        member.terminate().await;
    }
    let new_ports = free_ports(3);
    for (member, port) in cluster.members.iter_mut().zip(&new_ports) {
        member.peer_port = *port;
    }
    (0..3).for_each(|number| cluster.spawn(number));
    cluster.wait_all_ready().await;
    cluster.append(1, "t", json!("after")).await.expect("append");
    for port in new_ports {
        eventually("a leader writes the new address down", PATIENCE, async || {
            let line = format!("is reached by members at 127.0.0.1:{port} and");
            cluster.members.iter().any(|member| member.log().contains(&line)).then_some(())
        })
        .await;
    }

    // One of them is started with the list of yesterday: it is where it is, and finds the others.
    let stale = cluster.follower().await;
    cluster.kill(stale);
    let other = (stale + 1) % 3;
    let mut ports = old_ports.clone();
    ports[stale] = cluster.members[stale].peer_port;
    let command = with_flag(&cluster.command(stale), "--members", &list(&cluster, &ports));
    cluster.spawn_as(stale, command);
    cluster.wait_ready(stale).await;
    let (name, port) = (&cluster.members[other].name, cluster.members[other].peer_port);
    says(&cluster, stale, "--members is not followed").await;
    says(&cluster, stale, &format!("knows {name} at 127.0.0.1:{port}, and the list has it at")).await;
}

/// A member that moves alone is found, and so is one that only believes that it has.
#[tokio::test]
async fn a_member_that_moves_is_found_and_one_that_says_so_wrongly_stays_where_it_is() {
    let mut cluster = Cluster::start(3).await;
    let moving = cluster.follower().await;
    cluster.kill(moving);
    let free = free_ports(2);
    let old_port = std::mem::replace(&mut cluster.members[moving].peer_port, free[0]);
    cluster.restart(moving).await;
    cluster.append(moving, "t", json!(1)).await.expect("append");
    eventually("the leader writes the new address down", PATIENCE, async || {
        let line = format!("is reached by members at 127.0.0.1:{} and", free[0]);
        cluster.members.iter().any(|member| member.log().contains(&line)).then_some(())
    })
    .await;

    // Its list names a port at which nobody listens.
    cluster.kill(moving);
    let mut ports: Vec<u16> = cluster.members.iter().map(|member| member.peer_port).collect();
    ports[moving] = free[1];
    let command = with_flag(&cluster.command(moving), "--members", &list(&cluster, &ports));
    cluster.spawn_as(moving, command);
    cluster.wait_ready(moving).await;
    let leader = cluster.leader().await;
    says(&cluster, leader, &format!("says that other members reach it at 127.0.0.1:{}", free[1])).await;
    cluster.append(moving, "t", json!(2)).await.expect("append");
    assert!(
        !cluster.members[leader].log().contains(&format!("at 127.0.0.1:{old_port} and")),
        "never there again"
    );
}

/// C-OPS-02, C-OPS-04: what a member hears of the others says nothing of whether they reach it.
#[tokio::test]
async fn a_member_that_hears_all_and_is_reached_by_none_is_not_ready_and_ends_its_streams() {
    const SOON: Duration = Duration::from_secs(5);
    let mut cluster = Cluster::start_with(3, &["--request-timeout-ms", "2000"]).await;
    // All others reach it over a link that can be cut, and it reaches them without.
    let cut = cluster.follower().await;
    let other = (cut + 1) % 3;
    let link = Link::to(cluster.members[cut].peer_port).await;
    let mut ports: Vec<u16> = cluster.members.iter().map(|member| member.peer_port).collect();
    ports[cut] = link.port;
    for number in 0..3 {
        cluster.members[number].terminate().await;
        let command = with_flag(&cluster.command(number), "--members", &list(&cluster, &ports));
        cluster.spawn_as(number, command);
    }
    cluster.wait_all_ready().await;
    eventually("the leader writes the address of the link down", PATIENCE, async || {
        let line = format!("is reached by members at 127.0.0.1:{} and", link.port);
        cluster.members.iter().any(|member| member.log().contains(&line)).then_some(())
    })
    .await;
    // Their connections may be older than that address; whoever starts now knows no other. And whoever leads
    // reaches itself.
    for number in [other, (cut + 2) % 3, cut] {
        if number == cut && cluster.leader().await != cut {
            break;
        }
        cluster.members[number].terminate().await;
        let command = with_flag(&cluster.command(number), "--members", &list(&cluster, &ports));
        cluster.spawn_as(number, command);
        cluster.wait_ready(number).await;
    }
    assert_ne!(cluster.leader().await, cut);
    let url = cluster.members[cut].url();
    cluster.append(cut, "t", json!("before")).await.expect("append");
    let body = json!({ "topics": { "t": { "from_seq": 0 } }, "heartbeat_ms": 1000 });
    let made = cluster.client.post(&format!("{url}/v0/watch"), &body).await.expect("make a watch");
    let session = made["stream_url"].as_str().expect("a path").to_owned();
    let http = reqwest::Client::builder().no_proxy().build().expect("build a client");
    let mut stream = http.get(format!("{url}{session}")).send().await.expect("open the stream");
    link.cut();
    cluster.append(other, "t", json!("unheard of")).await.expect("append");

    let ready = format!("{url}/v0/ready");
    let not_ready = eventually("it is not ready", SOON, async || {
        let reply = cluster.client.get(&ready).await;
        reply.is(503).then_some(reply)
    })
    .await;
    assert_eq!(not_ready.code(), "not_ready");
    assert!(cluster.diff(cut, "t", "strong").await.is(503));
    // Nor does it become so again meanwhile.
    let began = Instant::now();
    let mut told = String::new();
    let ending = async {
        while let Ok(Some(chunk)) = stream.chunk().await {
            told.push_str(std::str::from_utf8(&chunk).expect("is text"));
            assert!(cluster.client.get(&ready).await.is(503), "ready after {:?}", began.elapsed());
        }
    };
    tokio::time::timeout(PATIENCE, ending).await.expect("the stream ends");
    let error =
        told.split("\n\n").find_map(|frame| frame.strip_prefix("event: error\ndata: ")).expect("an error");
    let error: Value = serde_json::from_str(error).expect("is JSON");
    assert_eq!((&error["code"], &error["error"]), (&json!(503), &json!("no_leader")));
    says(&cluster, cut, "this member is not ready any more: no_leader").await;

    link.heal();
    cluster.wait_ready(cut).await;
    let page = cluster.diff(cut, "t", "strong").await.expect("a strong read");
    assert_eq!(page["head_seq"], json!(2));
}
