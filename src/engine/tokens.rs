//! Tokens of mirrors, sealed under the secret of the cluster (C-MIRROR-02).
//!
//! A token goes through the log to every member, and stays in logs, checkpoints and copies of both. So the member that
//! proposes it encrypts it, under a key that only members can derive; whoever has nothing but the disk has nothing. The
//! state knows the sealed bytes alone, and is the same everywhere.
//!
//! ```text
//! sealed: version u8 | nonce 24 | ciphertext and tag, bound to the router's name
//! ```

use std::time::Duration;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Consistency, Engine};
use crate::clock::Random;
use crate::config::Secret;
use crate::raft::Leader;
use crate::state::{Draft, RouterConfig, SealToken, SharedRouter, Token};

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
/// What the key is for: another use of the secret gets another key.
const PURPOSE: &[u8] = b"antiphon: tokens of mirrors, 1";
/// Pause before tokens that could not be sealed are looked at again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What tokens are sealed with, and opened.
#[derive(Default)]
pub struct TokenKeys {
    current: Option<XChaCha20Poly1305>,
    /// The one before it, while the secret is being changed.
    previous: Option<XChaCha20Poly1305>,
}

/// Why a token cannot be used: no secret that is set here opens it.
#[derive(Debug, PartialEq, Eq)]
pub struct SecretMissing;

impl TokenKeys {
    pub fn new(current: Option<&Secret>, previous: Option<&Secret>) -> Self {
        TokenKeys { current: current.map(cipher), previous: previous.map(cipher) }
    }

    /// Seals a token that is in clear, if there is a secret.
    fn seal(&self, router: &str, token: &Token, random: &dyn Random) -> Option<Token> {
        let (cipher, text) = (self.current.as_ref()?, token.plain()?);
        let nonce: Vec<u8> = (0..NONCE_BYTES / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        let payload = Payload { msg: text.as_bytes(), aad: router.as_bytes() };
        let sealed = cipher.encrypt(&XNonce::try_from(&nonce[..]).ok()?, payload).ok()?;
        Some(Token::sealed([&[VERSION][..], &nonce, &sealed].concat()))
    }

    /// The token in clear, and whether the present secret has sealed it.
    fn open(&self, router: &str, token: &Token) -> Result<(Secret, bool), SecretMissing> {
        let Some(sealed) = token.sealed_bytes() else {
            return Ok((Secret::new(token.plain().unwrap_or_default().to_owned()), self.current.is_none()));
        };
        let Some((&VERSION, rest)) = sealed.split_first() else { return Err(SecretMissing) };
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES).ok_or(SecretMissing)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| SecretMissing)?;
        for (cipher, is_current) in [(&self.current, true), (&self.previous, false)] {
            let payload = Payload { msg: sealed, aad: router.as_bytes() };
            let opened = cipher.as_ref().and_then(|cipher| cipher.decrypt(&nonce, payload).ok());
            if let Some(text) = opened.and_then(|bytes| String::from_utf8(bytes).ok()) {
                return Ok((Secret::new(text), is_current));
            }
        }
        Err(SecretMissing)
    }
}

fn cipher(secret: &Secret) -> XChaCha20Poly1305 {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(PURPOSE);
    let key: [u8; 32] = mac.finalize().into_bytes().into();
    XChaCha20Poly1305::new(&Key::from(key))
}

impl Engine {
    /// The token of a mirror in clear, `None` if it has none.
    pub fn open_token(&self, router: &str, config: &RouterConfig) -> Result<Option<Secret>, SecretMissing> {
        let token = config.remote.as_ref().and_then(|remote| remote.token.as_ref());
        let opened = token.map(|token| self.inner.options.token_keys.open(router, token)).transpose()?;
        Ok(opened.map(|(secret, _)| secret))
    }

    /// Seals the token of a router that is to be put. The one that is stored already stays as it is.
    pub(super) fn seal_token(&self, router: &str, config: &mut RouterConfig) {
        let Some(token) = config.remote.as_mut().and_then(|remote| remote.token.as_mut()) else { return };
        if token.is_placeholder() {
            return;
        }
        let keys = &self.inner.options.token_keys;
        let stored = self.routers().get(router).map(|stored| stored.read().config.clone());
        let stored = stored.as_ref().and_then(|config| config.remote.as_ref()?.token.as_ref());
        let is_same = |stored: &&Token| {
            let opened = keys.open(router, stored).ok();
            opened.is_some_and(|(text, is_current)| is_current && token.plain() == Some(text.expose()))
        };
        if let Some(stored) = stored.filter(is_same) {
            *token = stored.clone();
        } else if let Some(sealed) = keys.seal(router, token, &*self.inner.random) {
            *token = sealed;
        }
    }

