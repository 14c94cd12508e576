//! Section 16: what mirrors bring from another cluster. Networks of clusters that fail are in `tests/cluster/mirrors.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use antiphon::engine::{Ask, PullQuery, Sources};
use antiphon::router::PullRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Cluster, PATIENCE, eventually, free_ports};
use crate::routing::{arrives, data, numbers, plain, read, shows, write};
use crate::shared::{Api, LOOPBACK, api, client, got, other};

/// A remote that is asked with this key.
fn remote(of: &Api, token: &str) -> Value {
    json!({ "urls": of.urls, "token": token })
}

/// Has `api` pull `source` of the cluster that `fields` name into `dest`.
async fn mirror(api: &Api, router: &str, source: &str, dest: &str, fields: Value) {
    let mut config = json!({ "source": source, "dest": dest });
    for (field, value) in fields.as_object().expect("an object") {
        config[field] = value.clone();
    }
    let put = api.put(&format!("/v0/routers/{router}"), config).await;
    assert!(put.status == 201 || put.status == 200, "{}", put.body);
}

/// Waits until a router shows this error, in this state.
async fn fails(api: &Api, router: &str, state: &str, code: &str) -> Value {
    eventually(&format!("{router} shows {state}, {code}"), PATIENCE, async || {
        let shown = api.get(&format!("/v0/routers/{router}")).await.expect(200);
        (shown["state"] == state && shown["last_error"]["code"] == code).then_some(shown)
    })
    .await
}

/// C-MIRROR-01
#[tokio::test]
async fn any_of_the_addresses_will_do() {
    let (api, other) = (api().await, other().await);
    write(&other, "mirror-urls", plain(numbers(1..=3))).await;
    let nobody = format!("http://127.0.0.1:{}", free_ports(1)[0]);
    let urls = json!([nobody, format!("{}/", other.urls[0]), nobody]);
    let remote = json!({ "urls": urls, "token": "reader" });
    mirror(&api, "mirror-urls", "mirror-urls", "mirror-urls", json!({ "remote": remote })).await;
    arrives(&api, "mirror-urls", &numbers(1..=3)).await;
    let shown = shows(&api, "mirror-urls", "running", 0).await;
    assert_eq!((&shown["last_error"], &shown["forwarded_total"]), (&json!(null), &json!(3)));
    let urls = json!([nobody, other.urls[0], nobody]);
    assert_eq!(shown["remote"], json!({ "urls": urls, "token": "***" }));
}

/// C-MIRROR-03
#[tokio::test]
async fn a_mirror_needs_a_token_that_may_read() {
    let (api, other) = (api().await, other().await);
    write(&other, "mirror-key", plain(numbers(1..=2))).await;
    write(&other, "other:mirror-key", plain(numbers(1..=2))).await;
    for (token, code) in [("nobody", "unauthorized"), ("writer", "forbidden"), ("half", "forbidden")] {
        mirror(&api, "mirror-key", "mirror-key", "mirror-key", json!({ "remote": remote(&other, token) }))
            .await;
        let shown = fails(&api, "mirror-key", "blocked", code).await;
        assert!(!shown.to_string().contains(token), "{shown}");
    }
    // What is bound to a beginning of names may read what begins so, and no more.
    mirror(&api, "mirror-key-all", "o*", "*", json!({ "remote": remote(&other, "half") })).await;
    fails(&api, "mirror-key-all", "blocked", "forbidden").await;
    mirror(&api, "mirror-key-some", "other:mirror-k*", "*", json!({ "remote": remote(&other, "half") }))
        .await;
    arrives(&api, "other:mirror-key", &numbers(1..=2)).await;
    mirror(&api, "mirror-key", "mirror-key", "mirror-key", json!({ "remote": remote(&other, "reader") }))
        .await;
    arrives(&api, "mirror-key", &numbers(1..=2)).await;
    assert_eq!(shows(&api, "mirror-key", "running", 0).await["last_error"], json!(null));
}

