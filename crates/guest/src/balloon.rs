//! The balloon's driver, over which the hypervisor's own migrations hear which pages are free.
//!
//! It is loaded when it is wanted and not before, for the device is there in any case: QEMU asks a driver that it has agreed with in
//! each of its pre-copies, and only some are to be hinted.

use crate::GuestError;
use crate::boot::{entries, host, load};
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;
use whimbrel_machine::machines::qemu::BALLOON;

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";

/// Of virtio's features, VIRTIO_BALLOON_F_FREE_PAGE_HINT: free pages are told of while a migration runs.
const HINTS: usize = 3;

/// Has the driver loaded, and sees that it tells of free pages.
///
/// # Errors
/// It can't be loaded, or QEMU's device has no use for what it would tell.
pub(crate) fn offer_free() -> Result<(), GuestError> {
    if !Path::new(DRIVER).exists() {
        load(Path::new(BALLOON))?;
    }
    let agreed = |device: &Path| fs::read(device.join("features")).is_ok_and(|bits| bits.get(HINTS) == Some(&b'1'));
    match entries(DRIVER)?.iter().any(|device| agreed(device)) {
        true => Ok(()),
        false => Err(host("the balloon")(Error::new(ErrorKind::Unsupported, "QEMU takes no hints of free pages"))),
    }
}
