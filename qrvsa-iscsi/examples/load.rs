//! A load generator for benchmarks, for any iSCSI target: one session, one thread, so many reads or writes in flight, for
//! so many seconds; prints how many were done in a second. It costs far less per command than the initiators at hand, which
//! are busier than a fast target is.
//!
//! ```text
//! load ADDRESS TARGET LUN read|write BYTES DEPTH SECONDS
//! ```
//!
//! BYTES is a multiple of the LUN's block size, for writes at most 8 KiB (they go as immediate data). Places are random and
//! aligned to BYTES. Digests are off. Whatever is not GOOD ends the run with a message.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use qrvsa_iscsi::pdu::text;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BHS_BYTES: usize = 48;
const WRITE_BYTES_MAX: usize = 8192;

const NOP_IN: u8 = 0x20;
const RESPONSE: u8 = 0x21;
const LOGIN_RESPONSE: u8 = 0x23;
const DATA_IN: u8 = 0x25;
/// A sense key.
const UNIT_ATTENTION: u8 = 6;

struct Session {
    stream: TcpStream,
    lun: u8,
    cmd_sn: u32,
    max_cmd_sn: u32,
    stat_sn: u32,
    tag: u32,
    out: Vec<u8>,
    held: Vec<u8>,
    /// What of `held` is not looked at yet: begin and end.
    from: usize,
    to: usize,
}

/// A PDU that came: its header, and where its data lies in what is held.
struct Pdu {
    head: [u8; BHS_BYTES],
    data: std::ops::Range<usize>,
}

impl Pdu {
    fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.head[at], self.head[at + 1], self.head[at + 2], self.head[at + 3]])
    }
}

