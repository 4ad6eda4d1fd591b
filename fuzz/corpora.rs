//! Each crate's tests put the corpora of its fuzz targets through the same functions, without a fuzzer.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of tests"
)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// As many truncations and flipped bits as the files of most corpora have.
pub(crate) const EVERY: usize = 8 * 1024;
/// What one input may take even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The files of a corpus with their names, sorted.
pub(crate) fn seeds(corpus: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut seeds: Vec<_> = fs::read_dir(folder.join(corpus))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    assert!(
        seeds.len() >= 5,
        "corpus {corpus} has {} files",
        seeds.len()
    );
    seeds
}

/// Gives `fuzz` every file of a corpus, each of its truncations, and each with one bit flipped; of a file
/// that has more than `most` of either, evenly spread ones.
pub(crate) fn feed(corpus: &str, most: usize, fuzz: impl Fn(&[u8])) {
    for (name, seed) in seeds(corpus) {
        let try_one = |what: &str, at: usize, bytes: &[u8]| {
            let _input = Input {
                corpus,
                name: &name,
                what,
                at,
            };
            let start = Instant::now();
            fuzz(bytes);
            assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
        };
        try_one("whole", 0, &seed);
        for len in spread(seed.len(), most) {
            try_one("cut at byte", len, &seed[..len]);
        }
        for bit in spread(seed.len() * 8, most) {
            let mut flipped = seed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            try_one("flipped bit", bit, &flipped);
        }
    }
}

/// At most about `most` of the numbers below `end`. The step is odd, so that it meets every bit of a byte.
fn spread(end: usize, most: usize) -> impl Iterator<Item = usize> {
    (0..end).step_by((end / most) | 1)
}

/// Names the input when it makes a test fail.
struct Input<'a> {
    corpus: &'a str,
    name: &'a str,
    what: &'a str,
    at: usize,
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "fuzz/corpus/{}/{}: {} {}",
                self.corpus, self.name, self.at, self.what
            );
        }
    }
}
