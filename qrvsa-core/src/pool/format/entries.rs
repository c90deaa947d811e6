//! Items of the pool tree: block groups, row bitmaps, members, datasets, jobs.

use crate::bytes::{Reader, Writer};
use crate::error::Result;
use crate::fail;
use crate::tree::Key;

/// Kinds of the pool tree's items.
pub mod kind {
    /// (0, POOL, 0): pool settings.
    pub const POOL: u8 = 1;
    /// (0, DEVICE, index): a member.
    pub const DEVICE: u8 = 2;
    /// (0, DATASET, id): a dataset.
    pub const DATASET: u8 = 3;
    /// (group, GROUP, 0): a block group. Objects from 2^32 up.
    pub const GROUP: u8 = 4;
    /// (group, BITMAP, chunk): rows in use, 8,192 rows a chunk.
    pub const BITMAP: u8 = 5;
    /// (0, JOB, kind): where a background job stands.
    pub const JOB: u8 = 6;
    /// (dataset, DAMAGE, object): an object that lost data.
    pub const DAMAGE: u8 = 7;
    /// (0, BLOB, n): a small value that a front end keeps in the pool.
    pub const BLOB: u8 = 8;
}

/// Objects of groups in the pool tree: group id plus this.
pub const GROUP_OBJECT_BASE: u64 = 1 << 32;
/// Rows in a bitmap chunk (1 KiB of bits).
pub const CHUNK_ROWS: u32 = 8192;

/// Key of a group's entry.
pub fn group_key(group: u32) -> Key {
    Key::new(GROUP_OBJECT_BASE + u64::from(group), kind::GROUP, 0)
}

/// Key of a bitmap chunk.
pub fn bitmap_key(group: u32, chunk: u32) -> Key {
    Key::new(GROUP_OBJECT_BASE + u64::from(group), kind::BITMAP, u64::from(chunk))
}

/// What a block group is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Class {
    /// Contents of objects.
    Data,
    /// Nodes of dataset trees.
    Meta,
    /// Nodes of the pool tree; named by the uberblock, their bitmap follows from a walk.
    System,
    /// The intent log; named by the uberblock.
    Log,
}

impl Class {
    fn code(self) -> u8 {
        match self {
            Class::Data => 0,
            Class::Meta => 1,
            Class::System => 2,
            Class::Log => 3,
        }
    }

    fn from_code(code: u8) -> Option<Class> {
        [Class::Data, Class::Meta, Class::System, Class::Log].into_iter().find(|c| c.code() == code)
    }
}

/// Where a zone lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ZoneRef {
    /// Member.
    pub device: u16,
    /// Zone on it.
    pub zone: u32,
}

/// One column of a block group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ColumnEntry {
    /// The zone that holds the column.
    pub place: ZoneRef,
    /// The zone does not hold everything yet: it is rebuilt from the other columns.
    pub stale: bool,
    /// During a replacement: the zone that held the column before, still written to.
    pub previous: Option<ZoneRef>,
}

/// A block group as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupEntry {
    /// Group number.
    pub id: u32,
    /// Purpose.
    pub class: Class,
    /// Data columns.
    pub width: u8,
    /// Parity columns (copies when width is 1).
    pub parity: u8,
    /// Rows in use.
    pub used_rows: u32,
    /// `width + parity` columns.
    pub columns: Vec<ColumnEntry>,
}

