//! What can go wrong with a volume or with the choice of a strategy, by cause.

use std::path::{Path, PathBuf};
use whimbrel_model::ParameterError;
use whimbrel_model::registry::UnknownName;

/// Why a volume can't be had, or a `[disk]` table isn't accepted.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image isn't there.
    #[error("there is no disk image {}: name a raw image file that exists", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// An image is to be created where a file is.
    #[error("{} exists already and is left as it is: remove it, or name a file that does not exist", path.display())]
    Exists {
        /// The image.
        path: PathBuf,
    },
    /// Another volume, of this or another process, has the image open.
    #[error("{} is in use: name another, or end what uses it", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The image can't be cut into blocks.
    #[error(
        "the disk image {} has {size_bytes} bytes: accepted are multiples of the block size, {block_bytes} bytes, from one block on",
        path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
        /// The block size in bytes.
        block_bytes: u64,
    },
    /// The block size is not one.
    #[error("a block of {block_bytes} bytes is not accepted: write a power of two from 512 B to 1 MiB")]
    BlockSize {
        /// The block size in bytes that was given.
        block_bytes: u64,
    },
    /// A bitmap's file that isn't one, or another disk's.
    #[error("{} is not the bitmap of this disk: name a file that does not exist, or the one that was made for it", path.display())]
    AlienBitmap {
        /// The bitmap's file.
        path: PathBuf,
    },
    /// The host's I/O failed.
    #[error("could not {what} {}", path.display())]
    Io {
        /// What was tried, a verb.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: std::io::Error,
    },
    /// The `[disk]` table names a strategy and a preset.
    #[error("[disk] has both strategy {strategy:?} and preset {preset:?}: write one of them")]
    StrategyAndPreset {
        /// The strategy.
        strategy: String,
        /// The preset.
        preset: String,
    },
    /// The value of `strategy` or `preset` is not a text.
    #[error("[disk] {key}: {found} is not accepted; write a name such as \"three-phase\"")]
    NotAName {
        /// The key.
        key: &'static str,
        /// The value as it was written.
        found: String,
    },
    /// A rate limit for a strategy that sends nothing that could be held back.
    #[error("[disk] {name} takes no rate_limit: it pushes and fetches nothing while the guest runs; leave the key out")]
    Unlimited {
        /// The strategy or preset.
        name: &'static str,
    },
    /// No such strategy or preset.
    #[error("[disk] {0}")]
    Unknown(#[from] UnknownName),
    /// A parameter isn't accepted.
    #[error("[disk] {0}")]
    Parameter(#[from] ParameterError),
}

impl DiskError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DiskError::Io { what, path: path.to_owned(), source }
    }
}
