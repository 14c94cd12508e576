//! What section 14 of the contract says of filters.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::MAX_FILTER_STEPS;

fn parse(json: &str) -> Filter {
    Filter::parse(json).unwrap_or_else(|error| panic!("{json}: {error:?}"))
}

fn example() -> Record<'static> {
    Record {
        node: Some("edge-7"),
        tag: Some("m:1001"),
        key: None,
        channel: Some("c"),
        meta: Some(r#"{"fw":"2.1","a.b":1,"n":null}"#),
        data: r#"{"kwh":1.250,"id":9007199254740993,"list":[{"x":"y"},2,null],"0":"zero","a/b":{"~":true},"s":"10"}"#,
    }
}

#[test]
fn every_operator_answers_as_the_table_says() {
    // C-FILT-03, C-FILT-06 and the tables of section 14
    for (filter, expected) in [
        (r#""m:1001""#, true),
        (r#""m:10*""#, true),
        (r#""m:2*""#, false),
        (r#""*""#, true),
        (r#"["tag","Eq","m:1001"]"#, true),
        (r#"["tag","Glob","m:10*"]"#, true),
        (r#"["node","NotEq","edge-7"]"#, false),
        (r#"["key","Exists",false]"#, true),
        (r#"["key","NotEq","x"]"#, true),
        (r#"["key","Eq",null]"#, false),
        (r#"["channel","In",["a","c"]]"#, true),
        (r#"["channel","In",["a",1,null]]"#, false),
        (r#"["meta.fw","Eq","2.1"]"#, true),
        (r#"["meta.fw","Eq",2.1]"#, false),
        (r#"["meta.a.b","Eq",1.0]"#, true),
        (r#"["meta.n","Exists",true]"#, true),
        (r#"["meta.n","Eq",null]"#, true),
        (r#"["meta.none","Exists",true]"#, false),
        (r#"["data.kwh","Eq",1.25]"#, true),
        (r#"["data.kwh","Eq",125e-2]"#, true),
        (r#"["data.id","Eq",9007199254740993]"#, true),
        (r#"["data.id","Eq",9007199254740992]"#, false),
        (r#"["data.id","Gt",9007199254740992.5]"#, true),
        (r#"["data.id","Lt",1e400]"#, true),
        (r#"["data.list.0.x","Eq","y"]"#, true),
        (r#"["data./list/0/x","Eq","y"]"#, true),
        (r#"["data./list/1","Gte",2]"#, true),
        (r#"["data.list.01","Exists",true]"#, false),
        (r#"["data.list.3","Exists",true]"#, false),
        (r#"["data.list.2","Eq",null]"#, true),
        (r#"["data.list","Exists",true]"#, true),
        (r#"["data.list","Eq","x"]"#, false),
        (r#"["data.list.x","Exists",true]"#, false),
        (r#"["data.0","Eq","zero"]"#, true),
        (r#"["data./a~1b/~0","Eq",true]"#, true),
        (r#"["data.s","Lt",9]"#, false),
        (r#"["data.s","Gte",9]"#, false),
        (r#"["data.s","Lt","9"]"#, true),
        (r#"["data.s.x","Exists",false]"#, true),
        (r#"["And",["m:1*",["data.kwh","Lt",2]]]"#, true),
        (r#"["Or",["x",["Not","m:1*"]]]"#, false),
        (r#"["Not",["Or",["x","y"]]]"#, true),
    ] {
        assert_eq!(parse(filter).matches(&example()), expected, "{filter}");
    }
}

#[test]
fn of_members_of_one_name_the_last_one_counts_on_every_step_of_a_path() {
    for (data, expected) in [
        (r#"{"a":{"b":1},"a":{"b":2}}"#, true),
        (r#"{"a":{"b":2},"a":{"b":1}}"#, false),
        (r#"{"a":{"b":2},"a":5}"#, false),
        (r#"{"a":5,"\u0061":[{"b":0},7],"a":{"b":1,"b":2},"c":{"a":{"b":3}}}"#, true),
        (r#"{"a":{"c":{"b":2}},"b":2}"#, false),
    ] {
        let record = Record { data, ..Record::default() };
        assert_eq!(parse(r#"["data.a.b","Eq",2]"#).matches(&record), expected, "{data}");
    }
}

/// C-FILT-07: as many steps as there may be into a record that is nothing but depth.
#[test]
fn the_longest_path_walks_over_a_deep_record_once() {
    let depth = 170_000;
    let data = [vec![r#"{"a":"#; depth].concat(), "1".into(), "}".repeat(depth)].concat();
    let record = Record { data: &data, ..Record::default() };
    let path = vec!["a"; MAX_FILTER_STEPS].join(".");
    assert!(parse(&format!(r#"["data.{path}","Exists",true]"#)).matches(&record));
    assert!(!parse(&format!(r#"["data.{path}","Eq",1]"#)).matches(&record));
    assert_eq!(parse(&format!(r#"["data.{path}","Exists",true]"#)).walks(), 2);
}

#[test]
fn what_is_malformed_or_too_much_is_refused() {
    // C-FILT-01, C-FILT-06, C-FILT-07
    for bad in [
        "1",
        "null",
        "{}",
        "[]",
        "[\"tag\"]",
        r#"["tag","Eq"]"#,
        r#"["tag","Eq","x","y"]"#,
        r#"["tag","eq","x"]"#,
        r#"["Tag","Eq","x"]"#,
        r#"["tag","Eq",[]]"#,
        r#"["tag","Eq",{}]"#,
        r#"["tag","Glob","x"]"#,
        r#"["tag","Glob",1]"#,
        r#"["tag","In",[]]"#,
        r#"["tag","In","x"]"#,
        r#"["tag","In",[[]]]"#,
        r#"["tag","Exists",1]"#,
        r#"["tag","Lt",null]"#,
        r#"["tag","Lt",true]"#,
        r#"["And",[]]"#,
        r#"["Or",[]]"#,
        r#"["And","x"]"#,
        r#"["And",["x"],["y"]]"#,
        r#"["Not",["x"]]"#,
        r#"["and",["x"]]"#,
        r#"["data","Eq",1]"#,
        r#"["data.","Eq",1]"#,
        r#"["data.a..b","Eq",1]"#,
        &format!(r#"["data.{}","Eq",1]"#, vec!["a"; MAX_FILTER_STEPS + 1].join(".")),
        &format!(r#"["data./{}","Eq",1]"#, vec!["a"; MAX_FILTER_STEPS + 1].join("/")),
        r#"["data./a~2","Eq",1]"#,
        r#"["meta","Eq",1]"#,
        r#"["seq","Gt",1]"#,
        r#"["tag",1,"x"]"#,
        r#"[1,"Eq","x"]"#,
        r#"["tag","Eq","\ud800"]"#,
    ] {
        assert!(Filter::parse(bad).is_err(), "{bad}");
    }
    let nested = |depth: usize| "[\"Not\",".repeat(depth - 1) + "\"x\"" + &"]".repeat(depth - 1);
    assert!(Filter::parse(&nested(8)).is_ok() && Filter::parse(&nested(9)).is_err());
    assert!(Filter::parse(&nested(5000)).is_err());
    let leaves = |count: usize| format!("[\"Or\",[{}]]", vec!["\"x\""; count].join(","));
    assert!(Filter::parse(&leaves(64)).is_ok() && Filter::parse(&leaves(65)).is_err());
    let values = |count: usize| format!("[\"tag\",\"In\",[{}]]", vec!["1"; count].join(","));
    assert!(Filter::parse(&values(64)).is_ok() && Filter::parse(&values(65)).is_err());
    assert!(Filter::parse(&format!("\"{}\"", "x".repeat(70_000))).is_err());
}

#[test]
fn the_canonical_form_is_tuples_without_white_space() {
    // C-FILT-02
    for (filter, canonical) in [
        (r#""x""#, r#"["tag","Eq","x"]"#),
        (r#" "x*" "#, r#"["tag","Glob","x*"]"#),
        (
            r#"[ "And" , [ "a" , ["Not", "b*"] ] ]"#,
            r#"["And",[["tag","Eq","a"],["Not",["tag","Glob","b*"]]]]"#,
        ),
        (
            r#"["data./a~1b","In",[1.50,"\u00e9\"",null,true]]"#,
            r#"["data./a~1b","In",[1.50,"é\"",null,true]]"#,
        ),
        (r#"["meta.k","Gte",1e400]"#, r#"["meta.k","Gte",1e400]"#),
    ] {
        assert_eq!(parse(filter).to_string(), canonical);
        assert_eq!(parse(canonical), parse(filter));
    }
}

#[test]
fn a_tag_match_is_the_small_part_that_deletes_know() {
    // C-DEL-04
    for (json, matching, other) in [
        (r#""m:1*""#, "m:1", "m:2"),
        (r#"["tag","Glob","a*b*"]"#, "a*bc", "axb"),
        (r#"["tag","Eq","a*"]"#, "a*", "ab"),
        (r#""m""#, "m", "m:"),
    ] {
        let tag_match = TagMatch::parse(json).unwrap();
        assert!(tag_match.matches(matching) && !tag_match.matches(other), "{json}");
    }
    for bad in [
        r#"["tag","In",["x"]]"#,
        r#"["node","Eq","x"]"#,
        r#"["tag","Eq",1]"#,
        r#"["Not","x"]"#,
        "1",
        "[]",
        r#"["tag","Glob","x"]"#,
        r#"["And",["x"]]"#,
        r#"["tag","NotEq","x"]"#,
    ] {
        assert!(TagMatch::parse(bad).is_err(), "{bad}");
    }
}

/// What a filter means, over a tree of values, with no thought for speed.
fn naive(filter: &Value, record: &Value) -> bool {
    let tuple = filter.as_array().expect("canonical");
    let name = tuple[0].as_str().expect("a name");
    let mut inner = tuple[1].as_array().into_iter().flatten();
    match name {
        "And" => return inner.all(|filter| naive(filter, record)),
        "Or" => return inner.any(|filter| naive(filter, record)),
        "Not" => return !naive(&tuple[1], record),
        _ => {}
    }
    let found = match name.split_once('.') {
        None => record.get(name),
        Some(("meta", key)) => record.get("meta").and_then(|meta| meta.get(key)),
        Some((_, path)) if path.starts_with('/') => record["data"].pointer(path),
        Some((_, path)) => path.split('.').try_fold(&record["data"], |value, step| match value {
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => value.get(step),
        }),
    };
    let eq = |value: &Value| match (found, value) {
        (Some(Value::Number(one)), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Some(found), value) => found == value,
        _ => false,
    };
    let order = |value: &Value| match (found?, value) {
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        (Value::String(one), Value::String(other)) => Some(one.as_bytes().cmp(other.as_bytes())),
        _ => None,
    };
    let value = &tuple[2];
    match tuple[1].as_str().expect("an operator") {
        "Eq" => eq(value),
        "NotEq" => !eq(value),
        "In" => value.as_array().expect("a list").iter().any(eq),
        "Exists" => found.is_some() == value.as_bool().expect("a bool"),
        "Glob" => {
            let prefix = value.as_str().expect("a pattern").strip_suffix('*').expect("a star");
            found.and_then(Value::as_str).is_some_and(|text| text.starts_with(prefix))
        }
        "Lt" => order(value).is_some_and(Ordering::is_lt),
        "Lte" => order(value).is_some_and(Ordering::is_le),
        "Gt" => order(value).is_some_and(Ordering::is_gt),
        "Gte" => order(value).is_some_and(Ordering::is_ge),
        other => panic!("{other}"),
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5i64..5).prop_map(Value::from),
        (-20i32..20).prop_map(|number| Value::from(f64::from(number) / 4.0)),
        "[ab\"\\\\é]{0,3}".prop_map(Value::from),
    ]
}

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[ab01/~]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn leaf() -> impl Strategy<Value = Value> {
    let step = "[ab]{1,2}|[0-2]";
    let field = prop_oneof![
        prop_oneof![Just("tag"), Just("node"), Just("key"), Just("channel")].prop_map(str::to_owned),
        "[ab.]{0,2}".prop_map(|key| format!("meta.{key}")),
        proptest::collection::vec(step, 1..4).prop_map(|steps| format!("data.{}", steps.join("."))),
        proptest::collection::vec("[ab]{1,2}|[0-2]|~0|~1", 1..4)
            .prop_map(|steps| format!("data./{}", steps.join("/"))),
    ];
    let bound = scalar().prop_filter("ordered", |it| it.is_number() || it.is_string());
    let order = prop_oneof![Just("Lt"), Just("Lte"), Just("Gt"), Just("Gte")];
    let rest = prop_oneof![
        scalar().prop_map(|value| ("Eq", value)),
        scalar().prop_map(|value| ("NotEq", value)),
        "[ab]{0,2}\\*".prop_map(|pattern| ("Glob", Value::from(pattern))),
        proptest::collection::vec(scalar(), 1..4).prop_map(|values| ("In", Value::from(values))),
        any::<bool>().prop_map(|wanted| ("Exists", Value::from(wanted))),
        (order, bound),
    ];
    (field, rest).prop_map(|(field, (op, value))| json!([field, op, value]))
}

fn filter() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|filters| json!(["And", filters])),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|filters| json!(["Or", filters])),
            inner.prop_map(|filter| json!(["Not", filter])),
        ]
    })
}

#[test]
fn nothing_longer_than_what_this_writes_is_taken_apart() {
    // C-FILT-01, C-LIMIT-16: also of other members and clusters.
    let many = |count: usize| format!("[\"tag\",\"In\",[{}]]", vec!["1"; count].join(","));
    let refused = |json: &str| Filter::parse_canonical(json).unwrap_err().message;
    assert!(Filter::parse_canonical(&many(64)).is_ok());
    assert!(refused(&many(65)).contains("1 to 64 scalars"));
    // The last one is no scalar, and nobody comes to it.
    assert!(refused(&many(30_000).replace("1]]", "{}]]")).contains("1 to 64 scalars"));
    assert!(refused(&many(100_000)).contains("bytes"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_answers_as_a_naive_one_over_values(
        filter in filter(), data in tree(),
        meta in proptest::option::of(proptest::collection::btree_map("[ab.]{0,2}", tree(), 0..4)),
        headers in proptest::collection::vec(proptest::option::of("[ab]{0,3}"), 4),
    ) {
        let [tag, node, key, channel] = [0, 1, 2, 3].map(|at: usize| headers[at].as_deref());
        let mut record = json!({ "data": data });
        for (name, header) in [("tag", tag), ("node", node), ("key", key), ("channel", channel)] {
            if let Some(header) = header { record[name] = header.into(); }
        }
        let meta = meta.map(|meta| Value::Object(meta.into_iter().collect()));
        if let Some(meta) = &meta { record["meta"] = meta.clone(); }
        let (data, meta) = (data.to_string(), meta.map(|meta| meta.to_string()));
        let stored = Record { node, tag, key, channel, meta: meta.as_deref(), data: &data };
        let parsed = parse(&filter.to_string());
        let expected = naive(&filter, &record);
        prop_assert_eq!(parsed.matches(&stored), expected, "{} on {}", filter, record);
        // C-FILT-05
        prop_assert_eq!(Filter::Not(Box::new(parsed.clone())).matches(&stored), !expected);
        // C-FILT-02
        prop_assert_eq!(parse(&parsed.to_string()), parsed);
    }

    #[test]
    fn parsing_never_panics(text: String, picks in proptest::collection::vec(0usize..10, 0..30)) {
        let pieces = ["[", "]", "\"tag\"", "\"Eq\"", ",", "\"And\"", "\"data.a\"", "1", "null", "\"x*\""];
        let jsonish: String = picks.into_iter().map(|pick| pieces[pick]).collect();
        let _ = (Filter::parse(&text), Filter::parse(&jsonish));
    }
}
