//! The bytes on tgt's management socket: one request, one reply, then the server closes.
//!
//! All integers are in the byte order of the machine, which is little-endian wherever this runs.
//!
//! | offset | bytes | request |
//! |---|---|---|
//! | 0 | 4 | mode |
//! | 4 | 4 | operation |
//! | 8 | 64 | low-level driver, NUL-padded |
//! | 72 | 4 | length of the whole request: 120, or 120 + payload + its NUL |
//! | 76 | 4 | target id, -1 for none |
//! | 80 | 8 | session id |
//! | 88 | 8 | LUN, all ones for none |
//! | 96 | 4 | connection id |
//! | 100 | 4 | host number |
//! | 104 | 4 | device type |
//! | 108 | 4 | account direction: 0 incoming, 1 outgoing |
//! | 112 | 4 | unused |
//! | 116 | 4 | force |
//!
//! A reply is an error code (4 bytes), its length (4 bytes, these 8 included), and text with its NUL.

/// Length of a request without payload, bytes.
pub const REQUEST_BYTES: usize = 120;
/// Length of a reply without text, bytes.
pub const REPLY_BYTES: usize = 8;
/// Longest payload with its NUL, bytes.
pub const PAYLOAD_BYTES_MAX: usize = 8192;
/// The target id that stands for none.
pub const NO_TID: i32 = -1;
/// The LUN that stands for none.
pub const NO_LUN: u64 = u64::MAX;
const LLD_BYTES: usize = 64;

macro_rules! code {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
        }

        impl $name {
            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self { $($name::$variant => $value,)* }
            }

            /// The meaning of a number, if it has one.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<$name> {
                match number { $($value => Some($name::$variant),)* _ => None }
            }

            /// How tgt writes it.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

code! {
    /// What a request is about.
    Mode {
        /// The daemon.
        System = 0, "system";
        /// Targets.
        Target = 1, "target";
        /// Logical units.
        LogicalUnit = 2, "logicalunit";
        /// Portals.
        Portal = 3, "portal";
        /// Low-level drivers.
        Lld = 4, "lld";
        /// Sessions.
        Session = 5, "session";
        /// Connections.
        Connection = 6, "conn";
        /// CHAP accounts.
        Account = 7, "account";
    }
}

code! {
    /// What is to be done.
    Op {
        /// Make.
        New = 0, "new";
        /// Remove.
        Delete = 1, "delete";
        /// List.
        Show = 2, "show";
        /// Give access.
        Bind = 3, "bind";
        /// Take access away.
        Unbind = 4, "unbind";
        /// Change.
        Update = 5, "update";
        /// Counts.
        Stat = 6, "stat";
        /// Start a driver.
        Start = 7, "start";
        /// Stop a driver.
        Stop = 8, "stop";
    }
}

code! {
    /// How a request ended.
    Code {
        /// Done.
        Success = 0, "success";
        /// Anything else.
        Unknown = 1, "unknown error";
        /// No memory.
        NoMemory = 2, "out of memory";
        /// No such driver.
        NoDriver = 3, "can't find the driver";
        /// No such target.
        NoTarget = 4, "can't find the target";
        /// No such logical unit.
        NoLun = 5, "can't find the logical unit";
        /// No such session.
        NoSession = 6, "can't find the session";
        /// No such connection.
        NoConnection = 7, "can't find the connection";
        /// No such binding.
        NoBinding = 8, "can't find the binding";
        /// The target is there already.
        TargetExists = 9, "this target already exists";
        /// The logical unit is there already.
        LunExists = 10, "this logical unit number already exists";
        /// The binding is there already.
        BindingExists = 11, "this binding already exists";
        /// The rule is there already.
        AclExists = 12, "this access control rule already exists";
        /// No such rule.
        NoAcl = 13, "this access control rule does not exist";
        /// The account is there already.
        UserExists = 14, "this account already exists";
        /// No such account.
        NoUser = 15, "can't find the account";
        /// Too many accounts.
        TooManyUsers = 16, "too many accounts";
        /// Makes no sense.
        InvalidRequest = 17, "invalid request";
        /// One outgoing account is the most.
        OutgoingExists = 18, "this target already has an outgoing account";
        /// The target has sessions.
        TargetActive = 19, "this target is still active";
        /// The logical unit is in use.
        LunActive = 20, "this logical unit is still active";
        /// The driver is in use.
        DriverActive = 21, "this driver is busy";
        /// Not done here.
        Unsupported = 22, "this operation isn't supported";
        /// No such parameter.
        UnknownParameter = 23, "unknown parameter";
        /// An initiator prevents the removal.
        PreventRemoval = 24, "this device has Prevent Removal set";
    }
}

/// A request without its payload. Mode and operation are numbers: a server answers those it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`Mode`].
    pub mode: u32,
    /// See [`Op`].
    pub op: u32,
    /// Low-level driver; empty for tgt's first one, which is iSCSI.
    pub lld: String,
    /// Target id, [`NO_TID`] for none.
    pub tid: i32,
    /// Session id.
    pub sid: u64,
    /// LUN, [`NO_LUN`] for none.
    pub lun: u64,
    /// Connection id.
    pub cid: u32,
    /// Host number of adapters that are not iSCSI.
    pub host: u32,
    /// SCSI device type; 255 for pass-through.
    pub device_type: u32,
    /// The account is an outgoing one.
    pub outgoing: bool,
    /// Although it is in use.
    pub force: bool,
}

impl Request {
    /// A request about nothing in particular.
    #[must_use]
    pub fn new(mode: Mode, op: Op) -> Request {
        Request {
            mode: mode.number(),
            op: op.number(),
            lld: String::new(),
            tid: NO_TID,
            sid: 0,
            lun: NO_LUN,
            cid: 0,
            host: 0,
            device_type: 0,
            outgoing: false,
            force: false,
        }
    }

