//! Figures of this member, for metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cluster_view::one_per_name;
use super::{Consistency, Engine, HeldView, LinkState};
use crate::limits::{MAX_LIST_PAGE, MAX_METRIC_ROUTERS, MAX_METRIC_TOPICS};
use crate::raft::Leader;
use crate::state::{Durability, RouterQuery, SharedTopic, TopicType};
use crate::storage::LogStats;

/// A reading of everything that metrics tell.
#[derive(Debug, Clone)]
pub struct Figures {
    pub topics: u64,
    /// Topics by class, from `ephemeral` to `fsync`.
    pub topics_by_class: [u64; 4],
    pub queue_topics: u64,
    pub routers: u64,
    pub records_live: u64,
    pub bytes_live: u64,
    /// Idempotency keys that the cluster remembers.
    pub idempotency_keys: u64,
    /// Event streams and WebSockets that are open here.
    pub streams: u64,
    pub watch_sessions: u64,
    pub is_ready: bool,
    /// 0.0 to 1.0.
    pub replay_progress: f64,
    pub uptime_ms: u64,
    /// The first topics by name, at most [`MAX_METRIC_TOPICS`].
    pub by_topic: Vec<TopicFigures>,
    /// The first routers by name, at most [`MAX_METRIC_ROUTERS`].
    pub by_router: Vec<RouterFigures>,
    pub log: LogStats,
    /// Whether records are refused for want of room.
    pub is_read_only: bool,
    pub is_leader: bool,
    pub term: u64,
    pub commit_index: u64,
    pub applied_index: u64,
    pub elections: u64,
    pub forwarded_requests: u64,
    /// Entries that the checkpoint on disk does not cover, and how long ago it covered all.
    pub checkpoint_lag: u64,
    pub checkpoint_age_ms: u64,
    /// What keeps the log longer than it should be.
    pub log_held: Option<HeldView>,
    /// Free space of the disk that holds the data, once it was measured.
    pub disk_free_bytes: Option<u64>,
    /// All members, by name.
    pub by_member: Vec<MemberFigures>,
}

/// One member's figures, as they are known here.
#[derive(Debug, Clone)]
pub struct MemberFigures {
    pub name: String,
    /// Whether it was heard lately.
    pub is_up: bool,
    /// How many entries it is behind; of one that is down, by what it said last. Of one that was never heard nothing is
    /// known.
    pub lag: Option<u64>,
}

/// One topic's figures.
#[derive(Debug, Clone)]
pub struct TopicFigures {
    pub name: Arc<str>,
    pub is_queue: bool,
    pub head_seq: u64,
    pub earliest_seq: u64,
    pub records_live: u64,
    pub bytes_live: u64,
}

/// One router's figures.
#[derive(Debug, Clone)]
pub struct RouterFigures {
    pub name: Arc<str>,
    /// Copies stored.
    pub forwarded_total: u64,
    /// State and lag; only the leader, which runs the routers, knows them.
    pub link: Option<(LinkState, u64)>,
}

impl TopicFigures {
    fn of(shared: &SharedTopic) -> (Self, Durability) {
        let topic = shared.read();
        let figures = TopicFigures {
            name: topic.name.clone(),
            is_queue: topic.config.topic_type == TopicType::Queue,
            head_seq: topic.head_seq,
            earliest_seq: topic.earliest_seq,
            records_live: topic.count,
            bytes_live: topic.bytes,
        };
        (figures, topic.config.durability)
    }
}

