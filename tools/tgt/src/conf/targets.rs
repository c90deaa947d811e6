//! What the file says about targets, as tgt-admin understands it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::grammar::Item;

/// A CHAP account.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Secret.
    pub secret: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "User({:?}, ..)", self.name)
    }
}

/// A logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lun {
    /// Its number, once all are known.
    pub lun: u64,
    /// What it keeps its bytes in; `None` for a removable unit without medium.
    pub path: Option<PathBuf>,
    /// Vendor, product and serial number come from the device (`direct-store`).
    pub direct: bool,
    /// Options by their names in the file, such as `bs-type`, `write-cache`, `scsi_sn`.
    pub options: BTreeMap<String, String>,
}

/// A target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its iSCSI name.
    pub iqn: String,
    /// `controller_tid`.
    pub tid: Option<u32>,
    /// Logical units, by number.
    pub luns: Vec<Lun>,
    /// Who may log in.
    pub incoming: Vec<User>,
    /// As whom the target answers.
    pub outgoing: Option<User>,
    /// Addresses let in; `ALL` for all of them.
    pub addresses: Vec<String>,
    /// Initiator names let in.
    pub names: Vec<String>,
    /// Session parameters by their RFC names.
    pub parameters: Vec<(String, String)>,
    /// `state offline`.
    pub offline: bool,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Targets, by name.
    pub targets: Vec<Target>,
    /// Who may discover.
    pub discovery_incoming: Vec<User>,
    /// As whom discovery is answered.
    pub discovery_outgoing: Option<User>,
    /// What is not taken over, and what means something else than it seems, one line each.
    pub warnings: Vec<String>,
}

/// Parameters of sessions, by their names in the file and in RFC 7143.
const PARAMETERS: &[&str] = &[
    "MaxRecvDataSegmentLength",
    "MaxXmitDataSegmentLength",
    "HeaderDigest",
    "DataDigest",
    "InitialR2T",
    "MaxOutstandingR2T",
    "ImmediateData",
    "FirstBurstLength",
    "MaxBurstLength",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "IFMarker",
    "OFMarker",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "OFMarkInt",
    "IFMarkInt",
    "MaxConnections",
];

/// Options of a logical unit; in a target they hold for all of its units.
const LUN_OPTIONS: &[&str] = &[
    "lun",
    "device-type",
    "bs-type",
    "bsopts",
    "bsoflags",
    "block-size",
    "allow-in-use",
    "write-cache",
    "scsi_id",
    "scsi_sn",
    "vendor_id",
    "product_id",
    "product_rev",
    "sense_format",
    "removable",
    "online",
    "path",
    "readonly",
    "lbppbe",
    "la_lba",
    "optimal_xfer_gran",
    "optimal_xfer_len",
    "mode_page",
    "params",
];

fn known<'a>(list: &[&'a str], key: &str) -> Option<&'a str> {
    list.iter().find(|k| k.eq_ignore_ascii_case(key)).copied()
}

fn user(text: &str) -> Option<User> {
    let (name, secret) = text.split_once(char::is_whitespace)?;
    let secret = secret.trim();
    (!secret.is_empty()).then(|| User { name: name.to_owned(), secret: secret.to_owned() })
}

/// Reads the parsed file.
///
/// # Errors
/// One line: which target has what wrong.
pub fn read(items: &[Item]) -> Result<Configuration, String> {
    let mut configuration = Configuration::default();
    let mut blocks: BTreeMap<String, Vec<&[Item]>> = BTreeMap::new();
    for item in items {
        match item {
            // Blocks of the same name are one.
            Item::Block { kind, name, items } if kind.eq_ignore_ascii_case("target") => {
                if name.is_empty() {
                    return Err("a <target> without a name; write <target IQN>".to_owned());
                }
                blocks.entry(name.clone()).or_default().push(items);
            }
            Item::Block { kind, name, .. } => {
                configuration.warnings.push(format!("<{kind} {name}> is not known and left out"));
            }
            Item::Value { key, value } => match key.to_ascii_lowercase().as_str() {
                "default-driver" if value.eq_ignore_ascii_case("iscsi") => {}
                "default-driver" => return Err(format!("the driver {value} is not known; there is iscsi only")),
                "ignore-errors" | "control-port" => {}
                "incomingdiscoveryuser" | "outgoingdiscoveryuser" => {
                    let user = user(value).ok_or_else(|| format!("{key} needs a name and a secret"))?;
                    if key.to_ascii_lowercase().starts_with("in") {
                        configuration.discovery_incoming.push(user);
                    } else {
                        configuration.discovery_outgoing = Some(user);
                    }
                }
                _ => configuration.warnings.push(format!("{key} is not taken over")),
            },
        }
    }
    for (iqn, parts) in blocks {
        let target = target(&iqn, &parts, &mut configuration.warnings)?;
        configuration.targets.push(target);
    }
    Ok(configuration)
}

