//! An initiator that does as it is told, right or wrong, and a device server that can be made to wait.

#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "each test file uses a part of it")]

pub mod device;
pub mod model;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::pdu::frame::{self, Rules};
use qrvsa_iscsi::pdu::{BHS_BYTES, Bhs, digest, padded, text};
use qrvsa_iscsi::service::Service;

pub use device::Device;

pub const TARGET: &str = "iqn.2026-01.test:t";
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A service with one target that lets everybody in, on a free port.
pub struct Bench {
    pub service: Service,
    pub device: Arc<Device>,
    pub address: SocketAddr,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(|_| (), |_| ())
    }

    pub fn with(limits: impl FnOnce(&mut Limits), target: impl FnOnce(&mut TargetConfig)) -> Bench {
        let mut bounds = Limits::default();
        limits(&mut bounds);
        let service = Service::new(bounds);
        let address = service.add_portal("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let device = Arc::new(Device::default());
        let mut config = TargetConfig::new(TARGET.parse().unwrap(), 1);
        config.acl.push(AclRule::All);
        config.nop_interval = Duration::ZERO;
        target(&mut config);
        service.create_target(config, device.clone()).unwrap();
        Bench { service, device, address }
    }

    pub fn connect(&self) -> Initiator {
        Initiator::connect(self.address)
    }

    /// A normal session with these keys beside the usual ones.
    pub fn session(&self, keys: &[(&str, &str)]) -> Initiator {
        let mut initiator = self.connect();
        assert_eq!(initiator.login(keys), 0);
        initiator
    }

    /// The same, of an initiator of that name.
    pub fn session_of(&self, name: &str, keys: &[(&str, &str)]) -> Initiator {
        let mut initiator = Initiator { name: name.into(), ..self.connect() };
        assert_eq!(initiator.login(keys), 0);
        initiator
    }

    pub fn change(&self, change: impl FnOnce(&mut TargetConfig)) {
        let mut config = (*self.service.target(TARGET).unwrap().config).clone();
        change(&mut config);
        self.service.update_target(config).unwrap();
    }

    /// Waits until there are so many sessions.
    pub fn until_sessions(&self, count: usize) {
        until(|| self.service.sessions(TARGET).unwrap().len() == count);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.device.release_all();
        self.service.shutdown(Duration::ZERO);
    }
}

/// Waits for something that must come.
pub fn until(mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Clone, Debug)]
pub struct Pdu {
    pub bhs: Bhs,
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn opcode(&self) -> u8 {
        self.bhs.opcode()
    }
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs.0[at..at + 4].try_into().unwrap())
    }
    pub fn stat_sn(&self) -> u32 {
        self.word(24)
    }
    pub fn status(&self) -> u8 {
        self.bhs.0[3]
    }
    pub fn pairs(&self) -> Vec<(String, String)> {
        text::parse(&self.data).unwrap()
    }
    pub fn value(&self, key: &str) -> Option<String> {
        self.pairs().into_iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }
    /// Sense key, additional sense code and qualifier.
    pub fn sense(&self) -> (u8, u8, u8) {
        (self.data[4] & 15, self.data[14], self.data[15])
    }
}

/// A request header in the making.
#[derive(Clone)]
pub struct Head(pub [u8; BHS_BYTES]);

impl Head {
    pub fn new(opcode: u8, flags: u8) -> Head {
        let mut bytes = [0; BHS_BYTES];
        bytes[0] = opcode;
        bytes[1] = flags;
        Head(bytes)
    }
    pub fn word(mut self, at: usize, value: u32) -> Head {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }
    pub fn byte(mut self, at: usize, value: u8) -> Head {
        self.0[at] = value;
        self
    }
    pub fn immediate(self) -> Head {
        let first = self.0[0] | 0x40;
        self.byte(0, first)
    }
    pub fn lun(self, lun: u8) -> Head {
        self.byte(9, lun)
    }
    pub fn cdb(mut self, cdb: &[u8]) -> Head {
        self.0[32..32 + cdb.len()].copy_from_slice(cdb);
        self
    }
}

pub const READ: u8 = 0xc0;
pub const WRITE: u8 = 0xa0;
pub const NONE: u8 = 0x80;