fn put(head: &mut [u8], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

impl Session {
    fn open(address: &str, target: &str, lun: u8) -> Result<Session> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut session = Session {
            stream,
            lun,
            cmd_sn: 1,
            max_cmd_sn: 1,
            stat_sn: 0,
            tag: 0,
            out: Vec::new(),
            held: vec![0; 4 << 20],
            from: 0,
            to: 0,
        };
        let mut words = Vec::new();
        for (key, value) in [
            ("InitiatorName", "iqn.2026-01.test:load"),
            ("TargetName", target),
            ("SessionType", "Normal"),
            ("AuthMethod", "None"),
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("FirstBurstLength", "65536"),
            ("MaxBurstLength", "1048576"),
        ] {
            text::push(&mut words, key, value);
        }
        // security first: some targets want it, and none minds
        for (flags, words) in [(0x81, words.as_slice()), (0x87, &[])] {
            let mut head = [0; BHS_BYTES];
            head[..2].copy_from_slice(&[0x43, flags]);
            head[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, 7]);
            put(&mut head, 16, 1);
            put(&mut head, 24, session.cmd_sn);
            put(&mut head, 28, session.stat_sn);
            session.queue(head, words);
            session.send()?;
            let pdu = session.receive()?;
            if pdu.opcode() != LOGIN_RESPONSE || pdu.head[36] != 0 {
                let status = u16::from_be_bytes([pdu.head[36], pdu.head[37]]);
                return Err(format!("{target} at {address} refused the login with status {status:04x}").into());
            }
            if pdu.head[1] & 0x83 == 0x83 {
                break;
            }
        }
        Ok(session)
    }

    fn queue(&mut self, mut head: [u8; BHS_BYTES], data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
        head[5..8].copy_from_slice(&length[1..]);
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(data);
        let padded = self.out.len().next_multiple_of(4);
        self.out.resize(padded, 0);
    }

    fn send(&mut self) -> Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Queues a command: a flag for its direction, the bytes it transfers, and its data.
    fn command(&mut self, direction: u8, bytes: usize, cdb: &[u8], data: &[u8]) -> Result<()> {
        let mut head = [0; BHS_BYTES];
        head[..2].copy_from_slice(&[0x01, 0x80 | direction | 1]);
        head[9] = self.lun;
        self.tag = (self.tag + 1) & 0xffff;
        put(&mut head, 16, self.tag);
        put(&mut head, 20, u32::try_from(bytes)?);
        put(&mut head, 24, self.cmd_sn);
        put(&mut head, 28, self.stat_sn);
        head[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.queue(head, data);
        Ok(())
    }

    /// Whether the target takes one more command.
    fn has_window(&self) -> bool {
        self.max_cmd_sn.wrapping_sub(self.cmd_sn) < 1 << 31
    }

    /// The next PDU that is whole in memory, or else in the socket.
    fn receive(&mut self) -> Result<Pdu> {
        loop {
            if let Some(pdu) = self.take()? {
                return Ok(pdu);
            }
            self.held.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            match self.stream.read(&mut self.held[self.to..])? {
                0 => return Err("the target closed the connection".into()),
                count => self.to += count,
            }
        }
    }

    /// The next PDU that is whole in memory.
    fn take(&mut self) -> Result<Option<Pdu>> {
        let rest = &self.held[self.from..self.to];
        let Some(head) = rest.first_chunk::<BHS_BYTES>() else { return Ok(None) };
        let ahs = usize::from(head[4]) * 4;
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let total = BHS_BYTES + ahs + length.next_multiple_of(4);
        if total > self.held.len() {
            return Err("a PDU is longer than was agreed on".into());
        }
        if rest.len() < total {
            return Ok(None);
        }
        let start = self.from + BHS_BYTES + ahs;
        let pdu = Pdu { head: *head, data: start..start + length };
        self.from += total;
        let has_status = pdu.opcode() != DATA_IN || pdu.head[1] & 1 != 0;
        if has_status {
            self.stat_sn = pdu.word(24).wrapping_add(1);
        }
        self.max_cmd_sn = pdu.word(32);
        Ok(Some(pdu))
    }

    /// Looks at a PDU: whether a command has ended with it, and whether it was done. A unit attention is told once and stops nothing.
    fn judge(&mut self, pdu: &Pdu) -> Result<Option<bool>> {
        match pdu.opcode() {
            DATA_IN if pdu.head[1] & 1 == 0 => Ok(None),
            DATA_IN | RESPONSE if pdu.head[3] == 0 && (pdu.opcode() == DATA_IN || pdu.head[2] == 0) => Ok(Some(true)),
            DATA_IN | RESPONSE => {
                let sense = self.held.get(pdu.data.clone()).and_then(|d| d.get(4..18)).unwrap_or_default();
                if sense.first().is_some_and(|key| key & 15 == UNIT_ATTENTION) {
                    return Ok(Some(false));
                }
                Err(format!("a command ended with status {:#04x}, sense {sense:02x?}", pdu.head[3]).into())
            }
            NOP_IN if pdu.word(20) != u32::MAX => {
                let mut head = [0; BHS_BYTES];
                head[..2].copy_from_slice(&[0x40, 0x80]);
                head[8..16].copy_from_slice(&pdu.head[8..16]);
                put(&mut head, 16, u32::MAX);
                head[20..24].copy_from_slice(&pdu.head[20..24]);
                put(&mut head, 24, self.cmd_sn);
                put(&mut head, 28, self.stat_sn);
                self.queue(head, &[]);
                Ok(None)
            }
            NOP_IN => Ok(None),
            other => Err(format!("an unexpected PDU with opcode {other:#04x}").into()),
        }
    }

    /// Runs one command to its end; the data that came.
    fn run(&mut self, direction: u8, bytes: usize, cdb: &[u8]) -> Result<Vec<u8>> {
        self.command(direction, bytes, cdb, &[])?;
        self.send()?;
        let mut data = Vec::new();
        loop {
            let pdu = self.receive()?;
            if pdu.opcode() == DATA_IN {
                data.extend_from_slice(&self.held[pdu.data.clone()]);
            }
            match self.judge(&pdu)? {
                Some(true) => return Ok(data),
                Some(false) => return Err("a unit attention".into()),
                None => {}
            }
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T>
where
    T::Err: Error + 'static,
{
    Ok(text.parse()?)
}

fn load(arguments: &[String]) -> Result<f64> {
    let [address, target, lun, kind, bytes, depth, seconds] = arguments else {
        return Err("usage: load ADDRESS TARGET LUN read|write BYTES DEPTH SECONDS".into());
    };
    let (lun, bytes, depth) = (number(lun)?, number::<usize>(bytes)?, number::<usize>(depth)?.max(1));
    let (time, writes) = (Duration::from_secs_f64(number(seconds)?), kind == "write");
    if writes && bytes > WRITE_BYTES_MAX {
        return Err(format!("writes are of at most {WRITE_BYTES_MAX} bytes").into());
    }
    let mut session = Session::open(address, target, lun)?;
    // a unit attention or two stand before everything else
    let ready = [0; 6];
    for _ in 0..4 {
        if session.run(0, 0, &ready).is_ok() {
            break;
        }
    }
    let capacity = session.run(0x40, 8, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    let word = |at: usize| capacity.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_be_bytes);
    let (blocks, block_bytes) = (u64::from(word(0)) + 1, u64::from(word(4)).max(1));
    let per_command = bytes as u64 / block_bytes;
    if per_command == 0 || !(bytes as u64).is_multiple_of(block_bytes) || blocks < per_command {
        return Err(format!("{bytes} bytes are no number of blocks of {block_bytes} bytes").into());
    }
    let contents = vec![0xa5; if writes { bytes } else { 0 }];
    let (code, direction) = if writes { (0x2a, 0x20) } else { (0x28, 0x40) };
    let count = u16::try_from(per_command)?.to_be_bytes();
    let (mut state, mut flying, mut done) = (0x9e37_79b9_7f4a_7c15u64, 0, 0u64);
    let start = Instant::now();
    loop {
        let going_on = start.elapsed() < time;
        while going_on && flying < depth && session.has_window() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = u32::try_from(state % (blocks / per_command) * per_command)?.to_be_bytes();
            let cdb = [code, 0, at[0], at[1], at[2], at[3], 0, count[0], count[1], 0];
            session.command(direction, bytes, &cdb, &contents)?;
            flying += 1;
        }
        if flying == 0 {
            break;
        }
        session.send()?;
        // all that has come, so that what follows goes out together
        let mut pdu = session.receive()?;
        loop {
            if let Some(good) = session.judge(&pdu)? {
                flying -= 1;
                done += u64::from(good);
            }
            match session.take()? {
                Some(next) => pdu = next,
                None => break,
            }
        }
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn main() -> ExitCode {
    match load(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(rate) => {
            println!("{rate:.0}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
