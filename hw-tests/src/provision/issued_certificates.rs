//! The certificates that were issued for one card.

use std::{collections::BTreeMap, fs, io, path::Path};

/// Certificates in DER, by their names: `ca`, `piv-9A`, `openpgp-03` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedCertificates(BTreeMap<String, Vec<u8>>);

impl IssuedCertificates {
    const SUFFIX: &str = ".der";

    /// The certificate called `name`.
    #[must_use]
    pub fn certificate(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Writes each certificate to `folder`, as `NAME.der`.
    ///
    /// # Errors
    /// The errors of the file system.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|(name, der)| fs::write(folder.join(name.clone() + Self::SUFFIX), der))
    }

    /// Reads the certificates that [`IssuedCertificates::write`] wrote.
    ///
    /// # Errors
    /// The errors of the file system.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut issued = Self::default();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(Self::SUFFIX))
            {
                issued.0.insert(name.to_owned(), fs::read(entry.path())?);
            }
        }
        Ok(issued)
    }

    pub(super) fn add(&mut self, name: impl Into<String>, der: Vec<u8>) {
        self.0.insert(name.into(), der);
    }
}
