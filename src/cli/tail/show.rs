//! What is printed of a page.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::options::Options;
use super::page::Page;
use super::utc::rfc3339;

/// Seqs are padded to this width, so that the columns behind them do not move as a topic grows.
const SEQ_WIDTH: usize = 8;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn is_empty(&self) -> bool {
        self.stdout.is_empty() && self.stderr.is_empty()
    }
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(rename = "$seq")]
    seq: u64,
    #[serde(rename = "$ts")]
    ts_ms: u64,
    #[serde(rename = "$node", borrow, default)]
    node: Option<Cow<'a, str>>,
    #[serde(rename = "$tag", borrow, default)]
    tag: Option<Cow<'a, str>>,
    #[serde(rename = "$key", borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(rename = "$channel", borrow, default)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Tombstone<'a> {
    gap_from: u64,
    gap_to: u64,
    #[serde(borrow)]
    reason: Cow<'a, str>,
}

/// The lines of `page`: its gap lies before its records.
pub fn page_output(page: &Page<'_>, options: &Options) -> Result<Output, String> {
    let mut output = Output::default();
    if let Some(tombstone) = page.tombstone {
        match options.is_json {
            true => output.stdout = format!("{{\"tombstone\":{}}}\n", tombstone.get()),
            false => output.stderr = tombstone_line(tombstone, &options.topic)?,
        }
    }
    for record in &page.records {
        match options.is_json {
            true => output.stdout.push_str(record.get()),
            false => push_record(&mut output.stdout, record)?,
        }
        output.stdout.push('\n');
    }
    Ok(output)
}

/// Prints it; the gap first, as it lies before the records.
pub fn write(output: &Output) -> io::Result<()> {
    // Whoever does not look at stderr still reads the records.
    let _ = io::stderr().write_all(output.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    stdout.write_all(output.stdout.as_bytes())?;
    stdout.flush()
}

fn push_record(line: &mut String, record: &RawValue) -> Result<(), String> {
    let record: Record<'_> =
        serde_json::from_str(record.get()).map_err(|error| format!("a record that is none: {error}"))?;
    // Writing to a string does not fail.
    let _ = write!(line, "{:>SEQ_WIDTH$}  {}  ", record.seq, rfc3339(record.ts_ms));
    let fields =
        [("node", record.node), ("tag", record.tag), ("key", record.key), ("channel", record.channel)];
    for (name, value) in fields {
        let Some(value) = value else { continue };
        let _ = write!(line, "{name}={}  ", without_controls(&value));
    }
    line.push_str(&without_controls(record.data.get()));
    Ok(())
}

fn tombstone_line(tombstone: &RawValue, topic: &str) -> Result<String, String> {
    let Tombstone { gap_from, gap_to, reason } = serde_json::from_str(tombstone.get())
        .map_err(|error| format!("a tombstone that is none: {error}"))?;
    let reason = without_controls(&reason);
    Ok(match &*reason {
        "recreated" => format!("antiphon: {topic} was deleted and made anew; it is read from its start\n"),
        _ => format!("antiphon: seqs {gap_from} to {gap_to} of {topic} are gone: {reason}\n"),
    })
}

/// Text that moves no cursor and changes no colour: whoever may append must not rule the terminals of those
/// who read. In JSON the escapes mean the same.
fn without_controls(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character.is_control() {
            true => _ = write!(safe, "\\u{:04x}", u32::from(character)),
            false => safe.push(character),
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::super::options::command;
    use super::*;

    fn output(page: &str, arguments: &[&str]) -> Output {
        let all = ["tail", "orders"].iter().chain(arguments);
        let options = Options::new(&command().get_matches_from(all)).expect("options");
        page_output(&Page::parse(page.as_bytes()).expect("a page"), &options).expect("lines")
    }

    const PAGE: &str = concat!(
        r#"{"epoch":4,"records":[{"$seq":9,"$ts":1790000001200,"data":null},"#,
        r#"{"$seq":12345678901,"$ts":1790000001200,"$node":"a\u001bb","$tag":"t","data":"x"#,
        "\u{9b}",
        r#"y","meta":{"m":1}}],"next_from_seq":12345678901,"head_seq":12345678901,"earliest_seq":9,"#,
        r#""caught_up":true,"tombstone":{"gap_from":5,"gap_to":8,"reason":"cap"},"lag":0}"#
    );

    #[test]
    fn people_get_columns_without_control_characters() {
        let output = output(PAGE, &[]);
        assert_eq!(output.stderr, "antiphon: seqs 5 to 8 of orders are gone: cap\n");
        assert_eq!(
            output.stdout,
            concat!(
                "       9  2026-09-21T14:13:21.200Z  null\n",
                "12345678901  2026-09-21T14:13:21.200Z  node=a\\u001bb  tag=t  \"x\\u009by\"\n"
            )
        );
    }

    #[test]
    fn programs_get_records_as_they_are() {
        let output = output(PAGE, &["--json"]);
        assert_eq!(output.stderr, "");
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[0], r#"{"tombstone":{"gap_from":5,"gap_to":8,"reason":"cap"}}"#);
        assert_eq!(lines[1], r#"{"$seq":9,"$ts":1790000001200,"data":null}"#);
        assert!(lines.len() == 3 && lines[2].contains("x\u{9b}y") && lines[2].contains("meta"));
    }

    #[test]
    fn a_topic_made_anew_is_told() {
        let page = r#"{"records":[],"next_from_seq":0,"head_seq":0,"caught_up":true,
            "tombstone":{"gap_from":1,"gap_to":0,"reason":"recreated"}}"#;
        assert!(output(page, &[]).stderr.contains("made anew"));
    }
}
