//! Sections 13 and 15: what local routers copy, and what becomes of it. How they are configured is in `routers`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{PATIENCE, eventually};
use crate::shared::{Api, api};

async fn route(api: &Api, source: &str, dest: &str, fields: Value) -> String {
    let router = format!("{source}->{dest}");
    let mut config = json!({ "source": source, "dest": dest });
    for (field, value) in fields.as_object().expect("an object") {
        config[field] = value.clone();
    }
    api.put(&format!("/v0/routers/{router}"), config).await.expect(201);
    router
}

pub async fn write(api: &Api, topic: &str, records: Value) {
    let written = api.post(&format!("/v0/topics/{topic}"), json!({ "records": records })).await;
    assert!(written.status == 200 || written.status == 201, "{}", written.body);
}

/// What a reader of all of `topic` sees: the records, and the gaps that it is told of.
pub async fn read(api: &Api, topic: &str) -> (Vec<Value>, Vec<Value>) {
    let (mut records, mut gaps, mut from_seq) = (Vec::new(), Vec::new(), 0);
    loop {
        let query =
            json!({ "from_seq": from_seq, "limit": 1000, "include_tags": true, "include_origin": true });
        let page = api.diff(topic, query).await.expect(200);
        gaps.extend(Some(page["tombstone"].clone()).filter(|gap| !gap.is_null()));
        records.extend(page["records"].as_array().expect("a list").iter().cloned());
        from_seq = page["next_from_seq"].as_u64().expect("a seq");
        if page["caught_up"] == true {
            return (records, gaps);
        }
    }
}

pub fn data(records: &[Value]) -> Vec<Value> {
    records.iter().map(|record| record["data"].clone()).collect()
}

