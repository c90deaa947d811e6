//! The grammar: keys with values, named blocks, comments, continued lines, here-documents, includes.
//!
//! It is the one Perl's Config::General reads with the options tgt-admin gives it, as far as it makes sense for targets.

use std::path::{Path, PathBuf};

/// Blocks within blocks, and files within files, at most.
const DEPTH_MAX: usize = 16;
/// Entries at most, over all files.
const ITEMS_MAX: usize = 100_000;

/// A key or a block, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `KEY VALUE`.
    Value {
        /// As written.
        key: String,
        /// Without surrounding quotes; may be empty.
        value: String,
    },
    /// `<KIND NAME> ... </KIND>`.
    Block {
        /// As written.
        kind: String,
        /// What stands behind it.
        name: String,
        /// What is in it.
        items: Vec<Item>,
    },
}

/// A file that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// For messages, and as the place relative includes start from.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads files, with others that they include.
pub struct Parser<'a> {
    /// Gives the files that an `include` means: a path, or a pattern with `*` and `?`, relative to the first file.
    pub include: &'a dyn Fn(&Path) -> Result<Vec<Source>, String>,
    items: usize,
}

struct Lines<'a> {
    source: &'a Source,
    lines: Vec<&'a str>,
    next: usize,
}

impl Lines<'_> {
    fn error(&self, what: impl std::fmt::Display) -> String {
        format!("{} line {}: {what}", self.source.path.display(), self.next)
    }

    /// The next line that says something: joined with those it continues on, without comments.
    fn logical(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            loop {
                let part = self.lines.get(self.next)?;
                self.next += 1;
                match part.trim_end().strip_suffix('\\') {
                    Some(part) if self.next < self.lines.len() => line.push_str(part.trim_start()),
                    Some(part) => {
                        line.push_str(part);
                        break;
                    }
                    None => {
                        line.push_str(if line.is_empty() { part } else { part.trim_start() });
                        break;
                    }
                }
            }
            let line = without_comment(&line);
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

/// Cuts `#` at the beginning or behind a blank; `\#` is a plain `#`.
fn without_comment(line: &str) -> String {
    let mut end = line.len();
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        if c == '#' && before.is_whitespace() {
            end = at;
            break;
        }
        before = c;
    }
    line.get(..end).unwrap_or_default().trim().replace("\\#", "#")
}

fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

/// Splits at blanks, or at `=` with blanks around it.
fn key_and_value(line: &str) -> (&str, &str) {
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (key, rest) = line.split_at_checked(end).unwrap_or((line, ""));
    let rest = rest.trim_start();
    (key, rest.strip_prefix('=').map_or(rest, str::trim_start).trim_end())
}

