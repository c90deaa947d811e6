//! The space of a pool: members, groups, and allocation.
//!
//! Only the thread that commits allocates and frees; readers map pointers at any time. Capacity is counted in *usable
//! blocks*: 4 KiB of data stored at the pool's own geometry. A record may cost more of them than it has blocks (a single
//! block takes a whole row of a wide group in the worst case); [`Space::cost_blocks`] is that worst case, and what is
//! reserved is never less than what a commit will take.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

mod hold;

use parking_lot::{Mutex, RwLock};

use super::bitmap::Bitmap;
use super::format::entries::{Class, ColumnEntry, MemberState, ZoneRef};
use super::format::layout;
use super::group::Group;
use super::member::Member;
use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;

pub use hold::Hold;

/// Data and parity columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Geometry {
    /// Data columns, at least 1.
    pub data: u8,
    /// Parity columns.
    pub parity: u8,
}

impl Geometry {
    /// Checks a geometry.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn new(data: u32, parity: u32) -> Result<Geometry> {
        if data == 0 || data + parity > 255 {
            fail!(Invalid, "geometry {data}+{parity} is not possible: data at least 1, data + parity at most 255");
        }
        Ok(Geometry { data: data as u8, parity: parity as u8 })
    }

    /// The default for a number of devices.
    pub fn default_for(devices: usize) -> Geometry {
        let (data, parity) = match devices {
            0 | 1 => (1, 0),
            2 => (1, 1),
            3 => (2, 1),
            4 => (2, 2),
            5 => (3, 2),
            6..=10 => (devices as u8 - 2, 2),
            11..=20 => (devices as u8 - 3, 3),
            _ => (16, 4),
        };
        Geometry { data, parity }
    }

    /// All columns.
    pub fn columns(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }

    /// The widths of groups that a pool of this geometry keeps.
    pub fn widths(self) -> Vec<u8> {
        const STEPS: [u8; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
        let mut widths: Vec<u8> = STEPS.into_iter().filter(|w| *w < self.data).collect();
        widths.push(self.data);
        widths
    }
}

impl std::fmt::Display for Geometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl std::str::FromStr for Geometry {
    type Err = Error;
    fn from_str(s: &str) -> Result<Geometry> {
        let parsed = s.split_once('+').and_then(|(k, m)| Some((k.parse().ok()?, m.parse().ok()?)));
        let Some((k, m)) = parsed else { fail!(Invalid, "'{s}' is not a geometry; write K+M, for example 4+2") };
        Geometry::new(k, m)
    }
}

/// A place for one record.
#[derive(Clone)]
pub struct Extent {
    /// Its group.
    pub group: Arc<Group>,
    /// First row.
    pub row: u32,
    /// Rows.
    pub rows: u32,
}

/// Rows freed but not yet available.
struct Freed {
    txg: u64,
    epoch: u64,
    group: u32,
    row: u32,
    rows: u32,
    /// Data columns of the group, 0 if it is not a data group.
    width: u8,
}

/// A zone that a column was moved away from.
struct Moved {
    /// The transaction group whose commit stores the move.
    txg: u64,
    /// Readers that could still find it have left when this has passed.
    epoch: u64,
    place: ZoneRef,
}

#[derive(Default)]
struct AllocState {
    active: HashMap<(Class, u8), u32>,
    freed: Vec<Freed>,
    /// Usable blocks in `freed`.
    freed_blocks: u64,
    free_zones: Vec<BTreeSet<u32>>,
    /// Zones of dissolved groups, available when the commit that dissolves them is through.
    leaving_zones: Vec<ZoneRef>,
    /// Zones whose columns lie elsewhere by now, which the roots on the devices may still name.
    moved_zones: Vec<Moved>,
    /// Zones given back, whose space a growing device may give back, too.
    discardable: Vec<ZoneRef>,
    /// States that are kept whole while there is room.
    holds: Vec<hold::Kept>,
    next_group: u32,
}

type BitmapLoader = Box<dyn Fn(&Group) -> Result<Bitmap> + Send + Sync>;

/// The space of a pool.
pub struct Space {
    /// Geometry of data.
    pub geometry: Geometry,
    /// log2 of the zone size in bytes.
    pub zone_shift: u8,
    members: RwLock<Vec<Arc<Member>>>,
    groups: RwLock<BTreeMap<u32, Arc<Group>>>,
    alloc: Mutex<AllocState>,
    loader: OnceLock<BitmapLoader>,
    reserved: AtomicI64,
    /// Usable blocks promised to reserved volumes beyond what they have.
    claimed: AtomicU64,
    deleted_groups: Mutex<BTreeSet<u32>>,
    /// Free usable blocks, recomputed after every change of zones; kept current by take and release.
    capacity_cache: Mutex<Option<Capacity>>,
    pub(crate) epoch: crate::pool::epoch::Epochs,
}

