use super::*;
use crate::limits::{MAX_GAPS, MAX_ORIGINS, MAX_POSITIONS, MAX_REPORTED};
use crate::record::HeaderEdit;
use crate::state::quota::Foreign;
use crate::state::quota::Limit;
use crate::state::{Cluster, Draft, Envelope, PutRouter, Remote, RouterConfig, Start};

/// A state with a mirror `m` of all topics of cluster 9, which makes none whose name begins with `x`.
struct Mirrored {
    state: State,
    index: u64,
}

impl Mirrored {
    fn new() -> Self {
        let mut mirrored = Mirrored { state: State::default(), index: 0 };
        mirrored.apply(Draft::open_session());
        mirrored.apply(Draft::set_cluster(&Cluster { id: 7, name: "here".into() }));
        for (name, source, create_dest) in [("m", "*", true), ("none", "x*", false)] {
            let remote = Remote { urls: vec!["http://there:4000".into()], token: None, relays: None };
            let config = RouterConfig {
                remote: Some(remote),
                start: Start::Earliest,
                create_dest,
                ..RouterConfig::local(source, "*")
            };
            mirrored.apply(Draft::put_router(&PutRouter { name, config, is_start_given: true }));
        }
        mirrored
    }

    fn apply(&mut self, draft: Draft) -> Outcome {
        self.index += 1;
        let index = self.index;
        let envelope = Envelope { node_id: 1, session: 5, number: index, done_below: index };
        let applied = self.state.apply_command(EntryId { term: 1, index }, 1000, &draft.seal(envelope));
        applied.expect("the command is readable").outcome
    }

