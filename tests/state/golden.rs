//! The stored forms of commands do not change by accident.
//!
//! `golden/commands.txt` holds one example of each command in hexadecimal. A change that makes this test
//! fail makes old logs unreadable: add a new form instead, and an example of it.

use antiphon::filter::{Filter, TagMatch};
use antiphon::record::{EntryBuilder, EntryRecords, HeaderEdit, Record};
use antiphon::state::{
    Append, AppendPart, Cluster, ClusterLimits, Command, Copy, CopyItem, CopyPart, Create, Decoded,
    DeleteRecords, Draft, Envelope, Guarantee, Instance, LateMatch, Listed, PutRouter, Relays, Remote,
    RoutePart, RouterConfig, SealToken, Start, Token, TopicConfig, TopicType,
};
use antiphon::storage::EntryId;
use bytes::Bytes;

const GOLDEN: &str = include_str!("golden/commands.txt");
/// Forms that are no longer written.
const EARLIER: &str = include_str!("golden/earlier.txt");

fn envelope() -> Envelope {
    Envelope { node_id: 0x0102_0304_0506_0708, session: 0x1112, number: 300, done_below: 298 }
}

fn routes() -> Vec<RoutePart> {
    vec![
        RoutePart { generation: 7, from_seq: 9120, to_seq: 9130, picked: None },
        RoutePart { generation: 300, from_seq: 0, to_seq: 70_001, picked: Some(vec![3..=3, 5..=300]) },
        RoutePart { generation: 301, from_seq: 5, to_seq: 6, picked: Some(Vec::new()) },
    ]
}

fn copy() -> Copy<'static> {
    let instance = |cluster_id, cluster: &str, topic: &str, epoch| {
        let (cluster, topic) = (cluster.into(), topic.into());
        Instance { cluster_id, cluster, topic, epoch }
    };
    let records = |instance, origin_seq, origin_ts_ms, source_seq, count| CopyItem::Records {
        instance,
        origin_seq,
        origin_ts_ms,
        source_seq,
        count,
    };
    let known = CopyPart {
        source: "meter:raw",
        source_epoch: 41,
        source_type: TopicType::Log,
        source_instance: 0,
        dest: "meter:raw",
        dest_epoch: Some(12),
        from_seq: Some(9120),
        start_seq: Some(9120),
        to_seq: 9131,
        to_entry: Some(EntryId { term: 3, index: 1 << 33 }),
        lost: vec![9121..=9122, 9124..=9125],
        items: vec![
            records(0, 9126, 1_790_000_001_200, 9126, 1),
            CopyItem::Gap { instance: 1, from_seq: 5, to_seq: 800 },
            records(1, 801, 1_790_000_000_000, 9128, 1),
            records(0, 9130, 1_790_000_001_300, 9130, 2),
        ],
    };
    let new = CopyPart {
        source: "jobs",
        source_epoch: 44,
        source_type: TopicType::Queue,
        source_instance: 2,
        dest: "jobs",
        dest_epoch: None,
        from_seq: None,
        start_seq: Some(0),
        to_seq: 0,
        to_entry: None,
        lost: Vec::new(),
        items: Vec::new(),
    };
    Copy {
        generation: 300,
        cluster_id: 7 << 64 | 9,
        next_epoch: 301,
        instances: vec![
            instance(7 << 64 | 9, "site-b", "meter:raw", 41),
            instance(u128::MAX, "site-c", "meter:raw", 2),
            instance(7 << 64 | 9, "site-b", "jobs", 44),
        ],
        parts: vec![known, new],
        gone: vec!["m:gone"],
        held: Vec::new(),
    }
}

fn relaying(relays: Relays) -> Bytes {
    let remote = Remote { urls: vec!["http://b1:4000".into()], token: None, relays: Some(relays) };
    let config = RouterConfig { remote: Some(remote), ..RouterConfig::local("meter:*", "*") };
    Draft::put_router(&PutRouter { name: "site-b", config, is_start_given: false }).seal(envelope())
}

fn held() -> Vec<(&'static str, u64)> {
    vec![("meter:raw", 9126)]
}

