//! gzip, both ways (C-CONV-10).
//!
//! Bodies are whole in memory on either way, so they are packed and unpacked in one go, by the library
//! that the usual middleware uses too. The middleware would wrap every body in one more type to look
//! through, also of the many requests that ask for nothing, and its limit of the unpacked size would have
//! to be checked outside of it anyway.

use std::io::{self, Read, Write};

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::byte_budget::Charge;
use crate::error::Error;
use crate::task;

/// Up to this size the work is done at once; above it, on a thread that may take its time.
const IN_PLACE_BYTES: usize = 32 << 10;
/// So much is unpacked before it is looked at how much that is.
const PIECE_BYTES: usize = 64 << 10;

/// How the body of a request is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Plain,
    Gzip,
    Unknown,
}

impl Encoding {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(CONTENT_ENCODING).iter().map(|value| value.as_bytes().trim_ascii());
        match (values.next(), values.next()) {
            (None, _) => Encoding::Plain,
            (Some(value), None) if is(value, "gzip") || is(value, "x-gzip") => Encoding::Gzip,
            (Some(value), None) if value.is_empty() || is(value, "identity") => Encoding::Plain,
            // Also packed several times: nobody does.
            _ => Encoding::Unknown,
        }
    }
}

fn is(value: &[u8], name: &str) -> bool {
    value.eq_ignore_ascii_case(name.as_bytes())
}

/// Why a body cannot be unpacked.
#[derive(Debug, PartialEq)]
pub enum UnpackError {
    /// It has more than the allowed bytes.
    TooLarge,
    Malformed,
    /// There is no room for what comes out.
    Refused(Error),
}

/// Unpacks `packed` as long as that makes at most `max_bytes`, for all of which there is room; `charge` grows by them.
pub async fn unpack(packed: Bytes, max_bytes: usize, charge: Charge) -> Result<(Bytes, Charge), UnpackError> {
    if packed.len() <= IN_PLACE_BYTES && max_bytes <= IN_PLACE_BYTES {
        return unpack_now(&packed, max_bytes, charge);
    }
    let unpacked = task::blocking_for_client(move || Ok(unpack_now(&packed, max_bytes, charge))).await;
    unpacked.unwrap_or(Err(UnpackError::Malformed))
}

pub(super) fn unpack_now(
    packed: &[u8],
    max_bytes: usize,
    mut charge: Charge,
) -> Result<(Bytes, Charge), UnpackError> {
    let mut unpacked = Vec::with_capacity(packed.len().saturating_mul(4).min(PIECE_BYTES).min(max_bytes));
    let mut decoder = MultiGzDecoder::new(packed);
    loop {
        let before = unpacked.len();
        let piece = decoder.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut unpacked);
        if piece.map_err(|_| UnpackError::Malformed)? == 0 {
            return Ok((unpacked.into(), charge));
        }
        if unpacked.len() > max_bytes {
            return Err(UnpackError::TooLarge);
        }
        charge.add(unpacked.len() - before).map_err(UnpackError::Refused)?;
    }
}

/// Whether the client takes gzip: it names it, and not with `q=0`.
pub fn is_accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|choice| {
        let mut parts = choice.split(';').map(str::trim);
        let is_gzip =
            parts.next().is_some_and(|name| is(name.as_bytes(), "gzip") || is(name.as_bytes(), "x-gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        is_gzip && weight.is_none_or(|weight| weight.parse().is_ok_and(|weight: f32| weight > 0.0))
    })
}

/// Packs `plain`.
pub async fn pack(plain: Bytes) -> io::Result<Bytes> {
    if plain.len() <= IN_PLACE_BYTES {
        return pack_now(&plain);
    }
    task::blocking_for_client(move || pack_now(&plain)).await
}

fn pack_now(plain: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?.into())
}

