//! The server's side over a pipe, against the bytes of clients good and bad.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{DuplexStream, duplex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::CloseCode;

use super::*;

fn server(io: DuplexStream) -> WebSocket<DuplexStream> {
    WebSocket::new(io, Bounds { max_message_bytes: 100_000, ..Bounds::default() }, Box::new(|_| true))
}

/// Serves one client: a text comes back, whatever ends it is done as it should be.
async fn echo(mut socket: WebSocket<DuplexStream>) {
    let ending = loop {
        match socket.recv().await {
            Ok(Message::Text(text)) => {
                socket.release(text.capacity());
                socket.push(text.into());
                let _ = socket.flush().await;
            }
            Ok(Message::Binary) => socket.push(Bytes::from_static(b"binary")),
            Err(ending) => break ending,
        }
    };
    socket.end(ending).await;
}

type Client = WebSocketStream<DuplexStream>;

async fn client() -> Client {
    let (near, far) = duplex(1 << 10);
    tokio::spawn(echo(server(far)));
    WebSocketStream::from_raw_socket(near, Role::Client, None).await
}

async fn next(client: &mut Client) -> Option<tungstenite::Message> {
    let next = timeout(Duration::from_secs(600), client.next()).await.expect("in time");
    next.map(|message| message.expect("no error"))
}