/// The same in the form that told nothing of where parts begin.
fn first_copy() -> Copy<'static> {
    let mut copy = Copy { next_epoch: 0, ..copy() };
    copy.parts.iter_mut().for_each(|part| part.start_seq = None);
    copy
}

fn examples() -> Vec<(&'static str, Bytes)> {
    let (mut stored, copied) =
        (Vec::new(), [("1.250", Some("edge-7")), ("2", None), ("null", None), ("3", None)]);
    for (data, node) in copied {
        let mut builder = EntryBuilder::new(0, 1, 64);
        builder.push(&Record { data, node, tag: Some("m:1001"), ..Record::default() });
        stored.push(
            EntryRecords::parse(builder.finish().freeze())
                .expect("an entry")
                .record(0)
                .expect("a record")
                .to_vec(),
        );
    }
    let edit = HeaderEdit { drops_tag: true, default_node: Some("site-b"), ..HeaderEdit::default() };
    let stored = stored.iter().map(|stored| (&stored[..], edit));
    let stored_again = stored.clone();
    let records = [
        Record { data: "{\"kwh\": 1.250}", tag: Some("m:1001"), node: Some("edge-7"), ..Record::default() },
        Record {
            data: "null",
            meta: Some("{ \"fw\": \"2.1\" }"),
            key: Some("k"),
            channel: Some("c"),
            ..Record::default()
        },
    ];
    let plain = Append {
        topic: "meter:raw",
        create: Create::With(TopicConfig::default()),
        expect_head_seq: None,
        idempotency_key: None,
    };
    let queue = TopicConfig { topic_type: TopicType::Queue, priority: Some(-7), ..TopicConfig::default() };
    let guarded = Append {
        topic: "jobs",
        create: Create::With(queue.clone()),
        expect_head_seq: Some(9120),
        idempotency_key: Some("e7-000918"),
    };
    let existing = Append { create: Create::Never, ..plain.clone() };
    let parts = [
        AppendPart { append: guarded.clone(), record_count: 1 },
        AppendPart { append: existing.clone(), record_count: 1 },
    ];
    let below = DeleteRecords { topic: "meter:raw", before_seq: Some(9122), listed: None };
    let ranges = vec![3..=3, 5..=300, 70_000..=70_001];
    let late = Some(LateMatch { seen_seq: 71_000, tags: TagMatch::Glob("m:10".to_owned()) });
    let listed = Some(Listed { epoch: 41, ranges: ranges.clone(), late });
    let listed = DeleteRecords { topic: "meter:raw", before_seq: None, listed };
    let part = Some(Listed { epoch: 41, ranges, late: None });
    let part = DeleteRecords { topic: "meter:raw", before_seq: Some(70_002), listed: part };
    vec![
        ("append", Draft::append(&plain, records.into_iter(), 0).seal(envelope())),
        ("append-guarded", Draft::append(&guarded, records.into_iter(), 0).seal(envelope())),
        ("append-existing", Draft::append(&existing, records.into_iter(), 0).seal(envelope())),
        ("put-topic", Draft::put_topic("jobs", &queue).seal(envelope())),
        // An append names the default configuration by one byte, so the default may not change either.
        ("put-topic-default", Draft::put_topic("jobs", &TopicConfig::default()).seal(envelope())),
        ("delete-topic", Draft::delete_topic("jobs", true).seal(envelope())),
        ("many", Draft::append_many(&parts, records.into_iter(), 0).seal(envelope())),
        (
            "set-all-limits",
            Draft::set_limits(&ClusterLimits {
                max_topics: 100_000,
                max_total_bytes: 1 << 40,
                max_routers: 10_000,
                max_idempotency_keys: 10_000_000,
            })
            .seal(envelope()),
        ),
        ("open-session", Draft::open_session().seal(envelope())),
        ("delete-records-below", Draft::delete_records(&below).seal(envelope())),
        ("delete-records-listed", Draft::delete_records(&listed).seal(envelope())),
        ("delete-records-part", Draft::delete_records(&part).seal(envelope())),
        (
            "put-router",
            Draft::put_router(&PutRouter {
                name: "meter:raw->meter:audit",
                config: RouterConfig {
                    filter: Some(Filter::parse(r#"["tag","Glob","m:10*"]"#).expect("a filter")),
                    ..RouterConfig::local("meter:raw", "meter:audit")
                },
                is_start_given: false,
            })
            .seal(envelope()),
        ),
        (
            "put-router-remote",
            Draft::put_router(&PutRouter {
                name: "site-b",
                config: RouterConfig {
                    preserve_node: false,
                    preserve_tag: false,
                    create_dest: false,
                    allow_cycle: true,
                    guarantee: Guarantee::ExactlyOnce,
                    start: Start::Seq(9120),
                    remote: Some(Remote {
                        urls: vec!["http://b1:4000".into(), "http://b2:4000".into()],
                        token: Some(Token::new("s3cret".into())),
                        relays: None,
                    }),
                    ..RouterConfig::local("meter:*", "*")
                },
                is_start_given: true,
            })
            .seal(envelope()),
        ),
        ("delete-router", Draft::delete_router("site-b").seal(envelope())),
        ("pause-router", Draft::pause_router("site-b", true).seal(envelope())),
        (
            "set-cluster",
            Draft::set_cluster(&Cluster { id: 7 << 64 | 9, name: "site-a".into() }).seal(envelope()),
        ),
        ("route", Draft::route(&routes()).seal(envelope())),
        ("copy", Draft::copy(&copy(), stored).expect("records").seal(envelope())),
        ("expire", Draft::expire().seal(envelope())),
        ("put-router-relays", relaying(Relays::Of(vec![7 << 64 | 9, 3]))),
        ("put-router-relays-all", relaying(Relays::All)),
        ("copy-held", {
            let held = Copy { held: held(), ..copy() };
            Draft::copy(&held, stored_again).expect("records").seal(envelope())
        }),
        ("put-router-sealed", {
            let token = Some(Token::sealed(vec![1, 2, 3]));
            let remote = Remote { urls: vec!["http://b1:4000".into()], token, relays: None };
            let config = RouterConfig { remote: Some(remote), ..RouterConfig::local("meter:*", "*") };
            Draft::put_router(&PutRouter { name: "site-b", config, is_start_given: false }).seal(envelope())
        }),
        ("seal-token", {
            let token = Token::sealed(vec![1, 2, 3]);
            Draft::seal_token(&SealToken { generation: 300, config_digest: 7 << 40, token }).seal(envelope())
        }),
        ("skip-record", Draft::skip_record("site-b", "meter:raw", 9126).seal(envelope())),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn commands_keep_their_stored_form() {
    let current: String = examples().iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    assert_eq!(current, GOLDEN, "the stored form of a command has changed");
}

#[test]
fn pinned_commands_can_still_be_read() {
    for line in GOLDEN.lines().chain(EARLIER.lines()) {
        let (name, digits) = line.split_once(' ').expect("name and bytes");
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        let decoded = Decoded::parse(bytes.into()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded.envelope, envelope(), "{name}");
        let command = decoded.command().unwrap_or_else(|error| panic!("{name}: {error}"));
        match &command {
            Command::Route(parts) => assert_eq!((name, parts), ("route", &routes())),
            Command::Copy(parts) => {
                let expected = match name {
                    "copy" => copy(),
                    "copy-held" => Copy { held: held(), ..copy() },
                    "copy-without-starts" => first_copy(),
                    _ => Copy { held: held(), ..first_copy() },
                };
                assert_eq!(parts, &expected, "{name}");
            }
            _ => {}
        }
        assert_eq!(matches!(command, Command::Append(_)), name.starts_with("append"));
    }
}

#[test]
fn a_copy_or_route_of_which_a_byte_is_another_or_the_end_is_missing_never_panics() {
    for (name, bytes) in examples().into_iter().filter(|(name, _)| ["route", "copy"].contains(name)) {
        let mut refused = 0;
        for at in 0..bytes.len() {
            for pattern in [0x01, 0x80, 0xff] {
                let mut changed = bytes.to_vec();
                changed[at] ^= pattern;
                let decoded = Decoded::parse(changed.into());
                refused += usize::from(decoded.and_then(|it| it.command().map(drop)).is_err());
            }
            let cut = Decoded::parse(bytes.slice(..at));
            assert!(cut.and_then(|it| it.command().map(drop)).is_err(), "{name} cut at {at}");
        }
        assert!(refused > 0);
    }
}
