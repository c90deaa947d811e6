//! `qrvsa`: the command line of QRVSA, and, under the name `mount.fuse.qrvsa`, its mount helper.
//!
//! It translates a command line into requests to the daemon and answers into text. Errors are one line, `qrvsa: what: how
//! to go on`; exit codes are those of [`qrvsa_api::error::EXIT_CODES`].

mod args;
mod commands;
mod helper;
mod import_tgt;
mod interrupt;
mod paths;
mod progress;
mod show;
mod target;
mod target_args;
mod target_show;
mod terminal;
mod ui;
mod vhdx;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind as ClapKind;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    if helper::is_helper(&program) {
        return ExitCode::from(helper::main(args));
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) => {
            ui::print(&e.render().to_string());
            return ExitCode::from(ui::exit_code(0));
        }
        Err(e) => {
            ui::tell(&format!("qrvsa: {}", usage_line(&e)));
            return ExitCode::from(2);
        }
    };
    let code = commands::run(&cli).unwrap_or_else(|e| {
        ui::tell(&format!("qrvsa: {e}"));
        if cli.json {
            ui::print_json(&e);
        }
        e.kind.exit_code()
    });
    ExitCode::from(ui::exit_code(code))
}

/// The first paragraph of a usage error as one line, with a hint.
fn usage_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let mut paragraphs = rendered.split("\n\n");
    let mut first = paragraphs.next().unwrap_or_default();
    if !first.starts_with("error: ") {
        // Help in the place of an error: no command was given.
        first = "error: a command is missing";
    }
    let words: Vec<&str> = first.trim_start_matches("error: ").split_whitespace().collect();
    // What is wrong with a value says itself what a right one is.
    if matches!(error.kind(), ClapKind::ValueValidation | ClapKind::InvalidValue) {
        return words.join(" ");
    }
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: "));
    let hint = usage.map_or_else(|| "see `qrvsa --help`".to_owned(), |usage| format!("usage: {}", usage.trim()));
    format!("{}: {hint}", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_are_one_line() {
        for args in
            [&["qrvsa"][..], &["qrvsa", "pool", "destroy"], &["qrvsa", "pool", "create", "a b", "/d"], &["qrvsa", "x"]]
        {
            let error = args::Cli::try_parse_from(args).err().unwrap();
            let line = usage_line(&error);
            assert_eq!(line.lines().count(), 1);
            assert!(!line.contains("error:") && line.contains(": "), "{line}");
        }
    }

    #[test]
    fn values_that_are_wrong_get_one_hint() {
        for (args, end) in [
            (&["qrvsa", "pool", "create", "a b", "/d"][..], "the first a letter or digit"),
            (&["qrvsa", "volume", "create", "t/v", "x"], "64TB decimal"),
            (&["qrvsa", "vhdx", "convert", "a", "b", "--to", "x"], "[possible values: raw, dynamic, fixed]"),
            (&["qrvsa", "vhdx", "convert", "a", "volume:b"], "write volume:POOL/VOL"),
        ] {
            let line = usage_line(&args::Cli::try_parse_from(args).err().unwrap());
            assert!(line.ends_with(end), "{line}");
        }
    }
}
