//! `target import-tgt`: the targets of a tgt configuration file, made anew.

use std::path::{Path, PathBuf};

use qrvsa_api::{
    AclRule, AddLun, ApiError, CreateTarget, ErrorKind, LunOptions, LunSource, TargetInfo, UpdateTarget, UserRequest,
};
use qrvsa_tgt::conf::{Configuration, Lun, Parser, Source, Target, read};

use crate::commands::Session;
use crate::ui::clean;

/// Files that an include may name at most.
const INCLUDES_MAX: usize = 1000;

fn cannot(path: &Path, e: &std::io::Error) -> String {
    format!("cannot read {}: {e}", path.display())
}

/// Reads what an include names: a file, a directory, or a pattern in the last part of the path.
fn included(base: &Path, path: &Path) -> Result<Vec<Source>, String> {
    let path = base.join(path);
    let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_pattern = last.contains(['*', '?']);
    let mut files = Vec::new();
    if is_pattern || path.is_dir() {
        let dir = if is_pattern { path.parent().unwrap_or(base).to_owned() } else { path.clone() };
        // A pattern without a match is no mistake; neither is its directory that is not there.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = if is_pattern { matches(&last, &name) } else { true };
            if wanted && entry.path().is_file() {
                files.push(entry.path());
            }
        }
        files.sort();
    } else {
        files.push(path);
    }
    if files.len() > INCLUDES_MAX {
        return Err(format!("more than {INCLUDES_MAX} files are included at once"));
    }
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read(&path).map_err(|e| cannot(&path, &e))?;
            Ok(Source { path, text: String::from_utf8_lossy(&text).into_owned() })
        })
        .collect()
}

/// Whether a name fits a pattern of `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // fits[j]: the pattern up to here fits the first j characters
    let mut fits = vec![false; name.len() + 1];
    if let Some(first) = fits.first_mut() {
        *first = true;
    }
    for c in pattern {
        let mut next = vec![false; name.len() + 1];
        for j in 0..=name.len() {
            let before = |list: &[bool]| j > 0 && list.get(j - 1).copied().unwrap_or(false);
            let fit = match c {
                '*' => fits.get(j).copied().unwrap_or(false) || before(&next),
                '?' => before(&fits),
                c => before(&fits) && name.get(j - 1) == Some(&c),
            };
            if let Some(slot) = next.get_mut(j) {
                *slot = fit;
            }
        }
        fits = next;
    }
    fits.last().copied().unwrap_or(false)
}

fn load(file: &Path) -> Result<Configuration, ApiError> {
    let invalid =
        |e: String| ApiError::invalid(e).with_hint("correct the file and repeat the command; nothing was changed");
    let text = std::fs::read(file)
        .map_err(|e| ApiError::new(ErrorKind::NotFound, cannot(file, &e)).with_hint("name tgt's configuration file"))?;
    let base = std::path::absolute(file).ok().and_then(|path| path.parent().map(PathBuf::from)).unwrap_or_default();
    let include = |path: &Path| included(&base, path);
    let source = Source { path: file.to_owned(), text: String::from_utf8_lossy(&text).into_owned() };
    let items = Parser::new(&include).parse(&source).map_err(invalid)?;
    read(&items).map_err(invalid)
}

