//! `POST /v0/topics/{topic}/diff`: read a page (contract section 9).

use axum::extract::State;
use axum::http::StatusCode;

use super::diff_body::{Shown, parse_diff};
use crate::api::Api;
use crate::api::call::{Call, Read, TopicCall};
use crate::api::json::{JsonWriter, Raw, ToJson};
use crate::api::problem::internal;
use crate::api::reply::{Answer, Reply};
use crate::codec::Malformed;
use crate::engine::{LostAtSource, Page, PageQuery, PageRecord, RecordOrigin, Tombstone};
use crate::error::Error;
use crate::record::Record;

/// Room for the fields around one record's own bytes, and for those around the records.
const RECORD_ROOM_BYTES: usize = 80;
const PAGE_ROOM_BYTES: usize = 512;

pub async fn diff(State(api): State<Api>, TopicCall { mut call, topic }: TopicCall<Read>) -> Answer {
    let (query, shown) = parse_diff(call.json_or_empty_object()?)?;
    call.forget_body();
    api.engine.admit()?;
    let mut page = page(&api, &call, &topic, query).await?;
    count(&mut call, &mut page)?;
    if let Some(shared) = api.engine.catalog().get(&topic) {
        api.engine.touch(&shared);
    }
    let mut reply = Reply::new(call.arrived, PAGE_ROOM_BYTES + records_bytes(&page));
    put_page(&mut reply.json, &topic, &page, shown)?;
    let records_scanned = page.records_scanned;
    let response = reply.finish_with(StatusCode::OK, |json| json.field("records_scanned", records_scanned));
    Ok(call.answer(response))
}

/// Counts the answer; of a page for which there is no room, half, and half of that (C-DIFF-06).
fn count(call: &mut Call<Read>, page: &mut Page) -> Result<(), Error> {
    loop {
        match call.count_answer(PAGE_ROOM_BYTES + records_bytes(page)) {
            Err(_) if page.records.len() > 1 => page.shorten(page.records.len() / 2),
            counted => return counted,
        }
    }
}

/// One page. A client that ended its sending side waits no longer than it has to (C-CONV-20).
async fn page(api: &Api, call: &Call<Read>, topic: &str, query: PageQuery) -> Result<Page, Error> {
    if query.wait_ms == 0 {
        return api.engine.page(topic, query).await;
    }
    let _held = api.hold_watch_bytes(&call.caller, query.memory_bytes())?;
    let at_once = PageQuery { wait_ms: 0, ..query.clone() };
    tokio::select! {
        biased;
        page = api.engine.page(topic, query) => page,
        () = call.peer_ended() => api.engine.page(topic, at_once).await,
    }
}

pub fn records_bytes(page: &Page) -> usize {
    page.stored_bytes + RECORD_ROOM_BYTES * page.records.len()
}

/// A record's content; `damage` tells if it has not the form that was written.
pub fn decoded<'a>(record: &'a PageRecord, damage: &mut Option<(u64, Malformed)>) -> Record<'a> {
    record.content().unwrap_or_else(|malformed| {
        *damage = Some((record.seq, malformed));
        Record { data: "null", ..Record::default() }
    })
}

fn put_page(json: &mut JsonWriter, topic: &str, page: &Page, shown: Shown) -> Result<(), Error> {
    json.field("topic", topic);
    json.field("epoch", page.epoch);
    let mut damage = None;
    let records = page.records.iter().map(|record| {
        let content = decoded(record, &mut damage);
        Shape { record, content, shown }
    });
    json.array_field("records", records);
    if let Some((seq, malformed)) = damage {
        return Err(internal(format_args!("record {seq} of topic {topic}: {malformed}")));
    }
    json.field("next_from_seq", page.next_from_seq);
    json.field("head_seq", page.head_seq);
    json.field("earliest_seq", page.earliest_seq);
    json.field("caught_up", page.caught_up);
    json.field("tombstone", page.tombstone.as_ref());
    json.field("lag", page.lag);
    Ok(())
}

/// One record as a reader sees it (contract section 1.3).
pub struct Shape<'a> {
    pub record: &'a PageRecord,
    pub content: Record<'a>,
    pub shown: Shown,
}

impl ToJson for Shape<'_> {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("$seq", self.record.seq);
            json.field("$ts", self.record.ts_ms);
            json.field_if_some("$node", self.content.node);
            json.field_if_some("$tag", self.content.tag.filter(|_| self.shown.tags));
            json.field_if_some("$key", self.content.key);
            json.field_if_some("$channel", self.content.channel);
            json.field_if_some("data", self.shown.data.then_some(Raw(self.content.data)));
            json.field_if_some("meta", self.content.meta.filter(|_| self.shown.meta).map(Raw));
            json.field_if_some("$origin", self.record.origin.as_ref().filter(|_| self.shown.origin));
        });
    }
}

impl ToJson for &RecordOrigin {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("cluster", &*self.instance.cluster);
            json.field("topic", &*self.instance.topic);
            json.field("seq", self.seq);
            json.field("ts", self.ts_ms);
        });
    }
}

impl ToJson for &LostAtSource {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| {
            json.field("cluster", &*self.instance.cluster);
            json.field("topic", &*self.instance.topic);
            json.field("gap_from", self.gap_from);
            json.field("gap_to", self.gap_to);
        });
    }
}

impl ToJson for Tombstone {
    fn write(&self, json: &mut JsonWriter) {
        json.object(|json| put_tombstone(json, self));
    }
}

