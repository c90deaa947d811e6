//! Settings that tgt changes one by one, by name.

use qrvsa_api::ApiError;
use qrvsa_iscsi::config::Parameters;
use qrvsa_iscsi::scsi::ModePage;
use qrvsa_tgt::payload::Payload;

use super::super::luns::mode_page;
use super::super::model::{Lun, Model, Target};

type Result = std::result::Result<(), ApiError>;

fn unknown(name: &str) -> ApiError {
    ApiError::invalid(format!("there is no setting {name:?}"))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> std::result::Result<T, ApiError> {
    value.trim().parse().map_err(|_| ApiError::invalid(format!("{name} takes a number, not {value:?}")))
}

fn flag(name: &str, value: &str) -> std::result::Result<bool, ApiError> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(ApiError::invalid(format!("{name} takes 0 or 1, not {value:?}"))),
    }
}

/// `--mode target --op update`.
pub fn target(target: &mut Target, name: &str, value: &str) -> Result {
    match name {
        "state" => {
            target.offline = match value {
                "offline" => true,
                "ready" => false,
                _ => return Err(ApiError::invalid(format!("state takes ready or offline, not {value:?}"))),
            };
        }
        "nop_interval" => target.nop_interval_s = Some(number::<u32>(name, value)?.into()),
        "nop_count" => target.nop_count = Some(number(name, value)?),
        "RedirectAddress" => value.clone_into(&mut target.redirect.address),
        "RedirectPort" => value.clone_into(&mut target.redirect.port),
        "RedirectReason" => {
            target.redirect.permanent = match value {
                "Temporary" => Some(false),
                "Permanent" => Some(true),
                _ => return Err(ApiError::invalid(format!("{name} takes Temporary or Permanent, not {value:?}"))),
            };
        }
        _ => {
            Parameters::default().set(name, value).map_err(ApiError::invalid)?;
            target.parameters.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(())
}

/// The caching mode page.
const CACHING: (u8, u8) = (8, 0);

/// Whether every write is to be durable: the flags of the storage say so, or its caching mode page. Neither takes back the other's word.
fn write_through(lun: &Lun) -> bool {
    // bit 2 of the first byte is the write cache
    let cached = |flags: &u8| flags & 4 != 0;
    let pages = lun.options.mode_pages.iter().filter_map(|text| mode_page(text).ok());
    let uncached = |page: ModePage| (page.page, page.subpage) == CACHING && !page.bytes.first().is_none_or(cached);
    lun.tgt.bsoflags.split(':').any(|flag| flag == "sync") || pages.into_iter().any(uncached)
}

/// `--mode logicalunit --op update`.
pub fn lun(lun: &mut Lun, payload: &Payload) -> Result {
    if payload.parameters.is_empty() {
        return Err(ApiError::invalid("no parameters"));
    }
    for (name, value) in &payload.parameters {
        let text = || Some(value.clone());
        let o = &mut lun.options;
        match name.as_str() {
            "scsi_id" => o.scsi_id = text(),
            "scsi_sn" => o.serial = text(),
            "vendor_id" => o.vendor = text(),
            "product_id" => o.product = text(),
            "product_rev" => o.revision = text(),
            "sense_format" => o.descriptor_sense = flag(name, value)?,
            "lbppbe" => o.physical_block_exponent = Some(number(name, value)?),
            "la_lba" => o.lowest_aligned = Some(number(name, value)?),
            "optimal_xfer_gran" => o.optimal_granularity = Some(number(name, value)?),
            "optimal_xfer_len" => o.optimal_blocks = Some(number(name, value)?),
            "removable" => o.removable = flag(name, value)?,
            "readonly" => o.read_only = flag(name, value)?,
            "online" => o.offline = !flag(name, value)?,
            "thin_provisioning" => o.thin = Some(flag(name, value)?),
            "rotation_rate" => o.rotation_rate = Some(number(name, value)?),
            "mode_page" => {
                let page = mode_page(value)?;
                o.mode_pages
                    .retain(|old| mode_page(old).is_ok_and(|old| (old.page, old.subpage) != (page.page, page.subpage)));
                o.mode_pages.push(value.clone());
                if (page.page, page.subpage) == CACHING {
                    lun.options.write_through = write_through(lun);
                }
            }
            "path" => {
                lun.source = qrvsa_api::LunSource::File(value.into());
                lun.options.offline = false;
            }
            "bsopts" => value.clone_into(&mut lun.tgt.bsopts),
            "bsoflags" => {
                value.clone_into(&mut lun.tgt.bsoflags);
                lun.options.write_through = write_through(lun);
            }
            _ => return Err(unknown(name)),
        }
    }
    Ok(())
}

/// `--mode sys --op update`. These have no meaning here; they are noted, so that they are shown as they were set.
pub fn system(model: &mut Model, name: &str, value: &str) -> Result {
    let fits = match name {
        "debug" => matches!(value, "on" | "off"),
        // There is no iSNS here: it can be off only.
        "iSNS" | "iSNSAccessControl" => value == "Off",
        "iSNSServerIP" => value.parse::<std::net::IpAddr>().is_ok(),
        "iSNSServerPort" => value.parse::<u16>().is_ok(),
        _ => false,
    };
    if !fits {
        return Err(ApiError::invalid(format!("{name} cannot be set to {value:?}")));
    }
    model.system.insert(name.to_owned(), value.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use qrvsa_api::LunSource;

    #[test]
    fn write_through_holds_as_long_as_one_setting_wants_it() {
        let mut unit = Lun {
            source: LunSource::Null(1 << 30),
            options: qrvsa_api::LunOptions::default(),
            tgt: super::super::super::model::TgtStorage::default(),
            inside: None,
        };
        let mut set = |text: &str| {
            lun(&mut unit, &Payload::parse(format!("targetOps {text}").as_bytes())).unwrap();
            unit.options.write_through
        };
        let page = |flags: u8| format!("mode_page=8:0:18:{flags}:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0:0");
        assert!(set("bsoflags=sync"));
        assert!(set(&page(4)), "the page has a cache, the flags still have none");
        assert!(set(&page(0)));
        assert!(set("bsoflags=direct"), "the flags have a cache, the page still has none");
        assert!(!set(&page(4)));
        assert!(!set("vendor_id=ACME"));
    }
}