/// As [`unpack`], with a budget without a bound.
#[cfg(test)]
pub async fn unpack_freely(packed: Bytes, max_bytes: usize) -> Result<Bytes, UnpackError> {
    let caller = crate::auth::Keys::default().authenticate(None).map_err(UnpackError::Refused)?;
    let (unpacked, charge) =
        unpack(packed, max_bytes, super::byte_budget::ByteBudget::new(0).charge(&caller)).await?;
    assert_eq!(charge.bytes(), unpacked.len());
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::byte_budget::ByteBudget;
    use crate::auth::Keys;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(name, axum::http::HeaderValue::from_static(value));
        });
        headers
    }

    #[test]
    fn gzip_is_used_only_if_asked_for() {
        // C-CONV-10
        for (values, accepted) in [
            (&["gzip"][..], true),
            (&["deflate, GZIP;q=0.5"], true),
            (&["br", "x-gzip"], true),
            (&["gzip;q=0"], false),
            (&["gzip; q=0.0"], false),
            (&["gzip;q=x"], false),
            (&["*"], false),
            (&["identity"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(is_accepted(&headers("accept-encoding", values)), accepted, "{values:?}");
        }
    }

    #[test]
    fn a_body_is_plain_gzip_or_not_understood() {
        for (values, encoding) in [
            (&[][..], Encoding::Plain),
            (&["identity"], Encoding::Plain),
            (&["gzip"], Encoding::Gzip),
            (&[" X-GZIP"], Encoding::Gzip),
            (&["br"], Encoding::Unknown),
            (&["gzip, gzip"], Encoding::Unknown),
            (&["gzip", "gzip"], Encoding::Unknown),
        ] {
            assert_eq!(Encoding::of(&headers("content-encoding", values)), encoding, "{values:?}");
        }
    }

    #[tokio::test]
    async fn what_comes_out_is_counted_as_it_does() {
        // C-LIMIT-16
        let packed = pack(vec![b'x'; 2 << 20].into()).await.unwrap();
        let budget = ByteBudget::new(512 << 10);
        let charge = || budget.charge(&Keys::default().authenticate(None).unwrap());
        let refused = Err(Error::over_limit("max_inflight_bytes", 512 << 10));
        let unpacked = super::unpack(packed.clone(), usize::MAX, charge()).await;
        assert_eq!(unpacked.map(|_| ()), refused.map_err(UnpackError::Refused));
        assert_eq!(charge().add(512 << 10), Ok(()), "all was given back");
        let large: Vec<u8> = (0..512u32 << 10).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let packed_large = pack(large.clone().into()).await.unwrap();
        let mut alone = charge();
        assert_eq!(alone.add(packed_large.len()), Ok(()));
        let unpacked = super::unpack(packed_large, usize::MAX, alone).await.map(|(unpacked, _)| unpacked);
        assert_eq!(unpacked, Ok(large.into()), "the largest body passes packed too");
        assert_eq!(super::unpack(packed, 1000, charge()).await.map(|_| ()), Err(UnpackError::TooLarge));
    }

    #[tokio::test]
    async fn what_is_packed_comes_back_up_to_the_limit() {
        // C-CONV-11
        for bytes in [0, 1, 1000, 100_000] {
            let plain = Bytes::from(vec![b'x'; bytes]);
            let packed = pack(plain.clone()).await.unwrap();
            assert_eq!(unpack_freely(packed.clone(), bytes).await, Ok(plain.clone()));
            assert_eq!(unpack_freely(packed.clone(), usize::MAX).await, Ok(plain));
            if bytes > 0 {
                assert_eq!(unpack_freely(packed.clone(), bytes - 1).await, Err(UnpackError::TooLarge));
            }
            let cut = packed.slice(..packed.len() - 1);
            assert_eq!(unpack_freely(cut, usize::MAX).await, Err(UnpackError::Malformed));
        }
        assert_eq!(unpack_freely(Bytes::from_static(b"plain"), 100).await, Err(UnpackError::Malformed));
    }
}
