//! Section 2: keys, scopes, prefixes. The keys are in `shared::KEYS`.

use serde_json::json;

use crate::shared::{api, got};

const NOBODY: Option<&str> = None;

/// C-AUTH-01, C-AUTH-02, C-AUTH-07
#[tokio::test]
async fn a_missing_or_unknown_key_is_unauthorized() {
    let api = api().await;
    for key in [NOBODY, Some("nobody"), Some(""), Some("ALL"), Some("reader:r"), Some("all,")] {
        let answer = api.with_key(key).get("/v0/topics").await;
        assert!(answer.header("www-authenticate").is_some(), "{key:?}");
        answer.refused(401, "unauthorized");
    }
    let basic = api.with_key(NOBODY).request("GET", "/v0/topics").header("authorization", "Basic all");
    got("Basic".into(), basic).await.refused(401, "unauthorized");
}

/// C-AUTH-02, C-AUTH-04, C-AUTH-12, and the table of scopes in section 2.2
#[tokio::test]
async fn each_endpoint_needs_its_scope() {
    let api = api().await;
    api.put("/v0/topics/auth-scopes", json!({})).await.expect(201);
    let write = r#"{"records":[{"data":1}]}"#;
    let many = r#"{"topics":{"auth-scopes":{"records":[{"data":1}]}}}"#;
    let router = r#"{"source":"auth-scopes","dest":"auth-scopes-copy"}"#;
    for (method, path, body, allowed) in [
        ("GET", "/v0/topics/auth-scopes", "", &["reader", "rw", "all"][..]),
        ("GET", "/v0/topics", "", &["reader", "rw", "all"]),
        ("POST", "/v0/topics/auth-scopes/diff", "{}", &["reader", "rw", "all"]),
        ("GET", "/v0/metrics", "", &["reader", "rw", "all"]),
        ("POST", "/v0/topics/auth-scopes", write, &["writer", "rw", "all"]),
        ("POST", "/v0/append", many, &["writer", "rw", "all"]),
        ("PUT", "/v0/topics/auth-scopes", "{}", &["admin", "all"]),
        ("GET", "/v0/cluster", "", &["admin", "all"]),
        ("DELETE", "/v0/topics/auth-scopes-none", "", &["deleter", "all"]),
        ("POST", "/v0/topics/auth-scopes/delete", r#"{"before_seq":0}"#, &["deleter", "all"]),
        ("GET", "/v0/topics/auth-scopes/origins", "", &["reader", "rw", "all"]),
        ("POST", "/v0/watch", r#"{"topics":{"auth-scopes":{}}}"#, &["reader", "rw", "all"]),
        ("PUT", "/v0/routers/auth-scopes", router, &["admin", "all"]),
        ("GET", "/v0/routers/auth-scopes", "", &["reader", "rw", "all"]),
        ("GET", "/v0/routers", "", &["reader", "rw", "all"]),
        ("POST", "/v0/routers/auth-scopes/pause", "", &["admin", "all"]),
        ("POST", "/v0/routers/auth-scopes/resume", "", &["admin", "all"]),
        ("DELETE", "/v0/routers/auth-scopes", "", &["deleter", "all"]),
    ] {
        for key in ["reader", "writer", "deleter", "admin", "rw", "all"] {
            let request = api.with_key(key).request(method, path);
            let request = match body {
                "" => request,
                body => request.header("content-type", "application/json").body(body),
            };
            let answer = got(format!("{method} {path} as {key}"), request).await;
            if allowed.contains(&key) {
                assert!(answer.status < 300, "{}: {}", answer.what, answer.body);
            } else {
                answer.refused(403, "forbidden");
            }
        }
    }
}

/// C-AUTH-10: whichever member is asked, and two of three carry a write to another one.
#[tokio::test]
async fn each_member_authorises_what_it_carries_to_the_leader() {
    let api = api().await;
    for member in 0..3 {
        let bound = api.at(member).with_key("bound");
        let before = api.topic("own:carried").await.body["head_seq"].as_u64().unwrap_or(0);
        let written = bound.write("own:carried", 1).await;
        assert!(written.status < 300, "{}", written.body);
        assert_eq!(api.topic("own:carried").await.expect(200)["head_seq"], before + 1);
        bound.write("carried", 1).await.refused(403, "forbidden");
        bound.with_key("nobody").write("own:carried", 1).await.refused(401, "unauthorized");
        assert_eq!(api.topic("own:carried").await.expect(200)["head_seq"], before + 1);
    }
    api.topic("carried").await.refused(404, "topic_not_found");
}

/// C-AUTH-03, C-AUTH-05, C-AUTH-13
#[tokio::test]
async fn prefixes_bound_the_names_in_path_and_body() {
    let api = api().await;
    let bound = api.with_key("bound");
    for name in ["own:a", "mine.b", "own:"] {
        bound.write(name, 1).await.expect(201);
        bound.diff(name, json!({})).await.expect(200);
    }
    for name in ["own", "Own:a", "mine", "other", "xown:a"] {
        bound.write(name, 1).await.refused(403, "forbidden");
        bound.topic(name).await.refused(403, "forbidden");
        bound.delete(&format!("/v0/topics/{name}")).await.refused(403, "forbidden");
    }
    let outside = bound.put("/v0/topics/own:dl", json!({ "dead_letter": "other" })).await;
    outside.refused(403, "forbidden");
    bound.put("/v0/topics/own:dl", json!({ "dead_letter": "mine.dead" })).await.expect(201);
}

/// C-AUTH-13, C-APPEND-08
#[tokio::test]
async fn every_topic_of_an_append_is_checked_before_anything_happens() {
    let api = api().await;
    let records = json!({ "records": [{ "data": 1 }] });
    let body = json!({ "topics": { "own:many": records, "other-many": records } });
    api.with_key("bound").post("/v0/append", body).await.refused(403, "forbidden");
    api.topic("own:many").await.refused(404, "topic_not_found");
    api.with_key("half").post("/v0/append", json!({ "topics": { "own:half": records } })).await.expect(201);
    let read_only = json!({ "topics": { "own:half": records, "other:half": records } });
    api.with_key("half").post("/v0/append", read_only).await.refused(403, "forbidden");
    assert_eq!(api.topic("own:half").await.expect(200)["head_seq"], 1);
}

/// C-AUTH-12
#[tokio::test]
async fn who_may_not_does_not_learn_what_there_is() {
    let api = api().await;
    api.with_key("nobody").topic("auth-none").await.refused(401, "unauthorized");
    api.with_key("writer").topic("auth-none").await.refused(403, "forbidden");
    api.with_key("bound").topic("auth-none").await.refused(403, "forbidden");
    api.with_key("reader").topic("auth-none").await.refused(404, "topic_not_found");
    let guarded = json!({ "records": [{ "data": 1 }], "expect_head_seq": 7 });
    api.with_key("reader").post("/v0/topics/auth-none", guarded.clone()).await.refused(403, "forbidden");
    api.with_key("writer").post("/v0/topics/auth-none", guarded).await.refused(409, "head_mismatch");
}

/// C-AUTH-15
#[tokio::test]
async fn lists_show_only_names_inside_of_the_prefixes() {
    let api = api().await;
    for name in ["own:list1", "own:list2", "mine.list", "other:list", "list"] {
        api.put(&format!("/v0/topics/{name}"), json!({})).await.expect(201);
    }
    let names = async |key: &'static str, prefix: &str| -> Vec<String> {
        crate::conventions::walk(&api.with_key(key), prefix, 1).await
    };
    assert_eq!(names("bound", "own:list").await, ["own:list1", "own:list2"]);
    let all = names("bound", "").await;
    assert!(all.iter().all(|name| name.starts_with("own:") || name.starts_with("mine.")), "{all:?}");
    assert!(all.contains(&"mine.list".to_owned()), "{all:?}");
    assert_eq!(names("bound", "other").await, Vec::<String>::new());
    assert_eq!(names("half", "other:list").await, ["other:list"]);
    api.with_key("writer").get("/v0/topics").await.refused(403, "forbidden");
}

/// C-AUTH-16
#[tokio::test]
async fn making_a_topic_with_a_config_needs_admin() {
    let api = api().await;
    let writer = api.with_key("writer");
    let body = json!({ "records": [{ "data": 1 }], "config": { "cap_records": 10 } });
    writer.post("/v0/topics/auth-config", body.clone()).await.refused(403, "forbidden");
    let many = json!({ "topics": { "auth-config": body } });
    writer.post("/v0/append", many.clone()).await.refused(403, "forbidden");
    api.topic("auth-config").await.refused(404, "topic_not_found");
    writer.write("auth-config", 1).await.expect(201);
    writer.post("/v0/topics/auth-config", body.clone()).await.expect(200);
    writer.post("/v0/append", many).await.expect(200);
    assert_eq!(api.topic("auth-config").await.expect(200)["config"]["cap_records"], 0);
    api.post("/v0/topics/auth-config2", body).await.expect(201);
    assert_eq!(api.topic("auth-config2").await.expect(200)["config"]["cap_records"], 10);
}

/// C-AUTH-17
#[tokio::test]
async fn a_token_in_the_query_is_not_taken_here() {
    let api = api().await.with_key(NOBODY);
    for path in ["/v0/topics?token=all", "/v0/cluster?token=all", "/v0/metrics?token=all"] {
        api.get(path).await.refused(401, "unauthorized");
    }
}

/// C-AUTH-18
#[tokio::test]
async fn the_cluster_needs_a_key_without_prefixes() {
    let api = api().await;
    api.with_key("admin").get("/v0/cluster").await.expect(200);
    api.with_key("bound").get("/v0/cluster").await.refused(403, "forbidden");
    api.with_key("reader").get("/v0/cluster").await.refused(403, "forbidden");
}

/// C-AUTH-19
#[tokio::test]
async fn probes_need_no_key_and_metrics_do() {
    let api = api().await;
    let anyone = api.with_key(NOBODY);
    for path in ["/v0/health", "/healthz", "/v0/ready", "/readyz"] {
        anyone.get(path).await.expect(200);
    }
    anyone.get("/v0/metrics").await.refused(401, "unauthorized");
    api.with_key("writer").get("/v0/metrics").await.refused(403, "forbidden");
    assert_eq!(api.with_key("reader").get("/v0/metrics").await.status, 200);
}

/// What is refused for a key is counted, whoever asks.
#[tokio::test]
async fn refusals_are_counted() {
    let api = api().await;
    let member = api.at(0);
    let counts = async || {
        let text = String::from_utf8(member.get("/v0/metrics").await.bytes).expect("is UTF-8");
        ["unauthorized", "forbidden"].map(|reason| {
            let line = format!("antiphon_key_refusals_total{{reason=\"{reason}\"}} ");
            let value = text.lines().find_map(|found| found.strip_prefix(&line)).expect("a count");
            value.parse::<f64>().expect("a number")
        })
    };
    let before = counts().await;
    member.with_key(NOBODY).get("/v0/topics").await.refused(401, "unauthorized");
    member.with_key("stranger").get("/v0/topics").await.refused(401, "unauthorized");
    member.with_key("reader").put("/v0/topics/refused", json!({})).await.refused(403, "forbidden");
    // Making one with a config needs more than to write.
    let records = json!([{ "data": 1 }]);
    let config = json!({ "durability": "fsync" });
    let write = json!({ "records": records, "config": config });
    member.with_key("writer").post("/v0/topics/refused", write.clone()).await.refused(403, "forbidden");
    let many = json!({ "topics": { "refused": write } });
    member.with_key("writer").post("/v0/append", many).await.refused(403, "forbidden");
    let after = counts().await;
    assert!(after[0] >= before[0] + 2.0 && after[1] >= before[1] + 3.0, "{before:?} {after:?}");
}

/// C-AUTH-19: neither other names nor anything of the member.
#[tokio::test]
async fn metrics_show_a_key_with_prefixes_its_own_names_only() {
    let api = api().await;
    for name in ["own:metric", "other:metric"] {
        api.write(name, 2).await.expect(201);
    }
    for (router, dest) in [("own:metric-router", "own:copies"), ("other:metric-router", "other:copies")] {
        api.put(&format!("/v0/routers/{router}"), json!({ "source": "other:metric", "dest": dest }))
            .await
            .expect(201);
    }
    let text = api.with_key("bound").get("/v0/metrics").await;
    assert_eq!(text.status, 200);
    let text = String::from_utf8(text.bytes).expect("is UTF-8");
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(samples.contains(&r#"antiphon_topic_head_seq{topic="own:metric"} 2"#), "{text}");
    assert!(samples.iter().any(|line| line.contains("own:metric-router")), "{text}");
    // How many of its own topics have no series is its own affair.
    let own = [r#"="own:"#, r#"="mine."#, "antiphon_topic_metrics_truncated "];
    let is_own = |line: &&str| own.iter().any(|own| line.contains(own));
    assert!(samples.iter().all(is_own), "{text}");

    let json = |key| {
        let request = api.with_key(key).request("GET", "/v0/metrics").header("accept", "application/json");
        got("metrics".into(), request)
    };
    let (own, all) = (json("bound").await.expect(200), json("all").await.expect(200));
    assert!(own["topics"].as_u64() < all["topics"].as_u64(), "{own} {all}");
    assert!(own["records_live"].as_u64() >= Some(2), "{own}");
    for name in ["wal", "ready", "uptime_ms", "sse_connections"] {
        assert!(own[name].is_null() && !all[name].is_null(), "{name}: {own} {all}");
    }
}
