//! A connection in the full feature phase, and the loop of its thread.
//!
//! One thread per connection: it sleeps in `poll` on the socket and its mailbox, so an idle session costs no processor time and little
//! memory (some 150 KiB after it was busy), and a session that hangs in a slow command holds up no other. Each turn takes all that
//! arrived, carries out what can be, and sends all answers in one write.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::buffers::Buffers;
use super::cost::{Costs, Switches};
use super::mailbox::{Event, Mailbox};
use super::manage::{Management, Pending};
use super::order::TaskOrder;
use super::rx::{Got, InBuffer};
use super::shared::Session;
use super::task::{Away, Head, Ready, Receiving, TaskControl};
use super::text::TextState;
use super::tx::{Data, OutQueue};
use crate::info::PortalInfo;
use crate::login::negotiate::Negotiated;
use crate::pdu::build::{self, Numbers};
use crate::pdu::frame::{self, Header, Pdu, Rules};
use crate::pdu::{BHS_BYTES, Bhs, NO_TAG, RejectReason, request, serial_before};
use crate::service::Inner;
use crate::service::counters::{Counters, lun_number};

/// The connection ends; why, for the log.
#[derive(Debug)]
pub(crate) struct Close(pub(crate) String);

pub(crate) type Result<T> = std::result::Result<T, Close>;

pub(crate) fn close<T>(why: impl Into<String>) -> Result<T> {
    Err(Close(why.into()))
}

/// Work in the order in which it came.
pub(crate) enum Item {
    Command(Box<Ready>),
    Manage(Management),
}

/// The rest of a long data segment, which is read right into its task's buffer.
pub(crate) struct Direct {
    pub(crate) bhs: Bhs,
    pub(crate) task_tag: u32,
    /// First byte of the rest in the task's buffer.
    pub(crate) at: usize,
    pub(crate) remaining: usize,
    pub(crate) padding: usize,
}

/// A PDU that came before its turn.
struct Early {
    bhs: Bhs,
    ahs: Vec<u8>,
    data: Vec<u8>,
}

/// Rests shorter than this are not worth a read of their own.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// Bytes of PDUs that came before their turn. On one connection that takes an initiator whose numbers have a gap, and nothing
/// fills it.
const EARLY_BYTES_MAX: usize = 1 << 20;
/// Refused commands whose unsolicited data may still be on its way.
pub(crate) const VOID_MAX: usize = 256;
/// Immediate commands that may be outstanding.
pub(crate) const IMMEDIATE_MAX: u32 = 64;
/// Time without a SCSI command after which a connection keeps no memory for the next ones.
const QUIET: Duration = Duration::from_secs(15);

pub(crate) struct Conn {
    pub(crate) service: Arc<Inner>,
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) portal: PortalInfo,
    pub(crate) cid: u16,
    pub(crate) initiator_name: String,
    /// None in a discovery session.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) agreed: Negotiated,
    pub(crate) rules: Rules,
    rx: InBuffer,
    /// Bytes that the next PDU needs.
    need: usize,
    /// The last read may have left something.
    more: bool,
    pub(crate) out: OutQueue,
    pub(crate) direct: Option<Direct>,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    max_cmd_sn: u32,
    pub(crate) depth: u32,
    /// Commands without an answer, immediate ones apart.
    pub(crate) outstanding: u32,
    pub(crate) immediate_outstanding: u32,
    pub(crate) next_serial: u64,
    pub(crate) next_transfer_tag: u32,
    early: BTreeMap<u32, Early>,
    pub(crate) receiving: HashMap<u32, Receiving>,
    pub(crate) ready: VecDeque<Item>,
    /// On other threads, by serial number.
    pub(crate) running: HashMap<u64, Away>,
    pub(crate) order: TaskOrder,
    pub(crate) held: Vec<Ready>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) costs: Costs,
    /// Of the thread, as of the begin of this turn or later.
    pub(crate) switches: Switches,
    pub(crate) counters: Option<([u8; 8], Arc<Counters>)>,
    pub(crate) buffers: Buffers,
    /// Notes of other sessions that are dealt with.
    pub(crate) swept: u64,
    /// When the last SCSI command came, and whether memory was given back since.
    pub(crate) commanded_at: Instant,
    pub(crate) shrunk: bool,
    pub(crate) text: TextState,
    /// Nothing more is taken; close, for this reason, once all is sent.
    pub(crate) closing: Option<String>,
    /// All sessions of the target are closed once all is sent.
    pub(crate) cold_reset: bool,
    pub(crate) logout_by: Option<Instant>,
    pub(crate) now: Instant,
    received_at: Instant,
    /// When the oldest answer was given that nobody has tried to send.
    pub(crate) unsent_since: Option<Instant>,
    /// Since when the initiator has taken nothing of what waits for it.
    pub(crate) blocked_since: Option<Instant>,
    /// When data-out got on last, and bytes of it since.
    pub(crate) data_out_at: Instant,
    pub(crate) data_out_came: usize,
    /// Pings without an answer, and when the last of them was sent.
    pings: u32,
    pinged_at: Option<Instant>,
    /// It has ended, and its session with it or not.
    over: bool,
    /// The session goes on with another connection.
    hand_over: bool,
}

