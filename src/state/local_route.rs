//! The source of a local router, walked from its position on.

use std::sync::Arc;

use super::blocks::Goal;
use super::copy_command::RoutePart;
use super::intake::{Offer, Planner};
use super::origins::Instance;
use super::run::{Overlay, Run, runs};
use super::topic::Topic;
use crate::codec::Malformed;

/// The source of a local route, as it is looked at for one part.
pub(super) struct LocalRoute<'a> {
    pub source: &'a Topic,
    pub own: &'a Arc<Instance>,
    pub overlay: Overlay,
    pub part: &'a RoutePart,
    pub now_ms: u64,
}

pub(super) struct Looked {
    /// The last seq of what is expired, though nothing has taken it away yet; 0 if nothing is.
    pub expired_to_seq: u64,
    /// The block that is needed to go on.
    pub missing: Option<u64>,
}

impl LocalRoute<'_> {
    pub fn walk(&self, to_seq: u64, planner: &mut Planner<'_>, looked: &mut Looked) -> Result<(), Malformed> {
        let from_seq = (self.part.from_seq + 1).max(self.source.earliest_seq);
        let expired_before_ms = match Goal::of_ttl(&self.source.config, self.now_ms) {
            Some(Goal::Before { ts_ms }) => ts_ms,
            _ => 0,
        };
        let blocks = &self.source.blocks;
        let mut gaps = self.source.origins.gaps_in(self.part.from_seq + 1..=to_seq).peekable();
        let mut tell_gaps = |planner: &mut Planner<'_>, before_seq: u64| {
            while let Some((_, gap)) = gaps.next_if(|(seq, _)| *seq < before_seq) {
                if let Some(instance) = self.source.origins.instance(gap.number) {
                    planner.lost(instance, &[gap.from_seq..=gap.to_seq]);
                }
            }
        };
        let mut picked = self.part.picked.as_deref().map(|ranges| ranges.iter().cloned().peekable());
        for first_seq in blocks.live_blocks(from_seq..=to_seq) {
            let Some(block) = blocks.in_memory(first_seq) else {
                looked.missing = Some(first_seq);
                return Ok(());
            };
            let mut iter = runs(first_seq, block);
            while let Some((run, sizes)) = iter.next_sized()? {
                let Some(rest) = run.after(from_seq - 1).filter(|rest| rest.first_seq <= to_seq) else {
                    continue;
                };
                let last_seq = rest.last_seq().min(to_seq);
                if run.ts_ms < expired_before_ms {
                    let expired = blocks.removed().previous_absent_down_to(last_seq, rest.first_seq);
                    looked.expired_to_seq = expired.unwrap_or(looked.expired_to_seq);
                    continue;
                }
                let sizes = sizes.table(run.count)?;
                for live in blocks.removed().absent_in(rest.first_seq..=last_seq) {
                    let mut at = *live.start();
                    while at <= *live.end() {
                        let wanted = match &mut picked {
                            None => at..=*live.end(),
                            Some(ranges) => {
                                while ranges.peek().is_some_and(|range| *range.end() < at) {
                                    ranges.next();
                                }
                                let Some(range) = ranges.peek().filter(|it| it.start() <= live.end()) else {
                                    break;
                                };
                                at.max(*range.start())..=(*range.end()).min(*live.end())
                            }
                        };
                        at = *wanted.end() + 1;
                        let count = at - wanted.start();
                        let part = run.part(*wanted.start(), count);
                        let sizes_bytes = sizes.list(wanted.start() - run.first_seq, count);
                        tell_gaps(planner, part.first_seq);
                        if !self.offer(&part, &sizes_bytes, planner) {
                            return Ok(());
                        }
                    }
                }
            }
        }
        tell_gaps(planner, to_seq + 1);
        Ok(())
    }

    fn offer(&self, run: &Run, sizes_bytes: &[u32], planner: &mut Planner<'_>) -> bool {
        let copied = run.origin.and_then(|origin| {
            let instance = self.source.origins.instance(origin.number)?;
            Some((instance, origin.first_seq, origin.ts_ms))
        });
        let (instance, origin_seq, origin_ts_ms) = copied.unwrap_or((self.own, run.first_seq, run.ts_ms));
        planner.offer(&Offer {
            entry: run.entry,
            first_position: run.first_position,
            overlay: self.overlay.and(run.overlay),
            source_seq: run.first_seq,
            instance,
            origin_seq,
            origin_ts_ms,
            sizes_bytes,
        })
    }
}
