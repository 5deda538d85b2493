//! Signatures. One secret serves both forms: the seed's header is keyed with the whole text of the secret,
//! Standard Webhooks with the bytes that the base64 after `whsec_` stands for.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const PREFIX: &str = "whsec_";

const HEX: [u8; 16] = *b"0123456789abcdef";

/// A new secret: `whsec_` and 32 random bytes in base64.
pub fn fresh_secret() -> String {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).expect("the system has randomness");
    format!("{PREFIX}{}", STANDARD.encode(random))
}

/// The keyed states of one secret, made once and copied for each signature.
#[derive(Clone)]
pub struct Signer {
    seed: Hmac<Sha256>,
    standard: Hmac<Sha256>,
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

impl Signer {
    pub fn new(secret: &str) -> Signer {
        // A secret that is not of our form can only come from a hand-made row; its bytes are the key then,
        // as the Standard Webhooks libraries do it.
        let decoded = secret.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok());
        Signer {
            seed: keyed(secret.as_bytes()),
            standard: keyed(decoded.as_deref().unwrap_or(secret.as_bytes())),
        }
    }

    /// The value of `X-EventPulse-Signature`: `sha256=` and the MAC of the body in hex.
    pub fn seed(&self, body: &[u8]) -> String {
        let mut text = String::with_capacity(71);
        self.push_seed(body, &mut text);
        text
    }

    /// [`seed`](Signer::seed), at the end of a text.
    pub(super) fn push_seed(&self, body: &[u8], text: &mut String) {
        let mut mac = self.seed.clone();
        mac.update(body);
        text.push_str("sha256=");
        let mut hex = [0; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(mac.finalize().into_bytes()) {
            pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        text.push_str(std::str::from_utf8(&hex).unwrap_or_default());
    }

    /// The value of `webhook-signature`: `v1,` and the MAC of `id.timestamp.body` in base64
    /// (Standard Webhooks specification 1.0.0, "Signature scheme").
    pub fn standard(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut text = String::with_capacity(47);
        self.standard_mac(id, timestamp, body).push(&mut text);
        text
    }

    /// What [`standard`](Signer::standard) says, not yet as text.
    pub(super) fn standard_mac(&self, id: &str, timestamp: &str, body: &[u8]) -> StandardMac {
        let mut mac = self.standard.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        StandardMac(mac.finalize().into_bytes().into())
    }
}

pub(super) struct StandardMac([u8; 32]);

impl StandardMac {
    pub(super) fn push(&self, text: &mut String) {
        text.push_str("v1,");
        STANDARD.encode_string(self.0, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_signature_is_the_known_hmac() {
        // The well-known vector of HMAC-SHA256 for this key and text.
        assert_eq!(
            Signer::new("key").seed(b"The quick brown fox jumps over the lazy dog"),
            "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
        );
    }

    #[test]
    fn an_independent_implementation_accepts_the_standard_signature() {
        let secret = fresh_secret();
        let theirs = standardwebhooks::Webhook::new(&secret).unwrap();
        let body = "{\"a\":\"é\"}";
        let at = 1_700_000_000i64;
        assert_eq!(
            Signer::new(&secret).standard("msg_1", &at.to_string(), body.as_bytes()),
            theirs.sign("msg_1", at, body.as_bytes()).unwrap()
        );
    }

    #[test]
    fn secrets_differ_and_hold_32_bytes() {
        let (one, two) = (fresh_secret(), fresh_secret());
        assert_ne!(one, two);
        assert_eq!(STANDARD.decode(&one[6..]).unwrap().len(), 32);
    }
}
