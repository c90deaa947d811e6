//! What is remembered about targets: one JSON file, `targets.json`, in the state directory. It holds CHAP secrets, and is
//! therefore, as the directory, its owner's alone.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use qrvsa_api::{AclRule, LunOptions, LunSource};
use serde::{Deserialize, Serialize};

use super::places::Inside;
use crate::state::StateDir;

const FILE: &str = "targets.json";
const VERSION: u32 = 1;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// Targets by number.
    pub targets: BTreeMap<u32, Target>,
    /// CHAP accounts, in the order they were made.
    pub accounts: Vec<Account>,
    /// Accounts that may discover.
    pub discovery_incoming: Vec<String>,
    /// The account discovery is answered as.
    pub discovery_outgoing: Option<String>,
    /// Portals besides the configured ones, for targets without portals of their own.
    pub portals: Vec<SocketAddr>,
    /// Settings of tgt that have no meaning here, as they were set.
    pub system: BTreeMap<String, String>,
}

/// A CHAP account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Name.
    pub name: String,
    /// Secret.
    pub secret: String,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({:?}, ..)", self.name)
    }
}

/// A target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    /// iSCSI name.
    pub iqn: String,
    /// Takes no new logins.
    pub offline: bool,
    /// Portals of its own; none: the default ones.
    pub portals: Vec<SocketAddr>,
    /// What discovery tells instead.
    pub advertise: Vec<String>,
    /// Who is let in.
    pub acl: Vec<AclRule>,
    /// Accounts that may log in.
    pub incoming: Vec<String>,
    /// The account it answers as.
    pub outgoing: Option<String>,
    /// Session parameters that were set, by their RFC 7143 names.
    pub parameters: BTreeMap<String, String>,
    /// Seconds of silence before a ping; `None` as the service does.
    pub nop_interval_s: Option<u64>,
    /// Pings without an answer before the connection is dead.
    pub nop_count: Option<u32>,
    /// Where logins are sent instead.
    pub redirect: Redirect,
    /// Logical units by number.
    pub luns: BTreeMap<u64, Lun>,
}

/// Redirection in the parts that tgt sets one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Redirect {
    /// Address; empty for none.
    pub address: String,
    /// Port.
    pub port: String,
    /// For good, or for now; not set yet.
    pub permanent: Option<bool>,
}

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// Storage.
    pub source: LunSource,
    /// How it shows itself.
    #[serde(default)]
    pub options: LunOptions,
    /// What tgt's programs said about its storage.
    #[serde(default)]
    pub tgt: TgtStorage,
    /// The file, when it lies in a filesystem of a pool of ours: opened below FUSE, mounted or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// Words of tgt that are shown again, and do nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TgtStorage {
    /// `bstype`; empty for `rdwr`.
    pub bstype: String,
    /// `bsopts`.
    pub bsopts: String,
    /// `bsoflags`.
    pub bsoflags: String,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    #[serde(default)]
    state: Model,
}

impl Model {
    /// Reads the file. A damaged one is put aside, with a message in the log.
    ///
    /// # Errors
    /// It cannot be read, or is from a newer version, which is left as it is.
    pub fn load(state: &StateDir) -> Result<Model, String> {
        let path = state.path().join(FILE);
        let bytes = state.read(FILE).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let Some(bytes) = bytes else { return Ok(Model::default()) };
        // The version first: a newer file may have another shape.
        if let Ok(Version { version }) = serde_json::from_slice(&bytes)
            && version > VERSION
        {
            return Err(format!(
                "{} has version {version}, this program knows version {VERSION}: run the newer qrvsad, or move the file away",
                path.display()
            ));
        }
        let problem = match serde_json::from_slice::<Document>(&bytes) {
            Ok(mut document) if document.version == VERSION => {
                // Earlier programs remembered it. Every start is ready.
                document.state.system.remove("State");
                return Ok(document.state);
            }
            Ok(document) => format!("version {}", document.version),
            Err(e) => e.to_string(),
        };
        let aside = state.put_aside(FILE).map_err(|e| format!("cannot put {} aside: {e}", path.display()))?;
        tracing::error!(
            "{} is damaged ({problem}); kept as {}. Starting without iSCSI targets: make them again",
            path.display(),
            aside.display()
        );
        Ok(Model::default())
    }

