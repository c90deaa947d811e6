//! Reading and writing little-endian structures, with every length checked.

use crate::error::{Error, ErrorKind, Result};

/// Appends little-endian fields to a buffer.
#[derive(Default, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Appends one byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes.push(v);
        self
    }

    /// Appends two bytes.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn i64(&mut self, v: i64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Appends sixteen bytes.
    pub fn u128(&mut self, v: u128) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(v);
        self
    }

    /// Appends a length (u16) and the bytes.
    ///
    /// # Panics
    /// If there are more than 65,535 bytes; callers bound their strings far below.
    pub fn short_bytes(&mut self, v: &[u8]) -> &mut Self {
        let len = u16::try_from(v.len()).expect("short byte strings are bounded by their callers");
        self.u16(len).raw(v)
    }

    /// The vector itself, for encoders that append to one.
    pub fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The finished bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Takes little-endian fields from untrusted bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which are a `what` (for the error message).
    pub fn new(bytes: &'a [u8], what: &'static str) -> Reader<'a> {
        Reader { rest: bytes, what }
    }

    /// An error about this structure.
    pub fn bad(&self, detail: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{}: {detail}", self.what))
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// `Corrupt` when there are fewer; so for all readers.
    pub fn raw(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.rest.split_at_checked(n) else { return Err(self.bad("cut short")) };
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.raw(N)?;
        Ok(bytes.try_into().expect("raw(N) returns N bytes"))
    }

    /// One byte.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Sixteen bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A length (u16) and that many bytes.
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn short_bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?;
        self.raw(usize::from(len))
    }

    /// A UTF-8 string with its length (u16).
    #[allow(clippy::missing_errors_doc, reason = "see raw")]
    pub fn short_string(&mut self) -> Result<String> {
        let bytes = self.short_bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.bad("a string is not UTF-8"))
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Skips what is left of the structure.
    pub fn advance(&mut self, n: usize) -> Result<()> {
        self.raw(n).map(|_| ())
    }
}
