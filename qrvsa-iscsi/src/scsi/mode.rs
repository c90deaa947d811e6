//! Mode pages, MODE SENSE and MODE SELECT (SPC-4 6.11 to 6.14, SBC-3 6.5). One set of pages for all initiators.

use super::attention::Attention;
use super::bytes::{be16, be64, byte, len16};
use super::call::{Call, Outcome, Refusal};
use super::config::UnitConfig;
use super::sense::Sense;

/// One page in its four kinds; the bytes are those after the header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    page: u8,
    subpage: u8,
    current: Vec<u8>,
    default: Vec<u8>,
    saved: Vec<u8>,
    changeable: Vec<u8>,
}

impl Page {
    /// Bytes that tell what the target measures. They may have another value by the time that the page is written back, which is not held
    /// against the initiator.
    fn measured(&self) -> std::ops::Range<usize> {
        let tells = (self.page, self.subpage) == PROVISIONING && self.current.len() == THRESHOLD_COUNT.end;
        if tells { THRESHOLD_COUNT } else { 0..0 }
    }
}

/// The pages of a unit.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    list: Vec<Page>,
}

const CACHING: (u8, u8) = (0x08, 0);
const CONTROL: (u8, u8) = (0x0a, 0);
const PROVISIONING: (u8, u8) = (0x1c, 2);
/// Where the provisioning page has the count of its threshold.
const THRESHOLD_COUNT: std::ops::Range<usize> = 16..20;
const WCE: (usize, u8) = (0, 0x04);
const D_SENSE: (usize, u8) = (0, 0x04);
const SWP: (usize, u8) = (2, 0x08);

impl Pages {
    pub(crate) fn new(config: &UnitConfig) -> Self {
        let mut list = Vec::new();
        let mut add = |page, subpage, length, values: &[(usize, u8)], changeable: &[(usize, u8)]| {
            let fill = |pairs: &[(usize, u8)]| {
                let mut bytes = vec![0u8; length];
                for (at, value) in pairs {
                    bytes[*at] |= value;
                }
                bytes
            };
            let bytes = fill(values);
            list.push(Page {
                page,
                subpage,
                current: bytes.clone(),
                default: bytes.clone(),
                saved: bytes,
                changeable: fill(changeable),
            });
        };
        let when = |on: bool, (at, bit): (usize, u8)| (at, if on { bit } else { 0 });
        if config.device_type == super::config::DeviceType::Disk {
            add(0x01, 0, 10, &[(0, 0xc0)], &[]);
            add(0x02, 0, 14, &[], &[]);
            add(CACHING.0, 0, 18, &[when(config.write_cache, WCE)], &[WCE]);
        }
        let reorder = (1, 0x10);
        let busy_timeout = [(6, 0xff), (7, 0xff)];
        let control = [when(config.descriptor_sense, D_SENSE), reorder, busy_timeout[0], busy_timeout[1]];
        add(CONTROL.0, 0, 10, &control, &[D_SENSE, SWP]);
        add(CONTROL.0, 1, 28, &[], &[]);
        if config.device_type == super::config::DeviceType::Disk {
            add(0x1c, 0, 10, &[], &[]);
            // one soft threshold, which arms when the used resources (02h) grow beyond it
            let enabled = if config.soft_threshold_percent == 0 { 0 } else { 0x80 };
            add(PROVISIONING.0, PROVISIONING.1, 20, &[(12, enabled | 1), (13, 2)], &[]);
        }
        let mut pages = Self { list };
        for own in &config.mode_pages {
            pages.put_configured(own.page, own.subpage, &own.bytes);
        }
        pages.list.sort_by_key(|p| (p.page, p.subpage));
        pages
    }

    fn put_configured(&mut self, page: u8, subpage: u8, bytes: &[u8]) {
        let changeable = match self.list.iter().position(|p| (p.page, p.subpage) == (page, subpage)) {
            Some(at) => self.list.remove(at).changeable,
            None => Vec::new(),
        };
        let changeable = (0..bytes.len()).map(|i| byte(&changeable, i)).collect();
        let bytes = bytes.to_vec();
        let page = Page { page, subpage, current: bytes.clone(), default: bytes.clone(), saved: bytes, changeable };
        self.list.push(page);
    }

    fn flag(&self, page: (u8, u8), (at, bit): (usize, u8)) -> bool {
        self.list.iter().find(|p| (p.page, p.subpage) == page).is_some_and(|p| byte(&p.current, at) & bit != 0)
    }

    /// The write cache is on.
    pub(crate) fn write_cache(&self) -> bool {
        self.flag(CACHING, WCE)
    }

    /// Sense data is in descriptor format.
    pub(crate) fn descriptor_sense(&self) -> bool {
        self.flag(CONTROL, D_SENSE)
    }

    /// Software write protection is on.
    pub(crate) fn write_protect(&self) -> bool {
        self.flag(CONTROL, SWP)
    }

