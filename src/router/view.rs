//! What a mirror of many topics knows of those there: it lists them once, and follows what changes from then on.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::{Ask, ChangeCursor, Listed, News};
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

    /// Takes in the answer to that.
    pub fn take(&mut self, news: &News) {
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
            (_, News::Unknown) => View::default(),
            _ => return,
        };
        *self = next;
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
