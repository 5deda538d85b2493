//! The keys that secrets are encrypted with at rest.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::value::Secret;

/// Keys at once: of a rotation, and some of what it left.
const KEYS_MAX: usize = 16;

const ID_MAX: usize = 32;

/// A key with the name under which stored values ask for it.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub bytes: [u8; 32],
}

/// Reads 32 bytes in base64, or several of them separated by commas, each with `id:` before it or without. A key
/// without a name is named by its hash, so that no other is ever taken for it. Nothing stands for no key.
///
/// # Errors
/// Says what is wrong without showing any of it.
pub fn parse(text: &Secret) -> Result<Vec<Key>, &'static str> {
    let entries = text.reveal().split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let keys: Vec<Key> = entries.map(key).collect::<Result<_, _>>()?;
    if keys.len() > KEYS_MAX {
        return Err("has more than 16 keys");
    }
    let twice = |(i, key): (usize, &Key)| keys[..i].iter().any(|before| before.id == key.id);
    if keys.iter().enumerate().any(twice) {
        return Err("has two keys of one name");
    }
    Ok(keys)
}

fn key(entry: &str) -> Result<Key, &'static str> {
    let (id, text) = match entry.split_once(':') {
        Some((id, text)) => (Some(id), text),
        None => (None, entry),
    };
    let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes = bytes.ok_or("must be 32 bytes in base64, as `openssl rand -base64 32` prints them")?;
    let id = match id {
        Some(id) => id.to_owned(),
        None => name(&bytes),
    };
    let is_id = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if id.is_empty() || id.len() > ID_MAX || !id.bytes().all(is_id) {
        return Err("has a key whose name is not 1 to 32 letters, digits, `-` and `_`");
    }
    Ok(Key { id, bytes })
}

/// Eight letters that say nothing of a random key and are another's by chance only.
fn name(bytes: &[u8; 32]) -> String {
    let hash = Sha256::new().chain_update("eventpulse key name").chain_update(bytes).finalize();
    hash[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Vec<String>, &'static str> {
        Ok(parse(&Secret::new(text))?.into_iter().map(|key| key.id).collect())
    }

    #[test]
    fn keys_are_read_and_named() {
        let (one, two) = (BASE64_STANDARD.encode([1; 32]), BASE64_STANDARD.encode([2; 32]));
        assert_eq!(ids(""), Ok(vec![]));
        assert_eq!(ids(&format!("new:{one}, old-1:{two}")), Ok(vec!["new".into(), "old-1".into()]));
        let unnamed = ids(&format!("{one},{two}")).unwrap();
        assert!(unnamed[0] != unnamed[1] && unnamed.iter().all(|id| id.len() == 8), "{unnamed:?}");
        let bad = [
            "x".to_owned(),
            BASE64_STANDARD.encode([1; 31]),
            format!(":{one}"),
            format!("a b:{one}"),
            format!("a:{one},a:{two}"),
            format!("{one},{one}"),
            format!("{one},").repeat(17),
        ];
        for text in bad {
            assert!(ids(&text).is_err(), "{text}");
        }
    }
}
