//! What a mirror in another cluster pulls: pages of topics, with where each record was first written.
//!
//! A pull is a long poll over all topics that the mirror covers. It brings its cursors along, and nothing of it
//! stays here. A page says up to which seq it examined, whatever it has of that, so the mirror knows what it
//! need not ask for again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::page::{PageQuery, Start};
use super::{Consistency, Engine, LostAtSource, Page, PageRecord};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{MAX_PULL_ITEMS, MAX_TOLD_RANGES};
use crate::state::{
    Instance, Origin, Ranges, SharedTopic, Start as RouterStart, Topic, TopicType, lost_seqs,
};
use crate::storage::EntryId;

/// Records and gaps of one topic in one answer: a gap and a record may come at once.
const MAX_PULLED_ITEMS: usize = MAX_PULL_ITEMS - 1;
/// The least that each topic may send, in bytes, however many have something to say.
const MIN_TOPIC_BYTES: usize = 64 << 10;
/// What a record or gap counts for beside its stored bytes: about the most that its place and origin take up.
const ITEM_BYTES: usize = 32;
/// Topics of one answer.
const MAX_PULLED_TOPICS: usize = 1024;
/// How often it is looked whether a topic was made that the mirror covers.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Which topics a mirror covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    One(String),
    /// All whose name starts with this.
    Prefix(String),
}

impl Sources {
    pub fn cover(&self, topic: &str) -> bool {
        match self {
            Sources::One(name) => topic == name,
            Sources::Prefix(prefix) => topic.starts_with(prefix.as_str()),
        }
    }
}

/// How far a mirror has come in one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullCursor {
    pub epoch: u64,
    /// Everything up to this seq was examined.
    pub seq: u64,
    /// The log entry of the record at `seq`, if it had one.
    pub entry: Option<EntryId>,
}

/// What a mirror asks for.
#[derive(Debug, Clone)]
pub struct PullQuery {
    pub sources: Sources,
    /// Topics that it does not want now.
    pub excluded: BTreeSet<String>,
    /// By topic.
    pub cursors: BTreeMap<String, PullCursor>,
    /// Where to begin in topics without a cursor; `None`: with their first record.
    pub start: Option<RouterStart>,
    pub filter: Option<Arc<Filter>>,
    /// The cluster that asks, and the topic there; `None`: of the same name. What comes from there is left out.
    pub puller_id: u128,
    pub dest: Option<String>,
    pub wait_ms: u64,
    /// Budget for the records of the answer.
    pub max_bytes: usize,
}

/// What one topic has to say.
#[derive(Debug, Clone)]
pub struct PulledTopic {
    pub topic: Arc<str>,
    pub epoch: u64,
    pub topic_type: TopicType,
    pub head_seq: u64,
    pub content: Pulled,
}

#[derive(Debug, Clone)]
pub enum Pulled {
    /// The cursor names something that this cluster does not know.
    Diverged,
    /// There is no such topic any more.
    Gone,
    Page(PulledPage),
}

/// What follows a cursor.
#[derive(Debug, Clone)]
pub struct PulledPage {
    /// The cursor after it.
    pub to_seq: u64,
    pub to_entry: Option<EntryId>,
    pub lost: Lost,
    pub items: Vec<PulledItem>,
}

/// What went before it could be pulled.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    /// All of it.
    pub seqs: Ranges,
    /// Those of the seqs that were first written in this topic.
    pub own: Ranges,
    /// What this topic has ever taken from each other origin, or knows to be lost there: the other seqs are
    /// among that. `None` if it is too much to tell.
    pub others: Option<Vec<(Arc<Instance>, Ranges)>>,
}

impl Lost {
    fn of(topic: &Topic, evicted: RangeInclusive<u64>, is_echo: impl Fn(&Instance) -> bool) -> Self {
        let seqs = lost_seqs(topic, evicted.clone(), |origin| is_echo(&origin.instance));
        let others = topic.origins.all().iter().filter(|origin| !is_echo(&origin.instance));
        let known = |origin: &Origin| Some((origin.instance.clone(), origin.known(MAX_TOLD_RANGES)?));
        // One more, so that none is left out in silence.
        let others: Option<Vec<_>> = others.take(MAX_TOLD_RANGES + 1).map(known).collect();
        let others = others.filter(|others| others.len() <= MAX_TOLD_RANGES);
        Lost { seqs, own: lost_seqs(topic, evicted, |_| true), others }
    }
}

#[derive(Debug, Clone)]
pub enum PulledItem {
    Record(PageRecord),
    Gap(LostAtSource),
}

impl Engine {
    /// The instance that records of `shared` without an origin come from. Errors: `no_leader` before the cluster
    /// has written down who it is.
    pub fn instance_of(&self, shared: &SharedTopic) -> Result<Arc<Instance>, Error> {
        let cluster = self.own_cluster().ok_or_else(|| self.no_leader())?;
        Ok(Instance::of_topic(&cluster, shared.read().name.clone(), shared.epoch))
    }

