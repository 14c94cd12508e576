//! What a mirror in another cluster pulls: pages of topics, with where each record was first written.
//!
//! A pull is a long poll. It names the topics of which pages are wanted, with its cursors, and nothing of it stays
//! here; of the other topics that the mirror covers it is told which have something new (`pull_news.rs`). A page says
//! up to which seq it examined, whatever it has of that, so the mirror knows what it need not ask for again. What one
//! answer may cost is bounded, in bytes, records and time: it ends where that is spent, and the next one goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::cold_entries::is_no_room;
use super::page::{PageQuery, Start};
use super::{Ask, Consistency, Engine, LostAtSource, News, Page, PageRecord};
use crate::error::Error;
use crate::filter::Filter;
use crate::limits::{
    MAX_PULL_EXAMINED, MAX_PULL_ITEMS, MAX_PULL_TIME, MAX_TOLD_RANGES, MAX_TOLD_RANGES_IN_ALL,
    PULL_PAGE_TIMEOUT,
};
use crate::state::{
    Instance, Origin, Ranges, SharedTopic, Start as RouterStart, Topic, TopicType, lost_seqs,
};
use crate::storage::EntryId;

/// The least that each topic may send, in bytes, however many have something to say.
const MIN_TOPIC_BYTES: usize = 64 << 10;
/// What a record or gap counts for beside its stored bytes: about the most that its place and origin take up.
const ITEM_BYTES: usize = 32;
/// What a topic counts for beside its name, and a stretch of lost seqs.
const TOPIC_BYTES: usize = 64;
const RANGE_BYTES: usize = 16;
/// What a topic takes up in memory, beside its name, while a pull waits for it.
const WANTED_BYTES: usize = 256;
/// Topics that are looked at before others get the thread.
const TOPICS_PER_TURN: usize = 32;

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

/// Where a mirror begins in topics that it has no cursor for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    pub start: RouterStart,
    /// Topic instances from this epoch on begin with their first record all the same.
    pub before_epoch: u64,
}

/// What a mirror asks for.
#[derive(Debug, Clone)]
pub struct PullQuery {
    pub sources: Sources,
    /// The topics that it asks for, those first that are to have room in the answer first.
    pub wanted: Vec<(String, Option<PullCursor>)>,
    /// What it wants to know of the others.
    pub ask: Ask,
    /// `None`: topics without a cursor begin with their first record.
    pub beginning: Option<Beginning>,
    pub filter: Option<Arc<Filter>>,
    /// The cluster that asks, and the topic there; `None`: of the same name. What comes from there is left out.
    pub puller_id: u128,
    pub dest: Option<String>,
    pub wait_ms: u64,
    /// Budget for the records of the answer.
    pub max_bytes: usize,
}

/// The answer to it.
#[derive(Debug, Clone)]
pub struct PullReply {
    /// The first epoch that no topic had when this was begun.
    pub next_epoch: u64,
    pub news: News,
    /// So many of the wanted topics were looked at; for the others there was no room.
    pub examined: usize,
    /// Those of them that have something to say.
    pub topics: Vec<PulledTopic>,
}

impl PullReply {
    /// About what it takes up in an answer, without the news, which have bounds of their own.
    pub fn bytes(&self) -> usize {
        let of_item = |item: &PulledItem| match item {
            PulledItem::Record(record) => record.stored().len() + ITEM_BYTES,
            PulledItem::Gap(_) => ITEM_BYTES,
        };
        let of_topic = |topic: &PulledTopic| match &topic.content {
            Pulled::Page(page) => page.lost.bytes() + page.items.iter().map(of_item).sum::<usize>(),
            Pulled::Diverged | Pulled::Gone => 0,
        };
        self.topics.iter().map(|topic| TOPIC_BYTES + topic.topic.len() + of_topic(topic)).sum()
    }
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
    /// Where it begins.
    pub start_seq: u64,
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
        let mut left = MAX_TOLD_RANGES_IN_ALL;
        let mut known = |origin: &Origin| -> Option<(Arc<Instance>, Ranges)> {
            let most = left.min(MAX_TOLD_RANGES);
            let ranges = origin.known(most).filter(|ranges| ranges.len() <= most)?;
            left -= ranges.len();
            Some((origin.instance.clone(), ranges))
        };
        // All of them or none: whoever has what it is told of has everything.
        let others: Vec<&Origin> =
            topic.origins.all().iter().filter(|origin| !is_echo(&origin.instance)).collect();
        let is_told = others.len() <= MAX_TOLD_RANGES;
        let others = is_told.then(|| others.into_iter().map(&mut known).collect()).flatten();
        Lost { seqs, own: lost_seqs(topic, evicted, |_| true), others }
    }

    /// About what it takes up in an answer.
    fn bytes(&self) -> usize {
        let of_other = |(instance, ranges): &(Arc<Instance>, Ranges)| {
            TOPIC_BYTES + instance.topic.len() + ranges.len() * RANGE_BYTES
        };
        let others: usize = self.others.iter().flatten().map(of_other).sum();
        (self.seqs.len() + self.own.len()) * RANGE_BYTES + others
    }
}

