//! Deleting records (contract section 12).
//!
//! The member that is asked finds what matches in what it has applied, and proposes the list; what is written
//! while it looks is found when the command is applied (see `state/delete.rs`). If that was too much, it looks
//! on from where it was.

use std::sync::Arc;

use tokio::time::Instant;

use super::page::damaged;
use super::{Consistency, Engine, Fence};
use crate::error::Error;
use crate::filter::TagMatch;
use crate::limits::MAX_DELETE_RANGES;
use crate::record::EntryRecords;
use crate::state::{
    DeleteRecords, Draft, LateMatch, Listed, Located, Outcome, Ranges, RecordsDeleted, Refusal, Run,
    SealedBlock, SharedTopic, match_run,
};
use crate::storage::Log;
use crate::task;

/// What matches up to a seq.
struct Look {
    ranges: Ranges,
    seen_seq: u64,
}

impl Engine {
    /// Removes the records of `topic` below `before_seq` and with a tag that matches, as far as either is given.
    /// Errors: `topic_not_found`, `no_leader`, `commit_unknown`.
    pub async fn delete_records(
        &self,
        topic: &str,
        before_seq: Option<u64>,
        tags: Option<TagMatch>,
    ) -> Result<RecordsDeleted, Error> {
        let Some(tags) = tags else {
            let delete = DeleteRecords { topic, before_seq, listed: None };
            return self.propose_delete(&delete).await?.ok_or_else(|| self.no_leader());
        };
        loop {
            let fence: Fence = self.fence(Consistency::Strong).await?;
            let shared = self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?;
            let mut look = Look { ranges: Ranges::new(), seen_seq: 0 };
            let mut deleted = 0;
            while !shared.is_deleted() {
                self.look(&shared, &tags, before_seq, &mut look).await?;
                // A list that is too long goes in parts. Then it is not one moment at which all of it goes.
                while look.ranges.len() > MAX_DELETE_RANGES {
                    let rest = look.ranges.split_off(MAX_DELETE_RANGES);
                    let ranges = std::mem::replace(&mut look.ranges, rest);
                    let listed = Some(Listed { epoch: shared.epoch, ranges, late: None });
                    let part = self.propose_delete(&DeleteRecords { topic, before_seq, listed }).await?;
                    deleted += part.map_or(0, |part| part.deleted);
                }
                let late = Some(LateMatch { seen_seq: look.seen_seq, tags: tags.clone() });
                let listed = Some(Listed { epoch: shared.epoch, ranges: look.ranges.clone(), late });
                let outcome = self.propose_delete(&DeleteRecords { topic, before_seq, listed }).await?;
                if let Some(last) = outcome {
                    return Ok(RecordsDeleted { deleted: deleted + last.deleted, ..last });
                }
                if Instant::now() >= fence.deadline {
                    return Err(self.no_leader());
                }
            }
        }
    }

    /// `None` if it has to be looked for again.
    async fn propose_delete(&self, delete: &DeleteRecords<'_>) -> Result<Option<RecordsDeleted>, Error> {
        match self.propose(Draft::delete_records(delete)).await?.0 {
            Outcome::RecordsDeleted(deleted) => Ok(Some(deleted)),
            Outcome::Refused(Refusal::LookAgain) => Ok(None),
            Outcome::Refused(refusal) => Err(refusal.into_error(delete.topic)),
            other => Err(damaged(&format_args!("a delete came out as {other:?}"))),
        }
    }

    /// Goes on with a look, up to the head as it is applied here or to `before_seq`.
    async fn look(
        &self,
        shared: &Arc<SharedTopic>,
        tags: &TagMatch,
        before_seq: Option<u64>,
        look: &mut Look,
    ) -> Result<(), Error> {
        let mut block: Option<SealedBlock> = None;
        let last_seq = shared.read().head_seq.min(before_seq.unwrap_or(u64::MAX).saturating_sub(1));
        while look.seen_seq < last_seq && !shared.is_deleted() {
            let (located, removal_count) = {
                let topic = shared.read();
                // What is below is gone.
                look.seen_seq = look.seen_seq.max(topic.earliest_seq - 1);
                (topic.locate(look.seen_seq, block.as_ref()), topic.removal_count)
            };
            let (seen_seq, is_read) = (
                look.seen_seq,
                match located.map_err(|error| damaged(&error))? {
                    Located::AtHead => {
                        look.seen_seq = last_seq.max(look.seen_seq);
                        break;
                    }
                    Located::BelowEarliest => continue,
                    Located::Cold { block_first_seq } => {
                        let (applied, epoch) = (self.inner.node.applied().clone(), shared.epoch);
                        let fetched =
                            task::blocking(move || applied.sealed_block(epoch, block_first_seq)).await;
                        fetched.map(|fetched| block = fetched).is_ok() && block.is_some()
                    }
                    Located::Runs(mut runs) => {
                        runs.retain(|run| run.first_seq <= last_seq);
                        let Some(end) = runs.last().map(|run| run.last_seq().min(last_seq)) else {
                            look.seen_seq = last_seq;
                            break;
                        };
                        let (log, tags) = (self.inner.log.clone(), tags.clone());
                        let found = task::blocking(move || find(&log, &runs, &tags, last_seq)).await;
                        found
                            .map(|found| {
                                look.ranges.extend(found);
                                look.seen_seq = end;
                            })
                            .is_ok()
                    }
                },
            );
            // What could not be read may have gone meanwhile.
            let topic = shared.read();
            let has_moved = topic.earliest_seq > seen_seq + 1 || topic.removal_count != removal_count;
            if !is_read && !has_moved && !shared.is_deleted() {
                return Err(damaged(&"what a delete looks for"));
            }
        }
        Ok(())
    }
}

/// Which records of `runs` up to `last_seq` match. Blocks on the disk.
fn find(log: &Log, runs: &[Run], tags: &TagMatch, last_seq: u64) -> std::io::Result<Ranges> {
    let mut ranges = Ranges::new();
    for run in runs {
        let payload = match log.cached(run.entry) {
            Some(entry) => entry.payload,
            None => log.payload(run.entry)?,
        };
        let count = run.count.min(last_seq + 1 - run.first_seq);
        match_run(&Run { count, ..*run }, &EntryRecords::parse(payload)?, tags, &mut ranges)?;
    }
    Ok(ranges)
}
