//! The alphabet of everything stored or sent between members.
//!
//! Stored forms are written by hand, field by field, instead of being derived: a derive makes the bytes
//! depend on the order of fields in a Rust type, and on a library's idea of it, and neither may decide
//! whether an old log can still be read. Integers are little-endian; lengths and counts are LEB128
//! varints; a text or blob is its length and its bytes.

use bytes::{BufMut, Bytes};

/// Bytes that do not have the form they should have. Whoever decodes adds where they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl Malformed {
    /// Whether it is of a form that another version of this program writes, rather than one that nobody does: by its
    /// words, which name the version then.
    pub fn is_of_another_version(&self) -> bool {
        self.0.contains("version")
    }
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed {}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

/// Appends `value` as a varint of 1 to 10 bytes.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends the length of `bytes` and `bytes`.
pub fn put_blob(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Appends 0, or 1 and the text.
pub fn put_optional_text(out: &mut impl BufMut, text: Option<&str>) {
    match text {
        None => out.put_u8(0),
        Some(text) => {
            out.put_u8(1);
            put_blob(out, text.as_bytes());
        }
    }
}

/// Appends a number that may be absent.
pub fn put_optional_number(out: &mut impl BufMut, number: Option<u64>) {
    match number {
        None => out.put_u8(0),
        Some(number) => {
            out.put_u8(1);
            put_varint(out, number);
        }
    }
}

/// Maps signed to unsigned so that small magnitudes stay small as varints.
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads a stored form from the front of a slice. Every method fails on missing bytes; none panics.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the form in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Reader { rest: bytes, what }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn malformed(&self) -> Malformed {
        Malformed(self.what)
    }

    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(Malformed(self.what))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(Malformed(self.what))?;
        self.rest = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn u128(&mut self) -> Result<u128, Malformed> {
        let bytes = self.bytes(16)?;
        bytes.try_into().map(u128::from_le_bytes).map_err(|_| self.malformed())
    }

    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    #[inline]
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        // Most are lengths, counts and differences of one byte.
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = (byte & 0x7f) as u64;
            if shift == 63 && bits > 1 {
                return Err(self.malformed());
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    /// What [`put_optional_number`] wrote.
    pub fn optional_number(&mut self) -> Result<Option<u64>, Malformed> {
        Ok(if self.bool()? { Some(self.varint()?) } else { None })
    }

    /// A varint that fits 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| self.malformed())
    }

    /// A count of things of at least `min_item_bytes` each, refused if they cannot all be there: so a
    /// damaged count never makes a huge allocation.
    pub fn count(&mut self, min_item_bytes: usize) -> Result<usize, Malformed> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count.saturating_mul(min_item_bytes.max(1)) <= self.rest.len() => Ok(count),
            _ => Err(self.malformed()),
        }
    }

    pub fn blob(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.count(1)?;
        self.bytes(length)
    }

    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let blob = self.blob()?;
        std::str::from_utf8(blob).map_err(|_| self.malformed())
    }

    pub fn optional_text(&mut self) -> Result<Option<&'a str>, Malformed> {
        Ok(if self.bool()? { Some(self.text()?) } else { None })
    }

    /// Succeeds only if everything has been read.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

/// The part of `whole` that `part`, a slice of it, covers, sharing the allocation.
pub fn shared_slice(whole: &Bytes, part: &[u8]) -> Bytes {
    whole.slice_ref(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_comes_back(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes, "varint");
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn zigzag_is_reversible(value: i64) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes, "noise");
            while !reader.is_empty() {
                if reader.optional_text().is_err() && reader.varint().is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        assert!(Reader::new(&[0xff; 11], "varint").varint().is_err());
        let too_big = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(Reader::new(&too_big, "varint").varint().is_err());
    }
}
