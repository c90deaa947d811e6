//! What a target is: its name, who may log in, how, and what is offered. All of it may change at run time.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

pub use crate::name::{IscsiName, PortalAddress};
pub use crate::params::{DigestPolicy, Parameters};
pub use crate::secret::{Account, Secret, Users};

use crate::name::canonical;

/// A block of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// First address, host bits zero.
    pub address: IpAddr,
    /// Bits that must match.
    pub prefix_bits: u8,
}

fn bits(address: IpAddr) -> (u128, u8) {
    match canonical(address) {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl Cidr {
    /// Whether the address lies in the block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, width) = bits(self.address);
        let (other, other_width) = bits(address);
        if width != other_width {
            return false;
        }
        let host_bits = u32::from(width.saturating_sub(self.prefix_bits));
        (own ^ other).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// `ADDRESS` or `ADDRESS/BITS`, an IPv6 address with or without brackets.
    fn from_str(text: &str) -> Result<Cidr, String> {
        let bad = || format!("{text:?} is no address; use 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        let address = canonical(address.parse::<IpAddr>().map_err(|_| bad())?);
        let (value, width) = bits(address);
        let prefix_bits = match prefix {
            Some(prefix) => prefix.parse::<u8>().ok().filter(|p| *p <= width).ok_or_else(bad)?,
            None => width,
        };
        let host_bits = u32::from(width - prefix_bits);
        let kept = value.checked_shr(host_bits).and_then(|v| v.checked_shl(host_bits)).unwrap_or(0);
        let address = if width == 32 {
            IpAddr::V4(u32::try_from(kept).map_err(|_| bad())?.into())
        } else {
            IpAddr::V6(kept.into())
        };
        Ok(Cidr { address, prefix_bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, width) = bits(self.address);
        if self.prefix_bits == width { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.prefix_bits) }
    }
}

/// One line of an access list. A login is let in when any line matches; an empty list lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AclRule {
    /// Everybody.
    All,
    /// Who comes from an address of the block.
    Address(Cidr),
    /// Who has this initiator name. Kept as given; compared without regard to case.
    InitiatorName(String),
}

impl AclRule {
    /// Whether this line lets the initiator in.
    #[must_use]
    pub fn admits(&self, initiator_name: &str, address: IpAddr) -> bool {
        match self {
            AclRule::All => true,
            AclRule::Address(block) => block.contains(address),
            AclRule::InitiatorName(name) => name.eq_ignore_ascii_case(initiator_name),
        }
    }
}

/// Whether a target takes logins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetState {
    /// Takes logins.
    #[default]
    Ready,
    /// Takes no new logins (status 0301); sessions that are there go on.
    Offline,
}

/// Where logins are sent instead (RFC 7143 11.13.5, status class 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The other portal.
    pub to: PortalAddress,
    /// For good (0102) or for now (0101).
    pub permanent: bool,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its iSCSI name.
    pub name: IscsiName,
    /// Number for management; unique.
    pub tid: u32,
    /// TargetAlias; empty for none.
    pub alias: String,
    /// Portals on which it is seen, by their bound addresses; empty: all of them.
    pub portals: Vec<SocketAddr>,
    /// What SendTargets tells instead of the portals' own addresses; empty: those.
    pub advertise: Vec<PortalAddress>,
    /// Offers and limits.
    pub parameters: Parameters,
    /// Who may log in.
    pub acl: Vec<AclRule>,
    /// CHAP accounts.
    pub users: Users,
    /// Takes logins or not.
    pub state: TargetState,
    /// Silence after which the target sends a NOP-In ping; zero: never.
    pub nop_interval: Duration,
    /// Pings without any answer after which a connection is taken for dead; at least 1 counts.
    pub nop_count: u32,
    /// Logins are sent elsewhere.
    pub redirect: Option<Redirect>,
}

impl TargetConfig {
    /// A target that lets nobody in, with pings every 15 s, three of them.
    #[must_use]
    pub fn new(name: IscsiName, tid: u32) -> TargetConfig {
        TargetConfig {
            name,
            tid,
            alias: String::new(),
            portals: Vec::new(),
            advertise: Vec::new(),
            parameters: Parameters::default(),
            acl: Vec::new(),
            users: Users::default(),
            state: TargetState::Ready,
            nop_interval: Duration::from_secs(15),
            nop_count: 3,
            redirect: None,
        }
    }

    /// Whether the access list lets the initiator in.
    #[must_use]
    pub fn admits(&self, initiator_name: &str, address: IpAddr) -> bool {
        self.acl.iter().any(|rule| rule.admits(initiator_name, address))
    }
}

/// What holds for discovery sessions. They show an initiator the targets whose access list lets it in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// CHAP accounts.
    pub users: Users,
}

/// Bounds of the whole service. Lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have not logged in yet; beyond, the oldest of them is closed.
    pub half_open_max: usize,
    /// Time a login may take.
    pub login_timeout: Duration,
    /// Connections altogether.
    pub connections_max: usize,
    /// Data-out held for commands that wait for more of it, over all sessions. Beyond, no more is asked for; beyond twice
    /// that, commands get TASK SET FULL. As much again is kept for the next commands while some come.
    pub data_out_bytes_max: u64,
    /// Data-out of one command.
    pub command_bytes_max: u32,
    /// Data-in that waits for one slow reader.
    pub data_in_bytes_max: usize,
    /// Time without any progress in sending to an initiator, or with less than 64 KiB of the data-out asked of it, after which it is
    /// dropped.
    pub stall_timeout: Duration,
    /// Threads for commands that wait. Beyond, a logical unit still gets up to eight when others have taken all.
    pub workers_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // a thousand hosts that come back at once after an outage are no attack
            half_open_max: 2048,
            login_timeout: Duration::from_secs(15),
            connections_max: 4096,
            data_out_bytes_max: 256 << 20,
            command_bytes_max: 16 << 20,
            data_in_bytes_max: 16 << 20,
            stall_timeout: Duration::from_secs(60),
            workers_max: 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(block("10.1.0.0/16").contains(ip("10.1.2.3")));
        assert!(!block("10.1.0.0/16").contains(ip("10.2.2.3")));
        assert!(block("10.1.2.3").contains(ip("::ffff:10.1.2.3")));
        assert!(block("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!block("0.0.0.0/0").contains(ip("::1")));
        assert!(block("::/0").contains(ip("::1")));
        assert!(block("[2001:db8::]/32").contains(ip("2001:db8:1::1")));
        assert_eq!(block("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(block("10.1.2.3/32").to_string(), "10.1.2.3");
        for bad in ["", "10.0.0.0/33", "x", "10.0.0.0/-1", "[::1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn any_rule_admits_and_none_denies() {
        let mut target = TargetConfig::new("iqn.2026-01.test:a".parse().unwrap(), 1);
        let here = "127.0.0.1".parse().unwrap();
        assert!(!target.admits("iqn.x", here));
        target.acl.push(AclRule::InitiatorName("iqn.X".into()));
        assert!(target.admits("iqn.x", here));
        assert!(!target.admits("iqn.y", here));
        target.acl.push(AclRule::Address(block("127.0.0.0/8")));
        assert!(target.admits("iqn.y", here));
        target.acl = vec![AclRule::All];
        assert!(target.admits("iqn.z", "::1".parse().unwrap()));
    }
}
