//! tgt's management protocol: what its requests do here, and what they are answered.
//!
//! tgt's own programs, and scripts written for them, manage the daemon's targets with it. Where this target has no such
//! thing (tapes, iSNS, other drivers), the request is answered as tgt answers what it does not have, or, where scripts
//! depend on success, noted and shown again.

mod server;
mod settings;
mod text;

use qrvsa_api::{AclRule, AddLun, ApiError, CreateTarget, ErrorKind, LunOptions, LunSource};
use qrvsa_tgt::payload::Payload;
use qrvsa_tgt::wire::{Code, Mode, NO_LUN, Op, Request};

pub use server::TgtServer;

use super::Targets;
use super::model::{Account, TgtStorage};

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub code: Code,
    /// Text for standard output; empty for none.
    pub text: String,
    /// The management socket is to be closed: tgt's `sys delete`.
    pub stop: bool,
}

type Done = Result<String, Code>;

const NONE: &str = "";

/// tgt's code for an error here, where nothing more exact is known.
fn code(error: &ApiError) -> Code {
    match error.kind {
        ErrorKind::Unsupported => Code::Unsupported,
        ErrorKind::Internal => Code::Unknown,
        _ => Code::InvalidRequest,
    }
}

fn done(result: Result<impl Sized, ApiError>, errors: &[(ErrorKind, Code)]) -> Done {
    match result {
        Ok(_) => Ok(NONE.to_owned()),
        Err(e) => {
            tracing::info!("tgt request refused: {e}");
            Err(errors.iter().find(|(kind, _)| *kind == e.kind).map_or_else(|| code(&e), |(_, code)| *code))
        }
    }
}

impl Targets {
    /// Does what a request asks for. Never fails otherwise than with a code.
    #[must_use]
    pub fn handle_tgt(&self, request: &Request, payload: &[u8]) -> Answer {
        let payload = Payload::parse(payload);
        let stop = request.mode == Mode::System.number() && request.op == Op::Delete.number();
        let result = self.dispatch(request, &payload);
        match result {
            Ok(text) => Answer { code: Code::Success, text, stop },
            Err(code) => Answer { code, text: String::new(), stop: false },
        }
    }

    fn dispatch(&self, request: &Request, payload: &Payload) -> Done {
        let (Some(mode), Some(op)) = (Mode::from_number(request.mode), Op::from_number(request.op)) else {
            return Err(Code::InvalidRequest);
        };
        if !matches!(request.lld.as_str(), "" | "iscsi") && mode != Mode::Lld {
            return Err(Code::NoDriver);
        }
        match mode {
            Mode::System => self.tgt_system(op, payload),
            Mode::Target => self.tgt_target(op, request, payload),
            Mode::LogicalUnit => self.tgt_lun(op, request, payload),
            Mode::Account => self.tgt_account(op, request, payload),
            Mode::Portal => self.tgt_portal(op, payload),
            Mode::Lld => match (op, request.lld.as_str()) {
                (Op::Show, _) => Ok(self.tgt_show_drivers()),
                (Op::Start, "" | "iscsi") => Ok(NONE.into()),
                (Op::Stop, "" | "iscsi") => Err(Code::DriverActive),
                _ => Err(Code::NoDriver),
            },
            Mode::Session => match op {
                Op::Stat => self.tgt_stat_session(request, true),
                _ => Err(Code::InvalidRequest),
            },
            Mode::Connection => match op {
                Op::Show => self.tgt_show_connections(request),
                Op::Stat => self.tgt_stat_session(request, false),
                Op::Delete => self.tgt_delete_connection(request),
                _ => Err(Code::InvalidRequest),
            },
        }
    }

    /// A target by the number in a request.
    fn tgt_iqn(&self, tid: i32) -> Result<(u32, String), Code> {
        let tid = u32::try_from(tid).map_err(|_| Code::NoTarget)?;
        let model = self.model();
        model.targets.get(&tid).map(|target| (tid, target.iqn.clone())).ok_or(Code::NoTarget)
    }

