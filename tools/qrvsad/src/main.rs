//! `qrvsad`: arguments, allocator, log and signals around [`qrvsad::run`].

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use qrvsad::config::{Config, DEFAULT_CONFIG, DEFAULT_STATE};
use qrvsad::engine::Engine;
use qrvsad::engine_core::CoreEngine;
use qrvsad::mounter::Mounter;
use qrvsad::mounter_fuse::FuseMounter;
use qrvsad::run::{Claims, run, signals};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Memory goes back to the system within a second or two after a burst: a NAS has other uses for it. The background
/// thread does that work, not the threads that serve. Few arenas, for few cores and little fragmentation.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: Option<&'static std::ffi::c_char> =
    // SAFETY: the pointer is to the first byte of a NUL-terminated constant that lives for ever.
    Some(unsafe { &*c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:8".as_ptr() });

/// The QRVSA daemon: holds the pools, serves the mounts and answers `qrvsa`.
///
/// It keeps in its state directory which pools are imported and what is mounted where, and restores both at its start.
/// SIGTERM unmounts everything, detaching after a few seconds what is in use, and exports the pools cleanly; a second SIGTERM
/// detaches at once and gives the exports a few seconds; a third ends on the spot. What was acknowledged is safe in any case.
///
/// Exit codes: 0 stopped on request; 1 could not start or serve; 2 usage or configuration.
#[derive(Parser)]
#[command(name = "qrvsad", version)]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "S", env = qrvsa_api::SOCKET_ENV, default_value = qrvsa_api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Where to keep the state.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    state: PathBuf,
    /// The configuration file; the default one may be missing.
    #[arg(long, value_name = "F", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The socket and the state are the owner's alone, from the moment they are made.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let config = match Config::load(&args.config, args.config.as_os_str() != DEFAULT_CONFIG) {
        Ok(config) => config,
        Err(problem) => return fail(2, &problem),
    };
    if let Err(problem) = start_log(&config.log_level) {
        return fail(2, &problem);
    }
    raise_descriptor_limit();
    match serve(args, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => fail(1, &problem),
    }
}

/// Sessions, mounts and devices take more descriptors than a shell's 1,024: as many as are allowed, within reason.
fn raise_descriptor_limit() {
    const WANTED: nix::sys::resource::rlim_t = 1 << 20;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(WANTED).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(e) = raised {
        tracing::warn!("the limit of open files stays as it is: {e}");
    }
}

fn fail(code: u8, problem: &str) -> ExitCode {
    eprintln!("qrvsad: {problem}");
    ExitCode::from(code)
}

/// The log goes to standard error; `QRVSA_LOG` overrides the configured filter. Under systemd the journal has the time.
fn start_log(level: &str) -> Result<(), String> {
    let level = std::env::var("QRVSA_LOG").ok().filter(|v| !v.is_empty()).unwrap_or_else(|| level.to_owned());
    let filter = EnvFilter::try_new(&level).map_err(|e| format!("log level {level:?} is not valid: {e}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    Ok(())
}

fn serve(args: Args, config: Config) -> Result<(), String> {
    // What can be made without touching the world comes first: a daemon that cannot serve leaves no trace.
    let engine = engine(&config);
    let mounter = mounter();
    if config.low_latency {
        qrvsa_fuse::latency::keep_low();
    }
    let claims = Claims::take(&args.state, &args.socket)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("qrvsad-http")
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start threads: {e}"))?;
    let result = runtime.block_on(async {
        let stop = signals().map_err(|e| format!("cannot handle signals: {e}"))?;
        tracing::info!("qrvsad {} listens on {}", env!("CARGO_PKG_VERSION"), args.socket.display());
        run(claims, engine, mounter, config, stop).await
    });
    // Threads that hang on a device must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The storage engine.
fn engine(config: &Config) -> Arc<dyn Engine> {
    Arc::new(CoreEngine::new(config.engine_options()))
}

/// The FUSE front end.
fn mounter() -> Arc<dyn Mounter> {
    Arc::new(FuseMounter)
}
