//! The block allocation table (2.5): what an entry says, and which entry is whose.

use super::metadata::DiskParameters;
use super::problem::Problem;
use super::{BITMAP_BYTES, MIB, SECTORS_PER_CHUNK};

/// An entry as it stands in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BatEntry(pub u64);

/// What an entry says of a payload block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PayloadState {
    /// 0: never written. Reads as zeros; in a differencing file, from the parent.
    NotPresent,
    /// 1: contents undefined; read as zeros here.
    Undefined,
    /// 2: zeros.
    Zero,
    /// 3: discarded; read as zeros here.
    Unmapped,
    /// 6: in the file.
    FullyPresent,
    /// 7: some sectors in the file, as the bitmap says; the rest from the parent.
    PartiallyPresent,
    /// 4, 5: reserved.
    Reserved(u8),
}

/// What an entry says of a sector bitmap block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BitmapState {
    /// 0: not there.
    NotPresent,
    /// 6: in the file.
    Present,
    /// All others.
    Reserved(u8),
}

impl PayloadState {
    /// The three bits.
    pub fn bits(self) -> u64 {
        match self {
            PayloadState::NotPresent => 0,
            PayloadState::Undefined => 1,
            PayloadState::Zero => 2,
            PayloadState::Unmapped => 3,
            PayloadState::FullyPresent => 6,
            PayloadState::PartiallyPresent => 7,
            PayloadState::Reserved(bits) => u64::from(bits) & 7,
        }
    }

    /// Whether the block has space in the file.
    pub fn has_space(self) -> bool {
        matches!(self, PayloadState::FullyPresent | PayloadState::PartiallyPresent)
    }
}

impl BatEntry {
    const STATE: u64 = 7;
    const RESERVED: u64 = 0xf_fff8;

    /// An entry without space in the file: offset 0.
    pub fn without_space(state: PayloadState) -> BatEntry {
        BatEntry(state.bits())
    }

    /// An entry for a payload block at `offset`, a multiple of 1 MiB.
    pub fn payload(state: PayloadState, offset: u64) -> BatEntry {
        debug_assert!(offset.is_multiple_of(MIB));
        BatEntry(offset & !(MIB - 1) | state.bits())
    }

    /// The entry of a sector bitmap block at `offset`, a multiple of 1 MiB.
    pub fn bitmap(offset: u64) -> BatEntry {
        BatEntry::payload(PayloadState::FullyPresent, offset)
    }

    /// File offset of the block, bytes; a multiple of 1 MiB. It means something only for states that have space.
    pub fn offset(self) -> u64 {
        self.0 & !(MIB - 1)
    }

    /// Bits 3 to 19, which must be zero.
    pub fn reserved_bits(self) -> u64 {
        self.0 & Self::RESERVED
    }

    /// What it says of a payload block.
    pub fn payload_state(self) -> PayloadState {
        match self.0 & Self::STATE {
            0 => PayloadState::NotPresent,
            1 => PayloadState::Undefined,
            2 => PayloadState::Zero,
            3 => PayloadState::Unmapped,
            6 => PayloadState::FullyPresent,
            7 => PayloadState::PartiallyPresent,
            4 => PayloadState::Reserved(4),
            _ => PayloadState::Reserved(5),
        }
    }

    /// What it says of a sector bitmap block.
    pub fn bitmap_state(self) -> BitmapState {
        match self.0 & Self::STATE {
            0 => BitmapState::NotPresent,
            6 => BitmapState::Present,
            // Three bits.
            other => BitmapState::Reserved(other as u8),
        }
    }

