//! What each command asks the daemon, and what it prints and exits with.

use std::path::Path;

use clap::CommandFactory;
use qrvsa_api::{
    ApiError, Client, CreateFs, CreatePool, CreateVolume, ErrorKind, Failure, ImportPools, JobInfo, JobKind, JobState,
    MountInfo, MountRequest, MountState, ReplaceDevice, ResizeVolume, ScrubAction,
};
use serde::Serialize;

use crate::args::{Cli, Command, Debug, Fs, Generate, Job, Mount, Pool, Volume};
use crate::ui::{ask_terminal, clean, print, print_json, tell, with_confirmation};
use crate::{helper, paths, progress, show, target};

/// The exit code for problems that were found and not repaired.
const FOUND_PROBLEMS: u8 = 4;

/// Runs a command; the exit code of one that worked.
pub fn run(cli: &Cli) -> Result<u8, ApiError> {
    if let Command::Generate(what) = &cli.command {
        return generate(what);
    }
    if let Command::Vhdx(command) = &cli.command {
        return crate::vhdx::run(command, &cli.socket, cli.json);
    }
    let session = Session { client: Client::new(&cli.socket)?, json: cli.json };
    match &cli.command {
        Command::Pool(command) => session.pool(command),
        Command::Fs(command) => session.fs(command),
        Command::Volume(command) => session.volume(command),
        Command::Target(command) => target::run(&session, command),
        Command::Mount(mount) => session.mount(mount),
        Command::Umount { dir, lazy } => session.umount(dir, *lazy),
        Command::Check { pool, deep } => {
            let job = session.client.check(pool, *deep)?;
            session.wait(job)
        }
        Command::Job(Job::List) => session.show(&session.client.jobs()?, |jobs| show::jobs(jobs)),
        Command::Job(Job::Wait { id }) => session.wait(session.client.job(id)?),
        Command::Debug(command) => session.debug(command),
        Command::Generate(_) | Command::Vhdx(_) => Ok(0),
    }
}

/// A connection to the daemon, and how answers are printed.
pub struct Session {
    client: Client,
    json: bool,
}

impl Session {
    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Prints an answer, as JSON or as text.
    pub fn show<T: Serialize>(&self, answer: &T, text: impl FnOnce(&T) -> String) -> Result<u8, ApiError> {
        if self.json {
            print_json(answer);
        } else {
            print(&text(answer));
        }
        Ok(0)
    }

    /// Prints that something without an answer is done.
    pub fn done(&self, text: &str) -> Result<u8, ApiError> {
        self.show(&serde_json::json!({}), |_| format!("{text}\n"))
    }

    /// Waits for a job and prints its end.
    fn wait(&self, job: JobInfo) -> Result<u8, ApiError> {
        let job = progress::wait(&self.client, job)?;
        self.show(&job, |job| match (job.kind, &job.report) {
            (JobKind::Check, Some(_)) => show::check(job),
            _ => format!("{}\n", show::job_end(job)),
        })?;
        Ok(job_exit_code(&job))
    }

    /// Prints that a job runs.
    fn started(&self, job: &JobInfo) -> Result<u8, ApiError> {
        self.show(job, |job| format!("{} of {} {} (job {})\n", job.kind, clean(&job.pool), job.state, clean(&job.id)))
    }