    /// Seals what is stored in clear or under an earlier secret whenever this member comes to lead; whoever puts a
    /// router has sealed its token before. Returns when the member ends.
    pub(super) async fn keep_tokens_sealed(self) {
        if self.inner.options.token_keys.current.is_none() {
            return;
        }
        let mut leadership = self.inner.node.leadership();
        loop {
            let leads = matches!(leadership.borrow_and_update().leader, Some(Leader::Here));
            // What is applied here may be behind what an earlier leader has done.
            let is_done = !leads || (self.fence(Consistency::Strong).await.is_ok() && self.seal_all().await);
            let ended = tokio::select! {
                changed = leadership.changed() => changed.is_err(),
                () = tokio::time::sleep(RETRY_PAUSE), if !is_done => false,
            };
            if ended {
                return;
            }
        }
    }

    /// Routers whose tokens are not sealed under the present secret, and what to put in their place.
    fn unsealed(&self) -> Vec<(u64, u64, Token)> {
        let keys = &self.inner.options.token_keys;
        let sealed = |shared: &SharedRouter| {
            let router = shared.read();
            let token = router.config.remote.as_ref()?.token.as_ref()?;
            let (text, is_current) = keys.open(&router.name, token).ok()?;
            if is_current {
                return None;
            }
            let plain = Token::new(text.expose().to_owned());
            let sealed = keys.seal(&router.name, &plain, &*self.inner.random)?;
            Some((router.generation, router.config.digest(), sealed))
        };
        self.routers().all().iter().filter_map(|shared| sealed(shared)).collect()
    }

    async fn seal_all(&self) -> bool {
        for (generation, config_digest, token) in self.unsealed() {
            let seal = SealToken { generation, config_digest, token };
            if self.propose(Draft::seal_token(&seal)).await.is_err() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemRandom;

    fn keys(current: Option<&str>, previous: Option<&str>) -> TokenKeys {
        let secret = |text: Option<&str>| text.map(|text| Secret::new(text.to_owned()));
        TokenKeys::new(secret(current).as_ref(), secret(previous).as_ref())
    }

    fn opened(keys: &TokenKeys, router: &str, token: &Token) -> Option<(String, bool)> {
        keys.open(router, token).ok().map(|(text, is_current)| (text.expose().to_owned(), is_current))
    }

    #[test]
    fn a_token_is_opened_by_who_has_the_secret_only() {
        // C-MIRROR-02
        let keys_now = keys(Some("a secret of today"), None);
        let plain = Token::new("s3cret".into());
        let sealed = keys_now.seal("r", &plain, &SystemRandom).expect("it is sealed");
        let bytes = sealed.sealed_bytes().expect("bytes").to_vec();
        assert!(sealed.plain().is_none() && !bytes.windows(6).any(|part| part == b"s3cret"));
        assert_eq!(opened(&keys_now, "r", &sealed), Some(("s3cret".into(), true)));
        assert_eq!(opened(&keys_now, "other", &sealed), None);
        assert_eq!(opened(&keys(None, None), "r", &sealed), None);
        assert_eq!(opened(&keys(Some("a secret of later"), None), "r", &sealed), None);
        let rotating = keys(Some("a secret of later"), Some("a secret of today"));
        assert_eq!(opened(&rotating, "r", &sealed), Some(("s3cret".into(), false)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(opened(&keys_now, "r", &Token::sealed(damaged)), None);
            assert_eq!(opened(&keys_now, "r", &Token::sealed(bytes[..at].to_vec())), None);
        }
        // Twice the same is not seen to be the same.
        assert!(keys_now.seal("r", &plain, &SystemRandom).expect("it is sealed") != sealed);
        // Without a secret it stays in clear; with one that is to be mended.
        assert!(keys(None, None).seal("r", &plain, &SystemRandom).is_none());
        assert_eq!(opened(&keys(None, None), "r", &plain), Some(("s3cret".into(), true)));
        assert_eq!(opened(&keys_now, "r", &plain), Some(("s3cret".into(), false)));
    }
}
