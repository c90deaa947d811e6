//! A day of session faults, from one seed: connections cut in the middle of PDUs, peers that are slow, silent or dead, sessions and
//! connections that are replaced, aborted tasks, resets, targets changed and removed. The service's clock is moved ahead, so that
//! hours of pings and deadlines pass in seconds. Every acknowledged write is there, nothing that was not sent in full happened, and
//! what was aborted or cut off does not happen later.
//!
//! `QRVSA_FAULT_SEED` and `QRVSA_FAULT_HOURS` choose another day.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::scsi::{TargetUnits, UnitConfig};
use qrvsa_iscsi::service::Service;
use support::model::{BLOCK, Model, Slow, content};
use support::{Head, Initiator, NONE, Pdu, READ, TARGET, WRITE, read10, until, write10};

const HOSTS: usize = 4;
/// Blocks of each host's own part of the disk.
const PART: u32 = 256;
const NO_TAG: u32 = u32::MAX;
const NOP_INTERVAL_S: u64 = 20;

/// A write that has no answer.
struct Sent {
    first: u32,
    count: u32,
    version: u32,
    /// All of its data is on its way; before that, it must not happen.
    complete: bool,
}

#[derive(Default)]
struct Host {
    link: Option<Initiator>,
    keys: Keys,
    sent: BTreeMap<u32, Sent>,
    /// The last task management answer.
    managed: Option<u8>,
}

#[derive(Clone, Copy, Default)]
struct Keys {
    immediate: bool,
    initial_r2t: bool,
    first_burst: usize,
    digests: bool,
}

struct World {
    service: Service,
    address: SocketAddr,
    disk: Arc<Slow>,
    hosts: Vec<Host>,
    model: Model,
    random: u64,
    version: u32,
    faults: u64,
    passed: Duration,
}

