//! A tgtadm command line becomes a request, or an error in tgt's words with tgt's exit code.

use crate::number::{self, NumberError};
use crate::options::{self, Step};
use crate::wire::{Mode, Op, PAYLOAD_BYTES_MAX, Request};

/// Exit code of a usage error or an error of the daemon (`EINVAL`).
pub const EXIT_INVALID: u8 = 22;
/// Exit code of a mode or operation that does not exist.
pub const EXIT_UNKNOWN: u8 = 1;
/// Exit code when no daemon answers (`ENOTCONN`).
pub const EXIT_NO_DAEMON: u8 = 107;
/// The version of tgt that this program behaves like.
pub const TGT_VERSION: &str = "1.0.85";

const HELP: &str = "\
Usage: tgtadm [OPTION]
Manages iSCSI targets of the QRVSA daemon with the command line of tgt's program of this name.

--mode target       --op new --tid N --targetname IQN | delete [--force] --tid N | show [--tid N] | stat --tid N
                    --op update --tid N --name KEY --value VALUE
                    --op bind|unbind --tid N (--initiator-address A | --initiator-name IQN)
--mode logicalunit  --op new --tid N --lun L --backing-store PATH [--bstype T] [--bsoflags F] [--blocksize B]
                    --op update --tid N --lun L --params KEY=VALUE[,...] | delete | stat
--mode account      --op new --user U --password P | delete --user U | show
                    --op bind|unbind [--tid N] --user U [--outgoing]
--mode portal       --op new|delete --param portal=ADDRESS[:PORT] | show
--mode conn         --op show --tid N | delete --tid N --sid S --cid C
--mode session      --op stat --tid N --sid S
--mode lld          --op show
--mode sys          --op show | update --name KEY --value VALUE | delete
--lld iscsi         the driver; this is the only one
--control-port N    use the management socket with this number
--help              show this

The socket is $TGT_IPC_SOCKET, else /var/lib/qrvsa/tgt, with .N behind it.
`qrvsa target` manages the same targets, and everything that tgt does not know.
";

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print this and end well.
    Print(String),
    /// Ask the daemon.
    Ask {
        /// The request.
        request: Request,
        /// Its payload; empty for none.
        payload: String,
        /// Number of the socket.
        control_port: u16,
    },
}

/// Why a command line is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whole lines for standard error.
    pub text: String,
    /// Exit code.
    pub exit: u8,
}

fn refuse(text: impl std::fmt::Display) -> Refusal {
    Refusal { text: format!("tgtadm: {text}\n"), exit: EXIT_INVALID }
}

fn with_usage(line: impl std::fmt::Display) -> Refusal {
    Refusal { text: format!("{line}\nTry `tgtadm --help' for more information.\n"), exit: EXIT_INVALID }
}

fn read_number(letter: char, text: &str, max: u64) -> Result<u64, Refusal> {
    number::parse(text, max).map_err(|e| {
        let what = match e {
            NumberError::Invalid => "invalid",
            NumberError::OutOfRange => "out of range",
        };
        with_usage(format!("-{letter} argument value '{text}' {what}"))
    })
}

fn read_mode(text: &str) -> Result<Mode, Refusal> {
    Ok(match text {
        "system" | "sys" => Mode::System,
        "target" | "tgt" => Mode::Target,
        "logicalunit" | "lu" => Mode::LogicalUnit,
        "portal" | "pt" => Mode::Portal,
        "session" | "sess" => Mode::Session,
        "connection" | "conn" => Mode::Connection,
        "account" => Mode::Account,
        "lld" => Mode::Lld,
        _ => return Err(Refusal { exit: EXIT_UNKNOWN, ..refuse(format!("unknown mode: {text}")) }),
    })
}

fn read_op(text: &str) -> Result<Op, Refusal> {
    (0..9)
        .filter_map(Op::from_number)
        .find(|op| op.text() == text)
        .ok_or_else(|| Refusal { exit: EXIT_UNKNOWN, ..refuse(format!("unknown operation: {text}")) })
}

