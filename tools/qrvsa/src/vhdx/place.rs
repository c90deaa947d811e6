//! Where a disk is that is converted: a path, or a volume of a pool, which is always written `volume:POOL/VOL`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qrvsa_api::names::FsName;
use qrvsa_api::{ApiError, Client, ErrorKind};

use crate::ui::clean;

/// What stands before the name of a volume. A file of such a name is written with `./` before it.
const VOLUME: &str = "volume:";
/// How long the daemon is waited for where it is not needed.
const PATIENCE: Duration = Duration::from_secs(2);

/// One side of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or block device.
    Path(PathBuf),
    /// A volume.
    Volume(FsName),
}

impl Place {
    /// Reads the command line's word.
    pub fn parse(text: OsString) -> Result<Place, String> {
        match text.to_str().and_then(|text| text.strip_prefix(VOLUME)) {
            None if text.is_empty() => Err("the name is empty".to_owned()),
            None => Ok(Place::Path(PathBuf::from(text))),
            Some(name) => match name.parse::<FsName>() {
                Ok(name) if name.fs.is_some() => Ok(Place::Volume(name)),
                Ok(_) => Err(format!("{name:?} names a pool; write volume:POOL/VOL")),
                Err(e) => Err(e.message.replace("filesystem name", "volume name")),
            },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(path) => f.write_str(&clean(&path.display().to_string())),
            Place::Volume(name) => write!(f, "{VOLUME}{name}"),
        }
    }
}

/// Refuses a path that is not there but names a volume that is: most likely that was meant.
pub fn refuse_bare_volume(socket: &Path, path: &Path) -> Result<(), ApiError> {
    let Some(name) = path.to_str().and_then(|text| text.parse::<FsName>().ok()).filter(|name| name.fs.is_some()) else {
        return Ok(());
    };
    if path.symlink_metadata().is_ok() || !volume_exists(socket, &name) {
        return Ok(());
    }
    Err(ApiError::new(ErrorKind::Invalid, format!("there is no file {name}, but a volume of that name"))
        .with_hint(format!("write {VOLUME}{name} for the volume, ./{name} for a file")))
}

/// Whether the daemon knows a volume. Files need no daemon: whatever is wrong with it, a hang included, is no matter here.
fn volume_exists(socket: &Path, name: &FsName) -> bool {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (socket, name) = (socket.to_owned(), name.clone());
    let asking = std::thread::Builder::new().name("ask".to_owned()).spawn(move || {
        let there = Client::new(socket)
            .is_ok_and(|client| client.daemon().is_ok_and(|daemon| daemon.ready) && client.volume(&name).is_ok());
        let _ = sender.send(there);
    });
    asking.is_ok() && receiver.recv_timeout(PATIENCE).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let volume = |text: &str| Place::Volume(text.parse().unwrap());
        for (text, place) in [
            ("volume:tank/v", volume("tank/v")),
            ("./volume:tank/v", Place::Path("./volume:tank/v".into())),
            ("tank/v", Place::Path("tank/v".into())),
            ("/dev/sda", Place::Path("/dev/sda".into())),
        ] {
            assert_eq!(Place::parse(text.into()).unwrap(), place, "{text}");
        }
        assert_eq!(volume("tank/v").to_string(), "volume:tank/v");
        for bad in ["", "volume:", "volume:tank", "volume:tank/", "volume:/v", "volume:tank/v/w", "volume:tank/.."] {
            Place::parse(bad.into()).unwrap_err();
        }
    }
}
