//! The login phase (RFC 7143 6.3) as a pure state machine: requests in, responses out. The world it needs (targets, accounts,
//! random numbers) is a parameter; making sessions is the caller's.

pub mod chap;
pub mod negotiate;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use self::chap::Challenge;
use self::negotiate::{Answer, Negotiated, negotiate};
use crate::config::{Parameters, TargetConfig, TargetState, Users};
use crate::name::NAME_BYTES_MAX;
use crate::pdu::Bhs;
use crate::pdu::text;

/// Status class and detail of a login response (RFC 7143 11.13.5).
pub mod status {
    /// Success.
    pub const SUCCESS: u16 = 0x0000;
    /// Target moved temporarily.
    pub const MOVED_TEMPORARILY: u16 = 0x0101;
    /// Target moved permanently.
    pub const MOVED_PERMANENTLY: u16 = 0x0102;
    /// Initiator error.
    pub const INITIATOR_ERROR: u16 = 0x0200;
    /// Authentication failure.
    pub const AUTHENTICATION: u16 = 0x0201;
    /// Authorization failure.
    pub const AUTHORIZATION: u16 = 0x0202;
    /// Not found; also what somebody hears whom the access list does not let in.
    pub const NOT_FOUND: u16 = 0x0203;
    /// Target removed.
    pub const REMOVED: u16 = 0x0204;
    /// Unsupported version.
    pub const VERSION: u16 = 0x0205;
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: u16 = 0x0206;
    /// Missing parameter.
    pub const MISSING_PARAMETER: u16 = 0x0207;
    /// Session type not supported.
    pub const SESSION_TYPE: u16 = 0x0209;
    /// Session does not exist.
    pub const NO_SESSION: u16 = 0x020a;
    /// Invalid during login.
    pub const INVALID_DURING_LOGIN: u16 = 0x020b;
    /// Service unavailable.
    pub const UNAVAILABLE: u16 = 0x0301;
    /// Out of resources.
    pub const OUT_OF_RESOURCES: u16 = 0x0302;
}

/// What a login needs to know of the world.
pub trait World {
    /// The target of that name, if this portal shows it.
    fn target(&self, name: &str) -> Option<Arc<TargetConfig>>;
    /// Accounts for discovery sessions.
    fn discovery_users(&self) -> Users;
    /// Fills with random bytes that nobody can foresee.
    fn fill_random(&self, out: &mut [u8]);
    /// Address of the initiator.
    fn peer(&self) -> IpAddr;
    /// Target portal group tag of the portal.
    fn portal_group_tag(&self) -> u16;
}

/// What to do after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send a response with these flags (byte 1) and text, and go on.
    Reply {
        /// Byte 1.
        flags: u8,
        /// Text.
        text: Vec<u8>,
    },
    /// The same, and the full feature phase begins.
    Finished {
        /// Byte 1.
        flags: u8,
        /// Text.
        text: Vec<u8>,
    },
    /// Send this status and close.
    Refused {
        /// Class and detail.
        status: u16,
        /// Text: where to go instead, for a redirection.
        text: Vec<u8>,
        /// For the log.
        why: String,
    },
}

/// Longest text of one negotiation step, over all PDUs of it.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Longest text of a response: what an initiator takes that has declared nothing.
const RESPONSE_BYTES_MAX: usize = 8192;
/// Most requests of one login.
const REQUESTS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
}

#[derive(Clone, Debug)]
enum Auth {
    /// Nothing agreed.
    Open,
    /// CHAP was chosen.
    Chosen,
    /// The challenge is out.
    Challenged(Challenge),
    /// Passed, or not asked for.
    Passed,
}

/// A login under way.
#[derive(Debug)]
pub struct Login {
    identity: Option<Identity>,
    requests: u32,
    stage: u8,
    text: Vec<u8>,
    seen: BTreeSet<String>,
    auth: Auth,
    declared: bool,
    refused: bool,
    /// Initiator name in lower case; empty before the first request.
    pub initiator_name: String,
    /// Initiator alias; empty for none.
    pub initiator_alias: String,
    /// A discovery session.
    pub discovery: bool,
    /// Name of the CHAP account that was used.
    pub user: Option<String>,
    /// The target as it was when the login began; none for discovery.
    pub target: Option<Arc<TargetConfig>>,
    /// What was agreed on.
    pub agreed: Negotiated,
}

impl Default for Login {
    fn default() -> Login {
        Login {
            identity: None,
            requests: 0,
            stage: 0,
            text: Vec::new(),
            seen: BTreeSet::new(),
            auth: Auth::Open,
            declared: false,
            refused: false,
            initiator_name: String::new(),
            initiator_alias: String::new(),
            discovery: false,
            user: None,
            target: None,
            agreed: Negotiated::default(),
        }
    }
}