/// C-MIRROR-03: whoever writes says what the record holds, and nothing else.
#[tokio::test]
async fn an_ordinary_write_has_no_origin() {
    let api = api().await;
    let forged = json!({ "cluster": "other", "topic": "t", "seq": 1, "ts": 1 });
    let record = json!({ "data": 1, "$origin": forged, "origin": forged });
    let written = api.post("/v0/topics/mirror-forged", json!({ "records": [record] })).await;
    if written.status < 300 {
        let (records, _) = read(&api, "mirror-forged").await;
        assert!(records[0].get("$origin").is_none(), "{records:?}");
    }
}

/// C-MIRROR-04, C-MIRROR-06
#[tokio::test]
async fn topics_that_appear_later_are_mirrored_from_their_first_record() {
    let (api, other) = (api().await, other().await);
    write(&other, "mirror-pre:old", plain(numbers(1..=4))).await;
    other.put("/v0/topics/mirror-pre:queue", json!({ "type": "queue", "cap_records": 9 })).await.expect(201);
    write(&other, "mirror-pre:queue", plain(numbers(1..=1))).await;
    // `latest` is about topics that are there already.
    for (router, source, start) in
        [("mirror-pre", "mirror-pre:*", "earliest"), ("mirror-late", "mirror-late:*", "latest")]
    {
        let fields = json!({ "remote": remote(&other, "reader"), "start": start });
        mirror(&api, router, source, "*", fields).await;
    }
    arrives(&api, "mirror-pre:old", &numbers(1..=4)).await;
    arrives(&api, "mirror-pre:queue", &numbers(1..=1)).await;
    let made = api.topic("mirror-pre:queue").await.expect(200);
    assert_eq!((&made["config"]["type"], &made["config"]["cap_records"]), (&json!("queue"), &json!(0)));
    for topic in ["mirror-pre:new", "mirror-late:new"] {
        write(&other, topic, plain(numbers(1..=5))).await;
        arrives(&api, topic, &numbers(1..=5)).await;
    }
    api.topic("mirror-pre").await.refused(404, "topic_not_found");
}

/// C-ROUTE-02 of mirrors: section 15.1, `start`.
#[tokio::test]
async fn a_mirror_starts_where_it_is_told() {
    let (api, other) = (api().await, other().await);
    write(&other, "mirror-start", plain(numbers(1..=4))).await;
    for (start, first) in [(json!("latest"), 5), (json!("earliest"), 1), (json!({ "seq": 2 }), 3)] {
        let dest = format!("mirror-start-{first}");
        let fields = json!({ "remote": remote(&other, "reader"), "start": start });
        mirror(&api, &dest, "mirror-start", &dest, fields).await;
        eventually("the mirror has begun", PATIENCE, async || {
            (api.topic(&dest).await.status == 200).then_some(())
        })
        .await;
    }
    write(&other, "mirror-start", plain(numbers(5..=6))).await;
    for first in [1, 3, 5] {
        let dest = format!("mirror-start-{first}");
        arrives(&api, &dest, &numbers(first..=6)).await;
        assert!(read(&api, &dest).await.1.is_empty(), "what was not asked for is no gap");
    }
}

/// C-ROUTE-02, C-MIRROR-06: what a mirror was to begin with does not depend on when its topic could be made.
#[tokio::test]
async fn a_mirror_of_the_latest_does_not_begin_anew_when_its_topic_is_made() {
    let (api, other) = (api().await, other().await);
    write(&other, "mirror-refused:t", plain(numbers(1..=4))).await;
    let fields = json!({ "remote": remote(&other, "reader"), "start": "latest", "create_dest": false });
    mirror(&api, "mirror-refused", "mirror-refused:*", "*", fields).await;
    let refused = fails(&api, "mirror-refused", "blocked", "topic_not_found").await;
    // Also while there is nothing to copy: it is tried again, and says so again.
    eventually("it is tried again", PATIENCE, async || {
        let again = fails(&api, "mirror-refused", "blocked", "topic_not_found").await;
        (again["last_error"]["ts"] != refused["last_error"]["ts"]).then_some(())
    })
    .await;
    write(&other, "mirror-refused:t", plain(numbers(5..=6))).await;
    api.put("/v0/topics/mirror-refused:t", json!({})).await.expect(201);
    arrives(&api, "mirror-refused:t", &numbers(5..=6)).await;
    assert!(read(&api, "mirror-refused:t").await.1.is_empty(), "what was not asked for is no gap");
    shows(&api, "mirror-refused", "running", 0).await;
}