/// The fields of a tombstone.
pub fn put_tombstone(json: &mut JsonWriter, tombstone: &Tombstone) {
    let Tombstone { gap_from, gap_to, reason, earliest_seq, head_seq, .. } = *tombstone;
    json.field("gap_from", gap_from);
    json.field("gap_to", gap_to);
    json.field("reason", reason);
    // The size of the range; it is empty if `gap_to` lies right before `gap_from`.
    json.field("missed_estimate", (gap_to + 1).saturating_sub(gap_from));
    json.field("earliest_seq", earliest_seq);
    json.field("head_seq", head_seq);
    json.field_if_some("origin", tombstone.origin.as_ref());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::{EntryBuilder, EntryRecords};
    use crate::state::Overlay;
    use crate::storage::EntryId;

    fn page_of(records: &[Record<'_>]) -> Page {
        let mut builder = EntryBuilder::new(1, records.len(), 0);
        records.iter().for_each(|record| builder.push(record));
        let entry = EntryRecords::parse(builder.finish().freeze()).unwrap();
        let records = (0..records.len() as u32).map(|position| PageRecord {
            seq: 9121 + u64::from(position),
            ts_ms: 1_790_000_001_200,
            entry: entry.clone(),
            position,
            entry_id: EntryId { term: 1, index: 1 },
            overlay: Overlay::default(),
            origin: None,
        });
        let records: Vec<_> = records.collect();
        Page {
            epoch: 41,
            stored_bytes: records.iter().map(|record| record.stored().len()).sum(),
            records,
            next_from_seq: 9122,
            head_seq: 9122,
            earliest_seq: 8871,
            caught_up: true,
            lag: 0,
            tombstone: None,
            records_scanned: 2,
        }
    }

    fn written(page: &Page, tags: bool, meta: bool) -> Result<String, Error> {
        let mut json = JsonWriter::with_capacity(0);
        json.open_object();
        put_page(&mut json, "meter:raw", page, Shown { tags, meta, data: true, origin: false })?;
        json.close_object();
        Ok(String::from_utf8(json.finish().to_vec()).unwrap())
    }

    #[test]
    fn a_page_looks_as_in_the_contract() {
        // Section 9, C-REC-01, C-REC-02
        let page = page_of(&[
            Record { node: Some("edge-7"), tag: Some("m:1"), data: "{\"kwh\":1.250}", ..Record::default() },
            Record { data: "null", meta: Some("{\"fw\":\"2.1\"}"), ..Record::default() },
        ]);
        assert_eq!(
            written(&page, true, true).unwrap(),
            concat!(
                r#"{"topic":"meter:raw","epoch":41,"records":["#,
                r#"{"$seq":9121,"$ts":1790000001200,"$node":"edge-7","$tag":"m:1","data":{"kwh":1.250}},"#,
                r#"{"$seq":9122,"$ts":1790000001200,"data":null,"meta":{"fw":"2.1"}}],"#,
                r#""next_from_seq":9122,"head_seq":9122,"earliest_seq":8871,"caught_up":true,"#,
                r#""tombstone":null,"lag":0}"#
            )
        );
    }

    #[test]
    fn a_shorter_page_leaves_the_rest_to_the_next() {
        // C-DIFF-06
        let mut page =
            page_of(&[Record { data: "1", ..Record::default() }, Record { data: "2", ..Record::default() }]);
        page.shorten(2);
        assert_eq!((page.records.len(), page.next_from_seq, page.caught_up), (2, 9122, true));
        page.shorten(1);
        assert_eq!((page.records.len(), page.next_from_seq, page.lag, page.caught_up), (1, 9121, 1, false));
    }

    #[test]
    fn only_what_is_wanted_is_shown() {
        let page = page_of(&[Record {
            tag: Some("t"),
            key: Some("k\""),
            channel: Some("c"),
            meta: Some("{}"),
            data: "1",
            ..Record::default()
        }]);
        let record = |tags, meta| -> Value {
            let page: Value = serde_json::from_str(&written(&page, tags, meta).unwrap()).unwrap();
            page["records"][0].clone()
        };
        let base =
            json!({ "$seq": 9121, "$ts": 1_790_000_001_200u64, "$key": "k\"", "$channel": "c", "data": 1 });
        assert_eq!(record(false, false), base);
        let mut whole = base;
        whole["$tag"] = json!("t");
        whole["meta"] = json!({});
        assert_eq!(record(true, true), whole);
    }

    #[test]
    fn a_tombstone_tells_the_range() {
        // C-GAP-05, C-GAP-07, C-GAP-10
        let mut page = page_of(&[]);
        for (gap_from, gap_to, missed) in [(8001, 8870, 870), (1, 0, 0)] {
            page.tombstone = Some(Tombstone {
                gap_from,
                gap_to,
                reason: "cap",
                earliest_seq: 8871,
                head_seq: 9122,
                origin: None,
            });
            let written: Value = serde_json::from_str(&written(&page, false, true).unwrap()).unwrap();
            let expected = json!({
                "gap_from": gap_from, "gap_to": gap_to, "reason": "cap", "missed_estimate": missed,
                "earliest_seq": 8871, "head_seq": 9122
            });
            assert_eq!(written["tombstone"], expected);
        }
    }

    #[test]
    fn a_record_that_is_not_there_is_a_bug_and_not_a_null() {
        let mut page = page_of(&[Record { data: "1", ..Record::default() }]);
        page.records[0].position = 7;
        assert_eq!(written(&page, false, true).unwrap_err().code, crate::error::Code::Internal);
    }
}