fn config() -> TargetConfig {
    let mut config = TargetConfig::new(TARGET.parse().unwrap(), 1);
    config.acl.push(AclRule::All);
    config.nop_interval = Duration::from_secs(NOP_INTERVAL_S);
    config
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits { data_in_bytes_max: 1 << 20, ..Limits::default() };
        let service = Service::new(limits);
        let address = service.add_portal("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let blocks = PART * HOSTS as u32;
        let world = World {
            service,
            address,
            disk: Arc::new(Slow::new(u64::from(blocks) * BLOCK as u64)),
            hosts: (0..HOSTS).map(|_| Host::default()).collect(),
            model: Model::new(blocks),
            random: seed,
            version: 0,
            faults: 0,
            passed: Duration::ZERO,
        };
        world.make_target();
        world
    }

    fn make_target(&self) {
        let units = TargetUnits::new(TARGET, None);
        units.add_unit(1, UnitConfig::default(), self.disk.clone()).unwrap();
        self.service.create_target(config(), Arc::new(units)).unwrap();
    }

    /// A number below `bound` (SplitMix64).
    fn pick(&mut self, bound: u32) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ z >> 31) % u64::from(bound)).unwrap()
    }

    fn connect(&self, host: usize) -> Initiator {
        let mut link = Initiator::connect(self.address);
        link.isid[5] = u8::try_from(host + 1).unwrap();
        link
    }

    fn texts(keys: Keys) -> Vec<(&'static str, String)> {
        let yes = |on: bool| if on { "Yes" } else { "No" }.to_owned();
        let digest = if keys.digests { "CRC32C" } else { "None" };
        vec![
            ("ImmediateData", yes(keys.immediate)),
            ("InitialR2T", yes(keys.initial_r2t)),
            ("FirstBurstLength", keys.first_burst.to_string()),
            ("MaxBurstLength", "16384".into()),
            ("HeaderDigest", digest.into()),
            ("DataDigest", digest.into()),
            ("MaxRecvDataSegmentLength", "8192".into()),
        ]
    }

    fn log_in(link: &mut Initiator, keys: Keys) -> u16 {
        let texts = World::texts(keys);
        let pairs: Vec<(&str, &str)> = texts.iter().map(|(k, v)| (*k, v.as_str())).collect();
        link.login(&pairs)
    }

    /// A new session, in the place of the one that is there.
    fn join(&mut self, host: usize) {
        let keys = Keys {
            immediate: self.pick(2) == 0,
            initial_r2t: self.pick(2) == 0,
            first_burst: 1024 << self.pick(4),
            digests: self.pick(4) == 0,
        };
        let mut link = self.connect(host);
        assert_eq!(World::log_in(&mut link, keys), 0, "a login after {} faults", self.faults);
        self.lose(host);
        (self.hosts[host].link, self.hosts[host].keys) = (Some(link), keys);
        self.settle(host);
    }

    /// The session is over. What was under way has happened or never will: whoever logs in next waits for that.
    fn lose(&mut self, host: usize) {
        self.hosts[host].link = None;
        self.give_up(host);
    }

    fn give_up(&mut self, host: usize) {
        for (_, sent) in std::mem::take(&mut self.hosts[host].sent) {
            if sent.complete {
                self.model.perhaps(sent.first, sent.count, sent.version);
            }
        }
    }

    /// Takes the unit attentions.
    fn settle(&mut self, host: usize) {
        for _ in 0..20 {
            match self.simple(host, NONE, 0, &[0; 6]) {
                Some((pdu, _)) if pdu.status() == 0 => return,
                Some(_) => {}
                None => return self.join(host),
            }
        }
        panic!("unit attentions without end");
    }

    /// A command without data-out; `None` when the session ended.
    fn simple(&mut self, host: usize, flags: u8, expected: u32, cdb: &[u8]) -> Option<(Pdu, Vec<u8>)> {
        let link = self.hosts[host].link.as_mut()?;
        let (tag, head) = link.command_head(flags, expected, cdb);
        let bytes = link.bytes_of(head.word(24, link.cmd_sn), &[], &[]);
        link.cmd_sn = link.cmd_sn.wrapping_add(1);
        // Whether anybody listens shows when the answer is read.
        let _ = link.stream.write_all(&bytes);
        let mut data = Vec::new();
        loop {
            let pdu = self.receive(host)?;
            if pdu.bhs.task_tag() != tag {
                continue;
            }
            if pdu.opcode() == 0x25 {
                data.extend_from_slice(&pdu.data);
            }
            if pdu.opcode() == 0x21 || pdu.bhs.flags() & 1 != 0 {
                return Some((pdu, data));
            }
        }
    }

    /// The next PDU, after what it asks for was done. `None`: the session has ended.
    fn receive(&mut self, host: usize) -> Option<Pdu> {
        let Ok(pdu) = self.hosts[host].link.as_mut()?.receive() else {
            self.lose(host);
            return None;
        };
        let tag = pdu.bhs.task_tag();
        match pdu.opcode() {
            0x20 if tag == NO_TAG => {
                let link = self.hosts[host].link.as_mut()?;
                let head = Head::new(0x40, 0x80).word(16, NO_TAG).word(20, pdu.word(20)).word(24, link.cmd_sn);
                let bytes = link.bytes_of(head, &[], &[]);
                let _ = link.stream.write_all(&bytes);
            }
            0x21 => {
                if let Some(sent) = self.hosts[host].sent.remove(&tag) {
                    match pdu.status() {
                        0 => self.model.written(sent.first, sent.count, sent.version),
                        // A unit attention comes in the place of the command.
                        2 if pdu.sense().0 == 6 => {}
                        status => self.model.violations.push(format!("a write ends with {status:#x}: {pdu:?}")),
                    }
                }
            }
            0x22 => self.hosts[host].managed = Some(pdu.bhs.0[2]),
            0x31 => self.feed(host, &pdu),
            0x3f => self.model.violations.push(format!("a reject: {pdu:?}")),
            _ => {}
        }
        Some(pdu)
    }

    /// Sends what an R2T asks for.
    fn feed(&mut self, host: usize, r2t: &Pdu) {
        let tag = r2t.bhs.task_tag();
        let Host { link: Some(link), sent, .. } = &mut self.hosts[host] else { return };
        let Some(task) = sent.get_mut(&tag) else { return };
        let data = bytes_of(task);
        let (offset, length) = (r2t.word(40) as usize, r2t.word(44) as usize);
        let part = &data[offset..offset + length];
        task.complete |= offset + length == data.len();
        let pieces = part.chunks(4096);
        let last = pieces.len() - 1;
        for (n, piece) in pieces.enumerate() {
            let at = u32::try_from(offset + n * 4096).unwrap();
            let bytes = data_out(link, tag, r2t.word(20), u32::try_from(n).unwrap(), at, n == last, piece);
            // Whether it still listens shows when it is read from.
            let _ = link.stream.write_all(&bytes);
        }
    }

    /// Blocks of a host's part that no write is under way for.
    fn place(&mut self, host: usize) -> (u32, u32) {
        loop {
            let count = 1 + self.pick(48);
            let first = host as u32 * PART + self.pick(PART - count);
            let apart = |s: &Sent| first + count <= s.first || s.first + s.count <= first;
            if self.hosts[host].sent.values().all(apart) {
                return (first, count);
            }
        }
    }

    /// The bytes of a write up to where the target has to speak; its tag. They are not sent.
    fn prepare(&mut self, host: usize) -> Option<(u32, Vec<u8>)> {
        let (first, count) = self.place(host);
        self.version += 1;
        let mut task = Sent { first, count, version: self.version, complete: false };
        let data = bytes_of(&task);
        let Keys { immediate, initial_r2t, first_burst, .. } = self.hosts[host].keys;
        let burst = data.len().min(first_burst);
        let now = if immediate { self.pick(u32::try_from(burst / 4 + 1).unwrap()) as usize * 4 } else { 0 };
        let more = !initial_r2t && now < burst && self.pick(2) == 0;
        // Simple tasks mostly; some are ordered, some go to the head of the queue, some are immediate.
        let (attribute, immediate_command) = ([1, 1, 1, 1, 2, 3][self.pick(6) as usize], self.pick(10) == 0);
        let link = self.hosts[host].link.as_mut()?;
        let flags = if more { WRITE & 0x7f } else { WRITE };
        let (tag, head) = link.command_head(flags, u32::try_from(data.len()).unwrap(), &write10(first, count as u16));
        let head = head.byte(1, flags | attribute).word(24, link.cmd_sn);
        let head = if immediate_command { head.immediate() } else { head };
        link.cmd_sn = link.cmd_sn.wrapping_add(u32::from(!immediate_command));
        let mut bytes = link.bytes_of(head, &[], &data[..now]);
        task.complete = now == data.len();
        if more {
            let pieces: Vec<_> = data[now..burst].chunks(2048).collect();
            for (n, piece) in pieces.iter().enumerate() {
                let at = u32::try_from(now + n * 2048).unwrap();
                let last = n + 1 == pieces.len();
                bytes.extend(data_out(link, tag, NO_TAG, u32::try_from(n).unwrap(), at, last, piece));
            }
            task.complete = burst == data.len();
        }
        self.hosts[host].sent.insert(tag, task);
        Some((tag, bytes))
    }

    /// Sends so many writes, and does not wait.
    fn begin(&mut self, host: usize, count: u32) -> Vec<u32> {
        let mut tags = Vec::new();
        for _ in 0..count {
            let Some((tag, bytes)) = self.prepare(host) else { return tags };
            if self.hosts[host].link.as_mut().is_none_or(|l| l.stream.write_all(&bytes).is_err()) {
                self.lose(host);
                return Vec::new();
            }
            tags.push(tag);
        }
        tags
    }

    /// Waits for all answers.
    fn collect(&mut self, host: usize) {
        while !self.hosts[host].sent.is_empty() && self.receive(host).is_some() {}
    }

    fn verify(&mut self, host: usize) {
        let (first, count) = self.place(host);
        if let Some((pdu, data)) = self.simple(host, READ, count * BLOCK as u32, &read10(first, count as u16)) {
            match pdu.opcode() {
                0x25 => self.model.read(first, &data),
                _ => assert_eq!(pdu.sense().0, 6, "{pdu:?}"),
            }
        }
    }

    /// A ping and its answer: all that was sent before has arrived.
    fn ping(&mut self, host: usize) {
        let Some(link) = self.hosts[host].link.as_mut() else { return };
        let tag = link.tag();
        let head = Head::new(0x40, 0x80).word(16, tag).word(20, NO_TAG).word(24, link.cmd_sn);
        let bytes = link.bytes_of(head, &[], &[]);
        let _ = link.stream.write_all(&bytes);
        while let Some(pdu) = self.receive(host) {
            if pdu.bhs.task_tag() == tag {
                return;
            }
        }
    }

    /// Lets time pass; everybody but `silent` shows that it is alive.
    fn pass(&mut self, seconds: u64, silent: Option<usize>) {
        let by = Duration::from_secs(seconds);
        self.passed += by;
        self.service.advance_clock(by);
        for host in (0..HOSTS).filter(|h| Some(*h) != silent) {
            self.ping(host);
        }
    }

    fn is_there(&self, host: usize) -> bool {
        let isid = u8::try_from(host + 1).unwrap();
        self.service.sessions(TARGET).unwrap().iter().any(|s| s.isid[5] == isid)
    }

    /// Time passes until the target has dropped a host that does not do what it should.
    fn until_dropped(&mut self, host: usize, seconds: u64) {
        let end = self.passed + Duration::from_secs(3600);
        for turn in 0u32.. {
            if !self.is_there(host) {
                break;
            }
            assert!(self.passed < end, "a dead peer is still there after an hour");
            self.pass(seconds, Some(host));
            // Threads of the target have to run for it to see what time it is. The hour is half a minute at least.
            std::thread::sleep(Duration::from_millis(1 << (turn / 8).min(9)));
        }
        self.lose(host);
    }

    /// Task management, with its answer.
    fn manage(&mut self, host: usize, function: u8, referenced: u32) -> Option<u8> {
        let link = self.hosts[host].link.as_mut()?;
        let tag = link.tag();
        let head = Head::new(0x42, 0x80 | function).lun(1).word(16, tag).word(20, referenced).word(24, link.cmd_sn);
        let bytes = link.bytes_of(head, &[], &[]);
        let _ = link.stream.write_all(&bytes);
        self.hosts[host].managed = None;
        while self.hosts[host].managed.is_none() {
            self.receive(host)?;
        }
        self.hosts[host].managed
    }

    fn fault(&mut self, host: usize) {
        self.faults += 1;
        match self.pick(15) {
            // Cut in the middle of a PDU, or between two.
            0 | 1 => {
                self.begin_some(host);
                if let Some((tag, bytes)) = self.prepare(host) {
                    let cut = self.pick(u32::try_from(bytes.len()).unwrap()) as usize;
                    if let Some(task) = self.hosts[host].sent.get_mut(&tag) {
                        task.complete = false;
                    }
                    if let Some(link) = &mut self.hosts[host].link {
                        let _ = link.stream.write_all(&bytes[..cut]);
                    }
                }
                self.lose(host);
            }
            // The session is replaced.
            2 => {
                self.begin_some(host);
                self.join(host);
            }
            // The connection is replaced, the session goes on.
            3 => {
                self.begin_some(host);
                let Some(old) = &self.hosts[host].link else { return };
                let (tsih, keys) = (old.tsih, self.hosts[host].keys);
                let mut link = self.connect(host);
                link.tsih = tsih;
                link.next_tag = old.next_tag;
                if World::log_in(&mut link, keys) == 0 {
                    link.cmd_sn = link.exp_cmd_sn;
                    self.give_up(host);
                    self.hosts[host].link = Some(link);
                } else {
                    self.lose(host);
                }
            }
            // Two logins, of which the first ends last.
            4 => {
                self.begin_some(host);
                let mut first = self.connect(host);
                let name = first.name.clone();
                first.login_step(0x81, &[("InitiatorName", &name), ("TargetName", TARGET), ("AuthMethod", "None")]);
                self.join(host);
                self.begin_some(host);
                let keys = Keys { first_burst: 4096, immediate: true, initial_r2t: true, digests: false };
                let texts = World::texts(keys);
                let pairs: Vec<(&str, &str)> = texts.iter().map(|(k, v)| (*k, v.as_str())).collect();
                let answer = first.login_step(0x87, &pairs);
                assert_eq!(answer.bhs.0[36..38], [0, 0]);
                first.tsih = answer.bhs.tsih();
                self.lose(host);
                (self.hosts[host].link, self.hosts[host].keys) = (Some(first), keys);
                self.settle(host);
            }
            // A login that never ends.
            5 => {
                let mut idle = self.connect(host);
                let name = idle.name.clone();
                idle.login_step(0x81, &[("InitiatorName", &name), ("TargetName", TARGET), ("AuthMethod", "None")]);
                let _ = idle.stream.write_all(&[0x43; 20]);
                self.pass(16, None);
                assert!(idle.closed());
            }
            // Silence.
            6 => {
                self.begin_some(host);
                self.until_dropped(host, NOP_INTERVAL_S + 1);
            }
            // Data that was asked for does not come.
            7 => {
                let keys = self.hosts[host].keys;
                self.hosts[host].keys = Keys { immediate: false, initial_r2t: true, ..keys };
                let tags = self.begin(host, 1);
                self.hosts[host].keys = keys;
                for tag in tags {
                    self.hosts[host].sent.get_mut(&tag).unwrap().complete = false;
                }
                self.until_dropped(host, 31);
            }
            // A reader that does not read.
            8 => {
                if let Some(link) = &mut self.hosts[host].link {
                    for _ in 0..100 {
                        let (_, head) = link.command_head(READ, PART * BLOCK as u32, &read10(0, PART as u16));
                        let head = head.word(24, link.cmd_sn);
                        link.cmd_sn = link.cmd_sn.wrapping_add(1);
                        let bytes = link.bytes_of(head, &[], &[]);
                        let _ = link.stream.write_all(&bytes);
                    }
                }
                self.until_dropped(host, 31);
            }
            // One task, or all of this host.
            9 => {
                let tags = self.begin_some(host);
                let victim = tags.first().copied().unwrap_or(7);
                let code = self.manage(host, 1, victim);
                if code == Some(0)
                    && let Some(sent) = self.hosts[host].sent.remove(&victim)
                    && sent.complete
                {
                    self.model.perhaps(sent.first, sent.count, sent.version);
                }
                if code == Some(1) && self.hosts[host].sent.contains_key(&victim) {
                    self.model.violations.push("a task that is said to be unknown was never answered".into());
                }
                self.verify(host);
            }
            10 => {
                self.begin_some(host);
                if self.manage(host, 2, NO_TAG).is_some() {
                    self.give_up(host);
                }
            }
            // Resets, which end the others' tasks, too.
            11 => {
                for other in 0..HOSTS {
                    self.begin_some(other);
                    self.ping(other);
                }
                let function = [4, 5, 6, 7][self.pick(4) as usize];
                if self.manage(host, function, NO_TAG).is_some() {
                    for other in 0..HOSTS {
                        if function == 7 {
                            while self.receive(other).is_some() {}
                        } else {
                            self.ping(other);
                        }
                        self.give_up(other);
                    }
                }
            }
            // A logout with tasks under way.
            13 => {
                self.begin_some(host);
                if let Some(link) = &mut self.hosts[host].link {
                    let head = Head::new(0x46, 0x80).word(16, 0x7777_0000).word(24, link.cmd_sn);
                    let bytes = link.bytes_of(head, &[], &[]);
                    let _ = link.stream.write_all(&bytes);
                }
                while self.receive(host).is_some() {}
            }
            // The administrator: another configuration, a session dropped.
            12 => {
                let mut config = config();
                config.parameters.max_queue_cmd = 64 + u16::try_from(self.pick(64)).unwrap();
                self.service.update_target(config).unwrap();
                self.begin_some(host);
                let isid = u8::try_from(host + 1).unwrap();
                let sessions = self.service.sessions(TARGET).unwrap();
                if let Some(session) = sessions.iter().find(|s| s.isid[5] == isid) {
                    let _ = self.service.drop_session(TARGET, session.sid);
                }
                self.collect(host);
                self.lose(host);
            }
            // The target goes and comes back.
            _ => {
                for other in 0..HOSTS {
                    self.begin_some(other);
                }
                self.service.remove_target(TARGET, true).unwrap();
                self.make_target();
                for other in 0..HOSTS {
                    while self.receive(other).is_some() {}
                    self.lose(other);
                }
            }
        }
    }

    fn begin_some(&mut self, host: usize) -> Vec<u32> {
        if self.hosts[host].link.is_none() {
            self.join(host);
        }
        if self.hosts[host].sent.len() > 3 {
            self.collect(host);
        }
        let count = self.pick(4);
        self.begin(host, count)
    }

    fn step(&mut self) {
        let host = self.pick(HOSTS as u32) as usize;
        if self.hosts[host].link.is_none() {
            self.join(host);
        }
        match self.pick(8) {
            0 => self.fault(host),
            1..=3 => {
                self.begin_some(host);
                if self.pick(3) > 0 {
                    self.collect(host);
                }
            }
            4 => self.verify(host),
            5 => {
                self.begin_some(host);
                // SYNCHRONIZE CACHE among the writes.
                self.simple(host, NONE, 0, &[0x35]);
            }
            6 => {
                let seconds = 1 + u64::from(self.pick(600));
                self.pass(seconds, None);
            }
            _ => self.ping(host),
        }
    }
}

