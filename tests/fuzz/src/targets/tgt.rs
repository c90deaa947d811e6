//! What programs written for tgt send: requests on its socket, command lines of tgtadm, targets.conf.

use std::path::{Path, PathBuf};

use qrvsa_tgt::command::{self, Command};
use qrvsa_tgt::conf::{Parser, Source, read};
use qrvsa_tgt::payload::Payload;
use qrvsa_tgt::wire::{Mode, Op, PAYLOAD_BYTES_MAX, REPLY_BYTES, REQUEST_BYTES, Request, decode_reply};

use super::MEMORY_MAX;
use crate::Target;

/// Requests with their payload, and replies.
pub const REQUEST: Target = Target {
    name: "tgt-request",
    covers: "requests of tgt's management socket, the grammar of their payload, replies",
    run: request,
    seeds: || {
        let one = |payload: &str| Request { tid: 1, lun: 1, ..Request::new(Mode::Target, Op::New) }.encode(payload);
        let payloads = [
            "",
            "targetname=iqn.2026-01.org.example:t",
            "path=/a,b,bstype=aio,bsopts=o,bsoflags=sync:direct,blocksize=4096",
            "targetOps vendor_id=X,product_id=Y Z,",
            "portalOps portal=[::1]:3260,",
            "initiator-address=1.2.3.4,initiator-name=iqn.a",
            "user=joe,password=opensesame12",
        ];
        payloads.iter().map(|p| one(p)).collect()
    },
    words: &[b"path=", b",bstype=", b"targetOps ", b"portalOps ", b"user=", b",password=", b"=", b","],
    bytes_max: REQUEST_BYTES + 512,
    memory_max: MEMORY_MAX,
};

/// Command lines: arguments with a NUL after each.
pub const TGTADM: Target = Target {
    name: "tgtadm",
    covers: "command lines of tgtadm",
    run: tgtadm,
    seeds: || {
        let lines = [
            "--lld iscsi --op new --mode target --tid 1 -T iqn.2026-01.org.example:t",
            "--lld iscsi --op show --mode target",
            "--op new --mode logicalunit --tid 1 --lun 1 -b /srv/disk --bstype rdwr --blocksize 4096",
            "--op bind --mode target --tid 1 -I ALL",
            "--op update --mode target --tid 1 -n MaxBurstLength -v 4096",
            "--op new --mode account --user joe --password opensesame12",
            "--op bind --mode account --tid 1 --user joe --outgoing",
            "--op new --mode portal --param portal=0.0.0.0:3260",
            "--op update --mode logicalunit --tid 1 --lun 1 --params vendor_id=X,product_id=Y",
            "--op delete --mode conn --tid 1 --sid 5 --cid 0",
            "--op delete --mode target --tid 1 --force -C 3",
            "--help",
        ];
        lines.iter().map(|line| line.replace(' ', "\0").into_bytes()).collect()
    },
    words: &[
        b"\0--tid\0",
        b"\0--lun=",
        b"\0-m\0",
        b"logicalunit",
        b"account",
        b"portal",
        b"conn",
        b"session",
        b"sys",
        b"-1",
        b"0x10",
        b"\0--",
        b"\0-",
        b"--mo",
        b"update",
        b"unbind",
        b"stats",
        b"99999999999999999999",
    ],
    bytes_max: 1024,
    memory_max: MEMORY_MAX,
};

/// Configuration files.
pub const CONF: Target = Target {
    name: "targets-conf",
    covers: "targets.conf, with files that include themselves",
    run: conf,
    seeds: || CONFIGURATIONS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    words: &[
        b"<target ",
        b"</target>\n",
        b"<backing-store ",
        b"</backing-store>\n",
        b"<direct-store ",
        b"include x\n",
        b"default-driver iscsi\n",
        b"    lun 1\n",
        b"\\\n",
        b"#",
        b"\"",
        b"incominguser a b\n",
        b"params x=y\n",
        b"mode_page 8:0:18:0x10:0\n",
        b"blocksize 4096\n",
    ],
    bytes_max: 4096,
    memory_max: MEMORY_MAX,
};

