//! Deleting records (contract section 12).
//!
//! The member that is asked finds what matches in what it has applied, and proposes the list; what is written
//! while it looks is found when the command is applied (see `state/delete.rs`). If that was too much, it looks
//! on from where it was.

use std::sync::Arc;

use tokio::time::Instant;

use super::page::damaged;
use super::{Consistency, Engine, Fence};
use crate::error::{Code, Error};
use crate::filter::TagMatch;
use crate::limits::{COLD_ENTRY_PATIENCE, MAX_DELETE_BLOCKS};
use crate::state::{
    DeleteRecords, Draft, LateMatch, Listed, Look, Outcome, RecordsDeleted, Refusal, Run, SharedTopic,
};
use crate::task;

impl Engine {
    /// Removes the records of `topic` below `before_seq` and with a tag that matches, as far as either is given.
    /// Errors: `topic_not_found`, `no_leader`, `throttled`, `commit_unknown`.
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
        let mut deleted = 0;
        match self.delete_matching(topic, before_seq, tags, &mut deleted).await {
            // Parts of it have taken effect. `no_leader` would say that nothing has (C-CLU-03).
            Err(error)
                if deleted > 0
                    && matches!(error.code, Code::NoLeader | Code::StorageFull | Code::Throttled) =>
            {
                Err(self.commit_unknown())
            }
            result => result,
        }
    }

    /// `deleted` says how many records the parts that are done have removed.
    async fn delete_matching(
        &self,
        topic: &str,
        before_seq: Option<u64>,
        tags: TagMatch,
        deleted: &mut u64,
    ) -> Result<RecordsDeleted, Error> {
        loop {
            let fence: Fence = self.fence(Consistency::Strong).await?;
            let shared = self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?;
            let mut look = Look::new(shared.clone(), tags.clone(), MAX_DELETE_BLOCKS);
            while !shared.is_deleted() {
                look = self.look(&shared, look, before_seq).await?;
                // What is too much for one command goes in parts. Then it is not one moment at which all of it goes.
                let is_part = look.is_full();
                let late = LateMatch { seen_seq: look.seen_seq, tags: tags.clone() };
                let late = (!is_part).then_some(late);
                let listed = Some(Listed { epoch: shared.epoch, ranges: look.ranges.clone(), late });
                match self.propose_delete(&DeleteRecords { topic, before_seq, listed }).await? {
                    Some(last) if !is_part => {
                        return Ok(RecordsDeleted { deleted: *deleted + last.deleted, ..last });
                    }
                    Some(part) => {
                        *deleted += part.deleted;
                        look.forget_ranges();
                    }
                    None if Instant::now() >= fence.deadline => return Err(self.no_leader()),
                    None => {}
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
        mut look: Look,
        before_seq: Option<u64>,
    ) -> Result<Look, Error> {
        let last_seq = shared.read().head_seq.min(before_seq.unwrap_or(u64::MAX).saturating_sub(1));
        look.forget_found();
        let mut room = None;
        loop {
            let (applied, log, epoch) =
                (self.inner.node.applied().clone(), self.inner.log.clone(), shared.epoch);
            let reader = self.inner.cold_entries.reader(log.clone());
            let stepped = task::blocking_for_client(move || {
                let mut missing_units = None;
                let fetch_block = |first_seq| applied.sealed_block(epoch, first_seq);
                let fetch_entry = |run: &Run| {
                    let fetched = reader.read_one(run, room.take())?;
                    Ok(fetched.map_err(|units| missing_units = Some(units)).ok())
                };
                let is_done = look.step(&log, last_seq, fetch_block, fetch_entry)?;
                Ok((look, is_done, missing_units))
            });
            let (back, is_done, missing_units) = stepped.await.map_err(|error| damaged(&error))?;
            if is_done {
                return Ok(back);
            }
            (look, room) = (back, None);
            if let Some(units) = missing_units {
                room = Some(self.inner.cold_entries.wait(units, COLD_ENTRY_PATIENCE).await?);
            }
        }
    }
}
