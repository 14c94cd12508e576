//! One event stream as the bench reads it: chunks of a body without end.

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::control::Control;
use super::options::Url;
use super::request::request;

/// So much room there is at least for the next read.
const READ_BYTES: usize = 4 << 10;
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Above the largest frame.
const MAX_CHUNK_BYTES: usize = 16 << 20;
const HEARTBEAT_MS: u64 = 60_000;

/// An open stream.
pub struct Stream {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Stream {
    /// Makes a session for `topic` and opens its stream at `url`, which `control` is connected to.
    pub async fn open(control: &mut Control, url: &Url, topic: &str) -> anyhow::Result<Self> {
        let body = serde_json::json!({ "topics": { topic: {} }, "heartbeat_ms": HEARTBEAT_MS }).to_string();
        let answer = control.call("POST", "/v0/watch", &body).await?;
        let answer: Value = serde_json::from_slice(&answer).context("read the answer to POST /v0/watch")?;
        let path = answer["stream_url"].as_str().context("POST /v0/watch names no stream_url")?;
        let stream = TcpStream::connect(&url.authority).await;
        let mut stream = stream.with_context(|| format!("connect to http://{}", url.authority))?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        stream.write_all(&request("GET", url, path, "")).await.context("open a stream")?;
        let mut this = Stream { stream, buffer: Vec::new() };
        this.read_head().await?;
        Ok(this)
    }

    async fn read_head(&mut self) -> anyhow::Result<()> {
        loop {
            self.read_some(READ_BYTES).await?;
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
                ensure!(head.starts_with("http/1.1 200"), "a stream was answered {head:?}");
                ensure!(head.contains("\r\ntransfer-encoding: chunked"), "a stream has no chunks: {head:?}");
                self.buffer.drain(..end + 4);
                return Ok(());
            }
            ensure!(self.buffer.len() < MAX_HEAD_BYTES, "the head of a stream is too long");
        }
    }

    /// Reads what is there, with room for at least `room_bytes`.
    async fn read_some(&mut self, room_bytes: usize) -> anyhow::Result<()> {
        self.buffer.reserve(room_bytes);
        let read = self.stream.read_buf(&mut self.buffer).await.context("read a stream")?;
        ensure!(read > 0, "a stream was closed");
        Ok(())
    }

    /// Waits for more, and hands every chunk that is whole to `take`.
    pub async fn read(&mut self, mut take: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let missing = match next_chunk(&self.buffer)? {
            Piece::Part { missing } => missing,
            Piece::Whole { .. } => 0,
        };
        if missing > 0 {
            self.read_some(missing.max(READ_BYTES)).await?;
        }
        let mut at = 0;
        while let Piece::Whole { start, length, end } = next_chunk(&self.buffer[at..])? {
            take(&self.buffer[at + start..at + start + length])?;
            at += end;
        }
        self.buffer.drain(..at);
        Ok(())
    }
}

/// What a buffer begins with.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    /// A chunk, its content and where it ends.
    Whole { start: usize, length: usize, end: usize },
    /// A part of one, which lacks at least so many bytes.
    Part { missing: usize },
}

fn next_chunk(buffer: &[u8]) -> anyhow::Result<Piece> {
    let mut length = 0usize;
    for (at, byte) in buffer.iter().enumerate() {
        match byte {
            b'0'..=b'9' => length = length << 4 | usize::from(byte - b'0'),
            b'a'..=b'f' => length = length << 4 | usize::from(byte - b'a' + 10),
            b'A'..=b'F' => length = length << 4 | usize::from(byte - b'A' + 10),
            b'\r' if at > 0 => {
                ensure!(length > 0, "the server has ended a stream");
                let (start, end) = (at + 2, at + 2 + length + 2);
                return Ok(match buffer.len() < end {
                    true => Piece::Part { missing: end - buffer.len() },
                    false => Piece::Whole { start, length, end },
                });
            }
            _ => bail!("a stream has no chunk where one should be"),
        }
        ensure!(length <= MAX_CHUNK_BYTES, "a chunk of a stream is too long");
    }
    Ok(Piece::Part { missing: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_found_however_they_are_cut() {
        let bytes = b"1A\r\nabcdefghijklmnopqrstuvwxyz\r\n2\r\nhi\r\n";
        let first = Piece::Whole { start: 4, length: 26, end: 32 };
        for length in 0..32 {
            let Piece::Part { missing } = next_chunk(&bytes[..length]).unwrap() else { panic!("{length}") };
            assert!((1..=32 - length).contains(&missing), "{missing} of {length}");
        }
        assert_eq!(next_chunk(bytes).unwrap(), first);
        assert_eq!(next_chunk(&bytes[32..]).unwrap(), Piece::Whole { start: 3, length: 2, end: 7 });
        for bad in [&b"0\r\n\r\n"[..], b"\r\n", b"x", b"1000001\r\n"] {
            assert!(next_chunk(bad).is_err(), "{bad:?}");
        }
    }
}
