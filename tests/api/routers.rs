//! Sections 15 and 16: routers as configuration. What they copy is checked elsewhere.

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, eventually};
use crate::shared::{Api, Got, api, client};

async fn put(api: &Api, router: &str, config: Value) -> Got {
    api.put(&format!("/v0/routers/{router}"), config).await
}

async fn get(api: &Api, router: &str) -> Got {
    api.get(&format!("/v0/routers/{router}")).await
}

fn between(source: &str, dest: &str) -> Value {
    json!({ "source": source, "dest": dest })
}

/// `config` with other values for some of its fields.
fn with(mut config: Value, fields: Value) -> Value {
    for (field, value) in fields.as_object().expect("an object") {
        config[field] = value.clone();
    }
    config
}

fn names(list: &Value) -> Vec<&str> {
    list["routers"].as_array().expect("a list").iter().filter_map(|entry| entry["router"].as_str()).collect()
}

/// Sections 15.1 and 15.2, C-ROUTE-01
#[tokio::test]
async fn a_put_creates_once_and_shows_what_there_is() {
    let api = api().await;
    let config = with(between("route-put-a", "route-put-b"), json!({ "filter": "m:10*" }));
    let made = put(&api, "route-put-a->route-put-b", config.clone()).await.expect(201);
    let expected = json!({
        "router": "route-put-a->route-put-b", "created": true, "source": "route-put-a", "dest": "route-put-b",
        "preserve_node": true, "preserve_tag": true, "create_dest": true, "filter": ["tag", "Glob", "m:10*"],
        "allow_cycle": false, "guarantee": "at_least_once", "start": "latest", "remote": null
    });
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(&made[field], value, "{field}");
    }
    let again = put(&api, "route-put-a->route-put-b", config.clone()).await.expect(200);
    assert_eq!((&again["created"], &again["filter"]), (&json!(false), &made["filter"]));
    let changed = with(config, json!({ "filter": null, "preserve_tag": false, "guarantee": "exactly_once" }));
    let changed = put(&api, "route-put-a->route-put-b", changed).await.expect(200);
    let state = get(&api, "route-put-a->route-put-b").await.expect(200);
    for field in ["source", "dest", "filter", "preserve_node", "preserve_tag", "guarantee", "start"] {
        assert_eq!(state[field], changed[field], "{field}");
    }
    assert_eq!((&state["filter"], &state["preserve_tag"]), (&json!(null), &json!(false)));
    for (field, value) in [
        ("forwarded_total", json!(0)),
        ("state", json!("running")),
        ("lag", json!(0)),
        ("last_error", json!(null)),
        ("last_forwarded_ts", json!(null)),
    ] {
        assert_eq!(state[field], value, "{field}");
    }
}

/// C-ROUTE-01, C-ROUTE-02
#[tokio::test]
async fn a_router_is_never_pointed_elsewhere() {
    let api = api().await;
    let config = with(between("route-fix-a", "route-fix-b"), json!({ "start": { "seq": 7 } }));
    put(&api, "route-fix", config.clone()).await.expect(201);
    let remote = json!({ "urls": ["http://127.0.0.1:1"] });
    for change in [
        json!({ "source": "route-fix-c" }),
        json!({ "dest": "route-fix-c" }),
        json!({ "start": "latest" }),
        json!({ "start": { "ts": 7 } }),
        json!({ "remote": remote }),
    ] {
        let detail = put(&api, "route-fix", with(config.clone(), change.clone())).await;
        let detail = detail.refused(409, "topic_exists_incompatible");
        assert_eq!(
            detail,
            json!({ "router": "route-fix", "reason": "router_repoint_forbidden" }),
            "{change}"
        );
    }
    api.topic("route-fix-c").await.refused(404, "topic_not_found");
    // Without `start` it keeps the one that it has.
    let kept = put(&api, "route-fix", between("route-fix-a", "route-fix-b")).await.expect(200);
    assert_eq!(kept["start"], json!({ "seq": 7 }));
}