impl<'a> Parser<'a> {
    /// A parser that gets included files from `include`.
    pub fn new(include: &'a dyn Fn(&Path) -> Result<Vec<Source>, String>) -> Parser<'a> {
        Parser { include, items: 0 }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// File, line and what is wrong, one line.
    pub fn parse(&mut self, source: &Source) -> Result<Vec<Item>, String> {
        self.file(source, 0)
    }

    fn file(&mut self, source: &Source, depth: usize) -> Result<Vec<Item>, String> {
        let mut lines = Lines { source, lines: source.text.lines().collect(), next: 0 };
        self.items(&mut lines, None, depth)
    }

    fn items(&mut self, lines: &mut Lines<'_>, block: Option<&str>, depth: usize) -> Result<Vec<Item>, String> {
        if depth > DEPTH_MAX {
            return Err(lines.error("nested too deeply"));
        }
        let mut items = Vec::new();
        while let Some(line) = lines.logical() {
            self.items += 1;
            if self.items > ITEMS_MAX {
                return Err(lines.error("too many entries"));
            }
            if let Some(inner) = line.strip_prefix("<<").and_then(|l| l.strip_suffix(">>")) {
                let (key, path) = key_and_value(inner.trim());
                if !key.eq_ignore_ascii_case("include") {
                    return Err(lines.error(format!("<<{inner}>> is not known")));
                }
                items.extend(self.included(lines, path, depth)?);
            } else if let Some(kind) = line.strip_prefix("</").and_then(|l| l.strip_suffix('>')) {
                return match block {
                    Some(open) if open.eq_ignore_ascii_case(kind.trim()) => Ok(items),
                    Some(open) => Err(lines.error(format!("</{}> where </{open}> is due", kind.trim()))),
                    None => Err(lines.error(format!("</{}> without a beginning", kind.trim()))),
                };
            } else if let Some(inner) = line.strip_prefix('<').and_then(|l| l.strip_suffix('>')) {
                let inner = inner.trim();
                // An empty block: <kind name/>
                let (inner, empty) = match inner.strip_suffix('/') {
                    Some(inner) if !inner.contains('/') => (inner, true),
                    _ => (inner, false),
                };
                let (kind, name) = key_and_value(inner);
                let kind = kind.to_owned();
                let inside = if empty { Vec::new() } else { self.items(lines, Some(&kind), depth + 1)? };
                items.push(Item::Block { kind, name: unquoted(name).to_owned(), items: inside });
            } else {
                let (key, value) = key_and_value(&line);
                if key.is_empty() {
                    return Err(lines.error("a value without a key"));
                }
                if key.eq_ignore_ascii_case("include") {
                    items.extend(self.included(lines, value, depth)?);
                    continue;
                }
                let value = match value.strip_prefix("<<") {
                    Some(end) if !end.is_empty() => here_document(lines, end)?,
                    _ => unquoted(value).to_owned(),
                };
                items.push(Item::Value { key: key.to_owned(), value });
            }
        }
        match block {
            None => Ok(items),
            Some(open) => Err(lines.error(format!("<{open}> has no </{open}>"))),
        }
    }

    fn included(&mut self, lines: &Lines<'_>, path: &str, depth: usize) -> Result<Vec<Item>, String> {
        let path = unquoted(path);
        if path.is_empty() || depth >= DEPTH_MAX {
            return Err(lines.error("an include of nothing, or too many in each other"));
        }
        let mut items = Vec::new();
        for source in (self.include)(Path::new(path)).map_err(|e| lines.error(e))? {
            items.extend(self.file(&source, depth + 1)?);
        }
        Ok(items)
    }
}

fn here_document(lines: &mut Lines<'_>, end: &str) -> Result<String, String> {
    let mut text = Vec::new();
    loop {
        let Some(line) = lines.lines.get(lines.next) else {
            return Err(lines.error(format!("<<{end} without its end")));
        };
        lines.next += 1;
        if line.trim() == end.trim() {
            return Ok(text.join("\n"));
        }
        text.push(*line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Vec<Item>, String> {
        let include = |path: &Path| match path.to_str() {
            Some("/etc/tgt/conf.d/*.conf") => Ok(vec![
                Source { path: "a.conf".into(), text: "a 1\n".into() },
                Source { path: "b.conf".into(), text: "b 2\n".into() },
            ]),
            Some("/loop") => Ok(vec![Source { path: "/loop".into(), text: "include /loop".into() }]),
            _ => Err("not there".into()),
        };
        Parser::new(&include).parse(&Source { path: "targets.conf".into(), text: text.into() })
    }

    fn value(key: &str, value: &str) -> Item {
        Item::Value { key: key.into(), value: value.into() }
    }

    #[test]
    fn what_the_grammar_has() {
        let items = parse(
            "# comment\n\
             default-driver iscsi   # behind\n\
             a=b\n  c = \"d e\"\n\
             long one \\\n   two\n\
             e <<END\n x # kept\n y\nEND\n\
             include /etc/tgt/conf.d/*.conf\n\
             <target iqn.x>\n  backing-store /a#b\n  <direct-store /dev/sdb>\n  lun 3\n </direct-store>\n</Target>\n",
        )
        .unwrap();
        let direct =
            Item::Block { kind: "direct-store".into(), name: "/dev/sdb".into(), items: vec![value("lun", "3")] };
        let block = vec![value("backing-store", "/a#b"), direct];
        assert_eq!(
            items,
            [
                value("default-driver", "iscsi"),
                value("a", "b"),
                value("c", "d e"),
                value("long", "one two"),
                value("e", " x # kept\n y"),
                value("a", "1"),
                value("b", "2"),
                Item::Block { kind: "target".into(), name: "iqn.x".into(), items: block },
            ]
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            ("a 1\n<target x>\n", "line 2: <target> has no </target>"),
            ("</target>", "line 1: </target> without a beginning"),
            ("<a x>\n</b>", "line 2: </b> where </a> is due"),
            ("x <<END\n", "without its end"),
            ("include /nowhere", "not there"),
            ("include /loop", "too many"),
            ("= 3", "without a key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-<>/=#\\\\ \\na-c\"']{0,200}") {
            let _ = parse(&text);
        }
    }
}