/// The code with which the server closes after these bytes.
async fn closes_with(bytes: &[u8]) -> Option<u16> {
    let (near, far) = duplex(1 << 10);
    tokio::spawn(echo(server(far)));
    let (mut read, mut write) = tokio::io::split(near);
    let sent = bytes.to_vec();
    // The end of the pipe stays open, as that of a client does.
    let writing = tokio::spawn(async move {
        let _ = write.write_all(&sent).await;
        write
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.expect("the server closes");
    drop(writing);
    let close = received.iter().rposition(|byte| *byte == 0x88)?;
    let code = received[close..].get(2..4)?;
    Some(u16::from_be_bytes(code.try_into().unwrap()))
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_close_is_answered_with_the_same_code() {
    // C-WS-07
    for code in [CloseCode::Normal, CloseCode::Away, CloseCode::Library(4001)] {
        let mut client = client().await;
        let frame = tungstenite::protocol::CloseFrame { code, reason: "bye".into() };
        client.send(tungstenite::Message::Close(Some(frame))).await.unwrap();
        let answer = next(&mut client).await;
        assert!(matches!(answer, Some(tungstenite::Message::Close(Some(frame))) if frame.code == code));
        assert_eq!(next(&mut client).await, None);
    }
    let mut client = client().await;
    client.send(tungstenite::Message::Close(None)).await.unwrap();
    assert_eq!(next(&mut client).await, Some(tungstenite::Message::Close(None)));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_told_by_a_code() {
    // C-WS-07
    assert_eq!(closes_with(&masked(0x81, b"\xff\xfe")).await, Some(1007));
    assert_eq!(closes_with(&masked(0x83, b"")).await, Some(1002));
    assert_eq!(closes_with(b"\x81\x01x").await, Some(1002));
    // Two frames are too much together; what comes behind is read too, so that the client sees the code.
    let too_much = [masked(0x01, &[b'x'; 60_000]), masked(0x80, &[b'x'; 60_000])].concat();
    assert_eq!(closes_with(&too_much).await, Some(1009));
}

#[tokio::test(start_paused = true)]
async fn messages_and_pings_come_back() {
    // C-WS-06
    let mut client = client().await;
    for text in ["".to_owned(), "x".repeat(70_000), "\u{e9}".into()] {
        client.send(tungstenite::Message::text(text.clone())).await.unwrap();
        assert_eq!(next(&mut client).await, Some(tungstenite::Message::text(text)));
    }
    client.send(tungstenite::Message::Ping(Bytes::from_static(b"p"))).await.unwrap();
    assert_eq!(next(&mut client).await, Some(tungstenite::Message::Pong(Bytes::from_static(b"p"))));
}

#[tokio::test(start_paused = true)]
async fn a_message_must_be_whole_in_time() {
    // C-WS-07: also if pings come in between.
    let (near, far) = duplex(1 << 20);
    let served = tokio::spawn(echo(server(far)));
    let (mut read, mut write) = tokio::io::split(near);
    let started = Instant::now();
    write.write_all(&masked(0x01, &[b'x'; 1000])).await.unwrap();
    let trickle = tokio::spawn(async move {
        while write.write_all(&[masked(0x89, b""), masked(0x00, b"x")].concat()).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 30);
    let close = received.windows(2).rposition(|two| two == AGAINST_POLICY.to_be_bytes());
    assert!(close.is_some_and(|place| received[place - 2] == 0x88), "{received:?}");
    drop(read);
    trickle.abort();
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_message_has_its_time_and_the_next_one_too() {
    let mut client = client().await;
    for _ in 0..4 {
        let bytes = masked(0x81, b"hello");
        client.get_mut().write_all(&bytes[..9]).await.unwrap();
        sleep(Duration::from_secs(29)).await;
        // The end of one and the beginning of the next at once.
        client.get_mut().write_all(&[&bytes[9..], &bytes[..3]].concat()).await.unwrap();
        sleep(Duration::from_secs(29)).await;
        client.get_mut().write_all(&bytes[3..]).await.unwrap();
        for _ in 0..2 {
            while !matches!(next(&mut client).await, Some(tungstenite::Message::Text(_))) {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_pinged_and_a_silent_one_dropped() {
    // C-WS-07
    let mut talking = client().await;
    let started = Instant::now();
    for round in 1..=10 {
        // The library answers each.
        assert_eq!(next(&mut talking).await, Some(tungstenite::Message::Ping(Bytes::new())));
        assert_eq!(started.elapsed().as_secs(), 30 * round);
        talking.flush().await.unwrap();
    }
    let (near, far) = duplex(1 << 10);
    let served = tokio::spawn(echo(server(far)));
    let started = Instant::now();
    served.await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 90);
    drop(near);
}

#[tokio::test(start_paused = true)]
async fn pings_that_nobody_takes_the_answer_of_are_not_kept() {
    let (near, far) = duplex(64);
    let mut socket = server(far);
    let (read, mut write) = tokio::io::split(near);
    let pings = masked(0x89, &[b'x'; 100]).repeat(1000);
    tokio::spawn(async move { write.write_all(&pings).await });
    let _ = timeout(Duration::from_secs(1), socket.recv()).await;
    assert!(socket.out.len() <= 1 && socket.whole.len() <= READ_BYTES / 6, "{}", socket.out.len());
    drop(read);
}

#[tokio::test(start_paused = true)]
async fn what_messages_hold_is_counted_until_they_are_done_with() {
    // C-LIMIT-16
    let held = Arc::new(AtomicUsize::new(0));
    let (near, far) = duplex(1 << 20);
    let told = held.clone();
    let admit = move |bytes| {
        let is_admitted = bytes <= 80_000;
        if is_admitted {
            told.store(bytes, Ordering::Relaxed);
        }
        is_admitted
    };
    let mut socket = WebSocket::new(far, Bounds::default(), Box::new(admit));
    let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    client.send(tungstenite::Message::text("x".repeat(50_000))).await.unwrap();
    client.send(tungstenite::Message::text("small")).await.unwrap();
    let Ok(Message::Text(large)) = socket.recv().await else { panic!("a text") };
    let Ok(Message::Text(small)) = socket.recv().await else { panic!("a text") };
    assert!((50_000..70_000).contains(&held.load(Ordering::Relaxed)), "{held:?}");
    socket.release(small.capacity());
    socket.release(large.capacity());
    assert_eq!(held.load(Ordering::Relaxed), 0);
    client.send(tungstenite::Message::text("x".repeat(200_000))).await.unwrap();
    let ending = socket.recv().await.unwrap_err();
    assert!(matches!(ending, Ending::Refused(Violation { code: TRY_AGAIN_LATER, .. })), "{ending:?}");
}
