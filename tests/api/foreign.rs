//! What another cluster, or what stands between, says that cannot be: C-MIRROR-18.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use antiphon::router::{Answered, PullAnswer, Skips};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{Cluster, PATIENCE, eventually};
use crate::routing::{arrives, data, numbers, plain, read, write};
use crate::shared::{Api, Got, LOOPBACK, api, client, other};

/// What a record holds that does not get through whole.
const MARK: &str = "\"poison\"";

#[derive(Clone)]
struct Between {
    to: String,
    http: reqwest::Client,
    spoils: Arc<AtomicBool>,
}

/// Passes a pull on, and its answer back; the records that are marked are broken.
async fn pass(State(between): State<Between>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    let mut asked = between.http.post(format!("{}/v0/mirror/pull", between.to)).body(body);
    for name in ["content-type", "authorization"] {
        asked = asked.header(name, headers[name].clone());
    }
    let Ok(answer) = asked.send().await else { return Vec::new() };
    let answer = answer.bytes().await.unwrap_or_default();
    let mut spoiled = answer.to_vec();
    let topics = PullAnswer::decode(&answer, &Skips::new()).map_or(Vec::new(), |answer| answer.topics);
    for topic in topics {
        let Answered::Page(page) = topic.answer else { continue };
        let marked = page.records.iter().filter(|record| record.ends_with(MARK.as_bytes()));
        for record in marked.filter(|_| between.spoils.load(Ordering::Relaxed)) {
            let at = record.as_ptr() as usize - answer.as_ptr() as usize;
            spoiled[at + record.len() - 1] = b'\n';
        }
    }
    spoiled
}