    /// Back to the saved values.
    pub(crate) fn reset(&mut self) {
        for page in &mut self.list {
            page.current.clone_from(&page.saved);
        }
    }

    /// Saved values as bytes: page, subpage, length, bytes; of pages that can change.
    pub(crate) fn export_saved(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for page in self.list.iter().filter(|p| p.changeable.iter().any(|b| *b != 0)) {
            out.extend([page.page, page.subpage, u8::try_from(page.saved.len()).unwrap_or(0)]);
            out.extend(&page.saved);
        }
        out
    }

    /// Takes saved values back; only changeable bits, whatever the bytes are.
    pub(crate) fn import_saved(&mut self, mut bytes: &[u8]) {
        while let [page, subpage, length, rest @ ..] = bytes {
            let Some((values, after)) = rest.split_at_checked(usize::from(*length)) else { return };
            bytes = after;
            if let Some(own) = self.list.iter_mut().find(|p| (p.page, p.subpage) == (*page, *subpage)) {
                for (at, mask) in own.changeable.iter().enumerate() {
                    let value = own.saved[at] & !mask | byte(values, at) & mask;
                    own.saved[at] = value;
                    own.current[at] = value;
                }
            }
        }
    }

    /// The bits that changed in the configuration become current; all others stay as initiators have set them.
    pub(crate) fn reconfigured(&self, before: &UnitConfig, now: &UnitConfig) -> Self {
        let (old, mut new) = (Self::new(before), Self::new(now));
        for page in &mut new.list {
            let find =
                |pages: &Self| pages.list.iter().find(|p| (p.page, p.subpage) == (page.page, page.subpage)).cloned();
            let (Some(default), Some(mine)) = (find(&old), find(self)) else { continue };
            if default.default == page.default {
                page.current = mine.current;
                page.saved = mine.saved;
            }
        }
        new
    }

    /// Whether a current value differs.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        self.list.len() != other.list.len() || self.list.iter().zip(&other.list).any(|(a, b)| a.current != b.current)
    }

    fn encode(page: &Page, control: u8, savable: bool, out: &mut Vec<u8>) {
        let bytes = match control {
            1 => &page.changeable,
            2 => &page.default,
            3 => &page.saved,
            _ => &page.current,
        };
        let ps = if savable { 0x80 } else { 0 };
        if page.subpage == 0 {
            out.extend([ps | page.page, u8::try_from(bytes.len()).unwrap_or(0)]);
        } else {
            out.extend([ps | 0x40 | page.page, page.subpage]);
            out.extend(len16(bytes.len()));
        }
        out.extend(bytes);
    }
}

/// MODE SENSE of 6 and 10 bytes.
pub(crate) fn mode_sense(call: &Call) -> Outcome {
    let ten = call.cdb[0] == 0x5a;
    let (no_descriptor, long) = (call.cdb[1] & 0x08 != 0, ten && call.cdb[1] & 0x10 != 0);
    let (control, code, subcode) = (call.cdb[2] >> 6, call.cdb[2] & 0x3f, call.cdb[3]);
    let savable = call.units.persistence().is_some();
    if control == 3 && !savable {
        return Err(Sense::new(5, 0x39, 0x00).into());
    }
    let mut pages = Vec::new();
    {
        let all = call.unit.pages.read();
        let wanted = all.list.iter().filter(|p| match (code, subcode) {
            (0x3f, 0) => p.subpage == 0,
            (0x3f, 0xff) => true,
            (_, 0xff) => p.page == code,
            _ => (p.page, p.subpage) == (code, subcode),
        });
        for page in wanted {
            if page.measured().is_empty() {
                Pages::encode(page, control, savable, &mut pages);
            } else if call.shape.thin {
                let from = pages.len() + 4;
                Pages::encode(page, control, savable, &mut pages);
                if control != 1 {
                    let count = super::thin::threshold_sets(call.shape).to_be_bytes();
                    pages[from + THRESHOLD_COUNT.start..from + THRESHOLD_COUNT.end].copy_from_slice(&count);
                }
            }
        }
    }
    if pages.is_empty() {
        return Err(Sense::cdb_field(if subcode == 0 { 2 } else { 3 }, if subcode == 0 { 5 } else { 7 }).into());
    }
    let mut descriptor = Vec::new();
    if call.shape.is_disk() && !no_descriptor {
        let blocks = call.unit.notice_size(call.shape);
        if long {
            descriptor.extend(blocks.to_be_bytes());
            descriptor.extend([0; 4]);
            descriptor.extend(call.shape.block.to_be_bytes());
        } else {
            descriptor.extend(super::bytes::clamp32(blocks).to_be_bytes());
            descriptor.extend(call.shape.block.to_be_bytes());
            descriptor[4] = 0;
        }
    }
    let specific = if call.shape.is_disk() { 0x10 | if call.write_protected() { 0x80 } else { 0 } } else { 0 };
    let mut out = Vec::new();
    if ten {
        out.extend(len16(6 + descriptor.len() + pages.len()));
        out.extend([0, specific, u8::from(long), 0]);
        out.extend(len16(descriptor.len()));
    } else {
        let length = u8::try_from(3 + descriptor.len() + pages.len()).unwrap_or(u8::MAX);
        out.extend([length, 0, specific, u8::try_from(descriptor.len()).unwrap_or(0)]);
    }
    out.extend(descriptor);
    out.extend(pages);
    out.truncate(if ten { usize::from(be16(call.cdb, 7)) } else { usize::from(call.cdb[4]) });
    Ok(out)
}

