//! The management API: bodies of requests and replies, and the words in them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use qrvsa_api::names::{FsName, check_name};
use qrvsa_api::units::{format_bytes, parse_bytes};
use qrvsa_api::{
    AclRule, AddLun, ApiError, CheckRequest, CreateFs, CreatePool, CreateTarget, CreateVolume, DeviceRef, DeviceSpec,
    Geometry, ImportPools, LunSource, MountRequest, PoolStatus, ReplaceDevice, ResizeVolume, ScrubRequest, SetProperty,
    TargetInfo, UpdateTarget, UserRequest, VolumeInfo,
};
use qrvsa_core::device::size::parse_size;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MEMORY_MAX;
use crate::Target;

/// Bodies of requests, and of replies as a client reads them.
pub const REQUESTS: Target = Target {
    name: "api-requests",
    covers: "JSON bodies of the management API, both ways",
    run: requests,
    seeds: bodies,
    words: &[
        b"\"name\"",
        b"\"devices\"",
        b"\"path\"",
        b"\"geometry\"",
        b"\"force\"",
        b"true",
        b"null",
        b"{}",
        b"[",
        b"]",
        b"\"size_bytes\"",
        b"18446744073709551616",
        b"-1",
        b"1e999",
        b"\"volume\"",
        b"\"source\"",
        b"\\u0000",
        b"\\ud800",
    ],
    bytes_max: 4096,
    memory_max: MEMORY_MAX,
};

/// Words of people: names, sizes, device specifications, geometries, addresses.
pub const WORDS: Target = Target {
    name: "words",
    covers: "names, sizes, geometries, device specifications, iSCSI names and addresses",
    run: words,
    seeds: || {
        let all = [
            "0tank",
            "0tank/home",
            "14+2",
            "28G",
            "21.5TiB",
            "3/dev/sda",
            "3vhdx:/srv/a.vhdx:size=8G",
            "3file:/a,size=4G",
            "4compression=on",
            "5iqn.2026-01.org.example:disk",
            "5eui.02004567A425678D",
            "5naa.52004567BA64678D",
            "610.0.0.0/8",
            "6fe80::/10",
            "7192.0.2.1:3260",
            "7[2001:db8::1]:3260,1",
            "80x5a",
            "9ro",
        ];
        all.iter().map(|w| w.as_bytes().to_vec()).collect()
    },
    words: &[
        b"+",
        b"/",
        b":size=",
        b"vhdx:",
        b"iqn.",
        b"0x",
        b"KiB",
        b"99999999999999999999",
        b"\xff",
        b"..",
        b"[",
        b"]",
    ],
    bytes_max: 512,
    memory_max: MEMORY_MAX,
};

/// Reads a body; what was read is written and read again to the same.
fn body<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return false };
    let text = serde_json::to_string(&value).expect("a value that was read can be written");
    let again: T = serde_json::from_str(&text).expect("a value that was written can be read");
    assert_eq!(serde_json::to_string(&again).expect("as before"), text);
    true
}

fn requests(input: &[u8]) -> bool {
    let all: &[fn(&[u8]) -> bool] = &[
        body::<CreatePool>,
        body::<ImportPools>,
        body::<DeviceRef>,
        body::<ReplaceDevice>,
        body::<ScrubRequest>,
        body::<CheckRequest>,
        body::<CreateFs>,
        body::<SetProperty>,
        body::<CreateVolume>,
        body::<ResizeVolume>,
        body::<MountRequest>,
        body::<CreateTarget>,
        body::<AddLun>,
        body::<UserRequest>,
        body::<UpdateTarget>,
        body::<AclRule>,
        body::<LunSource>,
        body::<ApiError>,
        body::<PoolStatus>,
        body::<VolumeInfo>,
        body::<TargetInfo>,
    ];
    all.iter().fold(false, |any, read| read(input) | any)
}

/// Parses a word; what it is shown as is the same word.
fn shown<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    let shown = value.to_string();
    assert_eq!(shown.parse::<T>().ok().as_ref(), Some(&value), "{text:?} shows as {shown:?}");
    true
}

fn words(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let _ = check_name("pool", text);
    match kind.wrapping_sub(b'0') % 10 {
        0 => shown::<FsName>(text),
        1 => text.parse::<qrvsa_core::pool::space::Geometry>().is_ok() | shown::<Geometry>(text),
        2 => {
            if let Some(bytes) = parse_bytes(text) {
                let _ = format_bytes(bytes);
            }
            parse_bytes(text).is_some() | parse_size(text).is_ok()
        }
        3 => shown::<DeviceSpec>(text) | text.parse::<qrvsa_core::device::DeviceSpec>().is_ok(),
        4 => text.parse::<SetProperty>().is_ok(),
        5 => text.parse::<qrvsa_iscsi::config::IscsiName>().is_ok(),
        6 => text.parse::<qrvsa_iscsi::config::Cidr>().is_ok(),
        7 => text.parse::<qrvsa_iscsi::config::PortalAddress>().is_ok(),
        8 => qrvsa_tgt::number::parse(text, u64::MAX).is_ok(),
        _ => qrvsa_core::share::Access::parse(text).is_some(),
    }
}

fn bodies() -> Vec<Vec<u8>> {
    let all = [
        r#"{"name":"tank","geometry":"2+1","devices":["/dev/sda","vhdx:/srv/d:8G"],"force":false}"#,
        r#"{"search":["/dev"],"name":"tank","force":true}"#,
        r#"{"device":"/dev/sda"}"#,
        r#"{"old":"2","new":"vhdx:/srv/d:8G"}"#,
        r#"{"action":"start"}"#,
        r#"{"deep":true}"#,
        r#"{"name":"home","properties":[{"key":"atime","value":"off"}]}"#,
        r#"{"key":"atime","value":"off"}"#,
        r#"{"name":"vol","size_bytes":1073741824,"block_bytes":4096,"record_bytes":16384,"reserve":false}"#,
        r#"{"size_bytes":2147483648,"force":true}"#,
        r#"{"source":"tank/home","mountpoint":"/mnt","options":["ro"]}"#,
        r#"{"iqn":"iqn.2026-01.org.example:t","tid":5,"portals":["0.0.0.0:3260"],"advertise":[]}"#,
        r#"{"lun":1,"source":{"volume":"tank/vol"},"options":{"thin":true,"read_only":false}}"#,
        r#"{"lun":2,"source":{"null":1048576}}"#,
        r#"{"source":"empty"}"#,
        r#"{"name":"joe","secret":"opensesame12","mutual":true}"#,
        r#"{"offline":true,"parameters":{"MaxBurstLength":"262144"}}"#,
        r#"{"address":"10.0.0.0/8"}"#,
        r#""all""#,
        r#"{"kind":"busy","message":"in use","hint":"unmount it"}"#,
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