#[derive(Debug, Clone)]
pub enum PulledItem {
    Record(PageRecord),
    Gap(LostAtSource),
}

/// What is left of what one answer may cost.
struct Budget {
    bytes: usize,
    examined: usize,
    until: Instant,
    /// How long it may wait for room to read in.
    wait_until: Instant,
    /// The answer has records, which may be parts of large entries. It must not wait for room: all may be held by
    /// those who wait for what it holds.
    has_records: bool,
}

impl Budget {
    fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn patience(&self) -> Duration {
        if self.has_records {
            Duration::ZERO
        } else {
            self.wait_until.saturating_duration_since(Instant::now())
        }
    }

    fn is_spent(&self) -> bool {
        self.bytes == 0 || self.examined == 0 || Instant::now() >= self.until
    }
}

impl PullQuery {
    /// About what it keeps in memory while it waits, with what tells it of its topics.
    pub fn memory_bytes(&self) -> usize {
        let of_wanted = |(name, _): &(String, Option<PullCursor>)| WANTED_BYTES + name.len();
        let wanted: usize = self.wanted.iter().map(of_wanted).sum();
        size_of::<PullQuery>() + wanted + self.filter.as_ref().map_or(0, |filter| filter.memory_bytes())
    }

    /// Where to begin in `shared` without a cursor; `None`: with its first record.
    fn start_of(&self, shared: &SharedTopic) -> Option<RouterStart> {
        let beginning = self.beginning.filter(|beginning| shared.epoch < beginning.before_epoch);
        beginning.map(|beginning| beginning.start)
    }

    /// Whether there may be something to say of `shared` to who stands at `cursor`.
    fn has_news(&self, shared: &SharedTopic, cursor: Option<&PullCursor>) -> bool {
        let head_seq = shared.read().head_seq;
        match cursor {
            Some(cursor) => (cursor.epoch, cursor.seq) != (shared.epoch, head_seq),
            // Where it begins has to be noted, even if it is empty.
            None => head_seq > 0 || self.start_of(shared).is_some(),
        }
    }
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
    pub async fn pull(&self, query: &PullQuery) -> Result<PullReply, Error> {
        let deadline = Instant::now() + Duration::from_millis(query.wait_ms);
        // What this member has not applied must not look like something that the cluster does not know.
        self.fence(Consistency::Strong).await?;
        let next_epoch = self.inner.node.applied().next_epoch();
        let wanted: BTreeSet<&str> = query.wanted.iter().map(|(name, _)| name.as_str()).collect();
        let (prefix, mut ask) = match &query.sources {
            Sources::Prefix(prefix) => (prefix.as_str(), query.ask.clone()),
            Sources::One(_) => ("", Ask::Nothing),
        };
        let bell = self.inner.hub.bell();
        let of_all = matches!(ask, Ask::ChangedBehind(_)).then(|| bell.listen_to_prefix(prefix, 0));
        let mut listeners = BTreeMap::new();
        loop {
            bell.forget_changed();
            of_all.iter().for_each(|of_all| of_all.rearm());
            for shared in wanted.iter().filter_map(|name| self.catalog().get(name)) {
                let listen = || bell.listen(shared.epoch, 0);
                listeners.entry(shared.epoch).or_insert_with(listen).rearm();
            }
            if let Sources::One(topic) = &query.sources
                && self.catalog().get(topic).is_none()
            {
                return Err(Error::topic_not_found(topic));
            }
            let news = self.news(prefix, &ask, &wanted).await;
            let (examined, topics) = self.pull_wanted(query).await?;
            let is_over = self.is_closing() || Instant::now() >= deadline;
            if news.is_something() || !topics.is_empty() || is_over {
                return Ok(PullReply { next_epoch, news, examined, topics });
            }
            if let News::Changed { cursor, .. } = news {
                ask = Ask::ChangedBehind(cursor);
            }
            let _ = tokio::time::timeout_at(deadline, bell.wait()).await;
        }
    }