/// The URL of something that spoils what comes from `to`.
async fn spoiler(to: &Api, spoils: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let between = Between { to: to.urls[0].clone(), http: client(), spoils };
    let app = Router::new().route("/v0/mirror/pull", post(pass)).with_state(between);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

async fn shows(api: &Api, router: &str, state: &str, code: Value) -> Value {
    eventually(&format!("{router} shows {state}, {code}"), PATIENCE, async || {
        let shown = api.get(&format!("/v0/routers/{router}")).await.expect(200);
        let told = shown["last_error"].get("code").cloned().unwrap_or(Value::Null);
        (shown["state"] == state && told == code).then_some(shown)
    })
    .await
}

async fn skip(api: &Api, router: &str, body: Value) -> Got {
    api.post(&format!("/v0/routers/{router}/skip"), body).await
}

/// C-MIRROR-18
#[tokio::test]
async fn a_record_that_is_none_holds_up_its_topic_until_it_is_skipped() {
    let (api, other) = (api().await, other().await);
    let (well, ill) = ("foreign-skip:a", "foreign-skip:b");
    write(&other, ill, plain(numbers(1..=2))).await;
    write(&other, ill, json!([{ "data": "poison" }, { "data": 4 }])).await;
    write(&other, well, plain(numbers(1..=2))).await;
    let url = spoiler(&other, Arc::new(AtomicBool::new(true))).await;
    let remote = json!({ "urls": [url], "token": "reader" });
    let config = json!({ "source": "foreign-skip:*", "dest": "*", "remote": remote });
    api.put("/v0/routers/foreign-skip", config).await.expect(201);
    arrives(&api, well, &numbers(1..=2)).await;
    let shown = shows(&api, "foreign-skip", "retrying", json!("source_damaged")).await;
    assert_eq!((&shown["last_error"]["topic"], &shown["last_error"]["seq"]), (&json!(ill), &json!(3)));
    // Only that topic waits, and nothing of it is stored.
    write(&other, well, plain(numbers(3..=3))).await;
    arrives(&api, well, &numbers(1..=3)).await;
    api.topic(ill).await.refused(404, "topic_not_found");
    for (body, status) in [
        (json!({ "topic": ill }), 400),
        (json!({ "topic": ill, "seq": 0 }), 400),
        (json!({ "topic": "elsewhere", "seq": 3 }), 400),
        (json!({ "topic": ill, "seq": 3 }), 200),
        (json!({ "topic": ill, "seq": 3 }), 200),
    ] {
        let answer = skip(&api, "foreign-skip", body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    skip(&api.with_key("reader"), "foreign-skip", json!({ "topic": ill, "seq": 3 }))
        .await
        .refused(403, "forbidden");
    skip(&api, "foreign-nothing", json!({ "topic": ill, "seq": 3 })).await.refused(404, "router_not_found");
    arrives(&api, ill, &[json!(1), json!(2), json!(4)]).await;
    let (records, gaps) = read(&api, ill).await;
    assert_eq!(data(&records), [json!(1), json!(2), json!(4)]);
    assert_eq!((gaps.len(), &gaps[0]["reason"]), (1, &json!("source_trim")));
    shows(&api, "foreign-skip", "running", Value::Null).await;
    // It is behind the position by now.
    let late = skip(&api, "foreign-skip", json!({ "topic": ill, "seq": 3 })).await.expect(200);
    assert_eq!(late["skipped"], 0);
    api.delete("/v0/routers/foreign-skip").await.expect(200);
}

#[tokio::test]
async fn a_remote_brings_records_of_other_clusters_once_it_may() {
    let (first, second) = (api().await, other().await);
    let dir = tempfile::tempdir().expect("make a directory");
    let third =
        Cluster::start_named("far", dir, None, 1, &["--api-keys", "all", LOOPBACK[0], LOOPBACK[1]]).await;
    let api = Api { urls: third.urls(), http: client(), key: Some("all") };
    let topic = "foreign-relay";
    let mirror = |of: &Api, relays: Option<Value>| {
        let mut remote = json!({ "urls": of.urls, "token": "reader" });
        relays.into_iter().for_each(|relays| remote["relays"] = relays);
        json!({ "source": topic, "dest": topic, "remote": remote })
    };
    write(&first, topic, plain(numbers(1..=2))).await;
    second.put("/v0/routers/foreign-relay", mirror(&first, None)).await.expect(201);
    arrives(&second, topic, &numbers(1..=2)).await;
    write(&second, topic, plain(numbers(3..=4))).await;
    // What the second cluster wrote comes, what it got from the first does not.
    api.put("/v0/routers/relay", mirror(&second, None)).await.expect(201);
    arrives(&api, topic, &numbers(3..=4)).await;
    let shown = shows(&api, "relay", "blocked", json!("unknown_origin")).await;
    let origins = second.get(&format!("/v0/topics/{topic}/origins")).await.expect(200);
    let mut origins = origins["origins"].as_array().expect("a list").iter();
    let id = origins.find(|origin| origin["cluster"] == "tests").expect("it is there")["cluster_id"].clone();
    let id = id.as_str().expect("an id").to_owned();
    assert!(shown["last_error"]["message"].as_str().is_some_and(|told| told.contains(&id)), "{shown}");
    write(&second, topic, plain(numbers(5..=5))).await;
    arrives(&api, topic, &numbers(3..=5)).await;
    // Somebody has looked, and puts it again.
    api.put("/v0/routers/relay", mirror(&second, None)).await.expect(200);
    arrives(&api, topic, &[3, 4, 5, 1, 2].map(|number| json!(number))).await;
    shows(&api, "relay", "running", Value::Null).await;
    write(&first, topic, plain(numbers(6..=6))).await;
    arrives(&api, topic, &[3, 4, 5, 1, 2, 6].map(|number| json!(number))).await;
    // By name.
    for (relays, expected) in [(json!([]), false), (json!([id]), true), (json!(["*"]), true)] {
        let (router, dest) = ("relay-named", "foreign-relayed");
        let mut config = mirror(&second, Some(relays.clone()));
        config["dest"] = json!(dest);
        let put = api.put(&format!("/v0/routers/{router}"), config).await.expect(201);
        assert_eq!(put["remote"]["relays"], relays);
        let expected: Vec<Value> = match expected {
            true => [1, 2, 3, 4, 5, 6].map(|number| json!(number)).to_vec(),
            false => numbers(3..=5),
        };
        arrives(&api, dest, &expected).await;
        api.delete(&format!("/v0/routers/{router}")).await.expect(200);
        api.delete(&format!("/v0/topics/{dest}")).await.expect(200);
    }
    second.delete("/v0/routers/foreign-relay").await.expect(200);
}

/// Whether any file below `dir` holds this text.
fn is_on_disk(dir: &std::path::Path, text: &str) -> bool {
    let entries = std::fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path()).any(|path| match path.is_dir() {
        true => is_on_disk(&path, text),
        false => {
            let bytes = std::fs::read(&path).unwrap_or_default();
            bytes.windows(text.len()).any(|part| part == text.as_bytes())
        }
    })
}

/// C-MIRROR-02
#[tokio::test]
async fn a_token_is_sealed_on_the_disk_and_outlives_a_change_of_the_secret() {
    let other = other().await;
    let (topic, token) = ("foreign-sealed", "s3cret-token-of-nobody");
    write(&other, topic, plain(numbers(1..=1))).await;
    let dir = tempfile::tempdir().expect("make a directory");
    let mut cluster = Cluster::start_named("sealing", dir, None, 1, &[]).await;
    let api = Api { urls: cluster.urls(), http: client(), key: None };
    let remote = json!({ "urls": other.urls, "token": "reader" });
    let mirror = json!({ "source": topic, "dest": topic, "remote": remote });
    // Without a secret it is stored in clear, and sealed once there is one.
    api.put("/v0/routers/sealed", mirror.clone()).await.expect(201);
    arrives(&api, topic, &numbers(1..=1)).await;
    let (first, second) = ("a first secret of members", "a second secret of members");
    let mut written = 1;
    for (number, arguments) in [
        &["--cluster-secret", first][..],
        &["--cluster-secret", second, "--cluster-secret-previous", first],
        &["--cluster-secret", second],
    ]
    .into_iter()
    .enumerate()
    {
        cluster.members[0].terminate().await;
        let mut command = cluster.command(0);
        command.args(arguments);
        cluster.spawn_as(0, command);
        cluster.wait_ready(0).await;
        written += 1;
        write(&other, topic, plain(numbers(written..=written))).await;
        arrives(&api, topic, &numbers(1..=written)).await;
        if number == 0 {
            let nobody = json!({ "urls": ["http://127.0.0.1:1"], "token": token });
            let config = json!({ "source": "foreign-nobody", "dest": "foreign-nobody", "remote": nobody });
            api.put("/v0/routers/nobody", config.clone()).await.expect(201);
            assert_eq!(api.put("/v0/routers/nobody", config).await.expect(200)["remote"]["token"], "***");
            assert!(!is_on_disk(&cluster.members[0].data_dir, token));
        }
        // The leader has sealed what it found when it began to lead, before the next one can.
        let put = api.put("/v0/routers/sealed", mirror.clone()).await.expect(200);
        assert_eq!(put["created"], false);
    }
    cluster.members[0].terminate().await;
    let mut command = cluster.command(0);
    command.args(["--cluster-secret", "another secret of members"]);
    cluster.spawn_as(0, command);
    cluster.wait_ready(0).await;
    shows(&api, "sealed", "blocked", json!("secret_missing")).await;
    // Who knows the token can say it again.
    api.put("/v0/routers/sealed", mirror).await.expect(200);
    shows(&api, "sealed", "running", Value::Null).await;
    assert!(!is_on_disk(&cluster.members[0].data_dir, token));
}