/// C-ROUTE-02
#[tokio::test]
async fn a_new_router_starts_where_it_is_told_and_at_the_head_else() {
    let api = api().await;
    // What is left to examine shows where a router stands, as long as its destination takes nothing.
    api.put("/v0/topics/route-start-full", json!({ "discard": "reject", "cap_records": 1 }))
        .await
        .expect(201);
    api.write("route-start-full", 1).await.expect(200);
    api.write("route-start", 5).await.expect(201);
    let page = api.diff("route-start", json!({})).await.expect(200);
    let ts = page["records"][0]["$ts"].as_u64().expect("a time");
    for (name, start, lag) in [
        ("default", json!(null), 0),
        ("latest", json!("latest"), 0),
        ("earliest", json!("earliest"), 5),
        ("seq", json!({ "seq": 2 }), 3),
        ("above", json!({ "seq": 200 }), 0),
        ("ts", json!({ "ts": ts }), 5),
        ("future", json!({ "ts": ts + 1_000_000_000 }), 0),
    ] {
        let config = with(between("route-start", "route-start-full"), json!({ "start": start }));
        let router = format!("route-start-{name}");
        put(&api, &router, config.clone()).await.expect(201);
        assert_eq!(get(&api, &router).await.expect(200)["lag"], lag, "{name}");
        put(&api, &router, config).await.expect(200);
        assert_eq!(get(&api, &router).await.expect(200)["lag"], lag, "{name}, put again");
    }
}

/// C-ROUTE-10
#[tokio::test]
async fn a_cycle_of_local_routers_needs_permission() {
    let api = api().await;
    put(&api, "route-cycle1", between("route-cy-a", "route-cy-b")).await.expect(201);
    put(&api, "route-cycle2", between("route-cy-b", "route-cy-c")).await.expect(201);
    let closing = between("route-cy-c", "route-cy-a");
    let detail = put(&api, "route-cycle3", closing.clone()).await.refused(409, "router_cycle");
    assert_eq!(detail["cycle"], json!(["route-cy-c", "route-cy-a", "route-cy-b", "route-cy-c"]));
    get(&api, "route-cycle3").await.refused(404, "router_not_found");
    // Remote routers do not count.
    let remote = json!({ "remote": { "urls": ["http://127.0.0.1:1"] } });
    put(&api, "route-cycle-remote", with(closing.clone(), remote)).await.expect(201);
    let allowed = with(closing.clone(), json!({ "allow_cycle": true }));
    put(&api, "route-cycle3", allowed).await.expect(201);
    put(&api, "route-cycle3", closing).await.refused(409, "router_cycle");
    assert_eq!(get(&api, "route-cycle3").await.expect(200)["allow_cycle"], true);
    // The others were there before, and stay what they are.
    put(&api, "route-cycle1", between("route-cy-a", "route-cy-b")).await.expect(200);
}

/// C-ROUTE-11, C-MIRROR-05, C-CONV-03, C-NAME-01
#[tokio::test]
async fn a_router_that_makes_no_sense_is_refused() {
    let api = api().await;
    let remote = json!({ "urls": ["http://127.0.0.1:1"] });
    for config in [
        json!({}),
        json!({ "source": "route-bad-a" }),
        between("route-bad-a", "route-bad-a"),
        between("route-bad-*", "route-bad-b"),
        between("route bad", "route-bad-b"),
        with(between("route-bad-a", "route-bad-b"), json!({ "filter": ["tag", "Like", "x"] })),
        with(between("route-bad-a", "route-bad-b"), json!({ "start": "now" })),
        with(between("route-bad-a", "*"), json!({ "remote": remote })),
        with(between("route-bad-*", "route-bad-b"), json!({ "remote": remote })),
        with(between("route-bad-a", "route-bad-b"), json!({ "remote": { "urls": ["ftp://x"] } })),
    ] {
        put(&api, "route-bad", config).await.refused(400, "invalid_request");
    }
    let typo = with(between("route-bad-a", "route-bad-b"), json!({ "filtre": 1 }));
    assert_eq!(
        put(&api, "route-bad", typo).await.refused(400, "invalid_request"),
        json!({ "field": "filtre" })
    );
    put(&api, "%3Eroute", between("route-bad-a", "route-bad-b")).await.refused(400, "invalid_request");
    for topic in ["route-bad-a", "route-bad-b"] {
        api.topic(topic).await.refused(404, "topic_not_found");
    }
}

