//! What a mirror of many topics knows of those there: it lists them once, and follows what changes from then on.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::{Ask, ChangeCursor, Listed, News};
use crate::limits::MAX_LISTED_TOPICS;
use crate::state::SharedRouter;

/// Positions that are looked at under one look at the router.
const POSITIONS_PER_LOOK: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// They are listed as far as this name; what changed behind the cursor has to be asked for after that.
    Listing {
        after: String,
        cursor: Option<ChangeCursor>,
        /// How many were listed.
        count: usize,
    },
    Following(ChangeCursor),
}

impl Default for View {
    fn default() -> Self {
        View::Listing { after: String::new(), cursor: None, count: 0 }
    }
}

impl View {
    pub fn is_listing(&self) -> bool {
        matches!(self, View::Listing { .. })
    }

    /// What is to be asked of all topics.
    pub fn ask(&self) -> Ask {
        match self {
            View::Listing { after, .. } => Ask::List { after: after.clone() },
            View::Following(cursor) => Ask::ChangedBehind(*cursor),
        }
    }

    /// Says why `news` cannot be the answer to `ask`, or is not gone on with: another cluster is not trusted to come to
    /// an end.
    pub fn check(&self, ask: &Ask, news: &News) -> Result<(), &'static str> {
        match (ask, news) {
            (Ask::Nothing, News::Nothing) => Ok(()),
            (Ask::ChangedBehind(_), News::Changed { .. } | News::Unknown) => Ok(()),
            (Ask::List { after }, News::Listed(page)) => {
                let listed = if let View::Listing { count, .. } = self { *count } else { 0 };
                if page.topics.first().is_some_and(|first| *first.topic <= **after) {
                    return Err("its list of topics does not go on behind the name that it was asked for");
                }
                if listed + page.topics.len() > MAX_LISTED_TOPICS {
                    return Err("it lists more topics than a mirror has, or its list does not end");
                }
                Ok(())
            }
            _ => Err("it tells of topics what was not asked"),
        }
    }

    /// Takes in the answer to that. `true` if all have to be listed again.
    pub fn take(&mut self, news: &News) -> bool {
        let next = match (&*self, news) {
            (View::Listing { cursor, count, .. }, News::Listed(listed)) => {
                let first = cursor.unwrap_or(listed.cursor);
                match &listed.more_after {
                    // Another member goes on, which does not know what changed there.
                    _ if first.feed != listed.cursor.feed => View::default(),
                    Some(name) => View::Listing {
                        after: name.to_string(),
                        cursor: Some(first),
                        count: count + listed.topics.len(),
                    },
                    None => View::Following(first),
                }
            }
            (View::Following(_), News::Changed { cursor, .. }) => View::Following(*cursor),
            (_, News::Unknown) => View::default(),
            _ => return false,
        };
        *self = next;
        *self == View::default()
    }

    /// Topics of which `router` has a position and which are missing in a page of the list.
    pub async fn not_listed(&self, router: &SharedRouter, page: &Listed) -> Vec<Arc<str>> {
        let View::Listing { after, .. } = self else { return Vec::new() };
        let listed: BTreeSet<&str> = page.topics.iter().map(|news| &*news.topic).collect();
        let is_on_page = |name: &str| page.more_after.as_ref().is_none_or(|last| *name <= **last);
        let (mut missing, mut at) = (Vec::new(), Arc::<str>::from(after.as_str()));
        loop {
            let known: Vec<Arc<str>> = {
                let router = router.read();
                let behind = (std::ops::Bound::Excluded(&*at), std::ops::Bound::Unbounded);
                let names = router.positions.range::<str, _>(behind).map(|(name, _)| name.clone());
                names.take_while(|name| is_on_page(name)).take(POSITIONS_PER_LOOK).collect()
            };
            missing.extend(known.iter().filter(|name| !listed.contains(&***name)).cloned());
            match known.last().filter(|_| known.len() == POSITIONS_PER_LOOK) {
                None => return missing,
                Some(last) => at = last.clone(),
            }
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::TopicNews;

    #[test]
    fn a_list_goes_on_and_ends() {
        // C-MIRROR-18
        let cursor = ChangeCursor { feed: 7, number: 1 };
        let page = |names: std::ops::Range<usize>, has_more: bool| {
            let news = |number| TopicNews { topic: format!("{number:08}").into(), epoch: 1, head_seq: 1 };
            let topics: Vec<TopicNews> = names.map(news).collect();
            let more_after = topics.last().map(|last| last.topic.clone()).filter(|_| has_more);
            News::Listed(Listed { topics, more_after, cursor })
        };
        let mut view = View::default();
        assert_eq!(view.check(&view.ask(), &page(0..2, true)), Ok(()));
        assert!(!view.take(&page(0..2, true)));
        // The same again, or what was before.
        assert!(view.check(&view.ask(), &page(0..2, true)).is_err());
        assert!(view.check(&view.ask(), &page(1..5, true)).is_err());
        assert_eq!(view.check(&view.ask(), &page(2..5, true)), Ok(()));
        // Nothing at all, and what was not asked.
        let changed = || News::Changed { topics: Vec::new(), cursor };
        for news in [News::Nothing, News::Unknown, changed()] {
            assert!(view.check(&view.ask(), &news).is_err(), "{news:?}");
        }
        for news in [News::Unknown, changed(), page(2..5, false)] {
            assert!(view.check(&Ask::Nothing, &news).is_err(), "{news:?}");
        }
        // On and on.
        let (mut from, each) = (2, 1 << 16);
        while view.check(&view.ask(), &page(from..from + each, true)).is_ok() {
            assert!(from <= MAX_LISTED_TOPICS, "it does not end");
            assert!(!view.take(&page(from..from + each, true)));
            from += each;
        }
        assert!(from + each > MAX_LISTED_TOPICS);
        // What has to be listed again is told.
        view.take(&page(from..from + 1, false));
        assert_eq!(view.check(&view.ask(), &changed()), Ok(()));
        assert!(!view.take(&changed()) && view.take(&News::Unknown));
    }

    #[test]
    fn topics_are_listed_once_and_followed_from_before_that() {
        let cursor = |feed, number| ChangeCursor { feed, number };
        let page = |more: Option<&str>, cursor| {
            News::Listed(Listed { topics: Vec::new(), more_after: more.map(Into::into), cursor })
        };
        let mut view = View::default();
        assert_eq!(view.ask(), Ask::List { after: String::new() });
        view.take(&page(Some("b"), cursor(7, 10)));
        assert_eq!((view.ask(), view.is_listing()), (Ask::List { after: "b".into() }, true));
        view.take(&page(None, cursor(7, 15)));
        assert_eq!(view.ask(), Ask::ChangedBehind(cursor(7, 10)));
        view.take(&News::Changed { topics: Vec::new(), cursor: cursor(7, 20) });
        view.take(&News::Nothing);
        assert_eq!(view, View::Following(cursor(7, 20)));
        // What nobody knows any more, and a list of two members.
        view.take(&News::Unknown);
        view.take(&page(Some("b"), cursor(7, 30)));
        view.take(&page(None, cursor(8, 2)));
        assert_eq!(view, View::default());
    }
}
