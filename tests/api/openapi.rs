//! The document of the API, as it is served.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::shared::api;

/// The document does not change by accident: it is checked in, and a change shows in review.
#[tokio::test]
async fn the_document_is_the_one_that_is_checked_in() {
    let api = api().await;
    let served = api.with_key(None).get("/v0/openapi.json").await.expect(200);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/openapi.json");
    let pinned: Value = fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or(Value::Null);
    if served != pinned {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi.json");
        let text = serde_json::to_string_pretty(&served).expect("is JSON") + "\n";
        fs::write(&new, text).expect("write the new document");
        panic!("the document has changed; if it should have, copy {} to {}", new.display(), path.display());
    }
}