    /// Everything that is wrong with it alone, as the entry at `slot` of this table. Overlaps are for whoever knows the rest.
    pub fn problems(self, slot: BatSlot, layout: &BatLayout) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.reserved_bits() != 0 {
            problems.push(Problem::minor(0, format!("reserved bits are set ({:#x})", self.reserved_bits())));
        }
        let space = match slot {
            BatSlot::Payload(_) => {
                let state = self.payload_state();
                match state {
                    PayloadState::Reserved(bits) => {
                        problems.push(Problem::fatal(0, format!("state {bits} is reserved")))
                    }
                    PayloadState::PartiallyPresent if !layout.differencing => {
                        problems.push(Problem::fatal(0, "partially present, but there is no parent"));
                    }
                    _ => {}
                }
                state.has_space()
            }
            BatSlot::Bitmap(_) => {
                let state = self.bitmap_state();
                match state {
                    BitmapState::Reserved(bits) => {
                        problems.push(Problem::fatal(0, format!("state {bits} of a sector bitmap is reserved")));
                    }
                    BitmapState::Present if !layout.differencing => {
                        problems.push(Problem::minor(0, "a sector bitmap, but there is no parent"));
                    }
                    _ => {}
                }
                state == BitmapState::Present
            }
            BatSlot::Unused => false,
        };
        if space && self.offset() < MIB {
            problems.push(Problem::fatal(0, "the block lies at offset 0, in the header section"));
        }
        if !space && self.offset() != 0 {
            // Undefined and unmapped blocks may keep their old place (2.5.1.1).
            let kept = matches!(slot, BatSlot::Payload(_))
                && matches!(self.payload_state(), PayloadState::Undefined | PayloadState::Unmapped);
            if !kept {
                problems.push(Problem::minor(0, format!("no space, but an offset ({})", self.offset())));
            }
        }
        problems
    }
}

/// Whose entry it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BatSlot {
    /// Of a payload block.
    Payload(u64),
    /// Of the sector bitmap block of a chunk.
    Bitmap(u64),
    /// Of a payload block beyond the end of the disk, in the last chunk of a differencing file.
    Unused,
}

/// The arithmetic of one disk's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatLayout {
    /// Bytes of a payload block.
    pub block_size: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// Payload blocks of the disk.
    pub payload_blocks: u64,
    /// Payload blocks of a chunk, which shares one sector bitmap block.
    pub chunk_ratio: u64,
    /// Whether there is a parent.
    pub differencing: bool,
}

impl BatLayout {
    /// The table of a disk.
    pub fn new(disk: &DiskParameters) -> BatLayout {
        let block_size = u64::from(disk.block_size.max(1));
        let sector = u64::from(disk.logical_sector);
        BatLayout {
            block_size,
            sector,
            payload_blocks: disk.disk_size.div_ceil(block_size),
            chunk_ratio: (SECTORS_PER_CHUNK * sector / block_size).max(1),
            differencing: disk.has_parent,
        }
    }

    /// Chunks of the disk; the last may be shorter.
    pub fn chunks(&self) -> u64 {
        self.payload_blocks.div_ceil(self.chunk_ratio)
    }

    /// Entries of the table.
    pub fn entries(&self) -> u64 {
        if self.differencing {
            self.chunks() * (self.chunk_ratio + 1)
        } else {
            self.payload_blocks + self.payload_blocks.saturating_sub(1) / self.chunk_ratio
        }
    }

    /// Bytes of the table, without the padding of its region.
    pub fn bytes(&self) -> u64 {
        self.entries() * 8
    }

    /// Index of the entry of payload block `block`.
    pub fn payload_index(&self, block: u64) -> u64 {
        block + self.chunk_of(block)
    }

