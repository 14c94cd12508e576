//! What a mirror of many topics knows of those there: it lists them once, and follows what changes from then on.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::{Ask, ChangeCursor, Listed, News};
use crate::limits::MAX_TOLD_NAME_BYTES;
use crate::state::SharedRouter;

/// Positions that are looked at under one look at the router.
const POSITIONS_PER_LOOK: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// They are listed as far as this name; what changed behind the cursor has to be asked for after that.
    Listing {
        after: String,
        cursor: Option<ChangeCursor>,
    },
    Following(ChangeCursor),
}

impl Default for View {
    fn default() -> Self {
        View::Listing { after: String::new(), cursor: None }
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

    /// Says why `news` cannot be the answer to `ask`. A list may have no end: what is kept of it has a bound.
    pub fn check(ask: &Ask, news: &News) -> Result<(), &'static str> {
        match (ask, news) {
            (Ask::Nothing, News::Nothing) => Ok(()),
            (Ask::ChangedBehind(_), News::Changed { .. } | News::Unknown) => Ok(()),
            (Ask::List { after }, News::Listed(page)) => {
                if page.topics.first().is_some_and(|first| *first.topic <= **after) {
                    return Err("its list of topics does not go on behind the name that it was asked for");
                }
                Ok(())
            }
            _ => Err("it tells of topics what was not asked"),
        }
    }

    /// `news` as far as the first `count` of its topics: a page of a list that goes on behind them.
    pub fn cut(&self, news: News, count: usize) -> News {
        let (mut topics, cursor) = match news {
            News::Listed(Listed { topics, cursor, .. }) | News::Changed { topics, cursor } => {
                (topics, cursor)
            }
            News::Nothing | News::Unknown => return news,
        };
        topics.truncate(count);
        let after = if let View::Listing { after, .. } = self { after.as_str() } else { "" };
        let last = topics.last().map_or_else(|| after.into(), |last| last.topic.clone());
        News::Listed(Listed { topics, more_after: Some(last), cursor })
    }

    /// Takes in the answer to that. `true` if all have to be listed again.
    pub fn take(&mut self, news: &News) -> bool {
        let next = match (&*self, news) {
            (View::Listing { cursor, .. }, News::Listed(listed)) => {
                let first = cursor.unwrap_or(listed.cursor);
                match &listed.more_after {
                    // Another member goes on, which does not know what changed there.
                    _ if first.feed != listed.cursor.feed => View::default(),
                    Some(name) => View::Listing { after: name.to_string(), cursor: Some(first) },
                    None => View::Following(first),
                }
            }
            (View::Following(_), News::Changed { cursor, .. }) => View::Following(*cursor),
            // As it was cut.
            (View::Following(_), News::Listed(listed)) => View::Listing {
                after: listed.more_after.as_deref().unwrap_or_default().to_owned(),
                cursor: Some(listed.cursor),
            },
            (_, News::Unknown) => View::default(),
            _ => return false,
        };
        *self = next;
        *self == View::default()
    }

    /// Whether a page of a list brings few names, and more are to come: nobody has to tell so little at a time.
    pub fn is_short(page: &Listed) -> bool {
        let bytes: usize = page.topics.iter().map(|news| news.topic.len()).sum();
        page.more_after.is_some() && bytes < MAX_TOLD_NAME_BYTES / 16
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
        assert_eq!(View::check(&view.ask(), &page(0..2, true)), Ok(()));
        assert!(!view.take(&page(0..2, true)));
        // The same again, or what was before.
        assert!(View::check(&view.ask(), &page(0..2, true)).is_err());
        assert!(View::check(&view.ask(), &page(1..5, true)).is_err());
        assert_eq!(View::check(&view.ask(), &page(2..5, true)), Ok(()));
        // Nothing at all, and what was not asked.
        let changed = || News::Changed { topics: Vec::new(), cursor };
        for news in [News::Nothing, News::Unknown, changed()] {
            assert!(View::check(&view.ask(), &news).is_err(), "{news:?}");
        }
        for news in [News::Unknown, changed(), page(2..5, false)] {
            assert!(View::check(&Ask::Nothing, &news).is_err(), "{news:?}");
        }
        // However many there are.
        let (mut from, each) = (2, 1 << 16);
        while from < 3 << 20 {
            assert_eq!(View::check(&view.ask(), &page(from..from + each, true)), Ok(()));
            assert!(!view.take(&page(from..from + each, true)));
            from += each;
        }
        // What has to be listed again is told.
        view.take(&page(from..from + 1, false));
        assert_eq!(View::check(&view.ask(), &changed()), Ok(()));
        assert!(!view.take(&changed()) && view.take(&News::Unknown));
    }

    #[test]
    fn what_there_is_no_room_for_yet_is_listed_again_from_there() {
        // C-MIRROR-04
        let cursor = |number| ChangeCursor { feed: 7, number };
        let topics = |names: &[&str]| -> Vec<TopicNews> {
            names.iter().map(|name| TopicNews { topic: (*name).into(), epoch: 1, head_seq: 1 }).collect()
        };
        let list =
            |names: &[&str], cursor| News::Listed(Listed { topics: topics(names), more_after: None, cursor });
        let after = |view: &View| match view.ask() {
            Ask::List { after } => after,
            other => panic!("{other:?}"),
        };
        let mut view = View::default();
        view.take(&view.cut(list(&["a", "b", "c"], cursor(10)), 2));
        assert_eq!(after(&view), "b");
        view.take(&view.cut(list(&["c", "d"], cursor(12)), 0));
        assert_eq!(after(&view), "b");
        view.take(&list(&["c", "d"], cursor(13)));
        assert_eq!(view, View::Following(cursor(10)));
        let changed = || News::Changed { topics: topics(&["a", "d", "e"]), cursor: cursor(20) };
        view.take(&view.cut(changed(), 2));
        assert_eq!(after(&view), "d");
        view.take(&list(&["e"], cursor(25)));
        assert_eq!(view, View::Following(cursor(20)), "what changed meanwhile is still asked for");
        view.take(&view.cut(changed(), 0));
        assert_eq!(after(&view), "");
    }

    #[test]
    fn a_page_is_short_that_could_have_told_more() {
        let page = |count: usize, has_more: bool| {
            let news = |number| TopicNews { topic: format!("{number:064}").into(), epoch: 1, head_seq: 0 };
            let topics: Vec<TopicNews> = (0..count).map(news).collect();
            let more_after = topics.last().map(|last| last.topic.clone()).filter(|_| has_more);
            Listed { topics, more_after, cursor: ChangeCursor { feed: 7, number: 1 } }
        };
        assert!(View::is_short(&page(1, true)) && !View::is_short(&page(1, false)));
        assert!(!View::is_short(&page(MAX_TOLD_NAME_BYTES / 256, true)));
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
