//! The configuration file, `/etc/qrvsa/qrvsad.toml`. It may be missing; every key has a default.
//!
//! ```toml
//! memory_limit = "2GiB"      # dirty data and caches; default: a quarter of the memory, at most 4 GiB
//! sync_interval_s = 5        # longest time between two transaction groups
//! scrub_rate = "200MiB"      # most bytes per second a scrub reads; default: no limit
//! log_level = "info"         # error, warn, info, debug, trace, or a filter like "info,qrvsa_core::pool=debug"
//! search_dirs = ["/dev"]     # where pools are looked for
//! fuse_threads = 8           # threads per mount; default: 16
//! low_latency = true         # keep idle processors awake while requests come fast
//! iscsi_portals = ["0.0.0.0:3260"]  # for targets without portals of their own; default: [::]:3260, IPv4 too
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qrvsa_api::units::{format_bytes, parse_bytes};
use serde::{Deserialize, Deserializer};

use crate::engine::EngineOptions;
use crate::host;

/// Where the file is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/qrvsa/qrvsad.toml";
/// Where the state is unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/qrvsa";

const MEMORY_DEFAULT_MAX: u64 = 4 << 30;
const MEMORY_MIN: u64 = 32 << 20;
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
const URGENT_PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
const STORAGE_PATIENCE: Duration = Duration::from_secs(20);
const CHECK_PATIENCE: Duration = Duration::from_secs(20);

/// The configuration, checked, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Memory for dirty data and caches, bytes.
    pub memory_limit_bytes: u64,
    /// Longest time between two transaction groups.
    pub sync_interval: Duration,
    /// Most bytes per second a scrub reads; `None` for no limit.
    pub scrub_rate_bytes_per_s: Option<u64>,
    /// Filter of the log.
    pub log_level: String,
    /// Where pools are looked for.
    pub search_dirs: Vec<PathBuf>,
    /// Threads per mount.
    pub fuse_threads: Option<usize>,
    /// Where iSCSI targets without portals of their own are served. Nothing listens before there is one.
    pub iscsi_portals: Vec<SocketAddr>,
    /// Keep idle processors awake while requests come fast.
    pub low_latency: bool,
    /// How long busy mounts are asked nicely at the daemon's end, before they are detached. Not a key of the file.
    pub unmount_patience: Duration,
    /// How long the clean end may take once it is urgent. Not a key of the file.
    pub urgent_patience: Duration,
    /// How long a request about targets that is under way is waited for at the daemon's end. Not a key of the file.
    pub request_patience: Duration,
    /// How long the storage of a LUN is waited for at the start, before the LUN is unavailable. Not a key of the file.
    pub storage_patience: Duration,
    /// How long export and destroy wait for a running check to give up. Not a key of the file.
    pub check_patience: Duration,
}

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    #[serde(deserialize_with = "size")]
    memory_limit: Option<u64>,
    sync_interval_s: Option<u64>,
    #[serde(deserialize_with = "size")]
    scrub_rate: Option<u64>,
    log_level: Option<String>,
    search_dirs: Option<Vec<PathBuf>>,
    fuse_threads: Option<usize>,
    iscsi_portals: Option<Vec<String>>,
    low_latency: Option<bool>,
}

/// A size as a number of bytes or as text with a unit.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse_bytes(&text)
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a size; write one such as \"512MiB\""))),
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::from_file(File::default()).expect("the defaults are within every limit")
    }
}