fn request(input: &[u8]) -> bool {
    let _ = Payload::parse(input);
    if let Some((head, _)) = input.split_first_chunk::<REPLY_BYTES>() {
        let _ = decode_reply(head);
    }
    let Some((head, rest)) = input.split_first_chunk::<REQUEST_BYTES>() else { return false };
    let Ok((request, extra)) = Request::decode(head) else { return false };
    assert!(extra <= PAYLOAD_BYTES_MAX);
    let payload = Payload::parse(rest.get(..extra).unwrap_or(rest));
    let bytes: usize = payload.pairs.iter().chain(&payload.parameters).map(|(k, v)| k.len() + v.len()).sum();
    // a byte that is no UTF-8 becomes a character of three
    assert!(bytes <= rest.len() * 3);
    for (key, value) in &payload.pairs {
        assert!(payload.get(key).is_some(), "{key:?} has a value: {value:?}");
    }
    let again = request.encode("");
    let (back, none) = again.first_chunk().map(|head| Request::decode(head).expect("as encoded")).expect("whole");
    assert_eq!(none, 0);
    if request.lld.len() < 64 && !request.lld.contains('\u{fffd}') {
        assert_eq!(back, request);
    }
    true
}

fn tgtadm(input: &[u8]) -> bool {
    let arguments: Vec<String> = input.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    match command::parse(&arguments) {
        Ok(Command::Ask { request, payload, .. }) => {
            let bytes = request.encode(&payload);
            if payload.len() < PAYLOAD_BYTES_MAX && request.lld.len() < 64 {
                let (back, extra) =
                    bytes.first_chunk().map(|head| Request::decode(head).expect("as encoded")).expect("whole");
                assert_eq!((back, extra), (request, bytes.len() - REQUEST_BYTES));
            }
            true
        }
        Ok(Command::Print(text)) => !text.is_empty(),
        Err(refusal) => {
            assert!(refusal.text.ends_with('\n') && refusal.exit != 0, "{refusal:?}");
            false
        }
    }
}

fn conf(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input).into_owned();
    let main = Source { path: PathBuf::from("/etc/tgt/targets.conf"), text: text.clone() };
    // whatever is included is this file again, once or twice
    let include = |path: &Path| -> Result<Vec<Source>, String> {
        let one = || Source { path: path.to_owned(), text: text.clone() };
        if path.as_os_str().len().is_multiple_of(2) { Ok(vec![one(), one()]) } else { Ok(vec![one()]) }
    };
    match Parser::new(&include).parse(&main) {
        Ok(items) => match read(&items) {
            Ok(_) => true,
            Err(e) => {
                assert!(!e.is_empty() && !e.trim_end().contains('\n'), "one line: {e:?}");
                false
            }
        },
        Err(e) => {
            assert!(e.contains(" line ") && !e.trim_end().contains('\n'), "file and line: {e:?}");
            false
        }
    }
}

const CONFIGURATIONS: &[&str] = &[
    "default-driver iscsi\n<target iqn.2026-01.org.example:one>\n    backing-store /srv/disk\n</target>\n",
    "# a comment\n<target iqn.2026-01.org.example:two>\n  <backing-store /srv/a>\n    lun 5\n    vendor_id \"ACME\"\n    \
     write-cache off\n    params thin_provisioning=1\n    mode_page 8:0:18:0x10:0:0xff\n  </backing-store>\n  incominguser joe \
     opensesame12\n  outgoinguser me sesameopen12\n  initiator-address 10.0.0.0/8\n  initiator-name iqn.a\n  \
     MaxBurstLength 4096\n</target>\n",
    "include /etc/tgt/conf.d/*.conf\nincomingdiscoveryuser a bbbbbbbbbbbb\niSNSAccess off\ncontrol-port 3\n",
    "<target iqn.2026-01.org.example:three>\n  direct-store /dev/sdb\n  allow-in-use yes\n  controller_tid 4\n  scsi_id \
     \"x\"\n  readonly 1\n  driver iscsi\n</target>\n",
];
