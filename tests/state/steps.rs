//! What may be done to the state and its model, at random.

use proptest::prelude::*;

use crate::model::Limits;

#[derive(Debug, Clone)]
pub enum Step {
    Append {
        topic: usize,
        count: usize,
        create: bool,
        expect_right: Option<bool>,
        key: Option<u8>,
    },
    Put {
        topic: usize,
        queue: bool,
        window_ms: u64,
        limits: Limits,
    },
    /// The leader's own command.
    Expire,
    /// A checkpoint of the member that restarts, which goes on.
    Save,
    Delete {
        topic: usize,
        if_empty: bool,
    },
    /// Records of one topic: by tag, by seq as a part of the head, or both. The member that proposed it looked
    /// when so much of the topic was there.
    DeleteRecords {
        topic: usize,
        before: Option<f64>,
        tags: Option<u8>,
        seen: f64,
    },
    /// A router between two topics; `start` is a part of the head, or nothing given.
    PutRouter {
        source: usize,
        dest: usize,
        start: Option<RouterStart>,
        create_dest: bool,
        allow_cycle: bool,
        preserve_tag: bool,
    },
    /// What the leader writes for the routers that have something to do.
    Route {
        routes: Vec<Route>,
    },
    DeleteRouter {
        source: usize,
        dest: usize,
    },
    PauseRouter {
        source: usize,
        dest: usize,
        pause: bool,
    },
    /// The last command again, as after a lost leader.
    Repeat,
    /// A checkpoint, from which a second member restarts.
    Restart,
    Wait {
        ms: u64,
    },
}

/// What one router is to copy.
#[derive(Debug, Clone)]
pub struct Route {
    pub source: usize,
    pub dest: usize,
    /// Up to so far between its position and the head.
    pub part: f64,
    /// Only records with these tags.
    pub tags: Option<u8>,
    /// It was made for an earlier position.
    pub is_late: bool,
}

fn route() -> impl Strategy<Value = Step> {
    let tags = proptest::option::weighted(0.3, 0u8..8);
    let route = (pair(), 0.0..1.6f64, tags, proptest::bool::weighted(0.1));
    let route =
        route.prop_map(|((source, dest), part, tags, is_late)| Route { source, dest, part, tags, is_late });
    proptest::collection::vec(route, 1..5).prop_map(|routes| Step::Route { routes })
}

#[derive(Debug, Clone, Copy)]
pub enum RouterStart {
    Earliest,
    Seq(f64),
    /// So long ago.
    Ts(u64),
}

/// Two topics that differ.
fn pair() -> impl Strategy<Value = (usize, usize)> {
    (0usize..4, 1usize..4).prop_map(|(source, further)| (source, (source + further) % 4))
}

fn put_router() -> impl Strategy<Value = Step> {
    let start = prop_oneof![
        1 => Just(RouterStart::Earliest),
        1 => (0.0..1.2f64).prop_map(RouterStart::Seq),
        2 => (0u64..400).prop_map(RouterStart::Ts),
    ];
    let start = proptest::option::weighted(0.7, start);
    let flags = [0.8, 0.5, 0.7].map(proptest::bool::weighted);
    (pair(), start, flags).prop_map(|((source, dest), start, [create_dest, allow_cycle, preserve_tag])| {
        Step::PutRouter { source, dest, start, create_dest, allow_cycle, preserve_tag }
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let few = |most: u64| prop_oneof![1 => Just(0), 1 => 1..=most];
    let ttl_ms = prop_oneof![1 => Just(0), 1 => 1u64..500];
    (ttl_ms, few(60), few(3000), any::<bool>(), prop_oneof![2 => Just(1u64), 1 => Just(40)]).prop_map(
        |(ttl_ms, cap_records, cap_bytes, rejects, scale)| Limits {
            ttl_ms,
            cap_records: cap_records * scale,
            cap_bytes: cap_bytes * scale,
            rejects,
        },
    )
}

pub fn step() -> impl Strategy<Value = Step> {
    let expect = proptest::option::weighted(0.2, any::<bool>());
    let key = proptest::option::weighted(0.4, 0u8..12);
    prop_oneof![
        12 => (0usize..4, prop_oneof![6 => 1usize..40, 1 => 300usize..1500], any::<bool>(), expect, key)
            .prop_map(|(topic, count, create, expect_right, key)| {
                Step::Append { topic, count, create, expect_right, key }
            }),
        2 => (0usize..4, proptest::bool::weighted(0.1), 0u64..300, limits()).prop_map(
            |(topic, queue, window_ms, limits)| Step::Put { topic, queue, window_ms, limits }
        ),
        2 => Just(Step::Expire),
        1 => Just(Step::Save),
        1 => (0usize..4, any::<bool>()).prop_map(|(topic, if_empty)| Step::Delete { topic, if_empty }),
        3 => (
            0usize..4, proptest::option::weighted(0.5, 0.0..1.1f64), proptest::option::weighted(0.7, 0u8..8), 0.0..1.2f64
        ).prop_map(|(topic, before, tags, seen)| Step::DeleteRecords { topic, before, tags, seen }),
        4 => put_router(),
        10 => route(),
        1 => pair().prop_map(|(source, dest)| Step::DeleteRouter { source, dest }),
        1 => (pair(), any::<bool>()).prop_map(|((source, dest), pause)| Step::PauseRouter { source, dest, pause }),
        2 => Just(Step::Repeat),
        1 => Just(Step::Restart),
        2 => (0u64..200).prop_map(|ms| Step::Wait { ms }),
    ]
}
