//! JSON answers, written by hand into one buffer.
//!
//! An answer of `diff` is mostly stored bytes that are JSON already, and an answer to an append is a few
//! numbers. Building a `serde_json::Value` for either would copy everything twice, and a derived
//! `Serialize` cannot splice in raw text without a wrapper per field; so answers are appended, field by
//! field, to the buffer that goes to the socket.

use bytes::{BufMut, Bytes, BytesMut};

/// Something that can be written as one JSON value.
pub trait ToJson {
    fn write(&self, json: &mut JsonWriter);
}

/// JSON text that is copied as it is.
pub struct Raw<'a>(pub &'a str);

/// A duration in milliseconds, written with three decimals.
pub struct Millis(pub f64);

/// A JSON text in the making. Commas are put by looking at the last byte written: no complete value ends
/// in `{`, `[` or `:`, so no state has to be kept beside the buffer.
pub struct JsonWriter {
    bytes: BytesMut,
}

impl JsonWriter {
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        JsonWriter { bytes: BytesMut::with_capacity(capacity_bytes) }
    }

    /// Writes one value: the next item of the array, or the whole text.
    pub fn value(&mut self, value: impl ToJson) {
        self.separate();
        value.write(self);
    }

    /// Writes one field of the object. `name` is ours and needs no escaping.
    pub fn field(&mut self, name: &'static str, value: impl ToJson) {
        self.key(name);
        value.write(self);
    }

    /// Writes a field only if it has a value.
    pub fn field_if_some(&mut self, name: &'static str, value: Option<impl ToJson>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// Writes a field that is an object.
    pub fn object_field(&mut self, name: &'static str, fill: impl FnOnce(&mut Self)) {
        self.key(name);
        self.object(fill);
    }

    /// As [`JsonWriter::object_field`], under a name that is not ours.
    pub fn object_field_named(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.separate();
        self.text(name);
        self.bytes.put_u8(b':');
        self.object(fill);
    }

    /// Writes a field that is an array with one item per element.
    pub fn array_field<T: ToJson>(&mut self, name: &'static str, items: impl IntoIterator<Item = T>) {
        self.key(name);
        self.bytes.put_u8(b'[');
        items.into_iter().for_each(|item| self.value(item));
        self.bytes.put_u8(b']');
    }

    /// Writes an object where a value stands: what implementations of [`ToJson`] do.
    pub fn object(&mut self, fill: impl FnOnce(&mut Self)) {
        self.open_object();
        fill(self);
        self.close_object();
    }

    pub fn open_object(&mut self) {
        self.bytes.put_u8(b'{');
    }

    pub fn close_object(&mut self) {
        self.bytes.put_u8(b'}');
    }

    /// Text around JSON: what a line of an event stream begins with.
    pub fn text_as_is(&mut self, text: &str) {
        self.bytes.put_slice(text.as_bytes());
    }

    /// Writes a field under a name that is not ours.
    pub fn field_named(&mut self, name: &str, value: impl ToJson) {
        self.separate();
        self.text(name);
        self.bytes.put_u8(b':');
        value.write(self);
    }

    pub fn finish(self) -> Bytes {
        self.bytes.freeze()
    }

    fn key(&mut self, name: &'static str) {
        self.separate();
        self.bytes.put_u8(b'"');
        self.bytes.put_slice(name.as_bytes());
        self.bytes.put_slice(b"\":");
    }

    fn separate(&mut self) {
        if !matches!(self.bytes.last(), None | Some(b'{' | b'[' | b':')) {
            self.bytes.put_u8(b',');
        }
    }

    fn number(&mut self, mut value: u64) {
        let mut digits = [0u8; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.bytes.put_slice(&digits[start..]);
    }

    fn text(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.bytes.put_u8(b'"');
        let mut rest = text.as_bytes();
        while let Some(at) = rest.iter().position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\')) {
            self.bytes.put_slice(&rest[..at]);
            match rest[at] {
                byte @ (b'"' | b'\\') => self.bytes.put_slice(&[b'\\', byte]),
                byte => {
                    self.bytes.put_slice(b"\\u00");
                    self.bytes.put_u8(HEX[(byte >> 4) as usize]);
                    self.bytes.put_u8(HEX[(byte & 15) as usize]);
                }
            }
            rest = &rest[at + 1..];
        }
        self.bytes.put_slice(rest);
        self.bytes.put_u8(b'"');
    }
}

impl ToJson for u64 {
    fn write(&self, json: &mut JsonWriter) {
        json.number(*self);
    }
}

impl ToJson for i32 {
    fn write(&self, json: &mut JsonWriter) {
        if *self < 0 {
            json.bytes.put_u8(b'-');
        }
        json.number(u64::from(self.unsigned_abs()));
    }
}

impl ToJson for bool {
    fn write(&self, json: &mut JsonWriter) {
        json.bytes.put_slice(if *self { b"true" } else { b"false" });
    }
}

impl ToJson for str {
    fn write(&self, json: &mut JsonWriter) {
        json.text(self);
    }
}

impl ToJson for Raw<'_> {
    fn write(&self, json: &mut JsonWriter) {
        json.bytes.put_slice(self.0.as_bytes());
    }
}

impl ToJson for Millis {
    fn write(&self, json: &mut JsonWriter) {
        // The cast saturates: what is not a number or below zero is 0.
        let micros = (self.0 * 1000.0).round() as u64;
        json.number(micros / 1000);
        let rest = micros % 1000;
        json.bytes.put_slice(&[
            b'.',
            b'0' + (rest / 100) as u8,
            b'0' + (rest / 10 % 10) as u8,
            b'0' + (rest % 10) as u8,
        ]);
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn write(&self, json: &mut JsonWriter) {
        match self {
            Some(value) => value.write(json),
            None => json.bytes.put_slice(b"null"),
        }
    }
}

impl<T: ToJson + ?Sized> ToJson for &T {
    fn write(&self, json: &mut JsonWriter) {
        (*self).write(json);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(fill: impl FnOnce(&mut JsonWriter)) -> String {
        let mut json = JsonWriter::with_capacity(0);
        fill(&mut json);
        String::from_utf8(json.finish().to_vec()).unwrap()
    }

    #[test]
    fn commas_stand_between_values_only() {
        let text = written(|json| {
            json.object(|json| {
                json.field("a", 1u64);
                json.field("b", "x{");
                json.array_field("c", [1u64, 2]);
                json.array_field::<u64>("d", []);
                json.object_field("e", |_| {});
                json.field("f", None::<u64>);
                json.field_if_some("g", None::<u64>);
                json.field("h", Raw("{\"k\":[1.250]}"));
                json.field("i", true);
                json.field("j", Some(-1000));
            });
        });
        assert_eq!(
            text,
            r#"{"a":1,"b":"x{","c":[1,2],"d":[],"e":{},"f":null,"h":{"k":[1.250]},"i":true,"j":-1000}"#
        );
    }

    #[test]
    fn durations_have_three_decimals() {
        for (value, text) in [
            (0.0, "0.000"),
            (1.0004, "1.000"),
            (0.25, "0.250"),
            (12.9996, "13.000"),
            (7.999, "7.999"),
            (-1.0, "0.000"),
            (f64::NAN, "0.000"),
        ] {
            assert_eq!(written(|json| json.value(Millis(value))), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_reads_back(text: String) {
            let json = written(|json| json.value(text.as_str()));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn any_number_reads_back(value: u64) {
            prop_assert_eq!(written(|json| json.value(value)), value.to_string());
        }
    }
}