    /// Replaces the file; durable on return.
    ///
    /// # Errors
    /// Which step failed. The old file is in place then.
    pub fn save(&self, state: &StateDir) -> std::io::Result<()> {
        let document = Document { version: VERSION, state: self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&document)?;
        bytes.push(b'\n');
        state.write(FILE, &bytes)
    }

    /// A target by its name, in any case of letters.
    #[must_use]
    pub fn find(&self, iqn: &str) -> Option<(u32, &Target)> {
        self.targets.iter().find(|(_, target)| target.iqn.eq_ignore_ascii_case(iqn)).map(|(tid, target)| (*tid, target))
    }

    /// An account.
    #[must_use]
    pub fn account(&self, name: &str) -> Option<&Account> {
        self.accounts.iter().find(|account| account.name == name)
    }

    /// Removes an account from everywhere.
    pub fn forget_account(&mut self, name: &str) {
        self.accounts.retain(|account| account.name != name);
        self.discovery_incoming.retain(|account| account != name);
        self.discovery_outgoing.take_if(|account| account == name);
        for target in self.targets.values_mut() {
            target.incoming.retain(|account| account != name);
            target.outgoing.take_if(|account| account == name);
        }
    }

    /// Whether anything uses an account.
    #[must_use]
    pub fn account_is_used(&self, name: &str) -> bool {
        let is = |account: &String| account == name;
        self.discovery_incoming.iter().any(is)
            || self.discovery_outgoing.as_ref().is_some_and(is)
            || self.targets.values().any(|t| t.incoming.iter().any(is) || t.outgoing.as_ref().is_some_and(is))
    }

    /// The first LUN that uses something, as `IQN LUN n`.
    #[must_use]
    pub fn user_of(&self, uses: impl Fn(&Lun) -> bool) -> Option<String> {
        self.targets.values().find_map(|target| {
            target.luns.iter().find(|(_, lun)| uses(lun)).map(|(lun, _)| format!("{} LUN {lun}", target.iqn))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_and_loads_and_keeps_secrets_to_itself() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(Model::load(&state).unwrap(), Model::default());
        let lun = Lun {
            source: LunSource::Null(1 << 30),
            options: LunOptions::default(),
            tgt: TgtStorage::default(),
            inside: None,
        };
        let target = Target {
            iqn: "iqn.2026-01.test:a".into(),
            incoming: vec!["u".into()],
            luns: BTreeMap::from([(1, lun)]),
            ..Target::default()
        };
        let account = Account { name: "u".into(), secret: "not to be seen".into() };
        let model = Model { targets: BTreeMap::from([(1, target)]), accounts: vec![account], ..Model::default() };
        model.save(&state).unwrap();
        assert_eq!(Model::load(&state).unwrap(), model);
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{model:?}").contains("not to be seen"));
    }

    #[test]
    fn damage_is_put_aside_and_newer_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for bad in ["", "{", "{\"version\":0}", "{\"version\":1,\"state\":3}"] {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert_eq!(Model::load(&state).unwrap(), Model::default());
            assert!(!dir.path().join(FILE).exists() && dir.path().join("targets.json.damaged").exists());
        }
        for newer in ["{\"version\":2}", "{\"version\":2,\"state\":[{\"iqn\":7}]}"] {
            std::fs::write(dir.path().join(FILE), newer).unwrap();
            assert!(Model::load(&state).unwrap_err().contains("newer"));
            assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), newer.as_bytes());
        }
    }

    #[test]
    fn every_start_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let text = r#"{"version":1,"state":{"system":{"State":"offline","debug":"on"}}}"#;
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let system: Vec<_> = Model::load(&state).unwrap().system.into_iter().collect();
        assert_eq!(system, [("debug".to_owned(), "on".to_owned())]);
    }

    #[test]
    fn accounts_go_everywhere() {
        let account = |name: &str| Account { name: name.into(), secret: "s".into() };
        let target = Target { incoming: vec!["a".into(), "b".into()], outgoing: Some("a".into()), ..Target::default() };
        let mut model = Model {
            targets: BTreeMap::from([(1, target)]),
            accounts: vec![account("a"), account("b")],
            discovery_incoming: vec!["a".into()],
            ..Model::default()
        };
        assert!(model.account_is_used("a") && model.account_is_used("b"));
        model.forget_account("a");
        assert!(!model.account_is_used("a") && model.account("a").is_none() && model.account_is_used("b"));
        assert_eq!(model.targets[&1].outgoing, None);
    }
}