const TAPE: u32 = 1;

fn read_device_type(text: &str) -> Result<u32, Refusal> {
    Ok(match text {
        "disk" => 0,
        "tape" | "ssc" => TAPE,
        "cd" => 5,
        "changer" => 8,
        "osd" => 17,
        "pt" => 255,
        _ => return Err(refuse(format!("unknown target type: {text}"))),
    })
}

/// Everything the options gave.
#[derive(Default)]
struct Given {
    letters: Vec<char>,
    lld: String,
    mode: Option<Mode>,
    op: Option<Op>,
    tid: Option<u64>,
    sid: u64,
    cid: u64,
    lun: Option<u64>,
    host: u64,
    device_type: u32,
    outgoing: bool,
    force: bool,
    control_port: u16,
    name: Option<String>,
    value: Option<String>,
    path: Option<String>,
    bstype: Option<String>,
    bsopts: Option<String>,
    bsoflags: Option<String>,
    blocksize: Option<String>,
    targetname: Option<String>,
    address: Option<String>,
    initiator: Option<String>,
    user: Option<String>,
    password: Option<String>,
    target_parameters: Option<String>,
    portal_parameters: Option<String>,
}

/// Reads a command line without the program's name.
///
/// # Errors
/// What tgtadm prints and exits with.
pub fn parse(arguments: &[String]) -> Result<Command, Refusal> {
    let mut g = Given::default();
    for step in options::read(arguments) {
        match step {
            Step::Mistake(text) => return Err(with_usage(format!("tgtadm: {text}"))),
            Step::Operand(text) => return Err(with_usage(format!("tgtadm: unrecognized option '{text}'"))),
            Step::Option('h', _) => return Ok(Command::Print(HELP.to_owned())),
            Step::Option('V', _) => return Ok(Command::Print(format!("{TGT_VERSION}\n"))),
            Step::Option(letter, value) => g.take(letter, value)?,
        }
    }
    let op = g.op.ok_or_else(|| refuse("specify the operation type"))?;
    let mode = g.mode.ok_or_else(|| refuse("specify the mode"))?;
    g.check(mode, op)?;
    let payload = g.payload();
    if payload.len() >= PAYLOAD_BYTES_MAX {
        return Err(refuse(format!("BUFSIZE ({PAYLOAD_BYTES_MAX} bytes) isn't long enough")));
    }
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let request = Request {
        lld: g.lld.chars().take(64).collect(),
        tid: g.tid.and_then(|tid| i32::try_from(tid).ok()).unwrap_or(crate::wire::NO_TID),
        sid: g.sid,
        lun: g.lun.unwrap_or(crate::wire::NO_LUN),
        cid: word(g.cid),
        host: word(g.host),
        device_type: g.device_type,
        outgoing: g.outgoing,
        force: g.force,
        ..Request::new(mode, op)
    };
    Ok(Command::Ask { request, payload, control_port: g.control_port })
}

impl Given {
    fn take(&mut self, letter: char, value: String) -> Result<(), Refusal> {
        const INT_MAX: u64 = i32::MAX as u64;
        self.letters.push(letter);
        match letter {
            'L' => self.lld = value,
            'o' => self.op = Some(read_op(&value)?),
            'm' => self.mode = Some(read_mode(&value)?),
            't' => self.tid = Some(read_number('t', &value, INT_MAX)?),
            's' => self.sid = read_number('s', &value, u64::MAX)?,
            'c' => self.cid = read_number('c', &value, u64::from(u32::MAX))?,
            'l' => self.lun = Some(read_number('l', &value, u64::MAX)?),
            'H' => self.host = read_number('H', &value, u64::from(u32::MAX))?,
            'C' => {
                let port = read_number('C', &value, u64::from(u16::MAX))?;
                self.control_port = u16::try_from(port).unwrap_or_default();
            }
            'Y' => self.device_type = read_device_type(&value)?,
            'F' => self.force = true,
            'O' => self.outgoing = true,
            'n' => self.name = Some(value),
            'v' => self.value = Some(value),
            'b' => self.path = Some(value),
            'E' => self.bstype = Some(value),
            'S' => self.bsopts = Some(value),
            'f' => self.bsoflags = Some(value),
            'y' => self.blocksize = Some(value),
            'T' => self.targetname = Some(value),
            'I' => self.address = Some(value),
            'Q' => self.initiator = Some(value),
            'u' => self.user = Some(value),
            'p' => self.password = Some(value),
            // Where it stands decides what it is.
            'P' if self.mode == Some(Mode::Portal) => self.portal_parameters = Some(value),
            'P' => self.target_parameters = Some(value),
            // Adapters on a bus are no iSCSI.
            'B' => {
                let bus = value.split(',').next().unwrap_or_default().to_owned();
                return Err(refuse(format!("can't find bus: {bus}")));
            }
            _ => {}
        }
        Ok(())
    }

