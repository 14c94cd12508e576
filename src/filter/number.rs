//! Numbers as JSON writes them, compared by what they are worth.
//!
//! JSON numbers have no size: an id of thirty digits is one, and so is `1.10`. A float would call different ids
//! equal, so a number is compared as the decimal that stands there: sign, place of the first digit that
//! counts, then digit by digit. Nothing is converted and nothing is copied.

use std::cmp::Ordering;

/// Exponents beyond this count as this. Two numbers are told apart wrongly only if both have an exponent of
/// more than seventeen digits.
const MAX_EXPONENT: i64 = 100_000_000_000_000_000;

/// A number, taken apart: comparing two looks at no more than the digits that count in the shorter one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number<'a> {
    /// -1, 0 or 1.
    sign: i8,
    /// The power of ten of the first digit that counts.
    power: i64,
    /// The digits that count, from the first to the last that is not 0: those before the point, and those behind it.
    whole: &'a [u8],
    fraction: &'a [u8],
}

impl<'a> Number<'a> {
    /// Takes JSON's form of a number apart. What is no number is worth whatever comes out; it must not panic.
    pub fn of(text: &'a [u8]) -> Self {
        #[cfg(test)]
        tests::note_work(text.len());
        let (is_negative, text) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            _ => (false, text),
        };
        let end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
        let (mantissa, exponent) = (&text[..end], text.get(end + 1..).unwrap_or_default());
        let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
        let (mut whole, mut fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());
        let leading_zeros = |digits: &[u8]| digits.iter().take_while(|digit| **digit == b'0').count();
        let mut power = exponent_of(exponent);
        whole = &whole[leading_zeros(whole)..];
        if whole.is_empty() {
            let zeros = leading_zeros(fraction);
            fraction = &fraction[zeros..];
            power -= zeros as i64 + 1;
        } else {
            power += whole.len() as i64 - 1;
        }
        // Zeros at the end are worth nothing: 1.10 is 1.1.
        fraction = without_zeros_at_end(fraction);
        if fraction.is_empty() {
            whole = without_zeros_at_end(whole);
        }
        match (whole.is_empty() && fraction.is_empty(), is_negative) {
            (true, _) => Number { sign: 0, power: 0, whole, fraction },
            (false, true) => Number { sign: -1, power, whole, fraction },
            (false, false) => Number { sign: 1, power, whole, fraction },
        }
    }

    fn digits(&self) -> impl Iterator<Item = &'a u8> + use<'a> {
        let digits = self.whole.iter().chain(self.fraction);
        #[cfg(test)]
        let digits = digits.inspect(|_| tests::note_work(1));
        digits
    }

    /// How it compares with another one by value.
    pub fn cmp_value(&self, other: &Number<'_>) -> Ordering {
        self.sign.cmp(&other.sign).then_with(|| {
            let magnitudes = self.power.cmp(&other.power).then_with(|| self.digits().cmp(other.digits()));
            if self.sign < 0 { magnitudes.reverse() } else { magnitudes }
        })
    }
}

fn without_zeros_at_end(digits: &[u8]) -> &[u8] {
    let end = digits.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1);
    &digits[..end]
}

fn exponent_of(text: &[u8]) -> i64 {
    let (is_negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let value = digits
        .iter()
        .fold(0i64, |value, digit| (value * 10 + i64::from(digit.wrapping_sub(b'0') % 10)).min(MAX_EXPONENT));
    if is_negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::filter::Filter;
    use crate::record::Record;

    thread_local! {
        /// Bytes that were looked at.
        static WORK_BYTES: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn note_work(bytes: usize) {
        WORK_BYTES.with(|work| work.set(work.get() + bytes));
    }

    fn cmp(one: &str, other: &str) -> Ordering {
        Number::of(one.as_bytes()).cmp_value(&Number::of(other.as_bytes()))
    }

    /// C-FILT-07: a number may have 1 MiB, and a filter may compare with 64 x 64 others.
    #[test]
    fn a_long_number_is_taken_apart_once_per_leaf() {
        let scalars: Vec<String> = (0..64).map(|number| format!("1.{number:02}")).collect();
        let leaf = format!(r#"["data.a","In",[{}]]"#, scalars.join(","));
        let filter = format!(r#"["Or",[{}]]"#, vec![leaf; 64].join(","));
        let filter = Filter::parse(&filter).expect("a filter");
        assert_eq!(filter.walks(), 1 + 64 * 2);
        let zeros = "0".repeat(100_000);
        for number in
            [format!("0.{zeros}1"), format!("1{zeros}"), format!("1.{zeros}1"), format!("1.5{zeros}1")]
        {
            let data = format!(r#"{{"a":{number}}}"#);
            WORK_BYTES.set(0);
            assert!(!filter.matches(&Record { data: &data, ..Record::default() }));
            let work_bytes = WORK_BYTES.get();
            assert!(work_bytes < 64 * (number.len() + 64 * 100), "{work_bytes} for {}", number.len());
        }
        let data = format!(r#"{{"a":1.63{zeros}}}"#);
        assert!(filter.matches(&Record { data: &data, ..Record::default() }));
    }

    #[test]
    fn numbers_compare_by_value_whatever_their_form_and_size() {
        for equal in [
            ["1", "1.0"],
            ["1e2", "100"],
            ["0.1E+1", "1"],
            ["-0", "0.00"],
            ["0e9", "0"],
            ["12300e-2", "123"],
            ["1.250", "1.25"],
            ["100000000000000000000000000000", "1e29"],
        ] {
            assert_eq!(cmp(equal[0], equal[1]), Ordering::Equal, "{equal:?}");
        }
        let ascending = [
            "-1e999999999999999999999999",
            "-1e400",
            "-9007199254740993",
            "-9007199254740992",
            "-1.5",
            "-0.1",
            "0",
            "1e-400",
            "0.0999",
            "0.1",
            "0.10000000000000000001",
            "9",
            "10",
            "9007199254740992",
            "9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "1e20",
            "100000000000000000000.5",
            "1e400",
            "1e99999999999999999999",
        ];
        for (at, one) in ascending.iter().enumerate() {
            for (other_at, other) in ascending.iter().enumerate() {
                assert_eq!(cmp(one, other), at.cmp(&other_at), "{one} and {other}");
            }
        }
    }

    proptest! {
        #[test]
        fn scaled_integers_compare_as_integers(
            one in -1_000_000i128..1_000_000, other in -1_000_000i128..1_000_000, shift in 0usize..6,
            power in 0u32..6,
        ) {
            // `one` with a point somewhere in it, against `other` with an exponent.
            let digits = format!("{:08}", one.unsigned_abs());
            let sign = if one < 0 { "-" } else { "" };
            let (whole, fraction) = digits.split_at(digits.len() - shift);
            let left = format!("{sign}{whole}.{fraction}0");
            let right = format!("{other}e{}", i64::from(power) - 3);
            let expected = (one * 1000).cmp(&(other * 10i128.pow(power) * 10i128.pow(shift as u32)));
            prop_assert_eq!(cmp(&left, &right), expected);
            prop_assert_eq!(cmp(&right, &left), expected.reverse());
        }

        #[test]
        fn arbitrary_bytes_never_panic(one: Vec<u8>, other: Vec<u8>) {
            let _ = Number::of(&one).cmp_value(&Number::of(&other));
        }
    }
}