/// C-MIRROR-06
#[tokio::test]
async fn a_source_that_is_absent_is_waited_for_and_never_made() {
    let (api, other) = (api().await, other().await);
    let fields = json!({ "remote": remote(&other, "reader") });
    mirror(&api, "mirror-wait", "mirror-wait", "mirror-wait-here", fields).await;
    fails(&api, "mirror-wait", "retrying", "topic_not_found").await;
    other.topic("mirror-wait").await.refused(404, "topic_not_found");
    api.topic("mirror-wait").await.refused(404, "topic_not_found");
    write(&other, "mirror-wait", plain(numbers(1..=2))).await;
    arrives(&api, "mirror-wait-here", &numbers(1..=2)).await;
    assert_eq!(shows(&api, "mirror-wait", "running", 0).await["last_error"], json!(null));
}

/// C-MIRROR-12, C-MIRROR-06, C-ROUTE-14
#[tokio::test]
async fn a_blocked_topic_does_not_stop_the_others() {
    let (api, other) = (api().await, other().await);
    api.put("/v0/topics/mirror-some:full", json!({ "cap_records": 2, "discard": "reject" }))
        .await
        .expect(201);
    api.put("/v0/topics/mirror-some:free", json!({})).await.expect(201);
    for topic in ["mirror-some:absent", "mirror-some:free", "mirror-some:full"] {
        write(&other, topic, plain(numbers(1..=4))).await;
    }
    let fields = json!({ "remote": remote(&other, "reader"), "create_dest": false });
    mirror(&api, "mirror-some", "mirror-some:*", "*", fields.clone()).await;
    for number in 5..=8u64 {
        arrives(&api, "mirror-some:free", &numbers(1..=number - 1)).await;
        write(&other, "mirror-some:free", plain(numbers(number..=number))).await;
    }
    arrives(&api, "mirror-some:full", &numbers(1..=2)).await;
    let shown = eventually("the worst is shown", PATIENCE, async || {
        let shown = api.get("/v0/routers/mirror-some").await.expect(200);
        (shown["state"] == "blocked").then_some(shown)
    })
    .await;
    let code = shown["last_error"]["code"].as_str().expect("a code");
    assert!(["topic_full", "topic_not_found"].contains(&code), "{code}");
    api.post("/v0/topics/mirror-some:full/delete", json!({ "before_seq": 3 })).await.expect(200);
    arrives(&api, "mirror-some:full", &numbers(3..=4)).await;
    // What made the trouble there goes, and the trouble with it.
    other.delete("/v0/topics/mirror-some:absent").await.expect(200);
    write(&other, "mirror-some:free", plain(numbers(9..=9))).await;
    arrives(&api, "mirror-some:free", &numbers(1..=9)).await;
    assert_eq!(shows(&api, "mirror-some", "running", 0).await["last_error"], json!(null));
    api.topic("mirror-some:absent").await.refused(404, "topic_not_found");
}

/// C-MIRROR-12, C-ROUTE-14: none waits until it was asked for all others.
#[tokio::test]
async fn of_many_blocked_topics_one_that_has_room_again_goes_on_soon() {
    const TOPICS: usize = 200;
    let long = json!("x".repeat(70_000));
    let (api, other) = (api().await, other().await);
    for number in 0..TOPICS {
        write(&other, &format!("mirror-many:{number:03}"), plain(vec![long.clone()])).await;
    }
    let fields = json!({ "remote": remote(&other, "reader"), "create_dest": false });
    mirror(&api, "mirror-many", "mirror-many:*", "*", fields).await;
    fails(&api, "mirror-many", "blocked", "topic_not_found").await;
    for number in [TOPICS / 2, TOPICS - 1, 0] {
        let topic = format!("mirror-many:{number:03}");
        api.put(&format!("/v0/topics/{topic}"), json!({})).await.expect(201);
        let begun = Instant::now();
        arrives(&api, &topic, std::slice::from_ref(&long)).await;
        assert!(begun.elapsed().as_secs() < 20, "{number}: {:?}", begun.elapsed());
    }
}

