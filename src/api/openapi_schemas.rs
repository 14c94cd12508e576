//! The schemas of the OpenAPI document, with their bounds from where they are checked.

use serde_json::{Map, Value, json};

use crate::limits::{MAX_IDEMPOTENCY_KEY_CHARS, MAX_META_KEYS, MAX_RECORDS_PER_WRITE, MAX_TOPICS_PER_APPEND};
use crate::raft::Holder;

/// A reference to the schema `name`.
pub fn schema_ref(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn nullable(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"].take(), "null"]);
    schema
}

/// An unsigned 64-bit integer.
fn unsigned() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX })
}

/// One that is clamped: no number is too large.
fn clamped() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

/// A label of at most so many bytes; as characters, that is at most as many.
fn label(max_bytes: usize) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": max_bytes })
}

fn optional(schemas: &[(&str, Value)]) -> Map<String, Value> {
    schemas.iter().map(|(name, schema)| ((*name).to_owned(), nullable(schema.clone()))).collect()
}

/// An object that has all of these, and perhaps more.
fn object(fields: &[(&str, Value)]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// An object of one field.
fn one_field(name: &str, schema: Value) -> Value {
    json!({ "type": "object", "required": [name], "properties": { name: schema }, "additionalProperties": false })
}

/// An answer: these fields, and the `performance` block.
fn answer(fields: &[(&str, Value)]) -> Value {
    let mut all = fields.to_vec();
    all.push(("performance", schema_ref("Performance")));
    object(&all)
}

/// All schemas by name.
pub fn schemas() -> Value {
    let mut all = requests();
    all.extend(answers());
    Value::Object(all)
}

fn requests() -> Map<String, Value> {
    let boolean = || json!({ "type": "boolean" });
    let choice = |names: &[&str]| json!({ "type": "string", "enum": names });
    let mut config = optional(&[
        ("ttl_ms", unsigned()),
        ("cap_records", unsigned()),
        ("cap_bytes", unsigned()),
        ("durable", boolean()),
        ("priority", json!({ "type": "integer" })),
        ("auto_priority", boolean()),
        ("auto_create", boolean()),
        ("idempotency_window_ms", unsigned()),
        ("dedupe_node", boolean()),
        ("lease_ms", clamped()),
        ("claim_jitter_ms", clamped()),
        ("max_deliveries", unsigned()),
        ("dead_letter", json!({ "type": "string" })),
        ("leases_durable", boolean()),
        ("delete_marker_ttl_ms", unsigned()),
    ]);
    for (name, names) in [
        ("type", &["log", "queue"][..]),
        ("discard", &["old", "reject"]),
        ("durability", &["ephemeral", "memory", "disk", "fsync"]),
        ("compaction", &["none", "key"]),
    ] {
        config.insert(name.to_owned(), choice(names));
    }
    let record = json!({
        "type": "object", "required": ["data"],
        "properties": {
            "data": true,
            "tag": label(crate::limits::MAX_TAG_BYTES),
            "node": label(crate::limits::MAX_NODE_BYTES),
            "key": label(crate::limits::MAX_KEY_BYTES),
            "channel": label(crate::limits::MAX_KEY_BYTES),
            "meta": { "type": "object", "maxProperties": MAX_META_KEYS },
        },
    });
    let key = json!({ "type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY_CHARS });
    let write = json!({
        "type": "object", "required": ["records"],
        "properties": {
            "records": {
                "type": "array", "minItems": 1, "maxItems": MAX_RECORDS_PER_WRITE, "items": schema_ref("Record")
            },
            "node": label(crate::limits::MAX_NODE_BYTES),
            "idempotency_key": key,
            "create": boolean(),
            "config": schema_ref("Config"),
            "disable_backpressure": boolean(),
            "expect_head_seq": unsigned(),
        },
    });
    let many = json!({
        "type": "object", "required": ["topics"],
        "properties": {
            "topics": {
                "type": "object", "minProperties": 1, "maxProperties": MAX_TOPICS_PER_APPEND,
                "propertyNames": schema_ref("TopicName"), "additionalProperties": schema_ref("Write"),
            },
            "node": label(crate::limits::MAX_NODE_BYTES),
            "idempotency_key": key,
        },
    });
    let text_or_texts = json!({ "anyOf": [
        { "type": "string" },
        { "type": "array", "maxItems": crate::limits::MAX_NODE_LABELS, "items": { "type": "string" } }
    ] });
    let watch = json!({
        "type": "object",
        "required": ["topics"],
        "properties": {
            "topics": {
                "type": "object", "minProperties": 1, "maxProperties": crate::limits::MAX_TOPICS_PER_WATCH,
                "propertyNames": schema_ref("TopicName"),
                "additionalProperties": { "type": "object", "properties": {
                    "from_seq": unsigned(), "tail": { "type": "boolean" }, "epoch": unsigned(),
                    "filter": schema_ref("Filter")
                } },
            },
            "node": text_or_texts,
            "limit": unsigned(),
            "max_batch_bytes": unsigned(),
            "heartbeat_ms": unsigned(),
            "include_meta": { "type": "boolean" },
            "include_tags": { "type": "boolean" },
            "include_data": { "type": "boolean" },
            "include_origin": { "type": "boolean" },
            "filter": schema_ref("Filter"),
            "consistency": schema_ref("Consistency"),
        },
    });
    let filter = json!({
        "description": "A tuple [field, op, value], [\"And\", list], [\"Or\", list] or [\"Not\", filter]; a string is short \
                        for a tag, and if it ends in * for the start of one.",
        "type": ["array", "string"]
    });
    let tag_match = json!({
        "oneOf": [
            { "type": "string" },
            {
                "type": "array", "minItems": 3, "maxItems": 3, "items": false,
                "prefixItems": [{ "const": "tag" }, { "const": "Eq" }, { "type": "string" }]
            },
            {
                "type": "array", "minItems": 3, "maxItems": 3, "items": false,
                "prefixItems": [{ "const": "tag" }, { "const": "Glob" }, { "type": "string", "pattern": "\\*$" }]
            }
        ]
    });
    let delete_records = json!({
        "type": "object",
        "anyOf": [{ "required": ["before_seq"] }, { "required": ["match"] }],
        "properties": { "before_seq": unsigned(), "match": schema_ref("TagMatch") }
    });
    let diff = json!({
        "type": "object",
        "properties": {
            "from_seq": unsigned(),
            "from_ts": unsigned(),
            "limit": clamped(),
            "node": text_or_texts,
            "include_tags": boolean(),
            "include_meta": boolean(),
            "wait_ms": clamped(),
            "max_batch_bytes": clamped(),
            "epoch": unsigned(),
            "filter": schema_ref("Filter"),
            "consistency": schema_ref("Consistency"),
        },
    });
    let config = json!({ "type": "object", "properties": config, "additionalProperties": false });
    let router_config = json!({
        "type": "object",
        "required": ["source", "dest"],
        "additionalProperties": false,
        "properties": {
            "source": { "type": "string" },
            "dest": { "type": "string" },
            "preserve_node": nullable(boolean()),
            "preserve_tag": nullable(boolean()),
            "create_dest": nullable(boolean()),
            "filter": { "anyOf": [schema_ref("Filter"), { "type": "null" }] },
            "allow_cycle": nullable(boolean()),
            "guarantee": { "enum": ["at_least_once", "exactly_once", null] },
            "start": { "anyOf": [
                { "enum": ["latest", "earliest", null] },
                one_field("seq", unsigned()),
                one_field("ts", unsigned()),
            ] },
            "remote": { "anyOf": [
                {
                    "type": "object", "required": ["urls"], "additionalProperties": false,
                    "properties": {
                        "urls": {
                            "type": "array", "minItems": 1, "maxItems": crate::limits::MAX_REMOTE_URLS,
                            "items": { "type": "string", "maxLength": crate::limits::MAX_REMOTE_URL_BYTES }
                        },
                        "token": nullable(label(crate::limits::MAX_REMOTE_TOKEN_BYTES)),
                        "relays": nullable(json!({
                            "type": "array", "maxItems": crate::limits::MAX_RELAYS,
                            "items": { "type": "string", "pattern": "^([0-9A-Fa-f]{32}|\\*)$" }
                        })),
                    }
                },
                { "type": "null" }
            ] },
        },
    });
    let router_name = json!({ "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:>-]{0,254}$" });
    let name = json!({ "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,254}$" });
    let skip_record = json!({
        "type": "object", "required": ["topic", "seq"],
        "properties": {
            "topic": schema_ref("TopicName"),
            "seq": { "type": "integer", "minimum": 1, "exclusiveMaximum": crate::limits::SEQ_LIMIT }
        }
    });
    let named = [
        ("TopicName", name),
        ("Consistency", choice(&["strong", "eventual"])),
        ("Config", config),
        ("RouterName", router_name),
        ("RouterConfig", router_config),
        ("Record", record),
        ("Write", write),
        ("AppendMany", many),
        ("Diff", diff),
        ("Watch", watch),
        ("DeleteRecords", delete_records),
        ("SkipRecord", skip_record),
        ("Filter", filter),
        ("TagMatch", tag_match),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn answers() -> Map<String, Value> {
    let text = || json!({ "type": "string" });
    let boolean = || json!({ "type": "boolean" });
    let list_of = |items: Value| json!({ "type": "array", "items": items });
    let any_object = || json!({ "type": "object" });
    let seqs = [
        ("first_seq", unsigned()),
        ("last_seq", unsigned()),
        ("head_seq", unsigned()),
        ("count", unsigned()),
        ("created", boolean()),
        ("deduped", boolean()),
    ];
    let mut written = vec![("topic", text())];
    written.extend(seqs.clone());
    let entry = object(&[
        ("topic", text()),
        ("head_seq", unsigned()),
        ("earliest_seq", unsigned()),
        ("count", unsigned()),
        ("bytes", unsigned()),
        ("durable", boolean()),
        ("effective_priority", json!({ "type": "integer" })),
    ]);
    let state = answer(&[
        ("topic", text()),
        ("type", text()),
        ("epoch", unsigned()),
        ("head_seq", unsigned()),
        ("earliest_seq", unsigned()),
        ("next_seq", unsigned()),
        ("count", unsigned()),
        ("bytes", unsigned()),
        ("config", any_object()),
        ("effective_priority", json!({ "type": "integer" })),
        ("last_write_ts", nullable(unsigned())),
        ("last_read_ts", nullable(unsigned())),
    ]);
    let page = answer(&[
        ("topic", text()),
        ("epoch", unsigned()),
        ("records", list_of(schema_ref("StoredRecord"))),
        ("next_from_seq", unsigned()),
        ("head_seq", unsigned()),
        ("earliest_seq", unsigned()),
        ("caught_up", boolean()),
        ("tombstone", nullable(any_object())),
        ("lag", unsigned()),
    ]);
    let held_by = object(&[
        ("reason", json!({ "type": "string", "enum": Holder::REASONS })),
        ("member", nullable(text())),
        ("index", unsigned()),
        ("entries", unsigned()),
        ("for_ms", unsigned()),
    ]);
    let log = object(&[("purged", unsigned()), ("saved", unsigned()), ("held_by", nullable(held_by))]);
    let cluster = answer(&[
        ("cluster", text()),
        ("leader", nullable(text())),
        ("term", unsigned()),
        ("commit", unsigned()),
        ("members", list_of(any_object())),
        ("member", text()),
        ("applied", unsigned()),
        ("digest", text()),
        ("log", log),
    ]);
    let router_config = [
        ("source", text()),
        ("dest", text()),
        ("preserve_node", boolean()),
        ("preserve_tag", boolean()),
        ("create_dest", boolean()),
        ("filter", json!({ "type": ["array", "null"] })),
        ("allow_cycle", boolean()),
        ("guarantee", text()),
        ("start", json!({ "type": ["string", "object"] })),
        ("remote", nullable(any_object())),
    ];
    let router = [("router", text())];
    let router_figures = [("forwarded_total", unsigned()), ("state", text()), ("lag", unsigned())];
    let router_entry = [
        &router[..],
        &[("source", text()), ("dest", text()), ("guarantee", text()), ("remote", boolean())],
        &router_figures,
    ];
    let router_state = [
        &router[..],
        &router_config,
        &router_figures,
        &[("last_error", nullable(any_object())), ("last_forwarded_ts", nullable(unsigned()))],
    ];
    let error = object(&[("code", text()), ("message", text())]);
    let origin = object(&[
        ("cluster", text()),
        ("cluster_id", text()),
        ("topic", text()),
        ("epoch", unsigned()),
        ("own", boolean()),
        ("records", unsigned()),
        ("last_seq", unsigned()),
        ("digest", text()),
        ("lost", unsigned()),
        ("lost_ranges", list_of(object(&[("from", unsigned()), ("to", unsigned())]))),
    ]);
    let named = [
        ("Any", json!(true)),
        ("Performance", object(&[("server_total_ms", json!({ "type": "number" }))])),
        ("Error", object(&[("error", error)])),
        ("TopicList", answer(&[("topics", list_of(entry))])),
        ("TopicPut", answer(&[("topic", text()), ("created", boolean()), ("config", any_object())])),
        ("TopicState", state),
        (
            "TopicDeleted",
            answer(&[
                ("topic", text()),
                ("deleted", boolean()),
                ("routers_removed", list_of(text())),
                ("groups_removed", list_of(text())),
            ]),
        ),
        ("Origins", answer(&[("topic", text()), ("epoch", unsigned()), ("origins", list_of(origin))])),
        ("RouterList", answer(&[("routers", list_of(object(&router_entry.concat())))])),
        ("RouterPut", answer(&[&router[..], &[("created", boolean())], &router_config].concat())),
        ("RouterState", answer(&router_state.concat())),
        ("RouterDeleted", answer(&[("router", text()), ("deleted", boolean())])),
        ("RouterPaused", answer(&[("router", text()), ("state", text())])),
        (
            "RecordSkipped",
            answer(&[("router", text()), ("topic", text()), ("seq", unsigned()), ("skipped", unsigned())]),
        ),
        (
            "RecordsDeleted",
            answer(&[
                ("topic", text()),
                ("deleted", unsigned()),
                ("earliest_seq", unsigned()),
                ("head_seq", unsigned()),
                ("count", unsigned()),
                ("bytes", unsigned()),
            ]),
        ),
        ("Written", answer(&written)),
        (
            "AppendedMany",
            answer(&[("topics", json!({ "type": "object", "additionalProperties": object(&seqs) }))]),
        ),
        ("StoredRecord", object(&[("$seq", unsigned()), ("$ts", unsigned()), ("data", json!(true))])),
        ("Page", page),
        (
            "WatchMade",
            answer(&[
                ("wid", text()),
                ("stream_url", text()),
                ("session_ttl_ms", unsigned()),
                ("topics", any_object()),
            ]),
        ),
        ("Cluster", cluster),
        ("Health", answer(&[("status", text()), ("version", text()), ("uptime_ms", unsigned())])),
        (
            "Ready",
            answer(&[
                ("status", text()),
                ("topics", unsigned()),
                ("member", text()),
                ("leader", nullable(text())),
                ("checkpoint_age_ms", unsigned()),
            ]),
        ),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}
