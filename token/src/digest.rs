//! The hashes that the host computes.

use claviger_apdu::Secret;
use cryptoki_sys::{
    CK_MECHANISM_TYPE, CK_ULONG, CKG_MGF1_SHA1, CKG_MGF1_SHA224, CKG_MGF1_SHA256, CKG_MGF1_SHA384,
    CKG_MGF1_SHA512, CKM_SHA_1, CKM_SHA224, CKM_SHA256, CKM_SHA384, CKM_SHA512,
};
use sha1::Sha1;
use sha2::{
    Digest, Sha224, Sha256, Sha384, Sha512,
    digest::common::hazmat::{SerializableState, SerializedState},
};
use zeroize::Zeroize;

/// A hash that the host computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// The parameters of one hash.
struct HashInfo {
    len: usize,
    block_len: usize,
    mechanism: CK_MECHANISM_TYPE,
    mgf: CK_ULONG,
    /// Offset of the block count in a saved state, after the chaining value (FIPS 180-4, 5.3).
    blocks_at: usize,
}

const fn info(
    len: usize,
    block_len: usize,
    mechanism: CK_MECHANISM_TYPE,
    mgf: CK_ULONG,
    blocks_at: usize,
) -> HashInfo {
    HashInfo {
        len,
        block_len,
        mechanism,
        mgf,
        blocks_at,
    }
}

/// A restored state must have hashed fewer blocks than this. What it hashes later then overflows no count of bits.
const MAX_BLOCKS: u64 = 1 << 48;

impl Hash {
    /// All hashes.
    pub const ALL: [Self; 5] = [
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
    ];

    const fn info(self) -> HashInfo {
        match self {
            Self::Sha1 => info(20, 64, CKM_SHA_1, CKG_MGF1_SHA1, 20),
            Self::Sha224 => info(28, 64, CKM_SHA224, CKG_MGF1_SHA224, 32),
            Self::Sha256 => info(32, 64, CKM_SHA256, CKG_MGF1_SHA256, 32),
            Self::Sha384 => info(48, 128, CKM_SHA384, CKG_MGF1_SHA384, 64),
            Self::Sha512 => info(64, 128, CKM_SHA512, CKG_MGF1_SHA512, 64),
        }
    }

    /// Returns the length of a digest in bytes. No two hashes here have the same length.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "this is the length of a digest, not of a collection"
    )]
    pub const fn len(self) -> usize {
        self.info().len
    }

    /// Returns the length of a block in bytes, which HMAC needs.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.info().block_len
    }

    /// Returns the mechanism that only computes this digest.
    #[must_use]
    pub const fn mechanism(self) -> CK_MECHANISM_TYPE {
        self.info().mechanism
    }

    /// Returns the hash of a mechanism that only computes a digest.
    #[must_use]
    pub fn from_mechanism(mechanism: CK_MECHANISM_TYPE) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|hash| hash.mechanism() == mechanism)
    }

    /// Returns the CKG_MGF1_ constant for this hash.
    #[must_use]
    pub const fn mgf(self) -> CK_ULONG {
        self.info().mgf
    }

    /// Returns the hash of a mask generation function.
    #[must_use]
    pub fn from_mgf(mgf: CK_ULONG) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.mgf() == mgf)
    }

    /// Returns the digest of all `parts`, concatenated.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Secret {
        let mut hasher = Hasher::new(self);
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }
}

/// A digest in progress. Its state is wiped when it is dropped.
pub struct Hasher {
    hash: Hash,
    state: State,
}

#[derive(Clone)]
enum State {
    Sha1(Sha1),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

/// Runs the same expression for the state of any hash.
macro_rules! with {
    ($state:expr, $inner:ident => $body:expr) => {
        match $state {
            State::Sha1($inner) => $body,
            State::Sha224($inner) => $body,
            State::Sha256($inner) => $body,
            State::Sha384($inner) => $body,
            State::Sha512($inner) => $body,
        }
    };
}

impl Hasher {
    /// Begins a digest.
    #[must_use]
    pub fn new(hash: Hash) -> Self {
        let state = match hash {
            Hash::Sha1 => State::Sha1(Sha1::new()),
            Hash::Sha224 => State::Sha224(Sha224::new()),
            Hash::Sha256 => State::Sha256(Sha256::new()),
            Hash::Sha384 => State::Sha384(Sha384::new()),
            Hash::Sha512 => State::Sha512(Sha512::new()),
        };
        Self { hash, state }
    }

