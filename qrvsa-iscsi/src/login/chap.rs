//! CHAP (RFC 1994, RFC 7143 12.1.3): algorithms, challenges, and the target's part of the exchange.
//!
//! Compares in constant time. An unknown name costs the same hash as a known one. A challenge that comes back as the
//! initiator's own, or one secret for both directions, ends the login: else an initiator could have us answer for it.

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::config::{Account, Users};
use crate::pdu::text;

/// Algorithms by their numbers (IANA, RFC 7143 12.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 5.
    Md5,
    /// 6.
    Sha1,
    /// 7.
    Sha256,
    /// 8.
    Sha3,
}

impl Algorithm {
    /// By number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Algorithm> {
        match number {
            5 => Some(Algorithm::Md5),
            6 => Some(Algorithm::Sha1),
            7 => Some(Algorithm::Sha256),
            8 => Some(Algorithm::Sha3),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha1 => 6,
            Algorithm::Sha256 => 7,
            Algorithm::Sha3 => 8,
        }
    }

    /// Length of a hash, and of our challenges, in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3 => 32,
        }
    }

    /// The response to a challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let input = Zeroizing::new([&[id], secret, challenge].concat());
        match self {
            Algorithm::Md5 => Md5::digest(&*input).to_vec(),
            Algorithm::Sha1 => Sha1::digest(&*input).to_vec(),
            Algorithm::Sha256 => Sha256::digest(&*input).to_vec(),
            Algorithm::Sha3 => Sha3_256::digest(&*input).to_vec(),
        }
    }
}

/// Longest challenge taken, bytes (RFC 7143 12.1.3).
const CHALLENGE_BYTES_MAX: usize = 1024;

/// A challenge that was sent.
#[derive(Clone, Debug)]
pub struct Challenge {
    algorithm: Algorithm,
    id: u8,
    bytes: Vec<u8>,
}

/// Why an initiator is not who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

fn refused<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(text.into()))
}

impl Challenge {
    /// Takes the first algorithm of the initiator's list that is known. `random` fills with random bytes.
    ///
    /// # Errors
    /// None of them is known.
    pub fn new(algorithms: &str, random: &mut dyn FnMut(&mut [u8])) -> Result<Challenge, Refused> {
        let known = |word: &str| text::number(word.trim()).and_then(Algorithm::from_number);
        let Some(algorithm) = algorithms.split(',').find_map(known) else {
            return refused(format!("none of the CHAP algorithms {algorithms:?} is known here (5, 6, 7, 8 are)"));
        };
        let mut id = [0];
        let mut bytes = vec![0; algorithm.bytes()];
        random(&mut id);
        random(&mut bytes);
        Ok(Challenge { algorithm, id: id[0], bytes })
    }

    /// Writes `CHAP_A`, `CHAP_I` and `CHAP_C`.
    pub fn write(&self, out: &mut Vec<u8>) {
        text::push(out, "CHAP_A", &self.algorithm.number().to_string());
        text::push(out, "CHAP_I", &self.id.to_string());
        text::push(out, "CHAP_C", &text::hex(&self.bytes));
    }