/// What a connection begins with.
pub(crate) struct Start {
    pub(crate) service: Arc<Inner>,
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) portal: PortalInfo,
    pub(crate) cid: u16,
    pub(crate) initiator_name: String,
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) agreed: Negotiated,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    pub(crate) next_serial: u64,
    pub(crate) depth: u32,
}

/// A new thread for a connection, which it is sent.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn thread() -> std::io::Result<SyncSender<Box<Conn>>> {
    let (sender, receiver) = sync_channel(1);
    let work = move || {
        if let Ok(conn) = receiver.recv() {
            run(conn);
        }
    };
    std::thread::Builder::new().name("iscsi-conn".into()).spawn(work)?;
    Ok(sender)
}

/// The loop of a connection's thread.
pub(crate) fn run(mut conn: Box<Conn>) {
    loop {
        if let Err(Close(why)) = conn.take_in() {
            return conn.finish(&why);
        }
        match Conn::carry_out(conn) {
            Some(same) => conn = same,
            // Another thread has it.
            None => return,
        }
        if let Err(Close(why)) = conn.exchange() {
            return conn.finish(&why);
        }
    }
}

impl Conn {
    pub(crate) fn new(start: Start) -> Box<Conn> {
        let now = start.service.clock.now();
        let rules = Rules {
            header_digest: start.agreed.header_digest,
            data_digest: start.agreed.data_digest,
            data_bytes_max: start.agreed.max_recv_bytes as usize,
        };
        let out = OutQueue::new(rules.header_digest, rules.data_digest);
        let buffers = Buffers::new(Arc::clone(&start.service.buffers));
        // What came before has met nothing of this connection.
        let swept = start.session.as_ref().map_or(0, |session| session.sweeps.take().0);
        Box::new(Conn {
            service: start.service,
            socket: start.socket,
            peer: start.peer,
            local: start.local,
            portal: start.portal,
            cid: start.cid,
            initiator_name: start.initiator_name,
            session: start.session,
            mailbox: start.mailbox,
            agreed: start.agreed,
            rules,
            rx: InBuffer::default(),
            need: BHS_BYTES,
            more: true,
            out,
            direct: None,
            stat_sn: start.stat_sn,
            exp_cmd_sn: start.exp_cmd_sn,
            max_cmd_sn: start.exp_cmd_sn.wrapping_add(start.depth).wrapping_sub(1),
            depth: start.depth,
            outstanding: 0,
            immediate_outstanding: 0,
            next_serial: start.next_serial,
            next_transfer_tag: 1,
            early: BTreeMap::new(),
            receiving: HashMap::new(),
            ready: VecDeque::new(),
            running: HashMap::new(),
            order: TaskOrder::default(),
            held: Vec::new(),
            pending: Vec::new(),
            costs: Costs::default(),
            switches: Switches::default(),
            counters: None,
            buffers,
            swept,
            commanded_at: now,
            shrunk: false,
            text: TextState::default(),
            closing: None,
            cold_reset: false,
            logout_by: None,
            now,
            received_at: now,
            unsent_since: None,
            blocked_since: None,
            data_out_at: now,
            data_out_came: 0,
            pings: 0,
            pinged_at: None,
            over: false,
            hand_over: false,
        })
    }

