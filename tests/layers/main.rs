//! The map of rooms holds: a room imports only rooms of lower layers, one consensus library is known in
//! one room only, and no file outgrows one sitting.
//!
//! The compiler cannot check this: within one crate every module may use every other. Splitting the
//! crate would let it, at the price of a dozen manifests, public interfaces where private ones do, and
//! longer builds; reading the files' words is enough. Comments and strings do not count.

mod words;

use std::fs;
use std::path::{Path, PathBuf};

use words::{Word, words};

/// The layers of the design, lowest first.
const LAYERS: [&[&str]; 9] = [
    &[
        "error",
        "budget",
        "codec",
        "digest",
        "limits",
        "clock",
        "record",
        "config",
        "task",
        "telemetry",
        "filter",
    ],
    &["storage"],
    &["state"],
    &["raft"],
    &["engine"],
    &["router"],
    &["auth"],
    &["api"],
    &["server", "cli", "main", "fuzzing"],
];
/// Rooms of these layers may import each other: values that build on values, and the process, whose
/// `main` starts `cli`, which starts `server`.
const OPEN_LAYERS: [usize; 2] = [0, 8];
/// A longer file is not read in one sitting.
const MAX_LINES: usize = 600;

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// The module path of a file under `src`: `storage/log.rs` is `["storage", "log"]`.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if path.len() > 1 && path.last().is_some_and(|name| name == "mod") {
        path.pop();
    }
    path
}

/// What is wrong with the words of `file` (its path under `src`), one line each.
fn complaints(file: &str, source: &str) -> Vec<String> {
    let path = module_path(file);
    let mut found = Vec::new();
    let words = words(source);
    let mentions = words.iter().filter(|word| word.text == "openraft" && path[0] != "raft");
    found
        .extend(mentions.map(|word| format!("src/{file}:{}: openraft is known in src/raft only", word.line)));
    if file == "lib.rs" {
        // It only names the rooms; each must have its place.
        let unplaced = declared(&words).filter(|word| layer(&word.text).is_none());
        found.extend(
            unplaced.map(|word| format!("src/lib.rs:{}: room {} is in no layer", word.line, word.text)),
        );
        return found;
    }
    let room = path[0].as_str();
    let Some(own) = layer(room) else {
        found.push(format!("src/{file}: room {room} is in no layer"));
        return found;
    };
    for target in imports(&path, &words) {
        let complaint = match layer(&target.text) {
            _ if target.text == room => continue,
            Some(layer) if layer < own || (layer == own && OPEN_LAYERS.contains(&own)) => continue,
            Some(layer) if layer == own => "of its own layer",
            Some(_) => "of a higher layer",
            None => "that is in no layer",
        };
        found.push(format!("src/{file}:{}: {room} imports {}, a room {complaint}", target.line, target.text));
    }
    found
}

/// The rooms that a file declares: `mod x;`.
fn declared(words: &[Word]) -> impl Iterator<Item = &Word> {
    words.windows(3).filter(|three| three[0].text == "mod" && three[2].text == ";").map(|three| &three[1])
}

