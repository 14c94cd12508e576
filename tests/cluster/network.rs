//! Several clusters that mirror topics to each other, each over links that can be cut.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::harness::{Cluster, eventually, one_cluster};
use crate::link::Link;

/// How long clusters may take until all have everything: pauses between tries grow while a link is cut.
pub const CONVERGENCE: Duration = Duration::from_secs(60);
/// Pause between two writes of one writer.
const PACE: Duration = Duration::from_millis(15);

pub struct Network {
    pub clusters: Vec<Cluster>,
    /// By the cluster that pulls and the one that is pulled from: one for each member there.
    links: BTreeMap<(usize, usize), Vec<Link>>,
    _permit: SemaphorePermit<'static>,
}

impl Network {
    /// Clusters of these sizes, called c0, c1, and so on.
    pub async fn start(sizes: &[usize]) -> Network {
        let permit = one_cluster().await;
        let mut clusters = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let dir = tempfile::tempdir().expect("make a directory");
            clusters.push(Cluster::start_named(&format!("c{number}"), dir, None, *size, &[]).await);
        }
        Network { clusters, links: BTreeMap::new(), _permit: permit }
    }

    /// As [`Network::start`], with mirrors of all topics `t*` from each cluster into each.
    pub async fn start_mesh(sizes: &[usize]) -> Network {
        let mut network = Network::start(sizes).await;
        for to in 0..sizes.len() {
            for from in (0..sizes.len()).filter(|from| *from != to) {
                network.mirror(to, from).await;
            }
        }
        network
    }

    /// Has cluster `to` pull all topics `t*` of cluster `from`.
    pub async fn mirror(&mut self, to: usize, from: usize) {
        self.mirror_with(to, from, json!({})).await;
    }

    /// The same with these fields in its configuration.
    pub async fn mirror_with(&mut self, to: usize, from: usize, fields: Value) {
        let mut links = Vec::new();
        for member in &self.clusters[from].members {
            links.push(Link::to(member.client_port).await);
        }
        let urls: Vec<String> = links.iter().map(Link::url).collect();
        let mut config = json!({ "source": "t*", "dest": "*", "remote": { "urls": urls, "relays": ["*"] } });
        for (field, value) in fields.as_object().expect("an object") {
            config[field] = value.clone();
        }
        let url = format!("{}/v0/routers/from-c{from}", self.clusters[to].members[0].url());
        self.clusters[to].client.put(&url, &config).await.expect("a mirror");
        self.links.insert((to, from), links);
    }

    /// Bytes that `to` has sent to `from`: what its pulls say.
    pub fn pull_bytes(&self, to: usize, from: usize) -> u64 {
        self.links[&(to, from)].iter().map(Link::sent_bytes).sum()
    }

    /// Cuts the way by which `to` pulls from `from`.
    pub fn cut(&self, to: usize, from: usize) {
        self.links[&(to, from)].iter().for_each(Link::cut);
    }

    pub fn heal(&self, to: usize, from: usize) {
        self.links[&(to, from)].iter().for_each(Link::heal);
    }

    pub fn ways(&self) -> Vec<(usize, usize)> {
        self.links.keys().copied().collect()
    }

    /// Kills the leader of `cluster`, and starts it again after `pause`.
    pub async fn kill_leader(&mut self, cluster: usize, pause: Duration) {
        let leader = self.clusters[cluster].leader().await;
        self.clusters[cluster].kill(leader);
        tokio::time::sleep(pause).await;
        self.clusters[cluster].restart(leader).await;
    }

    /// What a router of `cluster` shows.
    pub async fn router(&self, cluster: usize, router: &str) -> Value {
        let url = format!("{}/v0/routers/{router}", self.clusters[cluster].members[0].url());
        self.clusters[cluster].client.get(&url).await.expect("a router")
    }

    pub fn writer(&self, cluster: usize, topic: &str) -> Writer {
        Writer::start(self.clusters[cluster].urls(), format!("c{cluster}"), topic.to_owned())
    }

    /// Writes the records of these numbers at `cluster`, one batch.
    pub async fn write(&self, cluster: usize, topic: &str, numbers: std::ops::RangeInclusive<u64>) {
        let client = &self.clusters[cluster].client;
        let records = records(&format!("c{cluster}"), numbers);
        let url = self.clusters[cluster].topic_url(0, topic);
        client.post(&url, &json!({ "records": records })).await.expect("a write");
    }

    /// What `topic` of `cluster` has taken, by where that was first written: the count, the digest, and what was lost.
    pub async fn origins(&self, cluster: usize, topic: &str) -> Option<BTreeMap<(String, u64), Value>> {
        let url = format!("{}/origins", self.clusters[cluster].topic_url(0, topic));
        let shown = self.clusters[cluster].client.get(&url).await.ok()?;
        let origins = shown["origins"].as_array().expect("a list").iter();
        let taken = origins.filter(|origin| origin["records"] != 0 || origin["lost"] != 0).map(|origin| {
            assert_eq!(origin["own"] == true, origin["epoch"] == shown["epoch"] && is_of(origin, cluster));
            let key = (
                origin["cluster"].as_str().expect("a name").to_owned(),
                origin["epoch"].as_u64().expect("a number"),
            );
            (key, json!([origin["records"], origin["digest"], origin["lost_ranges"]]))
        });
        Some(taken.collect())
    }

    /// Waits until all clusters have taken the same, and so much of each of them.
    pub async fn converges(&self, topic: &str, written: &[u64]) {
        let deadline = Instant::now() + CONVERGENCE;
        loop {
            let mut all = Vec::new();
            for cluster in 0..self.clusters.len() {
                all.push(self.origins(cluster, topic).await);
            }
            let counts = |origins: &Option<BTreeMap<(String, u64), Value>>| -> Vec<u64> {
                let of = |number: usize| {
                    let origins = origins.iter().flatten();
                    let own = origins.filter(|((name, _), _)| *name == format!("c{number}"));
                    own.filter_map(|(_, taken)| taken[0].as_u64()).sum()
                };
                (0..self.clusters.len()).map(of).collect()
            };
            if all.iter().all(|one| *one == all[0] && counts(one) == written) {
                return;
            }
            assert!(Instant::now() < deadline, "{written:?} were written, taken was {all:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// All records that member `member` of `cluster` has, and the gaps that it tells.
    pub async fn read(&self, cluster: usize, member: usize, topic: &str) -> (Vec<Value>, Vec<Value>) {
        let url = format!("{}/diff", self.clusters[cluster].topic_url(member, topic));
        let (mut records, mut gaps, mut from_seq) = (Vec::new(), Vec::new(), 0);
        loop {
            let query = json!({ "from_seq": from_seq, "limit": 1000, "include_origin": true });
            let page = self.clusters[cluster].client.post(&url, &query).await;
            if page.code() == "topic_not_found" {
                return (records, gaps);
            }
            let page = page.expect("a page");
            gaps.extend(Some(page["tombstone"].clone()).filter(|gap| !gap.is_null()));
            records.extend(page["records"].as_array().expect("a list").iter().cloned());
            from_seq = page["next_from_seq"].as_u64().expect("a seq");
            if page["caught_up"] == true {
                return (records, gaps);
            }
        }
    }

    /// Checks that every member of every cluster has every record that was written, once and in the order of its
    /// writer, with where it comes from, and no gap.
    pub async fn check(&self, topic: &str, written: &[u64]) {
        for cluster in 0..self.clusters.len() {
            for member in 0..self.clusters[cluster].members.len() {
                let (records, gaps) = self.read(cluster, member, topic).await;
                assert!(gaps.is_empty(), "c{cluster}: {gaps:?}");
                for (writer, last) in written.iter().enumerate() {
                    let found = numbers_of(&records, writer);
                    let expected: Vec<u64> = (1..=*last).collect();
                    let at = found.iter().zip(&expected).take_while(|(one, other)| one == other).count();
                    assert_eq!(found.get(at..), expected.get(at..), "c{cluster}, of c{writer}, from {at} on");
                }
                for record in &records {
                    let is_own = record["data"]["by"] == format!("c{cluster}");
                    assert_eq!(record.get("$origin").is_none(), is_own, "c{cluster}: {record}");
                    assert!(is_own || record["$origin"]["cluster"] == record["data"]["by"], "{record}");
                }
            }
        }
    }

    /// Waits until no mirror has anything to complain of.
    pub async fn all_run(&self) {
        for (to, from) in self.ways() {
            eventually(&format!("c{to} pulls from c{from}"), CONVERGENCE, async || {
                let shown = self.router(to, &format!("from-c{from}")).await;
                let is_well =
                    shown["state"] == "running" && shown["lag"] == 0 && shown["last_error"].is_null();
                is_well.then_some(())
            })
            .await;
        }
    }
}

fn is_of(origin: &Value, cluster: usize) -> bool {
    origin["cluster"] == format!("c{cluster}")
}

/// The numbers of the records of one writer, in the order in which they are there.
pub fn numbers_of(records: &[Value], writer: usize) -> Vec<u64> {
    let of_writer = records.iter().filter(|record| record["data"]["by"] == format!("c{writer}"));
    of_writer.filter_map(|record| record["data"]["n"].as_u64()).collect()
}

fn records(by: &str, numbers: std::ops::RangeInclusive<u64>) -> Vec<Value> {
    numbers.map(|number| json!({ "data": { "by": by, "n": number } })).collect()
}

/// Writes records with rising numbers until it is stopped, each batch until it is acked; a key makes it one.
pub struct Writer {
    is_stopped: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Writer {
    fn start(urls: Vec<String>, by: String, topic: String) -> Writer {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = is_stopped.clone();
        let task = tokio::spawn(async move {
            let client = Client::new();
            let (mut last, mut turn) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let count = 1 + last % 4;
                let records = records(&by, last + 1..=last + count);
                let body = json!({ "records": records, "idempotency_key": format!("{by}-{last}") });
                loop {
                    turn += 1;
                    let url = format!("{}/v0/topics/{topic}", urls[turn % urls.len()]);
                    if client.post(&url, &body).await.ok().is_some() {
                        break;
                    }
                    tokio::time::sleep(PACE).await;
                }
                last += count;
                tokio::time::sleep(PACE).await;
            }
            last
        });
        Writer { is_stopped, task }
    }

    /// Ends it, and gives the number of its last record.
    pub async fn finish(self) -> u64 {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.task.await.expect("a writer panicked")
    }
}