/// C-MIRROR-07, C-MIRROR-08, C-MIRROR-09, C-MIRROR-16: two ways, each with its own order.
#[tokio::test]
async fn what_comes_from_elsewhere_is_labelled_and_never_goes_back() {
    let (api, other) = (api().await, other().await);
    let (here, there) = (remote(&api, "reader"), remote(&other, "reader"));
    mirror(&api, "mirror-both", "mirror-both:*", "*", json!({ "remote": there })).await;
    mirror(&other, "mirror-both", "mirror-both:*", "*", json!({ "remote": here })).await;
    let topic = "mirror-both:t";
    for number in 1..=10u64 {
        let label = if number % 2 == 0 { json!({ "node": "sensor" }) } else { json!({}) };
        for (cluster, base) in [(&api, 100), (&other, 200)] {
            let mut record = json!({ "data": base + number, "tag": "t" });
            if let Some(node) = label.get("node") {
                record["node"] = node.clone();
            }
            write(cluster, topic, json!([record])).await;
        }
    }
    let mut sums = Vec::new();
    for (cluster, own, foreign) in [(&api, 100, ("other", 200)), (&other, 200, ("tests", 100))] {
        let records = eventually("all records are there", PATIENCE, async || {
            let (records, gaps) = read(cluster, topic).await;
            (records.len() >= 20).then_some((records, gaps))
        })
        .await;
        assert!(records.1.is_empty());
        let records = records.0;
        for base in [own, foreign.1] {
            let of_one: Vec<u64> =
                data(&records).iter().filter_map(Value::as_u64).filter(|it| it / 100 * 100 == base).collect();
            assert_eq!(of_one, (base + 1..=base + 10).collect::<Vec<u64>>());
        }
        for record in &records {
            let number = record["data"].as_u64().expect("a number");
            let is_foreign = number / 100 * 100 == foreign.1;
            let label = match (number % 2, is_foreign) {
                (0, _) => json!("sensor"),
                (_, true) => json!(foreign.0),
                _ => Value::Null,
            };
            assert_eq!(record.get("$node").unwrap_or(&Value::Null), &label, "{record}");
            assert_eq!(record["$tag"], "t");
            assert_eq!(record.get("$origin").is_some(), is_foreign);
            if is_foreign {
                assert_eq!(
                    (&record["$origin"]["cluster"], &record["$origin"]["topic"]),
                    (&json!(foreign.0), &json!(topic))
                );
            }
        }
        // Whoever leaves out its own cluster's name sees nothing of its own that went around.
        let name = if own == 100 { "tests" } else { "other" };
        let seen = cluster.diff(topic, json!({ "node": name, "limit": 1000 })).await.expect(200);
        assert_eq!(seen["records"].as_array().map(Vec::len), Some(20));
        let mut origins =
            cluster.get(&format!("/v0/topics/{topic}/origins")).await.expect(200)["origins"].clone();
        let origins = origins.as_array_mut().expect("a list");
        origins.sort_by_key(|origin| origin["cluster"].to_string());
        for origin in origins.iter_mut() {
            origin.as_object_mut().expect("an object").remove("own");
        }
        sums.push(origins.clone());
    }
    assert_eq!(sums[0].len(), 2);
    assert_eq!(sums[0], sums[1]);
    for cluster in [&api, &other] {
        assert_eq!(shows(cluster, "mirror-both", "running", 0).await["forwarded_total"], 10);
    }
}