    /// Waits until there is something to say, or for as long as the query wants to. Errors: `no_leader`;
    /// `topic_not_found` if one topic is asked for and is not there.
    pub async fn pull(&self, query: &PullQuery) -> Result<Vec<PulledTopic>, Error> {
        let deadline = Instant::now() + Duration::from_millis(query.wait_ms);
        // What this member has not applied must not look like something that the cluster does not know.
        self.fence(Consistency::Strong).await?;
        let bell = self.inner.hub.bell();
        let mut listeners = BTreeMap::new();
        loop {
            bell.forget_changed();
            let topics = self.covered(query)?;
            for shared in &topics {
                let listen = || bell.listen(shared.epoch, 0);
                listeners.entry(shared.epoch).or_insert_with(listen).rearm();
            }
            let mut pulled = self.pull_some(query, &topics).await?;
            pulled.extend(self.gone(query));
            if !pulled.is_empty() || self.is_draining() || Instant::now() >= deadline {
                return Ok(pulled);
            }
            let next_look = match query.sources {
                Sources::One(_) => deadline,
                Sources::Prefix(_) => deadline.min(Instant::now() + LOOK_INTERVAL),
            };
            let _ = tokio::time::timeout_at(next_look, bell.wait()).await;
        }
    }

    fn covered(&self, query: &PullQuery) -> Result<Vec<Arc<SharedTopic>>, Error> {
        match &query.sources {
            Sources::One(topic) => {
                Ok(vec![self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?])
            }
            Sources::Prefix(prefix) => {
                let mut topics = self.catalog().page(prefix, None, usize::MAX);
                topics.retain(|shared| !query.excluded.contains(&*shared.read().name));
                Ok(topics)
            }
        }
    }

    /// Topics that the mirror knows and that are not there any more.
    fn gone(&self, query: &PullQuery) -> Vec<PulledTopic> {
        let known = query.cursors.keys().filter(|name| !query.excluded.contains(*name));
        let gone = known.filter(|name| self.catalog().get(name).is_none()).take(MAX_PULLED_TOPICS);
        gone.map(|name| PulledTopic {
            topic: name.as_str().into(),
            epoch: 0,
            topic_type: TopicType::Log,
            head_seq: 0,
            content: Pulled::Gone,
        })
        .collect()
    }

    async fn pull_some(
        &self,
        query: &PullQuery,
        topics: &[Arc<SharedTopic>],
    ) -> Result<Vec<PulledTopic>, Error> {
        let has_news: Vec<&Arc<SharedTopic>> = topics
            .iter()
            .filter(|shared| {
                let topic = shared.read();
                let cursor = query.cursors.get(&*topic.name);
                // A topic without a cursor may have to be noted, even if it is empty.
                cursor.map_or(query.start.is_some() || topic.head_seq > 0, |cursor| {
                    (cursor.epoch, cursor.seq) != (topic.epoch, topic.head_seq)
                })
            })
            .collect();
        let mut bytes_left = query.max_bytes;
        let share = (query.max_bytes / has_news.len().max(1)).max(MIN_TOPIC_BYTES);
        let mut pulled = Vec::new();
        for shared in has_news {
            // Where to begin is asked once, and so told of all topics, if not with their first records.
            if query.start.is_none() && (bytes_left == 0 || pulled.len() >= MAX_PULLED_TOPICS) {
                break;
            }
            let (topic, bytes) = self.pull_topic(query, shared, share.min(bytes_left)).await?;
            bytes_left = bytes_left.saturating_sub(bytes);
            pulled.extend(topic);
        }
        Ok(pulled)
    }

    /// What `shared` has to say, and the bytes of the records in that.
    async fn pull_topic(
        &self,
        query: &PullQuery,
        shared: &Arc<SharedTopic>,
        max_bytes: usize,
    ) -> Result<(Option<PulledTopic>, usize), Error> {
        let (name, topic_type, head_seq) = {
            let topic = shared.read();
            (topic.name.clone(), topic.config.topic_type, topic.head_seq)
        };
        let cursor = query.cursors.get(&*name);
        let told = |content| {
            let topic = name.clone();
            Some(PulledTopic { topic, epoch: shared.epoch, topic_type, head_seq, content })
        };
        let is_unknown = cursor.is_some_and(|cursor| {
            cursor.epoch > shared.epoch || (cursor.epoch == shared.epoch && cursor.seq > head_seq)
        });
        if is_unknown || !self.has_entry_at(shared, cursor).await? {
            return Ok((told(Pulled::Diverged), 0));
        }
        let known = cursor.filter(|cursor| cursor.epoch == shared.epoch);
        let from_seq = match (known, query.start) {
            (Some(cursor), _) => cursor.seq,
            (None, Some(start)) if cursor.is_none() => self.start_seq(shared, start).await?,
            (None, _) => 0,
        };
        let dest = query.dest.as_deref().unwrap_or(&name);
        let is_echo =
            |instance: &Instance| instance.cluster_id == query.puller_id && *instance.topic == *dest;
        let mut page = PulledPage {
            to_seq: from_seq,
            to_entry: known.and_then(|cursor| cursor.entry),
            lost: Lost::default(),
            items: Vec::new(),
        };
        let bytes = match max_bytes {
            0 => 0,
            _ => self.extend_page(query, shared, is_echo, max_bytes, &mut page).await?,
        };
        let is_news = known.is_none() || page.to_seq > from_seq;
        Ok((is_news.then(|| told(Pulled::Page(page))).flatten(), bytes))
    }