pub struct Initiator {
    pub stream: TcpStream,
    pub name: String,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    pub cmd_sn: u32,
    pub next_tag: u32,
    pub stat_sn: Option<u32>,
    pub max_cmd_sn: u32,
    pub exp_cmd_sn: u32,
    pub digests: (bool, bool),
    /// The last login response.
    pub answer: Option<Pdu>,
    pub held: Vec<u8>,
}

impl Initiator {
    pub fn connect(address: SocketAddr) -> Initiator {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Initiator {
            stream,
            name: "iqn.2026-01.test:i".into(),
            isid: [0x80, 0, 0, 0, 0, 1],
            tsih: 0,
            cid: 0,
            cmd_sn: 100,
            next_tag: 1,
            stat_sn: None,
            max_cmd_sn: 0,
            exp_cmd_sn: 0,
            digests: (false, false),
            answer: None,
            held: Vec::new(),
        }
    }

    pub fn login_head(&self, flags: u8) -> Head {
        let mut head = Head::new(0x43, flags).word(16, 0x1001).word(24, self.cmd_sn);
        head.0[8..14].copy_from_slice(&self.isid);
        head.0[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        head.0[20..22].copy_from_slice(&self.cid.to_be_bytes());
        head
    }

    pub fn login_step(&mut self, flags: u8, pairs: &[(&str, &str)]) -> Pdu {
        let mut text = Vec::new();
        for (key, value) in pairs {
            text::push(&mut text, key, value);
        }
        self.send(self.login_head(flags), &text);
        let pdu = self.receive().unwrap();
        assert_eq!(pdu.opcode(), 0x23);
        pdu
    }

    /// Logs in in one step; the status.
    pub fn login(&mut self, keys: &[(&str, &str)]) -> u16 {
        let name = self.name.clone();
        let first = [("InitiatorName", name.as_str()), ("TargetName", TARGET)];
        let pdu = self.login_step(0x87, &[&first, keys].concat());
        let status = u16::from_be_bytes([pdu.bhs.0[36], pdu.bhs.0[37]]);
        if status == 0 {
            self.tsih = pdu.bhs.tsih();
            self.digests = (
                pdu.value("HeaderDigest").as_deref() == Some("CRC32C"),
                pdu.value("DataDigest").as_deref() == Some("CRC32C"),
            );
        }
        self.answer = Some(pdu);
        status
    }

    /// Logs in to a discovery session.
    pub fn discover(&mut self) -> Pdu {
        let name = self.name.clone();
        self.login_step(0x87, &[("InitiatorName", &name), ("SessionType", "Discovery")])
    }

    pub fn bytes_of(&self, mut head: Head, ahs: &[u8], data: &[u8]) -> Vec<u8> {
        head.0[4] = u8::try_from(ahs.len() / 4).unwrap();
        head.0[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        let mut bytes = head.0.to_vec();
        bytes.extend_from_slice(ahs);
        if self.digests.0 {
            let sum = digest(&[&bytes]);
            bytes.extend(sum);
        }
        let at = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(at + padded(data.len()), 0);
        if self.digests.1 && !data.is_empty() {
            let sum = digest(&[&bytes[at..]]);
            bytes.extend(sum);
        }
        bytes
    }

    pub fn send(&mut self, head: Head, data: &[u8]) {
        let bytes = self.bytes_of(head, &[], data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a request that takes a CmdSN.
    pub fn send_numbered(&mut self, head: Head, data: &[u8]) {
        let head = head.word(24, self.cmd_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(head, data);
    }

    pub fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    pub fn command_head(&mut self, flags: u8, expected: u32, cdb: &[u8]) -> (u32, Head) {
        let tag = self.tag();
        (tag, Head::new(0x01, flags | 1).lun(1).word(16, tag).word(20, expected).cdb(cdb))
    }

    /// Sends a command; its tag.
    pub fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> u32 {
        let (tag, head) = self.command_head(flags, expected, cdb);
        self.send_numbered(head, data);
        tag
    }

    pub fn data_out(&mut self, tag: u32, transfer_tag: u32, sn: u32, offset: u32, last: bool, data: &[u8]) {
        let head = Head::new(0x05, if last { 0x80 } else { 0 })
            .lun(1)
            .word(16, tag)
            .word(20, transfer_tag)
            .word(36, sn)
            .word(40, offset);
        self.send(head, data);
    }

    /// The next PDU. Checks the sequence numbers that every PDU has.
    pub fn receive(&mut self) -> io::Result<Pdu> {
        let rules = Rules { header_digest: self.digests.0, data_digest: self.digests.1, data_bytes_max: 1 << 24 };
        loop {
            if let Some(header) = frame::header(&self.held, &rules).map_err(|e| io::Error::other(e.to_string()))?
                && let Some(pdu) = frame::body(&self.held, &header, &rules)
            {
                assert!(pdu.data_good);
                let pdu = Pdu { bhs: pdu.bhs, data: pdu.data.to_vec() };
                self.held.drain(..header.total);
                self.check(&pdu);
                return Ok(pdu);
            }
            let mut chunk = vec![0; 256 << 10];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.held.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn check(&mut self, pdu: &Pdu) {
        let plain_data_in = pdu.opcode() == 0x25 && pdu.bhs.flags() & 1 == 0;
        let ping = pdu.opcode() == 0x20 && pdu.bhs.task_tag() == u32::MAX;
        if !plain_data_in {
            if let Some(expected) = self.stat_sn {
                assert_eq!(pdu.stat_sn(), expected, "StatSN of {:?}", pdu.bhs);
            }
            let takes_one = !ping && pdu.opcode() != 0x31;
            self.stat_sn = Some(pdu.stat_sn().wrapping_add(u32::from(takes_one)));
        }
        assert!(pdu.word(32).wrapping_sub(self.max_cmd_sn) < 1 << 31 || self.max_cmd_sn == 0, "MaxCmdSN went back");
        self.max_cmd_sn = pdu.word(32);
        self.exp_cmd_sn = pdu.word(28);
    }

    /// Sends a command, and collects its data and its final PDU.
    pub fn run(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> (Pdu, Vec<u8>) {
        let tag = self.command(flags, expected, cdb, data);
        self.finish(tag)
    }

    /// Collects data and final PDU of a command; nothing else may come.
    pub fn finish(&mut self, tag: u32) -> (Pdu, Vec<u8>) {
        let mut data = Vec::new();
        let mut count = 0;
        loop {
            let pdu = self.receive().unwrap();
            assert_eq!(pdu.bhs.task_tag(), tag, "{pdu:?}");
            match pdu.opcode() {
                0x25 => {
                    assert_eq!((pdu.word(36), pdu.word(40) as usize), (count, data.len()), "DataSN and offset");
                    count += 1;
                    data.extend_from_slice(&pdu.data);
                    if pdu.bhs.flags() & 1 != 0 {
                        return (pdu, data);
                    }
                }
                0x21 => return (pdu, data),
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    pub fn manage(&mut self, function: u8, referenced: u32, ref_cmd_sn: u32) -> u32 {
        let tag = self.tag();
        let head = Head::new(0x42, 0x80 | function)
            .lun(1)
            .word(16, tag)
            .word(20, referenced)
            .word(24, self.cmd_sn)
            .word(32, ref_cmd_sn);
        self.send(head, &[]);
        tag
    }

    /// Sends a ping and waits for its answer: all before it was looked at.
    pub fn ping(&mut self) -> Pdu {
        let tag = self.tag();
        self.send(Head::new(0x40, 0x80).word(16, tag).word(20, u32::MAX).word(24, self.cmd_sn), b"ping");
        let pdu = self.receive().unwrap();
        assert_eq!((pdu.opcode(), pdu.bhs.task_tag(), pdu.data.as_slice()), (0x20, tag, &b"ping"[..]));
        pdu
    }

    /// Whether the target closes the connection; what it sends before is thrown away.
    pub fn closed(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

pub fn read10(block: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![0x28, 0];
    cdb.extend(block.to_be_bytes());
    cdb.push(0);
    cdb.extend(blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

pub fn write10(block: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = read10(block, blocks);
    cdb[0] = 0x2a;
    cdb
}

pub fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|n| u8::try_from((n * 31 + n / 251 + usize::from(seed)) % 256).unwrap()).collect()
}
