//! What each command about iSCSI targets asks the daemon.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use qrvsa_api::{
    AclRule, AddLun, ApiError, Client, CreateTarget, ErrorKind, LunOptions, LunSource, UpdateTarget, UserRequest,
};

use crate::commands::Session;
use crate::paths;
use crate::target_args::{Acl, Lun, Source, Target, User, Who};
use crate::target_show as show;
use crate::ui::clean;

/// Longest secret, bytes.
const SECRET_BYTES_MAX: u64 = 255;

/// Runs a command.
pub fn run(session: &Session, command: &Target) -> Result<u8, ApiError> {
    let client = session.client();
    match command {
        Target::Create { iqn, portal, advertise } => {
            let request =
                CreateTarget { iqn: iqn.clone(), tid: None, portals: portal.clone(), advertise: advertise.clone() };
            let target = client.create_target(&request)?;
            session.show(&target, |target| {
                let at: Vec<&str> = target.portals.iter().map(|portal| portal.address.as_str()).collect();
                format!(
                    "target {} created at {}; it lets nobody in yet: `qrvsa target acl {} add ...`\n",
                    clean(&target.iqn),
                    at.join(", "),
                    clean(&target.iqn)
                )
            })
        }
        Target::List => session.show(&client.targets()?, |list| show::list(list)),
        Target::Show { iqn: Some(iqn) } => session.show(&client.target(iqn)?, show::target),
        Target::Show { iqn: None } => session.show(&client.targets()?, |list| {
            if list.is_empty() {
                show::list(list)
            } else {
                list.iter().map(show::target).collect::<Vec<_>>().join("\n")
            }
        }),
        Target::Set { iqn, offline, ready, parameters } => {
            let request = UpdateTarget {
                offline: match (offline, ready) {
                    (true, _) => Some(true),
                    (_, true) => Some(false),
                    _ => None,
                },
                parameters: parameters.iter().map(|p| (p.key.clone(), p.value.clone())).collect(),
            };
            session.show(&client.update_target(iqn, &request)?, |_| format!("target {} changed\n", clean(iqn)))
        }
        Target::Destroy { iqn, force } => {
            client.destroy_target(iqn, *force)?;
            session.done(&format!("target {} destroyed", clean(iqn)))
        }
        Target::Lun(command) => lun(session, command),
        Target::Acl { iqn, change } => {
            let (add, who) = match change {
                Acl::Add(who) => (true, who),
                Acl::Remove(who) => (false, who),
            };
            let target = client.change_acl(iqn, add, &rule(who)?)?;
            session.show(&target, show::access)
        }
        Target::User { iqn, change } => user(session, iqn, change),
        Target::Sessions { iqn, drop: Some(sid) } => {
            client.drop_session(iqn, *sid)?;
            session.done(&format!("session {sid} of {} ended", clean(iqn)))
        }
        Target::Sessions { iqn, drop: None } => session.show(&client.sessions(iqn)?, |list| show::sessions(list)),
        Target::TgtSocket => {
            session.show(&client.tgt_socket()?, |socket| format!("{}\n", clean(&socket.path.display().to_string())))
        }
        Target::ImportTgt { file, dry_run } => crate::import_tgt::run(session, file, *dry_run),
    }
}

fn rule(who: &Who) -> Result<AclRule, ApiError> {
    match who {
        Who { initiator: Some(name), .. } => Ok(AclRule::Initiator(name.clone())),
        Who { address: Some(address), .. } => Ok(AclRule::Address(address.clone())),
        Who { all: true, .. } => Ok(AclRule::All),
        _ => Err(ApiError::invalid("nobody is named").with_hint("give --initiator, --address or --all")),
    }
}

fn source(source: &Source) -> Result<LunSource, ApiError> {
    Ok(match source {
        Source { volume: Some(name), .. } => match &name.fs {
            Some(_) => LunSource::Volume(name.clone()),
            None => return Err(ApiError::invalid(format!("{name} is a pool")).with_hint("name a volume: POOL/VOL")),
        },
        Source { file: Some(path), .. } => LunSource::File(paths::absolute(path)?),
        Source { vhdx: Some(path), .. } => LunSource::Vhdx(paths::absolute(path)?),
        Source { null: Some(bytes), .. } => LunSource::Null(*bytes),
        _ => return Err(ApiError::invalid("no storage is named").with_hint("give --volume, --file, --vhdx or --null")),
    })
}

fn lun(session: &Session, command: &Lun) -> Result<u8, ApiError> {
    let client = session.client();
    match command {
        Lun::Add { iqn, lun, source: from, thin, readonly, removable, block_size, physical_block_exponent } => {
            let options = LunOptions {
                thin: thin.then_some(true),
                read_only: *readonly,
                removable: *removable,
                block_bytes: block_size.as_ref().and_then(|size| size.parse().ok()),
                physical_block_exponent: *physical_block_exponent,
                ..LunOptions::default()
            };
            let added = client.add_lun(iqn, &AddLun { lun: *lun, source: source(from)?, options })?;
            session.show(&added, |added| {
                let size = qrvsa_api::units::format_bytes(added.size_bytes);
                format!("LUN {} added: {}, {size}\n", added.lun, clean(&added.source.to_string()))
            })
        }
        Lun::Remove { iqn, lun } => {
            client.remove_lun(iqn, *lun)?;
            session.done(&format!("LUN {lun} of {} removed", clean(iqn)))
        }
    }
}

fn user(session: &Session, iqn: &str, change: &User) -> Result<u8, ApiError> {
    let client: &Client = session.client();
    let (add, request) = match change {
        User::Add { name, mutual, discovery, secret_file } => {
            let secret = secret(secret_file.as_deref())?;
            (true, UserRequest { name: name.clone(), secret, mutual: *mutual, discovery: *discovery })
        }
        User::Remove { name, mutual, discovery } => {
            let request =
                UserRequest { name: name.clone(), secret: String::new(), mutual: *mutual, discovery: *discovery };
            (false, request)
        }
    };
    session.show(&client.change_user(iqn, add, &request)?, show::access)
}

/// The secret: the first line of a file or of standard input, not shown on a terminal.
fn secret(file: Option<&Path>) -> Result<String, ApiError> {
    let mut line = String::new();
    let failed = |e: io::Error, what: &str| {
        ApiError::new(ErrorKind::Invalid, format!("cannot read the secret from {what}: {e}"))
            .with_hint("give its file with --secret-file, or write it to standard input")
    };
    match file {
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|e| failed(e, &name))?;
            io::BufReader::new(file.take(SECRET_BYTES_MAX + 2)).read_line(&mut line).map_err(|e| failed(e, &name))?;
        }
        None if io::stdin().is_terminal() => {
            line = crate::terminal::read_hidden("Secret (it is not shown): ", SECRET_BYTES_MAX + 2)
                .map_err(|e| failed(e, "the terminal"))?;
        }
        None => {
            let stdin = io::stdin();
            stdin.lock().take(SECRET_BYTES_MAX + 2).read_line(&mut line).map_err(|e| failed(e, "standard input"))?;
        }
    }
    let secret = line.strip_suffix('\n').unwrap_or(&line);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(
            ApiError::invalid("the secret is empty").with_hint("write it to standard input, or use --secret-file")
        );
    }
    Ok(secret.to_owned())
}