/// Capacity in usable blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// All there is for data, the reserve taken off.
    pub total: u64,
    /// Free for data now.
    pub free: u64,
    /// Freed, but not yet available.
    pub pending: u64,
    /// Kept back so that deleting always works.
    pub reserve: u64,
    /// What dirty data may come to with the rests of records that were punched in part: all that is free for data, and half
    /// of what is held back of it. The other half is for trees.
    pub with_rests: u64,
}

impl Space {
    /// A space over members (in index order, no gaps) and stored groups.
    ///
    /// # Errors
    /// `Corrupt` when groups claim a zone twice or one that does not exist.
    pub fn new(geometry: Geometry, zone_shift: u8, members: Vec<Arc<Member>>, groups: Vec<Group>) -> Result<Space> {
        let mut free_zones: Vec<BTreeSet<u32>> = Vec::new();
        for m in &members {
            free_zones.push((0..layout::zone_count(m.size_bytes, zone_shift)).collect());
        }
        let mut map = BTreeMap::new();
        let mut next_group = 0;
        for group in groups {
            for c in group.columns.read().iter() {
                for place in std::iter::once(c.place).chain(c.previous) {
                    let free = free_zones.get_mut(usize::from(place.device)).is_some_and(|z| z.remove(&place.zone));
                    if !free {
                        fail!(
                            Corrupt,
                            "block group {} claims zone {} of device {}, which another group has or which does not exist",
                            group.id,
                            place.zone,
                            place.device
                        );
                    }
                }
            }
            next_group = next_group.max(group.id + 1);
            if let Some(other) = map.insert(group.id, Arc::new(group)) {
                fail!(Corrupt, "block group {} is stored twice", other.id);
            }
        }
        Ok(Space {
            geometry,
            zone_shift,
            members: RwLock::new(members),
            groups: RwLock::new(map),
            alloc: Mutex::new(AllocState { free_zones, next_group, ..AllocState::default() }),
            loader: OnceLock::new(),
            reserved: AtomicI64::new(0),
            claimed: AtomicU64::new(0),
            deleted_groups: Mutex::new(BTreeSet::new()),
            capacity_cache: Mutex::new(None),
            epoch: crate::pool::epoch::Epochs::new(),
        })
    }

    /// Sets where bitmaps of stored groups are read from. Once.
    pub fn set_bitmap_loader(&self, loader: impl Fn(&Group) -> Result<Bitmap> + Send + Sync + 'static) {
        let _ = self.loader.set(Box::new(loader));
    }

    /// Rows in a zone.
    pub fn zone_rows(&self) -> u32 {
        1u32 << (self.zone_shift - 12)
    }

