//! Two clusters' views of one topic, side by side.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// What a cluster says of a topic.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Origins {
    origins: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Origin {
    cluster: String,
    cluster_id: String,
    topic: String,
    epoch: u64,
    own: bool,
    records: u64,
    digest: String,
    lost: u64,
}

/// What tells origins apart.
type Key = (String, String, u64);

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Differs,
    /// Written in a life of the topic that has ended where it was written: there is nothing to compare with.
    Ended,
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    origin: String,
    /// Records in the one and in the other cluster.
    records: [u64; 2],
    lost: [u64; 2],
    verdict: Verdict,
}

#[derive(Debug)]
pub(super) struct Comparison {
    /// Names of the clusters.
    clusters: [String; 2],
    rows: Vec<Row>,
}

/// Compares; an error is a line for people.
pub(super) fn compare(one: &Origins, other: &Origins) -> Result<Comparison, String> {
    let (own_one, own_other) = (own(one)?, own(other)?);
    if own_one.cluster_id == own_other.cluster_id {
        return Err(format!("both addresses are of one cluster, {}", own_one.cluster));
    }
    let mut sides: BTreeMap<Key, [Option<&Origin>; 2]> = BTreeMap::new();
    for (side, origins) in [one, other].into_iter().enumerate() {
        for origin in &origins.origins {
            let key = (origin.cluster_id.clone(), origin.topic.clone(), origin.epoch);
            sides.entry(key).or_default()[side] = Some(origin);
        }
    }
    let is_ended = |origin: &Origin| {
        [own_one, own_other].into_iter().any(|own| {
            own.cluster_id == origin.cluster_id && own.topic == origin.topic && origin.epoch < own.epoch
        })
    };
    let row = |sides: [Option<&Origin>; 2]| {
        let origin = sides[0].or(sides[1])?;
        let records = sides.map(|side| side.map_or(0, |origin| origin.records));
        let lost = sides.map(|side| side.map_or(0, |origin| origin.lost));
        let verdict = match sides {
            _ if is_ended(origin) => Verdict::Ended,
            [Some(one), Some(other)] if one.digest == other.digest => Verdict::Same,
            _ if records == [0, 0] => Verdict::Same,
            _ => Verdict::Differs,
        };
        let origin = format!("{}/{}#{}", origin.cluster, origin.topic, origin.epoch);
        Some(Row { origin, records, lost, verdict })
    };
    let clusters = [own_one.cluster.clone(), own_other.cluster.clone()];
    let mut rows: Vec<Row> = sides.into_values().filter_map(row).collect();
    rows.sort_by(|one, other| one.origin.cmp(&other.origin));
    Ok(Comparison { clusters, rows })
}

fn own(origins: &Origins) -> Result<&Origin, String> {
    origins.origins.iter().find(|origin| origin.own).ok_or("an answer without the topic's own records".into())
}

impl Comparison {
    pub(super) fn is_same(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Differs)
    }

    /// A line per origin, for people.
    pub(super) fn table(&self) -> String {
        let widest = self.rows.iter().map(|row| row.origin.len()).max().unwrap_or(0).max("written in".len());
        let [one, other] = &self.clusters;
        let (one_width, other_width) = (one.len().max(12), other.len().max(12));
        let mut table = format!("{:widest$}  {one:>one_width$}  {other:>other_width$}\n", "written in");
        for row in &self.rows {
            let [in_one, in_other] = row.records;
            let verdict = match row.verdict {
                Verdict::Same => "same",
                Verdict::Differs => "DIFFERENT",
                Verdict::Ended => "an earlier life of the topic, not compared",
            };
            // Writing to a string cannot fail.
            let _ = write!(
                table,
                "{:widest$}  {in_one:>one_width$}  {in_other:>other_width$}  {verdict}",
                row.origin
            );
            for (cluster, lost) in self.clusters.iter().zip(row.lost).filter(|(_, lost)| *lost > 0) {
                let _ = write!(table, "; {lost} lost to {cluster} before they could be copied");
            }
            table.push('\n');
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(rows: &[(&str, u64, bool, u64, &str)]) -> Origins {
        let origin = |(cluster, epoch, own, records, digest): &(&str, u64, bool, u64, &str)| Origin {
            cluster: (*cluster).into(),
            cluster_id: format!("id-{cluster}"),
            topic: "t".into(),
            epoch: *epoch,
            own: *own,
            records: *records,
            digest: (*digest).into(),
            lost: 0,
        };
        Origins { origins: rows.iter().map(origin).collect() }
    }

    #[test]
    fn equal_sets_are_the_same_and_others_are_not() {
        let east = origins(&[("east", 1, true, 5, "a"), ("west", 1, false, 2, "b")]);
        let west = origins(&[("west", 1, true, 2, "b"), ("east", 1, false, 5, "a")]);
        assert!(compare(&east, &west).unwrap().is_same());
        let behind = origins(&[("west", 1, true, 3, "c"), ("east", 1, false, 5, "a")]);
        let comparison = compare(&east, &behind).unwrap();
        assert!(!comparison.is_same());
        assert!(comparison.table().contains("west/t#1"), "{}", comparison.table());
        assert_eq!(comparison.table().matches("DIFFERENT").count(), 1);
    }

    #[test]
    fn what_only_one_has_is_a_difference_unless_it_is_nothing() {
        let east = origins(&[("east", 1, true, 0, "e")]);
        let west = origins(&[("west", 1, true, 0, "e")]);
        assert!(compare(&east, &west).unwrap().is_same());
        let other = origins(&[("west", 1, true, 0, "e"), ("north", 1, false, 1, "n")]);
        assert!(!compare(&east, &other).unwrap().is_same());
    }

    #[test]
    fn an_earlier_life_is_not_compared_and_one_cluster_not_with_itself() {
        let east = origins(&[("east", 4, true, 1, "a")]);
        let west =
            origins(&[("west", 1, true, 0, "e"), ("east", 4, false, 1, "a"), ("east", 2, false, 9, "z")]);
        let comparison = compare(&east, &west).unwrap();
        assert!(comparison.is_same());
        assert!(comparison.table().contains("earlier life"));
        assert!(compare(&east, &east).is_err());
    }
}