/// MODE SELECT of 6 and 10 bytes: all of it is checked before any of it counts.
pub(crate) fn mode_select(call: &Call) -> Outcome {
    let ten = call.cdb[0] == 0x55;
    let (formatted, save) = (call.cdb[1] & 0x10 != 0, call.cdb[1] & 0x01 != 0);
    let length = if ten { usize::from(be16(call.cdb, 7)) } else { usize::from(call.cdb[4]) };
    let list = call.data.get(..length).unwrap_or(call.data);
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if !formatted {
        return Err(Sense::cdb_field(1, 4).into());
    }
    if save && call.units.persistence().is_none() {
        return Err(Sense::cdb_field(1, 0).into());
    }
    let header = if ten { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    let long = ten && byte(list, 4) & 1 != 0;
    let descriptor_bytes = if ten { usize::from(be16(list, 6)) } else { usize::from(byte(list, 3)) };
    let Some(descriptor) = list.get(header..header + descriptor_bytes) else {
        return Err(Sense::PARAMETER_LENGTH.into());
    };
    check_descriptor(call, descriptor, long, header)?;

    let mut pages = call.unit.pages.write();
    let mut changed = pages.clone();
    let mut at = header + descriptor_bytes;
    while at < list.len() {
        at = apply(&mut changed, list, at)?;
    }
    if save {
        for page in &mut changed.list {
            page.saved.clone_from(&page.current);
        }
        call.units.save_pages(call.unit.lun, &changed).map_err(|text| {
            tracing::error!("mode pages of LUN {} cannot be saved: {text}", call.unit.lun);
            Refusal::from(Sense::new(4, 0x44, 0x00))
        })?;
    }
    let differs = changed.differs(&pages);
    let cache_goes = pages.write_cache() && !changed.write_cache();
    *pages = changed;
    drop(pages);
    if cache_goes {
        call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    }
    if differs {
        call.unit.attend_others(Attention::MODE_CHANGED, call.nexus);
    }
    Ok(Vec::new())
}

fn check_descriptor(call: &Call, descriptor: &[u8], long: bool, at: usize) -> Result<(), Refusal> {
    let (blocks, block, all) = match (descriptor.len(), long) {
        (0, _) => return Ok(()),
        (8, false) => (u64::from(super::bytes::be32(descriptor, 0)), super::bytes::be24(descriptor, 5), 0xffff_ffff),
        (16, true) => (be64(descriptor, 0), super::bytes::be32(descriptor, 12), u64::MAX),
        _ => return Err(Sense::parameter_field(at.saturating_sub(1)).into()),
    };
    let capacity = call.shape.blocks();
    if block != call.shape.block || (blocks != 0 && blocks != all && blocks != capacity) {
        return Err(Sense::parameter_field(at).into());
    }
    Ok(())
}

/// Applies the page at `at`; answers where the next one begins.
fn apply(pages: &mut Pages, list: &[u8], at: usize) -> Result<usize, Refusal> {
    let sub = byte(list, at) & 0x40 != 0;
    let header = if sub { 4 } else { 2 };
    if list.len() < at + header {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    let code = byte(list, at) & 0x3f;
    let (subcode, length) =
        if sub { (byte(list, at + 1), usize::from(be16(list, at + 2))) } else { (0, usize::from(byte(list, at + 1))) };
    let Some(page) = pages.list.iter_mut().find(|p| (p.page, p.subpage) == (code, subcode)) else {
        return Err(Sense::parameter_field(at).into());
    };
    if length != page.current.len() {
        return Err(Sense::parameter_field(at + header - 1).into());
    }
    let Some(values) = list.get(at + header..at + header + length) else {
        return Err(Sense::PARAMETER_LENGTH.into());
    };
    let measured = page.measured();
    for (i, value) in values.iter().enumerate() {
        if measured.contains(&i) {
            continue;
        }
        if (value ^ page.current[i]) & !page.changeable[i] != 0 {
            return Err(Sense::parameter_field(at + header + i).into());
        }
    }
    for (i, (own, value)) in page.current.iter_mut().zip(values).enumerate() {
        if !measured.contains(&i) {
            *own = *value;
        }
    }
    Ok(at + header + length)
}
