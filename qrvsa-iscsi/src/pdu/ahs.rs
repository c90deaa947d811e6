//! Additional header segments of SCSI commands (RFC 7143 11.2.2).

/// What a command's additional header segments say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additional {
    /// Bytes of the CDB behind the first 16.
    pub extended_cdb: Vec<u8>,
    /// Expected length of the read part of a bidirectional command, bytes.
    pub read_bytes: Option<u32>,
}

/// Reads additional header segments. `None`: they are malformed.
#[must_use]
pub fn parse(mut bytes: &[u8]) -> Option<Additional> {
    let mut found = Additional::default();
    while let Some((&[high, low, kind], rest)) = bytes.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let content = rest.get(..length)?;
        match kind & 0x3f {
            1 if found.extended_cdb.is_empty() => found.extended_cdb = content.get(1..)?.to_vec(),
            2 if found.read_bytes.is_none() => {
                let (word, after) = content.get(1..)?.split_first_chunk::<4>()?;
                if !after.is_empty() {
                    return None;
                }
                found.read_bytes = Some(u32::from_be_bytes(*word));
            }
            _ => return None,
        }
        bytes = bytes.get(super::padded(length.checked_add(3)?)..)?;
    }
    bytes.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds() {
        let mut bytes = vec![0, 5, 2, 0, 0, 0, 16, 0];
        bytes.extend([0, 17, 1, 0]);
        bytes.extend(1..=16);
        let found = parse(&bytes).unwrap();
        assert_eq!(found.read_bytes, Some(4096));
        assert_eq!(found.extended_cdb, (1..=16).collect::<Vec<u8>>());
        assert_eq!(parse(&[]).unwrap(), Additional::default());
        for bad in [&[0, 5, 2, 0][..], &[0, 0, 1, 0], &[0, 1, 9, 0], &[0, 9, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[1, 2]] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn total(bytes in proptest::collection::vec(0..8u8, 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
