//! The card's memory: two LittleFS images in RAM, optionally written through to a folder.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use littlefs2::{consts, driver::Storage, io as lfs};
use trussed::virt::{StorageConfig, StoreConfig};

/// Size of one image.
const SIZE: usize = Image::BLOCK_SIZE * Image::BLOCK_COUNT;
/// Keys and PINs.
const INTERNAL: &str = "int.bin";
/// Objects and certificates.
const EXTERNAL: &str = "ext.bin";

/// The source of the card's memory, and whether changes are saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// A fresh card in RAM.
    #[default]
    Fresh,
    /// The card in this folder (`int.bin`, `ext.bin`), which is made if it is missing. Changes are saved.
    Folder(PathBuf),
    /// A copy in RAM of the card in this folder.
    CopyOf(PathBuf),
}

impl State {
    /// Opens the images. The volatile one is always new.
    pub(super) fn open(&self) -> io::Result<StoreConfig<'static>> {
        Ok(StoreConfig {
            internal: self.image(INTERNAL)?,
            external: self.image(EXTERNAL)?,
            volatile: Image::blank().into_config(true),
        })
    }

    fn image(&self, name: &str) -> io::Result<StorageConfig<'static>> {
        match self {
            Self::Fresh => Ok(Image::blank().into_config(true)),
            Self::CopyOf(folder) => Ok(Image::read(&folder.join(name))?.into_config(false)),
            Self::Folder(folder) => {
                std::fs::create_dir_all(folder)?;
                Image::write_through(&folder.join(name))
            }
        }
    }
}

struct Image {
    bytes: Vec<u8>,
    file: Option<File>,
}

impl Image {
    fn blank() -> Self {
        Self {
            bytes: vec![0xFF; SIZE],
            file: None,
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        if bytes.len() != SIZE {
            let what = format!(
                "{} has {} bytes; a card image has {SIZE}",
                path.display(),
                bytes.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self { bytes, file: None })
    }

    fn write_through(path: &Path) -> io::Result<StorageConfig<'static>> {
        let known = path.try_exists()?;
        let mut image = if known {
            Self::read(path)?
        } else {
            Self::blank()
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.write_all_at(&image.bytes, 0)?;
        image.file = Some(file);
        Ok(image.into_config(!known))
    }

    fn into_config(self, format: bool) -> StorageConfig<'static> {
        StorageConfig {
            storage: Box::new(self),
            format,
        }
    }

    fn put(
        &mut self,
        offset: usize,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> lfs::Result<usize> {
        let place = self
            .bytes
            .get_mut(offset..offset + len)
            .ok_or(lfs::Error::NO_SPACE)?;
        fill(place);
        if let Some(file) = &self.file {
            file.write_all_at(place, offset as u64)
                .map_err(|_| lfs::Error::IO)?;
        }
        Ok(len)
    }
}

impl Storage for Image {
    const READ_SIZE: usize = 16;
    const WRITE_SIZE: usize = 16;
    const BLOCK_SIZE: usize = 512;
    const BLOCK_COUNT: usize = 128;
    const BLOCK_CYCLES: isize = -1;

    type CACHE_SIZE = consts::U512;
    type LOOKAHEAD_SIZE = consts::U8;

    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> lfs::Result<usize> {
        let place = self
            .bytes
            .get(offset..offset + buffer.len())
            .ok_or(lfs::Error::IO)?;
        buffer.copy_from_slice(place);
        Ok(buffer.len())
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> lfs::Result<usize> {
        self.put(offset, data.len(), |place| place.copy_from_slice(data))
    }

    fn erase(&mut self, offset: usize, len: usize) -> lfs::Result<usize> {
        self.put(offset, len, |place| place.fill(0xFF))
    }
}