/// C-MIRROR-07, C-MIRROR-16: over a local router there, the mirror, and a local router here.
#[tokio::test]
async fn an_origin_survives_any_number_of_hops() {
    let (api, other) = (api().await, other().await);
    for (cluster, source, dest) in
        [(&other, "mirror-hop-1", "mirror-hop-2"), (&api, "mirror-hop-3", "mirror-hop-4")]
    {
        cluster
            .put(&format!("/v0/routers/{dest}"), json!({ "source": source, "dest": dest }))
            .await
            .expect(201);
    }
    let fields = json!({ "remote": remote(&other, "reader") });
    mirror(&api, "mirror-hop-3", "mirror-hop-2", "mirror-hop-3", fields.clone()).await;
    let mut bare = fields;
    bare["preserve_node"] = json!(false);
    mirror(&api, "mirror-hop-bare", "mirror-hop-2", "mirror-hop-bare", bare).await;
    write(&other, "mirror-hop-1", json!([{ "data": 1 }, { "data": 2, "node": "n" }])).await;
    let (written, _) = read(&other, "mirror-hop-1").await;
    let copies = arrives(&api, "mirror-hop-4", &numbers(1..=2)).await;
    for (record, copy) in written.iter().zip(&copies) {
        let expected = json!({ "cluster": "other", "topic": "mirror-hop-1", "seq": record["$seq"], "ts": record["$ts"] });
        assert_eq!(copy["$origin"], expected);
    }
    assert_eq!((&copies[0]["$node"], &copies[1]["$node"]), (&json!("other"), &json!("n")));
    let bare = arrives(&api, "mirror-hop-bare", &numbers(1..=2)).await;
    assert!(bare.iter().all(|copy| copy.get("$node").is_none()), "{bare:?}");
}

/// C-MIRROR-13, C-GAP-09
#[tokio::test]
async fn what_was_evicted_there_before_it_was_pulled_is_a_gap_here() {
    let (api, other) = (api().await, other().await);
    other.put("/v0/topics/mirror-gap", json!({ "cap_records": 5 })).await.expect(201);
    let fields = json!({ "remote": remote(&other, "reader") });
    mirror(&api, "mirror-gap", "mirror-gap", "mirror-gap", fields).await;
    write(&other, "mirror-gap", plain(numbers(1..=3))).await;
    arrives(&api, "mirror-gap", &numbers(1..=3)).await;
    api.post("/v0/routers/mirror-gap/pause", json!({})).await.expect(200);
    write(&other, "mirror-gap", plain(numbers(4..=20))).await;
    api.post("/v0/routers/mirror-gap/resume", json!({})).await.expect(200);
    let expected: Vec<Value> = numbers(1..=3).into_iter().chain(numbers(16..=20)).collect();
    arrives(&api, "mirror-gap", &expected).await;
    let (_, gaps) = read(&api, "mirror-gap").await;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let origin = json!({ "cluster": "other", "topic": "mirror-gap", "gap_from": 4, "gap_to": 15 });
    assert_eq!((&gaps[0]["reason"], &gaps[0]["origin"]), (&json!("source_trim"), &origin));
}

/// C-MIRROR-14
#[tokio::test]
async fn a_source_that_is_made_anew_goes_on_as_a_new_one() {
    let (api, other) = (api().await, other().await);
    let fields = json!({ "remote": remote(&other, "reader") });
    mirror(&api, "mirror-anew", "mirror-anew", "mirror-anew", fields).await;
    write(&other, "mirror-anew", plain(numbers(1..=4))).await;
    arrives(&api, "mirror-anew", &numbers(1..=4)).await;
    other.delete("/v0/topics/mirror-anew").await.expect(200);
    write(&other, "mirror-anew", plain(numbers(5..=7))).await;
    arrives(&api, "mirror-anew", &numbers(1..=7)).await;
    assert!(read(&api, "mirror-anew").await.1.is_empty());
    let origins = api.get("/v0/topics/mirror-anew/origins").await.expect(200);
    let counts: Vec<&Value> =
        origins["origins"].as_array().expect("a list").iter().map(|it| &it["records"]).collect();
    assert_eq!(counts, [&json!(0), &json!(4), &json!(3)]);
    // And so does a destination, which then gets everything that is there, once.
    api.delete("/v0/topics/mirror-anew").await.expect(200);
    mirror(&api, "mirror-anew-all", "mirror-ane*", "*", json!({ "remote": remote(&other, "reader") })).await;
    arrives(&api, "mirror-anew", &numbers(5..=7)).await;
    api.delete("/v0/topics/mirror-anew").await.expect(200);
    arrives(&api, "mirror-anew", &numbers(5..=7)).await;
    api.delete("/v0/routers/mirror-anew-all").await.expect(200);
}