    /// The bytes of a request with its payload; without one when it is empty.
    #[must_use]
    pub fn encode(&self, payload: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(REQUEST_BYTES + payload.len() + 1);
        out.extend(self.mode.to_le_bytes());
        out.extend(self.op.to_le_bytes());
        let mut lld = self.lld.clone().into_bytes();
        lld.resize(LLD_BYTES, 0);
        out.extend(lld);
        let extra = if payload.is_empty() { 0 } else { payload.len() + 1 };
        let length = u32::try_from(REQUEST_BYTES + extra).unwrap_or(u32::MAX);
        out.extend(length.to_le_bytes());
        out.extend(self.tid.to_le_bytes());
        out.extend(self.sid.to_le_bytes());
        out.extend(self.lun.to_le_bytes());
        for word in [self.cid, self.host, self.device_type, u32::from(self.outgoing), 0, u32::from(self.force)] {
            out.extend(word.to_le_bytes());
        }
        if !payload.is_empty() {
            out.extend(payload.as_bytes());
            out.push(0);
        }
        out
    }

    /// Reads the fixed part; with it, how many bytes of payload follow.
    ///
    /// # Errors
    /// In words: a length that cannot be.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<(Request, usize), String> {
        let word = |at: usize| -> u32 { u32::from_le_bytes(array(bytes, at)) };
        let long = |at: usize| -> u64 { u64::from_le_bytes(array(bytes, at)) };
        let total = usize::try_from(word(72)).unwrap_or(usize::MAX);
        let payload = total
            .checked_sub(REQUEST_BYTES)
            .filter(|extra| *extra <= PAYLOAD_BYTES_MAX)
            .ok_or_else(|| format!("a request of {total} bytes: there are none below 120 or above 8312"))?;
        let lld: Vec<u8> = bytes.iter().skip(8).take(LLD_BYTES).copied().take_while(|b| *b != 0).collect();
        let request = Request {
            mode: word(0),
            op: word(4),
            lld: String::from_utf8_lossy(&lld).into_owned(),
            tid: i32::from_le_bytes(array(bytes, 76)),
            sid: long(80),
            lun: long(88),
            cid: word(96),
            host: word(100),
            device_type: word(104),
            outgoing: word(108) == 1,
            force: word(116) != 0,
        };
        Ok((request, payload))
    }
}

/// `N` bytes from `at`; zero where there are none.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    out
}

/// The bytes of a reply.
#[must_use]
pub fn encode_reply(code: Code, text: &str) -> Vec<u8> {
    let extra = if text.is_empty() { 0 } else { text.len() + 1 };
    let mut out = Vec::with_capacity(REPLY_BYTES + extra);
    out.extend(code.number().to_le_bytes());
    out.extend(u32::try_from(REPLY_BYTES + extra).unwrap_or(u32::MAX).to_le_bytes());
    if !text.is_empty() {
        out.extend(text.as_bytes());
        out.push(0);
    }
    out
}

/// The head of a reply: its code as a number, and how many bytes of text follow.
#[must_use]
pub fn decode_reply(bytes: &[u8; REPLY_BYTES]) -> (u32, usize) {
    let length = usize::try_from(u32::from_le_bytes(array(bytes, 4))).unwrap_or(0);
    (u32::from_le_bytes(array(bytes, 0)), length.saturating_sub(REPLY_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_as_tgts_own_tgtadm_sends_it() {
        // tgtadm -L iscsi -m target -o show -t 7
        let mut wanted = Vec::new();
        wanted.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        wanted.extend(b"iscsi");
        wanted.resize(72, 0);
        wanted.extend([0x78, 0, 0, 0, 7, 0, 0, 0]);
        wanted.extend([0; 8]);
        wanted.extend([0xff; 8]);
        wanted.resize(120, 0);
        let request = Request { lld: "iscsi".into(), tid: 7, ..Request::new(Mode::Target, Op::Show) };
        assert_eq!(request.encode(""), wanted);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let good = Request::new(Mode::System, Op::Show).encode("");
        for length in [0u32, 119, 120 + 8193, u32::MAX] {
            let mut bytes: [u8; 120] = good.clone().try_into().unwrap();
            bytes[72..76].copy_from_slice(&length.to_le_bytes());
            assert!(Request::decode(&bytes).is_err(), "{length}");
        }
    }

    #[test]
    fn numbers_and_variants_agree() {
        for number in 0..40 {
            if let Some(code) = Code::from_number(number) {
                assert_eq!(code.number(), number);
            } else {
                assert!(number > 24);
            }
        }
    }

    proptest! {
        #[test]
        fn requests_round_trip(mode: u32, op: u32, lld in "[a-z]{0,64}", tid: i32, sid: u64, lun: u64, cid: u32, host: u32,
                               device_type: u32, outgoing: bool, force: bool, payload in "[ -~]{0,300}") {
            let request = Request { mode, op, lld, tid, sid, lun, cid, host, device_type, outgoing, force };
            let bytes = request.encode(&payload);
            let head: [u8; 120] = bytes[..120].try_into().unwrap();
            let (read, extra) = Request::decode(&head).unwrap();
            prop_assert_eq!(read, request);
            prop_assert_eq!(extra, bytes.len() - 120);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 120)) {
            let head: [u8; 120] = bytes.try_into().unwrap();
            if let Ok((_, extra)) = Request::decode(&head) {
                prop_assert!(extra <= PAYLOAD_BYTES_MAX);
            }
        }
    }
}