    /// The first option, in the order given, that is not among the allowed ones.
    fn foreign(&self, allowed: &str) -> Option<char> {
        self.letters.iter().copied().find(|letter| *letter != 'd' && !allowed.contains(*letter))
    }

    fn only(&self, place: &str, allowed: &str) -> Result<(), Refusal> {
        match self.foreign(allowed) {
            Some(letter) => Err(refuse(format!("{place} mode: option '-{letter}' is not allowed/supported"))),
            None => Ok(()),
        }
    }

    fn only_here(&self, place: &str, allowed: &str) -> Result<(), Refusal> {
        match self.foreign(allowed) {
            Some(letter) => Err(refuse(format!("option '-{letter}' not supported in {place} mode"))),
            None => Ok(()),
        }
    }

    fn need_name_and_value(&self) -> Result<(), Refusal> {
        match (&self.name, &self.value) {
            (Some(_), Some(_)) => Ok(()),
            _ => Err(refuse("update operation requires 'name' and 'value' options")),
        }
    }

    /// What each mode and operation allows and needs.
    fn check(&self, mode: Mode, op: Op) -> Result<(), Refusal> {
        let unsupported = |place: &str| Err(refuse(format!("operation {} not supported in {place} mode", op.text())));
        match mode {
            Mode::System => match op {
                Op::Update => {
                    self.only("system", "LmonvC")?;
                    self.need_name_and_value()
                }
                Op::Show | Op::Delete | Op::Stat => Ok(()),
                _ => unsupported("system"),
            },
            Mode::Target => self.check_target(op),
            Mode::Account => match op {
                Op::New => {
                    self.only("account", "LmoupfC")?;
                    match (&self.user, &self.password) {
                        (Some(_), Some(_)) => Ok(()),
                        _ => Err(refuse("'user' and 'password' options are required")),
                    }
                }
                Op::Show => self.only("account", "LmoC"),
                Op::Delete => self.only("account", "LmouC"),
                Op::Bind | Op::Unbind => {
                    self.only("account", "LmotuOC")?;
                    self.user.as_ref().map(|_| ()).ok_or_else(|| refuse("'user' option is necessary"))
                }
                _ => unsupported("account"),
            },
            Mode::LogicalUnit => self.check_logical_unit(op),
            Mode::Portal => match op {
                Op::New | Op::Delete => {
                    self.only("portal", "LmoCP")?;
                    let portal = self.portal_parameters.as_ref().map(|_| ());
                    portal.ok_or_else(|| refuse("you must specify --param portal=<portal>"))
                }
                Op::Show => self.only_here("portal", "LmoC"),
                _ => unsupported("portal"),
            },
            Mode::Lld => match op {
                Op::Start | Op::Stop | Op::Show => self.only("lld", "LmoC"),
                _ => Err(refuse(format!("option {} not supported in lld mode", op.number()))),
            },
            Mode::Session | Mode::Connection => Ok(()),
        }
    }

