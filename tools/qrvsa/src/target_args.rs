//! The command line of iSCSI targets, as data.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use qrvsa_api::names::FsName;
use qrvsa_api::units::parse_bytes;

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text:?} is not a size; write one such as 10G"))
}

/// iSCSI targets.
#[derive(Subcommand)]
pub enum Target {
    /// Make a target. It lets nobody in until `target acl` says otherwise.
    Create {
        /// Its iSCSI name, such as iqn.2026-01.org.example:disks.
        iqn: String,
        /// Where it is served; may be given several times. Default: the daemon's `iscsi_portals`.
        #[arg(long, value_name = "ADDR:PORT")]
        portal: Vec<String>,
        /// What discovery tells instead of the portals' own addresses; may be given several times.
        #[arg(long, value_name = "ADDR:PORT")]
        advertise: Vec<String>,
    },
    /// List the targets.
    List,
    /// Show one target, or all: portals, LUNs, access, users, counts.
    Show {
        /// Its iSCSI name.
        iqn: Option<String>,
    },
    /// Change a target: whether it takes logins, and session parameters.
    Set {
        /// Its iSCSI name.
        iqn: String,
        /// Take no new logins.
        #[arg(long, conflicts_with = "ready")]
        offline: bool,
        /// Take logins again.
        #[arg(long)]
        ready: bool,
        /// A session parameter by its RFC 7143 name; may be given several times.
        #[arg(long = "parameter", value_name = "NAME=VALUE")]
        parameters: Vec<qrvsa_api::SetProperty>,
    },
    /// Remove a target; the storage of its LUNs stays as it is.
    Destroy {
        /// Its iSCSI name.
        iqn: String,
        /// Although initiators are logged in.
        #[arg(long, short)]
        force: bool,
    },
    /// Logical units of a target.
    #[command(subcommand)]
    Lun(Lun),
    /// Who may log in: any line that matches lets in.
    Acl {
        /// Its iSCSI name.
        iqn: String,
        /// What to do.
        #[command(subcommand)]
        change: Acl,
    },
    /// CHAP users of a target.
    User {
        /// Its iSCSI name.
        iqn: String,
        /// What to do.
        #[command(subcommand)]
        change: User,
    },
    /// Show the sessions of a target, or end one.
    Sessions {
        /// Its iSCSI name.
        iqn: String,
        /// End this session.
        #[arg(long, value_name = "SID")]
        drop: Option<u64>,
    },
    /// Print the base path of the management socket for tgt's programs, for TGT_IPC_SOCKET.
    TgtSocket,
    /// Make the targets that a targets.conf of tgt describes.
    ImportTgt {
        /// The file, such as /etc/tgt/targets.conf.
        file: PathBuf,
        /// Only print what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Logical units.
#[derive(Subcommand)]
pub enum Lun {
    /// Add a logical unit.
    Add {
        /// Name of the target.
        iqn: String,
        /// Its number; default: the first free one from 1.
        #[arg(long, value_name = "N")]
        lun: Option<u64>,
        /// Storage.
        #[command(flatten)]
        source: Source,
        /// Show thin provisioning: initiators can give space back. Default: as the storage does.
        #[arg(long)]
        thin: bool,
        /// Take no writes.
        #[arg(long)]
        readonly: bool,
        /// A medium that can be ejected.
        #[arg(long)]
        removable: bool,
        /// Logical block, bytes; default: 512, or the volume's.
        #[arg(long, value_name = "BYTES", value_parser = clap::builder::PossibleValuesParser::new(["512", "4096"]))]
        block_size: Option<String>,
        /// Logical blocks per physical block, as an exponent of two.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15))]
        physical_block_exponent: Option<u8>,
    },
    /// Remove a logical unit; its storage stays as it is.
    Remove {
        /// Name of the target.
        iqn: String,
        /// Its number.
        lun: u64,
    },
}

/// Exactly one of them.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// A volume of a pool.
    #[arg(long, value_name = "POOL/VOL")]
    pub volume: Option<FsName>,
    /// A plain file or a block device; the file may lie in a mounted pool.
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// A VHDX file; it and its parents may lie in a mounted pool.
    #[arg(long, value_name = "PATH")]
    pub vhdx: Option<PathBuf>,
    /// Nothing, of this size: to measure everything but storage.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub null: Option<u64>,
}

/// Access.
#[derive(Subcommand)]
pub enum Acl {
    /// Let somebody in.
    Add(Who),
    /// Let somebody in no more. Sessions that are there go on.
    Remove(Who),
}

/// Exactly one of them.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Who {
    /// An initiator by its iSCSI name.
    #[arg(long, value_name = "IQN")]
    pub initiator: Option<String>,
    /// Whoever comes from an address or a block of them.
    #[arg(long, value_name = "CIDR")]
    pub address: Option<String>,
    /// Everybody.
    #[arg(long)]
    pub all: bool,
}

/// Users.
#[derive(Subcommand)]
pub enum User {
    /// Add a user. Its secret is asked for, or read from standard input or a file; Windows takes 12 to 16 characters.
    Add {
        /// CHAP name.
        name: String,
        /// The target proves itself with this user to the initiator (mutual CHAP).
        #[arg(long)]
        mutual: bool,
        /// The user is for discovery, which is the same for all targets, instead of this target's sessions.
        #[arg(long)]
        discovery: bool,
        /// Read the secret from this file.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
    /// Remove a user.
    Remove {
        /// CHAP name.
        name: String,
        /// It is the one for mutual CHAP.
        #[arg(long)]
        mutual: bool,
        /// Remove it from discovery.
        #[arg(long)]
        discovery: bool,
    },
}