    fn pool(&self, command: &Pool) -> Result<u8, ApiError> {
        let client = &self.client;
        match command {
            Pool::Create { name, geometry, force, devices } => {
                let devices = devices.iter().map(paths::device_spec).collect::<Result<Vec<_>, _>>()?;
                let mut request = CreatePool { name: name.clone(), geometry: *geometry, devices, force: *force };
                let status = with_confirmation(*force, &mut ask_terminal, |force| {
                    request.force = force;
                    client.create_pool(&request)
                })?;
                self.show(&status, |status| {
                    let usable = qrvsa_api::units::format_bytes(status.summary.usable_bytes);
                    format!("pool {name} created: {}, {usable} usable\n", clean(&status.summary.geometry))
                })
            }
            Pool::List => self.show(&client.pools()?, |pools| show::pools(pools)),
            Pool::Status { name: Some(name) } => self.show(&client.pool(name)?, show::status),
            Pool::Status { name: None } => {
                let pools = client.pools()?;
                if pools.is_empty() && !self.json {
                    return self.show(&pools, |pools| show::pools(pools));
                }
                let all = pools.iter().map(|pool| client.pool(&pool.name)).collect::<Result<Vec<_>, _>>()?;
                self.show(&all, |all| all.iter().map(show::status).collect::<Vec<_>>().join("\n"))
            }
            Pool::Destroy { name, force } => {
                with_confirmation(*force, &mut ask_terminal, |force| client.destroy_pool(name, force))?;
                self.done(&format!("pool {name} destroyed"))
            }
            Pool::Export { name, force } => {
                client.export_pool(name, *force)?;
                self.done(&format!("pool {name} exported"))
            }
            Pool::Import { search, force, name } => {
                let search = search.iter().map(|dir| paths::absolute(dir)).collect::<Result<Vec<_>, _>>()?;
                let mut request = ImportPools { search, name: name.clone(), force: *force };
                let result = with_confirmation(*force, &mut ask_terminal, |force| {
                    request.force = force;
                    client.import(&request)
                })?;
                self.show(&result, |result| {
                    if result.imported.is_empty() && result.failed.is_empty() {
                        return "no pools found that are not imported; --search DIR names another place\n".to_owned();
                    }
                    let lines =
                        result.imported.iter().map(|p| format!("pool {} imported: {}\n", clean(&p.name), p.state));
                    lines.collect()
                })?;
                for failure in &result.failed {
                    tell(&format!("qrvsa: {}: {}", clean(&failure.name), failure.error));
                }
                // The pool that was asked for is here: what else has its name is told of, and that is all.
                let done = |failure: &Failure| {
                    name.as_ref() == Some(&failure.name) && result.imported.iter().any(|pool| pool.name == failure.name)
                };
                let failed = result.failed.iter().find(|failure| !done(failure));
                Ok(failed.map_or(0, |failure| failure.error.kind.exit_code()))
            }
            Pool::Offline { name, device } => {
                let status = client.offline(name, &paths::device_ref(device)?)?;
                self.show(&status, show::status)
            }
            Pool::Online { name, device } => {
                let status = client.online(name, &paths::device_ref(device)?)?;
                self.show(&status, show::status)
            }
            Pool::Replace { name, old, new, wait, force } => {
                let (old, new) = (paths::device_ref(old)?, paths::device_spec(new)?);
                let mut request = ReplaceDevice { old, new, force: *force };
                let job = with_confirmation(*force, &mut ask_terminal, |force| {
                    request.force = force;
                    client.replace(name, &request)
                })?;
                if *wait { self.wait(job) } else { self.started(&job) }
            }
            Pool::Scrub { name, mode } if mode.wait => {
                let running = client.pool(name)?.scrub.filter(|job| job.state == JobState::Running);
                let job = match running {
                    Some(job) => job,
                    None => client.scrub(name, ScrubAction::Start)?,
                };
                self.wait(job)
            }
            Pool::Scrub { name, mode } => {
                let action = match (mode.pause, mode.stop) {
                    (true, _) => ScrubAction::Pause,
                    (_, true) => ScrubAction::Stop,
                    _ => ScrubAction::Start,
                };
                self.started(&client.scrub(name, action)?)
            }
            Pool::Sync { name } => {
                client.sync_pool(name)?;
                self.done(&format!("pool {name} synced"))
            }
        }
    }

    /// The pool that is named, or all.
    fn pools(&self, named: Option<&String>) -> Result<Vec<String>, ApiError> {
        if let Some(pool) = named {
            return Ok(vec![pool.clone()]);
        }
        // Pools that are not imported have nothing to show; `pool list` shows them.
        let imported = |pool: &qrvsa_api::PoolSummary| pool.state != qrvsa_api::PoolState::Faulted;
        Ok(self.client.pools()?.into_iter().filter(imported).map(|pool| pool.name).collect())
    }

