//! The tuple form of filters: reading it, and writing it canonically.
//!
//! It is read from raw text like the records, not through a tree of values: a number of a filter must keep all
//! its digits.

use std::fmt;

use super::json::{Found, elements, value};
use super::{Field, Filter, Op, OrderOp, Path, Scalar};
use crate::error::Error;
use crate::limits::{
    MAX_CANONICAL_FILTER_BYTES, MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_IN, MAX_FILTER_LEAVES,
    MAX_FILTER_STEPS,
};

impl Filter {
    /// Reads a filter from `json`, which must be valid JSON. Errors: `invalid_request` (C-FILT-01).
    pub fn parse(json: &str) -> Result<Filter, Error> {
        if json.len() > MAX_FILTER_BYTES {
            return Err(bad(format_args!("it has more than {MAX_FILTER_BYTES} bytes")));
        }
        Filter::parse_canonical(json)
    }

    /// Reads what this writes as text, which may be a little longer than what a client may send.
    pub fn parse_canonical(json: &str) -> Result<Filter, Error> {
        if json.len() > MAX_CANONICAL_FILTER_BYTES {
            return Err(bad(format_args!("it has more than {MAX_CANONICAL_FILTER_BYTES} bytes")));
        }
        let mut leaves = 0;
        parse_filter(json.as_bytes(), 1, &mut leaves)
    }
}

fn bad(what: impl fmt::Display) -> Error {
    Error::invalid(format!("filter: {what}"))
}

fn parse_filter(json: &[u8], depth: usize, leaves: &mut usize) -> Result<Filter, Error> {
    if depth > MAX_FILTER_DEPTH {
        return Err(bad(format_args!("it is nested deeper than {MAX_FILTER_DEPTH}")));
    }
    let mut leaf = |field, op| {
        *leaves += 1;
        if *leaves > MAX_FILTER_LEAVES {
            return Err(bad(format_args!("it has more than {MAX_FILTER_LEAVES} leaves")));
        }
        Ok(Filter::Leaf(field, op))
    };
    match value(json) {
        Some(Found::Text(text)) => {
            return leaf(
                Field::Tag,
                match TagMatch::of_short(owned(&text)?) {
                    TagMatch::Eq(tag) => Op::Eq(Scalar::Text(tag)),
                    TagMatch::Glob(prefix) => Op::Glob(prefix),
                },
            );
        }
        Some(Found::Composite([b'[', ..])) => {}
        _ => return Err(bad("each part is a tuple or a string")),
    }
    let parts: Vec<&[u8]> = elements(json).take(4).collect();
    let first = text_of(parts.first().copied(), "the first part of a tuple")?;
    match (first.as_str(), parts.as_slice()) {
        ("And" | "Or", [_, list]) => {
            if !list.starts_with(b"[") {
                return Err(bad(format_args!("{first:?} takes a list")));
            }
            let inner = elements(list).map(|filter| parse_filter(filter, depth + 1, leaves));
            let mut inner = inner.collect::<Result<Vec<_>, _>>()?;
            // Filters are kept for long.
            inner.shrink_to_fit();
            if inner.is_empty() {
                return Err(bad(format_args!("the list of {first:?} is empty")));
            }
            Ok(if first == "And" { Filter::And(inner) } else { Filter::Or(inner) })
        }
        ("Not", [_, inner]) => Ok(Filter::Not(Box::new(parse_filter(inner, depth + 1, leaves)?))),
        (_, [_, op, value]) => {
            let op = text_of(Some(op), "an operator")?;
            leaf(parse_field(&first)?, parse_op(&op, value)?)
        }
        _ => Err(bad("a tuple is [field, op, value], [\"And\", list], [\"Or\", list] or [\"Not\", filter]")),
    }
}

fn owned(text: &[u8]) -> Result<String, Error> {
    String::from_utf8(text.to_vec()).map_err(|_| bad("a string holds half of a surrogate pair"))
}

fn text_of(json: Option<&[u8]>, what: &str) -> Result<String, Error> {
    match json.and_then(value) {
        Some(Found::Text(text)) => owned(&text),
        _ => Err(bad(format_args!("{what} is a string"))),
    }
}

fn parse_field(name: &str) -> Result<Field, Error> {
    Ok(match name {
        "tag" => Field::Tag,
        "node" => Field::Node,
        "key" => Field::Key,
        "channel" => Field::Channel,
        _ => match name.split_once('.') {
            Some(("meta", key)) => Field::Meta(key.to_owned()),
            Some(("data", path)) => Field::Data(Path { text: path.to_owned(), steps: parse_path(path)? }),
            _ => return Err(bad(format_args!("there is no field {name:?}"))),
        },
    })
}

fn parse_path(path: &str) -> Result<Vec<String>, Error> {
    let pointer = path.strip_prefix('/');
    let separator = if pointer.is_some() { '/' } else { '.' };
    if pointer.unwrap_or(path).split(separator).nth(MAX_FILTER_STEPS).is_some() {
        return Err(bad(format_args!("a path has more than {MAX_FILTER_STEPS} steps")));
    }
    let Some(pointer) = pointer else {
        if path.split('.').any(str::is_empty) {
            return Err(bad(format_args!("the path {path:?} has an empty step")));
        }
        return Ok(path.split('.').map(str::to_owned).collect::<Box<[String]>>().into_vec());
    };
    let steps = pointer.split('/').map(|step| {
        let unescaped = step.replace("~1", "/").replace("~0", "~");
        let tildes = step.matches('~').count();
        let escapes = step.matches("~0").count() + step.matches("~1").count();
        if tildes == escapes { Ok(unescaped) } else { Err(bad(format_args!("{path:?} is no JSON pointer"))) }
    });
    let mut steps = steps.collect::<Result<Vec<_>, _>>()?;
    steps.shrink_to_fit();
    Ok(steps)
}

