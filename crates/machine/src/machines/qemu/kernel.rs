//! The guest's kernel: Debian's for clouds, as installed here, or unpacked from its package into a cache. Nothing is ever
//! installed.

use crate::error::MachineError;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The package that depends on the newest kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// The modules that a guest needs, in the order in which they load.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
];

/// The balloon's driver, which loads when a guest is to tell QEMU which of its pages are free.
const BALLOON: &str = "drivers/virtio/virtio_balloon.ko";

/// How the name of a module ends that its package has compressed, as Debian 13's does.
const COMPRESSED: &str = "xz";

/// A kernel and its modules, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel's image.
    pub image: PathBuf,
    /// The modules in the order in which they load.
    pub modules: Vec<PathBuf>,
    /// A module that doesn't load at boot: the balloon's driver.
    pub balloon: PathBuf,
}

impl Kernel {
    /// The kernel that is on this host: in the cache, or installed.
    pub fn here() -> Option<Kernel> {
        let cached = std::fs::read_dir(cache()).into_iter().flatten().flatten().map(|entry| entry.path());
        cached.chain([PathBuf::from("/")]).find_map(|root| Kernel::under(&root))
    }

    /// The kernel under a root of Debian's layout.
    fn under(root: &Path) -> Option<Kernel> {
        let names = std::fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.file_name());
        let versions = names.filter_map(|name| Some(name.to_str()?.strip_prefix("vmlinuz-")?.to_owned()));
        let mut versions: Vec<String> = versions.filter(|version| version.ends_with("cloud-amd64")).collect();
        versions.sort_by_cached_key(|version| numbers(version));
        versions.iter().rev().find_map(|version| {
            let modules = root.join("lib/modules").join(version).join("kernel");
            let module = |name: &str| {
                let compressed = || Some(modules.join(format!("{name}.{COMPRESSED}"))).filter(|path| path.is_file());
                Some(modules.join(name)).filter(|path| path.is_file()).or_else(|| compressed().filter(|_| unpacks()))
            };
            let image = root.join("boot").join(format!("vmlinuz-{version}"));
            let needed = MODULES.iter().map(|name| module(name)).collect::<Option<Vec<PathBuf>>>();
            Some(Kernel { image, modules: needed?, balloon: module(BALLOON)? })
        })
    }

    /// The kernel that is on this host; else its package is fetched and unpacked into the cache. `told` hears of that.
    ///
    /// # Errors
    /// There is none, and it can't be fetched.
    pub fn find_or_fetch(told: &dyn Fn(&str)) -> Result<Kernel, MachineError> {
        match Kernel::here() {
            Some(kernel) => Ok(kernel),
            None => fetch(told),
        }
    }
}

/// The numbers in a version, by which it is told from older ones.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Where kernels are kept: by the XDG rules, a folder a package.
pub fn cache() -> PathBuf {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("whimbrel").join("guest")
}

fn fetch(told: &dyn Fn(&str)) -> Result<Kernel, MachineError> {
    let cache = cache();
    let at_cache = |error: std::io::Error| MachineError::Hypervisor(format!("{}: {error}", cache.display()));
    std::fs::create_dir_all(&cache).map_err(at_cache)?;
    // Beside its last place, so that it can be moved there in one step: nobody sees half a kernel.
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(&cache).map_err(at_cache)?;
    let listed = tool(work.path(), "apt-cache", &["depends", PACKAGE])?;
    let name = listed.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim);
    let name = name.filter(|name| name.starts_with("linux-image-") && !name.contains('/'));
    let name = name.ok_or_else(|| lacking(&format!("apt-cache knows no package {PACKAGE}")))?;
    told(&format!("fetching the guest's kernel, {name}, into {}", cache.display()));
    tool(work.path(), "apt-get", &["download", name])?;
    let package = std::fs::read_dir(work.path()).map_err(at_cache)?.flatten().map(|entry| entry.path());
    let package = package.filter(|path| path.extension().is_some_and(|e| e == "deb")).map(|p| p.display().to_string());
    let package = package.last().ok_or_else(|| lacking("apt-get downloaded no package"))?;
    tool(work.path(), "dpkg-deb", &["-x", &package, "root"])?;
    let place = cache.join(name);
    // Somebody else may have been quicker: theirs is as good.
    let moved = std::fs::rename(work.path().join("root"), &place);
    Kernel::under(&place).ok_or_else(|| {
        let why = moved
            .err()
            .map_or("it lacks the kernel or a module, or there is no xz to unpack one".to_owned(), |error| {
                error.to_string()
            });
        lacking(&format!("{}: {why}", place.display()))
    })
}

/// Whether compressed modules can be unpacked here; one that can't is as good as none.
fn unpacks() -> bool {
    static UNPACKS: OnceLock<bool> = OnceLock::new();
    *UNPACKS.get_or_init(|| Command::new("xz").arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// What a module's file holds, unpacked.
///
/// # Errors
/// It can't be read, or its package has compressed it and there is no `xz` here.
pub(super) fn module(path: &Path) -> Result<Vec<u8>, MachineError> {
    let at = |error: std::io::Error| MachineError::Hypervisor(format!("{}: {error}", path.display()));
    if path.extension().is_none_or(|extension| extension != COMPRESSED) {
        return std::fs::read(path).map_err(at);
    }
    let output = Command::new("xz").arg("-dc").arg(path).output();
    let output = output.map_err(|error| MachineError::Hypervisor(format!("xz, which unpacks the modules: {error}")))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(at(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

fn lacking(why: &str) -> MachineError {
    let help = format!("machine qemu needs Debian's {PACKAGE}, installed or to be fetched by apt-get");
    MachineError::Hypervisor(format!("{help}: {why}"))
}

fn tool(folder: &Path, program: &str, arguments: &[&str]) -> Result<String, MachineError> {
    let output = Command::new(program).args(arguments).current_dir(folder).env("LC_ALL", "C").output();
    let output = output.map_err(|error| lacking(&format!("{program}: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(lacking(&format!("{program} {}: {}", arguments.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_that_their_package_has_compressed_are_found_and_unpacked() {
        let root = tempfile::tempdir().unwrap();
        let modules = root.path().join("lib/modules/6.12-cloud-amd64/kernel");
        std::fs::create_dir(root.path().join("boot")).unwrap();
        std::fs::write(root.path().join("boot/vmlinuz-6.12-cloud-amd64"), "").unwrap();
        assert_eq!(Kernel::under(root.path()), None);
        for name in MODULES.iter().chain([&BALLOON]) {
            let path = modules.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, *name).unwrap();
        }
        let plain = Kernel::under(root.path()).unwrap();
        assert_eq!(module(&plain.balloon).unwrap(), BALLOON.as_bytes());
        if !Command::new("xz").arg(&plain.balloon).status().is_ok_and(|status| status.success()) {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: unpacking modules: there is no xz\n");
            return;
        }
        let packed = Kernel::under(root.path()).unwrap();
        assert_eq!((&packed.modules, packed.balloon.extension()), (&plain.modules, Some(COMPRESSED.as_ref())));
        assert_eq!(module(&packed.balloon).unwrap(), BALLOON.as_bytes());
        std::fs::write(&packed.balloon, "no archive").unwrap();
        assert!(module(&packed.balloon).unwrap_err().to_string().contains("virtio_balloon.ko.xz"));
    }
}