    fn volume(&self, command: &Volume) -> Result<u8, ApiError> {
        let client = &self.client;
        match command {
            Volume::Create { name, size, block_size, record_size, reserve, .. } => {
                let request = CreateVolume {
                    name: name.fs.clone().unwrap_or_default(),
                    size_bytes: *size,
                    // The parser takes two values.
                    block_bytes: if block_size == "4096" { 4096 } else { 512 },
                    record_bytes: *record_size,
                    reserve: *reserve,
                };
                let info = client.create_volume(&name.pool, &request)?;
                self.show(&info, |info| {
                    let size = qrvsa_api::units::format_bytes(info.size_bytes);
                    format!(
                        "volume {} created: {size}, {}\n",
                        info.name,
                        if info.reserve { "reserved" } else { "thin" }
                    )
                })
            }
            Volume::List { pool } => {
                let pools = self.pools(pool.as_ref())?;
                let lists = pools.iter().map(|pool| client.volumes(pool)).collect::<Result<Vec<_>, _>>()?;
                self.show(&lists.concat(), |list| show::volumes(list))
            }
            Volume::Show { name } => self.show(&client.volume(name)?, show::volume),
            Volume::Resize { name, size, force } => {
                let info = client.resize_volume(name, &ResizeVolume { size_bytes: *size, force: *force })?;
                self.show(&info, |info| {
                    format!("volume {} resized: {}\n", info.name, qrvsa_api::units::format_bytes(info.size_bytes))
                })
            }
            Volume::Destroy { name, force } => {
                with_confirmation(*force, &mut ask_terminal, |force| client.destroy_volume(name, force))?;
                self.done(&format!("volume {name} destroyed"))
            }
        }
    }

    fn fs(&self, command: &Fs) -> Result<u8, ApiError> {
        let client = &self.client;
        match command {
            Fs::Create { name, properties } => {
                let Some(fs) = &name.fs else {
                    return Err(ApiError::invalid(format!("pool {name} has its root filesystem already"))
                        .with_hint(format!("name another: {name}/FS")));
                };
                let request = CreateFs { name: fs.clone(), properties: properties.clone() };
                let info = client.create_fs(&name.pool, &request)?;
                self.show(&info, |info| format!("filesystem {} created\n", info.name))
            }
            Fs::List { pool } => {
                let lists = self
                    .pools(pool.as_ref())?
                    .iter()
                    .map(|pool| client.filesystems(pool))
                    .collect::<Result<Vec<_>, _>>()?;
                self.show(&lists.concat(), |list| show::filesystems(list))
            }
            Fs::Destroy { name, force } => {
                with_confirmation(*force, &mut ask_terminal, |force| client.destroy_fs(name, force))?;
                self.done(&format!("filesystem {name} destroyed"))
            }
            Fs::Get { name, key } => {
                let properties = client.properties(name)?;
                match key {
                    None => self.show(&properties, |list| show::properties(list)),
                    Some(key) => {
                        let property = properties.iter().find(|p| p.key == *key).ok_or_else(|| {
                            ApiError::not_found(format!("filesystem {name} has no property {key:?}"))
                                .with_hint(format!("`qrvsa fs get {name}` shows all"))
                        })?;
                        self.show(property, |p| format!("{}\n", clean(&p.value)))
                    }
                }
            }
            Fs::Set { name, property } => {
                let properties = client.set_property(name, property)?;
                self.show(&properties, |_| format!("{name}: {}={}\n", property.key, property.value))
            }
        }
    }

    fn mount(&self, mount: &Mount) -> Result<u8, ApiError> {
        let (Some(source), Some(dir)) = (&mount.source, &mount.dir) else {
            return self.show(&self.client.mounts()?, |mounts| show::mounts(mounts));
        };
        let request = MountRequest {
            source: source.clone(),
            mountpoint: paths::directory(dir)?,
            options: helper::split_options(&mount.options)?,
        };
        let info = self.client.mount(&request)?;
        self.show(&info, |info| {
            format!("{} mounted on {}\n", info.source, clean(&info.mountpoint.display().to_string()))
        })
    }