/// C-MIRROR-15, C-MIRROR-11
#[tokio::test]
async fn a_remote_that_cannot_be_is_told() {
    let (api, other) = (api().await, other().await);
    let (source, dest) = ("mirror-who", "mirror-who-b");
    write(&api, source, plain(numbers(1..=2))).await;
    mirror(&api, "mirror-who", source, dest, json!({ "remote": remote(&api, "reader") })).await;
    fails(&api, "mirror-who", "blocked", "same_cluster").await;
    let nobody = json!({ "urls": [format!("http://127.0.0.1:{}", free_ports(1)[0])] });
    mirror(&api, "mirror-who", source, dest, json!({ "remote": nobody })).await;
    fails(&api, "mirror-who", "retrying", "unreachable").await;
    let dir = tempfile::tempdir().expect("make a directory");
    let twin = Cluster::start_in(dir, None, 1, &["--api-keys", "all", LOOPBACK[0], LOOPBACK[1]]).await;
    let twin = (Api { urls: twin.urls(), http: client(), key: Some("all") }, twin);
    write(&twin.0, source, plain(numbers(1..=2))).await;
    mirror(&api, "mirror-who", source, dest, json!({ "remote": remote(&twin.0, "all") })).await;
    fails(&api, "mirror-who", "blocked", "same_name").await;
    api.topic(dest).await.refused(404, "topic_not_found");
    // Once it has read one cluster, another one is none that it could go on with.
    write(&other, source, plain(numbers(7..=8))).await;
    mirror(&api, "mirror-who", source, dest, json!({ "remote": remote(&other, "reader") })).await;
    arrives(&api, dest, &numbers(7..=8)).await;
    assert_eq!(shows(&api, "mirror-who", "running", 0).await["last_error"], json!(null));
    let dir = tempfile::tempdir().expect("make a directory");
    let third =
        Cluster::start_named("third", dir, None, 1, &["--api-keys", "all", LOOPBACK[0], LOOPBACK[1]]).await;
    let third = (Api { urls: third.urls(), http: client(), key: Some("all") }, third);
    write(&third.0, source, plain(numbers(1..=9))).await;
    mirror(&api, "mirror-who", source, dest, json!({ "remote": remote(&third.0, "all") })).await;
    fails(&api, "mirror-who", "blocked", "source_diverged").await;
    assert_eq!(data(&read(&api, dest).await.0), numbers(7..=8));
    api.delete("/v0/routers/mirror-who").await.expect(200);
    mirror(&api, "mirror-who", source, dest, json!({ "remote": remote(&third.0, "all") })).await;
    let expected: Vec<Value> = numbers(7..=8).into_iter().chain(numbers(1..=9)).collect();
    arrives(&api, dest, &expected).await;
    api.delete("/v0/routers/mirror-who").await.expect(200);
}

