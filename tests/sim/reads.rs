//! Reads: single pages, and whole topics from their beginning to their end.

use std::sync::Arc;

use antiphon::engine::{Consistency, Page, PageQuery};
use antiphon::error::{Code, Error};
use antiphon::filter::Filter;
use antiphon::limits::COLD_ENTRY_PATIENCE;
use antiphon::record::Record;
use antiphon::storage::sim_disk::Dice;

use crate::calls::{at, is_excused};
use crate::clients::{FLEETING, LOSING};
use crate::oracle::{Seen, tag};
use crate::seeded::Throw;
use crate::world::World;

/// A read of whatever is there above `from_seq`.
pub fn query(from_seq: u64, consistency: Consistency) -> PageQuery {
    PageQuery {
        from_seq,
        from_ts_ms: None,
        limit: 1000,
        max_bytes: 1 << 20,
        drop_nodes: Default::default(),
        filter: None,
        epoch: None,
        consistency,
        wait_ms: 0,
        patience: COLD_ENTRY_PATIENCE,
    }
}

/// A read that pages through a topic, in some size of steps.
pub fn walk_query(dice: &mut Dice) -> PageQuery {
    let consistency = if dice.chance(50) { Consistency::Strong } else { Consistency::Eventual };
    let tag = dice.chance(40).then(|| tag((0, dice.below(4) as u32)));
    PageQuery {
        limit: [7, 60, 1000][dice.below(3) as usize],
        max_bytes: 1 << (10 + dice.below(11)),
        filter: tag.and_then(|tag| filter_of(&tag)),
        ..query(0, consistency)
    }
}

/// The filter that shows records of one tag.
pub fn filter_of(tag: &str) -> Option<Arc<Filter>> {
    Filter::parse(&format!(r#"["tag","Eq","{tag}"]"#)).ok().map(Arc::new)
}

/// The tag that a filter of [`filter_of`] shows.
fn tag_of(filter: &Filter) -> Option<String> {
    let text = filter.to_string();
    text.split('"').find(|word| word.starts_with('t') && *word != "tag").map(str::to_owned)
}

/// Reads one page and shows it to the oracle.
pub async fn read_page(
    world: &World,
    member: usize,
    topic: &'static str,
    query: &PageQuery,
) -> Option<Result<Page, Error>> {
    let began = world.oracle.begin_read();
    let asked = query.clone();
    let read = at(world, member, move |engine| async move {
        engine.admit()?;
        engine.page(topic, asked).await
    });
    let result = read.await?;
    let is_strong = query.consistency == Consistency::Strong;
    match &result {
        Ok(page) => {
            show(world, member, topic, query, page);
            if is_strong {
                world.oracle.check_pruned(member, topic, began, page.records.iter().map(|record| record.seq));
                world.oracle.strong_read(member, topic, began, Some((page.epoch, page.head_seq)));
            }
        }
        Err(error) if error.code == Code::TopicNotFound => {
            if is_strong {
                world.oracle.strong_read(member, topic, began, None);
            }
        }
        Err(error) if is_excused(world, member, error) => {}
        Err(error) => {
            world.trace.complain(format_args!("a read of {topic} at m{} got {error}", member + 1));
        }
    }
    Some(result)
}

fn show(world: &World, member: usize, topic: &str, query: &PageQuery, page: &Page) {
    let mut records = Vec::with_capacity(page.records.len());
    for record in &page.records {
        let bytes = record.entry.record(record.position).unwrap_or_default();
        match Record::decode(bytes) {
            Ok(decoded) => records.push((record.seq, record.ts_ms, decoded.data.to_owned())),
            Err(error) => world.trace.complain(format_args!("seq {} of {topic}: {error:?}", record.seq)),
        }
    }
    let first_seq = match (query.from_ts_ms, records.first()) {
        (Some(_), Some((seq, ..))) => seq - 1,
        (Some(_), None) => page.next_from_seq,
        (None, _) => query.from_seq,
    };
    let from_seq = match &page.tombstone {
        None => first_seq,
        Some(tombstone) => {
            let range = (tombstone.gap_from, tombstone.gap_to);
            let is_expected = match tombstone.reason {
                "recreated" => FLEETING.contains(&topic),
                reason => {
                    let reasons = [(LOSING[0], "cap"), (LOSING[1], "ttl")];
                    reasons.contains(&(topic, reason)) && range == (query.from_seq + 1, page.earliest_seq - 1)
                }
            };
            if !is_expected {
                world.trace.complain(format_args!("m{} {topic}: {tombstone:?}", member + 1));
            }
            tombstone.earliest_seq - 1
        }
    };
    if let Some(from_ts_ms) = query.from_ts_ms {
        world.oracle.page_of_time(member, topic, page.epoch, from_ts_ms, from_seq, &records);
    }
    let tag = query.filter.as_deref().and_then(tag_of);
    world.oracle.page(&Seen {
        member,
        topic,
        epoch: page.epoch,
        from_seq,
        next_from_seq: page.next_from_seq,
        head_seq: page.head_seq,
        tag: tag.as_deref(),
        records,
    });
}

/// Reads a whole topic: its epoch and head, or `None` if there is none. Each page gets on, so that so many are
/// enough as there are records.
pub async fn read_all(
    world: &World,
    member: usize,
    topic: &'static str,
    mut query: PageQuery,
) -> Result<Option<(u64, u64)>, String> {
    loop {
        match read_page(world, member, topic, &query).await {
            None => return Err("no answer".to_owned()),
            Some(Err(error)) if error.code == Code::TopicNotFound => return Ok(None),
            Some(Err(error)) => return Err(error.to_string()),
            Some(Ok(page)) if page.caught_up => return Ok(Some((page.epoch, page.head_seq))),
            Some(Ok(page)) => {
                let has_moved = page.tombstone.is_some_and(|tombstone| tombstone.reason == "recreated");
                if page.next_from_seq <= query.from_seq && !has_moved {
                    world.trace.complain(format_args!(
                        "m{}: a page of {topic} does not get on from seq {}",
                        member + 1,
                        query.from_seq
                    ));
                    return Err(format!("no progress at {}", query.from_seq));
                }
                query.from_seq = page.next_from_seq;
                query.epoch = Some(page.epoch);
            }
        }
    }
}