/// A refusal: status, text for the initiator, words for the log.
struct Refusal(u16, Vec<u8>, String);

fn refuse<T>(status: u16, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(status, Vec::new(), why.into()))
}

type Pairs = Vec<(String, String)>;

fn find<'a>(pairs: &'a Pairs, key: &str) -> Option<&'a str> {
    pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

impl Login {
    /// Takes a login request. A login that was refused stays so: what came before the refusal is half done.
    pub fn step(&mut self, bhs: &Bhs, data: &[u8], world: &dyn World) -> Step {
        let taken = if self.refused {
            refuse(status::INVALID_DURING_LOGIN, "this login was refused already")
        } else {
            self.advance(bhs, data, world)
        };
        taken.unwrap_or_else(|Refusal(status, text, why)| {
            self.refused = true;
            Step::Refused { status, text, why }
        })
    }

    fn advance(&mut self, bhs: &Bhs, data: &[u8], world: &dyn World) -> Result<Step, Refusal> {
        let flags = bhs.flags();
        let (transit, more) = (flags & 0x80 != 0, flags & 0x40 != 0);
        let (stage, next) = (flags >> 2 & 3, flags & 3);
        self.check_header(bhs, stage)?;
        if transit && (more || next <= stage || next == 2) {
            return refuse(status::INITIATOR_ERROR, format!("a transit from stage {stage} to {next} cannot be"));
        }
        if self.text.len().saturating_add(data.len()) > TEXT_BYTES_MAX {
            return refuse(status::INITIATOR_ERROR, "the login text is too long");
        }
        self.text.extend_from_slice(data);
        if more {
            return Ok(Step::Reply { flags: stage << 2, text: Vec::new() });
        }
        let Some(pairs) = text::parse(&std::mem::take(&mut self.text)) else {
            return refuse(status::INITIATOR_ERROR, "the login text is malformed");
        };
        for (key, _) in &pairs {
            if !self.seen.insert(key.clone()) {
                return refuse(status::INITIATOR_ERROR, format!("{key} was negotiated twice"));
            }
        }
        let mut out = Vec::new();
        if self.initiator_name.is_empty() {
            self.identify(&pairs, world, &mut out)?;
        }
        let users = match &self.target {
            Some(target) => target.users.clone(),
            None => world.discovery_users(),
        };
        let required = !users.incoming.is_empty();
        if stage == 0 {
            self.authenticate(&pairs, &users, transit, world, &mut out)?;
        } else if required && !matches!(self.auth, Auth::Passed) {
            return refuse(status::AUTHENTICATION, "CHAP is required, and the initiator skipped it");
        }
        self.operate(&pairs, stage, &mut out);
        if out.len() > RESPONSE_BYTES_MAX {
            return refuse(status::INITIATOR_ERROR, "the initiator negotiates too many keys at once");
        }
        let passed = stage == 1 || matches!(self.auth, Auth::Passed) || (!required && matches!(self.auth, Auth::Open));
        if !(transit && passed) {
            return Ok(Step::Reply { flags: stage << 2, text: out });
        }
        self.stage = next;
        let flags = 0x80 | stage << 2 | next;
        Ok(if next == 3 { Step::Finished { flags, text: out } } else { Step::Reply { flags, text: out } })
    }

