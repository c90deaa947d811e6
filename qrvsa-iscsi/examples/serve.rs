//! A target without a pool: `serve LISTEN[,LISTEN...] IQN LUN=BACKING...`, where BACKING is `null:BYTES`, `memory:BYTES`, or
//! `file:PATH`, each with options after commas: `thin`, `readonly`, `removable`, `block=BYTES`,
//! `exponent=N` (logical blocks in a physical one). Everybody may log in.
//! Prints the addresses it listens on, one a line, and serves until its input ends.

use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_iscsi::backing::{Backing, FileBacking, FileOptions, MemoryBacking, NullBacking};
use qrvsa_iscsi::config::{AclRule, Limits, TargetConfig};
use qrvsa_iscsi::scsi::{TargetUnits, UnitConfig};
use qrvsa_iscsi::service::Service;

type Unit = (u64, UnitConfig, Arc<dyn Backing>);

fn unit(text: &str) -> Result<Unit, Box<dyn Error>> {
    let (number, rest) = text.split_once('=').ok_or("LUN=BACKING is wanted")?;
    let mut words = rest.split(',');
    let (kind, value) = words.next().and_then(|w| w.split_once(':')).ok_or("KIND:VALUE is wanted")?;
    let mut config = UnitConfig::default();
    let mut options = FileOptions::default();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("thin", _) => {
                config.thin = Some(true);
                options.thin = true;
            }
            ("readonly", _) => {
                config.read_only = true;
                options.read_only = true;
            }
            ("removable", _) => config.removable = true,
            ("block", bytes) => config.block_bytes = bytes.parse()?,
            ("exponent", power) => config.physical_block_exponent = power.parse()?,
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let backing: Arc<dyn Backing> = match kind {
        "null" => Arc::new(NullBacking::new(value.parse()?)),
        "memory" => Arc::new(MemoryBacking::new(value.parse()?)),
        "file" => Arc::new(FileBacking::open(Path::new(value), options)?),
        _ => return Err(format!("unknown backing {kind}").into()),
    };
    Ok((number.parse()?, config, backing))
}

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, name, units @ ..] = arguments.as_slice() else {
        return Err("usage: serve LISTEN[,LISTEN...] IQN LUN=BACKING...".into());
    };
    let service = Service::new(Limits::default());
    for (tag, address) in (1..).zip(listen.split(',')) {
        println!("{}", service.add_portal(address.parse()?, tag)?);
    }
    std::io::stdout().flush()?;
    let server = Arc::new(TargetUnits::new(name, None));
    server.set_ports((1..).take(listen.split(',').count()).collect());
    for text in units {
        let (number, config, backing) = unit(text)?;
        server.add_unit(number, config, backing)?;
    }
    let mut config = TargetConfig::new(name.parse()?, 1);
    config.acl.push(AclRule::All);
    service.create_target(config, server)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    service.shutdown(Duration::from_secs(1));
    Ok(())
}