fn target(iqn: &str, parts: &[&[Item]], warnings: &mut Vec<String>) -> Result<Target, String> {
    let mut target = Target { iqn: iqn.to_owned(), ..Target::default() };
    let mut defaults = BTreeMap::new();
    let mut units = Vec::new();
    let wrong = |what: String| format!("target {iqn}: {what}");
    for item in parts.iter().copied().flatten() {
        match item {
            Item::Block { kind, name, items } => {
                let lower = kind.to_ascii_lowercase();
                if lower != "backing-store" && lower != "direct-store" {
                    return Err(wrong(format!("<{kind}> is not known; there are backing-store and direct-store")));
                }
                let mut options = BTreeMap::new();
                for item in items {
                    match item {
                        Item::Value { key, value } => match known(LUN_OPTIONS, key) {
                            Some(key) => set_option(&mut options, key, value),
                            None => warnings.push(wrong(format!("{key} of {name} is not taken over"))),
                        },
                        Item::Block { kind, .. } => return Err(wrong(format!("<{kind}> within <{lower}>"))),
                    }
                }
                units.push(unit(name, lower == "direct-store", options));
            }
            Item::Value { key, value } => match key.to_ascii_lowercase().as_str() {
                "backing-store" => units.push(unit(value, false, BTreeMap::new())),
                "direct-store" => units.push(unit(value, true, BTreeMap::new())),
                "driver" if value.eq_ignore_ascii_case("iscsi") => {}
                "driver" => return Err(wrong(format!("the driver {value} is not known; there is iscsi only"))),
                "controller_tid" => {
                    let tid = value.parse().ok().filter(|tid| *tid > 0);
                    target.tid =
                        Some(tid.ok_or_else(|| wrong(format!("controller_tid {value} is no number above 0")))?);
                }
                "incominguser" => {
                    let user = user(value).ok_or_else(|| wrong("incominguser needs a name and a secret".into()))?;
                    target.incoming.push(user);
                }
                "outgoinguser" => {
                    let user = user(value).ok_or_else(|| wrong("outgoinguser needs a name and a secret".into()))?;
                    target.outgoing = Some(user);
                }
                "initiator-address" => target.addresses.push(value.clone()),
                "initiator-name" => target.names.push(value.clone()),
                "state" => target.offline = value.eq_ignore_ascii_case("offline"),
                _ => match (known(PARAMETERS, key), known(LUN_OPTIONS, key)) {
                    (Some(key), _) => target.parameters.push((key.to_owned(), value.clone())),
                    (_, Some(key)) => set_option(&mut defaults, key, value),
                    _ => warnings.push(wrong(format!("{key} is not taken over"))),
                },
            },
        }
    }
    if target.addresses.is_empty() && target.names.is_empty() {
        target.addresses.push("ALL".to_owned());
    } else if target.addresses.is_empty() {
        warnings.push(wrong(
            "tgt lets everybody in here, because there is no initiator-address; only the named initiators are let in now"
                .into(),
        ));
    }
    target.luns = numbered(units, &defaults).map_err(wrong)?;
    Ok(target)
}

fn set_option(options: &mut BTreeMap<String, String>, key: &str, value: &str) {
    let several = matches!(key, "mode_page" | "params");
    match options.get_mut(key) {
        Some(old) if several => {
            old.push('\n');
            old.push_str(value);
        }
        _ => {
            options.insert(key.to_owned(), value.to_owned());
        }
    }
}

fn unit(path: &str, direct: bool, options: BTreeMap<String, String>) -> Lun {
    let path = (!path.starts_with("NONE") && !path.is_empty()).then(|| PathBuf::from(path));
    Lun { lun: 0, path, direct, options }
}