    /// Sequence numbers of a response. MaxCmdSN never goes back.
    pub(crate) fn numbers(&mut self) -> Numbers {
        let window = self.depth.saturating_sub(self.outstanding);
        let max = self.exp_cmd_sn.wrapping_add(window).wrapping_sub(1);
        if serial_before(self.max_cmd_sn, max) {
            self.max_cmd_sn = max;
        }
        Numbers { stat_sn: self.stat_sn, exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn: self.max_cmd_sn }
    }

    /// Sequence numbers of a response that takes a StatSN.
    pub(crate) fn numbered(&mut self) -> Numbers {
        let numbers = self.numbers();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    /// A tag for data or answers that we ask for.
    pub(crate) fn transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = if tag >= NO_TAG - 1 { 1 } else { tag + 1 };
        tag
    }

    pub(crate) fn reject(&mut self, bhs: &Bhs, reason: RejectReason) {
        tracing::info!("{} is sent a reject ({reason:?}) for {bhs:?}", self.who());
        let numbers = self.numbered();
        self.out.push(&build::reject(reason, numbers), Data::Borrowed(&bhs.0));
    }

    pub(crate) fn who(&self) -> String {
        format!("iSCSI initiator {} at {}", self.initiator_name, self.peer)
    }

    /// Mail, and all PDUs that are complete.
    fn take_in(&mut self) -> Result<()> {
        let mut events = self.mailbox.take().into_iter();
        while let Some(event) = events.next() {
            if let Err(why) = self.event(event) {
                // Tasks that are finished are not to be waited for.
                events.for_each(|event| self.last_mail(event));
                return Err(why);
            }
        }
        self.catch_up()?;
        let mut rx = std::mem::take(&mut self.rx);
        let result = self.parse(&mut rx);
        self.rx = rx;
        result
    }

    fn parse(&mut self, rx: &mut InBuffer) -> Result<()> {
        loop {
            if self.closing.is_some() {
                rx.consume(usize::MAX);
                return Ok(());
            }
            if !self.continue_direct(rx)? {
                return Ok(());
            }
            let header = match frame::header(rx.bytes(), &self.rules) {
                Ok(Some(header)) => header,
                Ok(None) => {
                    self.need = BHS_BYTES.max(rx.bytes().len() + 1);
                    return Ok(());
                }
                Err(error) => return close(format!("broken framing: {error}")),
            };
            let Some(pdu) = frame::body(rx.bytes(), &header, &self.rules) else {
                if !self.begin_direct(&header, rx) {
                    self.need = header.total;
                    return Ok(());
                }
                continue;
            };
            self.pdu(&pdu)?;
            rx.consume(header.total);
        }
    }

    /// Starts reading the rest of a long data-out segment into its task's buffer.
    fn begin_direct(&mut self, header: &Header, rx: &mut InBuffer) -> bool {
        let bhs = header.bhs;
        let held = rx.bytes().len().saturating_sub(header.data_at);
        let remaining = header.data_bytes.saturating_sub(held);
        if bhs.opcode() != request::DATA_OUT || self.rules.data_digest || remaining < DIRECT_BYTES_MIN {
            return false;
        }
        let Some(at) = self.place_of(&bhs, header.data_bytes) else { return false };
        let Some(task) = self.receiving.get_mut(&bhs.task_tag()) else { return false };
        let from = rx.bytes().get(header.data_at..).unwrap_or_default();
        let from = from.get(..header.data_bytes.min(from.len())).unwrap_or_default();
        let Some(to) = task.buffer.get_mut(at..at + from.len()) else { return false };
        to.copy_from_slice(from);
        let taken = from.len();
        self.direct = Some(Direct {
            bhs,
            task_tag: bhs.task_tag(),
            at: at + taken,
            remaining: header.data_bytes - taken,
            padding: header.total - header.data_at - header.data_bytes,
        });
        rx.consume(header.data_at + taken);
        true
    }

