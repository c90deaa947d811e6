//! From an accepted socket to a session: the I/O of the login phase, and the rules of ISID, TSIH and CID (RFC 7143 6.3.1).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::conn::{self, Conn, Start};
use super::mailbox::{Event, Mailbox};
use super::shared::{Link, Session, Stage};
use super::tx::Data;
use crate::config::{TargetConfig, Users};
use crate::info::PortalInfo;
use crate::login::{Login, Step, World, status};
use crate::pdu::build::{self, Numbers};
use crate::pdu::frame::{self, Rules};
use crate::pdu::{BHS_BYTES, Bhs, padded, request};
use crate::scsi::Nexus;
use crate::service::Inner;

/// Longest data segment of a login request, bytes: what holds before anything is declared, with some room.
const LOGIN_SEGMENT_MAX: usize = 16 << 10;
/// Window of commands of a discovery session.
const DISCOVERY_DEPTH: u32 = 8;

/// An accepted connection.
pub(crate) struct Arrival {
    pub(crate) service: Arc<Inner>,
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) portal: PortalInfo,
}

impl World for Arrival {
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>> {
        let config = self.service.target(name).ok()?.config();
        (config.portals.is_empty() || config.portals.contains(&self.portal.address)).then_some(config)
    }

    fn discovery_users(&self) -> Users {
        self.service.discovery.read().users.clone()
    }

    fn fill_random(&self, out: &mut [u8]) {
        if let Err(error) = getrandom::fill(out) {
            // A challenge that can be foreseen lets people in: better to stop.
            panic!("no random numbers: {error}");
        }
    }

    fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    fn portal_group_tag(&self) -> u16 {
        self.portal.group_tag
    }
}

struct Request {
    bhs: Bhs,
    data: Vec<u8>,
}