    /// Goes through the wanted topics until the answer is full. Gives how many it came to, and what they have to
    /// say.
    async fn pull_wanted(&self, query: &PullQuery) -> Result<(usize, Vec<PulledTopic>), Error> {
        let mut budget = Budget {
            bytes: query.max_bytes,
            examined: MAX_PULL_EXAMINED,
            until: Instant::now() + MAX_PULL_TIME,
            wait_until: Instant::now() + PULL_PAGE_TIMEOUT,
            has_records: false,
        };
        let has_news = |(name, cursor): &&(String, Option<PullCursor>)| {
            self.catalog().get(name).is_none_or(|shared| query.has_news(&shared, cursor.as_ref()))
        };
        let speaking = query.wanted.iter().filter(has_news).count();
        let share = (query.max_bytes / speaking.max(1)).max(MIN_TOPIC_BYTES);
        let mut pulled = Vec::new();
        for (number, (name, cursor)) in query.wanted.iter().enumerate() {
            if budget.is_spent() {
                return Ok((number, pulled));
            }
            if number % TOPICS_PER_TURN == TOPICS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let Some(shared) = self.catalog().get(name) else {
                let (topic, topic_type) = (name.as_str().into(), TopicType::Log);
                let content = Pulled::Gone;
                pulled.push(PulledTopic { topic, epoch: 0, topic_type, head_seq: 0, content });
                continue;
            };
            if query.has_news(&shared, cursor.as_ref()) {
                let max_bytes = share.min(budget.bytes).max(1);
                match self.pull_topic(query, &shared, cursor.as_ref(), max_bytes, &mut budget).await {
                    Ok(content) => pulled.extend(content),
                    // There is no room beside what it has: that is the answer.
                    Err(error) if is_no_room(&error) && !pulled.is_empty() => return Ok((number, pulled)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((query.wanted.len(), pulled))
    }

    /// What `shared` has to say, records of at most `max_bytes` (one always fits).
    async fn pull_topic(
        &self,
        query: &PullQuery,
        shared: &Arc<SharedTopic>,
        cursor: Option<&PullCursor>,
        max_bytes: usize,
        budget: &mut Budget,
    ) -> Result<Option<PulledTopic>, Error> {
        let (name, topic_type, head_seq) = {
            let topic = shared.read();
            (topic.name.clone(), topic.config.topic_type, topic.head_seq)
        };
        budget.take(TOPIC_BYTES + 2 * name.len());
        let told = |content| {
            let topic = name.clone();
            Some(PulledTopic { topic, epoch: shared.epoch, topic_type, head_seq, content })
        };
        let is_unknown = cursor.is_some_and(|cursor| {
            cursor.epoch > shared.epoch || (cursor.epoch == shared.epoch && cursor.seq > head_seq)
        });
        if is_unknown || !self.has_entry_at(shared, cursor, budget.patience()).await? {
            return Ok(told(Pulled::Diverged));
        }
        let known = cursor.filter(|cursor| cursor.epoch == shared.epoch);
        let from_seq = match (known, query.start_of(shared)) {
            (Some(cursor), _) => cursor.seq,
            (None, Some(start)) if cursor.is_none() => self.start_seq(shared, start).await?,
            (None, _) => 0,
        };
        let dest = query.dest.as_deref().unwrap_or(&name);
        let is_echo =
            |instance: &Instance| instance.cluster_id == query.puller_id && *instance.topic == *dest;
        let mut page = PulledPage {
            start_seq: from_seq,
            to_seq: from_seq,
            to_entry: known.and_then(|cursor| cursor.entry),
            lost: Lost::default(),
            items: Vec::new(),
        };
        self.extend_page(query, shared, is_echo, max_bytes, budget, &mut page).await?;
        let is_news = known.is_none() || page.to_seq > from_seq;
        Ok(is_news.then(|| told(Pulled::Page(page))).flatten())
    }

    /// Reads on from where `page` ends, until it is full, nothing is left, or too much was looked at.
    async fn extend_page(
        &self,
        query: &PullQuery,
        shared: &Arc<SharedTopic>,
        is_echo: impl Fn(&Instance) -> bool,
        max_bytes: usize,
        budget: &mut Budget,
        page: &mut PulledPage,
    ) -> Result<(), Error> {
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
                    bytes += page.lost.bytes();
                    // Not further: a gap right behind it is one of its own.
                    (page.to_seq, page.to_entry) = (evicted_to_seq, None);
                }
                Start::after(&topic, page.to_seq)
            };
            let gap = start.tombstone.as_ref().and_then(|tombstone| tombstone.origin.clone());
            let (filter, patience) = (query.filter.clone(), budget.patience());
            let limit = MAX_PULL_ITEMS - records - usize::from(gap.is_some());
            let page_query =
                PageQuery { filter, patience, ..PageQuery::here(limit, max_bytes.saturating_sub(bytes)) };
            let cursor_after = start.cursor;
            let read = match self.read_page(shared, &page_query, start).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if is_no_room(&error) && page.to_seq > page.start_seq => break,
                Err(error) => return Err(error),
            };
            if let Some(gap) = gap.filter(|gap| !is_echo(&gap.instance)) {
                page.items.push(PulledItem::Gap(gap));
                (records, bytes) = (records + 1, bytes + ITEM_BYTES);
            }
            let is_end = read.next_from_seq <= cursor_after && read.records.is_empty();
            bytes += records_bytes(&read);
            records += read.records.len();
            budget.examined = budget.examined.saturating_sub(read.records_scanned as usize + 1);
            page.to_entry = entry_at(&read).or(page.to_entry.filter(|_| read.next_from_seq == page.to_seq));
            page.to_seq = read.next_from_seq;
            let wanted = read
                .records
                .into_iter()
                .filter(|record| record.origin.as_ref().is_none_or(|origin| !is_echo(&origin.instance)));
            let items_before = page.items.len();
            page.items.extend(wanted.map(PulledItem::Record));
            budget.has_records |= page.items.len() > items_before;
            // A gap and a record must fit.
            let is_full = records + 1 >= MAX_PULL_ITEMS || bytes >= max_bytes;
            // What is examined is behind the mirror, also if nothing of it passes its filter.
            if is_full || page.to_seq >= head_seq || is_end || budget.is_spent() {
                break;
            }
        }
        budget.take(bytes);
        Ok(())
    }

