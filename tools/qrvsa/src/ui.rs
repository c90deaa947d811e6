//! What a person sees and is asked: output, tables, questions.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use qrvsa_api::{ApiError, ErrorKind};
use serde::Serialize;

/// What has become of standard output.
static OUTPUT: AtomicU8 = AtomicU8::new(TAKEN);
/// All was written.
const TAKEN: u8 = 0;
/// Its reader went away, as that of `| head` does.
const UNREAD: u8 = 1;
/// It could not be written to.
const FAILED: u8 = 2;

/// Writes to standard output. When that cannot be written to any more, nothing more is written, and the command goes on: what
/// it does, and the code it ends with, do not hang on who reads.
pub fn print(text: &str) {
    if !is_read() {
        return;
    }
    let mut out = io::stdout().lock();
    if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if e.kind() == io::ErrorKind::BrokenPipe {
            OUTPUT.store(UNREAD, Ordering::Relaxed);
        } else {
            OUTPUT.store(FAILED, Ordering::Relaxed);
            tell(&format!("qrvsa: cannot write to standard output: {e}"));
        }
    }
}

/// Whether what is printed arrives.
pub fn is_read() -> bool {
    OUTPUT.load(Ordering::Relaxed) == TAKEN
}

/// The exit code of the program for that of its command: an answer that could not be written is a failure, one that nobody
/// waited for is not.
pub fn exit_code(code: u8) -> u8 {
    if code == 0 && OUTPUT.load(Ordering::Relaxed) == FAILED { 1 } else { code }
}

/// Writes a line to standard error. That nobody reads it changes nothing.
pub fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes an answer as JSON.
pub fn print_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(e) => tell(&format!("qrvsa: the answer cannot be written as JSON: {e}")),
    }
}

/// Text from elsewhere (file names, messages) without what could act on a terminal.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Runs a request; when it needs confirmation, asks for it on a terminal and repeats it with `force`.
pub fn with_confirmation<T>(
    force: bool,
    ask: &mut dyn FnMut(&str) -> Option<bool>,
    mut request: impl FnMut(bool) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    match request(force) {
        Err(e) if e.kind == ErrorKind::NeedsForce && !force => match ask(&e.message) {
            Some(true) => request(true),
            Some(false) => Err(ApiError::new(ErrorKind::NeedsForce, "not confirmed").with_hint("nothing was changed")),
            None if e.hint.contains("--force") => Err(e),
            None => Err(e.with_hint(ErrorKind::NeedsForce.default_hint())),
        },
        other => other,
    }
}

/// Asks yes or no on the terminal; `None` without one.
pub fn ask_terminal(what: &str) -> Option<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    loop {
        eprint!("{}. Go on? [yes/no] ", clean(what));
        let mut line = String::new();
        match stdin.lock().read_line(&mut line) {
            Ok(0) | Err(_) => return Some(false),
            Ok(_) => {}
        }
        match line.trim().to_ascii_lowercase().as_str() {
            "yes" | "y" => return Some(true),
            "no" | "n" | "" => return Some(false),
            _ => eprintln!("Please answer yes or no."),
        }
    }
}

/// Lays rows out in columns; the first row is the heading. Columns in `right` are aligned to the right. No blanks at the
/// ends of lines.
#[must_use]
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column > 0 {
                line.push_str("  ");
            }
            if right.contains(&column) {
                line.push_str(&format!("{cell:>width$}"));
            } else {
                line.push_str(&format!("{cell:<width$}"));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(log: &mut Vec<bool>, force: bool) -> Result<u8, ApiError> {
        log.push(force);
        if force { Ok(7) } else { Err(ApiError::new(ErrorKind::NeedsForce, "data is there").with_hint("think")) }
    }

    #[test]
    fn confirmation() {
        for (force, answer, calls, result) in [
            (true, None, &[true][..], Ok(7)),
            (false, Some(true), &[false, true], Ok(7)),
            (false, Some(false), &[false], Err("nothing was changed")),
            (false, None, &[false], Err("--force")),
        ] {
            let mut log = Vec::new();
            let mut asked = Vec::new();
            let got = with_confirmation(
                force,
                &mut |what| {
                    asked.push(what.to_owned());
                    answer
                },
                |force| request(&mut log, force),
            );
            assert_eq!(log, calls);
            match result {
                Ok(value) => assert_eq!(got.unwrap(), value),
                Err(hint) => {
                    let error = got.unwrap_err();
                    assert_eq!(error.kind.exit_code(), 5);
                    assert!(error.hint.contains(hint), "{error}");
                }
            }
            assert_eq!(asked.len(), usize::from(!force));
        }
    }

    #[test]
    fn other_errors_are_not_asked_about() {
        let mut ask = |_: &str| -> Option<bool> { panic!("nothing to ask") };
        let error = with_confirmation(false, &mut ask, |_| Err::<(), _>(ApiError::busy("b"))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["A".into(), "SIZE".into(), "N".into()], vec!["long".into(), "1".into(), String::new()]];
        assert_eq!(table(&rows, &[1]), "A     SIZE  N\nlong     1\n");
        assert_eq!(table(&[], &[]), "");
    }

    #[test]
    fn terminal_escapes_are_removed() {
        assert_eq!(clean("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}
