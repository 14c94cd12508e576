//! What the log says at the moments that matter.

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, SECRET, eventually, free_ports};

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
        says(&cluster, number, "cluster_secret=(hidden)").await;
        says(&cluster, number, "the cluster is m1 (voter, 127.0.0.1:").await;
        assert!(!cluster.members[number].log().contains(SECRET));
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

/// C-AUTH-09, C-MIRROR-02: what a client has changed, and what it was refused, is told with the place of its key in the setting, and no secret ever is.
#[tokio::test]
async fn the_log_tells_who_changed_what_and_who_was_refused() {
    const KEYS: &str = "hunter1, hunter2:r";
    const TOKEN: &str = "hunter3";
    let cluster = Cluster::start_with(
        1,
        &["--api-keys", KEYS, "--connector-allow", "127.0.0.0/8", "--max-topics", "77"],
    )
    .await;
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let send = async |key: &str, method: &str, path: &str, body: Value| {
        let method = method.parse().expect("a method");
        let url = format!("{}{path}", cluster.members[0].url());
        let request = http.request(method, url).bearer_auth(key).header("content-type", "application/json");
        request.body(body.to_string()).send().await.expect("an answer").status().as_u16()
    };
    let remote = format!("http://127.0.0.1:{}", free_ports(1)[0]);
    let mirror = json!({ "source": "far", "dest": "near", "remote": { "urls": [remote], "token": TOKEN } });
    let full = json!({ "records": [{ "data": 1 }, { "data": 2 }] });
    for (method, path, body, status) in [
        ("PUT", "/v0/topics/told", json!({}), 201),
        ("PUT", "/v0/topics/told", json!({ "ttl_ms": 1_000_000 }), 200),
        ("PUT", "/v0/topics/told", json!({ "ttl_ms": 1_000_000 }), 200),
        ("PUT", "/v0/topics/full", json!({ "cap_records": 1, "discard": "reject" }), 201),
        ("POST", "/v0/topics/told", full, 200),
        ("POST", "/v0/topics/appended", json!({ "records": [{ "data": 1 }] }), 201),
        (
            "PUT",
            "/v0/routers/told-router",
            json!({ "source": "told", "dest": "full", "start": "earliest" }),
            201,
        ),
        ("PUT", "/v0/routers/told-mirror", mirror, 201),
        ("POST", "/v0/routers/told-mirror/pause", json!({}), 200),
        ("POST", "/v0/routers/told-mirror/pause", json!({}), 200),
        ("POST", "/v0/routers/told-mirror/resume", json!({}), 200),
    ] {
        assert_eq!(send("hunter1", method, path, body).await, status, "{method} {path}");
    }
    for line in [
        "the cluster is m1 (voter, ",
        r#"key 1 (read+write+delete+admin) from 127.0.0.1 made topic "told""#,
        r#"from 127.0.0.1 configured topic "told""#,
        r#"key 1 (read+write+delete+admin) from 127.0.0.1 made topic "appended" by an append"#,
        r#"made router "told-router" from "told" to "full""#,
        r#"made router "told-mirror" from "far" of another cluster to "near""#,
        r#"paused router "told-mirror""#,
        r#"resumed router "told-mirror""#,
        r#"router "told-router" is blocked: topic_full"#,
        r#"router "told-mirror" is retrying: unreachable"#,
    ] {
        says(&cluster, 0, line).await;
    }
    // There is room again.
    assert_eq!(
        send("hunter1", "PUT", "/v0/topics/full", json!({ "cap_records": 9, "discard": "reject" })).await,
        200
    );
    says(&cluster, 0, r#"router "told-router" runs again"#).await;
    assert_eq!(send("hunter1", "POST", "/v0/topics/told/delete", json!({ "before_seq": 2 })).await, 200);
    assert_eq!(send("hunter1", "DELETE", "/v0/routers/told-mirror", json!({})).await, 200);
    assert_eq!(send("hunter1", "DELETE", "/v0/routers/told-mirror", json!({})).await, 200);
    assert_eq!(send("hunter1", "DELETE", "/v0/topics/told", json!({})).await, 200);
    assert_eq!(send("hunter2", "PUT", "/v0/topics/told", json!({})).await, 403);
    for _ in 0..20 {
        assert_eq!(send("hunter4", "GET", "/v0/topics", json!({})).await, 401);
    }
    for line in [
        r#"deleted 1 records of topic "told""#,
        r#"deleted router "told-mirror""#,
        r#"deleted topic "told", and 1 routers that named it"#,
        r#"refused with forbidden: key 2 (read) from 127.0.0.1: the key has no admin right on "told""#,
        "refused with unauthorized: a request from 127.0.0.1: the key is not known",
    ] {
        says(&cluster, 0, line).await;
    }
    let log = cluster.members[0].log();
    let lines_with = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    assert!(lines_with("refused with unauthorized") <= 2, "one in ten seconds: {log}");
    assert_eq!(
        lines_with(r#"deleted router "told-mirror""#),
        1,
        "what was gone was not deleted again: {log}"
    );
    says(&cluster, 0, "19 more within ").await;
    for (part, changes) in [(r#"configured topic "told""#, 1), (r#"paused router "told-mirror""#, 1)] {
        assert_eq!(lines_with(part), changes, "what was so already was not changed: {log}");
    }
    assert_eq!(lines_with("settings: "), 1, "{log}");
    assert_eq!(lines_with("max_topics=77"), 1, "{log}");
    assert_eq!(lines_with("api_keys=(hidden)"), 1, "{log}");
    assert!(!log.contains("hunter"), "{log}");
}
