//! tgtadm's options, read the way getopt_long reads them: bundled short options, unique prefixes of long ones, `--`.

/// Whether an option takes an argument, in its long and its short form. They differ for two options: an old slip of
/// tgtadm that scripts have grown around.
struct Entry {
    long: &'static str,
    short: char,
    long_argument: bool,
    short_argument: bool,
}

const fn entry(long: &'static str, short: char, argument: bool) -> Entry {
    Entry { long, short, long_argument: argument, short_argument: argument }
}

const TABLE: &[Entry] = &[
    entry("debug", 'd', false),
    entry("help", 'h', false),
    entry("version", 'V', false),
    entry("lld", 'L', true),
    entry("op", 'o', true),
    entry("mode", 'm', true),
    entry("tid", 't', true),
    entry("sid", 's', true),
    entry("cid", 'c', true),
    entry("lun", 'l', true),
    entry("name", 'n', true),
    entry("value", 'v', true),
    entry("backing-store", 'b', true),
    entry("bstype", 'E', true),
    entry("bsopts", 'S', true),
    entry("bsoflags", 'f', true),
    entry("blocksize", 'y', true),
    entry("targetname", 'T', true),
    entry("initiator-address", 'I', true),
    entry("initiator-name", 'Q', true),
    entry("user", 'u', true),
    entry("password", 'p', true),
    entry("host", 'H', true),
    Entry { long: "force", short: 'F', long_argument: false, short_argument: true },
    entry("params", 'P', true),
    entry("bus", 'B', true),
    entry("device-type", 'Y', true),
    Entry { long: "outgoing", short: 'O', long_argument: false, short_argument: true },
    entry("control-port", 'C', true),
];

/// One step of reading a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An option by its letter, and its argument if it has one.
    Option(char, String),
    /// What getopt says about a mistake, without the program's name.
    Mistake(String),
    /// What is no option.
    Operand(String),
}

/// Reads a command line without the program's name. Operands come after all options, wherever they stood.
#[must_use]
pub fn read(arguments: &[String]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut operands = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            operands.extend(rest.by_ref().cloned().map(Step::Operand));
        } else if let Some(long) = argument.strip_prefix("--") {
            steps.push(read_long(long, &mut rest));
        } else if argument.len() > 1 && argument.starts_with('-') {
            read_short(argument, &mut rest, &mut steps);
        } else {
            operands.push(Step::Operand(argument.clone()));
        }
    }
    steps.extend(operands);
    steps
}

fn read_long(text: &str, rest: &mut std::slice::Iter<'_, String>) -> Step {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let exact = TABLE.iter().find(|e| e.long == name);
    let candidates: Vec<&Entry> = match exact {
        Some(entry) => vec![entry],
        None => TABLE.iter().filter(|e| e.long.starts_with(name)).collect(),
    };
    match (candidates.as_slice(), value) {
        ([], _) => Step::Mistake(format!("unrecognized option '--{name}'")),
        ([entry], None) if entry.long_argument => match rest.next() {
            Some(value) => Step::Option(entry.short, value.clone()),
            None => Step::Mistake(format!("option '--{}' requires an argument", entry.long)),
        },
        ([entry], None) => Step::Option(entry.short, String::new()),
        ([entry], Some(value)) if entry.long_argument => Step::Option(entry.short, value.to_owned()),
        ([entry], Some(_)) => Step::Mistake(format!("option '--{}' doesn't allow an argument", entry.long)),
        (several, _) => {
            let names: Vec<String> = several.iter().map(|e| format!(" '--{}'", e.long)).collect();
            Step::Mistake(format!("option '--{name}' is ambiguous; possibilities:{}", names.concat()))
        }
    }
}

fn read_short(argument: &str, rest: &mut std::slice::Iter<'_, String>, steps: &mut Vec<Step>) {
    let mut chars = argument.chars();
    chars.next();
    while let Some(letter) = chars.next() {
        match TABLE.iter().find(|e| e.short == letter) {
            None => steps.push(Step::Mistake(format!("invalid option -- '{letter}'"))),
            Some(entry) if !entry.short_argument => steps.push(Step::Option(letter, String::new())),
            Some(_) => {
                let attached = chars.as_str();
                let value = if attached.is_empty() { rest.next().cloned() } else { Some(attached.to_owned()) };
                steps.push(match value {
                    Some(value) => Step::Option(letter, value),
                    None => Step::Mistake(format!("option requires an argument -- '{letter}'")),
                });
                return;
            }
        }
    }
}
