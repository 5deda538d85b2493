//! Secrets at rest: `enc:v1:<key id>:<base64 of nonce and ciphertext>`, AES-256-GCM bound to the webhook whose secret it
//! is, so that a value which was copied to another row does not open there. What is stored without that form is plain.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::{config::keys, model::WebhookId};

/// Nothing that we make as a secret begins like this.
const ANY_VERSION: &str = "enc:";
const PREFIX: &str = "enc:v1:";

/// Encrypts with its first key and decrypts with all. Without any, secrets are stored as they are.
#[derive(Clone, Default)]
pub struct Seal(Arc<[Key]>);

struct Key {
    id: String,
    key: LessSafeKey,
}

/// Why a stored secret cannot be read: the name of the key that it asks for, which is missing or another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub key: String,
}

impl Seal {
    pub fn new(keys: &[keys::Key]) -> Seal {
        let key = |key: &keys::Key| {
            let unbound = UnboundKey::new(&AES_256_GCM, &key.bytes).expect("the key has the cipher's length");
            Key { id: key.id.clone(), key: LessSafeKey::new(unbound) }
        };
        Seal(keys.iter().map(key).collect())
    }

    /// The name of the key that encrypts.
    pub(super) fn first(&self) -> Option<&str> {
        self.0.first().map(|key| key.id.as_str())
    }

    /// What is stored of a webhook's secret.
    pub(super) fn close(&self, webhook: WebhookId, secret: &str) -> String {
        let Some(Key { id, key }) = self.0.first() else { return secret.to_owned() };
        // Random nonces do for 2^32 secrets under one key, far more than there will be.
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the system has randomness");
        let mut text = secret.as_bytes().to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(webhook), &mut text)
            .expect("a secret is no longer than the cipher takes");
        format!("{PREFIX}{id}:{}", BASE64_STANDARD.encode([&nonce[..], &text].concat()))
    }

    /// A webhook's secret, from what is stored of it.
    pub(super) fn open(&self, webhook: WebhookId, stored: &str) -> Result<String, Unreadable> {
        if !stored.starts_with(ANY_VERSION) {
            return Ok(stored.to_owned());
        }
        let rest = stored.strip_prefix(PREFIX).unwrap_or_default();
        let (id, text) = rest.split_once(':').unwrap_or_default();
        let opened = || {
            let key = self.0.iter().find(|key| key.id == id)?;
            let mut bytes = BASE64_STANDARD.decode(text).ok()?;
            let nonce = Nonce::try_assume_unique_for_key(bytes.get(..NONCE_LEN)?).ok()?;
            let plain = key.key.open_within(nonce, bound_to(webhook), &mut bytes, NONCE_LEN..).ok()?;
            Some(str::from_utf8(plain).ok()?.to_owned())
        };
        opened().ok_or_else(|| Unreadable { key: id.to_owned() })
    }
}

/// What a value belongs to.
fn bound_to(webhook: WebhookId) -> Aad<Vec<u8>> {
    Aad::from([b"eventpulse webhook secret ".as_slice(), &webhook.0.to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(keys: &[(&str, u8)]) -> Seal {
        let key = |(id, byte): &(&str, u8)| keys::Key { id: (*id).to_owned(), bytes: [*byte; 32] };
        Seal::new(&keys.iter().map(key).collect::<Vec<_>>())
    }

    const HOOK: WebhookId = WebhookId(7);

    #[test]
    fn the_first_key_encrypts_and_all_decrypt() {
        let (old, both, new) = (seal(&[("a", 1)]), seal(&[("b", 2), ("a", 1)]), seal(&[("b", 2)]));
        let (by_old, by_both) = (old.close(HOOK, "whsec_x"), both.close(HOOK, "whsec_x"));
        assert!(by_old.starts_with("enc:v1:a:") && by_both.starts_with("enc:v1:b:"));
        assert!(!by_old.contains("whsec"));
        assert_ne!(old.close(HOOK, "whsec_x"), by_old, "a nonce is used once");
        for stored in ["whsec_x", &by_old, &by_both] {
            assert_eq!(both.open(HOOK, stored).as_deref(), Ok("whsec_x"));
        }
        assert_eq!(new.open(HOOK, &by_old), Err(Unreadable { key: "a".to_owned() }));
        assert_eq!(Seal::default().open(HOOK, &by_old), Err(Unreadable { key: "a".to_owned() }));
        assert_eq!(Seal::default().close(HOOK, "whsec_x"), "whsec_x");
    }

    #[test]
    fn a_value_opens_for_its_webhook_under_its_key_only() {
        let stored = seal(&[("a", 1)]).close(HOOK, "whsec_x");
        assert!(seal(&[("a", 1)]).open(WebhookId(8), &stored).is_err(), "moved to another row");
        assert!(seal(&[("a", 2)]).open(HOOK, &stored).is_err(), "another key of the same name");
        let renamed = stored.replace("enc:v1:a:", "enc:v2:a:");
        assert!(seal(&[("a", 1)]).open(HOOK, &renamed).is_err(), "a version that is not known yet");
    }

    proptest! {
        #[test]
        fn what_was_changed_does_not_open(at in 0usize..60, to: u8, secret in "[ -~]{0,60}") {
            let seal = seal(&[("a", 1)]);
            let stored = seal.close(HOOK, &secret);
            prop_assert_eq!(seal.open(HOOK, &stored), Ok(secret));
            let mut bytes = BASE64_STANDARD.decode(&stored["enc:v1:a:".len()..]).unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let changed = format!("enc:v1:a:{}", BASE64_STANDARD.encode(bytes));
            prop_assert!(seal.open(HOOK, &changed).is_err());
        }

        #[test]
        fn nothing_stored_can_panic(rest in ".{0,80}") {
            let seal = seal(&[("a", 1)]);
            let _ = seal.open(HOOK, &format!("enc:v1:a:{rest}"));
            let _ = seal.open(HOOK, &format!("enc:{rest}"));
        }
    }
}