    fn tgt_target(&self, op: Op, request: &Request, payload: &Payload) -> Done {
        match op {
            Op::New => {
                let tid = u32::try_from(request.tid).ok().filter(|tid| *tid != 0).ok_or(Code::InvalidRequest)?;
                let iqn = payload.get("targetname").filter(|name| !name.is_empty()).ok_or(Code::InvalidRequest)?;
                let create =
                    CreateTarget { iqn: iqn.to_owned(), tid: Some(tid), portals: Vec::new(), advertise: Vec::new() };
                done(self.create(&create), &[(ErrorKind::Exists, Code::TargetExists)])
            }
            Op::Delete => {
                let (_, iqn) = self.tgt_iqn(request.tid)?;
                done(self.destroy(&iqn, request.force), &[(ErrorKind::Busy, Code::TargetActive)])
            }
            Op::Show if request.tid < 0 => Ok(self.tgt_show_targets()),
            Op::Show => self.tgt_show_parameters(request),
            Op::Stat => {
                let (tid, _) = self.tgt_iqn(request.tid)?;
                Ok(self.tgt_stat_luns(Some(tid), None))
            }
            Op::Bind | Op::Unbind => {
                let (_, iqn) = self.tgt_iqn(request.tid)?;
                let mut rules = Vec::new();
                if let Some(address) = payload.get("initiator-address") {
                    rules.push(if address == "ALL" { AclRule::All } else { AclRule::Address(address.to_owned()) });
                }
                rules.extend(payload.get("initiator-name").map(|name| AclRule::Initiator(name.to_owned())));
                if rules.is_empty() {
                    return Err(Code::Unsupported);
                }
                for rule in rules {
                    let add = op == Op::Bind;
                    done(
                        self.change_acl(&iqn, add, &rule),
                        &[(ErrorKind::Exists, Code::AclExists), (ErrorKind::NotFound, Code::NoAcl)],
                    )?;
                }
                Ok(NONE.into())
            }
            Op::Update => {
                let (_, iqn) = self.tgt_iqn(request.tid)?;
                let (name, value) = payload.pairs.first().ok_or(Code::InvalidRequest)?;
                done(self.edit(&iqn, |target| settings::target(target, name, value)), &[])
            }
            Op::Start | Op::Stop => Err(Code::InvalidRequest),
        }
    }

    fn tgt_lun(&self, op: Op, request: &Request, payload: &Payload) -> Done {
        let known = self.tgt_iqn(request.tid);
        let number = request.lun;
        match op {
            Op::New => {
                let (_, iqn) = known?;
                if number == NO_LUN || number == 0 {
                    return Err(if number == 0 { Code::LunExists } else { Code::InvalidRequest });
                }
                let (source, mut options, storage) = tgt_storage(request.device_type, payload)?;
                options.block_bytes = match payload.get("blocksize") {
                    // tgt falls back to 512 for what is no block size.
                    Some(text) => text.parse().ok().filter(|size: &u32| size.is_power_of_two() && *size >= 512),
                    None => None,
                };
                let add = AddLun { lun: Some(number), source, options };
                done(self.add_lun_as(&iqn, &add, storage), &[(ErrorKind::Exists, Code::LunExists)])
            }
            Op::Delete => {
                let (_, iqn) = known.map_err(|_| Code::NoLun)?;
                if number == 0 && !self.tgt_has_lun(&iqn, 0) {
                    return Err(Code::InvalidRequest);
                }
                done(self.remove_lun(&iqn, number), &[(ErrorKind::NotFound, Code::NoLun)])
            }
            Op::Update => {
                let (tid, _) = known.map_err(|_| Code::NoLun)?;
                let load = payload.parameters.iter().any(|(key, value)| key == "online" && value == "1");
                let result = self.update_lun(tid, number, load, |lun| settings::lun(lun, payload));
                done(result, &[(ErrorKind::NotFound, Code::NoLun)])
            }
            Op::Stat => {
                let (tid, iqn) = known?;
                if number != 0 && !self.tgt_has_lun(&iqn, number) {
                    return Err(Code::NoLun);
                }
                Ok(self.tgt_stat_luns(Some(tid), Some(number)))
            }
            _ => Err(Code::Unsupported),
        }
    }

