//! From a request to a WebSocket: the handshake of RFC 6455.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use sha1::{Digest, Sha1};

use crate::api::cursor::encode_base64;
use crate::error::Error;

/// The version that this server speaks, and everybody else.
const VERSION: &str = "13";
/// Shows that the answer is one to this very question.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The answer to a request that asks for a WebSocket, and the connection that it will be. The error is an answer too.
pub fn upgrade(request: &mut Request) -> Result<(Response, OnUpgrade), Box<Response>> {
    let headers = request.headers();
    let is_asked_for = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_word(headers, &CONNECTION, "upgrade")
        && has_word(headers, &UPGRADE, "websocket");
    if !is_asked_for {
        return Err(refused("this path takes WebSocket upgrades only"));
    }
    if !has_word(headers, &SEC_WEBSOCKET_VERSION, VERSION) {
        let mut refusal = refused("the version of the WebSocket protocol is 13");
        refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
        return Err(refusal);
    }
    let accept =
        headers.get(SEC_WEBSOCKET_KEY).and_then(|key| HeaderValue::try_from(accept(key.as_bytes())).ok());
    let accept = accept.ok_or_else(|| refused("there is no Sec-WebSocket-Key"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok((response, hyper::upgrade::on(request)))
}

fn refused(why: &str) -> Box<Response> {
    Box::new(Error::invalid(why).into_response())
}

fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// The digest in the ordinary alphabet, with padding.
fn accept(key: &[u8]) -> String {
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let text = encode_base64(&digest).replace('-', "+").replace('_', "/");
    format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(change: impl FnOnce(&mut Request)) -> Result<StatusCode, (StatusCode, Option<HeaderValue>)> {
        let mut request = Request::new(Body::empty());
        for (name, value) in [
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        change(&mut request);
        match upgrade(&mut request) {
            Ok((response, _)) => {
                assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                Ok(response.status())
            }
            Err(response) => Err((response.status(), response.headers().get(SEC_WEBSOCKET_VERSION).cloned())),
        }
    }

    #[test]
    fn who_asks_for_a_socket_gets_one() {
        assert_eq!(asked(|_| {}), Ok(StatusCode::SWITCHING_PROTOCOLS));
        let refused = Err((StatusCode::BAD_REQUEST, None));
        assert_eq!(asked(|request| *request.version_mut() = Version::HTTP_10), refused);
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY] {
            assert_eq!(asked(|request| drop(request.headers_mut().remove(&name))), refused, "{name}");
        }
        let other = asked(|request| {
            request.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        });
        assert_eq!(other, Err((StatusCode::BAD_REQUEST, Some(HeaderValue::from_static(VERSION)))));
    }
}
