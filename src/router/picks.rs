//! Which records of their sources pass the filters of local routers: read beside all else that routers do.
//!
//! Reading may take long, from the disk or because a filter drops nearly everything. So a few routers are read for at
//! once, and what is found waits until it is its router's turn.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::error::Error;
use crate::limits::MAX_PICKS;
use crate::state::{Ranges, RouterConfig};

/// Up to which seq a source was read, and which seqs pass.
pub(super) type Found = Result<(u64, Ranges), Error>;

/// What is read for: from which seq, under which configuration.
struct Wanted {
    from_seq: u64,
    config: Arc<RouterConfig>,
}

impl Wanted {
    fn is(&self, from_seq: u64, config: &Arc<RouterConfig>) -> bool {
        self.from_seq == from_seq && Arc::ptr_eq(&self.config, config)
    }
}

/// Gives the generation of the router, the number of the reading, and what it found.
type Reading = Pin<Box<dyn Future<Output = (u64, u64, Found)> + Send>>;

#[derive(Default)]
pub(super) struct Picks {
    under_way: FuturesUnordered<Reading>,
    /// By generation of the router; what was found once it is. A router that is gone has none.
    wanted: BTreeMap<u64, (Wanted, u64, Option<Found>)>,
    last_number: u64,
}

impl Picks {
    /// Begins to `read` for a router, unless that is under way or so are enough others.
    pub fn begin<R: Future<Output = Found> + Send + 'static>(
        &mut self,
        generation: u64,
        from_seq: u64,
        config: &Arc<RouterConfig>,
        read: impl FnOnce() -> R,
    ) {
        if self.under_way.len() >= MAX_PICKS || self.wanted.contains_key(&generation) {
            return;
        }
        self.last_number += 1;
        let (number, found) = (self.last_number, read());
        self.wanted.insert(generation, (Wanted { from_seq, config: config.clone() }, number, None));
        self.under_way.push(Box::pin(async move { (generation, number, found.await) }));
    }

    /// What was found for a router, if it was read for that.
    pub fn take(&mut self, generation: u64, from_seq: u64, config: &Arc<RouterConfig>) -> Option<Found> {
        let (wanted, _, found) = self.wanted.get_mut(&generation)?;
        let is_right = wanted.is(from_seq, config);
        // What is under way for something else is not waited for.
        if found.is_none() && is_right {
            return None;
        }
        let found = found.take();
        self.wanted.remove(&generation);
        found.filter(|_| is_right)
    }

    /// The router is gone or another one.
    pub fn forget(&mut self, generation: u64) {
        self.wanted.remove(&generation);
    }

    /// Returns once something more was found; never if nothing is under way.
    pub async fn some_done(&mut self) {
        match self.under_way.next().await {
            None => std::future::pending().await,
            Some((generation, number, found)) => {
                let wanted = self.wanted.get_mut(&generation).filter(|(_, wanted, _)| *wanted == number);
                if let Some((_, _, place)) = wanted {
                    *place = Some(found);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn config() -> Arc<RouterConfig> {
        Arc::new(RouterConfig::local("a", "b"))
    }

    #[tokio::test]
    async fn one_that_takes_long_keeps_no_other_from_being_read_for() {
        // C-ROUTE-18
        let (mut picks, config) = (Picks::default(), config());
        picks.begin(1, 5, &config, std::future::pending);
        picks.begin(2, 7, &config, async || Ok((9, vec![8..=8])));
        picks.some_done().await;
        assert_eq!(picks.take(1, 5, &config), None);
        assert_eq!(picks.take(2, 7, &config), Some(Ok((9, vec![8..=8]))));
        assert_eq!(picks.take(2, 7, &config), None);
        assert!(picks.some_done().now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_was_read_for_something_else_is_not_taken_for_it() {
        let (mut picks, first, other) = (Picks::default(), config(), config());
        for (from_seq, config) in [(6, &first), (5, &other)] {
            picks.begin(1, 5, &first, async || Ok((9, Vec::new())));
            picks.some_done().await;
            assert_eq!(picks.take(1, from_seq, config), None);
        }
        // Late, of a router that was forgotten, or read for again meanwhile.
        picks.begin(1, 5, &first, async || Ok((9, Vec::new())));
        picks.forget(1);
        picks.begin(1, 5, &first, async || Ok((10, Vec::new())));
        picks.some_done().await;
        picks.some_done().await;
        assert_eq!(picks.take(1, 5, &first), Some(Ok((10, Vec::new()))));
    }

    #[tokio::test]
    async fn so_many_are_read_for_at_once() {
        let (mut picks, config) = (Picks::default(), config());
        (0..2 * MAX_PICKS as u64)
            .for_each(|generation| picks.begin(generation, 5, &config, std::future::pending));
        assert_eq!((picks.under_way.len(), picks.wanted.len()), (MAX_PICKS, MAX_PICKS));
    }
}