impl Config {
    /// Reads the file. A missing file is the default configuration, unless `must_exist`.
    ///
    /// # Errors
    /// One line for people: which file, which key, what is wrong.
    pub fn load(path: &Path, must_exist: bool) -> Result<Config, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => String::new(),
            Err(e) => return Err(format!("cannot read the configuration {}: {e}", path.display())),
        };
        Config::parse(&text).map_err(|e| format!("configuration {}: {e}", path.display()))
    }

    fn parse(text: &str) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|e| {
            let line =
                e.span().and_then(|span| text.get(..span.start)).map_or(0, |before| before.lines().count().max(1));
            format!("line {line}: {}", e.message().replace('\n', " "))
        })?;
        Config::from_file(file)
    }

    fn from_file(file: File) -> Result<Config, String> {
        let memory_limit_bytes = file.memory_limit.unwrap_or_else(default_memory_limit);
        if memory_limit_bytes < MEMORY_MIN {
            return Err(format!("memory_limit must be at least {}", format_bytes(MEMORY_MIN)));
        }
        let sync_interval_s = file.sync_interval_s.unwrap_or(5);
        if !(1..=3_600).contains(&sync_interval_s) {
            return Err("sync_interval_s must be from 1 to 3600".to_owned());
        }
        if file.fuse_threads.is_some_and(|n| !(1..=256).contains(&n)) {
            return Err("fuse_threads must be from 1 to 256".to_owned());
        }
        let search_dirs = file.search_dirs.unwrap_or_else(|| vec![PathBuf::from("/dev")]);
        if let Some(relative) = search_dirs.iter().find(|dir| !dir.is_absolute()) {
            return Err(format!("search_dirs: {} is not an absolute path", relative.display()));
        }
        let iscsi_portals = match file.iscsi_portals {
            None => vec![DEFAULT_PORTAL],
            Some(list) => list.iter().map(|text| portal(text)).collect::<Result<_, _>>()?,
        };
        Ok(Config {
            memory_limit_bytes,
            sync_interval: Duration::from_secs(sync_interval_s),
            scrub_rate_bytes_per_s: file.scrub_rate.filter(|rate| *rate > 0),
            log_level: file.log_level.unwrap_or_else(|| "info".to_owned()),
            search_dirs,
            fuse_threads: file.fuse_threads,
            iscsi_portals,
            low_latency: file.low_latency.unwrap_or(true),
            unmount_patience: UNMOUNT_PATIENCE,
            urgent_patience: URGENT_PATIENCE,
            request_patience: REQUEST_PATIENCE,
            storage_patience: STORAGE_PATIENCE,
            check_patience: CHECK_PATIENCE,
        })
    }

    /// What the engine is told.
    #[must_use]
    pub fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            memory_limit_bytes: self.memory_limit_bytes,
            sync_interval: self.sync_interval,
            scrub_rate_bytes_per_s: self.scrub_rate_bytes_per_s,
        }
    }
}

/// Every address, of IPv4 and IPv6.
const DEFAULT_PORTAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 3260);

fn portal(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(format!("iscsi_portals: {text:?} is no portal; write ADDRESS:PORT")),
    }
}

fn default_memory_limit() -> u64 {
    let quarter = host::memory_bytes().map_or(MEMORY_DEFAULT_MAX / 4, |bytes| bytes / 4);
    quarter.clamp(MEMORY_MIN, MEMORY_DEFAULT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let config = Config::load(Path::new("/nonexistent/qrvsad.toml"), false).unwrap();
        assert_eq!(config, Config::default());
        assert!((MEMORY_MIN..=MEMORY_DEFAULT_MAX).contains(&config.memory_limit_bytes));
        assert_eq!(config.sync_interval, Duration::from_secs(5));
        assert_eq!(config.scrub_rate_bytes_per_s, None);
        assert!(Config::load(Path::new("/nonexistent/qrvsad.toml"), true).is_err());
    }

    #[test]
    fn every_key() {
        let config = Config::parse(
            "memory_limit = \"512MiB\"\nsync_interval_s = 9\nscrub_rate = 1000000\nlog_level = \"debug\"\n\
             search_dirs = [\"/a\", \"/b\"]\nfuse_threads = 3\niscsi_portals = [\"127.0.0.1:3261\"]\nlow_latency = false\n",
        )
        .unwrap();
        assert_eq!(
            config,
            Config {
                memory_limit_bytes: 512 << 20,
                sync_interval: Duration::from_secs(9),
                scrub_rate_bytes_per_s: Some(1_000_000),
                log_level: "debug".into(),
                search_dirs: vec!["/a".into(), "/b".into()],
                fuse_threads: Some(3),
                iscsi_portals: vec!["127.0.0.1:3261".parse().unwrap()],
                low_latency: false,
                unmount_patience: Duration::from_secs(5),
                urgent_patience: Duration::from_secs(5),
                request_patience: Duration::from_secs(5),
                storage_patience: Duration::from_secs(20),
                check_patience: Duration::from_secs(20),
            }
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("memory_limt = 1", "memory_limt"),
            ("\n\nmemory_limit = \"many\"", "line 3"),
            ("memory_limit = 1024", "at least"),
            ("sync_interval_s = 0", "sync_interval_s"),
            ("search_dirs = [\"dev\"]", "dev"),
            ("fuse_threads = 0", "fuse_threads"),
            ("iscsi_portals = [\"x\"]", "iscsi_portals"),
            ("low_latency = 7", "line 1"),
            ("= =", "line 1"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(named), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}