    fn check_header(&mut self, bhs: &Bhs, stage: u8) -> Result<(), Refusal> {
        let identity = Identity { isid: bhs.isid(), tsih: bhs.tsih(), cid: bhs.cid() };
        match self.identity {
            None => {
                if bhs.0[3] > 0 {
                    return refuse(status::VERSION, format!("version {} of iSCSI is unknown", bhs.0[3]));
                }
                self.identity = Some(identity);
                self.stage = stage;
            }
            Some(first) if first != identity => {
                return refuse(status::INVALID_DURING_LOGIN, "ISID, TSIH or CID changed during the login");
            }
            Some(_) => {}
        }
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            return refuse(status::INITIATOR_ERROR, "the login takes too many requests");
        }
        if stage != self.stage || stage > 1 {
            return refuse(status::INITIATOR_ERROR, format!("a request of stage {stage} in stage {}", self.stage));
        }
        Ok(())
    }

    /// Who it is and what it wants: the first request says so.
    fn identify(&mut self, pairs: &Pairs, world: &dyn World, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let name = match find(pairs, "InitiatorName") {
            Some(name) if !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_whitespace) => {
                name
            }
            Some(name) => return refuse(status::INITIATOR_ERROR, format!("{name:?} is no initiator name")),
            None => return refuse(status::MISSING_PARAMETER, "the first login request has no InitiatorName"),
        };
        self.initiator_name = name.to_lowercase();
        self.initiator_alias = find(pairs, "InitiatorAlias").unwrap_or_default().chars().take(255).collect();
        self.discovery = match find(pairs, "SessionType") {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(kind) => return refuse(status::SESSION_TYPE, format!("there are no {kind:?} sessions")),
        };
        if self.discovery {
            return Ok(());
        }
        let Some(wanted) = find(pairs, "TargetName") else {
            return refuse(status::MISSING_PARAMETER, "the first login request has no TargetName");
        };
        let Some(target) = world.target(wanted) else {
            return refuse(status::NOT_FOUND, format!("there is no target {wanted:?} on this portal"));
        };
        if !target.admits(&self.initiator_name, world.peer()) {
            return refuse(status::NOT_FOUND, format!("the access list of {} does not let it in", target.name));
        }
        if let Some(redirect) = &target.redirect {
            let mut text = Vec::new();
            text::push(&mut text, "TargetAddress", &redirect.to.to_string());
            let status = if redirect.permanent { status::MOVED_PERMANENTLY } else { status::MOVED_TEMPORARILY };
            return Err(Refusal(status, text, format!("sent to {}", redirect.to)));
        }
        if target.state == TargetState::Offline {
            return refuse(status::UNAVAILABLE, format!("{} is offline", target.name));
        }
        if !target.alias.is_empty() {
            text::push(out, "TargetAlias", &target.alias);
        }
        text::push(out, "TargetPortalGroupTag", &world.portal_group_tag().to_string());
        self.target = Some(target);
        Ok(())
    }

    fn authenticate(
        &mut self,
        pairs: &Pairs,
        users: &Users,
        transit: bool,
        world: &dyn World,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let required = !users.incoming.is_empty();
        if matches!(self.auth, Auth::Open) {
            let wanted = if required { "CHAP" } else { "None" };
            match find(pairs, "AuthMethod") {
                Some(offered) if offered.split(',').any(|word| word.trim() == wanted) => {
                    text::push(out, "AuthMethod", wanted);
                    self.auth = if required { Auth::Chosen } else { Auth::Passed };
                }
                Some(offered) => {
                    return refuse(
                        status::AUTHENTICATION,
                        format!("the initiator offers {offered:?}, and {wanted} is asked for"),
                    );
                }
                None if required && transit => {
                    return refuse(status::AUTHENTICATION, "CHAP is required, and the initiator does not offer it");
                }
                None => {}
            }
        }
        if let (Auth::Chosen, Some(algorithms)) = (&self.auth, find(pairs, "CHAP_A")) {
            let challenge = Challenge::new(algorithms, &mut |bytes| world.fill_random(bytes))
                .map_err(|chap::Refused(why)| Refusal(status::AUTHENTICATION, Vec::new(), why))?;
            challenge.write(out);
            self.auth = Auth::Challenged(challenge);
        } else if let Auth::Challenged(challenge) = &self.auth {
            let (Some(name), Some(response)) = (find(pairs, "CHAP_N"), find(pairs, "CHAP_R")) else {
                return refuse(status::AUTHENTICATION, "the initiator does not answer the CHAP challenge");
            };
            let asked = match (find(pairs, "CHAP_I"), find(pairs, "CHAP_C")) {
                (Some(id), Some(challenge)) => Some((id, challenge)),
                (None, None) => None,
                _ => return refuse(status::AUTHENTICATION, "half a CHAP challenge"),
            };
            let user = challenge
                .check(users, name, response, asked, out)
                .map_err(|chap::Refused(why)| Refusal(status::AUTHENTICATION, Vec::new(), why))?;
            self.user = Some(user.to_string());
            self.auth = Auth::Passed;
        } else if find(pairs, "CHAP_R").is_some() {
            return refuse(status::AUTHENTICATION, "an answer to no CHAP challenge");
        }
        Ok(())
    }

    fn operate(&mut self, pairs: &Pairs, stage: u8, out: &mut Vec<u8>) {
        let default = Parameters::default();
        let ours = self.target.as_ref().map_or(&default, |t| &t.parameters);
        for (key, value) in pairs {
            match key.as_str() {
                "InitiatorName" | "InitiatorAlias" | "SessionType" | "TargetName" | "AuthMethod" | "CHAP_A"
                | "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C" => {}
                _ => match negotiate(key, value, ours, self.discovery, &mut self.agreed) {
                    Answer::Nothing => {}
                    Answer::Value(answer) => text::push(out, key, &answer),
                },
            }
        }
        if stage == 1 && !self.declared {
            self.declared = true;
            self.agreed.max_recv_bytes = ours.max_recv_data_segment_length;
            text::push(out, "MaxRecvDataSegmentLength", &self.agreed.max_recv_bytes.to_string());
        }
    }

    /// The session and connection that the login asks for: ISID, TSIH, CID.
    #[must_use]
    pub fn handles(&self) -> ([u8; 6], u16, u16) {
        self.identity.map_or(([0; 6], 0, 0), |i| (i.isid, i.tsih, i.cid))
    }
}