    /// Whether PDUs can be cut from the buffer again.
    fn continue_direct(&mut self, rx: &mut InBuffer) -> Result<bool> {
        let Some(direct) = &mut self.direct else { return Ok(true) };
        // Only when its task is gone does the rest come here.
        let skipped = direct.remaining.min(rx.bytes().len());
        rx.consume(skipped);
        direct.remaining -= skipped;
        direct.at += skipped;
        if direct.remaining > 0 || rx.bytes().len() < direct.padding {
            self.need = direct.padding;
            return Ok(false);
        }
        rx.consume(direct.padding);
        let bhs = direct.bhs;
        self.direct = None;
        self.data_out_taken(&bhs, bhs.data_bytes());
        Ok(true)
    }

    fn pdu(&mut self, pdu: &Pdu<'_>) -> Result<()> {
        let bhs = pdu.bhs;
        if !pdu.data_good {
            // At ErrorRecoveryLevel 0 the session starts anew.
            self.reject(&bhs, RejectReason::DataDigest);
            self.closing = Some("the data digest does not fit".into());
            return Ok(());
        }
        match bhs.opcode() {
            request::DATA_OUT if self.session.is_some() => return self.data_out(&bhs, pdu.data),
            request::SNACK => {
                self.reject(&bhs, RejectReason::Snack);
                return Ok(());
            }
            request::LOGIN => return close("a login request in the full feature phase"),
            request::NOP_OUT | request::SCSI_COMMAND | request::TASK_MANAGEMENT | request::TEXT | request::LOGOUT => {}
            _ => {
                self.reject(&bhs, RejectReason::NotSupported);
                return Ok(());
            }
        }
        if bhs.immediate() {
            return self.in_turn(&bhs, pdu.ahs, pdu.data);
        }
        let number = bhs.cmd_sn();
        let last = self.numbers().max_cmd_sn;
        if serial_before(number, self.exp_cmd_sn) || serial_before(last, number) {
            // Outside the window: to be ignored (RFC 7143 4.2.2.1).
            tracing::debug!("{}: CmdSN {number} is outside {}..={last}", self.who(), self.exp_cmd_sn);
            return Ok(());
        }
        if number != self.exp_cmd_sn {
            let held: usize = self.early.values().map(|e| BHS_BYTES + e.ahs.len() + e.data.len()).sum();
            if held + pdu.ahs.len() + pdu.data.len() > EARLY_BYTES_MAX {
                return close(format!("too much came ahead of CmdSN {}", self.exp_cmd_sn));
            }
            self.early.entry(number).or_insert_with(|| Early { bhs, ahs: pdu.ahs.to_vec(), data: pdu.data.to_vec() });
            return Ok(());
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        self.in_turn(&bhs, pdu.ahs, pdu.data)?;
        self.catch_up()
    }

    /// Takes what came early and whose turn it is now.
    fn catch_up(&mut self) -> Result<()> {
        while !self.early.is_empty() {
            let Some(next) = self.early.remove(&self.exp_cmd_sn) else { break };
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            self.in_turn(&next.bhs, &next.ahs, &next.data)?;
        }
        Ok(())
    }

    /// Takes commands before that number that came before their turn as come and gone, if they are for that logical unit, or any.
    pub(crate) fn forget_early(&mut self, before: u32, lun: Option<[u8; 8]>) {
        let meant = |early: &Early| {
            early.bhs.opcode() == request::SCSI_COMMAND
                && lun.is_none_or(|lun| lun_number(lun) == lun_number(early.bhs.lun()))
        };
        let early = self.early.iter().filter(|(number, early)| serial_before(**number, before) && meant(early));
        let numbers: Vec<u32> = early.map(|(number, _)| *number).collect();
        for number in numbers {
            self.forget_coming(number);
        }
    }

    /// Takes the command of that number as come and gone: its place is taken by a ping that needs no answer.
    pub(crate) fn forget_coming(&mut self, number: u32) {
        let mut nothing = [0; BHS_BYTES];
        nothing[16..20].copy_from_slice(&NO_TAG.to_be_bytes());
        self.early.insert(number, Early { bhs: Bhs(nothing), ahs: Vec::new(), data: Vec::new() });
    }

    fn in_turn(&mut self, bhs: &Bhs, ahs: &[u8], data: &[u8]) -> Result<()> {
        match (bhs.opcode(), self.session.is_some()) {
            (request::SCSI_COMMAND, true) => self.scsi_command(bhs, ahs, data),
            (request::TASK_MANAGEMENT, true) => {
                self.task_management(bhs);
                Ok(())
            }
            (request::NOP_OUT, _) => {
                self.nop_out(bhs, data);
                Ok(())
            }
            (request::TEXT, _) => {
                self.text_request(bhs, data);
                Ok(())
            }
            (request::LOGOUT, _) => {
                self.logout(bhs);
                Ok(())
            }
            _ => {
                self.reject(bhs, RejectReason::Protocol);
                Ok(())
            }
        }
    }

    fn nop_out(&mut self, bhs: &Bhs, data: &[u8]) {
        if bhs.task_tag() == NO_TAG {
            return; // the answer to a ping of ours; that it came is all that counts
        }
        let data = data.get(..data.len().min(self.agreed.max_send_bytes as usize)).unwrap_or_default();
        let numbers = self.numbered();
        self.out.push(&build::nop_in(bhs.task_tag(), NO_TAG, [0; 8], data.len(), numbers), Data::Borrowed(data));
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Done(done) => self.done(*done),
            Event::TasksEnded => self.purge(),
            Event::TaskFinished => {}
            Event::ClockMoved => self.now = self.service.clock.now(),
            Event::MemoryFree => self.feed_starved(),
            Event::AskLogout(seconds) => {
                self.async_message([0; 8], 1, [0, 0, seconds], &[]);
                self.logout_by = Some(self.service.clock.now() + Duration::from_secs(u64::from(seconds)));
            }
            Event::AboutLun(lun, sense) => {
                let mut data = u16::try_from(sense.len()).unwrap_or(0).to_be_bytes().to_vec();
                data.extend_from_slice(&sense);
                self.async_message(lun, 0, [0; 3], &data);
            }
            Event::TargetGone => {
                self.async_message([0; 8], 2, self.dropped(), &[]);
                self.closing = Some("the target is gone".into());
            }
            Event::Close(why) => return close(why),
            Event::HandOver => {
                self.hand_over = true;
                return close("a new connection takes its place");
            }
        }
        self.answer_pending();
        Ok(())
    }