fn bytes_of(task: &Sent) -> Vec<u8> {
    (task.first..task.first + task.count).flat_map(|at| content(at, task.version)).collect()
}

fn data_out(link: &Initiator, tag: u32, transfer: u32, sn: u32, offset: u32, last: bool, data: &[u8]) -> Vec<u8> {
    let head = Head::new(0x05, if last { 0x80 } else { 0 }).lun(1);
    let head = head.word(16, tag).word(20, transfer).word(36, sn).word(40, offset);
    link.bytes_of(head, &[], data)
}

fn chosen(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn a_day_of_session_faults_loses_nothing() {
    let (seed, hours) = (chosen("QRVSA_FAULT_SEED", 1), chosen("QRVSA_FAULT_HOURS", 24));
    let mut world = World::new(seed);
    while world.passed < Duration::from_secs(hours * 3600) {
        world.step();
        assert!(world.model.violations.is_empty(), "seed {seed}: {:#?}", world.model.violations);
    }
    for host in 0..HOSTS {
        world.join(host);
        let (first, bytes) = (host as u32 * PART, PART * BLOCK as u32);
        let (_, data) = world.simple(host, READ, bytes, &read10(first, PART as u16)).expect("reads");
        world.model.read(first, &data);
    }
    let violations = world.model.violations.len();
    let line = format!("session faults: {hours} h simulated, {} faults, {violations} violations", world.faults);
    // Past the harness, which keeps what passes to itself.
    let _ = writeln!(io::stderr(), "{line}");
    assert_eq!(violations, 0, "seed {seed}: {:#?}", world.model.violations);
    world.hosts.clear();
    until(|| world.service.sessions(TARGET).unwrap().is_empty());
    world.service.shutdown(Duration::ZERO);
}