    fn tgt_has_lun(&self, iqn: &str, number: u64) -> bool {
        self.model().find(iqn).is_some_and(|(_, target)| target.luns.contains_key(&number))
    }

    fn tgt_account(&self, op: Op, request: &Request, payload: &Payload) -> Done {
        let user = payload.get("user").unwrap_or_default().to_owned();
        let result = match op {
            Op::Show => {
                let mut names: Vec<String> =
                    self.model().accounts.iter().map(|a| format!("    {}\n", a.name)).collect();
                names.reverse();
                let list = if names.is_empty() { String::new() } else { format!("Account list:\n{}", names.concat()) };
                return Ok(list);
            }
            Op::New => {
                let secret = payload.get("password").unwrap_or_default().to_owned();
                if user.is_empty() || qrvsa_iscsi::config::Secret::new(secret.as_bytes()).is_err() {
                    return Err(Code::InvalidRequest);
                }
                self.change(|model| {
                    if model.account(&user).is_some() {
                        return Err(ApiError::new(ErrorKind::Exists, "the account exists"));
                    }
                    model.accounts.push(Account { name: user, secret });
                    Ok(())
                })
            }
            Op::Delete => self.change(|model| {
                if model.account(&user).is_none() {
                    return Err(ApiError::not_found("no such account"));
                }
                model.forget_account(&user);
                Ok(())
            }),
            Op::Bind | Op::Unbind => return self.tgt_bind(op == Op::Bind, request, &user),
            _ => return Err(Code::Unsupported),
        };
        done(result, &[(ErrorKind::Exists, Code::UserExists), (ErrorKind::NotFound, Code::NoUser)])
    }

    /// Binds an account to a target, or, without one, to discovery; or undoes that.
    fn tgt_bind(&self, bind: bool, request: &Request, user: &str) -> Done {
        let tid = if request.tid < 0 { None } else { Some(self.tgt_iqn(request.tid)?.0) };
        if self.model().account(user).is_none() {
            return Err(Code::NoUser);
        }
        let outgoing = request.outgoing;
        let result = self.change(|model| {
            let (list, single) = match tid {
                None => (&mut model.discovery_incoming, &mut model.discovery_outgoing),
                Some(tid) => match model.targets.get_mut(&tid) {
                    Some(target) => (&mut target.incoming, &mut target.outgoing),
                    None => return Err(ApiError::not_found("no such target")),
                },
            };
            let name = user.to_owned();
            match (bind, outgoing) {
                (true, true) if single.is_some() => return Err(ApiError::busy("there is an outgoing account")),
                (true, true) => *single = Some(name),
                (true, false) if list.contains(&name) => {
                    return Err(ApiError::new(ErrorKind::Exists, "the account is bound"));
                }
                (true, false) => list.push(name),
                (false, true) => {
                    single.take_if(|account| *account == name).ok_or_else(|| ApiError::not_found("not bound"))?;
                }
                (false, false) if !list.contains(&name) => return Err(ApiError::not_found("not bound")),
                (false, false) => list.retain(|account| *account != name),
            }
            Ok(())
        });
        done(
            result,
            &[
                (ErrorKind::Exists, Code::UserExists),
                (ErrorKind::Busy, Code::OutgoingExists),
                (ErrorKind::NotFound, Code::NoUser),
            ],
        )
    }