fn parse_op(op: &str, json: &[u8]) -> Result<Op, Error> {
    let order = |order| match parse_scalar(json)? {
        bound @ (Scalar::Number(_) | Scalar::Text(_)) => Ok(Op::Order(order, bound)),
        _ => Err(bad(format_args!("{op:?} takes a number or a string"))),
    };
    match op {
        "Eq" => Ok(Op::Eq(parse_scalar(json)?)),
        "NotEq" => Ok(Op::NotEq(parse_scalar(json)?)),
        "Glob" => Ok(Op::Glob(parse_glob(json)?)),
        "In" => {
            let mut scalars =
                elements(json).take(MAX_FILTER_IN + 1).map(parse_scalar).collect::<Result<Vec<_>, _>>()?;
            scalars.shrink_to_fit();
            if !json.starts_with(b"[") || scalars.is_empty() || scalars.len() > MAX_FILTER_IN {
                return Err(bad(format_args!("\"In\" takes an array of 1 to {MAX_FILTER_IN} scalars")));
            }
            Ok(Op::In(scalars))
        }
        "Exists" => match value(json) {
            Some(Found::Bool(wanted)) => Ok(Op::Exists(wanted)),
            _ => Err(bad("\"Exists\" takes true or false")),
        },
        "Lt" => order(OrderOp::Lt),
        "Lte" => order(OrderOp::Lte),
        "Gt" => order(OrderOp::Gt),
        "Gte" => order(OrderOp::Gte),
        _ => Err(bad(format_args!("there is no operator {op:?}"))),
    }
}

fn parse_scalar(json: &[u8]) -> Result<Scalar, Error> {
    Ok(match value(json) {
        Some(Found::Null) => Scalar::Null,
        Some(Found::Bool(value)) => Scalar::Bool(value),
        Some(Found::Number(digits, _)) => Scalar::Number(owned(digits)?),
        Some(Found::Text(text)) => Scalar::Text(owned(&text)?),
        _ => return Err(bad("a value to compare with is a scalar")),
    })
}

fn parse_glob(json: &[u8]) -> Result<String, Error> {
    let pattern = text_of(Some(json), "the value of \"Glob\"")?;
    let prefix = pattern.strip_suffix('*').map(str::to_owned);
    prefix.ok_or_else(|| bad("the value of \"Glob\" ends in *"))
}

/// Which tags a delete means (contract section 12): a part of the filter language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagMatch {
    Eq(String),
    /// Tags that start with this.
    Glob(String),
}

impl TagMatch {
    fn of_short(text: String) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => TagMatch::Glob(prefix.to_owned()),
            None => TagMatch::Eq(text),
        }
    }

    /// Reads `["tag","Eq",x]`, `["tag","Glob","x*"]` or one of their short forms from valid JSON. Errors:
    /// `invalid_request` (C-DEL-04).
    pub fn parse(json: &str) -> Result<TagMatch, Error> {
        match Filter::parse(json) {
            Ok(Filter::Leaf(Field::Tag, Op::Eq(Scalar::Text(tag)))) => Ok(TagMatch::Eq(tag)),
            Ok(Filter::Leaf(Field::Tag, Op::Glob(prefix))) => Ok(TagMatch::Glob(prefix)),
            _ => Err(Error::invalid(
                "`match` is [\"tag\",\"Eq\",x], [\"tag\",\"Glob\",\"x*\"], or short for one",
            )),
        }
    }

    pub fn matches(&self, tag: &str) -> bool {
        match self {
            TagMatch::Eq(wanted) => tag == wanted,
            TagMatch::Glob(prefix) => tag.starts_with(prefix.as_str()),
        }
    }
}

/// The canonical form: tuples only, without white space.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, filters: &[Filter]| {
            write!(f, "[\"{name}\",[")?;
            separated(f, filters)?;
            f.write_str("]]")
        };
        match self {
            Filter::And(filters) => list(f, "And", filters),
            Filter::Or(filters) => list(f, "Or", filters),
            Filter::Not(filter) => write!(f, "[\"Not\",{filter}]"),
            Filter::Leaf(field, op) => write!(f, "[{field},{op}]"),
        }
    }
}

fn separated<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(",")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Tag => f.write_str("\"tag\""),
            Field::Node => f.write_str("\"node\""),
            Field::Key => f.write_str("\"key\""),
            Field::Channel => f.write_str("\"channel\""),
            Field::Meta(key) => quoted(f, &format!("meta.{key}")),
            Field::Data(path) => quoted(f, &format!("data.{}", path.text)),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Eq(scalar) => write!(f, "\"Eq\",{scalar}"),
            Op::NotEq(scalar) => write!(f, "\"NotEq\",{scalar}"),
            Op::Glob(prefix) => {
                f.write_str("\"Glob\",")?;
                quoted(f, &format!("{prefix}*"))
            }
            Op::In(scalars) => {
                f.write_str("\"In\",[")?;
                separated(f, scalars)?;
                f.write_str("]")
            }
            Op::Exists(wanted) => write!(f, "\"Exists\",{wanted}"),
            Op::Order(order, bound) => write!(f, "\"{order:?}\",{bound}"),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Null => f.write_str("null"),
            Scalar::Bool(value) => write!(f, "{value}"),
            Scalar::Number(digits) => f.write_str(digits),
            Scalar::Text(text) => quoted(f, text),
        }
    }
}