/// A unit's options, and what of them is not taken over.
fn lun_options(lun: &Lun, notes: &mut Vec<String>) -> Result<LunOptions, String> {
    let mut o = LunOptions::default();
    for (key, value) in &lun.options {
        let text = || Some(value.clone());
        let flag = || value == "1" || value.eq_ignore_ascii_case("yes") || value.eq_ignore_ascii_case("on");
        let bad = |what: &str| format!("{key} {value:?}: {what}");
        match key.as_str() {
            "device-type" if value == "disk" => {}
            "device-type" => return Err(bad("there are disks only")),
            "bs-type" if matches!(value.as_str(), "rdwr" | "aio" | "null") => {}
            "bs-type" => return Err(bad("there are rdwr, aio and null only")),
            "block-size" => o.block_bytes = Some(value.parse().map_err(|_| bad("is no number"))?),
            // Either of them is enough.
            "write-cache" => o.write_through |= value.eq_ignore_ascii_case("off"),
            "bsoflags" => o.write_through |= value.split(':').any(|flag| flag == "sync"),
            "scsi_id" => o.scsi_id = text(),
            "scsi_sn" => o.serial = text(),
            "vendor_id" => o.vendor = text(),
            "product_id" => o.product = text(),
            "product_rev" => o.revision = text(),
            "sense_format" => o.descriptor_sense = flag(),
            "removable" => o.removable = flag(),
            "readonly" => o.read_only = flag(),
            "online" => o.offline = !flag(),
            "lbppbe" => o.physical_block_exponent = Some(value.parse().map_err(|_| bad("is no number"))?),
            "la_lba" => o.lowest_aligned = Some(value.parse().map_err(|_| bad("is no number"))?),
            "optimal_xfer_gran" => o.optimal_granularity = Some(value.parse().map_err(|_| bad("is no number"))?),
            "optimal_xfer_len" => o.optimal_blocks = Some(value.parse().map_err(|_| bad("is no number"))?),
            "mode_page" => o.mode_pages = value.lines().map(str::to_owned).collect(),
            "allow-in-use" => {}
            _ => notes.push(format!("{key} of LUN {} is not taken over", lun.lun)),
        }
    }
    Ok(o)
}

/// One target as requests.
struct Plan {
    create: CreateTarget,
    update: UpdateTarget,
    luns: Vec<AddLun>,
    acl: Vec<AclRule>,
    users: Vec<UserRequest>,
}

fn plan(target: &Target, notes: &mut Vec<String>) -> Result<Plan, String> {
    let mut luns = Vec::new();
    for lun in &target.luns {
        let options = lun_options(lun, notes).map_err(|e| format!("target {} LUN {}: {e}", target.iqn, lun.lun))?;
        let null = lun.options.get("bs-type").is_some_and(|kind| kind == "null");
        let source = match &lun.path {
            _ if null => LunSource::Null(1 << 40),
            Some(path) => LunSource::File(path.clone()),
            None => LunSource::Empty,
        };
        if lun.direct {
            notes.push(format!(
                "target {} LUN {}: vendor and serial number of the device are not taken over",
                target.iqn, lun.lun
            ));
        }
        luns.push(AddLun { lun: Some(lun.lun), source, options });
    }
    let address = |text: &String| {
        if text.eq_ignore_ascii_case("ALL") { AclRule::All } else { AclRule::Address(text.clone()) }
    };
    let names = target.names.iter().map(|name| AclRule::Initiator(name.clone()));
    let user = |user: &qrvsa_tgt::conf::User, mutual: bool| UserRequest {
        name: user.name.clone(),
        secret: user.secret.clone(),
        mutual,
        discovery: false,
    };
    Ok(Plan {
        create: CreateTarget { iqn: target.iqn.clone(), tid: target.tid, portals: Vec::new(), advertise: Vec::new() },
        update: UpdateTarget {
            offline: target.offline.then_some(true),
            parameters: target.parameters.iter().cloned().collect(),
        },
        luns,
        acl: target.addresses.iter().map(address).chain(names).collect(),
        users: target
            .incoming
            .iter()
            .map(|u| user(u, false))
            .chain(target.outgoing.iter().map(|u| user(u, true)))
            .collect(),
    })
}

fn describe(plan: &Plan) -> String {
    let iqn = clean(&plan.create.iqn);
    let mut out = format!("target {iqn}\n");
    for lun in &plan.luns {
        out.push_str(&format!("  LUN {}: {}\n", lun.lun.unwrap_or_default(), clean(&lun.source.to_string())));
    }
    for rule in &plan.acl {
        out.push_str(&format!("  lets in {}\n", clean(&rule.to_string())));
    }
    for user in &plan.users {
        out.push_str(&format!("  user {}{}\n", clean(&user.name), if user.mutual { " (mutual)" } else { "" }));
    }
    for (key, value) in &plan.update.parameters {
        out.push_str(&format!("  {key}={}\n", clean(value)));
    }
    out
}