/// The rooms that the words of the module at `path` name, by any spelling of the way there.
fn imports(path: &[String], words: &[Word]) -> Vec<Word> {
    let text = |at: usize| words.get(at).map_or("", |word| word.text.as_str());
    let mut found = Vec::new();
    // Modules written inside of the file, by the depth of braces at which they end.
    let mut inline_ends: Vec<usize> = Vec::new();
    let mut depth = 0;
    for at in 0..words.len() {
        let starts_path = at == 0 || text(at - 1) != "::";
        match text(at) {
            "{" => {
                if at >= 2 && text(at - 2) == "mod" {
                    inline_ends.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if inline_ends.last() == Some(&depth) {
                    inline_ends.pop();
                }
            }
            "crate" if path[0] != "main" && text(at + 1) == "::" => found.extend(first_names(words, at + 2)),
            "antiphon" if starts_path && text(at + 1) == "::" => found.extend(first_names(words, at + 2)),
            "super" if starts_path => {
                let ups = (0..)
                    .take_while(|up| text(at + 2 * up) == "super" && text(at + 2 * up + 1) == "::")
                    .count();
                if ups >= path.len() + inline_ends.len() {
                    found.extend(first_names(words, at + 2 * ups));
                }
            }
            _ => {}
        }
    }
    found
}

/// The first name of each path at `at`: one name, or those of a group in braces.
fn first_names(words: &[Word], at: usize) -> Vec<Word> {
    let Some(first) = words.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![first.clone()];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    for pair in words[at..].windows(2) {
        match pair[0].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (pair[0].text == "{" || pair[0].text == ",") && pair[1].text != "}" {
            names.push(pair[1].clone());
        }
    }
    names
}

/// Every `.rs` file below `dir`, sorted.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return files };
    for entry in entries {
        let path = entry.expect("list a directory").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn rooms_import_downward_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&src);
    assert!(files.len() > 10, "only {} files were found", files.len());
    let found: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let file = path.strip_prefix(&src).expect("is below src").to_str().expect("is UTF-8");
            complaints(file, &fs::read_to_string(path).expect("read a source file"))
        })
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_file_outgrows_one_sitting() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let long: Vec<String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|dir| sources(&root.join(dir)))
        .filter_map(|path| {
            let lines = fs::read_to_string(&path).expect("read a source file").lines().count();
            (lines > MAX_LINES).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "above {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn an_upward_import_is_found_however_it_is_spelled() {
    for source in [
        "use crate::engine::Engine;",
        "fn f() { crate::engine::go() }",
        "use crate::{codec::Reader, engine::{Engine, Handle}};",
        "pub(crate) use super::super::engine;",
        "use super::super::{codec, engine};",
        "mod tests { use super::super::super::engine; }",
        "use antiphon::engine;",
        "const S: &str = r#\"a \" quote\"#; use crate::engine;",
        "const C: char = '\"'; use crate::engine;",
        "/* a /* nested */ comment */ use crate::engine;",
    ] {
        let found = complaints("storage/log.rs", source);
        assert_eq!(
            found,
            ["src/storage/log.rs:1: storage imports engine, a room of a higher layer"],
            "{source}"
        );
    }
    assert_eq!(
        complaints("auth.rs", "\nuse crate::api::Keys;"),
        ["src/auth.rs:2: auth imports api, a room of a higher layer"]
    );
    assert_eq!(complaints("auth.rs", "use super::api;").len(), 1, "the way up from a file at the top");
    assert_eq!(complaints("gadget/mod.rs", ""), ["src/gadget/mod.rs: room gadget is in no layer"]);
    assert_eq!(complaints("lib.rs", "pub mod gadget;"), ["src/lib.rs:1: room gadget is in no layer"]);
    assert_eq!(complaints("api/mod.rs", "crate::gadget::go()").len(), 1, "a room that does not exist");
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    for (file, source) in [
        (
            "storage/log.rs",
            "use crate::codec::Reader; use super::segment; mod tests { use super::super::segment; }",
        ),
        ("storage/log.rs", "// use crate::engine\nconst S: &str = \"crate::engine openraft\";"),
        ("storage/log.rs", "use crate::storage::disk; fn f<'a>(x: &'a str) -> char { 'x' }"),
        ("record.rs", "use crate::limits::MAX; use super::codec;"),
        ("raft/types.rs", "use openraft::Raft;"),
        ("server.rs", "use crate::{api, engine, raft};"),
        ("main.rs", "fn main() { antiphon::cli::run() }"),
    ] {
        assert_eq!(complaints(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}

#[test]
fn openraft_is_known_in_one_room() {
    let found = complaints("engine/append.rs", "//! Over openraft.\nuse openraft::Raft;");
    assert_eq!(found, ["src/engine/append.rs:2: openraft is known in src/raft only"]);
}