    /// Index of the entry of the sector bitmap block of `chunk`.
    pub fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio + 1) + self.chunk_ratio
    }

    /// The chunk of payload block `block`.
    pub fn chunk_of(&self, block: u64) -> u64 {
        // A power of two in every disk that is valid; a division takes longer than the rest of a look-up.
        if self.chunk_ratio.is_power_of_two() {
            block >> self.chunk_ratio.trailing_zeros()
        } else {
            block / self.chunk_ratio
        }
    }

    /// Whose entry is at `index`.
    pub fn slot(&self, index: u64) -> BatSlot {
        let (chunk, within) = (index / (self.chunk_ratio + 1), index % (self.chunk_ratio + 1));
        if within == self.chunk_ratio {
            return BatSlot::Bitmap(chunk);
        }
        let block = chunk * self.chunk_ratio + within;
        if block < self.payload_blocks { BatSlot::Payload(block) } else { BatSlot::Unused }
    }

    /// Where in its sector bitmap block the bit of the sector at disk offset `offset` stands: the byte, and the bit in it
    /// (0 is the least significant).
    pub fn bitmap_bit(&self, offset: u64) -> (u64, u32) {
        let sector = offset / self.sector % SECTORS_PER_CHUNK;
        // A remainder of 8.
        (sector / 8 % BITMAP_BYTES, (sector % 8) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhdx::format::Guid;
    use proptest::prelude::*;

    fn layout(disk_size: u64, block_size: u32, sector: u32, has_parent: bool) -> BatLayout {
        BatLayout::new(&DiskParameters {
            block_size,
            leave_allocated: false,
            has_parent,
            disk_size,
            disk_id: Guid::NIL,
            logical_sector: sector,
            physical_sector: 4096,
        })
    }

    #[test]
    fn known_tables() {
        // From images written by Windows: 10 GiB in 32 MiB blocks has 322 entries; 4 MiB over a parent, in 2 MiB blocks, 2049.
        assert_eq!(layout(10 << 30, 32 << 20, 512, false).entries(), 322);
        assert_eq!(layout(4 << 20, 2 << 20, 512, true).entries(), 2049);
        let huge = layout(64 << 40, 1 << 20, 512, false);
        assert_eq!((huge.chunk_ratio, huge.payload_blocks), (4096, 1 << 26));
        assert_eq!(huge.bytes(), ((1 << 26) + (1 << 14) - 1) * 8);
        assert_eq!(layout(1 << 40, 256 << 20, 4096, false).chunk_ratio, 128);
        let whole = layout(128 << 20, 1 << 20, 512, true);
        assert_eq!(whole.slot(127), BatSlot::Payload(127));
        assert_eq!(whole.slot(128), BatSlot::Unused);
        assert_eq!(whole.slot(4096), BatSlot::Bitmap(0));
        assert_eq!(whole.bitmap_bit(0), (0, 0));
        assert_eq!(whole.bitmap_bit(512 * 11), (1, 3));
        assert_eq!(whole.bitmap_bit(512 << 23), (0, 0), "of the next chunk");
    }

    #[test]
    fn entries() {
        let entry = BatEntry::payload(PayloadState::FullyPresent, 5 << 20);
        assert_eq!(
            (entry.0, entry.offset(), entry.payload_state()),
            (5 << 20 | 6, 5 << 20, PayloadState::FullyPresent)
        );
        for bits in 0..8 {
            assert_eq!(BatEntry(bits).payload_state().bits(), bits);
        }
        let plain = layout(1 << 30, 1 << 20, 512, false);
        let of = |bits, slot| BatEntry(bits).problems(slot, &plain).len();
        let payload = BatSlot::Payload(0);
        assert_eq!([of(0, payload), of(2, payload), of(5 << 20 | 6, payload), of(5 << 20 | 3, payload)], [0; 4]);
        assert_eq!([of(4, payload), of(6, payload), of(8, payload), of(1 << 20 | 2, payload)], [1; 4]);
        assert_eq!([of(5 << 20 | 7, payload), of(5 << 20 | 6, BatSlot::Bitmap(0)), of(2, BatSlot::Bitmap(0))], [1; 3]);
        assert_eq!(BatEntry(4).bitmap_state(), BitmapState::Reserved(4));
    }

    proptest! {
        #[test]
        fn every_entry_has_one_owner(
            size in 1u64..DISK, block in 20u32..29, big in any::<bool>(), parent in any::<bool>(), pick in any::<u64>(),
        ) {
            let sector = if big { 4096 } else { 512 };
            let layout = layout(size, 1 << block, sector, parent);
            let block = pick % layout.payload_blocks;
            let index = layout.payload_index(block);
            prop_assert!(index < layout.entries());
            prop_assert_eq!(layout.slot(index), BatSlot::Payload(block));
            let chunk = layout.chunk_of(block);
            let bitmap = layout.bitmap_index(chunk);
            prop_assert_eq!(layout.slot(bitmap), BatSlot::Bitmap(chunk));
            prop_assert!(!parent || bitmap < layout.entries());
            prop_assert!(bitmap > index && bitmap - index <= layout.chunk_ratio);
        }
    }

    const DISK: u64 = 64 << 40;
}
