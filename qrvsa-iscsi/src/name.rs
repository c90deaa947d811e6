//! iSCSI names (RFC 7143 4.2.7, RFC 3722) and the addresses of portals.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Longest iSCSI name in bytes (RFC 7143 4.2.7.2).
pub const NAME_BYTES_MAX: usize = 223;

/// A checked iSCSI name in lower case: `iqn.…`, `eui.` + 16 or `naa.` + 16 or 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IscsiName(String);

impl IscsiName {
    /// The name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IscsiName {
    type Err = String;

    /// Checks and lowers a name. `_` is taken although RFC 3722 forbids it, because targets in use have it.
    fn from_str(text: &str) -> Result<IscsiName, String> {
        let name = text.to_ascii_lowercase();
        if name.len() > NAME_BYTES_MAX {
            return Err(format!("an iSCSI name has at most {NAME_BYTES_MAX} bytes; this one has {}", name.len()));
        }
        let hex = |digits: &str, lengths: &[usize]| {
            lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let ok = match name.split_once('.') {
            Some(("iqn", rest)) => {
                !rest.is_empty()
                    && rest.chars().all(|c| {
                        matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | ':' | '_')
                            || (!c.is_ascii() && c.is_alphanumeric())
                    })
            }
            Some(("eui", rest)) => hex(rest, &[16]),
            Some(("naa", rest)) => hex(rest, &[16, 32]),
            _ => false,
        };
        if ok {
            Ok(IscsiName(name))
        } else {
            Err(format!(
                "{text:?} is no iSCSI name; use iqn.YYYY-MM.reversed.domain:name, eui.<16 hex digits> or naa.<16 or 32 hex digits>"
            ))
        }
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host and a port as they are told to initiators; the host is an address or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortalAddress {
    /// IPv4 or IPv6 address without brackets, or a DNS name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The port of iSCSI.
pub const DEFAULT_PORT: u16 = 3260;

impl From<SocketAddr> for PortalAddress {
    fn from(address: SocketAddr) -> PortalAddress {
        PortalAddress { host: canonical(address.ip()).to_string(), port: address.port() }
    }
}

/// IPv4 in IPv6 becomes IPv4.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

impl FromStr for PortalAddress {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`; port 3260 when none is given.
    fn from_str(text: &str) -> Result<PortalAddress, String> {
        let bad = || format!("{text:?} is no portal; use ADDRESS:PORT, with an IPv6 address in brackets");
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(bad)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(bad()),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let name_ok = !host.is_empty()
            && host.len() <= 255
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_'));
        if !name_ok {
            return Err(bad());
        }
        let port = match port {
            Some(port) => port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad)?,
            None => DEFAULT_PORT,
        };
        Ok(PortalAddress { host: host.to_string(), port })
    }
}

impl fmt::Display for PortalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["iqn.2026-01.test:a", "eui.02004567A425678D", "naa.52004567BA64678D", "iqn.2001-04.com.x:y_z.1"] {
            assert_eq!(good.parse::<IscsiName>().unwrap().as_str(), good.to_lowercase());
        }
        let long = format!("iqn.{}", "a".repeat(220));
        for bad in
            ["", "iqn.", "iqn", "eui.1", "naa.zzzzzzzzzzzzzzzz", "iqn.2026-01.test:a b", "iqn.a,b", "disk", &long]
        {
            assert!(bad.parse::<IscsiName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn portals() {
        let show = |text: &str| text.parse::<PortalAddress>().map(|p| p.to_string());
        assert_eq!(show("10.0.2.2:3261").unwrap(), "10.0.2.2:3261");
        assert_eq!(show("nas.local").unwrap(), "nas.local:3260");
        assert_eq!(show("[fe80::1]:3260").unwrap(), "[fe80::1]:3260");
        assert_eq!(show("::1").unwrap(), "[::1]:3260");
        for bad in ["", ":1", "a:0", "a:70000", "[::1", "[x]:1", "[::1]3260", "a b:1"] {
            assert!(show(bad).is_err(), "{bad}");
        }
    }
}
