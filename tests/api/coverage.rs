//! `COVERAGE.md` is true: every rule of the contract has its test, or the step that brings one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Steps that a rule may be left to.
const STEPS: [&str; 12] = ["1", "3", "4", "5", "6", "7", "8", "9", "10", "11", "13", "14"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The ids that the contract has. It lies outside of this repository.
fn contract_ids() -> BTreeSet<String> {
    let areas = include_str!("contract_ids.txt").lines().filter(|line| !line.starts_with('#'));
    areas
        .flat_map(|line| {
            let (area, count) = line.split_once(' ').expect("area and count");
            let count: u32 = count.parse().expect("a count");
            (1..=count).map(move |number| format!("C-{area}-{number:02}"))
        })
        .collect()
}

/// Rule and where it is checked, for each row of the table.
fn rows() -> Vec<(String, String)> {
    let table = include_str!("COVERAGE.md").lines().filter(|line| line.starts_with("| C-"));
    table
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells[1].to_owned(), cells[2].to_owned())
        })
        .collect()
}

/// What is wrong with the places where `rule` is said to be checked.
fn complaint(rule: &str, places: &str) -> Option<String> {
    if let Some(step) = places.strip_prefix("step ") {
        return (!STEPS.contains(&step)).then(|| format!("there is no step {step}"));
    }
    places.split(", ").find_map(|place| complaint_of_test(rule, place))
}

/// The lines of the function that begins at `at`, with the comments and attributes before it.
fn function<'a>(lines: &'a [&'a str], at: usize) -> &'a [&'a str] {
    let indent = lines[at].len() - lines[at].trim_start().len();
    let is_before = |line: &&&str| ["#[", "//"].iter().any(|begin| line.trim_start().starts_with(begin));
    let before = lines[..at].iter().rev().take_while(is_before).count();
    let is_end = |line: &&str| line.trim_end() == format!("{:indent$}}}", "");
    let after = lines[at..].iter().position(is_end).unwrap_or(0);
    &lines[at - before..=at + after]
}

fn complaint_of_test(rule: &str, place: &str) -> Option<String> {
    let Some((file, test)) = place.trim_matches('`').split_once(": ") else {
        return Some("is neither a test nor a step".to_owned());
    };
    let Ok(source) = fs::read_to_string(root().join(file)) else {
        return Some(format!("there is no {file}"));
    };
    let lines: Vec<&str> = source.lines().collect();
    // The oracles of the simulator are asked by a program of its own.
    let is_oracle = file.starts_with("tests/sim/");
    let is_test = |at: &usize| {
        let name = lines[*at].trim_start().trim_start_matches("pub ").trim_start_matches("async ");
        let name = name.strip_prefix("fn ").and_then(|name| name.strip_prefix(test));
        // An attribute may stand between the two.
        let mut before = lines[at.saturating_sub(4)..*at].iter().map(|line| line.trim());
        name.is_some_and(|rest| rest.starts_with('('))
            && (is_oracle || before.any(|line| line == "#[test]" || line.starts_with("#[tokio::test")))
    };
    let Some(at) = (0..lines.len()).find(is_test) else {
        return Some(format!("{file} has no test {test}"));
    };
    // Who changes a test sees which rules it is there for.
    let names_it = function(&lines, at).iter().any(|line| line.contains(rule));
    (!names_it).then(|| format!("{file}: {test} does not name the rule"))
}

#[test]
fn every_rule_has_a_test_or_a_step() {
    let rows = rows();
    let by_rule: BTreeMap<&str, &str> =
        rows.iter().map(|(rule, place)| (rule.as_str(), place.as_str())).collect();
    assert_eq!(by_rule.len(), rows.len(), "a rule has two rows");
    let ids = contract_ids();
    assert!(ids.len() > 300, "the list of ids is cut");
    let without: Vec<&String> = ids.iter().filter(|id| !by_rule.contains_key(id.as_str())).collect();
    assert!(without.is_empty(), "rules without a row: {without:?}");
    let unknown: Vec<&&str> = by_rule.keys().filter(|rule| !ids.contains(**rule)).collect();
    assert!(unknown.is_empty(), "rows of no rule: {unknown:?}");
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|(rule, place)| complaint(rule, place).map(|complaint| format!("{rule}: {complaint}")))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// C-ERR-01 is named here so that a row can be right.
#[test]
fn a_wrong_row_is_noticed() {
    for wrong in [
        "",
        "step 2",
        "step 4, step 5",
        "`tests/api/none.rs: x`",
        "`tests/api/coverage.rs: no_such_test`",
        "`tests/api/coverage.rs: complaint`",
        "`tests/api/coverage.rs: a_wrong_row`",
    ] {
        assert!(complaint("C-ERR-01", wrong).is_some(), "{wrong}");
    }
    let right = "`tests/api/coverage.rs: a_wrong_row_is_noticed`";
    assert_eq!(complaint("C-ERR-01", right), None);
    assert_eq!(complaint("C-ERR-01", &format!("{right}, {right}")), None);
    assert!(complaint("C-ERR-01", &format!("{right}, `tests/api/none.rs: x`")).is_some());
    let silent = "`tests/api/coverage.rs: no_file_names_a_rule_that_the_contract_does_not_have`";
    assert!(complaint("C-ERR-01", silent).is_some_and(|it| it.contains("does not name")));
}

/// Ids in the words of a file: `C-`, an area, `-`, a number of two digits.
fn mentioned(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("C-") {
        let rest = &text[at + 2..];
        let area: String = rest.chars().take_while(char::is_ascii_uppercase).collect();
        let Some(number) = rest[area.len()..].strip_prefix('-') else { continue };
        let number: String = number.chars().take_while(char::is_ascii_digit).collect();
        if !area.is_empty() && number.len() == 2 {
            found.insert(format!("C-{area}-{number}"));
        }
    }
    found
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("list a directory").flatten() {
        match entry.path() {
            path if path.is_dir() => sources(&path, found),
            path if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn no_file_names_a_rule_that_the_contract_does_not_have() {
    let ids = contract_ids();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("read a source");
        wrong.extend(mentioned(&text).difference(&ids).map(|id| format!("{}: {id}", file.display())));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