    /// Checks the initiator's answer, and writes ours (`CHAP_N`, `CHAP_R`) when it asks for one. Returns the account's name.
    ///
    /// # Errors
    /// The initiator is not let in; the text is for the log.
    pub fn check<'a>(
        &self,
        users: &'a Users,
        name: &str,
        response: &str,
        asked: Option<(&str, &str)>,
        out: &mut Vec<u8>,
    ) -> Result<&'a str, Refused> {
        let account = users.incoming.iter().find(|a| a.name == name);
        let secret = account.map_or(&b"nobody has this secret"[..], |a| a.secret.expose());
        let expected = self.algorithm.response(self.id, secret, &self.bytes);
        let given = text::binary(response).unwrap_or_default();
        let equal = given.len() == expected.len() && bool::from(given.ct_eq(&expected));
        let account = match account {
            Some(account) if equal => account,
            Some(_) => return refused(format!("wrong CHAP secret for user {name:?}")),
            None => return refused(format!("unknown CHAP user {name:?}")),
        };
        if let Some((id, challenge)) = asked {
            self.answer(users.outgoing.as_ref(), account, id, challenge, out)?;
        }
        Ok(&account.name)
    }

    fn answer(
        &self,
        outgoing: Option<&Account>,
        incoming: &Account,
        id: &str,
        challenge: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let Some(own) = outgoing else {
            return refused("the initiator asks for mutual CHAP, and there is no outgoing account");
        };
        let id = text::number(id).and_then(|n| u8::try_from(n).ok());
        let challenge = text::binary(challenge).filter(|c| (1..=CHALLENGE_BYTES_MAX).contains(&c.len()));
        let (Some(id), Some(challenge)) = (id, challenge) else {
            return refused("malformed CHAP challenge");
        };
        if challenge == self.bytes {
            return refused("the initiator sent our own CHAP challenge back");
        }
        if bool::from(own.secret.expose().ct_eq(incoming.secret.expose())) {
            return refused("incoming and outgoing CHAP secrets are equal; choose different ones");
        }
        text::push(out, "CHAP_N", &own.name);
        text::push(out, "CHAP_R", &text::hex(&self.algorithm.response(id, own.secret.expose(), &challenge)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn users() -> Users {
        let account = |name: &str, secret: &str| Account { name: name.into(), secret: Secret::new(secret).unwrap() };
        Users {
            incoming: vec![account("a", "first secret"), account("joe", "opensesame12")],
            outgoing: Some(account("t", "sesameopen12")),
        }
    }

    fn challenge(algorithms: &str) -> Challenge {
        Challenge::new(algorithms, &mut |out| out.fill(3)).unwrap()
    }

    #[test]
    fn hashes_are_those_of_the_standards() {
        // The empty id prefix cannot be had, so: id 'a', secret 'b', challenge 'c' is the hash of "abc".
        let of = |number| text::hex(&Algorithm::from_number(number).unwrap().response(b'a', b"b", b"c"));
        assert_eq!(of(5), "0x900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(of(6), "0xa9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(of(7), "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(of(8), "0x3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532");
    }

    #[test]
    fn lets_in_who_knows_the_secret() {
        for algorithm in ["5", "6", "7", "8", "99,7"] {
            let sent = challenge(algorithm);
            let right = text::hex(&sent.algorithm.response(sent.id, b"opensesame12", &sent.bytes));
            let wrong = text::hex(&sent.algorithm.response(sent.id, b"opensesame13", &sent.bytes));
            let mut out = Vec::new();
            assert_eq!(sent.check(&users(), "joe", &right, None, &mut out).unwrap(), "joe");
            assert!(out.is_empty());
            assert!(sent.check(&users(), "joe", &wrong, None, &mut out).is_err());
            assert!(sent.check(&users(), "jim", &right, None, &mut out).is_err());
            assert!(sent.check(&users(), "joe", "0x00", None, &mut out).is_err());
            assert!(sent.check(&users(), "joe", "", None, &mut out).is_err());
        }
        assert!(Challenge::new("4,9", &mut |_| ()).is_err());
    }

    #[test]
    fn answers_but_never_with_a_reflection() {
        let sent = challenge("7");
        let right = text::hex(&sent.algorithm.response(sent.id, b"opensesame12", &sent.bytes));
        let mut out = Vec::new();
        sent.check(&users(), "joe", &right, Some(("9", "0x010203")), &mut out).unwrap();
        let own = text::hex(&Algorithm::Sha256.response(9, b"sesameopen12", &[1, 2, 3]));
        assert_eq!(text::parse(&out).unwrap(), [("CHAP_N".into(), "t".into()), ("CHAP_R".into(), own)]);
        let ours = text::hex(&sent.bytes);
        for (id, bytes) in [("9", ours.as_str()), ("256", "0x01"), ("1", ""), ("x", "0x01")] {
            assert!(sent.check(&users(), "joe", &right, Some((id, bytes)), &mut out).is_err());
        }
        let mut same = users();
        same.outgoing.as_mut().unwrap().secret = Secret::new("opensesame12").unwrap();
        assert!(sent.check(&same, "joe", &right, Some(("9", "0x01")), &mut out).is_err());
    }
}