    fn check_target(&self, op: Op) -> Result<(), Refusal> {
        match self.tid {
            None if op != Op::Show => return Err(refuse("'tid' option is necessary")),
            Some(0) if op != Op::Show => return Err(refuse("'tid' cannot be 0")),
            _ => {}
        }
        match op {
            Op::New => {
                self.only("target", "LmotTC")?;
                let name = self.targetname.as_ref().map(|_| ());
                name.ok_or_else(|| refuse("creating new target requires a name, use --targetname"))
            }
            Op::Delete => self.only("target", "LmotCF"),
            Op::Show | Op::Stat => self.only("target", "LmotC"),
            Op::Bind | Op::Unbind => {
                self.only("target", "LmotIQBHC")?;
                if self.address.is_none() && self.initiator.is_none() && self.host == 0 {
                    let op = op.text();
                    return Err(refuse(format!("{op} operation requires initiator-address, initiator-nameor bus")));
                }
                Ok(())
            }
            Op::Update => {
                self.only("target", "LmotnvC")?;
                self.need_name_and_value()
            }
            Op::Start | Op::Stop => Err(refuse(format!("operation {} not supported in target mode", op.text()))),
        }
    }

    fn check_logical_unit(&self, op: Op) -> Result<(), Refusal> {
        match (self.tid, self.lun) {
            (None, _) => return Err(refuse("'tid' option is necessary")),
            (Some(0), _) => return Err(refuse("'tid' must not be 0")),
            (_, None) => return Err(refuse("'lun' option is necessary")),
            _ => {}
        }
        match op {
            Op::New => {
                self.only("logicalunit", "LmofytlbEYCS")?;
                if self.path.is_none() && ![0, TAPE, 5].contains(&self.device_type) {
                    return Err(refuse("'backing-store' option is necessary"));
                }
                Ok(())
            }
            Op::Delete | Op::Stat => self.only("logicalunit", "LmotlC"),
            Op::Update => self.only_here("logicalunit", "LmofytlPC"),
            _ => Err(refuse(format!("operation {} not supported in logicalunit mode", op.text()))),
        }
    }