    /// All members, by index.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.members.read().clone()
    }

    /// One member.
    pub fn member(&self, index: u16) -> Option<Arc<Member>> {
        self.members.read().get(usize::from(index)).cloned()
    }

    /// Adds a member with the next index.
    pub fn add_member(&self, member: Arc<Member>) {
        // the order of locks is: allocation, groups, members
        let mut alloc = self.alloc.lock();
        let mut members = self.members.write();
        assert_eq!(usize::from(member.index), members.len());
        alloc.free_zones.push((0..layout::zone_count(member.size_bytes, self.zone_shift)).collect());
        members.push(member);
        drop(members);
        drop(alloc);
        self.capacity_changed();
    }

    /// A group.
    ///
    /// # Errors
    /// `Corrupt` when no such group exists (a pointer names it).
    pub fn group(&self, id: u32) -> Result<Arc<Group>> {
        match self.groups.read().get(&id) {
            Some(group) => Ok(group.clone()),
            None => fail!(Corrupt, "a pointer names block group {id}, which does not exist"),
        }
    }

    /// All groups, by number.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    /// Byte offset on the device of a row of a zone.
    pub fn offset(&self, place: ZoneRef, row: u32) -> u64 {
        layout::zone_offset(place.zone, self.zone_shift) + u64::from(row) * BLOCK_SIZE as u64
    }

    /// Loads the bitmap of a group as it is stored.
    pub(crate) fn load_bitmap(&self, group: &Group) -> Result<Bitmap> {
        match self.loader.get() {
            Some(loader) => loader(group),
            None => fail!(Corrupt, "the bitmap of block group {} is not there", group.id),
        }
    }

    /// Works on a group's rows.
    pub(crate) fn with_rows<T>(&self, group: &Group, work: impl FnOnce(&mut super::group::Rows) -> T) -> Result<T> {
        group.with_rows(|g| self.load_bitmap(g), work)
    }

    // ---- capacity -------------------------------------------------------------------------------------------------

    fn capacity_changed(&self) {
        *self.capacity_cache.lock() = None;
    }

    /// How many groups of `columns` columns the given free zones make.
    fn groups_possible(free: &[u64], columns: u64) -> u64 {
        let (mut low, mut high) = (0, free.iter().sum::<u64>() / columns.max(1));
        while low < high {
            let mid = (low + high).div_ceil(2);
            if free.iter().map(|f| (*f).min(mid)).sum::<u64>() >= mid * columns { low = mid } else { high = mid - 1 }
        }
        low
    }

    /// How many more groups of the pool's own width are sure to find zones, in the way `choose_members` chooses them: on
    /// members in service, and with columns on absent members only when there are too few others.
    fn groups_left(&self, alloc: &AllocState, members: &[Arc<Member>]) -> u64 {
        let free = |m: &Arc<Member>| alloc.free_zones[usize::from(m.index)].len() as u64;
        let (present, absent): (Vec<_>, Vec<_>) =
            members.iter().filter(|m| takes_groups(m)).partition(|m| m.in_service());
        let present: Vec<u64> = present.into_iter().map(free).collect();
        let columns = self.geometry.columns();
        if present.len() >= columns {
            return Self::groups_possible(&present, columns as u64);
        }
        let every: Vec<u64> = present.iter().copied().chain(absent.into_iter().map(free)).collect();
        Self::groups_possible(&every, columns as u64)
            .min(Self::groups_possible(&present, u64::from(self.geometry.data)))
    }

    /// Capacity now.
    pub fn capacity(&self) -> Capacity {
        if let Some(capacity) = *self.capacity_cache.lock() {
            return capacity;
        }
        let alloc = self.alloc.lock();
        let members = self.members.read();
        let rows = u64::from(self.zone_rows());
        let k = u64::from(self.geometry.data);
        let columns = self.geometry.columns() as u64;
        let all: Vec<u64> = members
            .iter()
            .filter(|m| takes_groups(m))
            .map(|m| u64::from(layout::zone_count(m.size_bytes, self.zone_shift)))
            .collect();
        let whole = Self::groups_possible(&all, columns) * rows * k;
        let free_zones = self.groups_left(&alloc, &members) * rows * k;
        let as_usable = |g: &Group, rows: u64| rows * u64::from(g.column_count()) * k / columns;
        let (mut data_free, mut meta_free, mut fixed) = (0u64, 0u64, 0u64);
        for g in self.groups.read().values() {
            match g.class {
                Class::Data => data_free += u64::from(g.free_rows()) * u64::from(g.width),
                Class::Meta => meta_free += as_usable(g, u64::from(g.free_rows())),
                Class::System | Class::Log => fixed += as_usable(g, rows),
            }
        }
        let pending = alloc.freed_blocks;
        let meta_group = (1 + u64::from(self.geometry.parity)) * rows * k / columns;
        let reserve = (whole * 3 / 100).max(2 * meta_group).min(whole / 4);
        // free rows of metadata groups serve as reserve first, but not for the rests of records
        let held_back = reserve - meta_free.min(reserve / 2);
        let free = (free_zones + data_free).saturating_sub(held_back);
        let with_rests = (free_zones + data_free).saturating_sub(held_back / 2);
        let capacity = Capacity { total: whole.saturating_sub(fixed + reserve), free, pending, reserve, with_rests };
        *self.capacity_cache.lock() = Some(capacity);
        capacity
    }

    /// The most usable blocks a record of `blocks` can take.
    pub fn cost_blocks(&self, blocks: u32) -> u64 {
        let k = u64::from(self.geometry.data);
        u64::from(blocks).div_ceil(k) * k
    }

    /// Usable blocks that a tree with `items` items of `bytes` bytes (key and value) takes at most.
    pub fn cost_items(&self, items: u64, bytes: u64) -> u64 {
        let per_node = ((NODE_BYTES / 2) / bytes.max(1)).max(1);
        // the levels above the leaves are small beside them
        let nodes = items.div_ceil(per_node).saturating_add(items / (per_node * 32) + 1);
        let columns = 1 + u64::from(self.geometry.parity);
        let usable =
            (u64::from(NODE_ROWS) * columns * u64::from(self.geometry.data)).div_ceil(self.geometry.columns() as u64);
        nodes.saturating_mul(usable)
    }

    /// Checksums that a pointer to a record of `blocks` blocks has at most.
    pub fn checksums_max(&self, blocks: u32) -> u32 {
        let of = |width: u8| {
            let units = blocks.div_ceil(u32::from(width)).div_ceil(crate::record::pointer::UNIT_BLOCKS);
            units * if width == 1 { 1 } else { u32::from(width) + u32::from(self.geometry.parity) }
        };
        self.widths_by_cost(blocks).into_iter().map(of).max().unwrap_or(1)
    }

    /// Sets how many usable blocks are promised to reserved volumes, beyond what they have.
    pub fn set_claimed(&self, blocks: u64) {
        self.claimed.store(blocks, Ordering::Release);
    }

    /// Usable blocks promised to reserved volumes, beyond what they have.
    pub fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Acquire)
    }

    /// Usable blocks for everybody: free, not reserved for dirty data, not promised.
    pub fn unclaimed(&self) -> u64 {
        self.capacity().free.saturating_sub(self.reserved()).saturating_sub(self.claimed())
    }

    /// Reserves usable blocks.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn reserve(&self, blocks: u64) -> Result<()> {
        self.reserve_above(blocks, self.claimed())
    }

    /// Reserves usable blocks out of what is promised to reserved volumes.
    ///
    /// # Errors
    /// `NoSpace` until freed rows are available again: a commit or two.
    pub fn reserve_claimed(&self, blocks: u64) -> Result<()> {
        self.reserve_above(blocks, 0)
    }

    /// Reserves usable blocks for the rest of a record that is punched in part: also out of the pool's reserve, but not what
    /// trees need to commit.
    ///
    /// # Errors
    /// `NoSpace` until freed rows are available again: a commit or two.
    pub fn reserve_rest(&self, blocks: u64) -> Result<()> {
        self.reserve_within(blocks, self.room_with_rests())
    }

    /// What may be reserved in all, rests of records included: usable blocks.
    pub fn room_with_rests(&self) -> u64 {
        self.capacity().with_rests.saturating_sub(self.claimed())
    }

    fn reserve_above(&self, blocks: u64, kept: u64) -> Result<()> {
        self.reserve_within(blocks, self.capacity().free.saturating_sub(kept))
    }

    fn reserve_within(&self, blocks: u64, room: u64) -> Result<()> {
        let amount = i64::try_from(blocks).unwrap_or(i64::MAX);
        let before = self.reserved.fetch_add(amount, Ordering::AcqRel);
        let free = i64::try_from(room).unwrap_or(i64::MAX);
        if before.saturating_add(amount) > free {
            self.reserved.fetch_sub(amount, Ordering::AcqRel);
            // the next commits may bring what was held
            self.end_holds();
            return Err(Error::new(ErrorKind::NoSpace, "the pool is full"));
        }
        Ok(())
    }

    /// Reserves usable blocks whether they are there or not (replay of acknowledged data; the reserve covers it).
    pub fn reserve_forced(&self, blocks: u64) {
        self.reserved.fetch_add(i64::try_from(blocks).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    /// Gives a reservation back.
    pub fn release(&self, blocks: u64) {
        let amount = i64::try_from(blocks).unwrap_or(i64::MAX);
        let before = self.reserved.fetch_sub(amount, Ordering::AcqRel);
        debug_assert!(before >= amount, "{amount} blocks are released, {before} were reserved");
    }

    /// Usable blocks reserved for dirty data.
    pub fn reserved(&self) -> u64 {
        u64::try_from(self.reserved.load(Ordering::Acquire)).unwrap_or(0)
    }

    // ---- allocation -----------------------------------------------------------------------------------------------

    /// The widths for a record, cheapest first: fewest blocks on devices, then fewest rows.
    fn widths_by_cost(&self, blocks: u32) -> Vec<u8> {
        let parity = u32::from(self.geometry.parity);
        let mut widths = self.geometry.widths();
        // the checksums of all columns have to fit an item
        widths.retain(|w| {
            let units = blocks.div_ceil(u32::from(*w)).div_ceil(crate::record::pointer::UNIT_BLOCKS);
            *w == 1 || units * (u32::from(*w) + parity) <= CHECKSUMS_MAX
        });
        widths.sort_by_key(|w| {
            let rows = blocks.div_ceil(u32::from(*w));
            (rows * (u32::from(*w) + parity), rows)
        });
        widths
    }

    /// Finds a place for a record of `blocks` blocks. Committing thread only.
    ///
    /// # Errors
    /// `NoSpace` when no run of rows is long enough; the caller may try shorter records.
    pub fn allocate(&self, class: Class, blocks: u32) -> Result<Extent> {
        assert!((1..=crate::record::pointer::RECORD_BLOCKS_MAX).contains(&blocks));
        let mut alloc = self.alloc.lock();
        let widths = if class == Class::Data { self.widths_by_cost(blocks) } else { vec![1] };
        let align = if class == Class::Data { 1 } else { NODE_ROWS };
        let rows_of = |w: u8| if class == Class::Data { blocks.div_ceil(u32::from(w)) } else { NODE_ROWS };
        // in the active group of the cheapest width or another of it with much room, in a new one, in any with room
        let first = widths[0];
        if let Some(extent) = self.take_in_width(&mut alloc, class, first, rows_of(first), align, 4)? {
            return Ok(extent);
        }
        if let Some(extent) = self.take_in_new(&mut alloc, class, first, rows_of(first), align, false)? {
            return Ok(extent);
        }
        for width in &widths {
            if let Some(extent) = self.take_in_width(&mut alloc, class, *width, rows_of(*width), align, u32::MAX)? {
                return Ok(extent);
            }
        }
        if class == Class::Data {
            // the pool's own width wastes no zones
            let width = self.geometry.data;
            if let Some(extent) = self.take_in_new(&mut alloc, class, width, rows_of(width), align, true)? {
                return Ok(extent);
            }
        }
        if class == Class::Meta {
            // a node may lie in a data group when metadata groups are used up and zones are rare
            drop(alloc);
            return self.allocate(Class::Data, blocks);
        }
        if class == Class::System
            && let Some(extent) = self.take_in_new(&mut alloc, class, first, rows_of(first), align, true)?
        {
            return Ok(extent);
        }
        for width in widths {
            if let Some(extent) = self.take_in_new(&mut alloc, class, width, rows_of(width), align, true)? {
                return Ok(extent);
            }
        }
        Err(Error::new(ErrorKind::NoSpace, "no free rows for a record"))
    }

    /// Makes a new group of a width and takes rows in it. Zones go first to groups of the pool's own width, which lose
    /// none of the capacity that was promised: others are made only while zones are plenty, or if `last_resort`.
    fn take_in_new(
        &self,
        alloc: &mut AllocState,
        class: Class,
        width: u8,
        rows: u32,
        align: u32,
        last_resort: bool,
    ) -> Result<Option<Extent>> {
        if !(last_resort || class == Class::Data && width == self.geometry.data) {
            let left = self.groups_left(alloc, &self.members.read());
            if left < PLENTY_OF_GROUPS {
                return Ok(None);
            }
        }
        let Some(group) = self.new_group(alloc, class, width) else { return Ok(None) };
        alloc.active.insert((class, width), group.id);
        self.take_in(&group, rows, align)
    }

    /// Looks in the active group of a width, then in others that have at least 1/`share` of their rows free.
    fn take_in_width(
        &self,
        alloc: &mut AllocState,
        class: Class,
        width: u8,
        rows: u32,
        align: u32,
        share: u32,
    ) -> Result<Option<Extent>> {
        let active = alloc.active.get(&(class, width)).copied();
        if let Some(group) = active.and_then(|id| self.groups.read().get(&id).cloned())
            && let Some(extent) = self.take_in(&group, rows, align)?
        {
            return Ok(Some(extent));
        }
        let need = if share == u32::MAX { rows } else { rows.max(self.zone_rows() / share) };
        let mut candidates: Vec<Arc<Group>> = self
            .groups
            .read()
            .values()
            .filter(|g| g.class == class && g.width == width && g.free_rows() >= need && Some(g.id) != active)
            .cloned()
            .collect();
        candidates.sort_by_key(|g| std::cmp::Reverse(g.free_rows()));
        for group in candidates {
            if let Some(extent) = self.take_in(&group, rows, align)? {
                alloc.active.insert((class, width), group.id);
                return Ok(Some(extent));
            }
        }
        Ok(None)
    }

    fn take_in(&self, group: &Arc<Group>, rows: u32, align: u32) -> Result<Option<Extent>> {
        if group.free_rows() < rows || group.frozen.load(Ordering::Acquire) {
            return Ok(None);
        }
        let row = self.with_rows(group, |r| {
            if r.no_run_of <= rows {
                return None;
            }
            let cursor = r.cursor;
            let end = group.zone_rows();
            let row = r
                .busy
                .find_clear_run(cursor, end, rows, align)
                .or_else(|| r.busy.find_clear_run(0, cursor.saturating_add(rows).min(end), rows, align));
            match row {
                Some(row) => {
                    group.take(r, row, rows);
                    r.cursor = row + rows;
                }
                None => r.no_run_of = rows,
            }
            row
        })?;
        if row.is_some() {
            self.capacity_changed();
        }
        Ok(row.map(|row| Extent { group: group.clone(), row, rows }))
    }

    /// Members for a new group's columns: in service first, most free zones first.
    fn choose_members(&self, alloc: &AllocState, count: usize, max_missing: usize) -> Option<Vec<u16>> {
        let members = self.members.read();
        let mut choice: Vec<(bool, usize, u16)> = members
            .iter()
            .filter(|m| takes_groups(m))
            .map(|m| (!m.in_service(), alloc.free_zones[usize::from(m.index)].len(), m.index))
            .filter(|(_, free, _)| *free > 0)
            .collect();
        choice.sort_by_key(|(out, free, index)| (*out, std::cmp::Reverse(*free), *index));
        choice.truncate(count);
        let missing = choice.iter().filter(|(out, _, _)| *out).count();
        (choice.len() == count && missing <= max_missing).then(|| {
            let mut indexes: Vec<u16> = choice.into_iter().map(|(_, _, index)| index).collect();
            indexes.sort_unstable();
            indexes
        })
    }

    fn new_group(&self, alloc: &mut AllocState, class: Class, width: u8) -> Option<Arc<Group>> {
        let count = usize::from(width) + usize::from(self.geometry.parity);
        let chosen = self.choose_members(alloc, count, usize::from(self.geometry.parity))?;
        let id = alloc.next_group;
        alloc.next_group += 1;
        let turn = id as usize % count;
        let mut columns = Vec::with_capacity(count);
        for i in 0..count {
            let device = chosen[(i + turn) % count];
            let zone = alloc.free_zones[usize::from(device)].pop_first().expect("chosen members have a free zone");
            // a zone on a member that is out of service holds nothing until it is rebuilt
            let stale = self.members.read().get(usize::from(device)).is_none_or(|m| !m.in_service());
            columns.push(ColumnEntry { place: ZoneRef { device, zone }, stale, previous: None });
        }
        let group = Arc::new(Group::new(id, class, width, self.geometry.parity, columns, self.zone_rows()));
        self.groups.write().insert(id, group.clone());
        self.capacity_changed();
        Some(group)
    }

    /// Makes a group for the pool's own structures.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn create_own_group(&self, class: Class) -> Result<Arc<Group>> {
        let mut alloc = self.alloc.lock();
        match self.new_group(&mut alloc, class, 1) {
            Some(group) => Ok(group),
            None => fail!(NoSpace, "no zones left for the pool's own structures"),
        }
    }

    /// Makes another group for the pool tree while there are zones, before it is needed: system nodes cannot lie anywhere
    /// else.
    pub fn keep_system_room(&self) {
        let free: u32 = self.groups.read().values().filter(|g| g.class == Class::System).map(|g| g.free_rows()).sum();
        if free < self.zone_rows() / 2 {
            let _ = self.create_own_group(Class::System);
        }
    }

    /// Takes one free zone on a member (for a replacement or a move).
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn take_zone(&self, device: u16) -> Result<u32> {
        let mut alloc = self.alloc.lock();
        let zone = alloc.free_zones.get_mut(usize::from(device)).and_then(BTreeSet::pop_first);
        if zone.is_none() {
            self.end_holds_of(&mut alloc);
        }
        self.capacity_changed();
        zone.ok_or_else(|| Error::new(ErrorKind::NoSpace, format!("no free zone on device {device}")))
    }

    /// Gives a zone back that a column was moved away from, one group after `txg`, the first group whose commit is sure to
    /// store the move: until then an import may go by a root that still takes the column from there.
    pub fn return_zone(&self, txg: u64, place: ZoneRef) {
        self.alloc.lock().moved_zones.push(Moved { txg, epoch: u64::MAX, place });
    }

    /// Frees the rows of a record when `txg` commits; they are handed out again two transaction groups later.
    ///
    /// # Errors
    /// `Corrupt` when they were not in use.
    pub fn free(&self, txg: u64, group_id: u32, row: u32, rows: u32) -> Result<()> {
        let group = self.group(group_id)?;
        if !self.with_rows(&group, |r| group.drop_live(r, row, rows))? {
            fail!(Corrupt, "rows {row}+{rows} of block group {group_id} are freed but were not in use");
        }
        let width = if group.class == Class::Data { group.width } else { 0 };
        let mut alloc = self.alloc.lock();
        alloc.freed_blocks += u64::from(rows) * u64::from(width);
        alloc.freed.push(Freed { txg, epoch: u64::MAX, group: group_id, row, rows, width });
        drop(alloc);
        self.capacity_changed();
        Ok(())
    }

    /// After the commit of `txg`: makes what was freed before it available, and dissolves empty groups.
    ///
    /// # Errors
    /// When a bitmap cannot be read.
    pub fn commit_done(&self, txg: u64) -> Result<()> {
        let unclaimed = self.unclaimed();
        let mut alloc = self.alloc.lock();
        // until now readers could still find these through the previous root
        let epoch = self.epoch.current();
        alloc.freed.iter_mut().filter(|f| f.txg <= txg && f.epoch == u64::MAX).for_each(|f| f.epoch = epoch);
        alloc.moved_zones.iter_mut().filter(|m| m.txg <= txg && m.epoch == u64::MAX).for_each(|m| m.epoch = epoch);
        if self.holds_too_much(&alloc, unclaimed) {
            self.end_holds_of(&mut alloc);
        }
        self.epoch.try_advance();
        let kept_from = alloc.kept_from();
        let (ready, waiting): (Vec<Freed>, Vec<Freed>) = std::mem::take(&mut alloc.freed)
            .into_iter()
            .partition(|f| f.txg < txg && f.txg <= kept_from && f.epoch != u64::MAX && self.epoch.passed(f.epoch));
        alloc.freed = waiting;
        alloc.freed_blocks -= ready.iter().map(|f| u64::from(f.rows) * u64::from(f.width)).sum::<u64>();
        for f in &ready {
            let group = self.group(f.group)?;
            self.with_rows(&group, |r| group.release(r, f.row, f.rows))?;
        }
        let (ready, waiting): (Vec<Moved>, Vec<Moved>) = std::mem::take(&mut alloc.moved_zones)
            .into_iter()
            .partition(|m| m.txg < txg && m.epoch != u64::MAX && self.epoch.passed(m.epoch));
        alloc.moved_zones = waiting;
        alloc.leaving_zones.extend(ready.into_iter().map(|m| m.place));
        for place in std::mem::take(&mut alloc.leaving_zones) {
            alloc.free_zones[usize::from(place.device)].insert(place.zone);
            alloc.discardable.push(place);
        }
        drop(alloc);
        self.capacity_changed();
        Ok(())
    }

    /// Takes up to `most` zones that were given back and are still free, on members of which `wanted` says so: nobody is
    /// given them until [`Space::discarded`]. All others are forgotten.
    pub fn take_discardable(&self, most: usize, wanted: impl Fn(u16) -> bool) -> Vec<ZoneRef> {
        let mut alloc = self.alloc.lock();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(place) = alloc.discardable.pop()
        {
            if wanted(place.device) && alloc.free_zones[usize::from(place.device)].remove(&place.zone) {
                taken.push(place);
            }
        }
        drop(alloc);
        self.capacity_changed();
        taken
    }

    /// The zones taken by [`Space::take_discardable`] are free again.
    pub fn discarded(&self, zones: Vec<ZoneRef>) {
        let mut alloc = self.alloc.lock();
        for place in zones {
            alloc.free_zones[usize::from(place.device)].insert(place.zone);
        }
        drop(alloc);
        self.capacity_changed();
    }

    /// Whether rows wait to become available, those that are held included.
    pub fn has_pending_frees(&self) -> bool {
        !self.alloc.lock().freed.is_empty()
    }

    /// Whether rows become available with the next commits, as it stands.
    pub fn has_coming_frees(&self) -> bool {
        let alloc = self.alloc.lock();
        let kept_from = alloc.kept_from();
        alloc.freed.iter().any(|f| f.txg <= kept_from)
    }

    /// Dissolves data and metadata groups without any row in use; their zones come back when this commit is through.
    /// Called by the committing thread before the pool tree is written.
    pub fn dissolve_idle(&self) {
        let mut alloc = self.alloc.lock();
        let active: BTreeSet<u32> = alloc.active.values().copied().collect();
        let idle: Vec<Arc<Group>> = self
            .groups
            .read()
            .values()
            .filter(|g| matches!(g.class, Class::Data | Class::Meta) && g.is_idle() && !active.contains(&g.id))
            .filter(|g| !g.frozen.load(Ordering::Acquire))
            .cloned()
            .collect();
        for group in idle {
            let Some(_io) = group.io.try_write() else { continue };
            self.groups.write().remove(&group.id);
            self.deleted_groups.lock().insert(group.id);
            for c in group.columns.read().iter() {
                alloc.leaving_zones.extend(std::iter::once(c.place).chain(c.previous));
            }
        }
    }

    /// Groups dissolved since the last call.
    pub fn take_deleted_groups(&self) -> BTreeSet<u32> {
        std::mem::take(&mut *self.deleted_groups.lock())
    }

    /// Zones in use on a member.
    pub fn used_zones(&self, device: u16) -> u64 {
        let Some(m) = self.member(device) else { return 0 };
        let free = self.alloc.lock().free_zones[usize::from(device)].len() as u64;
        u64::from(layout::zone_count(m.size_bytes, self.zone_shift)) - free
    }

    /// Bytes of records on each member, by index.
    pub fn allocated_bytes(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.members.read().len()];
        for g in self.groups.read().values() {
            let rows = if g.class == Class::Log { g.zone_rows() } else { g.used_rows() };
            for c in g.columns.read().iter() {
                if let Some(b) = bytes.get_mut(usize::from(c.place.device)) {
                    *b += u64::from(rows) * BLOCK_SIZE as u64;
                }
            }
        }
        bytes
    }
}