/// C-ROUTE-12, C-ROUTE-19
#[tokio::test]
async fn topics_are_made_with_the_router_or_not_at_all() {
    let api = api().await;
    let config = between("route-new-a", "route-new-b");
    let no_dest = with(config.clone(), json!({ "create_dest": false }));
    let detail = put(&api, "route-new", no_dest.clone()).await.refused(404, "topic_not_found");
    assert_eq!(detail, json!({ "topic": "route-new-b" }));
    api.topic("route-new-a").await.refused(404, "topic_not_found");
    put(&api, "route-new", config).await.expect(201);
    api.put("/v0/topics/route-new-plain", json!({})).await.expect(201);
    let plain = api.topic("route-new-plain").await.expect(200)["config"].clone();
    for topic in ["route-new-a", "route-new-b"] {
        assert_eq!(api.topic(topic).await.expect(200)["config"], plain);
    }
    put(&api, "route-new", no_dest).await.expect(200);
}

/// C-ROUTE-20, C-ROUTE-21
#[tokio::test]
async fn a_deleted_router_is_gone_and_can_be_deleted_again() {
    let api = api().await;
    get(&api, "route-gone").await.refused(404, "router_not_found");
    put(&api, "route-gone", between("route-gone-a", "route-gone-b")).await.expect(201);
    for deleted in [true, false] {
        let answer = api.delete("/v0/routers/route-gone").await.expect(200);
        assert_eq!((&answer["router"], &answer["deleted"]), (&json!("route-gone"), &json!(deleted)));
        let detail = get(&api, "route-gone").await.refused(404, "router_not_found");
        assert_eq!(detail, json!({ "router": "route-gone" }));
    }
    // It may be made anew, between other topics.
    put(&api, "route-gone", between("route-gone-b", "route-gone-c")).await.expect(201);
}

