//! Frames of RFC 6455, as a server reads and writes them.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Codes of Close frames.
pub const GOING_AWAY: u16 = 1001;
pub const PROTOCOL_ERROR: u16 = 1002;
pub const NO_UTF8: u16 = 1007;
pub const AGAINST_POLICY: u16 = 1008;
pub const TOO_BIG: u16 = 1009;
pub const TRY_AGAIN_LATER: u16 = 1013;

/// Longest head: two bytes, eight of a length, four of a mask.
const MAX_HEAD_BYTES: usize = 14;
/// Longest payload of a control frame.
const MAX_CONTROL_BYTES: usize = 125;
/// Payloads up to this size are copied behind their head: one write costs less than two.
const COPY_BYTES: usize = 64 << 10;

/// Why a connection cannot go on, as its Close frame tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

fn protocol(reason: &'static str) -> Violation {
    Violation { code: PROTOCOL_ERROR, reason }
}

/// What has come whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Text(String),
    /// Its bytes are not kept.
    Binary,
    Ping(Bytes),
    Pong,
    Close(Option<u16>),
}

/// Puts messages together from bytes, however these are cut.
pub struct Decoder {
    max_message_bytes: usize,
    head: [u8; MAX_HEAD_BYTES],
    head_bytes: usize,
    /// The frame whose payload is on its way.
    frame: Option<Frame>,
    message: Option<Message>,
    control: Vec<u8>,
}

struct Frame {
    opcode: u8,
    is_final: bool,
    mask: [u8; 4],
    taken_bytes: usize,
    left_bytes: usize,
}

impl Frame {
    fn is_control(&self) -> bool {
        self.opcode >= CLOSE
    }
}

/// A message of which something has come.
struct Message {
    is_text: bool,
    bytes: usize,
    text: Vec<u8>,
}

impl Decoder {
    pub fn new(max_message_bytes: usize) -> Self {
        Decoder {
            max_message_bytes,
            head: [0; MAX_HEAD_BYTES],
            head_bytes: 0,
            frame: None,
            message: None,
            control: Vec::new(),
        }
    }

    /// Memory of what is not whole yet.
    pub fn held_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.text.capacity())
    }

    /// Whether something has begun that is not whole yet.
    pub fn is_under_way(&self) -> bool {
        self.head_bytes > 0 || self.frame.is_some() || self.message.is_some()
    }

    /// Takes bytes as they came, and adds to `whole` what they complete.
    pub fn feed(&mut self, mut bytes: &mut [u8], whole: &mut VecDeque<Received>) -> Result<(), Violation> {
        while let Some(first) = bytes.first() {
            let Some(frame) = &mut self.frame else {
                // There is room: a head of that length has begun a frame.
                self.head[self.head_bytes] = *first;
                self.head_bytes += 1;
                bytes = &mut bytes[1..];
                self.frame = self.begin()?;
                if self.frame.as_ref().is_some_and(|frame| frame.left_bytes == 0) {
                    whole.extend(self.end()?);
                }
                continue;
            };
            let length = frame.left_bytes.min(bytes.len());
            let (payload, rest) = std::mem::take(&mut bytes).split_at_mut(length);
            bytes = rest;
            unmask(payload, frame.mask, frame.taken_bytes);
            frame.taken_bytes += length;
            frame.left_bytes -= length;
            if frame.is_control() {
                self.control.extend_from_slice(payload);
            } else if let Some(message) = &mut self.message {
                message.add(payload, frame.left_bytes);
            }
            if frame.left_bytes == 0 {
                whole.extend(self.end()?);
            }
        }
        Ok(())
    }

    /// The frame that the head begins, once it is whole.
    fn begin(&mut self) -> Result<Option<Frame>, Violation> {
        let head = &self.head[..self.head_bytes];
        let [first, second, ..] = *head else { return Ok(None) };
        let (opcode, is_final) = (first & 0x0f, first & 0x80 != 0);
        let is_control = opcode >= CLOSE;
        if first & 0x70 != 0 {
            return Err(protocol("a reserved bit is set"));
        }
        match opcode {
            CONTINUATION if self.message.is_none() => {
                return Err(protocol("nothing is there to be continued"));
            }
            TEXT | BINARY if self.message.is_some() => {
                return Err(protocol("a message begins before the last one has ended"));
            }
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG if !is_final => return Err(protocol("a control frame is in parts")),
            CLOSE | PING | PONG if usize::from(second & 0x7f) > MAX_CONTROL_BYTES => {
                return Err(protocol("a control frame is too long"));
            }
            CLOSE | PING | PONG => {}
            _ => return Err(protocol("the kind of a frame is unknown")),
        }
        if second & 0x80 == 0 {
            return Err(protocol("a frame of a client is not masked"));
        }
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((mask, rest)) = head[2..].split_at_checked(length_bytes).and_then(|(length, rest)| {
            let mask: [u8; 4] = rest.try_into().ok()?;
            Some((mask, length))
        }) else {
            return Ok(None);
        };
        let payload_bytes = match rest {
            [] => u64::from(second & 0x7f),
            _ => rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        let message_bytes = self.message.as_ref().map_or(0, |message| message.bytes);
        let left_bytes = usize::try_from(payload_bytes).unwrap_or(usize::MAX);
        if !is_control && left_bytes > self.max_message_bytes - message_bytes {
            return Err(Violation { code: TOO_BIG, reason: "the message is too long" });
        }
        if matches!(opcode, TEXT | BINARY) {
            self.message = Some(Message { is_text: opcode == TEXT, bytes: 0, text: Vec::new() });
        }
        self.head_bytes = 0;
        Ok(Some(Frame { opcode, is_final, mask, taken_bytes: 0, left_bytes }))
    }

    /// What the present frame completes, all of which has come.
    fn end(&mut self) -> Result<Option<Received>, Violation> {
        let Some(frame) = self.frame.take() else { return Ok(None) };
        if frame.is_control() {
            let payload = std::mem::take(&mut self.control);
            return Ok(Some(match frame.opcode {
                CLOSE => Received::Close(close_code(&payload)?),
                PING => Received::Ping(payload.into()),
                _ => Received::Pong,
            }));
        }
        let message = self.message.take_if(|_| frame.is_final);
        Ok(match message {
            None => None,
            Some(Message { is_text: false, .. }) => Some(Received::Binary),
            Some(Message { text, .. }) => match String::from_utf8(text) {
                Ok(text) => Some(Received::Text(text)),
                Err(_) => return Err(Violation { code: NO_UTF8, reason: "a text is not UTF-8" }),
            },
        })
    }
}

