//! Filters: what a reader wants to see of a topic (contract section 14).
//!
//! A filter is read once, from the JSON text of its tuple form, and then asked about every record. It looks at
//! stored bytes: headers, and the raw JSON of `meta` and `data`, of which only the values that it names are
//! walked to. It is total: whatever a record holds, the answer is true or false.
//!
//! Its stored form is its canonical text, which is also how it is echoed.

mod json;
mod number;
mod parse;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cmp::Ordering;

pub use parse::TagMatch;

use crate::record::Record;
use json::{Found, at_path, member, value};
use number::Number;

/// A condition on records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Filter {
    And(Vec<Filter>),
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Leaf(Field, Op),
}

/// What a leaf looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Field {
    Tag,
    Node,
    Key,
    Channel,
    /// Value of this key of `meta`.
    Meta(String),
    Data(Path),
}

/// A way into `data`: as it was written, and its steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path {
    text: String,
    steps: Vec<String>,
}

/// What a leaf asks of the value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    Eq(Scalar),
    NotEq(Scalar),
    /// A string that starts with this.
    Glob(String),
    In(Vec<Scalar>),
    Exists(bool),
    /// Of the same type as the bound, and in this order to it.
    Order(OrderOp, Scalar),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OrderOp {
    Lt,
    Lte,
    Gt,
    Gte,
}

impl OrderOp {
    fn holds(self, order: Ordering) -> bool {
        match self {
            OrderOp::Lt => order.is_lt(),
            OrderOp::Lte => order.is_le(),
            OrderOp::Gt => order.is_gt(),
            OrderOp::Gte => order.is_ge(),
        }
    }
}

/// A value that a filter compares with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scalar {
    Null,
    Bool(bool),
    /// As it was written; it may have any size.
    Number(String),
    Text(String),
}

impl Scalar {
    fn equals(&self, found: &Found<'_>) -> bool {
        match (self, found) {
            (Scalar::Null, Found::Null) => true,
            (Scalar::Bool(one), Found::Bool(other)) => one == other,
            (Scalar::Number(_), Found::Number(..)) | (Scalar::Text(_), Found::Text(_)) => {
                self.order_of(found) == Some(Ordering::Equal)
            }
            _ => false,
        }
    }

    /// How `found` compares with this; `None` if they are not two numbers or two strings.
    fn order_of(&self, found: &Found<'_>) -> Option<Ordering> {
        match (self, found) {
            (Scalar::Number(bound), Found::Number(_, found)) => {
                Some(found.cmp_value(&Number::of(bound.as_bytes())))
            }
            (Scalar::Text(bound), Found::Text(found)) => Some((**found).cmp(bound.as_bytes())),
            _ => None,
        }
    }
}

impl Filter {
    /// Whether `record` passes.
    pub fn matches(&self, record: &Record<'_>) -> bool {
        match self {
            Filter::And(all) => all.iter().all(|filter| filter.matches(record)),
            Filter::Or(any) => any.iter().any(|filter| filter.matches(record)),
            Filter::Not(filter) => !filter.matches(record),
            Filter::Leaf(field, op) => op.holds(field.find(record)),
        }
    }
}

impl Filter {
    /// What it takes in memory, itself included; at most some 32 times its JSON.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Filter>() + self.heap_bytes()
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Filter::And(filters) | Filter::Or(filters) => {
                ALLOCATION_BYTES + filters.iter().map(Filter::memory_bytes).sum::<usize>()
            }
            Filter::Not(filter) => ALLOCATION_BYTES + filter.memory_bytes(),
            Filter::Leaf(field, op) => field.heap_bytes() + op.heap_bytes(),
        }
    }

    /// How often asking it walks over a record, at most: decoding it, and each leaf that looks into `meta` or
    /// `data`, however long its path is, twice if it takes what it finds apart (C-FILT-07).
    pub fn walks(&self) -> usize {
        1 + self.looks()
    }

    fn looks(&self) -> usize {
        match self {
            Filter::And(filters) | Filter::Or(filters) => filters.iter().map(Filter::looks).sum(),
            Filter::Not(filter) => filter.looks(),
            Filter::Leaf(Field::Meta(_) | Field::Data(_), op) => 1 + usize::from(op.has_number()),
            Filter::Leaf(..) => 0,
        }
    }
}

/// What the allocator adds to a piece of memory, and what it is rounded up by.
const ALLOCATION_BYTES: usize = 16;

/// What the characters of a text take.
fn text_bytes(text: &str) -> usize {
    if text.is_empty() { 0 } else { ALLOCATION_BYTES + text.len().next_multiple_of(ALLOCATION_BYTES) }
}

impl Scalar {
    fn heap_bytes(&self) -> usize {
        match self {
            Scalar::Null | Scalar::Bool(_) => 0,
            Scalar::Number(text) | Scalar::Text(text) => text_bytes(text),
        }
    }
}

impl Op {
    /// Whether it compares with any number.
    fn has_number(&self) -> bool {
        let is_number = |scalar: &Scalar| matches!(scalar, Scalar::Number(_));
        match self {
            Op::Eq(scalar) | Op::NotEq(scalar) | Op::Order(_, scalar) => is_number(scalar),
            Op::In(scalars) => scalars.iter().any(is_number),
            Op::Glob(_) | Op::Exists(_) => false,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Op::Eq(scalar) | Op::NotEq(scalar) | Op::Order(_, scalar) => scalar.heap_bytes(),
            Op::Glob(prefix) => text_bytes(prefix),
            Op::In(scalars) => {
                let of_one = |scalar: &Scalar| size_of::<Scalar>() + scalar.heap_bytes();
                ALLOCATION_BYTES + scalars.iter().map(of_one).sum::<usize>()
            }
            Op::Exists(_) => 0,
        }
    }
}

impl Field {
    fn heap_bytes(&self) -> usize {
        match self {
            Field::Tag | Field::Node | Field::Key | Field::Channel => 0,
            Field::Meta(key) => text_bytes(key),
            Field::Data(path) => {
                let of_one = |step: &String| size_of::<String>() + text_bytes(step);
                text_bytes(&path.text) + ALLOCATION_BYTES + path.steps.iter().map(of_one).sum::<usize>()
            }
        }
    }

    fn find<'a>(&self, record: &Record<'a>) -> Option<Found<'a>> {
        let text = |header: Option<&'a str>| Some(Found::Text(Cow::Borrowed(header?.as_bytes())));
        match self {
            Field::Tag => text(record.tag),
            Field::Node => text(record.node),
            Field::Key => text(record.key),
            Field::Channel => text(record.channel),
            Field::Meta(key) => member(record.meta?.as_bytes(), key.as_bytes()).and_then(value),
            Field::Data(path) => at_path(record.data.as_bytes(), &path.steps).and_then(value),
        }
    }
}

impl Op {
    fn holds(&self, found: Option<Found<'_>>) -> bool {
        let equals = |scalar: &Scalar| found.as_ref().is_some_and(|found| scalar.equals(found));
        match self {
            Op::Eq(scalar) => equals(scalar),
            Op::NotEq(scalar) => !equals(scalar),
            Op::In(scalars) => scalars.iter().any(equals),
            Op::Exists(wanted) => found.is_some() == *wanted,
            Op::Glob(prefix) => {
                matches!(&found, Some(Found::Text(text)) if text.starts_with(prefix.as_bytes()))
            }
            Op::Order(op, bound) => {
                found.and_then(|found| bound.order_of(&found)).is_some_and(|order| op.holds(order))
            }
        }
    }
}
