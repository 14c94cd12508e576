//! The body of one append (contract section 8.1), around records that stay as they were written.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

/// What all requests of one run have in common.
pub struct Request {
    tag: Option<String>,
    node: Option<String>,
    create: Option<bool>,
}

#[derive(Serialize)]
struct Body<'a> {
    idempotency_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create: Option<bool>,
    records: Vec<Record<'a>>,
}

#[derive(Serialize)]
struct Record<'a> {
    data: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

impl Request {
    pub fn new(tag: Option<String>, node: Option<String>, create: Option<bool>) -> Self {
        Request { tag, node, create }
    }

    /// A body with a new idempotency key.
    pub fn body(&self, records: Vec<Box<RawValue>>) -> Bytes {
        let body = Body {
            idempotency_key: format!("cli-{:032x}", rand::random::<u128>()),
            node: self.node.as_deref(),
            create: self.create,
            records: records.into_iter().map(|data| Record { data, tag: self.tag.as_deref() }).collect(),
        };
        // Texts and JSON that was checked: nothing that could not be written.
        serde_json::to_vec(&body).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_has_a_key_of_its_own_and_data_as_written() {
        let request = Request::new(Some("t\"".to_owned()), None, Some(false));
        let body = || {
            let data = RawValue::from_string("{\"b\":1.50,\"a\":1e400}".to_owned()).unwrap();
            String::from_utf8(request.body(vec![data]).to_vec()).unwrap()
        };
        let (first, second) = (body(), body());
        assert_ne!(first, second);
        let rest = r#"","create":false,"records":[{"data":{"b":1.50,"a":1e400},"tag":"t\""}]}"#;
        assert!(first.ends_with(rest), "{first}");
        assert!(first.starts_with("{\"idempotency_key\":\"cli-"), "{first}");
    }
}
