//! `tgtadm`: tgt's command line for the QRVSA daemon. Speaks tgt's protocol on the daemon's management socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use qrvsa_tgt::command::{self, Command, EXIT_INVALID, EXIT_NO_DAEMON};
use qrvsa_tgt::wire::{Code, Mode, Op, REPLY_BYTES, Request, decode_reply};

/// The socket's path without its number, unless `TGT_IPC_SOCKET` names another.
const DEFAULT_SOCKET: &str = "/var/lib/qrvsa/tgt";

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    match command::parse(&arguments) {
        Ok(Command::Print(text)) => print(text.as_bytes()),
        Ok(Command::Ask { request, payload, control_port }) => {
            let base = std::env::var("TGT_IPC_SOCKET").unwrap_or_else(|_| DEFAULT_SOCKET.to_owned());
            ask(&format!("{base}.{control_port}"), &request, &payload)
        }
        Err(refusal) => {
            eprint!("{}", refusal.text);
            ExitCode::from(refusal.exit)
        }
    }
}

fn print(bytes: &[u8]) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn no_daemon() -> ExitCode {
    eprintln!("tgtadm: failed to send request hdr to tgt daemon, Transport endpoint is not connected");
    ExitCode::from(EXIT_NO_DAEMON)
}

fn ask(socket: &str, request: &Request, payload: &str) -> ExitCode {
    let Ok(mut stream) = UnixStream::connect(socket) else { return no_daemon() };
    if stream.write_all(&request.encode(payload)).is_err() {
        return no_daemon();
    }
    let mut head = [0; REPLY_BYTES];
    if let Err(e) = stream.read_exact(&mut head) {
        eprintln!("tgtadm: can't get the response, {e}");
        return ExitCode::from(EXIT_INVALID);
    }
    let (code, length) = decode_reply(&head);
    if code != Code::Success.number() {
        eprintln!("tgtadm: {}", Code::from_number(code).map_or("(unknown tgtadm_errno)", Code::text));
        return ExitCode::from(EXIT_INVALID);
    }
    if request.mode == Mode::System.number() && request.op == Op::Delete.number() {
        // The socket stops answering when the target service has ended.
        while UnixStream::connect(socket).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let mut text = Vec::new();
    let wanted = u64::try_from(length).unwrap_or(u64::MAX);
    match stream.take(wanted).read_to_end(&mut text) {
        Ok(read) if read == length => {
            text.pop();
            print(&text)
        }
        _ => {
            eprintln!("tgtadm: can't get the full response");
            ExitCode::from(EXIT_INVALID)
        }
    }
}
