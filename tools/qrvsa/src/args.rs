//! The command line, as data.

use std::path::PathBuf;

use crate::vhdx::args::Vhdx;
use clap::{ArgAction, Args, Parser, Subcommand};
use qrvsa_api::error::EXIT_CODES;
use qrvsa_api::names::{FsName, check_name};
use qrvsa_api::units::parse_bytes;
use qrvsa_api::{DEFAULT_SOCKET, DeviceSpec, Geometry, SOCKET_ENV, SetProperty};

use crate::target_args::Target;

fn exit_codes() -> String {
    let lines = EXIT_CODES.iter().map(|(code, meaning)| format!("  {code}  {meaning}"));
    format!("Exit codes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn pool_name(text: &str) -> Result<String, String> {
    check_name("pool", text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn volume_name(text: &str) -> Result<FsName, String> {
    match text.parse::<FsName>() {
        Ok(name) if name.fs.is_some() => Ok(name),
        Ok(_) => Err(format!("{text:?} names a pool; write POOL/VOL")),
        Err(e) => Err(e.to_string().replace("filesystem name", "volume name")),
    }
}

fn size(text: &str) -> Result<u64, String> {
    let hint = "write a number and a unit: 64T or 64TiB is binary, 64TB decimal";
    parse_bytes(text).ok_or_else(|| format!("{text:?} is not a size; {hint}"))
}

fn record_size(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text).and_then(|bytes| u32::try_from(bytes).ok());
    bytes
        .filter(|b| b.is_power_of_two() && (4096..=1 << 20).contains(b))
        .ok_or_else(|| format!("{text:?} is not a record size; write a power of two from 4K to 1M"))
}

/// Manage QRVSA storage pools.
///
/// Everything is done by the daemon qrvsad; this program asks it. Long jobs (scrub, replace, check) run in the daemon and
/// go on when this program is closed.
#[derive(Parser)]
#[command(name = "qrvsa", version, after_long_help = exit_codes(), propagate_version = true, subcommand_required = true)]
pub struct Cli {
    /// Socket of the daemon.
    #[arg(long, global = true, value_name = "S", env = SOCKET_ENV, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print the daemon's answer as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Pools: create, watch, repair.
    #[command(subcommand)]
    Pool(Pool),
    /// Filesystems of a pool.
    #[command(subcommand)]
    Fs(Fs),
    /// Volumes of a pool: disks for iSCSI targets and virtual machines.
    #[command(subcommand)]
    Volume(Volume),
    /// iSCSI targets: block storage for other machines.
    #[command(subcommand)]
    Target(Target),
    /// Mount a filesystem, or show what is mounted.
    ///
    /// Returns when the mount serves. The daemon restores the mount after a restart, until it is unmounted.
    Mount(Mount),
    /// Unmount a directory.
    Umount {
        /// The directory.
        dir: PathBuf,
        /// Detach it although it is in use; it ends when nothing uses it any more, and cannot be mounted again before.
        #[arg(long, short)]
        lazy: bool,
    },
    /// Compare every structure of a pool with every other; exit code 0 only when all is consistent.
    ///
    /// Changes nothing and works on a pool in use. Runs in the daemon; when this program is closed, the same command
    /// joins the check that runs.
    Check {
        /// The pool.
        #[arg(value_parser = pool_name)]
        pool: String,
        /// Read all data too, not only the metadata.
        #[arg(long)]
        deep: bool,
    },
    /// Scrubs, rebuilds and checks of this run of the daemon.
    #[command(subcommand)]
    Job(Job),
    /// Look at what is on devices.
    #[command(subcommand)]
    Debug(Debug),
    /// VHDX files: make, check, repair, convert and more, without the daemon.
    #[command(subcommand)]
    Vhdx(Vhdx),
    /// Generate files for packages.
    #[command(subcommand, hide = true)]
    Generate(Generate),
}

/// Pools.
#[derive(Subcommand)]
pub enum Pool {
    /// Make a pool.
    Create {
        /// Its name.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Data and parity columns, such as 2+2: any two of four devices may fail. Default: by the number of devices.
        #[arg(long, value_name = "K+M")]
        geometry: Option<Geometry>,
        /// Overwrite what is on the devices.
        #[arg(long, short)]
        force: bool,
        /// Devices: PATH, or PATH:SIZE to make a sparse file, such as /srv/a.img:10G.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<DeviceSpec>,
    },
    /// List the pools.
    List,
    /// Show state, space, redundancy, devices and jobs of a pool, or of all pools.
    Status {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: Option<String>,
    },
    /// Destroy a pool and all data in it.
    Destroy {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        force: bool,
    },
    /// Unmount everything of a pool and let go of its devices; or forget a pool that cannot be imported.
    Export {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Also while files are open.
        #[arg(long, short)]
        force: bool,
    },
    /// Import a pool, or all that are found.
    Import {
        /// Where to look besides the daemon's own list; may be given several times.
        #[arg(long, value_name = "DIR", action = ArgAction::Append)]
        search: Vec<PathBuf>,
        /// Accepted for scripts, without effect. Nothing keeps two machines from importing one pool at once: see to it that
        /// no other one uses its devices.
        #[arg(long, short)]
        force: bool,
        /// The pool, by its name or, where several have that, by its id.
        #[arg(value_parser = pool_name)]
        name: Option<String>,
    },
    /// Take a device out of service.
    Offline {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Path, index or id of the device.
        device: String,
    },
    /// Bring a device back; what it missed is rebuilt.
    Online {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Path, index or id of the device.
        device: String,
    },
    /// Replace a device.
    Replace {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// Path, index or id of the old device, which may be gone.
        old: String,
        /// The new one: PATH, or PATH:SIZE to make a sparse file.
        new: DeviceSpec,
        /// Wait until the new device is filled.
        #[arg(long, short)]
        wait: bool,
        /// Overwrite what is on the new device.
        #[arg(long, short)]
        force: bool,
    },
    /// Read and verify everything, and repair what is wrong; or pause or stop doing so.
    Scrub {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
        /// What to do with it.
        #[command(flatten)]
        mode: ScrubMode,
    },
    /// Make everything written so far durable.
    Sync {
        /// The pool.
        #[arg(value_parser = pool_name)]
        name: String,
    },
}

/// At most one of them.
#[derive(Args)]
#[group(multiple = false)]
pub struct ScrubMode {
    /// Wait until it ends; joins the one that runs.
    #[arg(long, short)]
    pub wait: bool,
    /// Pause it; starting it again goes on where it was.
    #[arg(long, short)]
    pub pause: bool,
    /// Stop it.
    #[arg(long, short)]
    pub stop: bool,
}

/// Filesystems.
#[derive(Subcommand)]
pub enum Fs {
    /// Make a filesystem.
    Create {
        /// Its name, POOL/FS.
        name: FsName,
        /// A property to begin with; may be given several times.
        #[arg(short = 'o', long = "property", value_name = "KEY=VALUE")]
        properties: Vec<SetProperty>,
    },
    /// List the filesystems of a pool, or of all pools.
    List {
        /// The pool.
        #[arg(value_parser = pool_name)]
        pool: Option<String>,
    },
    /// Destroy a filesystem and all data in it.
    Destroy {
        /// The filesystem, POOL/FS.
        name: FsName,
        /// Do not ask.
        #[arg(long, short)]
        force: bool,
    },
    /// Show a property, or all.
    Get {
        /// The filesystem, POOL[/FS].
        name: FsName,
        /// The property.
        key: Option<String>,
    },
    /// Set a property.
    Set {
        /// The filesystem, POOL[/FS].
        name: FsName,
        /// The property and its value.
        #[arg(value_name = "KEY=VALUE")]
        property: SetProperty,
    },
}

/// Volumes.
#[derive(Subcommand)]
pub enum Volume {
    /// Make a volume.
    ///
    /// A volume takes space as it is written, and gives it back when the space is discarded. With --reserve, room for all
    /// of it is set aside at once, so that writes to it never fail for lack of space.
    Create {
        /// Its name, POOL/VOL.
        #[arg(value_parser = volume_name)]
        name: FsName,
        /// Its size: 64T and 64TiB are binary, 64TB is decimal.
        #[arg(value_parser = size)]
        size: u64,
        /// Logical block in bytes.
        #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
        block_size: String,
        /// Largest record, a power of two from 4K to 1M: what is written and checked as one.
        #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = record_size)]
        record_size: u32,
        /// Take space as it is written; the default.
        #[arg(long, conflicts_with = "reserve")]
        thin: bool,
        /// Set room for all of it aside.
        #[arg(long)]
        reserve: bool,
    },
    /// List the volumes of a pool, or of all pools.
    List {
        /// The pool.
        #[arg(value_parser = pool_name)]
        pool: Option<String>,
    },
    /// Show everything about a volume.
    Show {
        /// The volume, POOL/VOL.
        #[arg(value_parser = volume_name)]
        name: FsName,
    },
    /// Change the size of a volume; users of it see that at once.
    Resize {
        /// The volume, POOL/VOL.
        #[arg(value_parser = volume_name)]
        name: FsName,
        /// The new size.
        #[arg(value_parser = size)]
        size: u64,
        /// Also make it smaller, which destroys what is behind the new end.
        #[arg(long, short)]
        force: bool,
    },
    /// Destroy a volume and all data in it.
    Destroy {
        /// The volume, POOL/VOL.
        #[arg(value_parser = volume_name)]
        name: FsName,
        /// Do not ask.
        #[arg(long, short)]
        force: bool,
    },
}

/// `mount`.
#[derive(Args)]
pub struct Mount {
    /// The filesystem, POOL[/FS]; nothing to list the mounts.
    #[arg(requires = "dir")]
    pub source: Option<FsName>,
    /// An existing directory.
    pub dir: Option<PathBuf>,
    /// Mount options, separated by commas, such as ro,noatime.
    #[arg(short, long, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// Jobs.
#[derive(Subcommand)]
pub enum Job {
    /// List them.
    List,
    /// Wait for one, with progress.
    Wait {
        /// Its id.
        id: String,
    },
}

/// Debugging.
#[derive(Subcommand)]
pub enum Debug {
    /// Show the labels of a device.
    Labels {
        /// Its path.
        device: PathBuf,
    },
    /// Show the uberblocks of a device.
    Uberblocks {
        /// Its path.
        device: PathBuf,
    },
    /// Show on which devices, and where, the contents of a mounted file or of a volume lie.
    Locate {
        /// The file.
        #[arg(required_unless_present = "volume", conflicts_with = "volume")]
        file: Option<PathBuf>,
        /// The volume, POOL/VOL.
        #[arg(long, value_name = "POOL/VOL", value_parser = volume_name)]
        volume: Option<FsName>,
    },
}

/// Files for packages.
#[derive(Subcommand)]
pub enum Generate {
    /// Write the man pages into a directory.
    Man {
        /// The directory.
        dir: PathBuf,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_are_checked_before_anything_is_sent() {
        for bad in [
            &["qrvsa", "pool", "create", "tank"][..],
            &["qrvsa", "pool", "create", "ta/nk", "/dev/a"],
            &["qrvsa", "pool", "create", "tank", "--geometry", "0+1", "/dev/a"],
            &["qrvsa", "pool", "scrub", "tank", "--wait", "--stop"],
            &["qrvsa", "fs", "set", "tank", "key"],
            &["qrvsa", "fs", "create", "tank/a/b"],
            &["qrvsa", "volume", "create", "tank", "1G"],
            &["qrvsa", "volume", "create", "tank/v", "1X"],
            &["qrvsa", "volume", "create", "tank/v", "1G", "--block-size", "1024"],
            &["qrvsa", "volume", "create", "tank/v", "1G", "--record-size", "2M"],
            &["qrvsa", "volume", "create", "tank/v", "1G", "--thin", "--reserve"],
            &["qrvsa", "debug", "locate"],
            &["qrvsa", "mount", "tank"],
            &["qrvsa"],
        ] {
            assert_eq!(Cli::try_parse_from(bad).err().map(|e| e.exit_code()), Some(2), "{bad:?}");
        }
        let cli = Cli::try_parse_from(["qrvsa", "pool", "list", "--json", "--socket", "/s"]).unwrap();
        assert!(cli.json && cli.socket.as_os_str() == "/s");
    }
}
