//! What clusters ask and tell each other, for [`crate::fuzzing`].

use std::sync::Arc;

use bytes::Bytes;

use super::answer::{Answered, PullAnswer, Skips};
use super::wire::{AnswerWriter, PullRequest};
use crate::engine::{
    Ask, Beginning, ChangeCursor, Listed, Lost, LostAtSource, News, PageRecord, PullCursor, PullQuery,
    PullReply, Pulled, PulledItem, PulledPage, PulledTopic, RecordOrigin, Sources, TopicNews,
};
use crate::filter::Filter;
use crate::limits::MAX_PULL_WANTED;
use crate::record::{EntryBuilder, EntryRecords, Record};
use crate::state::{Cluster, CopyItem, Instance, Overlay, Start, TopicType};
use crate::storage::EntryId;

/// The body of a pull.
pub fn read_request(bytes: &[u8]) {
    if let Ok(request) = PullRequest::decode(bytes) {
        assert!(request.query.wanted.len() <= MAX_PULL_WANTED);
        let again = PullRequest::decode(&request.encode()).expect("what is sent is read");
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
    }
}

/// The body of an answer; nothing is passed over, and then everything that cannot be believed.
pub fn read_answer(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(answer) = PullAnswer::decode(&bytes, &Skips::new()) else { return };
    check_answer(&answer);
    let all = |topic: &super::answer::AnsweredTopic| {
        let damaged = match &answer_damage(&topic.answer) {
            Some(seq) => [*seq].into(),
            None => Default::default(),
        };
        (topic.topic.to_string(), damaged)
    };
    let skips: Skips = answer.topics.iter().map(all).collect();
    check_answer(&PullAnswer::decode(&bytes, &skips).expect("it is no worse for what is passed over"));
}

fn answer_damage(answer: &Answered) -> Option<u64> {
    match answer {
        Answered::Damaged(damage) => damage.seq,
        _ => None,
    }
}

fn check_answer(answer: &PullAnswer) {
    for topic in &answer.topics {
        let Answered::Page(page) = &topic.answer else { continue };
        let records = page.items.iter().map(|item| match item {
            CopyItem::Records { count, .. } => *count as usize,
            CopyItem::Gap { .. } => 0,
        });
        assert_eq!(records.sum::<usize>(), page.records.len());
        for record in &page.records {
            Record::decode(record).expect("a record that is taken is one");
        }
        assert!(page.start_seq <= page.to_seq);
    }
}

fn cluster(name: &str, id: u128) -> Cluster {
    Cluster { id, name: name.into() }
}

/// Pulls of all kinds.
pub fn requests() -> Vec<Vec<u8>> {
    let cursor = PullCursor { epoch: 2, seq: 9, entry: Some(EntryId { term: 1, index: 7 }) };
    let filter = Filter::parse(r#"["And",[["tag","Eq","x"],["data.a","Gt",1.5]]]"#).expect("a filter");
    let query = PullQuery {
        sources: Sources::Prefix("m:".into()),
        wanted: vec![("m:b".into(), Some(cursor)), ("m:a".into(), None)],
        ask: Ask::ChangedBehind(ChangeCursor { feed: u64::MAX - 5, number: 700 }),
        beginning: Some(Beginning { start: Start::Ts(7), before_epoch: 300 }),
        filter: Some(Arc::new(filter)),
        puller_id: 5,
        dest: Some("d".into()),
        wait_ms: 100,
        max_bytes: 1000,
    };
    let one = PullQuery {
        sources: Sources::One("m:a".into()),
        wanted: vec![("m:a".into(), None)],
        ask: Ask::List { after: "m:c".into() },
        beginning: None,
        filter: None,
        ..query.clone()
    };
    [query, one].map(|query| PullRequest { puller: cluster("west", 5), query }.encode().to_vec()).into()
}

/// Answers of all kinds.
pub fn answers() -> Vec<Vec<u8>> {
    let instance = |id, cluster: &str| {
        let (cluster, topic) = (cluster.into(), "t".into());
        Arc::new(Instance { cluster_id: id, cluster, topic, epoch: 3 })
    };
    let (east, north) = (instance(9, "east"), instance(8, "north"));
    let mut builder = EntryBuilder::new(1, 2, 0);
    builder.push(&Record { node: Some("n"), tag: Some("x"), data: "{\"a\":1}", ..Record::default() });
    builder.push(&Record { meta: Some("{}"), data: "2", ..Record::default() });
    let entry = EntryRecords::parse(builder.finish().freeze()).expect("an entry");
    let record = |position: u32, origin| PageRecord {
        seq: 10 + u64::from(position),
        ts_ms: 77,
        entry: entry.clone(),
        position,
        entry_id: EntryId { term: 1, index: 4 },
        overlay: Overlay::default(),
        origin,
    };
    let copied = Some(RecordOrigin { instance: north.clone(), seq: 5, ts_ms: 60 });
    let gap = LostAtSource { instance: north.clone(), gap_from: 1, gap_to: 3 };
    let page = PulledPage {
        start_seq: 1,
        to_seq: 11,
        to_entry: Some(EntryId { term: 1, index: 4 }),
        lost: Lost { seqs: vec![2..=4], own: vec![2..=2], others: Some(vec![(north, vec![1..=9])]) },
        items: vec![
            PulledItem::Gap(gap),
            PulledItem::Record(record(0, copied)),
            PulledItem::Record(record(1, None)),
        ],
    };
    let topic = |content| {
        let (topic, epoch, topic_type, head_seq) = ("t".into(), 3, TopicType::Queue, 12);
        PulledTopic { topic, epoch, topic_type, head_seq, content }
    };
    let cursor = ChangeCursor { feed: 7, number: 5 };
    let topics = vec![TopicNews { topic: "a".into(), epoch: 7, head_seq: 300 }];
    let listed = News::Listed(Listed { topics: topics.clone(), more_after: Some("a".into()), cursor });
    let all_news = [listed, News::Changed { topics, cursor }, News::Unknown, News::Nothing];
    let answer = |news| {
        let topics = vec![topic(Pulled::Page(page.clone())), topic(Pulled::Diverged), topic(Pulled::Gone)];
        let reply = PullReply { next_epoch: 300, news, examined: 5, topics };
        let mut writer = AnswerWriter::new(&reply);
        reply.topics.iter().for_each(|topic| writer.push(topic, &east).expect("it is whole"));
        writer.finish(&cluster("east", 9)).to_vec()
    };
    all_news.map(answer).into()
}
