//! A line that is typed on a terminal and not shown there.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// What ends the program while it waits for somebody to type.
const ENDS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Asks on standard error for a line on the terminal that standard input is, which does not show it. The line comes with its
/// end, if it has one. A signal that ends the program ends it when the terminal is again as it was.
///
/// # Errors
/// It cannot be read, or is no UTF-8. Nothing is read when the terminal would show it.
pub fn read_hidden(prompt: &str, bytes_max: u64) -> io::Result<String> {
    let stdin = io::stdin();
    // Standard input has nothing buffered: nothing was read of it.
    let mut input = File::from(stdin.as_fd().try_clone_to_owned()?);
    let ends: SigSet = ENDS.into_iter().collect();
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)?;
    // This is the program's only thread so far; what is blocked here waits until it is asked for.
    let before = SigSet::thread_get_mask()?;
    ends.thread_block()?;
    let line = Hidden::begin(stdin.as_fd()).map_err(io::Error::from).and_then(|_hidden| {
        let _ = io::stderr().write_all(prompt.as_bytes());
        line(&mut input, &signals, bytes_max)
    });
    let line = match line {
        Ok(Typed::Line(line)) => Ok(line),
        Ok(Typed::Signal(signal)) => {
            let _ = io::stderr().write_all(b"\n");
            // Pending once more, and let in by the next line.
            raise(signal).and(Err(Errno::EINTR)).map_err(io::Error::from)
        }
        Err(e) => Err(e),
    };
    before.thread_set_mask()?;
    String::from_utf8(line?).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is no UTF-8"))
}

/// A terminal that does not show what is typed, but for the end of a line. Dropped, it is as it was.
struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl Hidden<'_> {
    fn begin(terminal: BorrowedFd<'_>) -> nix::Result<Hidden<'_>> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        quiet.local_flags.insert(LocalFlags::ECHONL | LocalFlags::ICANON);
        tcsetattr(terminal, SetArg::TCSANOW, &quiet)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// What somebody did at the terminal.
enum Typed {
    Line(Vec<u8>),
    Signal(Signal),
}

/// Waits for a line, its end or a signal. More than `bytes_max` of a line may be returned, so that nothing of it is left for
/// the next program.
fn line(input: &mut File, signals: &SignalFd, bytes_max: u64) -> io::Result<Typed> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && (line.len() as u64) < bytes_max {
        let mut ready =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        if ready[0].any() == Some(true)
            && let Some(signal) = signals.read_signal()?
        {
            let number = i32::try_from(signal.ssi_signo).map_err(io::Error::other)?;
            return Ok(Typed::Signal(Signal::try_from(number)?));
        }
        // The longest line of a terminal.
        let mut piece = [0; 4096];
        match input.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => line.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Typed::Line(line))
}
