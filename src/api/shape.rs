//! The shapes that request bodies are made of, for serde.
//!
//! Derived types are nearly right, but not quite: serde would take an array where the contract wants an
//! object, would copy every optional string, and would refuse a number that the contract clamps.
//!
//! In every body a `null` for an optional field means that the field is absent: clients that write their
//! unset options as `null` are common, and nothing can be lost by it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::Error;

/// Reads a whole body as one JSON object (C-CONV-07).
pub fn parse_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Error> {
    // All of it at once, as the parser looks neither at fields that are ignored nor twice at the others.
    let json = std::str::from_utf8(json).map_err(|error| Error::invalid(format!("body: {error}")))?;
    let parsed: Result<Object<T>, _> = serde_json::from_str(json);
    parsed.map(|object| object.0).map_err(|error| Error::invalid(format!("body: {error}")))
}

/// A `T` that is written as a JSON object; serde's derive takes an array of its fields as well.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A string, borrowed from the body unless it has escapes. As a type of its own it is borrowed inside of
/// an `Option` too, which a bare `Cow` is not.
#[derive(Debug, serde::Deserialize)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An unsigned number of a clamped field: one that is too large for any integer is as good as the largest
/// (C-CONV-08). Negative and fractional ones are refused (C-CONV-07).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsigned(pub u64);

impl<'de> Deserialize<'de> for Unsigned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(NumberVisitor)? {
            Number::Unsigned(value) => Ok(Unsigned(value)),
            Number::Large(value) if value > 0.0 => Ok(Unsigned(u64::MAX)),
            Number::Negative(_) | Number::Large(_) => Err(D::Error::custom("the number is negative")),
        }
    }
}

/// A signed number of a clamped field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed(pub i64);

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Signed(match deserializer.deserialize_any(NumberVisitor)? {
            Number::Unsigned(value) => i64::try_from(value).unwrap_or(i64::MAX),
            Number::Negative(value) => value,
            Number::Large(value) => value as i64,
        }))
    }
}

enum Number {
    Unsigned(u64),
    Negative(i64),
    /// Beyond 64 bits, where the parser has only a float to tell it with.
    Large(f64),
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer")
    }

    fn visit_u64<E>(self, value: u64) -> Result<Number, E> {
        Ok(Number::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Number, E> {
        Ok(u64::try_from(value).map_or(Number::Negative(value), Number::Unsigned))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Number, E> {
        if value.abs() >= i64::MAX as f64 {
            return Ok(Number::Large(value));
        }
        Err(E::custom("the number is not an integer"))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Example<'a> {
        #[serde(borrow, default)]
        text: Option<Text<'a>>,
        #[serde(default)]
        clamped: Option<Unsigned>,
        #[serde(default)]
        signed: Option<Signed>,
    }

    fn parse(json: &str) -> Result<Example<'_>, Error> {
        parse_object(json.as_bytes())
    }

    #[test]
    fn only_an_object_is_an_object() {
        // C-CONV-07
        for json in ["[]", "[\"x\",1,1]", "null", "1", "\"x\"", "", " ", "{", "{}x", "{} {}"] {
            assert!(parse(json).is_err(), "{json}");
        }
        assert!(parse(" {\"other\": [1, {}]} ").is_ok());
    }

    #[test]
    fn what_is_not_utf_8_is_not_json_wherever_it_stands() {
        // C-CONV-07
        for json in [&b"{\"text\":\"\xff\"}"[..], b"{\"other\":\"\xff\"}", b"{\"other\":[{\"\xc3\":1}]}"] {
            assert!(parse_object::<Example<'_>>(json).is_err());
        }
    }

    #[test]
    fn an_optional_text_is_borrowed() {
        let example = parse("{\"text\":\"plain\"}").unwrap();
        assert!(matches!(example.text, Some(Text(Cow::Borrowed("plain")))));
        let example = parse("{\"text\":\"a\\nb\"}").unwrap();
        assert_eq!(example.text.unwrap().as_str(), "a\nb");
        assert!(parse("{\"text\":null}").unwrap().text.is_none());
    }

    #[test]
    fn numbers_out_of_every_range_are_clamped_and_others_refused() {
        // C-CONV-07, C-CONV-08
        let clamped =
            |value: &str| parse(&format!("{{\"clamped\":{value}}}")).map(|it| it.clamped.unwrap().0);
        assert_eq!(clamped("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(clamped("18446744073709551616"), Ok(u64::MAX));
        assert_eq!(clamped("1e40"), Ok(u64::MAX));
        for bad in ["-1", "-1e40", "1.5", "1.0", "\"1\"", "true", "[1]"] {
            assert!(clamped(bad).is_err(), "{bad}");
        }
        let signed = |value: &str| parse(&format!("{{\"signed\":{value}}}")).map(|it| it.signed.unwrap().0);
        assert_eq!(signed("-7"), Ok(-7));
        assert_eq!(signed("9999999999999999999"), Ok(i64::MAX));
        assert_eq!(signed("-1e40"), Ok(i64::MIN));
        assert!(signed("0.5").is_err());
    }
}
