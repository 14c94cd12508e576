//! Where a topic's records were first written, and what of that it has: in a form in which two clusters that mirror
//! a topic can be compared by one look at each.
//!
//! Two topics agree on an origin if they have taken the same set of its seqs; what either has removed since does
//! not matter. The digest of a set is that of its maximal stretches in order, whatever way it came about.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Consistency, Engine};
use crate::error::{Code, Error};
use crate::state::{Instance, OwnSeqs, Ranges, SeqSum};
use crate::task;

/// What one topic has taken of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginView {
    pub instance: Arc<Instance>,
    /// The instance is the topic itself: these were written here.
    pub is_own: bool,
    /// Records taken, also those that are gone by now.
    pub records: u64,
    /// The highest seq taken; 0 if none.
    pub last_seq: u64,
    /// SHA-256 of the set of seqs, its first 16 bytes: of each maximal stretch the first and the last seq, 64 bits
    /// big-endian each, rising.
    pub digest: [u8; 16],
    /// Seqs that were lost before they could be taken.
    pub lost: Ranges,
}

impl Engine {
    /// The origins of a topic, its own first, then by cluster, topic and epoch. Errors: `topic_not_found`,
    /// `no_leader`.
    pub async fn origins(
        &self,
        topic: &str,
        consistency: Consistency,
    ) -> Result<(u64, Vec<OriginView>), Error> {
        self.fence(consistency).await?;
        let shared = self.catalog().get(topic).ok_or_else(|| Error::topic_not_found(topic))?;
        let own = self.instance_of(&shared)?;
        // Copied, because looking through them may take a while.
        let (head_seq, own_seqs, others) = {
            let topic = shared.read();
            let others = topic.origins.all().iter().map(|origin| {
                (origin.instance.clone(), origin.taken_count, origin.taken.clone(), origin.reported.clone())
            });
            (topic.head_seq, topic.origins.own.clone(), others.collect::<Vec<_>>())
        };
        let summing = task::blocking_for_client(move || {
            let mut views = vec![own_view(own, head_seq, &own_seqs)];
            let mut others: Vec<OriginView> = others
                .into_iter()
                .map(|(instance, records, taken, reported)| OriginView {
                    instance,
                    is_own: false,
                    records,
                    last_seq: taken.stretches().last().map_or(0, |last| *last.end()),
                    digest: digest(taken.stretches()),
                    lost: reported.stretches().flat_map(|lost| taken.absent_in(lost)).collect(),
                })
                .collect();
            others.sort_by(|one, other| order(&one.instance).cmp(&order(&other.instance)));
            views.append(&mut others);
            Ok(views)
        });
        let views = summing.await.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        Ok((shared.epoch, views))
    }
}

fn order(instance: &Instance) -> (&str, u128, &str, u64) {
    (&instance.cluster, instance.cluster_id, &instance.topic, instance.epoch)
}

fn own_view(instance: Arc<Instance>, head_seq: u64, own: &OwnSeqs) -> OriginView {
    let SeqSum { count, last_seq, digest } = own.sum(head_seq);
    OriginView { instance, is_own: true, records: count, last_seq, digest, lost: Vec::new() }
}

fn digest(stretches: impl Iterator<Item = std::ops::RangeInclusive<u64>>) -> [u8; 16] {
    let mut sha = Sha256::new();
    for stretch in stretches {
        sha.update(stretch.start().to_be_bytes());
        sha.update(stretch.end().to_be_bytes());
    }
    let mut first = [0; 16];
    first.copy_from_slice(&sha.finalize()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SeqSet;

    #[test]
    fn sets_are_told_apart_and_the_way_they_came_about_is_not() {
        let sets =
            [vec![1..=9], vec![1..=3, 4..=9], vec![4..=9, 1..=3, 2..=5], vec![1..=10], vec![1..=4, 6..=9]];
        let digests: Vec<_> = sets
            .into_iter()
            .map(|ranges| {
                let mut set = SeqSet::default();
                ranges.into_iter().for_each(|range| set.insert(range));
                digest(set.stretches())
            })
            .collect();
        assert!(digests[..3].iter().all(|digest| *digest == digests[0]));
        assert!(digests[3..].iter().all(|digest| *digest != digests[0]));
    }

    #[test]
    fn what_was_written_here_is_what_is_not_foreign() {
        let instance = Instance { cluster_id: 7, cluster: "east".into(), topic: "t".into(), epoch: 1 };
        let mut own = OwnSeqs::default();
        [2..=3, 6..=6].into_iter().for_each(|range| own.take_up(range));
        let view = own_view(Arc::new(instance), 6, &own);
        assert_eq!((view.records, view.last_seq, view.is_own), (3, 5, true));
        let mut same = SeqSet::default();
        [1..=1, 4..=5].into_iter().for_each(|range| same.insert(range));
        assert_eq!(view.digest, digest(same.stretches()));
    }
}