    /// What the message that a connection is dropped says (RFC 7143 11.9.1): which one, and when to come again.
    fn dropped(&self) -> [u16; 3] {
        [self.cid, self.agreed.time2wait, self.agreed.time2retain]
    }

    fn async_message(&mut self, lun: [u8; 8], event: u8, parameters: [u16; 3], data: &[u8]) {
        let numbers = self.numbered();
        let header = build::async_message(lun, event, parameters, data.len(), numbers);
        self.out.push(&header, Data::Borrowed(data));
    }

    /// Sends, sleeps if there is nothing to do, receives.
    fn exchange(&mut self) -> Result<()> {
        self.unsent_since = None;
        match self.out.send(&self.socket) {
            Ok(_) if self.out.bytes() == 0 => self.blocked_since = None,
            Ok(0) if self.blocked_since.is_some() => {}
            Ok(_) => self.blocked_since = Some(self.now),
            Err(error) => return close(format!("sending failed: {error}")),
        }
        if self.cold_reset && self.out.bytes() == 0 && self.pending.is_empty() {
            self.cold_reset = false;
            if let Some(session) = &self.session {
                session.target.close_sessions("TARGET COLD RESET");
            }
        }
        if let Some(why) = &self.closing
            && self.out.bytes() == 0
            && self.pending.is_empty()
        {
            return close(why.clone());
        }
        if self.can_go_on() {
            return Ok(());
        }
        let reading = self.closing.is_none() && self.out.bytes() < self.service.limits.data_in_bytes_max;
        let mut readable = reading && self.more;
        if !readable {
            readable = self.sleep(reading)? && reading;
        }
        if !readable {
            return Ok(());
        }
        self.rx.make_room(self.need);
        let target = match &self.direct {
            Some(direct) => self
                .receiving
                .get_mut(&direct.task_tag)
                .and_then(|task| task.buffer.get_mut(direct.at..direct.at + direct.remaining))
                .unwrap_or_default(),
            None => &mut [],
        };
        let received = self.rx.receive(&self.socket, target);
        self.now = self.service.clock.now();
        match received {
            Ok(Got::Bytes { direct, full }) => {
                self.service.requested();
                self.more = full;
                self.received_at = self.now;
                self.pings = 0;
                self.pinged_at = None;
                if let Some(rest) = &mut self.direct {
                    rest.at += direct;
                    rest.remaining -= direct;
                    self.data_came(direct);
                }
                Ok(())
            }
            Ok(Got::Nothing) => {
                self.more = false;
                Ok(())
            }
            Ok(Got::End) => close("the initiator closed the connection"),
            Err(error) => close(format!("receiving failed: {error}")),
        }
    }