/// Gives each unit its number: its own, else the first free one from 1, in the order of the paths.
fn numbered(mut units: Vec<Lun>, defaults: &BTreeMap<String, String>) -> Result<Vec<Lun>, String> {
    units.sort_by(|a, b| a.path.cmp(&b.path));
    let mut taken = Vec::new();
    for unit in &mut units {
        for (key, value) in defaults {
            if key != "lun" {
                unit.options.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if let Some(lun) = unit.options.remove("lun") {
            unit.lun = lun.parse().map_err(|_| format!("lun {lun} is no number"))?;
            if taken.contains(&unit.lun) {
                return Err(format!("lun {lun} is there twice"));
            }
            taken.push(unit.lun);
        } else {
            unit.lun = u64::MAX;
        }
    }
    for unit in units.iter_mut().filter(|unit| unit.lun == u64::MAX) {
        unit.lun = (1..u64::MAX).find(|lun| !taken.contains(lun)).unwrap_or(u64::MAX);
        taken.push(unit.lun);
    }
    units.sort_by_key(|unit| unit.lun);
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::super::grammar::{Parser, Source};
    use super::*;

    fn parse(text: &str) -> Result<Configuration, String> {
        let none = |_: &std::path::Path| Err("no includes here".to_owned());
        read(&Parser::new(&none).parse(&Source { path: "t".into(), text: text.into() })?)
    }

    #[test]
    fn a_whole_file() {
        let c = parse(
            "default-driver iscsi\nincomingdiscoveryuser d secret\niSNS On\n\
             <target iqn.b>\n  backing-store /z\n  backing-store /y\n  <backing-store /a>\n   lun 2\n   write-cache off\n\
             scsi_sn X1\n  </backing-store>\n  vendor_id ACME\n  incominguser u pass word\n  outgoinguser o p\n\
             initiator-address 10.0.0.0/8\n  initiator-name iqn.i\n  MaxBurstLength 4096\n  controller_tid 7\n</target>\n\
             <target iqn.a>\n  direct-store /dev/sdb\n  removable 1\n</target>\n",
        )
        .unwrap();
        assert_eq!(c.targets.iter().map(|t| t.iqn.as_str()).collect::<Vec<_>>(), ["iqn.a", "iqn.b"]);
        let (a, b) = (&c.targets[0], &c.targets[1]);
        assert_eq!(a.addresses, ["ALL"]);
        assert!(a.luns[0].direct && a.luns[0].options["removable"] == "1" && a.luns[0].lun == 1);
        let luns: Vec<_> = b.luns.iter().map(|l| (l.lun, l.path.clone().unwrap().display().to_string())).collect();
        assert_eq!(luns, [(1, "/y".into()), (2, "/a".into()), (3, "/z".into())]);
        assert_eq!(b.luns[1].options["scsi_sn"], "X1");
        assert_eq!(b.luns[0].options["vendor_id"], "ACME");
        assert_eq!((b.tid, b.incoming[0].secret.as_str()), (Some(7), "pass word"));
        assert_eq!(b.parameters, [("MaxBurstLength".into(), "4096".into())]);
        assert_eq!(c.discovery_incoming[0].name, "d");
        assert_eq!(c.warnings, ["iSNS is not taken over"]);
        assert!(!format!("{c:?}").contains("pass word"), "a secret is printed");
    }

    #[test]
    fn names_alone_do_not_let_everybody_in() {
        let c = parse("<target iqn.x>\n backing-store NONE:1\n initiator-name iqn.i\n</target>").unwrap();
        assert!(c.targets[0].addresses.is_empty());
        assert_eq!(c.targets[0].luns[0].path, None);
        assert!(c.warnings[0].contains("only the named initiators"));
    }

    #[test]
    fn mistakes() {
        for (text, part) in [
            ("<target>\n</target>", "without a name"),
            ("<target x>\n<what /a>\n</what>\n</target>", "<what> is not known"),
            (
                "<target x>\n<backing-store /a>\nlun 1\n</backing-store>\n<backing-store /b>\nlun 1\n</backing-store>\n</target>",
                "twice",
            ),
            ("<target x>\nincominguser nobody\n</target>", "name and a secret"),
            ("<target x>\ndriver iser\n</target>", "iscsi only"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