    /// Reads on from where `page` ends, until it is full or nothing is left. Gives the bytes of its records.
    async fn extend_page(
        &self,
        query: &PullQuery,
        shared: &Arc<SharedTopic>,
        is_echo: impl Fn(&Instance) -> bool,
        max_bytes: usize,
        page: &mut PulledPage,
    ) -> Result<usize, Error> {
        let head_seq = shared.read().head_seq;
        let (mut records, mut bytes) = (0, 0);
        loop {
            let start = {
                let topic = shared.read();
                let evicted_to_seq = topic.floors.evict() - 1;
                if evicted_to_seq > page.to_seq {
                    // Only before everything else: what is evicted later is above what the page has by then.
                    if !page.items.is_empty() || !page.lost.seqs.is_empty() {
                        break;
                    }
                    let evicted = page.to_seq + 1..=evicted_to_seq;
                    page.lost = Lost::of(&topic, evicted, &is_echo);
                    // Not further: a gap right behind it is one of its own.
                    (page.to_seq, page.to_entry) = (evicted_to_seq, None);
                }
                Start::after(&topic, page.to_seq)
            };
            let gap = start.tombstone.as_ref().and_then(|tombstone| tombstone.origin.clone());
            let filter = query.filter.clone();
            let page_query =
                PageQuery { filter, ..PageQuery::here(MAX_PULLED_ITEMS - records, max_bytes - bytes) };
            let cursor_after = start.cursor;
            let Some(read) = self.read_page(shared, &page_query, start).await? else {
                continue;
            };
            if let Some(gap) = gap.filter(|gap| !is_echo(&gap.instance)) {
                page.items.push(PulledItem::Gap(gap));
                bytes += ITEM_BYTES;
                records += 1;
            }
            let is_end = read.next_from_seq <= cursor_after && read.records.is_empty();
            bytes += records_bytes(&read);
            records += read.records.len();
            page.to_entry = entry_at(&read).or(page.to_entry.filter(|_| read.next_from_seq == page.to_seq));
            page.to_seq = read.next_from_seq;
            let wanted = read
                .records
                .into_iter()
                .filter(|record| record.origin.as_ref().is_none_or(|origin| !is_echo(&origin.instance)));
            page.items.extend(wanted.map(PulledItem::Record));
            let is_full = records >= MAX_PULLED_ITEMS || bytes >= max_bytes;
            if is_full || page.to_seq >= head_seq || is_end {
                break;
            }
        }
        Ok(bytes)
    }

    /// Whether the record at the cursor is what it was; also if it is gone by now.
    async fn has_entry_at(
        &self,
        shared: &Arc<SharedTopic>,
        cursor: Option<&PullCursor>,
    ) -> Result<bool, Error> {
        let Some(PullCursor { epoch, seq, entry: Some(entry) }) = cursor else { return Ok(true) };
        if *epoch != shared.epoch || *seq == 0 {
            return Ok(true);
        }
        let start = Start::after(&shared.read(), seq - 1);
        if start.cursor != seq - 1 {
            return Ok(true);
        }
        let one = PageQuery::here(1, 1);
        let page = self.read_page(shared, &one, start).await?;
        let found = page.and_then(|page| page.records.into_iter().next());
        Ok(found.is_none_or(|record| record.seq != *seq || record.entry_id == *entry))
    }

    /// The cursor to begin at.
    async fn start_seq(&self, shared: &Arc<SharedTopic>, start: RouterStart) -> Result<u64, Error> {
        let (head_seq, earliest_seq) = {
            let topic = shared.read();
            (topic.head_seq, topic.earliest_seq)
        };
        Ok(match start {
            RouterStart::Latest => head_seq,
            RouterStart::Earliest => earliest_seq - 1,
            RouterStart::Seq(seq) => seq.min(head_seq),
            RouterStart::Ts(ts_ms) => self.seq_before_time(shared, ts_ms).await?,
        })
    }
}

/// The log entry of the record at the end of a page, if the page ends with one.
fn entry_at(page: &Page) -> Option<EntryId> {
    page.records.last().filter(|record| record.seq == page.next_from_seq).map(|record| record.entry_id)
}

fn records_bytes(page: &Page) -> usize {
    page.records.iter().map(|record| record.stored().len() + ITEM_BYTES).sum()
}