/// C-ROUTE-22
#[tokio::test]
async fn a_router_pauses_and_goes_on_at_every_member() {
    let api = api().await;
    api.post("/v0/routers/route-pause/pause", json!({})).await.refused(404, "router_not_found");
    put(&api, "route-pause", between("route-pause-a", "route-pause-b")).await.expect(201);
    for (verb, state) in
        [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")]
    {
        let answer = api.post(&format!("/v0/routers/route-pause/{verb}"), json!({})).await.expect(200);
        assert_eq!((&answer["router"], &answer["state"]), (&json!("route-pause"), &json!(state)));
        for member in 0..3 {
            assert_eq!(get(&api.at(member), "route-pause").await.expect(200)["state"], state);
        }
        if state == "paused" {
            api.write("route-pause-a", 2).await;
            put(&api, "route-pause", between("route-pause-a", "route-pause-b")).await.expect(200);
        }
    }
}

/// C-ROUTE-22: the position stays.
#[tokio::test]
async fn a_paused_router_keeps_its_position() {
    let api = api().await;
    put(&api, "route-hold", between("route-hold-a", "route-hold-b")).await.expect(201);
    api.post("/v0/routers/route-hold/pause", json!({})).await.expect(200);
    api.write("route-hold-a", 3).await.expect(200);
    let state = get(&api, "route-hold").await.expect(200);
    assert_eq!((&state["state"], &state["lag"]), (&json!("paused"), &json!(3)));
}

/// Section 15.2, C-PAGE-02, C-PAGE-03, C-PAGE-06
#[tokio::test]
async fn a_list_shows_routers_by_prefix_source_and_dest() {
    let api = api().await;
    for (router, source, dest) in [
        ("route-list>1", "route-li-a", "route-li-b"),
        ("route-list>2", "route-li-a", "route-li-c"),
        ("route-list>3", "route-li-b", "route-li-c"),
    ] {
        put(&api, router, between(source, dest)).await.expect(201);
    }
    let remote = with(between("route-li-*", "*"), json!({ "remote": { "urls": ["http://127.0.0.1:1"] } }));
    put(&api, "route-list>4", remote).await.expect(201);
    let list =
        async |query: &str| api.get(&format!("/v0/routers?prefix=route-list%3E{query}")).await.expect(200);
    let all = list("").await;
    assert_eq!(names(&all), ["route-list>1", "route-list>2", "route-list>3", "route-list>4"]);
    assert_eq!(
        all["routers"][0],
        json!({
            "router": "route-list>1", "source": "route-li-a", "dest": "route-li-b",
            "guarantee": "at_least_once", "forwarded_total": 0, "state": "running", "lag": 0, "remote": false
        })
    );
    assert_eq!(all["routers"][3]["remote"], true);
    assert_eq!(names(&list("&source=route-li-a").await), ["route-list>1", "route-list>2"]);
    assert_eq!(names(&list("&dest=route-li-c").await), ["route-list>2", "route-list>3"]);
    assert_eq!(names(&list("&source=route-li-*").await), ["route-list>4"]);
    assert_eq!(names(&list("&source=route-li-a&dest=route-li-c").await), ["route-list>2"]);
    let (mut walked, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&format!("&page_size=1{cursor}")).await;
        walked.extend(names(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(walked, names(&all));
    api.get("/v0/routers?cursor=x").await.refused(400, "invalid_request");
    api.get("/v0/routers?consistency=eventual").await.expect(200);
}

/// C-MIRROR-02
#[tokio::test]
async fn a_token_is_never_shown_and_can_be_kept() {
    let api = api().await;
    let mirror = |token: Value| {
        let remote = json!({ "urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"], "token": token });
        with(between("route-tok-*", "*"), json!({ "remote": remote }))
    };
    // There is none to keep yet.
    put(&api, "route-token", mirror(json!("***"))).await.refused(400, "invalid_request");
    for (token, shown) in [
        (json!("s3cret-token"), json!("***")),
        (json!("***"), json!("***")),
        (json!(null), json!(null)),
        (json!("***"), json!(null)),
        (json!("s3cret-token"), json!("***")),
    ] {
        let made = put(&api, "route-token", mirror(token)).await;
        assert!(made.status == 201 || made.status == 200, "{}", made.body);
        let expected = json!({ "urls": ["http://127.0.0.1:1", "http://127.0.0.1:2"], "token": shown });
        assert_eq!(made.body["remote"], expected);
        assert_eq!(get(&api, "route-token").await.expect(200)["remote"], expected);
    }
    // It stands for the stored one at no other address: whoever listens there would be sent that.
    for (urls, status) in [
        (["http://127.0.0.1:1", "http://127.0.0.1:3"], 400),
        (["http://127.0.0.2:1", "http://127.0.0.2:2"], 400),
        (["http://127.0.0.1:2", "http://127.0.0.1:1"], 200),
    ] {
        let remote = json!({ "remote": { "urls": urls, "token": "***" } });
        let put = put(&api, "route-token", with(between("route-tok-*", "*"), remote)).await;
        assert_eq!(put.status, status, "{}", put.body);
    }
    let shown = get(&api, "route-token").await;
    assert_eq!(shown.body["remote"]["urls"], json!(["http://127.0.0.1:2", "http://127.0.0.1:1"]));
    assert!(!String::from_utf8_lossy(&shown.bytes).contains("s3cret"));
    assert_eq!(shown.expect(200)["start"], "earliest");
    api.delete("/v0/routers/route-token").await.expect(200);
}

/// C-TOPIC-09: a router goes with its source and its destination; one with a `*` source stays, and so does one
/// whose source is in another cluster.
#[tokio::test]
async fn a_topic_takes_its_routers_with_it() {
    let api = api().await;
    put(&api, "route-with1", between("route-wi-a", "route-wi-b")).await.expect(201);
    put(&api, "route-with2", between("route-wi-b", "route-wi-c")).await.expect(201);
    put(&api, "route-with3", between("route-wi-c", "route-wi-d")).await.expect(201);
    let remote = json!({ "remote": { "urls": ["http://127.0.0.1:1"] } });
    put(&api, "route-with-all", with(between("route-wi-*", "*"), remote.clone())).await.expect(201);
    put(&api, "route-with-far", with(between("route-wi-b", "route-wi-x"), remote.clone())).await.expect(201);
    put(&api, "route-with-into", with(between("elsewhere", "route-wi-b"), remote)).await.expect(201);
    api.write("route-wi-b", 1).await.expect(200);
    api.delete("/v0/topics/route-wi-b?if_empty=true").await.refused(409, "topic_not_empty");
    let deleted = api.delete("/v0/topics/route-wi-b").await.expect(200);
    assert_eq!(deleted["routers_removed"], json!(["route-with-into", "route-with1", "route-with2"]));
    let left = api.get("/v0/routers?prefix=route-with").await.expect(200);
    assert_eq!(names(&left), ["route-with-all", "route-with-far", "route-with3"]);
    assert_eq!(api.delete("/v0/topics/route-wi-b").await.expect(200)["routers_removed"], json!([]));
    for router in ["route-with-all", "route-with-far"] {
        api.delete(&format!("/v0/routers/{router}")).await.expect(200);
    }
}

/// C-AUTH-12, C-AUTH-13, C-AUTH-14, C-AUTH-15, C-ROUTE-19
#[tokio::test]
async fn a_key_reaches_the_routers_and_topics_of_its_prefixes() {
    let api = api().await;
    let bound = api.with_key("bound");
    put(&bound, "own:route", between("own:route-a", "mine.route-b")).await.expect(201);
    put(&bound, "own:route2", between("own:route-a", "other-b")).await.refused(403, "forbidden");
    put(&bound, "own:route2", between("other-a", "own:route-b")).await.refused(403, "forbidden");
    put(&bound, "other-route", between("own:route-a", "own:route-b")).await.refused(403, "forbidden");
    let mirror =
        |source: &str| with(between(source, "*"), json!({ "remote": { "urls": ["http://127.0.0.1:1"] } }));
    put(&bound, "own:mirror", mirror("own:*")).await.expect(201);
    put(&bound, "own:mirror2", mirror("ow*")).await.refused(403, "forbidden");
    put(&bound, "own:mirror2", mirror("*")).await.refused(403, "forbidden");
    put(&api, "route-auth", between("route-au-a", "route-au-b")).await.expect(201);
    let seen = bound.get("/v0/routers").await.expect(200);
    assert!(names(&seen).iter().all(|name| name.starts_with("own:") || name.starts_with("mine.")), "{seen}");
    assert!(names(&seen).contains(&"own:route"));
    get(&bound, "route-auth").await.refused(403, "forbidden");
    for (key, method, path, status) in [
        ("reader", "GET", "/v0/routers", 200),
        ("reader", "GET", "/v0/routers/route-auth", 200),
        ("writer", "GET", "/v0/routers/route-auth", 403),
        ("reader", "POST", "/v0/routers/route-auth/pause", 403),
        ("admin", "POST", "/v0/routers/route-auth/pause", 200),
        ("admin", "POST", "/v0/routers/route-auth/resume", 200),
        ("admin", "DELETE", "/v0/routers/route-auth", 403),
        ("deleter", "DELETE", "/v0/routers/route-auth", 200),
    ] {
        let answer =
            crate::shared::got(format!("{method} {path}"), api.with_key(key).request(method, path)).await;
        assert_eq!(answer.status, status, "{key}: {}", answer.what);
    }
    api.delete("/v0/routers/own:mirror").await.expect(200);
}

/// C-AUTH-13: to configure is not to read and write.
#[tokio::test]
async fn a_bounded_key_makes_no_router_of_what_it_may_not_read_and_write_itself() {
    let api = api().await;
    let split = api.with_key("split");
    put(&split, "split-a1", between("split-a", "split-a2")).await.expect(201);
    put(&split, "split-a2", between("split-b", "split-a2")).await.refused(403, "forbidden");
    put(&split, "split-a2", between("split-a", "split-b")).await.refused(403, "forbidden");
    let mirror =
        |dest: &str| with(between("any", dest), json!({ "remote": { "urls": ["http://127.0.0.1:1"] } }));
    put(&split, "split-a3", with(mirror("split-a"), json!({ "source": "split-b" }))).await.expect(201);
    put(&split, "split-a4", with(mirror("split-b"), json!({ "source": "split-b" })))
        .await
        .refused(403, "forbidden");
    // Somebody who may configure everything may.
    put(&api.with_key("admin"), "split-a5", between("split-b", "split-a2")).await.expect(201);
    for router in ["split-a1", "split-a3", "split-a5"] {
        api.delete(&format!("/v0/routers/{router}")).await.expect(200);
    }
}

/// What members connect to for routers, and what a link's error tells whom.
#[tokio::test]
async fn a_router_connects_only_where_it_may_and_tells_strangers_little() {
    let api = api().await;
    let bound = api.with_key("bound");
    let mirror = |url: &str| with(between("own:far", "own:far"), json!({ "remote": { "urls": [url] } }));
    for (url, code) in [
        ("http://169.254.169.254", "target_denied"),
        ("http://[::1]:1", "target_denied"),
        ("http://127.0.0.1:1", "unreachable"),
    ] {
        let made = put(&api, "own:far", mirror(url)).await;
        assert!(made.status < 300, "{}", made.body);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let shown = loop {
            let shown = get(&api, "own:far").await.expect(200);
            if shown["last_error"]["code"] == code {
                break shown;
            }
            assert!(std::time::Instant::now() < deadline, "{url}: {shown}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        let told = get(&bound, "own:far").await.expect(200);
        assert_eq!(told["last_error"]["code"], "unreachable", "{told}");
        assert_ne!(told["last_error"]["message"], shown["last_error"]["message"]);
    }
    api.delete("/v0/routers/own:far").await.expect(200);
}

/// C-LIMIT-02, C-LIMIT-10, C-LIMIT-11, C-ROUTE-12
#[tokio::test]
async fn the_cluster_has_so_many_routers_and_no_more() {
    let dir = tempfile::tempdir().expect("make a directory");
    let cluster = Cluster::start_in(dir, None, 1, &["--max-routers", "2", "--max-topics", "6"]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    // The leader's settings are in the log soon after it leads; until then the defaults hold.
    let over = eventually("the bounds hold", PATIENCE, async || {
        for router in ["probe1", "probe2", "probe3"] {
            let answer = put(&api, router, between("p", router)).await;
            if answer.status == 429 {
                return Some(answer);
            }
        }
        for router in ["probe1", "probe2", "probe3"] {
            api.delete(&format!("/v0/routers/{router}")).await.expect(200);
        }
        None
    })
    .await;
    assert_eq!(over.refused(429, "throttled"), json!({ "limit": "max_routers", "max": 2 }));
    for topic in ["p", "probe1", "probe2", "probe3"] {
        api.delete(&format!("/v0/topics/{topic}")).await.expect(200);
    }
    let made = futures_util::future::join_all((0..5).map(|at| {
        let api = api.clone();
        async move { put(&api, &format!("r{at}"), between("a", &format!("b{at}"))).await }
    }))
    .await;
    let (good, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(good.len(), 2, "exactly, under concurrency");
    for answer in refused {
        assert_eq!(answer.refused(429, "throttled"), json!({ "limit": "max_routers", "max": 2 }));
    }
    // A refused one left no topic, an update passes, and a deleted one makes room.
    let topics = api.get("/v0/topics").await.expect(200);
    assert_eq!(topics["topics"].as_array().map(Vec::len), Some(3));
    let first = good[0].body["router"].as_str().expect("a name").to_owned();
    let same = between("a", good[0].body["dest"].as_str().expect("a name"));
    put(&api, &first, with(same, json!({ "preserve_tag": false }))).await.expect(200);
    api.delete(&format!("/v0/routers/{first}")).await.expect(200);
    for topic in ["x1", "x2"] {
        api.put(&format!("/v0/topics/{topic}"), json!({})).await.expect(201);
    }
    // Two topics would be too many, and then not even one of them is made.
    let detail = put(&api, "two", between("y1", "y2")).await.refused(429, "throttled");
    assert_eq!(detail, json!({ "limit": "max_topics", "max": 6 }));
    api.topic("y1").await.refused(404, "topic_not_found");
    put(&api, "one", between("a", "y2")).await.expect(201);
}

/// C-ROUTE-01, C-CONV-16: `curl` sends a `>` in a path as it is.
#[tokio::test]
async fn a_name_with_an_arrow_can_be_written_as_it_is() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let api = api().await;
    let address = api.urls[0].trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let key = api.key.expect("a key");
    let body = between("routers-arrow", "routers-arrow-b").to_string();
    // As it is in the first line of the connection, escaped after that.
    for (method, arrow, status, body) in [("PUT", "->", "201", body.as_str()), ("GET", "-%3E", "200", "")] {
        let close = if method == "GET" { "connection: close\r\n" } else { "" };
        let request = format!(
            "{method} /v0/routers/routers-arrow{arrow}routers-arrow-b HTTP/1.1\r\nhost: {address}\r\n{close}\
             authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = String::new();
        while !answer.ends_with('}') {
            let mut part = [0; 4096];
            let count = stream.read(&mut part).await.expect("read");
            assert!(count > 0, "closed after {answer}");
            answer.push_str(std::str::from_utf8(&part[..count]).expect("text"));
        }
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(r#""router":"routers-arrow->routers-arrow-b""#), "{answer}");
    }
}
