//! Rust source as words: names and marks, without comments, strings and white space.

/// A name, a `::`, or a single mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    /// From 1.
    pub line: usize,
}

/// The words of `source`, in order.
pub fn words(source: &str) -> Vec<Word> {
    let chars: Vec<char> = source.chars().collect();
    let mut words = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < chars.len() {
        let end = skip_silent(&chars, at);
        if end == at {
            let end = word_end(&chars, at);
            words.push(Word { text: chars[at..end].iter().collect(), line });
            at = end;
        } else {
            line += chars[at..end].iter().filter(|c| **c == '\n').count();
            at = end;
        }
    }
    words
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_end(chars: &[char], at: usize) -> usize {
    let name = chars[at..].iter().take_while(|c| is_name(**c)).count();
    match name {
        0 if chars[at..].starts_with(&[':', ':']) => at + 2,
        0 => at + 1,
        name => at + name,
    }
}

/// Where the white space, comment, string or character at `at` ends; `at` if there is none.
fn skip_silent(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let until = |ends: &[char], from: usize| {
        rest.get(from..)
            .and_then(|rest| rest.windows(ends.len()).position(|window| window == ends))
            .map_or(chars.len(), |found| at + from + found + ends.len())
    };
    match rest {
        [c, ..] if c.is_whitespace() => at + 1,
        ['/', '/', ..] => until(&['\n'], 2),
        ['/', '*', ..] => block_comment_end(chars, at),
        ['"', ..] => quoted_end(chars, at, '"'),
        ['b' | 'c', '"', ..] => quoted_end(chars, at + 1, '"'),
        ['b', '\'', ..] => quoted_end(chars, at + 1, '\''),
        // A lifetime is a quote and a name without a quote behind it.
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted_end(chars, at, '\''),
        ['r', '"' | '#', ..] | ['b' | 'c', 'r', '"' | '#', ..] => {
            let start = if rest[0] == 'r' { 1 } else { 2 };
            let hashes = rest[start..].iter().take_while(|c| **c == '#').count();
            // `r#name` is a name.
            if rest.get(start + hashes) != Some(&'"') {
                return at;
            }
            let mut ends = vec!['"'];
            ends.extend(std::iter::repeat_n('#', hashes));
            until(&ends, start + hashes + 1)
        }
        _ => at,
    }
}

/// Block comments nest.
fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match &chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Where the text in `quote`s that begins at `start` ends, past escapes.
fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}