    /// Returns the hash.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Hashes `part`.
    pub fn update(&mut self, part: &[u8]) {
        with!(&mut self.state, state => state.update(part));
    }

    /// Returns the digest.
    #[must_use]
    pub fn finish(self) -> Secret {
        with!(self.state, state => taken(&mut state.finalize()))
    }

    /// Returns a second digest with the same state. Both continue independently.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            hash: self.hash,
            state: self.state.clone(),
        }
    }

    /// Returns the state for [`Hasher::restore`]. The state reveals data that was hashed, so protect it like that data.
    ///
    /// ```text
    /// | length of the digest, 1 byte | chaining value | blocks hashed | bytes waiting | the waiting bytes, then zeros |
    /// ```
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut saved = vec![self.tag()];
        with!(&self.state, state => {
            let mut serialized = state.serialize();
            saved.extend_from_slice(&serialized);
            serialized.as_mut_slice().zeroize();
        });
        saved
    }

    /// Continues from a state that [`Hasher::save`] returned for the same hash. Returns `None` for any other bytes.
    #[must_use]
    pub fn restore(hash: Hash, saved: &[u8]) -> Option<Self> {
        let mut hasher = Self::new(hash);
        let state = saved.strip_prefix(&[hasher.tag()])?;
        if state.len() + 1 != hasher.save().len() || !is_sane(hash, state) {
            return None;
        }
        with!(&mut hasher.state, fresh => *fresh = deserialized(state)?);
        Some(hasher)
    }

    /// Returns a tag that differs between hashes whose states have the same form.
    fn tag(&self) -> u8 {
        self.hash.len().to_le_bytes()[0]
    }
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher")
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// Returns whether a block count is possible. The arithmetic of the hash does not check this.
fn is_sane(hash: Hash, state: &[u8]) -> bool {
    // FIPS 180-4, 1: a hash with longer blocks has a count that is twice as wide.
    let width = hash.block_len() / 8;
    let at = hash.info().blocks_at;
    state
        .get(at..at + width)
        .and_then(|count| count.split_first_chunk())
        .is_some_and(|(low, high)| {
            u64::from_le_bytes(*low) < MAX_BLOCKS && high.iter().all(|byte| *byte == 0)
        })
}

fn deserialized<S: SerializableState>(state: &[u8]) -> Option<S> {
    let mut serialized = SerializedState::<S>::try_from(state).ok()?;
    let restored = S::deserialize(&serialized).ok();
    serialized.as_mut_slice().zeroize();
    restored
}

/// Moves a digest out of an array and wipes the array.
fn taken(digest: &mut [u8]) -> Secret {
    let secret = Secret::copy_from(digest);
    digest.zeroize();
    secret
}

/// Restores arbitrary bytes as a saved state. An accepted state must save as the same bytes, and must continue to a
/// digest. Returns whether one hash accepts the state.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(saved: &[u8]) -> bool {
    let mut accepted = 0;
    for hash in Hash::ALL {
        let Some(mut hasher) = Hasher::restore(hash, saved) else {
            continue;
        };
        accepted += 1;
        assert_eq!(
            hasher.save(),
            saved,
            "a restored state saves as the same bytes"
        );
        hasher.update(&[0x5A; 300]);
        let again = Hasher::restore(hash, &hasher.save()).map(Hasher::finish);
        let digest = hasher.finish();
        assert_eq!(digest.len(), hash.len());
        assert_eq!(
            again.as_ref().map(Secret::expose),
            Some(digest.expose()),
            "a state saved twice gives the same digest"
        );
    }
    assert!(accepted <= 1, "a state belongs to one hash");
    accepted == 1
}
