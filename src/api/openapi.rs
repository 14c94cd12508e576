//! `GET /v0/openapi.json`: the document of what is built.
//!
//! Assembled from one table of endpoints and from the bounds in `limits.rs`. The usual derive macros read
//! types; here bodies are read by hand, so derived schemas would be a second set of types that nothing
//! checks. What checks this table is `tests/api`: the routes are compared with it, and generated requests
//! may get no status that it lacks.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::openapi_schemas::{schema_ref, schemas};

/// A parameter of the query.
#[derive(Clone, Copy)]
enum Param {
    Flag(&'static str, bool),
    Consistency,
    Text(&'static str),
    PageSize,
}

struct Endpoint {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    /// What the caller's key needs; `None` for anyone.
    scope: Option<&'static str>,
    query: &'static [Param],
    /// Name of the body's schema, and whether there must be one.
    body: Option<(&'static str, bool)>,
    /// Name of the schema of a success, `None` for text.
    answer: Option<&'static str>,
    successes: &'static [u16],
    /// Refusals beside those that every endpoint has.
    refusals: &'static [u16],
}

/// Refusals of any endpoint that needs a key.
const REFUSALS: [u16; 8] = [400, 401, 403, 413, 415, 429, 500, 503];
/// Refusals of the probes.
const PROBE_REFUSALS: [u16; 3] = [401, 500, 503];

const CONSISTENCY: Param = Param::Consistency;

#[rustfmt::skip]
const ENDPOINTS: &[Endpoint] = &[
    Endpoint { method: "get", path: "/v0/topics", summary: "List topics", scope: Some("read"),
        query: &[Param::Text("prefix"), Param::PageSize, Param::Text("cursor"), Param::Flag("touch", false), CONSISTENCY],
        body: None, answer: Some("TopicList"), successes: &[200], refusals: &[] },
    Endpoint { method: "put", path: "/v0/topics/{topic}", summary: "Create or reconfigure a topic", scope: Some("admin"),
        query: &[], body: Some(("Config", false)), answer: Some("TopicPut"), successes: &[200, 201], refusals: &[409] },
    Endpoint { method: "get", path: "/v0/topics/{topic}", summary: "State of a topic", scope: Some("read"),
        query: &[Param::Flag("touch", true), CONSISTENCY],
        body: None, answer: Some("TopicState"), successes: &[200], refusals: &[404] },
    Endpoint { method: "delete", path: "/v0/topics/{topic}", summary: "Delete a topic", scope: Some("delete"),
        query: &[Param::Flag("if_empty", false)],
        body: None, answer: Some("TopicDeleted"), successes: &[200], refusals: &[409] },
    Endpoint { method: "post", path: "/v0/topics/{topic}", summary: "Write records", scope: Some("write"),
        query: &[Param::Flag("return_seqs", true)], body: Some(("Write", true)), answer: Some("Written"),
        successes: &[200, 201], refusals: &[404, 409, 422] },
    Endpoint { method: "post", path: "/v0/append", summary: "Write records to several topics at once", scope: Some("write"),
        query: &[Param::Flag("return_seqs", true)], body: Some(("AppendMany", true)), answer: Some("AppendedMany"),
        successes: &[200, 201], refusals: &[404, 409, 422] },
    Endpoint { method: "post", path: "/v0/topics/{topic}/diff", summary: "Read records", scope: Some("read"),
        query: &[], body: Some(("Diff", false)), answer: Some("Page"), successes: &[200], refusals: &[404] },
    Endpoint { method: "get", path: "/v0/topics/{topic}/origins", summary: "Where the records of a topic were first written", scope: Some("read"),
        query: &[CONSISTENCY], body: None, answer: Some("Origins"), successes: &[200], refusals: &[404] },
    Endpoint { method: "get", path: "/v0/routers", summary: "List routers", scope: Some("read"),
        query: &[Param::Text("prefix"), Param::Text("source"), Param::Text("dest"), Param::PageSize, Param::Text("cursor"), CONSISTENCY],
        body: None, answer: Some("RouterList"), successes: &[200], refusals: &[] },
    Endpoint { method: "put", path: "/v0/routers/{router}", summary: "Create or reconfigure a router", scope: Some("admin"),
        query: &[], body: Some(("RouterConfig", true)), answer: Some("RouterPut"), successes: &[200, 201], refusals: &[404, 409] },
    Endpoint { method: "get", path: "/v0/routers/{router}", summary: "State of a router", scope: Some("read"),
        query: &[CONSISTENCY], body: None, answer: Some("RouterState"), successes: &[200], refusals: &[404] },
    Endpoint { method: "delete", path: "/v0/routers/{router}", summary: "Delete a router", scope: Some("delete"),
        query: &[], body: None, answer: Some("RouterDeleted"), successes: &[200], refusals: &[] },
    Endpoint { method: "post", path: "/v0/routers/{router}/pause", summary: "Pause a router", scope: Some("admin"),
        query: &[], body: None, answer: Some("RouterPaused"), successes: &[200], refusals: &[404] },
    Endpoint { method: "post", path: "/v0/routers/{router}/resume", summary: "Have a router go on", scope: Some("admin"),
        query: &[], body: None, answer: Some("RouterPaused"), successes: &[200], refusals: &[404] },
    Endpoint { method: "post", path: "/v0/routers/{router}/skip", summary: "Have a mirror pass over a record that cannot be stored",
        scope: Some("admin"), query: &[], body: Some(("SkipRecord", true)), answer: Some("RecordSkipped"), successes: &[200], refusals: &[404] },
    Endpoint { method: "post", path: "/v0/watch", summary: "Make a watch session", scope: Some("read"),
        query: &[Param::Flag("lenient", false)], body: Some(("Watch", true)), answer: Some("WatchMade"),
        successes: &[200], refusals: &[404] },
    Endpoint { method: "get", path: "/v0/watch/{wid}", summary: "The events of a watch session", scope: Some("read"),
        query: &[Param::Text("cursor"), Param::Text("token")], body: None, answer: Some("Events"), successes: &[200],
        refusals: &[404, 406] },
    Endpoint { method: "get", path: "/v0/ws", summary: "A WebSocket for reading and writing", scope: Some("a key"),
        query: &[], body: None, answer: Some("Socket"), successes: &[101], refusals: &[] },
    Endpoint { method: "post", path: "/v0/topics/{topic}/delete", summary: "Delete records", scope: Some("delete"),
        query: &[], body: Some(("DeleteRecords", true)), answer: Some("RecordsDeleted"), successes: &[200], refusals: &[404] },
    Endpoint { method: "get", path: "/v0/cluster", summary: "Members of the cluster", scope: Some("admin"),
        query: &[CONSISTENCY], body: None, answer: Some("Cluster"), successes: &[200], refusals: &[] },
    Endpoint { method: "get", path: "/v0/metrics", summary: "Figures of the answering member", scope: Some("read"),
        query: &[], body: None, answer: None, successes: &[200], refusals: &[] },
    probe("/v0/health", "Liveness", "Health"),
    probe("/healthz", "Liveness", "Health"),
    probe("/v0/ready", "Readiness", "Ready"),
    probe("/readyz", "Readiness", "Ready"),
    Endpoint { method: "get", path: "/v0/openapi.json", summary: "This document", scope: None,
        query: &[], body: None, answer: Some("Any"), successes: &[200], refusals: &[] },
];

const fn probe(path: &'static str, summary: &'static str, answer: &'static str) -> Endpoint {
    Endpoint {
        method: "get",
        path,
        summary,
        scope: None,
        query: &[],
        body: None,
        answer: Some(answer),
        successes: &[200],
        refusals: &[],
    }
}

impl Endpoint {
    fn parameters(&self) -> Vec<Value> {
        let mut parameters: Vec<Value> = self.query.iter().map(|param| param.document()).collect();
        if self.path.contains("{topic}") {
            parameters.push(json!({
                "name": "topic", "in": "path", "required": true, "schema": schema_ref("TopicName")
            }));
        }
        if self.path.contains("{router}") {
            parameters.push(json!({
                "name": "router", "in": "path", "required": true, "schema": schema_ref("RouterName")
            }));
        }
        if self.path.contains("{wid}") {
            parameters.push(json!({
                "name": "wid", "in": "path", "required": true, "schema": { "type": "string" }
            }));
            parameters.push(json!({
                "name": "Last-Event-ID", "in": "header", "required": false, "schema": { "type": "string" }
            }));
        }
        parameters
    }

    fn responses(&self) -> Map<String, Value> {
        let mut responses = Map::new();
        let content = match self.answer {
            // The schema is that of one event.
            Some("Events") => json!({ "text/event-stream": { "schema": { "type": "object", "properties": {
                "event": { "type": "string" }, "id": { "type": "string" }, "data": { "type": "string" }
            } } } }),
            Some("Socket") => json!({}),
            Some(answer) => json!({ "application/json": { "schema": schema_ref(answer) } }),
            None => json!({
                "text/plain": { "schema": { "type": "string" } },
                "application/json": { "schema": schema_ref("Any") }
            }),
        };
        for status in self.successes {
            let description = match status {
                201 if self.path.contains("{router}") => "Done, and the router was made",
                201 => "Done, and the topic was made",
                _ => "Done",
            };
            let response = json!({ "description": description, "content": content });
            responses.insert(status.to_string(), response);
        }
        let of_all = if self.scope.is_some() { &REFUSALS[..] } else { &PROBE_REFUSALS };
        for status in of_all.iter().chain(self.refusals) {
            responses.insert(status.to_string(), json!({ "$ref": "#/components/responses/Refused" }));
        }
        responses
    }

    fn document(&self) -> Value {
        let mut operation = json!({
            "operationId": self.operation_id(),
            "summary": self.summary,
            "parameters": self.parameters(),
            "responses": self.responses(),
        });
        match self.scope {
            Some("a key") => operation["description"] = "Needs a key; each command needs its right.".into(),
            Some(scope) => operation["description"] = format!("Needs the right `{scope}`.").into(),
            None => operation["security"] = json!([{}, { "key": [] }]),
        }
        if let Some((schema, required)) = self.body {
            operation["requestBody"] = json!({
                "required": required, "content": { "application/json": { "schema": schema_ref(schema) } }
            });
        }
        operation
    }

    fn operation_id(&self) -> String {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|it| !it.is_empty());
        words.fold(self.method.to_owned(), |id, word| format!("{id}_{word}"))
    }
}

impl Param {
    fn document(self) -> Value {
        let (name, schema) = match self {
            Param::Flag(name, default) => (name, json!({ "type": "boolean", "default": default })),
            Param::Consistency => ("consistency", schema_ref("Consistency")),
            Param::Text(name) => (name, json!({ "type": "string" })),
            // Clamped, so no bound makes a number invalid.
            Param::PageSize => ("page_size", json!({ "type": "integer", "minimum": 0, "default": 100 })),
        };
        json!({ "name": name, "in": "query", "required": false, "schema": schema })
    }
}

fn document() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = endpoint.document();
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "antiphon", "version": "v0", "description": "A replicated event bus." },
        "security": [{ "key": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "responses": { "Refused": {
                "description": "Refused; nothing was changed, but for 503 `commit_unknown`.",
                "content": { "application/json": { "schema": schema_ref("Error") } }
            } },
            "schemas": schemas(),
        },
    })
}

/// Answers with the document.
pub async fn get() -> Response {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    let mut response = Response::new(Body::from(TEXT.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let source = include_str!("mod.rs");
        let start = source.find("fn v0_routes(").expect("the table of routes");
        let end = start + source[start..].find("\n}\n").expect("its end");
        let mut routed = BTreeSet::new();
        for route in source[start..end].split(".route(").skip(1) {
            let path = route.split('"').nth(1).expect("a path");
            for method in ["get", "put", "post", "delete"] {
                let calls = [format!(".{method}("), format!(" {method}(")];
                if calls.iter().any(|call| route.contains(call.as_str())) {
                    routed.insert((path.to_owned(), method.to_owned()));
                }
            }
        }
        assert!(routed.len() > 10, "{routed:?}");
        let documented: BTreeSet<_> =
            ENDPOINTS.iter().map(|it| (it.path.to_owned(), it.method.to_owned())).collect();
        assert_eq!(routed, documented);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().expect("a pointer");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
