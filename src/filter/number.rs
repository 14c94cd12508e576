//! Numbers as JSON writes them, compared by what they are worth.
//!
//! JSON numbers have no size: an id of thirty digits is one, and so is `1.10`. A float would call different ids
//! equal, so a number is compared as the decimal that stands there: sign, place of the first digit that
//! counts, then digit by digit. Nothing is converted and nothing is copied.

use std::cmp::Ordering;

/// Exponents beyond this count as this. Two numbers are told apart wrongly only if both have an exponent of
/// more than seventeen digits.
const MAX_EXPONENT: i64 = 100_000_000_000_000_000;

/// A number, split into its parts.
#[derive(Debug, Clone, Copy)]
struct Decimal<'a> {
    is_negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Takes JSON's form of a number apart. What is no number is worth whatever comes out; it must not panic.
    fn of(text: &'a [u8]) -> Self {
        let (is_negative, text) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            _ => (false, text),
        };
        let end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
        let (mantissa, exponent) = (&text[..end], text.get(end + 1..).unwrap_or_default());
        let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
        let (whole, fraction) = (&mantissa[..point], mantissa.get(point + 1..).unwrap_or_default());
        Decimal { is_negative, whole, fraction, exponent: exponent_of(exponent) }
    }

    fn digits(&self) -> impl Iterator<Item = u8> + use<'a> {
        self.whole.iter().chain(self.fraction).copied()
    }

    /// The power of ten of the first digit that is not 0, and the digits from there on; `None` for zero.
    fn significant(&self) -> Option<(i64, impl Iterator<Item = u8> + use<'a>)> {
        let leading_zeros = self.digits().position(|digit| digit != b'0')?;
        let power = self.whole.len() as i64 - 1 - leading_zeros as i64 + self.exponent;
        Some((power, self.digits().skip(leading_zeros)))
    }

    fn cmp_magnitude(&self, other: &Decimal<'_>) -> Ordering {
        let (one, two) = match (self.significant(), other.significant()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(one), Some(two)) => (one, two),
        };
        one.0.cmp(&two.0).then_with(|| {
            let (mut one, mut two) = (one.1, two.1);
            loop {
                let (left, right) = (one.next(), two.next());
                if left.is_none() && right.is_none() {
                    return Ordering::Equal;
                }
                // Zeros at the end are worth nothing: 1.10 is 1.1.
                let order = left.unwrap_or(b'0').cmp(&right.unwrap_or(b'0'));
                if order != Ordering::Equal {
                    return order;
                }
            }
        })
    }
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

/// Compares two JSON numbers by value. Time is in the order of their lengths.
pub(super) fn cmp_numbers(one: &[u8], other: &[u8]) -> Ordering {
    let (one, other) = (Decimal::of(one), Decimal::of(other));
    let is_zero = |number: &Decimal<'_>| number.significant().is_none();
    match (one.is_negative && !is_zero(&one), other.is_negative && !is_zero(&other)) {
        (false, false) => one.cmp_magnitude(&other),
        (true, true) => other.cmp_magnitude(&one),
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cmp(one: &str, other: &str) -> Ordering {
        cmp_numbers(one.as_bytes(), other.as_bytes())
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
            let _ = cmp_numbers(&one, &other);
        }
    }
}