    /// Whether the record at the cursor is what it was; also if it is gone by now.
    async fn has_entry_at(
        &self,
        shared: &Arc<SharedTopic>,
        cursor: Option<&PullCursor>,
        patience: Duration,
    ) -> Result<bool, Error> {
        let Some(PullCursor { epoch, seq, entry: Some(entry) }) = cursor else { return Ok(true) };
        if *epoch != shared.epoch || *seq == 0 {
            return Ok(true);
        }
        let start = Start::after(&shared.read(), seq - 1);
        if start.cursor != seq - 1 {
            return Ok(true);
        }
        let one = PageQuery { patience, ..PageQuery::here(1, 1) };
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
    page.stored_bytes + ITEM_BYTES * page.records.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Gap, TopicConfig};

    /// A topic that took one record from each of so many others, and was told that each lost one before.
    fn topic_of(origins: u64) -> Topic {
        let mut topic = Topic::new("all".into(), 1, TopicConfig::default());
        for epoch in 1..=origins {
            let instance =
                Arc::new(Instance { cluster_id: 9, cluster: "there".into(), topic: "t".into(), epoch });
            let number = topic.origins.number_or_new(&instance);
            topic.origins.take(number, 5..=5);
            topic.origins.report(epoch, Gap { number, from_seq: 4, to_seq: 4 });
        }
        topic
    }

    /// C-ROUTE-15, C-GAP-12: an origin that is not told would be taken for one of which nothing was lost.
    #[test]
    fn origins_are_told_with_all_that_is_known_of_them_or_none_is() {
        let told = Lost::of(&topic_of(MAX_TOLD_RANGES as u64), 1..=9, |_| false).others.expect("few enough");
        assert_eq!(told.len(), MAX_TOLD_RANGES);
        assert!(told.iter().all(|(_, ranges)| *ranges == [4..=5]));
        assert_eq!(Lost::of(&topic_of(MAX_TOLD_RANGES as u64 + 1), 1..=9, |_| false).others, None);
    }
}