    /// Waits for the socket, the mailbox or a timer. Whether the socket is readable (or broken).
    fn sleep(&mut self, reading: bool) -> Result<bool> {
        let mut events = PollFlags::empty();
        if reading {
            events |= PollFlags::POLLIN;
        }
        if self.out.bytes() > 0 {
            events |= PollFlags::POLLOUT;
        }
        if !self.mailbox.may_sleep() {
            return Ok(false);
        }
        let timeout = match self.next_timer() {
            Some(at) => {
                let wait = at.saturating_duration_since(self.now).as_millis().saturating_add(1);
                PollTimeout::try_from(wait.min(1 << 30)).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let mut fds = [
            PollFd::new(self.socket.as_fd(), events),
            PollFd::new(self.mailbox.descriptor().as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, timeout);
        let [socket, mailbox] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        self.mailbox.awake(!mailbox.is_empty());
        self.now = self.service.clock.now();
        if socket.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) && !reading {
            return close("the connection broke");
        }
        match polled {
            Ok(0) => self.timers()?,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {
                if self.next_timer().is_some_and(|at| at <= self.now) && !socket.intersects(PollFlags::POLLIN) {
                    self.timers()?;
                }
            }
            Err(error) => return close(format!("poll failed: {error}")),
        }
        Ok(socket.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR))
    }

    fn nop_times(&self) -> (Duration, u32) {
        match &self.session {
            Some(session) => {
                let config = session.target.config();
                (config.nop_interval, config.nop_count.max(1))
            }
            None => (Duration::from_secs(30), 2),
        }
    }

    /// When the next ping is due. Each has its time to be answered, also when this process stood still meanwhile.
    fn ping_at(&self, interval: Duration) -> Instant {
        self.pinged_at.unwrap_or(self.received_at) + interval
    }

    fn next_timer(&self) -> Option<Instant> {
        let stall = self.service.limits.stall_timeout;
        let (interval, _) = self.nop_times();
        let ping = (!interval.is_zero()).then(|| self.ping_at(interval));
        let sending = self.blocked_since.map(|since| since + stall);
        let data = (!self.receiving.is_empty()).then(|| self.data_out_at + stall);
        let shrink = (!self.shrunk).then(|| self.commanded_at + QUIET);
        [ping, sending, data, shrink, self.logout_by].into_iter().flatten().min()
    }

    fn timers(&mut self) -> Result<()> {
        let stall = self.service.limits.stall_timeout;
        if self.blocked_since.is_some_and(|since| since + stall <= self.now) {
            return close(format!("it took no byte of its data for {} s", stall.as_secs()));
        }
        if self.data_out_at + stall <= self.now {
            // Of those that could get on.
            let oldest = self.receiving.values().filter(|t| !t.starved).map(|t| t.since).min();
            if oldest.is_some_and(|since| since + stall <= self.now) {
                return close(format!("it sent next to no data that was asked for in {} s", stall.as_secs()));
            }
            (self.data_out_at, self.data_out_came) = (oldest.unwrap_or(self.now), 0);
        }
        if !self.shrunk && self.commanded_at + QUIET <= self.now {
            self.shrink();
        }
        if self.logout_by.is_some_and(|at| at <= self.now) {
            self.async_message([0; 8], 2, self.dropped(), &[]);
            self.closing = Some("it did not log out when asked".into());
            self.logout_by = None;
        }
        let (interval, count) = self.nop_times();
        if !interval.is_zero() && self.ping_at(interval) <= self.now {
            if self.pings >= count {
                return close(format!("no answer to {count} pings"));
            }
            self.pings += 1;
            self.pinged_at = Some(self.now);
            let tag = self.transfer_tag();
            let numbers = self.numbers();
            self.out.push(&build::nop_in(NO_TAG, tag, [0; 8], 0, numbers), Data::None);
        }
        Ok(())
    }

    /// Gives memory back that is only kept for speed; later if commands are under way.
    fn shrink(&mut self) {
        if self.outstanding > 0 || self.immediate_outstanding > 0 {
            self.commanded_at = self.now;
            return;
        }
        self.rx.shrink();
        self.out.shrink();
        self.buffers.clear();
        self.shrunk = true;
    }

    /// The old thread of a stolen connection still carries this task out.
    pub(crate) fn left_behind(&mut self, head: &Head, control: Arc<TaskControl>) {
        self.costs.was_slow(head.cost_key);
        if let Some(session) = &self.session {
            session.tasks.lock().insert(head.serial, Arc::clone(&control));
        }
        self.running.insert(head.serial, Away { head: *head, control });
        self.now = self.service.clock.now();
    }

    /// An event while the connection ends.
    fn last_mail(&mut self, event: Event) {
        match event {
            Event::Done(done) => {
                self.running.remove(&done.head.serial);
            }
            Event::HandOver => self.hand_over = true,
            Event::Close(_) | Event::TargetGone => self.hand_over = false,
            _ => {}
        }
    }

    /// Aborts all tasks, waits for those that the device server has in hand, and takes the session out of service, or hands it
    /// over to the next connection.
    fn leave(&mut self, why: &str) {
        let Some(session) = self.session.clone() else {
            tracing::debug!("{}: discovery ends: {why}", self.who());
            return;
        };
        session.end_tasks(&|_| true);
        session.target.server().tasks_ended(&session.nexus);
        self.ready.clear();
        self.held.clear();
        self.receiving.clear();
        self.direct = None;
        self.cancel_waiting(&mut Vec::new());
        while !self.running.is_empty() {
            if self.mailbox.may_sleep() {
                let mut fds = [PollFd::new(self.mailbox.descriptor().as_fd(), PollFlags::POLLIN)];
                let rung = poll(&mut fds, PollTimeout::NONE).is_ok();
                self.mailbox.awake(rung);
            }
            for event in self.mailbox.take() {
                self.last_mail(event);
            }
        }
        session.tasks.lock().clear();
        session.outstanding.store(0, std::sync::atomic::Ordering::Relaxed);
        let target = Arc::clone(&session.target);
        if self.hand_over && session.hand_over(self.exp_cmd_sn, self.next_serial) {
            tracing::info!("{}: connection {} leaves {}: {why}", self.who(), self.cid, target.name());
        } else {
            tracing::info!("{} has left {}: {why}", self.who(), target.name());
            target.session_ended(&session);
        }
        target.tasks_finished();
    }

    fn finish(mut self: Box<Self>, why: &str) {
        self.end(why);
    }

    fn end(&mut self, why: &str) {
        self.over = true;
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.leave(why);
        self.service.connection_closed(&self.mailbox);
    }
}

/// A session whose thread panicked, or could not be had, would keep its initiator out for good: it ends as any other.
impl Drop for Conn {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let why = if std::thread::panicking() { "its thread panicked; this is a bug" } else { "it has no thread" };
        tracing::error!("{}: {why}; its session ends", self.who());
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end(why)));
        if ended.is_err() {
            tracing::error!("{}: and it could not be ended", self.who());
        }
    }
}
