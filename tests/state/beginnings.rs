//! Where mirrors begin in topics that they cannot copy yet.

use antiphon::state::{
    Copy, CopyItem, CopyPart, Draft, Forwarded, Instance, Outcome, PutRouter, Refusal, Remote, RouterConfig,
    Start, TopicConfig, TopicType,
};

use crate::world::{Member, cluster_id};

const SOURCE: &str = "m:a";

fn member(create_dest: bool) -> (Member, u64) {
    let mut member = Member::new(0);
    let remote = Some(Remote { urls: vec!["http://far:4000".into()], token: None, relays: None });
    let config =
        RouterConfig { remote, create_dest, start: Start::Latest, ..RouterConfig::local("m:*", "*") };
    let put = Draft::put_router(&PutRouter { name: "far", config, is_start_given: true });
    assert!(matches!(member.apply(put), Outcome::RouterPut { .. }));
    let generation = member.state.routers().get("far").expect("the router").generation;
    (member, generation)
}

/// Up to seq `to_seq` nothing is new in the source, of which the mirror begins at `start_seq`.
fn copy(
    generation: u64,
    dest_epoch: Option<u64>,
    from_seq: Option<u64>,
    (start_seq, to_seq): (u64, u64),
) -> Copy<'static> {
    let part = CopyPart {
        source: SOURCE,
        source_epoch: 5,
        source_type: TopicType::Log,
        source_instance: 0,
        dest: SOURCE,
        dest_epoch,
        from_seq,
        start_seq: Some(start_seq),
        to_seq,
        to_entry: None,
        lost: Vec::new(),
        items: Vec::<CopyItem>::new(),
    };
    let cluster_id = cluster_id(1);
    let instance = Instance { cluster_id, cluster: "far".into(), topic: SOURCE.into(), epoch: 5 };
    Copy {
        generation,
        cluster_id,
        next_epoch: 30,
        instances: vec![instance],
        parts: vec![part],
        gone: Vec::new(),
        held: Vec::new(),
    }
}

fn apply(member: &mut Member, copy: &Copy<'_>) -> Forwarded {
    match member.apply(Draft::copy(copy, std::iter::empty()).expect("no records")) {
        Outcome::Forwarded(mut forwarded) => forwarded.remove(0),
        other => panic!("a copy came out as {other:?}"),
    }
}

/// Epochs of source and destination, and the seq.
fn position(member: &Member) -> Option<(u64, u64, u64)> {
    let router = member.state.routers().get("far").expect("the router");
    let router = router.read();
    assert_eq!(router.first_new_epoch, 30);
    router.positions.get(SOURCE).map(|it| (it.source_epoch, it.dest_epoch, it.seq))
}

/// C-ROUTE-02, C-MIRROR-04, C-MIRROR-06
#[test]
fn a_mirror_that_may_not_make_its_topic_begins_where_it_was_to_when_somebody_does() {
    let (mut member, generation) = member(false);
    let refused = apply(&mut member, &copy(generation, None, None, (70, 90)));
    assert_eq!(refused.stopped, Some(Refusal::TopicNotFound));
    assert_eq!(position(&member), Some((5, 0, 70)));
    // Tried again, also from where it is by now, it is where it was.
    for from_seq in [None, Some(70)] {
        let again = apply(&mut member, &copy(generation, None, from_seq, (95, 96)));
        assert_eq!((again.stopped.is_some(), position(&member)), (true, Some((5, 0, 70))));
    }
    member.apply(Draft::put_topic(SOURCE, &TopicConfig::default()));
    let dest_epoch = member.state.catalog().get(SOURCE).map(|dest| dest.epoch);
    // From anywhere else it is of another time.
    for from_seq in [None, Some(0), Some(90)] {
        let stale = apply(&mut member, &copy(generation, dest_epoch, from_seq, (0, 99)));
        assert_eq!(stale.stopped, Some(Refusal::RouterMoved));
    }
    let taken = apply(&mut member, &copy(generation, dest_epoch, Some(70), (70, 99)));
    assert_eq!((taken.stopped, taken.seq), (None, 99));
    assert_eq!(position(&member), Some((5, dest_epoch.expect("a topic"), 99)));
}

/// C-ROUTE-02
#[test]
fn a_mirror_that_has_no_room_for_another_topic_notes_where_it_begins() {
    use antiphon::state::ClusterLimits;
    let (mut member, generation) = member(true);
    member.apply(Draft::set_limits(&ClusterLimits { max_topics: 1, ..ClusterLimits::default() }));
    member.apply(Draft::put_topic("other", &TopicConfig::default()));
    let refused = apply(&mut member, &copy(generation, None, None, (70, 70)));
    assert!(matches!(refused.stopped, Some(Refusal::OverLimit { .. })));
    assert_eq!(position(&member), Some((5, 0, 70)));
    member.apply(Draft::delete_topic("other", false));
    let taken = apply(&mut member, &copy(generation, None, Some(70), (70, 71)));
    let dest_epoch = member.state.catalog().get(SOURCE).expect("the topic was made").epoch;
    assert_eq!((taken.stopped, position(&member)), (None, Some((5, dest_epoch, 71))));
}
