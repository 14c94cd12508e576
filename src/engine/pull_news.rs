//! What a mirror of many topics is told of those that it does not ask for: which there are, and which changed.
//!
//! It asks for names only where it knows that something is to be had. So what a pull costs follows what changed, and
//! not how many topics there are: they are listed once, in pages, and from then on changes are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ChangeCursor, ChangedTopic, Engine};
use crate::limits::MAX_TOLD_NAME_BYTES;
use crate::state::SharedTopic;

/// What it counts for beside its name that a topic is told of, in bytes.
const NEWS_BYTES: usize = 24;
/// Topics that are looked at before others get the thread.
const TOPICS_PER_TURN: usize = 512;

/// What a mirror wants to know of topics that it does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Nothing,
    /// Which there are behind this name.
    List {
        after: String,
    },
    ChangedBehind(ChangeCursor),
}

/// Where a topic stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicNews {
    pub topic: Arc<str>,
    /// 0 if there is none.
    pub epoch: u64,
    pub head_seq: u64,
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Nothing,
    Listed(Listed),
    Changed {
        topics: Vec<TopicNews>,
        /// Up to where this is all.
        cursor: ChangeCursor,
    },
    /// What changed is not known here: all topics have to be listed.
    Unknown,
}

/// One page of a list of topics, in byte order of name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub topics: Vec<TopicNews>,
    /// There may be more behind this name.
    pub more_after: Option<Arc<str>>,
    /// What changes behind this while it is listed has to be asked for.
    pub cursor: ChangeCursor,
}

impl News {
    /// Whether it is worth an answer at once.
    pub(super) fn is_something(&self) -> bool {
        match self {
            News::Nothing => false,
            News::Changed { topics, .. } => !topics.is_empty(),
            News::Listed(_) | News::Unknown => true,
        }
    }
}

impl TopicNews {
    fn of(shared: &SharedTopic) -> Self {
        let head_seq = shared.read().head_seq;
        TopicNews { topic: shared.name.clone(), epoch: shared.epoch, head_seq }
    }

    fn bytes(&self) -> usize {
        self.topic.len() + NEWS_BYTES
    }
}

impl Engine {
    /// What is new in topics with this prefix but for those in `wanted`.
    pub(super) async fn news(&self, prefix: &str, ask: &Ask, wanted: &BTreeSet<&str>) -> News {
        match ask {
            Ask::Nothing => News::Nothing,
            Ask::List { after } => News::Listed(self.list(prefix, after).await),
            Ask::ChangedBehind(cursor) => self.changed(prefix, *cursor, wanted),
        }
    }

    async fn list(&self, prefix: &str, after: &str) -> Listed {
        let cursor = self.follow_changes();
        let (mut topics, mut bytes) = (Vec::<TopicNews>::new(), 0);
        let mut after: Option<Arc<str>> = (!after.is_empty()).then(|| after.into());
        loop {
            let page = self.catalog().page(prefix, after.as_deref(), TOPICS_PER_TURN);
            let is_last = page.len() < TOPICS_PER_TURN;
            topics.extend(page.iter().map(|shared| TopicNews::of(shared)));
            bytes += page.iter().map(|shared| shared.name.len() + NEWS_BYTES).sum::<usize>();
            if is_last {
                return Listed { topics, more_after: None, cursor };
            }
            after = page.last().map(|last| last.name.clone());
            if bytes >= MAX_TOLD_NAME_BYTES {
                return Listed { topics, more_after: after, cursor };
            }
            tokio::task::yield_now().await;
        }
    }

    fn changed(&self, prefix: &str, cursor: ChangeCursor, wanted: &BTreeSet<&str>) -> News {
        let Some(changed) = self.changed_behind(cursor, prefix) else { return News::Unknown };
        let mut topics = BTreeMap::new();
        let mut bytes = 0;
        for ChangedTopic { name, .. } in changed.topics.iter().filter(|it| !wanted.contains(&*it.name)) {
            let news = match self.catalog().get(name) {
                Some(shared) => TopicNews::of(&shared),
                None => TopicNews { topic: name.clone(), epoch: 0, head_seq: 0 },
            };
            bytes += news.bytes();
            topics.insert(news.topic.clone(), news);
        }
        // So many that a list is shorter.
        if bytes > 4 * MAX_TOLD_NAME_BYTES {
            return News::Unknown;
        }
        News::Changed { topics: topics.into_values().collect(), cursor: changed.cursor }
    }
}