    fn payload(&self) -> String {
        let mut parts = Vec::new();
        if let Some(name) = &self.name {
            parts.push(format!("{name}={}", self.value.as_deref().unwrap_or("(null)")));
        }
        let bstype = if self.device_type == TAPE { Some("ssc".to_owned()) } else { self.bstype.clone() };
        for (key, value) in [
            ("path", &self.path),
            ("bstype", &bstype),
            ("bsopts", &self.bsopts),
            ("bsoflags", &self.bsoflags),
            ("blocksize", &self.blocksize),
            ("targetname", &self.targetname),
            ("initiator-address", &self.address),
            ("initiator-name", &self.initiator),
            ("user", &self.user),
            ("password", &self.password),
        ] {
            parts.extend(value.as_ref().map(|value| format!("{key}={value}")));
        }
        parts.extend(self.target_parameters.as_ref().map(|p| format!("targetOps {p},")));
        parts.extend(self.portal_parameters.as_ref().map(|p| format!("portalOps {p},")));
        parts.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(line: &str) -> Result<Command, Refusal> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    /// What tgt 1.0.85's own program sends: mode, op, driver, tid, sid, LUN, cid, host, type, direction, force, payload.
    #[test]
    fn requests_are_those_of_tgtadm() {
        const NONE: u64 = u64::MAX;
        for (line, mode, op, tid, sid, lun, cid, device_type, outgoing, force, payload) in [
            ("-L iscsi -m lu -o new -t 1 -l 2 -b /a -Y tape", 2, 0, 1, 0, 2, 0, 1, false, false, "path=/a,bstype=ssc"),
            ("-m lu -o new -t 1 -l 2 -b /a -Y cd", 2, 0, 1, 0, 2, 0, 5, false, false, "path=/a"),
            ("-m lu -o new -t 1 -l 2 -b /a -Y pt", 2, 0, 1, 0, 2, 0, 255, false, false, "path=/a"),
            (
                "-m lu -o new -t 1 -l 2 -b /a -E aio -S opts -f sync:direct -y 4096",
                2,
                0,
                1,
                0,
                2,
                0,
                0,
                false,
                false,
                "path=/a,bstype=aio,bsopts=opts,bsoflags=sync:direct,blocksize=4096",
            ),
            ("-m lu -o new -t 0x10 -l 010", 2, 0, 16, 0, 8, 0, 0, false, false, ""),
            ("-m lu -o update -t 1 -l 2 -P a=b --params e=f", 2, 5, 1, 0, 2, 0, 0, false, false, "targetOps e=f,"),
            ("-m target -o new -t 1 -T iqn.x", 1, 0, 1, 0, NONE, 0, 0, false, false, "targetname=iqn.x"),
            (
                "-m target -o bind -t 1 -Q iqn.a -I 1.2.3.4",
                1,
                3,
                1,
                0,
                NONE,
                0,
                0,
                false,
                false,
                "initiator-address=1.2.3.4,initiator-name=iqn.a",
            ),
            ("-m target -o delete -t 1 --force", 1, 1, 1, 0, NONE, 0, 0, false, true, ""),
            ("-m account -o new -u u -p p -f x", 7, 0, -1, 0, NONE, 0, 0, false, false, "bsoflags=x,user=u,password=p"),
            ("-m account -o unbind --user u -O x", 7, 4, -1, 0, NONE, 0, 0, true, false, "user=u"),
            (
                "-m portal -o new --param portal=1.2.3.4:5",
                3,
                0,
                -1,
                0,
                NONE,
                0,
                0,
                false,
                false,
                "portalOps portal=1.2.3.4:5,",
            ),
            ("-m conn -o delete -t 1 -s 2 -c 3", 6, 1, 1, 2, NONE, 3, 0, false, false, ""),
            ("-m conn -o show -t 1 -l 3 -n x", 6, 2, 1, 0, 3, 0, 0, false, false, "x=(null)"),
            ("--m sys --op=show", 0, 2, -1, 0, NONE, 0, 0, false, false, ""),
            ("-msys -oshow", 0, 2, -1, 0, NONE, 0, 0, false, false, ""),
            ("-m sys -o show --", 0, 2, -1, 0, NONE, 0, 0, false, false, ""),
        ] {
            let Ok(Command::Ask { request: r, payload: text, .. }) = run(line) else {
                panic!("{line}: {:?}", run(line))
            };
            assert_eq!((r.mode, r.op, r.tid, r.sid, r.lun, r.cid), (mode, op, tid, sid, lun, cid), "{line}");
            assert_eq!((r.device_type, r.outgoing, r.force), (device_type, outgoing, force), "{line}");
            assert_eq!(text, payload, "{line}");
        }
    }

    #[test]
    fn refusals_are_those_of_tgtadm() {
        for (line, exit, text) in [
            ("--mode nope --op show", 1, "tgtadm: unknown mode: nope"),
            ("--mode stats --op show", 1, "tgtadm: unknown mode: stats"),
            ("--mode target --op nope", 1, "tgtadm: unknown operation: nope"),
            ("--mode target", 22, "tgtadm: specify the operation type"),
            ("--op show", 22, "tgtadm: specify the mode"),
            ("", 22, "tgtadm: specify the operation type"),
            ("-o new --param portal=1.2.3.4:5 -m portal", 22, "tgtadm: you must specify --param portal=<portal>"),
            ("-m target -o new -t 2", 22, "tgtadm: creating new target requires a name, use --targetname"),
            ("-m target -o new -t 0 -T x", 22, "tgtadm: 'tid' cannot be 0"),
            ("-m target -o new -T x", 22, "tgtadm: 'tid' option is necessary"),
            ("-m target -o stat", 22, "tgtadm: 'tid' option is necessary"),
            ("-m target -o start -t 1", 22, "tgtadm: operation start not supported in target mode"),
            ("-m target -o show -l 1", 22, "tgtadm: target mode: option '-l' is not allowed/supported"),
            (
                "-m target -o unbind -t 1",
                22,
                "tgtadm: unbind operation requires initiator-address, initiator-nameor bus",
            ),
            ("-m target -o update -t 1 -n a", 22, "tgtadm: update operation requires 'name' and 'value' options"),
            ("-m lu -o show -t 1 -l 0", 22, "tgtadm: operation show not supported in logicalunit mode"),
            ("-m lu -o new -t 1", 22, "tgtadm: 'lun' option is necessary"),
            ("-m lu -o new -t 0 -l 1", 22, "tgtadm: 'tid' must not be 0"),
            ("-m lu -o new -l 1", 22, "tgtadm: 'tid' option is necessary"),
            ("-m lu -o new -t 1 -l 1 -n x -b /x", 22, "tgtadm: logicalunit mode: option '-n' is not allowed/supported"),
            ("-m lu -o update -t 1 -l 1 -b x", 22, "tgtadm: option '-b' not supported in logicalunit mode"),
            ("-m lu -o new -t 1 -l 1 -Y nope", 22, "tgtadm: unknown target type: nope"),
            ("-m account -o show -t 1", 22, "tgtadm: account mode: option '-t' is not allowed/supported"),
            ("-m account -o new -u u", 22, "tgtadm: 'user' and 'password' options are required"),
            ("-m account -o bind", 22, "tgtadm: 'user' option is necessary"),
            ("-m account -o update", 22, "tgtadm: operation update not supported in account mode"),
            ("-m portal -o show -t 1", 22, "tgtadm: option '-t' not supported in portal mode"),
            ("-m portal -o new -t 1", 22, "tgtadm: portal mode: option '-t' is not allowed/supported"),
            ("-m lld -o new", 22, "tgtadm: option 0 not supported in lld mode"),
            ("-m lld -o start -t 1", 22, "tgtadm: lld mode: option '-t' is not allowed/supported"),
            ("-m sys -o new", 22, "tgtadm: operation new not supported in system mode"),
            ("-m sys -o update -t 1 -n a -v b", 22, "tgtadm: system mode: option '-t' is not allowed/supported"),
            ("-m target -o bind -t 1 -B scsi,x", 22, "tgtadm: can't find bus: scsi"),
        ] {
            assert_eq!(run(line), Err(Refusal { text: format!("{text}\n"), exit }), "{line}");
        }
        for (line, text) in [
            ("--bad", "tgtadm: unrecognized option '--bad'"),
            ("extra", "tgtadm: unrecognized option 'extra'"),
            ("-x", "tgtadm: invalid option -- 'x'"),
            ("--o show", "tgtadm: option '--o' is ambiguous; possibilities: '--op' '--outgoing'"),
            ("--p", "tgtadm: option '--p' is ambiguous; possibilities: '--password' '--params'"),
            ("-m sys -o show --force=1", "tgtadm: option '--force' doesn't allow an argument"),
            ("-m target -o show -F", "tgtadm: option requires an argument -- 'F'"),
            ("-m target -o show --tid", "tgtadm: option '--tid' requires an argument"),
            ("-m target -o show -t abc", "-t argument value 'abc' invalid"),
            ("-m target -o show -t 99999999999", "-t argument value '99999999999' out of range"),
            ("-m sys -o show -C -1", "-C argument value '-1' invalid"),
            ("-m sys -o show -C 99999", "-C argument value '99999' out of range"),
        ] {
            assert_eq!(run(line), Err(with_usage(text)), "{line}");
        }
        assert_eq!(run("-V"), Ok(Command::Print("1.0.85\n".into())));
        assert!(matches!(run("-h"), Ok(Command::Print(_))));
    }

    proptest! {
        #[test]
        fn any_command_line_is_read_or_refused(arguments in proptest::collection::vec("[-a-zA-Z=, 0-9]{0,12}", 0..8)) {
            if let Err(refusal) = parse(&arguments) {
                prop_assert!(refusal.text.ends_with('\n') && refusal.exit != 0);
            }
        }
    }
}
