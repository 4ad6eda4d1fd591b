//! The hashes the host computes.

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

/// A hash the host computes.
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

/// What is to be known of one hash.
struct HashInfo {
    len: usize,
    block_len: usize,
    mechanism: CK_MECHANISM_TYPE,
    mgf: CK_ULONG,
    /// Where a saved state has its number of blocks, after the chaining value (FIPS 180-4, 5.3).
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

/// Fewer blocks than this a restored state may have hashed: what it hashes further overflows no count of bits.
const MAX_BLOCKS: u64 = 1 << 48;

impl Hash {
    /// All of them.
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

    /// Length of a digest in bytes. No two hashes here have the same.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "the length of what it makes, not of itself"
    )]
    pub const fn len(self) -> usize {
        self.info().len
    }

    /// Length of a block in bytes, which HMAC is built on.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.info().block_len
    }

    /// The mechanism that digests with it alone.
    #[must_use]
    pub const fn mechanism(self) -> CK_MECHANISM_TYPE {
        self.info().mechanism
    }

    /// The hash that this mechanism digests with, if it does nothing else.
    #[must_use]
    pub fn from_mechanism(mechanism: CK_MECHANISM_TYPE) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|hash| hash.mechanism() == mechanism)
    }

    /// CKG_MGF1_ with this hash.
    #[must_use]
    pub const fn mgf(self) -> CK_ULONG {
        self.info().mgf
    }

    /// The hash of a mask generation function.
    #[must_use]
    pub fn from_mgf(mgf: CK_ULONG) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.mgf() == mgf)
    }

    /// The digest of all `parts`, one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Secret {
        let mut hasher = Hasher::new(self);
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }
}

/// A digest in the making. What it holds is wiped when it is dropped.
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

/// The same for the state of any hash.
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
    /// Nothing hashed so far.
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

    /// What it hashes with.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Hashes `part` too.
    pub fn update(&mut self, part: &[u8]) {
        with!(&mut self.state, state => state.update(part));
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> Secret {
        with!(self.state, state => taken(&mut state.finalize()))
    }

    /// A second one that has hashed the same; each goes on by itself.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            hash: self.hash,
            state: self.state.clone(),
        }
    }

    /// What [`Hasher::restore`] goes on from. It tells of what was hashed: hold it as if it were that.
    ///
    /// ```text
    /// | length of the digest, 1 byte | chaining value | blocks hashed | bytes waiting | these, then zeros |
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

    /// Goes on from what [`Hasher::save`] of the same hash gave; `None` for what it never gives.
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

    /// Distinguishes the states of hashes that have the same form.
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

/// Whether a count of blocks is one that can have been reached; the hash's own arithmetic does not ask.
fn is_sane(hash: Hash, state: &[u8]) -> bool {
    // FIPS 180-4, 1: the count of a hash with longer blocks is twice as wide.
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

/// Moves a digest out of an array, which is wiped.
fn taken(digest: &mut [u8]) -> Secret {
    let secret = Secret::copy_from(digest);
    digest.zeroize();
    secret
}

/// A saved state, as it is: one that is accepted hashes on and ends, and saves itself as it was. Whether one hash
/// accepts it.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(saved: &[u8]) -> bool {
    let mut accepted = 0;
    for hash in Hash::ALL {
        let Some(mut hasher) = Hasher::restore(hash, saved) else {
            continue;
        };
        accepted += 1;
        assert_eq!(hasher.save(), saved, "what is restored is what was saved");
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
    assert!(accepted <= 1, "a state is of one hash");
    accepted == 1
}