impl Message {
    /// Adds a part of a frame of which `left_bytes` more are to come. Room is made as bytes come, not as they are
    /// announced.
    fn add(&mut self, payload: &[u8], left_bytes: usize) {
        self.bytes += payload.len();
        if !self.is_text {
            return;
        }
        let text = &mut self.text;
        let needed = text.len() + payload.len();
        if needed > text.capacity() {
            let wanted = needed.max(2 * text.capacity()).min(needed + left_bytes);
            text.reserve_exact(wanted - text.len());
        }
        text.extend_from_slice(payload);
    }
}

/// `offset` says how much of the frame came before.
fn unmask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let mask: [u8; 4] = std::array::from_fn(|place| mask[(offset + place) % 4]);
    let mut words = payload.chunks_exact_mut(4);
    for word in words.by_ref() {
        word.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(protocol("a Close has half a code")) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a Close has a code that must not be sent"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(Violation { code: NO_UTF8, reason: "the reason of a Close is not UTF-8" }),
    }
}

fn head(opcode: u8, payload_bytes: usize, out: &mut BytesMut) {
    out.put_u8(0x80 | opcode);
    match payload_bytes {
        0..=125 => out.put_u8(payload_bytes as u8),
        126..=0xffff => {
            out.put_u8(126);
            out.put_u16(payload_bytes as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(payload_bytes as u64);
        }
    }
}

fn small_frame(opcode: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(MAX_HEAD_BYTES + payload.len());
    head(opcode, payload.len(), &mut out);
    out.extend_from_slice(payload);
    out.freeze()
}

/// A text, as one or two pieces to be written.
pub fn put_text(text: Bytes, out: &mut VecDeque<Bytes>) {
    if text.len() <= COPY_BYTES {
        return out.push_back(small_frame(TEXT, &text));
    }
    let mut first = BytesMut::with_capacity(MAX_HEAD_BYTES);
    head(TEXT, text.len(), &mut first);
    out.extend([first.freeze(), text]);
}

pub fn ping() -> Bytes {
    small_frame(PING, &[])
}

pub fn pong(payload: &[u8]) -> Bytes {
    small_frame(PONG, payload)
}

pub fn close(code: Option<u16>, reason: &str) -> Bytes {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    small_frame(CLOSE, &payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame of a client.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        head(first & 0x0f, payload.len(), &mut out);
        let mut out = out.to_vec();
        out[0] = first;
        out[1] |= 0x80;
        let mask = [7, 0, 255, 130];
        out.extend(mask);
        let at = out.len();
        out.extend(payload);
        unmask(&mut out[at..], mask, 0);
        out
    }

    fn decode(max_bytes: usize, pieces: &[&[u8]]) -> Result<Vec<Received>, Violation> {
        let (mut decoder, mut whole) = (Decoder::new(max_bytes), VecDeque::new());
        for piece in pieces {
            decoder.feed(&mut piece.to_vec(), &mut whole)?;
        }
        Ok(whole.into())
    }

    fn code(bytes: &[u8]) -> u16 {
        decode(1000, &[bytes]).expect_err("is refused").code
    }

    #[test]
    fn what_is_no_frame_of_a_client_is_refused() {
        // C-WS-07
        let mut unmasked = frame(0x81, b"x");
        unmasked[1] &= 0x7f;
        for bad in [
            unmasked,
            frame(0xc1, b""),
            frame(0x83, b""),
            frame(0x8b, b""),
            frame(0x80, b"x"),
            frame(0x09, b""),
            frame(0x89, &[0; 126]),
            [frame(0x01, b"x"), frame(0x81, b"y")].concat(),
            frame(0x88, b"1"),
            frame(0x88, &999u16.to_be_bytes()),
            frame(0x88, &1005u16.to_be_bytes()),
            frame(0x88, &5000u16.to_be_bytes()),
        ] {
            assert_eq!(code(&bad), PROTOCOL_ERROR, "{bad:?}");
        }
        assert_eq!(code(&frame(0x81, b"\xff")), NO_UTF8);
        assert_eq!(code(&[frame(0x01, b"\xc3"), frame(0x80, b"x")].concat()), NO_UTF8);
        assert_eq!(code(&frame(0x88, b"\x03\xe8\xff")), NO_UTF8);
        assert_eq!(code(&frame(0x81, &[b'x'; 1001])), TOO_BIG);
        assert_eq!(code(&[frame(0x02, &[0; 600]), frame(0x80, &[0; 401])].concat()), TOO_BIG);
        // Long before any of it has come.
        assert_eq!(code(&frame(0x81, &[b'x'; 1001])[..8]), TOO_BIG);
        let mut endless = frame(0x81, b"")[..2].to_vec();
        endless[1] = 0xff;
        endless.extend([0xff; 12]);
        assert_eq!(code(&endless), TOO_BIG);
    }

    #[test]
    fn messages_come_whole_between_other_frames() {
        let bytes = [
            frame(0x01, "a\u{e9}".as_bytes()),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"b"),
            frame(0x82, &[0xff; 300]),
            frame(0x81, &[b'x'; 70_000]),
            frame(0x88, b""),
            frame(0x88, b"\x0f\xa0bye"),
        ]
        .concat();
        let expected = [
            Received::Ping(Bytes::from_static(b"ping")),
            Received::Pong,
            Received::Text("a\u{e9}b".into()),
            Received::Binary,
            Received::Text("x".repeat(70_000)),
            Received::Close(None),
            Received::Close(Some(4000)),
        ];
        assert_eq!(decode(70_000, &[&bytes]).unwrap(), expected);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(70_000, &single).unwrap(), expected);
    }

    #[test]
    fn room_is_made_for_what_has_come() {
        // C-LIMIT-16
        let (mut decoder, mut whole) = (Decoder::new(8 << 20), VecDeque::new());
        let mut bytes = frame(0x81, &vec![b'x'; 1 << 20]);
        assert!(!decoder.is_under_way());
        decoder.feed(&mut bytes[..14 + 1000], &mut whole).unwrap();
        assert!(decoder.is_under_way() && decoder.held_bytes() <= 2000, "{}", decoder.held_bytes());
        decoder.feed(&mut bytes[14 + 1000..(1 << 20)], &mut whole).unwrap();
        assert!(decoder.held_bytes() <= 1 << 20);
        decoder.feed(&mut bytes[(1 << 20)..], &mut whole).unwrap();
        assert!(!decoder.is_under_way() && decoder.held_bytes() == 0);
        assert!(matches!(&whole[0], Received::Text(text) if text.capacity() == 1 << 20));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_to_the_same(bytes: Vec<u8>, cut: prop::sample::Index) {
            let cut = if bytes.is_empty() { 0 } else { cut.index(bytes.len()) };
            prop_assert_eq!(decode(100, &[&bytes]), decode(100, &[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
