//! Many watchers through the loss of leader after leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::harness::Cluster;
use crate::watch_client::{Connects, Watcher};
use crate::watch_oracle::{Book, Totals, Written};

const WATCHERS: usize = 200;
const DEFAULT_SOAK: Duration = Duration::from_secs(15);
/// Topics of which nothing goes, one that keeps few records, one of which records are deleted.
const TOPICS: [&str; 4] = ["plain-0", "plain-1", "capped", "pruned"];
const CAP_RECORDS: u64 = 40;
const TAGS: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 3] = ["n0", "n1", "n2"];
/// Of the last record of each topic, which nobody passes over.
const LAST: &str = "last";
/// Between two batches of one writer, and between two deletes.
const PACE: Duration = Duration::from_millis(60);
const DELETE_PACE: Duration = Duration::from_millis(700);
/// From the return of a leader that was killed to the death of the next.
const KILL_PACE: Duration = Duration::from_secs(10);

fn length() -> Duration {
    std::env::var("ANTIPHON_SOAK_S").map_or(DEFAULT_SOAK, |text| {
        Duration::from_secs(text.parse().unwrap_or_else(|_| panic!("ANTIPHON_SOAK_S={text}")))
    })
}

/// What writes; clones share their numbers.
#[derive(Clone)]
struct Writer {
    client: Client,
    urls: Vec<String>,
    book: Arc<Book>,
    next_number: Arc<AtomicU64>,
}

impl Writer {
    fn record(&self) -> Written {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let pick = |from: &[&str]| from[rand::random_range(0..from.len())].to_owned();
        Written { number, tag: pick(&TAGS), node: pick(&NODES) }
    }

    /// Appends under a key, at one member after the other until one acks it; gives the last seq.
    async fn append(&self, topic: &str, records: &[Written]) -> u64 {
        let rows: Vec<_> = records
            .iter()
            .map(|record| json!({ "data": record.data(), "tag": record.tag, "node": record.node }))
            .collect();
        let body = json!({ "records": rows, "idempotency_key": records[0].number.to_string() });
        let answer = self.client.post_anywhere(&self.urls, &format!("/v0/topics/{topic}"), &body).await;
        let first_seq = answer["first_seq"].as_u64().expect("a seq");
        self.book.wrote(topic, first_seq, records);
        first_seq + records.len() as u64 - 1
    }

    async fn write(self, topic: &'static str, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let records: Vec<Written> = (0..rand::random_range(1..4)).map(|_| self.record()).collect();
            self.append(topic, &records).await;
            tokio::time::sleep(PACE).await;
        }
    }

    /// Deletes all records of one tag, again and again.
    async fn prune(self, topic: &'static str, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let tag = TAGS[rand::random_range(0..TAGS.len())];
            let number = self.book.begin_delete(topic, tag);
            let url =
                format!("{}/v0/topics/{topic}/delete", self.urls[rand::random_range(0..self.urls.len())]);
            // One of unknown outcome stays open: it may have been carried out, or will be.
            let reply = self.client.post(&url, &json!({ "match": tag })).await;
            if let Some(head_seq) = reply.ok().and_then(|answer| answer["head_seq"].as_u64()) {
                self.book.end_delete(topic, number, head_seq);
            }
            tokio::time::sleep(DELETE_PACE).await;
        }
    }
}

/// C-WATCH-05, C-WATCH-09, C-WATCH-11, C-WATCH-14, C-WATCH-20, C-WS-05, C-GAP-06: whoever dies and whoever
/// connects anew, each watcher sees exactly the records of its subscription, in order, with gaps only where a
/// tombstone says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_their_records_once_through_kills_and_reconnects() {
    let mut cluster = Cluster::start(3).await;
    let book = Arc::new(Book::default());
    for topic in TOPICS {
        let is_capped = topic == "capped";
        book.add_topic(topic, is_capped);
        let config = if is_capped { json!({ "cap_records": CAP_RECORDS }) } else { json!({}) };
        cluster.client.put(&cluster.topic_url(0, topic), &config).await.expect("make a topic");
    }
    let writer = Writer {
        client: cluster.client.clone(),
        urls: cluster.urls(),
        book: book.clone(),
        next_number: Arc::default(),
    };
    let (stop, stopped) = watch::channel(false);
    let (tell_ends, ends) = watch::channel(None);
    let mut writing = JoinSet::new();
    for topic in TOPICS {
        writing.spawn(writer.clone().write(topic, stopped.clone()));
    }
    writing.spawn(writer.clone().prune("pruned", stopped));
    let mut watching = JoinSet::new();
    for number in 0..WATCHERS {
        let topics = [TOPICS[number % 4], TOPICS[(number / 4) % 4]];
        let topics = if number % 3 == 0 { &topics[..] } else { &topics[..1] };
        let unwanted = if number % 5 == 0 { NODES[number % 3] } else { "nobody" };
        let is_web_socket = number % 2 == 1;
        let name = format!("watcher {number}");
        let watcher = Watcher::new(name, is_web_socket, unwanted, topics, &cluster.urls(), &book);
        watching.spawn(watcher.run(ends.clone()));
    }
    let until = Instant::now() + length();
    let mut kills = 0;
    // The first one dies early, so that also the shortest soak sees a death and a return.
    tokio::time::sleep(KILL_PACE / 3).await;
    while Instant::now() < until && book.complaints().is_empty() {
        let leader = cluster.leader().await;
        cluster.kill(leader);
        kills += 1;
        cluster.leader().await;
        cluster.restart(leader).await;
        let pause = KILL_PACE.min(until.saturating_duration_since(Instant::now()));
        tokio::time::sleep(pause).await;
    }
    stop.send_replace(true);
    while let Some(ended) = writing.join_next().await {
        ended.expect("a writer panicked");
    }
    let mut heads = BTreeMap::new();
    let last = |number| Written { number, tag: LAST.to_owned(), node: LAST.to_owned() };
    for (topic, number) in TOPICS.into_iter().zip(u64::MAX - 9..) {
        heads.insert(topic.to_owned(), writer.append(topic, &[last(number)]).await);
    }
    tell_ends.send_replace(Some(Arc::new(heads.clone())));
    let (mut totals, mut connects) = (Totals::default(), Connects::default());
    let mut earliest = BTreeMap::new();
    for topic in TOPICS {
        let state = cluster.client.get(&cluster.topic_url(0, topic)).await.expect("the state of a topic");
        earliest.insert(topic.to_owned(), state["earliest_seq"].as_u64().expect("a seq"));
    }
    let mut events = 0;
    while let Some(ended) = watching.join_next().await {
        let watcher = ended.expect("a watcher panicked");
        events += usize::from(!watcher.is_web_socket);
        for (topic, progress) in &watcher.topics {
            let end = (heads[topic], earliest[topic]);
            totals.add(book.judge(&watcher.name, watcher.unwanted, topic, progress, end));
        }
        connects.anew += watcher.connects.anew;
        connects.resumed += watcher.connects.resumed;
        connects.lost += watcher.connects.lost;
    }
    let written: u64 = heads.values().sum();
    println!(
        "{written} records written, {kills} leaders killed; {events} event streams and {} sockets: {totals}; \
         {} connections anew, {} by Last-Event-ID, {} lost",
        WATCHERS - events,
        connects.anew,
        connects.resumed,
        connects.lost
    );
    let complaints = book.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
    // Or the test has lost its point.
    assert!(kills > 0 && totals.tombstones > 0 && totals.deleted > 0 && totals.unwanted > 0);
    assert!(connects.lost > 0 && connects.resumed > 0);
}
