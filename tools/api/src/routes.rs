//! Every resource of the interface, as paths. The daemon registers the patterns, clients build addresses.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/daemon` | | [`DaemonInfo`](crate::DaemonInfo) |
//! | `GET /v1/pools` | | list of [`PoolSummary`](crate::PoolSummary) |
//! | `POST /v1/pools` | [`CreatePool`](crate::CreatePool) | 201 [`PoolStatus`](crate::PoolStatus) |
//! | `POST /v1/import` | [`ImportPools`](crate::ImportPools) | [`ImportResult`](crate::ImportResult) |
//! | `GET /v1/pools/{pool}` | | [`PoolStatus`](crate::PoolStatus) |
//! | `DELETE /v1/pools/{pool}?force=` | | 204 |
//! | `POST /v1/pools/{pool}/export?force=` | | 204 |
//! | `POST /v1/pools/{pool}/sync` | | 204 |
//! | `POST /v1/pools/{pool}/offline`, `.../online` | [`DeviceRef`](crate::DeviceRef) | [`PoolStatus`](crate::PoolStatus) |
//! | `POST /v1/pools/{pool}/replace` | [`ReplaceDevice`](crate::ReplaceDevice) | 202 [`JobInfo`](crate::JobInfo) |
//! | `POST /v1/pools/{pool}/scrub` | [`ScrubRequest`](crate::ScrubRequest) | 202 [`JobInfo`](crate::JobInfo) |
//! | `POST /v1/pools/{pool}/check` | [`CheckRequest`](crate::CheckRequest) | 202 [`JobInfo`](crate::JobInfo) |
//! | `GET /v1/pools/{pool}/filesystems` | | list of [`FsInfo`](crate::FsInfo) |
//! | `POST /v1/pools/{pool}/filesystems` | [`CreateFs`](crate::CreateFs) | 201 [`FsInfo`](crate::FsInfo) |
//! | `DELETE /v1/pools/{pool}/filesystems/{fs}?force=` | | 204 |
//! | `GET /v1/pools/{pool}/filesystems/{fs}/properties` | | list of [`Property`](crate::Property) |
//! | `PATCH /v1/pools/{pool}/filesystems/{fs}/properties` | [`SetProperty`](crate::SetProperty) | list of [`Property`](crate::Property) |
//! | `GET /v1/pools/{pool}/filesystems/{fs}/inodes/{ino}/fragments` | | list of [`Fragment`](crate::Fragment) |
//! | `GET /v1/pools/{pool}/volumes` | | list of [`VolumeInfo`](crate::VolumeInfo) |
//! | `POST /v1/pools/{pool}/volumes` | [`CreateVolume`](crate::CreateVolume) | 201 [`VolumeInfo`](crate::VolumeInfo) |
//! | `GET /v1/pools/{pool}/volumes/{volume}` | | [`VolumeInfo`](crate::VolumeInfo) |
//! | `DELETE /v1/pools/{pool}/volumes/{volume}?force=` | | 204 |
//! | `POST /v1/pools/{pool}/volumes/{volume}/resize` | [`ResizeVolume`](crate::ResizeVolume) | [`VolumeInfo`](crate::VolumeInfo) |
//! | `GET /v1/pools/{pool}/volumes/{volume}/fragments` | | list of [`Fragment`](crate::Fragment) |
//! | `GET /v1/pools/{pool}/volumes/{volume}/extents?offset=` | | [`VolumeExtents`](crate::VolumeExtents) |
//! | `GET /v1/pools/{pool}/volumes/{volume}/data?offset=&length=` | | the bytes; see [`transfer`](crate::transfer) |
//! | `PUT /v1/pools/{pool}/volumes/{volume}/data?force=` | see [`transfer`](crate::transfer) | [`VolumeFilled`](crate::VolumeFilled) |
//! | `GET /v1/jobs`, `GET /v1/jobs/{id}` | | [`JobInfo`](crate::JobInfo), one or a list |
//! | `GET /v1/mounts` | | list of [`MountInfo`](crate::MountInfo) |
//! | `POST /v1/mounts` | [`MountRequest`](crate::MountRequest) | 201 [`MountInfo`](crate::MountInfo) |
//! | `PATCH /v1/mounts/{id}` | [`UpdateMount`](crate::UpdateMount) | [`MountInfo`](crate::MountInfo) |
//! | `DELETE /v1/mounts/{id}?lazy=` | | 204 |
//! | `GET /v1/targets` | | list of [`TargetInfo`](crate::TargetInfo) |
//! | `POST /v1/targets` | [`CreateTarget`](crate::CreateTarget) | 201 [`TargetInfo`](crate::TargetInfo) |
//! | `GET /v1/targets/{iqn}` | | [`TargetInfo`](crate::TargetInfo) |
//! | `PATCH /v1/targets/{iqn}` | [`UpdateTarget`](crate::UpdateTarget) | [`TargetInfo`](crate::TargetInfo) |
//! | `DELETE /v1/targets/{iqn}?force=` | | 204 |
//! | `POST /v1/targets/{iqn}/luns` | [`AddLun`](crate::AddLun) | 201 [`LunInfo`](crate::LunInfo) |
//! | `DELETE /v1/targets/{iqn}/luns/{lun}` | | 204 |
//! | `POST /v1/targets/{iqn}/acl/add`, `.../acl/remove` | [`AclRule`](crate::AclRule) | [`TargetInfo`](crate::TargetInfo) |
//! | `POST /v1/targets/{iqn}/users/add`, `.../users/remove` | [`UserRequest`](crate::UserRequest) | [`TargetInfo`](crate::TargetInfo) |
//! | `GET /v1/targets/{iqn}/sessions` | | list of [`SessionInfo`](crate::SessionInfo) |
//! | `DELETE /v1/targets/{iqn}/sessions/{sid}` | | 204 |
//! | `GET /v1/tgt-socket` | | [`TgtSocket`](crate::TgtSocket) |
//! | `POST /v1/debug/labels`, `/v1/debug/uberblocks` | [`DeviceRef`](crate::DeviceRef) | list of [`DebugEntry`](crate::DebugEntry) |
//!
//! The root filesystem of a pool is `-` in the place of `{fs}`: no filesystem can have that name.