    fn tgt_portal(&self, op: Op, payload: &Payload) -> Done {
        if op == Op::Show {
            return Ok(self.tgt_show_portals());
        }
        let text = payload.parameters.iter().find(|(key, _)| key == "portal").map(|(_, value)| value.as_str());
        let address = super::portal(text.ok_or(Code::InvalidRequest)?).map_err(|e| code(&e))?;
        match op {
            Op::New => done(
                self.change(|model| {
                    if self.defaults.contains(&address) || model.portals.contains(&address) {
                        return Err(ApiError::new(ErrorKind::Exists, format!("the portal {address} exists")));
                    }
                    model.portals.insert(0, address);
                    Ok(())
                }),
                &[],
            ),
            Op::Delete => done(
                self.change(|model| {
                    let before = model.portals.len();
                    model.portals.retain(|portal| *portal != address);
                    if model.portals.len() == before {
                        return Err(ApiError::not_found(format!("there is no portal {address} that can be removed")));
                    }
                    Ok(())
                }),
                &[],
            ),
            _ => Err(Code::InvalidRequest),
        }
    }

    fn tgt_system(&self, op: Op, payload: &Payload) -> Done {
        match op {
            Op::Show => Ok(self.tgt_show_system()),
            Op::Stat => Ok(self.tgt_stat_luns(None, None)),
            Op::Update => {
                let (name, value) = payload.pairs.first().ok_or(Code::InvalidRequest)?;
                if name == "State" {
                    return self.tgt_system_state(value);
                }
                done(self.change(|model| settings::system(model, name, value)), &[])
            }
            // Targets have to go first, as tgt wants it.
            Op::Delete if !self.model().targets.is_empty() => Err(Code::DriverActive),
            Op::Delete => Ok(NONE.into()),
            _ => Err(Code::InvalidRequest),
        }
    }

    /// Whether new connections are taken, until the daemon ends: scripts close the system while they make targets, and at its end.
    fn tgt_system_state(&self, value: &str) -> Done {
        let open = match value {
            "ready" => true,
            "offline" => false,
            _ => return Err(Code::InvalidRequest),
        };
        self.service.set_open(open);
        tracing::info!(
            "iSCSI: {}",
            if open { "new connections are taken again" } else { "no new connections are taken" }
        );
        Ok(NONE.into())
    }

    fn tgt_delete_connection(&self, request: &Request) -> Done {
        let (_, iqn) = self.tgt_iqn(request.tid)?;
        let sessions = self.sessions(&iqn).map_err(|e| code(&e))?;
        let session = sessions.iter().find(|session| session.sid == request.sid).ok_or(Code::NoSession)?;
        let cid = u16::try_from(request.cid).map_err(|_| Code::NoConnection)?;
        if !session.connections.iter().any(|connection| connection.cid == cid) {
            return Err(Code::NoConnection);
        }
        done(
            self.drop_connection(&iqn, request.sid, cid),
            &[(ErrorKind::NotFound, Code::NoConnection), (ErrorKind::Busy, Code::TargetActive)],
        )
    }
}

/// Storage and options from tgt's words for them.
fn tgt_storage(device_type: u32, payload: &Payload) -> Result<(LunSource, LunOptions, TgtStorage), Code> {
    const DISK: u32 = 0;
    if device_type != DISK {
        // Tapes, changers and the like.
        return Err(Code::Unsupported);
    }
    let word = |key: &str| payload.get(key).unwrap_or_default().to_owned();
    let storage = TgtStorage { bstype: word("bstype"), bsopts: word("bsopts"), bsoflags: word("bsoflags") };
    let mut options = LunOptions::default();
    let source = match (storage.bstype.as_str(), payload.get("path")) {
        ("null", _) => LunSource::Null(NULL_BYTES),
        ("" | "rdwr" | "aio", None | Some("")) => {
            options.removable = true;
            options.offline = true;
            LunSource::Empty
        }
        ("" | "rdwr" | "aio", Some(path)) => {
            if !path.starts_with('/') {
                return Err(Code::InvalidRequest);
            }
            LunSource::File(path.into())
        }
        _ => return Err(Code::InvalidRequest),
    };
    options.write_through = storage.bsoflags.split(':').any(|flag| flag == "sync");
    Ok((source, options, storage))
}

/// Size of tgt's null units: 1 TiB.
const NULL_BYTES: u64 = 1 << 40;