    fn umount(&self, dir: &Path, lazy: bool) -> Result<u8, ApiError> {
        let (canonical, absolute) = (paths::directory(dir)?, paths::absolute(dir)?);
        let mounts = self.client.mounts()?;
        let there = |m: &&MountInfo| m.mountpoint == canonical || m.mountpoint == absolute;
        let found = mounts.iter().rev().filter(there).min_by_key(|m| m.state == MountState::Detached);
        let mount = found.ok_or_else(|| {
            ApiError::not_found(format!("nothing of QRVSA is mounted on {}", dir.display()))
                .with_hint("`qrvsa mount` shows what is mounted")
        })?;
        self.client.unmount(mount.id, lazy)?;
        let at = clean(&mount.mountpoint.display().to_string());
        if lazy && self.client.mounts()?.iter().any(|m| m.id == mount.id) {
            return self.done(&format!("{at} detached; its filesystem serves those who still use it"));
        }
        self.done(&format!("{at} unmounted"))
    }

    fn debug(&self, command: &Debug) -> Result<u8, ApiError> {
        let path = |device: &Path| paths::absolute(device).map(|path| path.display().to_string());
        match command {
            Debug::Labels { device } => self.show(&self.client.labels(&path(device)?)?, |list| show::debug(list)),
            Debug::Uberblocks { device } => {
                self.show(&self.client.uberblocks(&path(device)?)?, |list| show::debug(list))
            }
            Debug::Locate { volume: Some(volume), .. } => {
                self.show(&self.client.volume_fragments(volume)?, |list| show::fragments(list))
            }
            Debug::Locate { file, .. } => {
                let file = file.as_deref().unwrap_or(Path::new("."));
                let (mount, ino) = paths::mounted_file(&self.client, file)?;
                self.show(&self.client.fragments(&mount.source, ino)?, |list| show::fragments(list))
            }
        }
    }
}

/// What a job that was waited for means for the exit code.
fn job_exit_code(job: &JobInfo) -> u8 {
    let problems = match (job.kind, &job.report) {
        (JobKind::Check, Some(report)) => !report.problems.is_empty(),
        (JobKind::Check, None) => false,
        // What it could not read in one place it has computed from others, or counted as lost.
        (JobKind::Rebuild, _) => job.lost > 0,
        _ => job.errors_found > job.repaired,
    };
    match (job.state, job.kind) {
        (JobState::Finished, _) if problems => FOUND_PROBLEMS,
        // "Consistent" needs a report that says so.
        (JobState::Finished, JobKind::Check) if job.report.is_none() => 1,
        (JobState::Finished, _) => 0,
        _ => 1,
    }
}

fn generate(what: &Generate) -> Result<u8, ApiError> {
    let failed =
        |e: std::io::Error, what: &str| ApiError::new(ErrorKind::Internal, format!("cannot write {what}: {e}"));
    match what {
        Generate::Man { dir } => {
            std::fs::create_dir_all(dir).map_err(|e| failed(e, "the directory"))?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(|e| failed(e, "the man pages"))?;
        }
        Generate::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "qrvsa", &mut text);
            print(&String::from_utf8_lossy(&text));
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_jobs() {
        for (json, code) in [
            (r#"{"kind":"check","state":"finished","report":{"problems":[]}}"#, 0),
            (r#"{"kind":"check","state":"finished","report":{"problems":["x"]}}"#, 4),
            (r#"{"kind":"check","state":"finished"}"#, 1),
            (r#"{"kind":"check","state":"failed"}"#, 1),
            (r#"{"kind":"check","state":"stopped"}"#, 1),
            (r#"{"kind":"scrub","state":"finished","errors_found":3,"repaired":3}"#, 0),
            (r#"{"kind":"scrub","state":"finished","errors_found":3,"repaired":2}"#, 4),
            (r#"{"kind":"rebuild","state":"finished","errors_found":3}"#, 0),
            (r#"{"kind":"rebuild","state":"finished","errors_found":3,"lost":1}"#, 4),
            (r#"{"kind":"rebuild","state":"failed"}"#, 1),
            (r#"{"kind":"rebuild","state":"from_the_future"}"#, 1),
        ] {
            let mut value: serde_json::Value = serde_json::from_str(json).unwrap();
            value["id"] = "j".into();
            value["pool"] = "tank".into();
            assert_eq!(job_exit_code(&serde_json::from_value(value).unwrap()), code, "{json}");
        }
    }
}