use crate::names::FsName;

/// Facts about the daemon.
pub const DAEMON: &str = "/v1/daemon";
/// Pools.
pub const POOLS: &str = "/v1/pools";
/// Import.
pub const IMPORT: &str = "/v1/import";
/// Jobs.
pub const JOBS: &str = "/v1/jobs";
/// Mounts.
pub const MOUNTS: &str = "/v1/mounts";
/// iSCSI targets.
pub const TARGETS: &str = "/v1/targets";
/// Where tgt's programs reach the daemon.
pub const TGT_SOCKET: &str = "/v1/tgt-socket";
/// Labels of a device.
pub const DEBUG_LABELS: &str = "/v1/debug/labels";
/// Uberblocks of a device.
pub const DEBUG_UBERBLOCKS: &str = "/v1/debug/uberblocks";
/// Stands for the root filesystem in a path.
pub const ROOT_FS: &str = "-";

/// One pool.
#[must_use]
pub fn pool(name: &str) -> String {
    format!("{POOLS}/{}", segment(name))
}

/// Something a pool has or does: `export`, `sync`, `offline`, `online`, `replace`, `scrub`, `check`, `filesystems`.
#[must_use]
pub fn pool_part(name: &str, part: &str) -> String {
    format!("{POOLS}/{}/{part}", segment(name))
}

/// One filesystem.
#[must_use]
pub fn filesystem(name: &FsName) -> String {
    format!("{POOLS}/{}/filesystems/{}", segment(&name.pool), segment(name.fs.as_deref().unwrap_or(ROOT_FS)))
}

/// The properties of a filesystem.
#[must_use]
pub fn properties(name: &FsName) -> String {
    format!("{}/properties", filesystem(name))
}

/// Where a file lies.
#[must_use]
pub fn fragments(name: &FsName, ino: u64) -> String {
    format!("{}/inodes/{ino}/fragments", filesystem(name))
}

/// One volume.
#[must_use]
pub fn volume(name: &FsName) -> String {
    format!("{POOLS}/{}/volumes/{}", segment(&name.pool), segment(name.fs.as_deref().unwrap_or(ROOT_FS)))
}

/// Something a volume has or does: `resize`, `fragments`, `extents`, `data`.
#[must_use]
pub fn volume_part(name: &FsName, part: &str) -> String {
    format!("{}/{part}", volume(name))
}

/// One job.
#[must_use]
pub fn job(id: &str) -> String {
    format!("{JOBS}/{}", segment(id))
}

/// One mount.
#[must_use]
pub fn mount(id: u64) -> String {
    format!("{MOUNTS}/{id}")
}

/// One target.
#[must_use]
pub fn target(iqn: &str) -> String {
    format!("{TARGETS}/{}", segment(iqn))
}

/// Something of a target: `luns`, `luns/3`, `acl/add`, `acl/remove`, `users/add`, `users/remove`, `sessions`, `sessions/7`.
#[must_use]
pub fn target_part(iqn: &str, part: &str) -> String {
    format!("{TARGETS}/{}/{part}", segment(iqn))
}

/// Percent-encodes what is not unreserved, so that any text is one segment of a path. `.` and `..` alone are encoded too.
fn segment(text: &str) -> String {
    use std::fmt::Write;
    let dots_only = text.bytes().all(|b| b == b'.');
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') || (byte == b'.' && !dots_only) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing into a String cannot fail");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_one_segment() {
        assert_eq!(pool("tank"), "/v1/pools/tank");
        assert_eq!(pool("a/b c"), "/v1/pools/a%2Fb%20c");
        assert_eq!(pool(".."), "/v1/pools/%2E%2E");
        assert_eq!(job("check-1"), "/v1/jobs/check-1");
        let root = FsName { pool: "tank".into(), fs: None };
        assert_eq!(properties(&root), "/v1/pools/tank/filesystems/-/properties");
    }
}
