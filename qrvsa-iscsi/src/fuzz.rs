//! Entry points for fuzzing: each takes any bytes to one parser of what initiators send, and must return.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::config::{Account, AclRule, Secret, TargetConfig, Users};
use crate::login::{Login, Step, World};
use crate::pdu::frame::{self, Rules};
use crate::pdu::text;

/// Framing, with every combination of digests; the first byte says which.
pub fn frames(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let rules = Rules { header_digest: mode & 1 != 0, data_digest: mode & 2 != 0, data_bytes_max: 4096 };
    let _ = frame::scan(rest, &rules);
}

/// Text, and the numbers and binary values in it.
pub fn texts(bytes: &[u8]) {
    for (_, value) in text::parse(bytes).unwrap_or_default() {
        let _ = (text::number(&value), text::binary(&value));
    }
}

struct Fixed(Option<Arc<TargetConfig>>);

impl World for Fixed {
    fn target(&self, _name: &str) -> Option<Arc<TargetConfig>> {
        self.0.clone()
    }
    fn discovery_users(&self) -> Users {
        Users::default()
    }
    fn fill_random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    fn peer(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
    fn portal_group_tag(&self) -> u16 {
        1
    }
}

/// A login from a stream of requests, to a target that lets everybody in or, by the first byte, wants CHAP.
pub fn login(bytes: &[u8]) {
    let Some((mode, mut rest)) = bytes.split_first() else { return };
    let target = "iqn.2026-01.test:t".parse().ok().map(|name| {
        let mut target = TargetConfig::new(name, 1);
        target.acl.push(AclRule::All);
        if mode & 1 != 0
            && let Ok(secret) = Secret::new("opensesame12")
        {
            target.users.incoming.push(Account { name: "joe".into(), secret });
        }
        Arc::new(target)
    });
    let world = Fixed(target);
    let rules = Rules { header_digest: false, data_digest: false, data_bytes_max: 8192 };
    let mut login = Login::default();
    while let Ok(Some(header)) = frame::header(rest, &rules)
        && let Some(pdu) = frame::body(rest, &header, &rules)
    {
        if !matches!(login.step(&pdu.bhs, pdu.data, &world), Step::Reply { .. }) {
            return;
        }
        rest = rest.get(header.total..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_return(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::frames(&bytes);
            super::texts(&bytes);
            super::login(&bytes);
        }
    }
}
