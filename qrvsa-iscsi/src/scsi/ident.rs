//! Names of a unit that stay over restarts.

use super::config::UnitConfig;
use crate::backing::Backing;

/// Identifiers of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ident {
    /// NAA designator, format 6 (SPC-4 7.8.6.6.5). No company has given us an OUI: this one is of the locally administered kind, which
    /// the IEEE assigns to nobody.
    pub naa: [u8; 16],
    /// Unit serial number.
    pub serial: String,
    /// What follows the vendor in the T10 vendor designator.
    pub vendor_specific: String,
}

const LOCAL_OUI: u64 = 0x02_5152;

impl Ident {
    pub(crate) fn new(target: &str, lun: u64, config: &UnitConfig, backing: &dyn Backing) -> Self {
        let own = backing.identity().map(|id| id.to_be_bytes());
        let number = match (config.scsi_id.is_empty(), own) {
            (false, _) => fnv(config.scsi_id.as_bytes()),
            (true, Some(id)) => fnv(&id),
            (true, None) => fnv(format!("{target}\n{lun}").as_bytes()),
        };
        let low = u64::try_from(number & u128::from(u64::MAX)).unwrap_or(0);
        let high = u64::try_from(number >> 64).unwrap_or(0);
        let front = 6 << 60 | LOCAL_OUI << 36 | high & ((1 << 36) - 1);
        let mut naa = [0; 16];
        naa[..8].copy_from_slice(&front.to_be_bytes());
        naa[8..].copy_from_slice(&low.to_be_bytes());
        let serial = if config.serial.is_empty() { format!("{low:016x}") } else { config.serial.clone() };
        let vendor_specific = if config.scsi_id.is_empty() { serial.clone() } else { config.scsi_id.clone() };
        Self { naa, serial, vendor_specific }
    }
}

/// FNV-1a of 128 bits.
fn fnv(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, b| {
        (hash ^ u128::from(*b)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::NullBacking;

    #[test]
    fn identifiers_are_stable_and_differ() {
        let backing = NullBacking::new(1 << 20);
        let config = UnitConfig::default();
        let a = Ident::new("iqn.2026-01.test:a", 1, &config, &backing);
        assert_eq!(a, Ident::new("iqn.2026-01.test:a", 1, &config, &backing));
        assert_eq!(a.naa[..3], [0x60, 0x25, 0x15]);
        assert_ne!(a.naa, Ident::new("iqn.2026-01.test:a", 2, &config, &backing).naa);
        let named = UnitConfig { scsi_id: "disk7".into(), ..config };
        let b = Ident::new("iqn.2026-01.test:a", 1, &named, &backing);
        assert_eq!(b.naa, Ident::new("iqn.2026-01.test:b", 9, &named, &backing).naa);
        assert_eq!(b.vendor_specific, "disk7");
    }
}