/// Waits until `topic` holds what is expected, and gives its records.
pub async fn arrives(api: &Api, topic: &str, expected: &[Value]) -> Vec<Value> {
    let mut last = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = api.topic(topic).await;
        if answer.status == 200 {
            last = read(api, topic).await.0;
            if data(&last) == expected {
                return last;
            }
        }
        assert!(Instant::now() < deadline, "{topic} holds {:?} and not {expected:?}", data(&last));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a router shows `state` and so much lag, and gives all that it shows.
pub async fn shows(api: &Api, router: &str, state: &str, lag: u64) -> Value {
    let what = format!("{router} shows {state} and lag {lag}");
    eventually(&what, PATIENCE, async || {
        let shown = api.get(&format!("/v0/routers/{router}")).await.expect(200);
        (shown["state"] == state && shown["lag"] == lag).then_some(shown)
    })
    .await
}

/// Waits until everything that is in `source` now was looked at.
async fn settled(api: &Api, router: &str) -> Value {
    shows(api, router, "running", 0).await
}

pub fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<Value> {
    range.map(|number| json!(number)).collect()
}

pub fn plain(data: Vec<Value>) -> Value {
    data.into_iter().map(|data| json!({ "data": data })).collect()
}

/// C-ROUTE-04, C-NODE-01, C-MIRROR-16
#[tokio::test]
async fn copies_come_in_order_with_their_content() {
    let api = api().await;
    route(&api, "routing-copy", "routing-copy-all", json!({})).await;
    let bare = json!({ "preserve_node": false, "preserve_tag": false });
    route(&api, "routing-copy", "routing-copy-bare", bare).await;
    write(&api, "routing-copy-all", plain(numbers(100..=100))).await;
    let content = [
        json!({ "data": { "a": 1.250, "b": [null] }, "meta": { "z": 1, "a": "2" }, "node": "n1", "tag": "t:1" }),
        json!({ "data": 12345678901234567890u64, "tag": "t:2" }),
        json!({ "data": null, "node": "n2" }),
    ];
    for record in &content {
        write(&api, "routing-copy", json!([record])).await;
    }
    let (source, _) = read(&api, "routing-copy").await;
    let wanted: Vec<Value> = std::iter::once(json!(100)).chain(data(&source)).collect();
    let copies = arrives(&api, "routing-copy-all", &wanted).await;
    for (record, copy) in source.iter().zip(&copies[1..]) {
        for field in ["data", "meta", "$node", "$tag"] {
            assert_eq!(copy.get(field), record.get(field), "{field}");
        }
        assert_eq!(copy["$seq"], record["$seq"].as_u64().expect("a seq") + 1);
        assert!(copy["$ts"].as_u64() >= record["$ts"].as_u64());
        let origin = json!({ "cluster": "tests", "topic": "routing-copy", "seq": record["$seq"], "ts": record["$ts"] });
        assert_eq!(copy["$origin"], origin);
    }
    assert!(copies[0].get("$origin").is_none());
    let copies = arrives(&api, "routing-copy-bare", &data(&source)).await;
    assert!(
        copies.iter().all(|copy| copy.get("$node").is_none() && copy.get("$tag").is_none()),
        "{copies:?}"
    );
    assert_eq!(copies[0]["meta"], source[0]["meta"]);
}

/// C-ROUTE-18, C-ROUTE-03
#[tokio::test]
async fn copies_are_there_within_a_second_whoever_takes_the_write() {
    let api = api().await;
    let router = route(&api, "routing-soon", "routing-soon-b", json!({})).await;
    for number in 1..=6u64 {
        write(&api.at(number as usize), "routing-soon", plain(numbers(number..=number))).await;
        let acked = Instant::now();
        arrives(&api, "routing-soon-b", &numbers(1..=number)).await;
        // The machine has other tests to run meanwhile.
        assert!(acked.elapsed() < Duration::from_secs(3), "record {number} took {:?}", acked.elapsed());
    }
    let shown = settled(&api, &router).await;
    assert_eq!((&shown["forwarded_total"], &shown["last_error"]), (&json!(6), &json!(null)));
    let (records, _) = read(&api, "routing-soon-b").await;
    assert_eq!(shown["last_forwarded_ts"], records[5]["$ts"]);
}

/// C-ROUTE-06
#[tokio::test]
async fn several_sources_come_together_in_one_topic() {
    let api = api().await;
    let sources = ["routing-in-a", "routing-in-b"];
    for source in sources {
        route(&api, source, "routing-in", json!({})).await;
    }
    for number in 1..=20u64 {
        for source in sources {
            write(&api, source, plain(numbers(number..=number))).await;
        }
    }
    for source in sources {
        settled(&api, &format!("{source}->routing-in")).await;
    }
    let (records, gaps) = read(&api, "routing-in").await;
    assert_eq!((records.len(), gaps.len()), (40, 0));
    for source in sources {
        let of_source: Vec<Value> =
            records.iter().filter(|record| record["$origin"]["topic"] == source).cloned().collect();
        assert_eq!(data(&of_source), numbers(1..=20), "{source}");
    }
}

/// C-ROUTE-06: with much to copy, one source does not keep another from its turn.
#[tokio::test]
async fn sources_take_turns() {
    let api = api().await;
    let much = route(&api, "routing-turn-a", "routing-turn", json!({})).await;
    let little = route(&api, "routing-turn-b", "routing-turn", json!({})).await;
    for router in [&much, &little] {
        api.post(&format!("/v0/routers/{router}/pause"), json!({})).await.expect(200);
    }
    let count = 100_000;
    for first in (1..=count).step_by(1000) {
        write(&api, "routing-turn-a", plain(numbers(first..=first + 999))).await;
    }
    write(&api, "routing-turn-b", json!([{ "data": 0, "tag": "b" }])).await;
    for router in [&much, &little] {
        api.post(&format!("/v0/routers/{router}/resume"), json!({})).await.expect(200);
    }
    settled(&api, &much).await;
    settled(&api, &little).await;
    let (mut from_seq, mut place) = (0, None);
    while place.is_none() {
        let page = json!({ "from_seq": from_seq, "filter": "b" });
        let page = api.diff("routing-turn", page).await.expect(200);
        assert_eq!(page["head_seq"], count + 1);
        place = page["records"][0]["$seq"].as_u64();
        from_seq = page["next_from_seq"].as_u64().expect("a seq");
        assert!(place.is_some() || from_seq <= count, "it is not there");
    }
    let place = place.expect("was found");
    assert!(place < count * 2 / 3, "it had to wait for {place} others");
}

/// C-ROUTE-07: over several ways, and after the copy was deleted or evicted.
#[tokio::test]
async fn a_record_enters_a_topic_once() {
    let api = api().await;
    for (source, dest) in [("s", "b"), ("s", "c"), ("b", "d"), ("c", "d")] {
        route(&api, &format!("routing-once-{source}"), &format!("routing-once-{dest}"), json!({})).await;
    }
    write(&api, "routing-once-s", plain(numbers(1..=20))).await;
    arrives(&api, "routing-once-d", &numbers(1..=20)).await;
    api.post("/v0/topics/routing-once-d/delete", json!({ "before_seq": 6 })).await.expect(200);
    api.put("/v0/topics/routing-once-d", json!({ "cap_records": 10 })).await.expect(200);
    let again = route(&api, "routing-once-s", "routing-once-d", json!({ "start": "earliest" })).await;
    let shown = settled(&api, &again).await;
    assert_eq!(shown["forwarded_total"], 0);
    write(&api, "routing-once-s", plain(numbers(21..=21))).await;
    arrives(&api, "routing-once-d", &numbers(12..=21)).await;
    for way in ["routing-once-b->routing-once-d", "routing-once-c->routing-once-d", &again] {
        settled(&api, way).await;
    }
    assert_eq!(api.topic("routing-once-d").await.expect(200)["head_seq"], 21);
}

/// C-ROUTE-07, C-ROUTE-08, C-NODE-07
#[tokio::test]
async fn a_cycle_ends_with_every_record_once_everywhere() {
    let api = api().await;
    let topics = ["routing-ring-a", "routing-ring-b", "routing-ring-c"];
    let mut routers = Vec::new();
    for at in 0..3 {
        for to in [(at + 1) % 3, (at + 2) % 3] {
            let fields = json!({ "allow_cycle": true });
            routers.push(route(&api, topics[at], topics[to], fields).await);
        }
    }
    for (number, topic) in (1..=3u64).zip(topics) {
        for turn in 0..10u64 {
            let record = json!({ "data": number * 100 + turn, "node": topic });
            write(&api, topic, json!([record])).await;
        }
    }
    for topic in topics {
        let what = format!("{topic} has all records");
        let (records, _) = eventually(&what, PATIENCE, async || {
            let (records, gaps) = read(&api, topic).await;
            (records.len() >= 30).then_some((records, gaps))
        })
        .await;
        for number in 1..=3 {
            let of_one: Vec<u64> =
                data(&records).iter().filter_map(Value::as_u64).filter(|it| it / 100 == number).collect();
            assert_eq!(of_one, (number * 100..number * 100 + 10).collect::<Vec<u64>>(), "{topic}");
        }
    }
    for router in &routers {
        settled(&api, router).await;
    }
    for topic in topics {
        assert_eq!(api.topic(topic).await.expect(200)["head_seq"], 30, "{topic}");
        let others = api.diff(topic, json!({ "node": topic, "limit": 1000 })).await.expect(200);
        let others = others["records"].as_array().expect("a list");
        assert_eq!(others.len(), 20);
        assert!(others.iter().all(|record| record["$node"] != topic), "its own came back");
    }
}

/// C-ROUTE-09
#[tokio::test]
async fn a_record_arrives_if_any_of_the_filters_lets_it_through() {
    let api = api().await;
    let (source, dest) = ("routing-any", "routing-any-b");
    for (name, filter) in [("one", json!("x:*")), ("two", json!(["data.n", "Gte", 10]))] {
        let config = json!({ "source": source, "dest": dest, "filter": filter });
        api.put(&format!("/v0/routers/routing-any-{name}"), config).await.expect(201);
    }
    let tagged = [(1, "x:1"), (2, "y:1"), (10, "y:2"), (11, "x:2"), (3, "x:3")];
    write(&api, source, tagged.iter().map(|(n, tag)| json!({ "data": { "n": n }, "tag": tag })).collect())
        .await;
    for router in ["routing-any-one", "routing-any-two"] {
        settled(&api, router).await;
    }
    let (records, gaps) = read(&api, dest).await;
    let mut found: Vec<u64> = records.iter().filter_map(|record| record["data"]["n"].as_u64()).collect();
    found.sort();
    assert_eq!((found, gaps.len()), (vec![1, 3, 10, 11], 0));
}

/// C-FILT-04
#[tokio::test]
async fn a_filter_sees_the_source_and_not_the_copy() {
    let api = api().await;
    let (source, bare, end) = ("routing-sees", "routing-sees-bare", "routing-sees-end");
    let filter = json!(["And", [["tag", "Eq", "x"], ["node", "Eq", "n"]]]);
    let hides = json!({ "preserve_node": false, "preserve_tag": false, "filter": filter });
    route(&api, source, bare, hides).await;
    let onward = route(&api, bare, end, json!({ "filter": filter })).await;
    let labelled = |number: u64, tag: &str| json!({ "data": number, "node": "n", "tag": tag });
    write(&api, source, json!([labelled(1, "x"), labelled(2, "y"), labelled(3, "x")])).await;
    let copies = arrives(&api, bare, &[json!(1), json!(3)]).await;
    assert!(copies.iter().all(|copy| copy.get("$node").is_none() && copy.get("$tag").is_none()));
    // What the copies do not show is not there for the next router either.
    settled(&api, &onward).await;
    assert_eq!(data(&read(&api, end).await.0), Vec::<Value>::new());
}

/// C-ROUTE-13
#[tokio::test]
async fn a_destination_evicts_for_copies_as_for_writes() {
    let api = api().await;
    api.put("/v0/topics/routing-cap-b", json!({ "cap_records": 4 })).await.expect(201);
    api.put("/v0/topics/routing-ttl-b", json!({ "ttl_ms": 1500 })).await.expect(201);
    write(&api, "routing-old", plain(numbers(1..=10))).await;
    api.put("/v0/topics/routing-clock", json!({ "ttl_ms": 1500 })).await.expect(201);
    write(&api, "routing-clock", plain(numbers(1..=1))).await;
    let capped = route(&api, "routing-old", "routing-cap-b", json!({ "start": "earliest" })).await;
    settled(&api, &capped).await;
    let (records, gaps) = read(&api, "routing-cap-b").await;
    assert_eq!((data(&records), gaps.len()), (numbers(7..=10), 1));
    assert_eq!((&gaps[0]["reason"], &gaps[0]["gap_to"]), (&json!("cap"), &json!(6)));
    // What is older at its source than its destination keeps records begins a life of its own there.
    arrives(&api, "routing-clock", &[]).await;
    route(&api, "routing-old", "routing-ttl-b", json!({ "start": "earliest" })).await;
    arrives(&api, "routing-ttl-b", &numbers(1..=10)).await;
    arrives(&api, "routing-ttl-b", &[]).await;
}

/// C-ROUTE-14, C-ROUTE-03
#[tokio::test]
async fn a_full_destination_holds_its_router_up_and_nobody_else() {
    let api = api().await;
    api.put("/v0/topics/routing-full-b", json!({ "cap_records": 3, "discard": "reject" })).await.expect(201);
    let router = route(&api, "routing-full", "routing-full-b", json!({})).await;
    let other = route(&api, "routing-full", "routing-full-c", json!({})).await;
    write(&api, "routing-full", plain(numbers(1..=8))).await;
    let shown = shows(&api, &router, "blocked", 5).await;
    assert_eq!(shown["last_error"]["code"], "topic_full");
    assert!(shown["last_error"]["message"].is_string() && shown["last_error"]["ts"].is_u64());
    settled(&api, &other).await;
    // A source with a router that is held up is written to as quickly as one without (C-ROUTE-03).
    let (mut routed, mut alone) = (Duration::ZERO, Duration::ZERO);
    for topic in ["routing-full-alone", "routing-held"] {
        api.put(&format!("/v0/topics/{topic}"), json!({})).await.expect(201);
    }
    let held = route(&api, "routing-held", "routing-full-b", json!({})).await;
    for _ in 0..20 {
        for (topic, took) in [("routing-held", &mut routed), ("routing-full-alone", &mut alone)] {
            let start = Instant::now();
            api.write(topic, 1).await.expect(200);
            *took += start.elapsed();
        }
    }
    assert!(routed <= 3 * alone + Duration::from_millis(500), "{routed:?} with a router, {alone:?} without");
    assert_eq!(api.get(&format!("/v0/routers/{held}")).await.expect(200)["state"], "blocked");
    api.delete(&format!("/v0/routers/{held}")).await.expect(200);
    write(&api, "routing-full", plain(numbers(9..=9))).await;
    assert_eq!(settled(&api, &other).await["forwarded_total"], 9);
    // What is configured elsewhere meanwhile does not hide how it does.
    route(&api, "routing-full", "routing-full-d", json!({})).await;
    arrives(&api, "routing-full-b", &numbers(1..=3)).await;
    let mut expected = numbers(1..=3);
    for before_seq in [3, 6, 9] {
        // In the end it has no occasion to find out that there is room, but for going on.
        let is_paused = before_seq == 9;
        if is_paused {
            shows(&api, &router, "blocked", 1).await;
            api.post(&format!("/v0/routers/{router}/pause"), json!({})).await.expect(200);
        }
        api.post("/v0/topics/routing-full-b/delete", json!({ "before_seq": before_seq })).await.expect(200);
        if is_paused {
            api.post(&format!("/v0/routers/{router}/resume"), json!({})).await.expect(200);
        }
        let kept = before_seq..=(before_seq + 2).min(9);
        expected = numbers(kept);
        arrives(&api, "routing-full-b", &expected).await;
    }
    assert_eq!(expected, numbers(9..=9));
    let shown = settled(&api, &router).await;
    assert_eq!((&shown["last_error"], &shown["forwarded_total"]), (&json!(null), &json!(9)));
}

/// C-ROUTE-15, C-GAP-08, C-GAP-09
#[tokio::test]
async fn what_was_evicted_before_it_was_copied_is_a_gap() {
    let api = api().await;
    api.put("/v0/topics/routing-gap", json!({ "cap_records": 5 })).await.expect(201);
    let router = route(&api, "routing-gap", "routing-gap-b", json!({})).await;
    let onward = route(&api, "routing-gap-b", "routing-gap-c", json!({})).await;
    write(&api, "routing-gap", plain(numbers(1..=3))).await;
    arrives(&api, "routing-gap-c", &numbers(1..=3)).await;
    api.post(&format!("/v0/routers/{router}/pause"), json!({})).await.expect(200);
    write(&api, "routing-gap", plain(numbers(4..=20))).await;
    api.post(&format!("/v0/routers/{router}/resume"), json!({})).await.expect(200);
    let expected: Vec<Value> = numbers(1..=3).into_iter().chain(numbers(16..=20)).collect();
    for topic in ["routing-gap-b", "routing-gap-c"] {
        let records = arrives(&api, topic, &expected).await;
        let (_, gaps) = read(&api, topic).await;
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!((&gaps[0]["reason"], &gaps[0]["gap_from"]), (&json!("source_trim"), &json!(4)));
        assert_eq!(gaps[0]["gap_to"], 4, "a marker takes one seq");
        let origin = json!({ "cluster": "tests", "topic": "routing-gap", "gap_from": 4, "gap_to": 15 });
        assert_eq!(gaps[0]["origin"], origin);
        assert_eq!(records[3]["$seq"], 5);
        // A page ends before the marker, and the next one begins with it.
        let page = api.diff(topic, json!({ "from_seq": 1 })).await.expect(200);
        assert_eq!((&page["next_from_seq"], &page["tombstone"]), (&json!(3), &json!(null)));
    }
    settled(&api, &onward).await;
}

/// C-ROUTE-16, C-DEL-08, C-TOPIC-13
#[tokio::test]
async fn deletes_do_not_travel_along_a_router() {
    let api = api().await;
    let router = route(&api, "routing-del", "routing-del-b", json!({})).await;
    let records = (1..=4u64).map(|number| json!({ "data": number, "node": "n", "tag": "t" })).collect();
    write(&api, "routing-del", records).await;
    arrives(&api, "routing-del-b", &numbers(1..=4)).await;
    api.post("/v0/topics/routing-del/delete", json!({ "match": "t" })).await.expect(200);
    write(&api, "routing-del", plain(numbers(5..=5))).await;
    arrives(&api, "routing-del-b", &numbers(1..=5)).await;
    let deleted = api.delete("/v0/topics/routing-del").await.expect(200);
    assert!(deleted.to_string().contains(&router), "{deleted}");
    assert_eq!(data(&read(&api, "routing-del-b").await.0), numbers(1..=5));
}

/// C-ROUTE-17
#[tokio::test]
async fn a_queue_can_be_copied_from_and_into() {
    let api = api().await;
    api.put("/v0/topics/routing-queue", json!({ "type": "queue" })).await.expect(201);
    route(&api, "routing-queue-a", "routing-queue", json!({})).await;
    route(&api, "routing-queue", "routing-queue-b", json!({})).await;
    write(&api, "routing-queue-a", plain(numbers(1..=3))).await;
    arrives(&api, "routing-queue", &numbers(1..=3)).await;
    arrives(&api, "routing-queue-b", &numbers(1..=3)).await;
    assert_eq!(api.topic("routing-queue").await.expect(200)["head_seq"], 3);
}

/// C-ROUTE-21, C-ROUTE-22
#[tokio::test]
async fn a_router_stops_at_once_and_goes_on_where_it_was() {
    let api = api().await;
    let router = route(&api, "routing-stop", "routing-stop-b", json!({})).await;
    write(&api, "routing-stop", plain(numbers(1..=2))).await;
    arrives(&api, "routing-stop-b", &numbers(1..=2)).await;
    api.post(&format!("/v0/routers/{router}/pause"), json!({})).await.expect(200);
    write(&api, "routing-stop", plain(numbers(3..=4))).await;
    // Another router shows that there was time enough.
    let witness = route(&api, "routing-stop", "routing-stop-c", json!({ "start": "earliest" })).await;
    arrives(&api, "routing-stop-c", &numbers(1..=4)).await;
    shows(&api, &router, "paused", 2).await;
    api.post(&format!("/v0/routers/{router}/resume"), json!({})).await.expect(200);
    arrives(&api, "routing-stop-b", &numbers(1..=4)).await;
    api.delete(&format!("/v0/routers/{router}")).await.expect(200);
    write(&api, "routing-stop", plain(numbers(5..=6))).await;
    arrives(&api, "routing-stop-c", &numbers(1..=6)).await;
    settled(&api, &witness).await;
    assert_eq!(data(&read(&api, "routing-stop-b").await.0), numbers(1..=4));
}