    /// What becomes of gaps of these instances, by number, one seq each, in topics of these names.
    fn copy(&mut self, router: &str, parts: &[(&str, &[u32])], at_seq: u64) -> Vec<Forwarded> {
        let router = self.state.routers().get(router).expect("the router");
        let instance = |epoch| Instance { cluster_id: 9, cluster: "there".into(), topic: "t".into(), epoch };
        let parts = parts.iter().map(|(name, gaps)| CopyPart {
            source: name,
            source_epoch: 1,
            source_type: TopicType::Log,
            source_instance: 0,
            dest: name,
            dest_epoch: self.state.catalog().get(name).map(|dest| dest.epoch),
            from_seq: router.read().positions.get(*name).map(|position| position.seq),
            start_seq: Some(0),
            to_seq: at_seq,
            to_entry: None,
            lost: Vec::new(),
            items: gaps
                .iter()
                .map(|instance| CopyItem::Gap { instance: *instance, from_seq: at_seq, to_seq: at_seq })
                .collect(),
        });
        let copy = Copy {
            generation: router.generation,
            cluster_id: 9,
            next_epoch: 2,
            instances: (1..20).map(instance).collect(),
            parts: parts.collect(),
            gone: Vec::new(),
            held: Vec::new(),
        };
        let none = std::iter::empty::<(&[u8], HeaderEdit<'_>)>();
        match self.apply(Draft::copy(&copy, none).expect("it can be stored")) {
            Outcome::Forwarded(parts) => parts,
            other => panic!("{other:?}"),
        }
    }

    /// So many more are known elsewhere.
    fn know(&self, elsewhere: Foreign) {
        self.state.catalog().totals().foreign().add(elsewhere);
    }
}

/// However many mirrors and topics there are, what other clusters name has one bound.
#[test]
fn origins_of_all_topics_have_a_bound() {
    let mut mirrored = Mirrored::new();
    mirrored.know(Foreign { origins: MAX_ORIGINS - 4, ..Foreign::default() });
    let refusal = Refusal::OverLimit { limit: Limit::Origins, max: MAX_ORIGINS as u64 };
    let stopped = |became: Vec<Forwarded>| became.iter().map(|part| part.stopped).collect::<Vec<_>>();
    // The parts of one command share what is left.
    let became = mirrored.copy("m", &[("a", &[1, 2, 3]), ("b", &[1]), ("c", &[1, 1])], 10);
    assert_eq!(stopped(became), [None, None, Some(refusal)]);
    assert_eq!(mirrored.state.catalog().totals().foreign().origins(), MAX_ORIGINS);
    // What is known goes on.
    let became = mirrored.copy("m", &[("a", &[3, 2, 1]), ("b", &[1, 2])], 20);
    assert_eq!(stopped(became), [None, Some(refusal)]);
    mirrored.apply(Draft::delete_topic("a", false));
    assert_eq!(stopped(mirrored.copy("m", &[("b", &[2, 3])], 30)), [None]);
}

#[test]
fn beginnings_of_all_routers_have_a_bound() {
    let mut mirrored = Mirrored::new();
    let elsewhere = MAX_POSITIONS - 2;
    mirrored.state.routers.shared.know_positions(elsewhere);
    for names in [["x1", "x2"], ["x2", "x3"]] {
        mirrored.copy("none", &names.map(|name| (name, <&[u32]>::default())), 0);
    }
    let router = mirrored.state.routers().get("none").expect("the router");
    assert_eq!(router.read().positions.keys().map(|name| &**name).collect::<Vec<_>>(), ["x1", "x2"]);
    assert_eq!(mirrored.state.routers.shared.position_count(), MAX_POSITIONS);
    mirrored.apply(Draft::delete_router("none"));
    assert_eq!(mirrored.state.routers.shared.position_count(), elsewhere);
}

/// However many destinations are made, deleted and left behind.
#[test]
fn positions_of_all_routers_have_a_bound() {
    let mut mirrored = Mirrored::new();
    let elsewhere = MAX_POSITIONS - 3;
    mirrored.state.routers.shared.know_positions(elsewhere);
    let refusal = Refusal::OverLimit { limit: Limit::Positions, max: MAX_POSITIONS as u64 };
    let stopped = |became: Vec<Forwarded>| became.iter().map(|part| part.stopped).collect::<Vec<_>>();
    assert_eq!(stopped(mirrored.copy("m", &[("a", &[1]), ("b", &[1])], 10)), [None, None]);
    mirrored.apply(Draft::delete_topic("a", false));
    assert_eq!(
        stopped(mirrored.copy("m", &[("c", &[1]), ("d", &[1]), ("b", &[1])], 10)),
        [None, Some(refusal), None],
        "what is known goes on"
    );
    assert!(mirrored.state.catalog().get("d").is_none());
    assert_eq!(stopped(mirrored.copy("none", &[("x1", &[])], 10)), [Some(Refusal::TopicNotFound)]);
    assert_eq!(mirrored.state.routers.shared.position_count(), MAX_POSITIONS);
    mirrored.apply(Draft::delete_router("m"));
    assert_eq!(mirrored.state.routers.shared.position_count(), elsewhere);
}

/// Nobody is refused a gap: with too many of them all it is told with the one before.
#[test]
fn beyond_the_bound_of_all_gaps_an_origin_makes_no_second_one() {
    let mut mirrored = Mirrored::new();
    mirrored.copy("m", &[("a", &[1, 2])], 10);
    mirrored.know(Foreign { gaps: MAX_GAPS, reported: MAX_REPORTED, ..Foreign::default() });
    for at_seq in [20, 30] {
        mirrored.copy("m", &[("a", &[1, 2, 3])], at_seq);
    }
    let gaps = |state: &State| -> Vec<(u64, u64, u64)> {
        let topic = state.catalog().get("a").expect("the topic");
        let topic = topic.read();
        topic.origins.gaps_in(0..=99).map(|(seq, gap)| (seq, gap.from_seq, gap.to_seq)).collect()
    };
    assert_eq!(gaps(&mirrored.state), [(6, 10, 30), (7, 10, 30), (8, 20, 30)]);
    let foreign = mirrored.state.catalog().totals().foreign().clone();
    assert_eq!((foreign.gaps(), foreign.reported()), (MAX_GAPS + 3, MAX_REPORTED + 3));
}