/// Runs the command.
pub fn run(session: &Session, file: &Path, dry_run: bool) -> Result<u8, ApiError> {
    let configuration = load(file)?;
    let mut notes = configuration.warnings.clone();
    let plans =
        configuration.targets.iter().map(|target| plan(target, &mut notes)).collect::<Result<Vec<_>, _>>().map_err(
            |e| ApiError::invalid(e).with_hint("correct the file and repeat the command; nothing was changed"),
        )?;
    let tell = || {
        for note in &notes {
            crate::ui::tell(&format!("qrvsa: note: {}", clean(note)));
        }
    };
    if dry_run {
        tell();
        let text: String = plans.iter().map(describe).collect();
        let names: Vec<&str> = plans.iter().map(|plan| plan.create.iqn.as_str()).collect();
        return session.show(&serde_json::json!({ "targets": names, "notes": notes }), |_| text);
    }
    let client = session.client();
    let mut made: Vec<TargetInfo> = Vec::new();
    for plan in &plans {
        let iqn = &plan.create.iqn;
        client.create_target(&plan.create)?;
        // A target that cannot be made as a whole is taken away again: half a target helps nobody.
        let rest = || -> Result<TargetInfo, ApiError> {
            for lun in &plan.luns {
                client.add_lun(iqn, lun)?;
            }
            for user in &plan.users {
                client.change_user(iqn, true, user)?;
            }
            client.update_target(iqn, &plan.update)?;
            for rule in &plan.acl {
                client.change_acl(iqn, true, rule)?;
            }
            client.target(iqn)
        };
        match rest() {
            Ok(target) => made.push(target),
            Err(e) => {
                let _ = client.destroy_target(iqn, true);
                return Err(ApiError::new(e.kind, format!("target {iqn}: {}", e.message)).with_hint(format!(
                    "{}; the targets before it were made, it and those after it were not",
                    e.hint
                )));
            }
        }
    }
    for (mutual, user) in configuration
        .discovery_incoming
        .iter()
        .map(|user| (false, user))
        .chain(configuration.discovery_outgoing.iter().map(|user| (true, user)))
    {
        if let Some(first) = made.first() {
            let request = UserRequest { name: user.name.clone(), secret: user.secret.clone(), mutual, discovery: true };
            client.change_user(&first.iqn, true, &request)?;
        }
    }
    tell();
    session.show(&made, |made| {
        made.iter().map(|target| format!("target {} made, {} LUNs\n", clean(&target.iqn), target.luns.len())).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".hidden.conf", false),
            ("*.conf", "a.conf.bak", false),
            ("a?c*", "abc", true),
            ("a?c*", "ac", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_file_with_includes_becomes_requests() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(
            dir.path().join("conf.d/a.conf"),
            "<target iqn.2026-01.test:a>\n backing-store /srv/a.img\n incominguser u secret\n <backing-store /srv/b.img>\n\
             write-cache off\n lun 5\n </backing-store>\n</target>\n",
        )
        .unwrap();
        let file = dir.path().join("targets.conf");
        std::fs::write(&file, "default-driver iscsi\ninclude conf.d/*.conf\ninclude /nowhere/*.conf\n").unwrap();
        let configuration = load(&file).unwrap();
        let plan = plan(&configuration.targets[0], &mut Vec::new()).unwrap();
        assert_eq!(plan.luns[0].source, LunSource::File("/srv/a.img".into()));
        assert!(plan.luns[1].options.write_through && plan.luns[1].lun == Some(5));
        // Cinder's own template
        let cinder = dir.path().join("cinder.conf");
        let text =
            "<target iqn.2026-01.test:c>\n backing-store /srv/c.img\n bsoflags sync\n write-cache on\n</target>\n";
        std::fs::write(&cinder, text).unwrap();
        let synced = super::plan(&load(&cinder).unwrap().targets[0], &mut Vec::new()).unwrap();
        assert!(synced.luns[0].options.write_through);
        assert_eq!(plan.acl, [AclRule::All]);
        assert!(!describe(&plan).contains("secret"));
        assert!(load(&dir.path().join("none")).is_err());
    }
}
