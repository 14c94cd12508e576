//! A small HTTP/1.1 client: one request at a time over a connection that stays open.
//!
//! The load generator shares the machine's cores with what it measures, so what it burns is missing from
//! the figures. A general client builds a request and a response object per call, keeps a pool and hops
//! between tasks; here a call is one write of bytes that were prepared before, and reads into one buffer
//! until `Content-Length` is reached. It understands what antiphon sends and refuses everything else.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest head that is read.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Longest body that is read: above what a page of the largest byte budget can become with its fields.
const MAX_BODY_BYTES: usize = 32 << 20;
const READ_BYTES: usize = 4 << 10;
/// Above the server's own deadline: an answer that takes longer was forgotten.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The first line and the headers of an answer, as far as they matter here.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    head_bytes: usize,
    body_bytes: usize,
    /// The server closes the connection behind this answer.
    closes: bool,
}

/// An answer; it borrows the connection's buffer.
#[derive(Debug)]
pub struct Response<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

impl Response<'_> {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// An open connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    is_closed: bool,
}

impl Connection {
    /// Connects to `address`, a `host:port`.
    pub async fn open(address: &str) -> io::Result<Self> {
        let connect = TcpStream::connect(address);
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(READ_BYTES), is_closed: false })
    }

    /// Whether the server has said that no further request is served here.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Sends `request`, a whole request, and waits for its answer. After an error nothing is known of the
    /// request's effect, and the connection is of no further use.
    pub async fn call(&mut self, request: &[u8]) -> io::Result<Response<'_>> {
        tokio::time::timeout(CALL_DEADLINE, self.exchange(request))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))?
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<Response<'_>> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        let head = loop {
            self.read_some(READ_BYTES).await?;
            if let Some(head) = parse_head(&self.buffer)? {
                break head;
            }
        };
        let end = head.head_bytes + head.body_bytes;
        while self.buffer.len() < end {
            self.read_some(end - self.buffer.len()).await?;
        }
        if self.buffer.len() > end {
            return Err(malformed("bytes behind the answer"));
        }
        self.is_closed = head.closes;
        Ok(Response { status: head.status, body: &self.buffer[head.head_bytes..] })
    }

    /// Reads what is there, with room for at least `room_bytes`.
    async fn read_some(&mut self, room_bytes: usize) -> io::Result<()> {
        self.buffer.reserve(room_bytes);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            _ => Ok(()),
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an answer of antiphon: {what}"))
}

/// The head at the start of `bytes`; `None` while its end has not come.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(malformed("the head is too long"));
        }
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed("the head is not text"))?;
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| malformed("the first line"))?;
    let mut body_bytes = None;
    let mut closes = false;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.parse().map_err(|_| malformed("the content length"))?;
            body_bytes = Some(length);
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.eq_ignore_ascii_case("close");
        }
    }
    let body_bytes = body_bytes.ok_or_else(|| malformed("no content length"))?;
    if body_bytes > MAX_BODY_BYTES {
        return Err(malformed("the body is too long"));
    }
    Ok(Some(Head { status, head_bytes: end + 4, body_bytes, closes }))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const ANSWER: &[u8] =
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\ncontent-length:  7\r\n\r\n{\"a\":1}";

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let head_bytes = ANSWER.len() - 7;
        for length in 0..head_bytes {
            assert_eq!(parse_head(&ANSWER[..length]).unwrap(), None, "{length} bytes");
        }
        let head = Head { status: 201, head_bytes, body_bytes: 7, closes: false };
        assert_eq!(parse_head(&ANSWER[..head_bytes]).unwrap().as_ref(), Some(&head));
        assert_eq!(parse_head(ANSWER).unwrap(), Some(head));
        let closing =
            parse_head(b"HTTP/1.1 503 x\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert!(closing.is_some_and(|head| head.closes && head.status == 503));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bytes in [
            &b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n"[..],
            b"HTTP/1.1 2\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 33554433\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length\r\n\r\n",
            b"\xff\r\n\r\n",
            &[b'x'; MAX_HEAD_BYTES + 1],
        ] {
            assert!(parse_head(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// Serves one connection: per request of `request_bytes`, the pieces of one answer, each sent alone.
    async fn serve(answers: Vec<Vec<Vec<u8>>>, request_bytes: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            for pieces in answers {
                stream.read_exact(&mut vec![0; request_bytes]).await.unwrap();
                for piece in pieces {
                    stream.write_all(&piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn answers_come_whole_however_they_are_cut() {
        let cuts = [1, 20, ANSWER.len() - 7, ANSWER.len() - 3];
        let answers = cuts.map(|cut| vec![ANSWER[..cut].to_vec(), ANSWER[cut..].to_vec()]);
        let address = serve(answers.to_vec(), 2).await;
        let mut connection = Connection::open(&address).await.unwrap();
        for _ in cuts {
            let response = connection.call(b"hi").await.unwrap();
            assert_eq!((response.status, response.body), (201, &b"{\"a\":1}"[..]));
            assert!(response.is_success());
        }
        assert!(connection.call(b"hi").await.is_err(), "the server is gone");
    }

    #[tokio::test]
    async fn an_answer_longer_than_it_says_is_refused() {
        let longer = [ANSWER, b"x"].concat();
        let address = serve(vec![vec![longer]], 2).await;
        let mut connection = Connection::open(&address).await.unwrap();
        let error = connection.call(b"hi").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
