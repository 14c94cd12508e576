//! Answers of remotes that are cut, damaged, or forged.
//!
//! Whoever is on the path, or the remote itself, may say anything. What could be true cannot be told from the truth, so
//! each lie here has something in it that cannot be: nothing of that may get in, nobody may end for it or grow with it,
//! and all must come once the remote is honest again.

use antiphon::codec::put_varint;
use antiphon::router::{Answered, PullAnswer, PullRequest, Skips};
use antiphon::state::{CopyItem, Instance, put_entry_id, put_items, put_ranges};
use antiphon::storage::sim_disk::Dice;
use bytes::{BufMut, Bytes, BytesMut};

/// Numbers that no cluster gets to.
const BEYOND: u64 = 1 << 61;
/// As many gaps and names as fit into an answer; remembered, they would take all memory.
const MANY: u64 = 400_000;
const MANY_NAMES: u64 = 60_000;
/// What a record says that nobody wrote.
const EVIL: &[u8] = b"\"evil\"";

/// The answer to `request` as it arrives. With `is_strict` no remote may bring records of clusters that nobody named.
pub fn lie(request: &Bytes, answer: &Bytes, is_strict: bool, dice: &mut Dice) -> Bytes {
    if answer.is_empty() {
        return answer.clone();
    }
    match dice.below(10) {
        0 => answer.slice(..dice.below(answer.len() as u64) as usize),
        1 => (0..dice.below(300)).map(|_| dice.roll() as u8).collect(),
        _ => forged(request, answer, is_strict, dice).unwrap_or_else(|| answer.clone()),
    }
}

/// One topic's page of an honest answer, before something in it is turned into a lie.
struct Page {
    instances: Vec<Instance>,
    epoch: u64,
    head_seq: u64,
    to_seq: u64,
    lost: Option<u64>,
    items: Vec<CopyItem>,
    records: Vec<Bytes>,
}

fn forged(request: &Bytes, answer: &Bytes, is_strict: bool, dice: &mut Dice) -> Option<Bytes> {
    let puller = PullRequest::decode(request).ok()?.puller;
    let honest = PullAnswer::decode(answer, &Skips::new()).ok()?;
    let is_page = |answer: &Answered| matches!(answer, Answered::Page(_));
    let pages: Vec<_> = honest.topics.iter().filter(|topic| is_page(&topic.answer)).collect();
    let topic = *pages.get(dice.below(pages.len() as u64) as usize)?;
    let Answered::Page(sent) = &topic.answer else { return None };
    let mut page = Page {
        instances: honest.instances.clone(),
        epoch: topic.epoch,
        head_seq: topic.head_seq,
        to_seq: sent.to_seq,
        lost: None,
        items: sent.items.clone(),
        records: sent.records.clone(),
    };
    let own = sent.instance;
    // Where remotes are held to what somebody has seen, that is what they are tried in most.
    let kinds = if is_strict { 16 } else { 8 };
    match dice.below(kinds) {
        0..3 => spoil_record(&mut page, dice)?,
        3 => page.lost = Some(BEYOND),
        4 => match dice.below(3) {
            0 => page.to_seq = BEYOND,
            1 => page.head_seq = BEYOND,
            _ => page.epoch += 1,
        },
        5 => {
            let gap = |number: u64| {
                let seq = sent.to_seq + 1 + 2 * number;
                CopyItem::Gap { instance: own, from_seq: seq, to_seq: seq }
            };
            page.items.extend((0..MANY).map(gap));
            page.to_seq += 2 * MANY;
            page.head_seq = page.to_seq;
        }
        6 => {
            let name = |number| Instance { epoch: number, ..page.instances[own as usize].clone() };
            let names: Vec<_> = (0..MANY_NAMES).map(|number| name(1_000_000 + number)).collect();
            page.instances.extend(names);
        }
        7 => {
            // A life of a topic of ours that there never was.
            let mut instance = page.instances[own as usize].clone();
            (instance.cluster_id, instance.cluster) = (puller.id, puller.name.as_str().into());
            instance.epoch = 1 << 50;
            add_evil(&mut page, instance);
        }
        _ => {
            let mut instance = page.instances[own as usize].clone();
            (instance.cluster_id, instance.cluster) = (u128::from(dice.roll()), "evil".into());
            add_evil(&mut page, instance);
        }
    }
    let mut out = BytesMut::new();
    out.put_u8(answer[0]);
    honest.cluster.encode(&mut out);
    put_varint(&mut out, page.instances.len() as u64);
    page.instances.iter().for_each(|instance| instance.put(&mut out));
    put_varint(&mut out, honest.next_epoch);
    // No news.
    out.put_u8(0);
    put_varint(&mut out, honest.examined as u64);
    put_varint(&mut out, 1);
    put_blob(&mut out, topic.topic.as_bytes());
    let mut rest = BytesMut::new();
    for value in [page.epoch, topic.topic_type as u64, page.head_seq] {
        put_varint(&mut rest, value);
    }
    rest.put_u8(1);
    for value in [u64::from(own), sent.start_seq, page.to_seq] {
        put_varint(&mut rest, value);
    }
    put_entry_id(&mut rest, sent.to_entry);
    match page.lost {
        Some(last) => {
            put_ranges(&mut rest, &[sent.start_seq + 1..=last]);
            put_ranges(&mut rest, &[sent.start_seq + 1..=last]);
            rest.put_u8(0);
        }
        None => put_ranges(&mut rest, &[]),
    }
    put_items(&mut rest, &page.items);
    put_varint(&mut rest, page.records.len() as u64);
    page.records.iter().for_each(|record| put_blob(&mut rest, record));
    out.put_u32_le(rest.len() as u32);
    out.unsplit(rest);
    Some(out.freeze())
}

fn put_blob(out: &mut BytesMut, bytes: &[u8]) {
    antiphon::codec::put_blob(out, bytes);
}

/// Puts something that is no record in the place of one.
fn spoil_record(page: &mut Page, dice: &mut Dice) -> Option<()> {
    let count = page.records.len() as u64;
    let record = page.records.get_mut(dice.below(count) as usize)?;
    // Headers as they were, and other data.
    let with_data = |data: &[u8]| {
        let data_bytes = antiphon::record::Record::decode(record).map_or(0, |record| record.data.len());
        Bytes::from([&record[..record.len() - data_bytes], data].concat())
    };
    *record = match dice.below(9) {
        0 => Bytes::from_static(&[0]),
        1 => Bytes::new(),
        2 => Bytes::from_static(&[0xff; 12]),
        3 => with_data(b"1}],\"records\":[{\"$seq\":99"),
        4 => with_data(b"1\n\nevent: topic-deleted\ndata: {}"),
        5 => with_data(b"1 2"),
        6 => with_data(b""),
        7 => with_data(b"\"\xff\""),
        _ => with_data(&[b'['; 2000]),
    };
    Some(())
}

/// Adds a record that nobody wrote, and says that it was first written in `instance`.
fn add_evil(page: &mut Page, instance: Instance) {
    page.instances.push(instance);
    page.to_seq += 1;
    page.head_seq = page.head_seq.max(page.to_seq);
    page.items.push(CopyItem::Records {
        instance: page.instances.len() as u32 - 1,
        origin_seq: 1,
        origin_ts_ms: 1,
        source_seq: page.to_seq,
        count: 1,
    });
    // Neither headers nor `meta`.
    page.records.push([&[0, 0][..], EVIL].concat().into());
}
