//! Who gets in: access lists, CHAP users, and sessions to end.

use qrvsa_api::{AclRule, ApiError, ErrorKind, TargetInfo, UserRequest};
use qrvsa_iscsi::config::{AclRule as ServiceRule, Secret};
use qrvsa_iscsi::service::ServiceError;

use super::model::{Account, Model};
use super::{Result, Targets, from_service, no_target};

/// A rule as the service takes it.
///
/// # Errors
/// `Invalid`: no address, or no name.
pub fn rule(rule: &AclRule) -> Result<ServiceRule> {
    Ok(match rule {
        AclRule::All => ServiceRule::All,
        AclRule::Address(text) => ServiceRule::Address(text.parse().map_err(|e: String| {
            ApiError::invalid(e).with_hint("write an address, or a block of them such as 192.0.2.0/24")
        })?),
        AclRule::Initiator(name) => ServiceRule::InitiatorName(name.clone()),
    })
}

impl Targets {
    /// Lets somebody in, or no more. Sessions that are there go on.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn change_acl(&self, iqn: &str, add: bool, wanted: &AclRule) -> Result<TargetInfo> {
        rule(wanted)?;
        if let AclRule::Initiator(name) = wanted {
            super::iscsi_name(name)?;
        }
        self.edit(iqn, |target| {
            let at = target.acl.iter().position(|rule| rule == wanted);
            match (add, at) {
                (true, Some(_)) => Err(ApiError::new(ErrorKind::Exists, format!("{wanted} has access already"))),
                (true, None) => {
                    target.acl.push(wanted.clone());
                    Ok(())
                }
                (false, Some(at)) => {
                    target.acl.remove(at);
                    Ok(())
                }
                (false, None) => Err(ApiError::not_found(format!("{wanted} is not in the access list of {iqn}"))
                    .with_hint(format!("`qrvsa target show {iqn}` shows it"))),
            }
        })?;
        self.info(iqn)
    }

    /// Adds or removes a CHAP user.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Invalid`.
    pub fn change_user(&self, iqn: &str, add: bool, user: &UserRequest) -> Result<TargetInfo> {
        let name = &user.name;
        if name.is_empty() || name.len() > 255 || name.chars().any(|c| c.is_control() || c == ',') {
            return Err(ApiError::invalid(format!("user name {name:?} is not valid"))
                .with_hint("use 1 to 255 characters, none of them a comma or a control character"));
        }
        self.change(|model| {
            let tid = model.find(iqn).map(|(tid, _)| tid).ok_or_else(|| no_target(iqn))?;
            if add { add_user(model, tid, user) } else { remove_user(model, tid, iqn, user) }
        })?;
        self.info(iqn)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it has not ended yet.
    pub fn drop_session(&self, iqn: &str, sid: u64) -> Result<()> {
        self.service.drop_session(iqn, sid).map_err(|e| not_ended(iqn, &e))
    }

    /// Ends a connection.
    ///
    /// # Errors
    /// `NotFound`; `Busy` when it has not ended yet.
    pub(super) fn drop_connection(&self, iqn: &str, sid: u64, cid: u16) -> Result<()> {
        self.service.drop_connection(iqn, sid, cid).map_err(|e| not_ended(iqn, &e))
    }
}

/// A session that was told to end.
fn not_ended(iqn: &str, error: &ServiceError) -> ApiError {
    match from_service(error) {
        busy if busy.kind == ErrorKind::Busy => busy.with_hint(format!(
            "storage that does not answer holds it; `qrvsa target sessions {iqn}` shows when it has ended"
        )),
        other => other,
    }
}

fn add_user(model: &mut Model, tid: u32, user: &UserRequest) -> Result<()> {
    let name = &user.name;
    Secret::new(user.secret.as_bytes()).map_err(ApiError::invalid)?;
    match model.account(name) {
        None => model.accounts.push(Account { name: name.clone(), secret: user.secret.clone() }),
        Some(account) if account.secret == user.secret => {}
        Some(_) => {
            return Err(ApiError::new(ErrorKind::Exists, format!("user {name} exists with another secret"))
                .with_hint("remove the user from the targets that have it first, or choose another name"));
        }
    }
    let has = || ApiError::new(ErrorKind::Exists, format!("user {name} is there already"));
    let (incoming, outgoing) = match model.targets.get_mut(&tid) {
        Some(target) if !user.discovery => (&mut target.incoming, &mut target.outgoing),
        _ => (&mut model.discovery_incoming, &mut model.discovery_outgoing),
    };
    if user.mutual {
        match outgoing {
            Some(old) if old == name => return Err(has()),
            Some(old) => {
                return Err(ApiError::new(ErrorKind::Exists, format!("{old} is the mutual user already"))
                    .with_hint(format!("remove {old} first")));
            }
            None => *outgoing = Some(name.clone()),
        }
    } else if incoming.contains(name) {
        return Err(has());
    } else {
        incoming.push(name.clone());
    }
    Ok(())
}

fn remove_user(model: &mut Model, tid: u32, iqn: &str, user: &UserRequest) -> Result<()> {
    let name = &user.name;
    let (incoming, outgoing) = match model.targets.get_mut(&tid) {
        Some(target) if !user.discovery => (&mut target.incoming, &mut target.outgoing),
        _ => (&mut model.discovery_incoming, &mut model.discovery_outgoing),
    };
    let found = if user.mutual {
        outgoing.take_if(|account| account == name).is_some()
    } else {
        let before = incoming.len();
        incoming.retain(|account| account != name);
        incoming.len() < before
    };
    if !found {
        return Err(ApiError::not_found(format!("target {iqn} has no such user {name}"))
            .with_hint(format!("`qrvsa target show {iqn}` shows its users")));
    }
    if !model.account_is_used(name) {
        model.forget_account(name);
    }
    Ok(())
}