/// C-MIRROR-17, C-MIRROR-03: what is no pull is refused like any other request.
#[tokio::test]
async fn pulls_are_asked_at_the_client_port_with_a_key() {
    let api = api().await;
    let pull = async |key: Option<&'static str>, content_type: &str, body: &'static [u8]| {
        let request =
            api.with_key(key).request("POST", "/v0/mirror/pull").header("content-type", content_type);
        got("POST /v0/mirror/pull".to_owned(), request.body(body)).await
    };
    let binary = "application/octet-stream";
    // What a pull names are names, so that nothing of it is large.
    let asked = |dest: &str, after: &str| {
        let query = PullQuery {
            sources: Sources::Prefix("pulled:".to_owned()),
            wanted: Vec::new(),
            ask: Ask::List { after: after.to_owned() },
            beginning: None,
            filter: None,
            puller_id: 1,
            dest: Some(dest.to_owned()),
            wait_ms: 0,
            max_bytes: 1,
        };
        let puller = antiphon::state::Cluster { id: 1, name: "elsewhere".to_owned() };
        &*PullRequest { puller, query }.encode().to_vec().leak()
    };
    let long = "a".repeat(256);
    pull(Some("reader"), binary, asked("dest", "pulled:a")).await.expect(200);
    pull(Some("reader"), binary, asked(&long, "pulled:a")).await.refused(400, "invalid_request");
    pull(Some("reader"), binary, asked("dest", &long)).await.refused(400, "invalid_request");
    pull(None, binary, &[1]).await.refused(401, "unauthorized");
    for body in [&b""[..], &[1], &[200, 1, 2, 3], &[1; 64], &[255; 64]] {
        pull(Some("reader"), binary, body).await.refused(400, "invalid_request");
    }
    static TOO_MUCH: [u8; (1 << 20) + 1] = [3; (1 << 20) + 1];
    pull(Some("reader"), binary, &TOO_MUCH).await.refused(413, "payload_too_large");
    pull(Some("reader"), "application/json", b"{}").await.refused(415, "unsupported_media_type");
}

/// Answers every pull with the same page of a list that goes on; counts the pulls.
async fn list_that_goes_on(listener: TcpListener, pulls: Arc<AtomicUsize>) {
    let names: Vec<String> = (0..1000).map(|number| format!("n{number:04}")).collect();
    let mut body = vec![3];
    body.extend(77u128.to_le_bytes());
    body.extend(b"\x05there");
    // No instances, the next epoch, and a list.
    body.extend([0, 10, 1]);
    body.extend(9u64.to_le_bytes());
    // What changed behind 1 has to be asked for; 1000 topics, each of epoch 1 and with one record.
    body.extend([1, 0xe8, 7]);
    names.iter().for_each(|name| body.extend([b"\x05", name.as_bytes(), &[1, 1]].concat()));
    body.extend(b"\x01\x05n0999");
    // It has looked at one topic, and says nothing of any.
    body.extend([1, 0]);
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let (body, pulls) = (body.clone(), pulls.clone());
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while stream.read_buf(&mut taken).await.is_ok_and(|count| count > 0) {
                let Some(end) = taken.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&taken[..end]).to_lowercase();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                if taken.len() < end + 4 + length.unwrap_or(0) {
                    continue;
                }
                taken.clear();
                pulls.fetch_add(1, Ordering::SeqCst);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// C-MIRROR-18
#[tokio::test]
async fn a_list_without_end_is_told_and_bounded() {
    let api = api().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let urls = json!([format!("http://{}", listener.local_addr().expect("an address"))]);
    let pulls = Arc::new(AtomicUsize::new(0));
    let remote = tokio::spawn(list_that_goes_on(listener, pulls.clone()));
    let fields = json!({ "remote": { "urls": urls }, "create_dest": false });
    mirror(&api, "mirror-endless", "n*", "*", fields).await;
    let shown = fails(&api, "mirror-endless", "retrying", "source_damaged").await;
    assert!(shown["lag"].as_u64().is_some_and(|lag| lag <= 1000), "{shown}");
    // It is asked again, and not at full speed.
    let (before, began) = (pulls.load(Ordering::SeqCst), Instant::now());
    eventually("it is asked again", PATIENCE, async || (pulls.load(Ordering::SeqCst) > before).then_some(()))
        .await;
    let each_ms = 5;
    let most = began.elapsed().as_millis() as usize / each_ms + 20;
    assert!(pulls.load(Ordering::SeqCst) <= before + most);
    assert_eq!(api.delete("/v0/routers/mirror-endless").await.status, 200);
    remote.abort();
}
