//! The text of a request: `key=value` pairs with commas, or one list of parameters behind `targetOps ` or `portalOps `.

/// The text as its parts. Values hold no commas: the grammar has no way to write them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Pairs before any list of parameters, in their order.
    pub pairs: Vec<(String, String)>,
    /// Parameters of the list, in their order.
    pub parameters: Vec<(String, String)>,
}

/// Keys that begin a pair; a comma before anything else belongs to the value (paths may hold commas).
const KEYS: &[&str] = &[
    "path=",
    "bstype=",
    "bsopts=",
    "bsoflags=",
    "blocksize=",
    "targetname=",
    "initiator-address=",
    "initiator-name=",
    "user=",
    "password=",
    "targetOps ",
    "portalOps ",
];

impl Payload {
    /// Reads the text up to its NUL. What is no pair is left out.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Payload {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
        let mut payload = Payload::default();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            if let Some(list) = rest.strip_prefix("targetOps ").or_else(|| rest.strip_prefix("portalOps ")) {
                payload.parameters.extend(list.split(',').filter_map(pair));
                break;
            }
            let end = rest
                .match_indices(',')
                .map(|(at, _)| at)
                .find(|at| rest.get(at + 1..).is_some_and(|next| KEYS.iter().any(|key| next.starts_with(key))));
            let (first, after) = match end {
                Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..).unwrap_or_default()),
                None => (rest, ""),
            };
            payload.pairs.extend(pair(first));
            rest = after;
        }
        payload
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_tgtadm_writes_it() {
        let p = Payload::parse(b"path=/a,b,bstype=aio,bsopts=o,bsoflags=sync:direct,blocksize=4096\0junk");
        assert_eq!((p.get("path"), p.get("bstype"), p.get("blocksize")), (Some("/a,b"), Some("aio"), Some("4096")));
        let p = Payload::parse(b"targetOps vendor_id=X,product_id=Y Z,\0");
        assert_eq!(p.parameters, [("vendor_id".into(), "X".into()), ("product_id".into(), "Y Z".into())]);
        let p = Payload::parse(b"portalOps portal=[::1]:3260,\0");
        assert_eq!(p.parameters, [("portal".into(), "[::1]:3260".into())]);
        let p = Payload::parse(b"MaxBurstLength=4096\0");
        assert_eq!(p.get("MaxBurstLength"), Some("4096"));
        let p = Payload::parse(b"initiator-address=1.2.3.4,initiator-name=iqn.a\0");
        assert_eq!((p.get("initiator-address"), p.get("initiator-name")), (Some("1.2.3.4"), Some("iqn.a")));
        assert_eq!(Payload::parse(b""), Payload::default());
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Payload::parse(&bytes);
        }
    }
}
