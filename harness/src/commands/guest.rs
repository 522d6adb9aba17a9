//! `whimbrel guest fetch`: the kernel of guests under QEMU.

use whimbrel_machine::machines::qemu::kernel::Kernel;

pub(super) fn fetch() -> anyhow::Result<u8> {
    let kernel = Kernel::find_or_fetch(&|news| crate::tell(&format!("whimbrel: {news}")))?;
    super::print(&format!("{}\n", kernel.image.display()))
}
