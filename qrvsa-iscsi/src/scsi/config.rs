//! What a logical unit is configured to be. All of it can be changed on a live unit.

/// Peripheral device types (SPC-4 6.4.2) that a unit can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceType {
    /// A direct access block device (SBC).
    #[default]
    Disk,
    /// A storage array controller (SCC-2): has no medium; what tgt shows at LUN 0.
    Controller,
}

impl DeviceType {
    /// The code in INQUIRY data.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Disk => 0x00,
            Self::Controller => 0x0c,
        }
    }
}

/// A mode page that the administrator has set (tgt's `mode_page`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModePage {
    /// Page code, below 3Fh.
    pub page: u8,
    /// Subpage code, 0 for none.
    pub subpage: u8,
    /// The page without its header of 2 bytes (4 with a subpage).
    pub bytes: Vec<u8>,
}

/// Configuration of one logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// What kind of device it is.
    pub device_type: DeviceType,
    /// Logical block length in bytes: a power of two from 512 to 65536. Cannot change while the unit lives.
    pub block_bytes: u32,
    /// Logical blocks per physical block, as an exponent of two (tgt's `lbppbe`), at most 15.
    pub physical_block_exponent: u8,
    /// Lowest aligned LBA (tgt's `la_lba`), below 16384.
    pub lowest_aligned: u16,
    /// T10 vendor identification, at most 8 characters.
    pub vendor: String,
    /// Product identification, at most 16 characters.
    pub product: String,
    /// Product revision, at most 4 characters.
    pub revision: String,
    /// Identifier in the designators of the unit (tgt's `scsi_id`); empty: derived from the backing, else from target and LUN.
    pub scsi_id: String,
    /// Unit serial number (tgt's `scsi_sn`); empty: derived like the identifier.
    pub serial: String,
    /// Sense data in descriptor format unless an initiator says otherwise (tgt's `sense_format`).
    pub descriptor_sense: bool,
    /// The medium can be ejected and loaded.
    pub removable: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// `false`: not ready.
    pub online: bool,
    /// Whether it shows thin provisioning; `None`: as the backing says.
    pub thin: Option<bool>,
    /// Write cache: with `false` every write is durable when it completes.
    pub write_cache: bool,
    /// Optimal transfer length granularity in blocks; 0: from the backing.
    pub optimal_granularity: u16,
    /// Optimal transfer length in blocks; 0: none is told.
    pub optimal_blocks: u32,
    /// Medium rotation rate (SBC-3 6.6.2): 0 not told, 1 no rotation, else per minute.
    pub rotation_rate: u16,
    /// Percent of space in use at which initiators are told that it gets short; 0 for never.
    pub soft_threshold_percent: u8,
    /// Mode pages in the place of the built-in ones.
    pub mode_pages: Vec<ModePage>,
}

impl Default for UnitConfig {
    fn default() -> Self {
        Self {
            device_type: DeviceType::Disk,
            block_bytes: 512,
            physical_block_exponent: 3,
            lowest_aligned: 0,
            vendor: "QRVSA".into(),
            product: "VIRTUAL-DISK".into(),
            revision: "0001".into(),
            scsi_id: String::new(),
            serial: String::new(),
            descriptor_sense: false,
            removable: false,
            read_only: false,
            online: true,
            thin: None,
            write_cache: true,
            optimal_granularity: 0,
            optimal_blocks: 0,
            rotation_rate: 1,
            soft_threshold_percent: 80,
            mode_pages: Vec::new(),
        }
    }
}

impl UnitConfig {
    /// The controller that stands at LUN 0 when nothing else does.
    #[must_use]
    pub fn controller() -> Self {
        Self { device_type: DeviceType::Controller, product: "Controller".into(), ..Self::default() }
    }

    /// Whether the values fit their fields.
    ///
    /// # Errors
    /// What does not, in words.
    pub fn check(&self) -> Result<(), String> {
        if !self.block_bytes.is_power_of_two() || !(512..=65536).contains(&self.block_bytes) {
            return Err(format!(
                "a block size of {} is not possible; use a power of two from 512 to 65536",
                self.block_bytes
            ));
        }
        if self.physical_block_exponent > 15 {
            return Err(format!(
                "a physical block exponent of {} is not possible; use 0 to 15",
                self.physical_block_exponent
            ));
        }
        if self.lowest_aligned >= 1 << 14 {
            return Err(format!("a lowest aligned block of {} is not possible; use 0 to 16383", self.lowest_aligned));
        }
        for (text, limit, what) in [
            (&self.vendor, 8, "vendor"),
            (&self.product, 16, "product"),
            (&self.revision, 4, "revision"),
            (&self.serial, 36, "serial number"),
            (&self.scsi_id, 36, "identifier"),
        ] {
            if text.len() > limit || !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                return Err(format!("{what} '{text}' is not possible; use at most {limit} characters of ASCII"));
            }
        }
        if self.soft_threshold_percent > 100 {
            return Err(format!("a threshold of {} % is not possible; use 0 to 100", self.soft_threshold_percent));
        }
        for page in &self.mode_pages {
            if page.page > 0x3e || page.subpage == 0xff || page.bytes.len() > 252 {
                return Err(format!("mode page {:#x}/{:#x}: no such page", page.page, page.subpage));
            }
        }
        Ok(())
    }
}
