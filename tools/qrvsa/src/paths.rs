//! Paths as the daemon needs them: absolute, because its working directory is another, and valid UTF-8, because they
//! travel as JSON.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use qrvsa_api::{ApiError, Client, DeviceSpec, ErrorKind, MountInfo, MountState};

/// An absolute form, without resolving links: device links are meant as they are.
pub fn absolute(path: &Path) -> Result<PathBuf, ApiError> {
    let absolute = std::path::absolute(path)
        .map_err(|e| ApiError::invalid(format!("path {} is not valid: {e}", path.display())))?;
    if absolute.to_str().is_none() {
        return Err(ApiError::invalid(format!("path {} is not valid UTF-8", path.display()))
            .with_hint("use a path with a plain name, such as a link"));
    }
    Ok(absolute)
}

/// A device to build on, with an absolute path.
pub fn device_spec(spec: &DeviceSpec) -> Result<DeviceSpec, ApiError> {
    Ok(DeviceSpec { path: absolute(&spec.path)?, ..spec.clone() })
}

/// A device of a pool: what looks like a path, or is one, is made absolute; an index or id stays as it is.
pub fn device_ref(text: &str) -> Result<String, ApiError> {
    if !text.contains('/') && !Path::new(text).exists() {
        return Ok(text.to_owned());
    }
    Ok(absolute(Path::new(text))?.display().to_string())
}

/// The canonical form of a directory; of one that cannot be looked at (a dead mount), the absolute one.
pub fn directory(path: &Path) -> Result<PathBuf, ApiError> {
    absolute(&path.canonicalize().unwrap_or_else(|_| path.to_owned()))
}

/// The mount that has a file, and the file's inode number. By device number, so that links, bind mounts and mounts in
/// mounts are no matter.
pub fn mounted_file(client: &Client, file: &Path) -> Result<(MountInfo, u64), ApiError> {
    let cannot = |e: std::io::Error| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        ApiError::new(kind, format!("cannot look at {}: {e}", file.display())).with_hint("name a file in a QRVSA mount")
    };
    let path = directory(file)?;
    let metadata = std::fs::metadata(&path).map_err(cannot)?;
    let mut mounts = client.mounts()?;
    mounts.retain(|mount| mount.state == MountState::Mounted);
    // Those whose path leads to the file first, so that no other mount needs to be touched when one of them has it.
    mounts.sort_by_key(|mount| {
        let leads = path.starts_with(&mount.mountpoint);
        (!leads, std::cmp::Reverse(mount.mountpoint.as_os_str().len()))
    });
    let found =
        mounts.into_iter().find(|mount| std::fs::metadata(&mount.mountpoint).is_ok_and(|m| m.dev() == metadata.dev()));
    found.map(|mount| (mount, metadata.ino())).ok_or_else(|| {
        ApiError::not_found(format!("{} is not in a mounted QRVSA filesystem", file.display()))
            .with_hint("`qrvsa mount` shows what is mounted")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_pool() {
        assert_eq!(device_ref("3").unwrap(), "3");
        assert_eq!(device_ref("c0ffee").unwrap(), "c0ffee");
        assert_eq!(device_ref("/dev/null").unwrap(), "/dev/null");
        let here = std::env::current_dir().unwrap();
        assert_eq!(device_ref("./x.img").unwrap(), here.join("x.img").to_str().unwrap());
        assert_eq!(device_ref("Cargo.toml").unwrap(), here.join("Cargo.toml").to_str().unwrap());
    }
}