/// Reads all of `out` before the deadline.
fn read_by(service: &Inner, mut socket: &TcpStream, mut out: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !out.is_empty() {
        let left = deadline.saturating_duration_since(service.clock.now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(out) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => out = out.get_mut(count..).unwrap_or_default(),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read_request(service: &Inner, socket: &TcpStream, deadline: Instant) -> io::Result<Request> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let rules = Rules { header_digest: false, data_digest: false, data_bytes_max: LOGIN_SEGMENT_MAX };
    let mut head = [0; BHS_BYTES];
    read_by(service, socket, &mut head, deadline)?;
    let bhs = Bhs(head);
    if bhs.opcode() != request::LOGIN {
        return Err(invalid(format!("opcode {:#04x} before the login", bhs.opcode())));
    }
    if bhs.ahs_bytes() > 0 {
        return Err(invalid("additional headers in a login request".into()));
    }
    frame::header(&head, &rules).map_err(|e| invalid(e.to_string()))?;
    let mut data = vec![0; padded(bhs.data_bytes())];
    read_by(service, socket, &mut data, deadline)?;
    data.truncate(bhs.data_bytes());
    Ok(Request { bhs, data })
}

/// Lets a closed peer read what it was told.
fn linger(mut socket: &TcpStream) {
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.set_read_timeout(Some(Duration::from_millis(500)));
    let mut scrap = [0; 1024];
    for _ in 0..16 {
        if !matches!(socket.read(&mut scrap), Ok(count) if count > 0) {
            break;
        }
    }
}

impl Arrival {
    /// The whole life of a connection, on its thread. `gate` names it among those that are not logged in.
    pub(crate) fn serve(self, gate: u64) {
        let service = Arc::clone(&self.service);
        let peer = self.peer;
        match self.log_in(gate) {
            Ok(Some(conn)) => conn::run(conn),
            Ok(None) => {}
            Err(error) => tracing::info!("login from {peer} failed: {error}"),
        }
        service.gate.left(gate);
    }

    fn respond(&self, bhs: &Bhs, flags: u8, status: u16, text: &[u8], stat_sn: u32) -> io::Result<()> {
        let numbers = Numbers { stat_sn, exp_cmd_sn: bhs.cmd_sn(), max_cmd_sn: bhs.cmd_sn() };
        let mut bytes = build::login(bhs, flags, bhs.tsih(), status, text.len(), numbers).to_vec();
        bytes.extend_from_slice(text);
        bytes.resize(BHS_BYTES + padded(text.len()), 0);
        (&self.socket).write_all(&bytes)
    }

    fn log_in(self, gate: u64) -> io::Result<Option<Box<Conn>>> {
        let deadline = self.service.clock.now() + self.service.limits.login_timeout;
        self.socket.set_nodelay(true)?;
        self.socket.set_write_timeout(Some(self.service.limits.login_timeout))?;
        let mut login = Login::default();
        let mut stat_sn = 1u32;
        loop {
            let request = read_request(&self.service, &self.socket, deadline)?;
            let bhs = request.bhs;
            match login.step(&bhs, &request.data, &self) {
                Step::Reply { flags, text } => self.respond(&bhs, flags, status::SUCCESS, &text, stat_sn)?,
                Step::Refused { status, text, why } => {
                    tracing::warn!(
                        "login of {:?} at {} refused with status {status:04x}: {why}",
                        login.initiator_name,
                        self.peer
                    );
                    self.respond(&bhs, bhs.flags() & 0x0c, status, &text, stat_sn)?;
                    linger(&self.socket);
                    return Ok(None);
                }
                Step::Finished { flags, text } => {
                    let mailbox = Mailbox::new()?;
                    match self.establish(&login, &bhs, &mailbox, deadline) {
                        Ok(begun) => {
                            self.service.gate.left(gate);
                            return self.begin(login, begun, mailbox, &bhs, flags, &text, stat_sn).map(Some);
                        }
                        Err((status, why)) => {
                            tracing::warn!(
                                "login of {} at {} refused with status {status:04x}: {why}",
                                login.initiator_name,
                                self.peer
                            );
                            self.respond(&bhs, bhs.flags() & 0x0c, status, &[], stat_sn)?;
                            linger(&self.socket);
                            return Ok(None);
                        }
                    }
                }
            }
            stat_sn += 1;
        }
    }

    /// Makes the session, or takes one over.
    fn establish(
        &self,
        login: &Login,
        bhs: &Bhs,
        mailbox: &Arc<Mailbox>,
        deadline: Instant,
    ) -> Result<Begun, (u16, String)> {
        let (isid, tsih, cid) = login.handles();
        let Some(config) = &login.target else {
            let tsih = self.service.new_tsih();
            if !self.service.connection_opened(mailbox) {
                return Err((status::OUT_OF_RESOURCES, "too many connections".into()));
            }
            return Ok(Begun { session: None, tsih, exp_cmd_sn: bhs.cmd_sn(), serial: 0, depth: DISCOVERY_DEPTH });
        };
        let target = self
            .service
            .target(config.name.as_str())
            .map_err(|_| (status::REMOVED, "the target is gone".to_string()))?;
        let depth = u32::from(config.parameters.max_queue_cmd);
        let link = Link { cid, initiator: self.peer, target: self.local, state: "logged in" };
        let nexus = |tsih| Nexus {
            initiator_name: login.initiator_name.clone(),
            isid,
            portal_group_tag: self.portal.group_tag,
            tsih,
        };
        let busy = || (status::OUT_OF_RESOURCES, "the session before does not end".to_string());
        let left = || deadline.saturating_duration_since(self.service.clock.now());
        if tsih != 0 {
            let none = || (status::NO_SESSION, format!("there is no session {tsih}"));
            let session = target
                .find(&|s| {
                    s.nexus.tsih == tsih && s.nexus.isid == isid && s.nexus.initiator_name == login.initiator_name
                })
                .ok_or_else(none)?;
            if session.link.lock().cid != cid {
                return Err((status::TOO_MANY_CONNECTIONS, "a session has one connection here".into()));
            }
            let (exp_cmd_sn, serial) = session.inherit(left()).map_err(|stage| match stage {
                Stage::Ended => none(),
                _ => busy(),
            })?;
            *session.link.lock() = link;
            // What is mail for the old connection is not for the new one, unless it is about the session.
            for event in session.mailbox.take() {
                if matches!(event, Event::Close(_) | Event::TargetGone | Event::AskLogout(_)) {
                    session.mailbox.post(event);
                }
            }
            if session.has_heirs() {
                // Another login waits: what asked the old connection to leave is for this one.
                session.mailbox.post(Event::HandOver);
            }
            self.service.connection_replaced(&session.mailbox);
            return Ok(Begun { session: Some(session), tsih, exp_cmd_sn, serial, depth });
        }
        let new = self.service.new_tsih();
        loop {
            let fresh = || {
                Session::new(
                    nexus(new),
                    login.initiator_alias.clone(),
                    Arc::clone(&target),
                    Arc::clone(mailbox),
                    login.agreed.clone(),
                    link.clone(),
                )
            };
            let same = |s: &Session| {
                s.nexus.isid == isid
                    && s.nexus.initiator_name == login.initiator_name
                    && s.nexus.portal_group_tag == self.portal.group_tag
            };
            match target.enter(&same, &fresh) {
                Entry::Gone => return Err((status::REMOVED, "the target is gone".into())),
                Entry::Taken(old) => {
                    old.mailbox.post(Event::Close("the initiator logs in again".into()));
                    if !old.wait_ended(left()) {
                        return Err(busy());
                    }
                }
                Entry::New(session) => {
                    if !self.service.connection_opened(mailbox) {
                        target.session_ended(&session);
                        return Err((status::OUT_OF_RESOURCES, "too many connections".into()));
                    }
                    let tsih = session.nexus.tsih;
                    return Ok(Begun { session: Some(session), tsih, exp_cmd_sn: bhs.cmd_sn(), serial: 0, depth });
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn begin(
        self,
        login: Login,
        begun: Begun,
        mailbox: Arc<Mailbox>,
        bhs: &Bhs,
        flags: u8,
        text: &[u8],
        stat_sn: u32,
    ) -> io::Result<Box<Conn>> {
        let (_, _, cid) = login.handles();
        if let Some(target) = &login.target {
            let user = login.user.as_ref().map_or_else(String::new, |u| format!(" as user {u}"));
            tracing::info!(
                "{} at {} has logged in to {}{user}, session {}",
                login.initiator_name,
                self.peer,
                target.name,
                begun.tsih
            );
        }
        let mut agreed = login.agreed;
        let mailbox = match &begun.session {
            Some(session) => {
                if begun.serial > 0 {
                    // Keys of the session stay; those of the connection are new.
                    let before = session.agreed.lock().clone();
                    agreed = crate::login::negotiate::Negotiated {
                        header_digest: agreed.header_digest,
                        data_digest: agreed.data_digest,
                        max_send_bytes: agreed.max_send_bytes,
                        max_recv_bytes: agreed.max_recv_bytes,
                        ..before
                    };
                }
                *session.agreed.lock() = agreed.clone();
                Arc::clone(&session.mailbox)
            }
            None => mailbox,
        };
        if let Some(session) = &begun.session {
            let most = session.target.config().parameters.max_xmit_data_segment_length;
            agreed.max_send_bytes = agreed.max_send_bytes.min(most);
        }
        let (header_digest, data_digest) = (agreed.header_digest, agreed.data_digest);
        let unblocked = self.socket.set_nonblocking(true);
        let mut conn = Conn::new(Start {
            service: self.service,
            socket: self.socket,
            peer: self.peer,
            local: self.local,
            portal: self.portal,
            cid,
            initiator_name: login.initiator_name,
            session: begun.session,
            mailbox,
            agreed,
            stat_sn,
            exp_cmd_sn: begun.exp_cmd_sn,
            next_serial: begun.serial,
            depth: begun.depth,
        });
        // Digests begin after this response.
        (conn.out.header_digest, conn.out.data_digest) = (false, false);
        let numbers = conn.numbered();
        let header = build::login(bhs, flags, begun.tsih, status::SUCCESS, text.len(), numbers);
        conn.out.push(&header, Data::Borrowed(text));
        (conn.out.header_digest, conn.out.data_digest) = (header_digest, data_digest);
        if unblocked.is_err() {
            conn.closing = Some("the socket cannot be set to non-blocking".into());
        }
        Ok(conn)
    }
}

/// What a full feature phase begins with.
struct Begun {
    session: Option<Arc<Session>>,
    tsih: u16,
    exp_cmd_sn: u32,
    serial: u64,
    depth: u32,
}

/// Answer of a target to a session that wants in.
pub(crate) enum Entry {
    /// It is in.
    New(Arc<Session>),
    /// One of the same initiator port is there.
    Taken(Arc<Session>),
    /// The target was removed.
    Gone,
}