impl Engine {
    /// Reads all figures; of topics and routers those whose names start with one of `prefixes`, which are disjoint and in
    /// order. Goes over every such topic, a page at a time.
    pub async fn figures(&self, prefixes: &[String]) -> Figures {
        let node = &self.inner.node;
        let catalog = self.catalog();
        let readiness = self.readiness();
        let (term, commit_index) = node.term_and_commit();
        let applied_index = node.applied().index();
        let commit_index = commit_index.max(applied_index);
        let mut figures = Figures {
            topics: 0,
            topics_by_class: [0; 4],
            queue_topics: 0,
            routers: 0,
            records_live: 0,
            bytes_live: 0,
            idempotency_keys: catalog.totals().keys(),
            streams: self.stream_count() as u64,
            watch_sessions: self.session_count() as u64,
            is_ready: readiness.is_ready,
            replay_progress: readiness.replay_progress,
            uptime_ms: self.uptime_ms(),
            by_topic: Vec::new(),
            by_router: Vec::new(),
            log: self.inner.log.stats(),
            is_read_only: node.room().is_full(),
            is_leader: matches!(node.leadership().borrow().leader, Some(Leader::Here)),
            term,
            commit_index,
            applied_index,
            elections: self.inner.elections.load(Ordering::Relaxed),
            forwarded_requests: self.inner.forwarder.forwarded(),
            checkpoint_lag: applied_index.saturating_sub(node.applied().saved_index()),
            checkpoint_age_ms: node.applied().checkpoint_clock().age().as_millis() as u64,
            log_held: self.log_view().held,
            disk_free_bytes: node.room().free_bytes(),
            by_member: Vec::new(),
        };
        figures.by_member = one_per_name(node.member_statuses())
            .into_iter()
            .map(|member| MemberFigures {
                is_up: member.status.is_some(),
                lag: member.last_status.map(|status| commit_index.saturating_sub(status.applied_index)),
                name: member.member.name,
            })
            .collect();
        for prefix in prefixes {
            self.add_topics(&mut figures, prefix).await;
            self.add_routers(&mut figures, prefix).await;
        }
        figures
    }

    async fn add_topics(&self, figures: &mut Figures, prefix: &str) {
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = self.catalog().page(prefix, after.as_deref(), MAX_LIST_PAGE);
            for shared in &page {
                let (topic, durability) = TopicFigures::of(shared);
                figures.topics += 1;
                figures.topics_by_class[durability as usize] += 1;
                figures.queue_topics += topic.is_queue as u64;
                figures.records_live += topic.records_live;
                figures.bytes_live += topic.bytes_live;
                after = Some(topic.name.clone());
                if figures.by_topic.len() < MAX_METRIC_TOPICS {
                    figures.by_topic.push(topic);
                }
            }
            if page.len() < MAX_LIST_PAGE {
                return;
            }
            // A hundred thousand topics are not counted in one go: others wait for this thread.
            tokio::task::yield_now().await;
        }
    }

    async fn add_routers(&self, figures: &mut Figures, prefix: &str) {
        let mut after: Option<Arc<str>> = None;
        loop {
            let query = RouterQuery { prefix, source: None, dest: None, after: after.as_deref() };
            let page = self.routers().page(query, MAX_LIST_PAGE);
            figures.routers += page.len() as u64;
            let shown = page.len().min(MAX_METRIC_ROUTERS - figures.by_router.len());
            // Of this member: asks no other one.
            let views = self.show_routers(&page[..shown], Consistency::Eventual).await;
            figures.by_router.extend(views.into_iter().map(|view| RouterFigures {
                name: view.name,
                forwarded_total: view.forwarded_total,
                link: figures.is_leader.then_some((view.state, view.lag)),
            }));
            if page.len() < MAX_LIST_PAGE {
                return;
            }
            after = page.last().map(|router| router.name.clone());
            tokio::task::yield_now().await;
        }
    }

    /// Counts the terms in which somebody was elected, as far as this member hears of them.
    pub(super) async fn count_elections(self) {
        let mut leadership = self.inner.node.leadership();
        let mut counted_term = 0;
        loop {
            let now = leadership.borrow_and_update().clone();
            if now.leader.is_some() && now.term > counted_term {
                counted_term = now.term;
                self.inner.elections.fetch_add(1, Ordering::Relaxed);
            }
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }
}
