//! What a destination takes of what is offered to it.
//!
//! A record is taken unless its origin is the destination itself, or it was taken before, by whatever way; as many as
//! there is room for. Nothing is changed here: what is taken is listed.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::delete::Ranges;
use super::origins::{Instance, Origin};
use super::outcome::Refusal;
use super::run::{Overlay, Run};
use super::topic::Topic;
use crate::storage::EntryId;

pub(super) enum Item {
    Copies {
        /// But for its seq and origin.
        run: Run,
        sizes: Range<usize>,
        instance: Arc<Instance>,
        origin_seq: u64,
        origin_ts_ms: u64,
    },
    Gap {
        instance: Arc<Instance>,
        range: RangeInclusive<u64>,
    },
}

/// Records that are offered to a destination: consecutive in their source, their entry and their origin.
pub(super) struct Offer<'a> {
    pub entry: EntryId,
    pub first_position: u32,
    pub overlay: Overlay,
    pub source_seq: u64,
    pub instance: &'a Arc<Instance>,
    pub origin_seq: u64,
    pub origin_ts_ms: u64,
    pub sizes_bytes: &'a [u32],
}

/// Decides what a destination takes.
pub(super) struct Planner<'a> {
    pub own_cluster_id: u128,
    pub dest: Option<&'a Topic>,
    pub dest_name: &'a str,
    pub items: Vec<Item>,
    pub sizes_bytes: Vec<u32>,
    pub bytes: u64,
    /// What still fits, and what is said when it does not.
    pub records_left: u64,
    pub bytes_left: u64,
    pub full: Refusal,
    /// The quota of the whole cluster.
    pub quota_left: u64,
    pub over_quota: Refusal,
    /// The seq of the source up to which everything was examined, and why no further.
    pub stopped: Option<(u64, Refusal)>,
}

impl Planner<'_> {
    /// Whether what was first written there comes home (C-ROUTE-07).
    pub fn is_echo(&self, instance: &Instance) -> bool {
        instance.cluster_id == self.own_cluster_id
            && *instance.topic == *self.dest_name
            && self.dest.is_none_or(|dest| instance.epoch <= dest.epoch)
    }

    /// Whether all that another topic had or missed of `origin` is an echo here, or was taken or reported.
    pub fn needs_nothing_of(&self, origin: &Origin) -> bool {
        self.is_echo(&origin.instance) || self.dest.is_some_and(|dest| dest.origins.has_all_of(origin))
    }

    /// `false` if not all of it was examined.
    pub fn offer(&mut self, offer: &Offer<'_>) -> bool {
        let Offer { instance, origin_seq, .. } = *offer;
        if self.is_echo(instance) {
            return true;
        }
        let last = origin_seq + offer.sizes_bytes.len() as u64 - 1;
        let untaken = match self.dest {
            None => vec![origin_seq..=last],
            Some(dest) => dest.origins.untaken_in(dest.origins.number(instance), origin_seq..=last),
        };
        for stretch in untaken {
            let at = (stretch.start() - origin_seq) as usize;
            let count = (stretch.end() - stretch.start() + 1) as usize;
            let (fitting, refusal) = self.take_room(&offer.sizes_bytes[at..at + count]);
            if fitting > 0 {
                let start = self.sizes_bytes.len();
                self.sizes_bytes.extend_from_slice(&offer.sizes_bytes[at..at + fitting]);
                let position = offer.first_position + at as u32;
                let run = Run::of_entry(offer.entry, position, 0, fitting as u64, 0);
                self.items.push(Item::Copies {
                    run: Run { overlay: offer.overlay, ..run },
                    sizes: start..start + fitting,
                    instance: instance.clone(),
                    origin_seq: *stretch.start(),
                    origin_ts_ms: offer.origin_ts_ms,
                });
            }
            if let Some(refusal) = refusal {
                self.stopped = Some((offer.source_seq + (at + fitting) as u64 - 1, refusal));
                return false;
            }
        }
        true
    }

    /// How many of these fit, one after the other, and what is said of the first that does not.
    fn take_room(&mut self, sizes_bytes: &[u32]) -> (usize, Option<Refusal>) {
        for (at, size) in sizes_bytes.iter().enumerate() {
            let size = u64::from(*size);
            if self.records_left == 0 || self.bytes_left < size {
                return (at, Some(self.full));
            }
            if self.quota_left < size {
                return (at, Some(self.over_quota));
            }
            self.records_left -= 1;
            self.bytes_left -= size;
            self.quota_left -= size;
            self.bytes += size;
        }
        (sizes_bytes.len(), None)
    }

    /// These seqs of `instance` were lost before they could be copied.
    pub fn lost(&mut self, instance: &Arc<Instance>, ranges: &[RangeInclusive<u64>]) {
        if self.is_echo(instance) {
            return;
        }
        let unreported = |range: &RangeInclusive<u64>| match self.dest {
            None => Some(range.clone()),
            Some(dest) => dest.origins.unreported_in(dest.origins.number(instance), range.clone()),
        };
        let mut ranges = ranges.iter().filter_map(unreported);
        let Some(first) = ranges.next() else { return };
        let last = ranges.next_back().unwrap_or(first.clone());
        let range = *first.start()..=*last.end();
        self.items.push(Item::Gap { instance: instance.clone(), range });
    }
}

/// Which of the seqs in `evicted` a destination may have lost: those first written in `source`, and those copied
/// there from elsewhere, unless it needs nothing of all that `source` ever had from there.
pub fn lost_seqs(
    source: &Topic,
    evicted: RangeInclusive<u64>,
    needs_nothing_of: impl Fn(&Origin) -> bool,
) -> Ranges {
    let has_foreign = source.origins.all().iter().any(|origin| !needs_nothing_of(origin));
    if has_foreign || source.origins.all().is_empty() {
        return vec![evicted];
    }
    let mut own: Ranges = source.origins.foreign.absent_in(evicted).collect();
    if own.len() > MAX_LOST_RANGES
        && let (Some(first), Some(last)) = (own.first(), own.last())
    {
        own = vec![*first.start()..=*last.end()];
    }
    own
}

const MAX_LOST_RANGES: usize = 64;