/// Whether new groups may have columns on a member.
fn takes_groups(member: &Arc<Member>) -> bool {
    !matches!(member.state(), MemberState::Removed | MemberState::Leaving)
}

/// Bytes of a tree node.
const NODE_BYTES: u64 = 16 << 10;
/// Most checksums of a pointer: 4 KiB of an item's value.
const CHECKSUMS_MAX: u32 = 512;

/// While zones make at least so many groups of the pool's own width, zones are plenty.
const PLENTY_OF_GROUPS: u64 = 4;

/// Rows a tree node always takes: 16 KiB, so that metadata groups never fragment.
pub const NODE_ROWS: u32 = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::format::entries::DeviceEntry;
    use super::*;

    pub(super) fn entry(size_bytes: u64) -> DeviceEntry {
        DeviceEntry {
            index: 0,
            device_id: 1,
            state: MemberState::Online,
            size_bytes,
            read_errors: 0,
            write_errors: 0,
            checksum_errors: 0,
            repaired: 0,
            path: String::new(),
            message: String::new(),
        }
    }

    #[test]
    fn a_zone_that_was_moved_away_from_is_free_when_no_root_and_no_reader_finds_it() {
        let space = Space::new(Geometry { data: 1, parity: 0 }, 22, Vec::new(), Vec::new()).unwrap();
        space.add_member(Arc::new(Member::new(&entry(64 << 20), None)));
        let all = space.used_zones(0);
        let place = ZoneRef { device: 0, zone: space.take_zone(0).unwrap() };
        let pin = space.epoch.pin();
        // group 4 is being committed, 5 stores the move
        space.return_zone(5, place);
        for txg in 4..8 {
            space.commit_done(txg).unwrap();
            assert_eq!(space.used_zones(0), all + 1, "commit {txg}: somebody reads there");
        }
        drop(pin);
        space.commit_done(8).unwrap();
        assert_eq!(space.used_zones(0), all);

        let place = ZoneRef { device: 0, zone: space.take_zone(0).unwrap() };
        space.return_zone(10, place);
        for txg in [9, 10] {
            space.commit_done(txg).unwrap();
            assert_eq!(space.used_zones(0), all + 1, "commit {txg}: an import may go by a root that names it");
        }
        space.commit_done(11).unwrap();
        assert_eq!(space.used_zones(0), all);
        assert_eq!(space.take_discardable(9, |_| true).len(), 1, "free for good");
    }

    #[test]
    fn adding_a_member_does_not_hold_the_members_while_it_waits_for_the_allocation() {
        let space = Arc::new(Space::new(Geometry { data: 1, parity: 0 }, 22, Vec::new(), Vec::new()).unwrap());
        // as `capacity` and the committing thread do: the allocation first, the members under it
        let alloc = space.alloc.lock();
        let adding = {
            let space = space.clone();
            std::thread::spawn(move || space.add_member(Arc::new(Member::new(&entry(64 << 20), None))))
        };
        std::thread::sleep(Duration::from_millis(200));
        assert!(space.members.try_read().is_some(), "two threads would wait for each other");
        drop(alloc);
        adding.join().unwrap();
        assert_eq!(space.members().len(), 1);
    }
}