impl GroupEntry {
    /// Appends the on-disk form.
    pub fn encode(&self, w: &mut Writer) {
        w.u32(self.id).u8(self.class.code()).u8(self.width).u8(self.parity).u8(0).u32(self.used_rows);
        for c in &self.columns {
            w.u16(c.place.device).u32(c.place.zone).u8(u8::from(c.stale)).u8(u8::from(c.previous.is_some()));
            if let Some(p) = c.previous {
                w.u16(p.device).u32(p.zone).u16(0);
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(r: &mut Reader<'_>) -> Result<GroupEntry> {
        let (id, class, width, parity, _) = (r.u32()?, r.u8()?, r.u8()?, r.u8()?, r.u8()?);
        let used_rows = r.u32()?;
        let class = Class::from_code(class).ok_or_else(|| r.bad("unknown class"))?;
        if width == 0 || usize::from(width) + usize::from(parity) > 255 {
            return Err(r.bad("impossible geometry"));
        }
        let mut columns = Vec::with_capacity(usize::from(width) + usize::from(parity));
        for _ in 0..usize::from(width) + usize::from(parity) {
            let place = ZoneRef { device: r.u16()?, zone: r.u32()? };
            let (stale, has_previous) = (r.u8()? != 0, r.u8()? != 0);
            let previous = if has_previous {
                let p = ZoneRef { device: r.u16()?, zone: r.u32()? };
                r.u16()?;
                Some(p)
            } else {
                None
            };
            columns.push(ColumnEntry { place, stale, previous });
        }
        Ok(GroupEntry { id, class, width, parity, used_rows, columns })
    }
}

/// State of a member as the pool remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberState {
    /// In service and complete.
    Online,
    /// Taken out by the administrator.
    Offline,
    /// Taken out after errors.
    Faulted,
    /// In service again, being rebuilt.
    Rebuilding,
    /// Being replaced by another member; its zones move away.
    Leaving,
    /// Gone for good; its number is not used again.
    Removed,
}

impl MemberState {
    /// Whether the pool reads and writes a member in this state.
    pub fn in_service(self) -> bool {
        matches!(self, MemberState::Online | MemberState::Rebuilding | MemberState::Leaving)
    }

    /// All states, by their code.
    const ALL: [MemberState; 6] = [
        MemberState::Online,
        MemberState::Offline,
        MemberState::Faulted,
        MemberState::Rebuilding,
        MemberState::Leaving,
        MemberState::Removed,
    ];

    /// The code on disk.
    pub fn code(self) -> u8 {
        Self::ALL.iter().position(|s| *s == self).map_or(0, |i| i as u8)
    }

    /// From the code on disk.
    pub fn from_code(code: u8) -> Option<MemberState> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// A member as the pool tree stores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceEntry {
    /// Its number.
    pub index: u16,
    /// Its identity, as in its label.
    pub device_id: u128,
    /// State.
    pub state: MemberState,
    /// Bytes used of it.
    pub size_bytes: u64,
    /// Failed reads.
    pub read_errors: u64,
    /// Failed writes and flushes.
    pub write_errors: u64,
    /// Blocks whose checksum was wrong.
    pub checksum_errors: u64,
    /// Units rewritten with the right content.
    pub repaired: u64,
    /// Where it was last seen.
    pub path: String,
    /// Why it is in its state.
    pub message: String,
}

impl DeviceEntry {
    /// The value of its item.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u16(self.index).u8(self.state.code()).u8(0).u32(0).u128(self.device_id).u64(self.size_bytes);
        w.u64(self.read_errors).u64(self.write_errors).u64(self.checksum_errors).u64(self.repaired);
        w.short_bytes(clip(&self.path, 2048)).short_bytes(clip(&self.message, 512));
        w.finish()
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<DeviceEntry> {
        let mut r = Reader::new(bytes, "member entry");
        let (index, state, _, _) = (r.u16()?, r.u8()?, r.u8()?, r.u32()?);
        let state = MemberState::from_code(state).ok_or_else(|| r.bad("unknown state"))?;
        Ok(DeviceEntry {
            index,
            state,
            device_id: r.u128()?,
            size_bytes: r.u64()?,
            read_errors: r.u64()?,
            write_errors: r.u64()?,
            checksum_errors: r.u64()?,
            repaired: r.u64()?,
            path: r.short_string()?,
            message: r.short_string()?,
        })
    }
}

/// At most `max` bytes of a string, cut at a character.
fn clip(s: &str, max: usize) -> &[u8] {
    let mut end = s.len().min(max);
    while !s.is_char_boundary(end) {
        end -= 1;
    }
    &s.as_bytes()[..end]
}

/// What a dataset holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// A filesystem.
    FileSystem,
    /// A block volume.
    Volume,
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Content::FileSystem => 1,
            Content::Volume => 2,
        }
    }
}

/// Flag of a dataset: it is being destroyed, what it still has is freed in the background.
const DATASET_DESTROYING: u8 = 1;
/// Flag of a dataset: room for all of its contents is set aside.
const DATASET_RESERVED: u8 = 2;

/// A dataset as the pool tree stores it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatasetEntry {
    /// Its number.
    pub id: u64,
    /// Kind of content.
    pub content: Content,
    /// It is being destroyed.
    pub destroying: bool,
    /// Room for all of its contents is set aside (volumes).
    pub reserved: bool,
    /// Seed of name hashes.
    pub hash_seed: u64,
    /// No object has this number or a larger one.
    pub next_object: u64,
    /// Creation, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Name within the pool; empty for the pool's own filesystem.
    pub name: String,
    /// Settings.
    pub properties: Vec<(String, String)>,
    /// Root of its tree, as `tree::Root` encodes it.
    pub root: Vec<u8>,
}

impl DatasetEntry {
    /// The value of its item.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let destroying = if self.destroying { DATASET_DESTROYING } else { 0 };
        let flags = destroying | if self.reserved { DATASET_RESERVED } else { 0 };
        w.u64(self.id).u8(self.content.code()).u8(flags).u16(0);
        w.u64(self.hash_seed).u64(self.next_object).i64(self.created_ns);
        w.short_bytes(self.name.as_bytes()).short_bytes(&self.root);
        w.u16(self.properties.len() as u16);
        for (k, v) in &self.properties {
            w.short_bytes(k.as_bytes()).short_bytes(v.as_bytes());
        }
        w.finish()
    }

    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt`; `Unsupported` for content or flags of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<DatasetEntry> {
        let mut r = Reader::new(bytes, "dataset entry");
        let (id, content, flags, _) = (r.u64()?, r.u8()?, r.u8()?, r.u16()?);
        let known = [Content::FileSystem, Content::Volume].into_iter().find(|c| c.code() == content);
        let Some(content) = known.filter(|_| flags & !(DATASET_DESTROYING | DATASET_RESERVED) == 0) else {
            fail!(Unsupported, "dataset {id} is of a kind that this version does not know; use a newer version");
        };
        let (hash_seed, next_object, created_ns) = (r.u64()?, r.u64()?, r.i64()?);
        let (name, root) = (r.short_string()?, r.short_bytes()?.to_vec());
        let count = r.u16()?;
        let mut properties = Vec::new();
        for _ in 0..count {
            properties.push((r.short_string()?, r.short_string()?));
        }
        Ok(DatasetEntry {
            id,
            content,
            destroying: flags & DATASET_DESTROYING != 0,
            reserved: flags & DATASET_RESERVED != 0,
            hash_seed,
            next_object,
            created_ns,
            name,
            properties,
            root,
        })
    }
}
