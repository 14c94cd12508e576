use proptest::prelude::*;

use super::*;
use crate::engine::{LostAtSource, PageRecord, PulledPage, RecordOrigin};
use crate::record::{EntryBuilder, EntryRecords, Record};
use crate::router::answer::{Answered, PullAnswer, Skips};
use crate::state::{Overlay, TopicType};
use crate::storage::EntryId;

fn cluster(name: &str, id: u128) -> Cluster {
    Cluster { id, name: name.into() }
}

fn instance(cluster: &str, id: u128) -> Arc<Instance> {
    Arc::new(Instance { cluster_id: id, cluster: cluster.into(), topic: "t".into(), epoch: 3 })
}

fn query() -> PullQuery {
    let cursor = PullCursor { epoch: 2, seq: 9, entry: Some(EntryId { term: 1, index: 7 }) };
    PullQuery {
        sources: Sources::Prefix("m:".into()),
        wanted: vec![("m:b".into(), Some(cursor)), ("m:a".into(), None)],
        ask: Ask::ChangedBehind(ChangeCursor { feed: u64::MAX - 5, number: 700 }),
        beginning: Some(Beginning { start: Start::Ts(7), before_epoch: 300 }),
        filter: Some(Arc::new(Filter::parse(r#"["tag","Eq","x"]"#).unwrap())),
        puller_id: 5,
        dest: Some("d".into()),
        wait_ms: 100,
        max_bytes: 1000,
    }
}

#[test]
fn a_pull_comes_back() {
    let query = query();
    for ask in [query.ask.clone(), Ask::Nothing, Ask::List { after: "m:c".into() }] {
        let request = PullRequest { puller: cluster("west", 5), query: PullQuery { ask, ..query.clone() } };
        let read = PullRequest::decode(&request.encode()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
    }
    let request = PullRequest { puller: cluster("west", 5), query };
    let bytes = request.encode();
    let read = PullRequest::decode(&bytes).unwrap();
    assert_eq!(format!("{read:?}"), format!("{request:?}"));
    let mut later = bytes.to_vec();
    later[0] += 1;
    assert!(PullRequest::decode(&later).unwrap_err().contains("version"));
}

#[test]
fn a_pull_asks_for_so_many_topics_and_for_none_that_is_not_among_its_sources() {
    // C-MIRROR-03: what the key may read was checked for the sources.
    let decode = |sources: Sources, wanted: Vec<&str>| {
        let wanted = wanted.into_iter().map(|name| (name.to_owned(), None)).collect();
        let query = PullQuery { sources, wanted, ..query() };
        PullRequest::decode(&PullRequest { puller: cluster("west", 5), query }.encode()).map(drop)
    };
    let (prefix, one) = (|| Sources::Prefix("m:".into()), || Sources::One("m:a".into()));
    assert!(decode(prefix(), vec!["m:a"; MAX_PULL_WANTED]).is_ok());
    assert!(decode(prefix(), vec!["m:a"; MAX_PULL_WANTED + 1]).unwrap_err().contains("more topics"));
    assert!(decode(one(), vec!["m:a"]).is_ok());
    for (sources, name) in [(prefix(), "x"), (prefix(), "m"), (one(), "m:ab"), (one(), "m:")] {
        assert!(decode(sources, vec![name]).unwrap_err().contains("not among its sources"), "{name}");
    }
}

#[test]
fn many_instances_are_named_once_each() {
    // Looking each up among all that came before would take minutes.
    let mut named = Named::default();
    let instances: Vec<_> =
        (0..50_000u64).map(|epoch| Arc::new(Instance { epoch, ..(*instance("north", 8)).clone() })).collect();
    for (number, instance) in instances.iter().enumerate().chain(instances.iter().enumerate()) {
        assert_eq!(named.number(instance), number as u32);
        assert_eq!(named.number(&Arc::new((**instance).clone())), number as u32);
    }
    assert_eq!(named.all.len(), instances.len());
}

#[test]
fn news_come_back_and_a_list_that_does_not_rise_is_none() {
    let topic = |name: &str| TopicNews { topic: name.into(), epoch: 7, head_seq: 300 };
    let cursor = ChangeCursor { feed: u64::MAX, number: 5 };
    let listed = |names: &[&str], more: Option<&str>| {
        let topics = names.iter().map(|name| topic(name)).collect();
        News::Listed(Listed { topics, more_after: more.map(Into::into), cursor })
    };
    let read = |news: &News| {
        let mut out = BytesMut::new();
        put_news(&mut out, news);
        read_news(&mut Reader::new(&out, "news"))
    };
    let changed = News::Changed { topics: vec![topic("b"), topic("a")], cursor };
    let lists = [listed(&[], None), listed(&["a", "b"], None), listed(&["a", "b"], Some("b"))];
    for news in lists.into_iter().chain([News::Nothing, News::Unknown, changed]) {
        assert_eq!(read(&news), Ok(news));
    }
    for news in [
        listed(&["b", "a"], None),
        listed(&["a", "a"], None),
        listed(&["a"], Some("0")),
        listed(&[], Some("a")),
    ] {
        assert!(read(&news).is_err(), "{news:?}");
    }
}

#[test]
fn an_answer_says_what_was_pulled() {
    let records = [
        Record { node: Some("n"), tag: Some("x"), data: "1", ..Record::default() },
        Record { data: "2", ..Record::default() },
    ];
    let mut builder = EntryBuilder::new(1, 2, 0);
    records.iter().for_each(|record| builder.push(record));
    let entry = EntryRecords::parse(builder.finish().freeze()).unwrap();
    let north = instance("north", 8);
    let record = |position: u32, overlay, origin| PageRecord {
        seq: 10 + u64::from(position),
        ts_ms: 77,
        entry: entry.clone(),
        position,
        entry_id: EntryId { term: 1, index: 4 },
        overlay,
        origin,
    };
    let copied = Some(RecordOrigin { instance: north.clone(), seq: 5, ts_ms: 60 });
    let hidden = Overlay { drops_node: true, drops_tag: true };
    let gap = LostAtSource { instance: north.clone(), gap_from: 1, gap_to: 3 };
    let page = PulledPage {
        start_seq: 1,
        to_seq: 11,
        to_entry: Some(EntryId { term: 1, index: 4 }),
        lost: Lost { seqs: vec![2..=4], own: vec![2..=2], others: Some(vec![(north.clone(), vec![1..=9])]) },
        items: vec![
            PulledItem::Gap(gap),
            PulledItem::Record(record(0, hidden, copied)),
            PulledItem::Record(record(1, Overlay::default(), None)),
        ],
    };
    let topic = |content| PulledTopic {
        topic: "t".into(),
        epoch: 3,
        topic_type: TopicType::Queue,
        head_seq: 12,
        content,
    };
    let topics = [topic(Pulled::Page(page)), topic(Pulled::Diverged), topic(Pulled::Gone)];
    let east = instance("east", 9);
    let reply = PullReply { next_epoch: 300, news: News::Unknown, examined: 5, topics: topics.to_vec() };
    let bytes = encoded(&cluster("east", 9), &reply, |_| east.clone());
    let answer = PullAnswer::decode(&bytes, &Skips::new()).unwrap();
    assert_eq!(answer.cluster, cluster("east", 9));
    assert_eq!((answer.next_epoch, &answer.news, answer.examined), (300, &News::Unknown, 5));
    assert_eq!(answer.instances, [(*east).clone(), (*north).clone()]);
    assert_eq!(answer.topics[1].answer, Answered::Diverged);
    assert_eq!(answer.topics[2].answer, Answered::Gone);
    let Answered::Page(page) = &answer.topics[0].answer else { panic!("no page") };
    assert_eq!((page.instance, page.start_seq, page.to_seq), (0, 1, 11));
    assert_eq!((&page.lost.seqs[..], &page.lost.own[..]), (&[2..=4][..], &[2..=2][..]));
    assert_eq!(page.lost.others, Some(vec![(1, vec![1..=9])]));
    let of = |instance, origin_seq, origin_ts_ms, source_seq| CopyItem::Records {
        instance,
        origin_seq,
        origin_ts_ms,
        source_seq,
        count: 1,
    };
    let gap = CopyItem::Gap { instance: 1, from_seq: 1, to_seq: 3 };
    assert_eq!(page.items, [gap, of(1, 5, 60, 10), of(0, 11, 77, 11)]);
    let shown = Record { node: None, tag: None, ..records[0] };
    assert_eq!(Record::decode(&page.records[0]), Ok(shown));
    assert_eq!(Record::decode(&page.records[1]), Ok(records[1]));
    for cut in 0..bytes.len() {
        assert!(PullAnswer::decode(&bytes.slice(..cut), &Skips::new()).is_err(), "cut at {cut}");
    }
}

#[test]
fn news_are_of_no_more_topics_than_are_told_at_once() {
    // C-MIRROR-18
    let cursor = ChangeCursor { feed: 7, number: 1 };
    let is_read = |news: &News| {
        let mut bytes = BytesMut::new();
        put_news(&mut bytes, news);
        read_news(&mut Reader::new(&bytes, "news")).is_ok()
    };
    let topics = |count: usize| -> Vec<TopicNews> {
        let news = |number| TopicNews { topic: format!("{number:08}").into(), epoch: 1, head_seq: 1 };
        (0..count).map(news).collect()
    };
    let listed = |count| News::Listed(Listed { topics: topics(count), more_after: None, cursor });
    assert!(is_read(&listed(MAX_LISTED_PER_PAGE)) && !is_read(&listed(MAX_LISTED_PER_PAGE + 1)));
    let changed = |count| News::Changed { topics: topics(count), cursor };
    assert!(is_read(&changed(MAX_TOLD_CHANGES)) && !is_read(&changed(MAX_TOLD_CHANGES + 1)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = PullRequest::decode(&bytes);
        let _ = PullAnswer::decode(&Bytes::from(bytes), &Skips::new());
    }
}
