//! A guest of the user's own: a disk image, a kernel, arguments of the hypervisor, and whatever runs in it.
//!
//! Nothing is asked of what runs there. That it is up is seen on its console or by a client's first answer; how it fares is
//! seen from outside. The files are read and never written.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A guest of the user's own. Paths may be relative to `folder`, on each host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brought {
    /// Where the hypervisor runs, and relative paths begin.
    pub folder: PathBuf,
    /// The raw image of which the guest's disk begins as a copy; `None`: a disk, if there is one, begins as zeros.
    pub image: Option<PathBuf>,
    /// The kernel that is booted; `None`: what the firmware finds.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: Option<String>,
    /// Further arguments of the hypervisor.
    pub arguments: Vec<String>,
    /// The device as which the guest sees its disk.
    pub disk_device: String,
    /// The device by which the guest is reached by the probe.
    pub network_device: String,
    /// A text on the first serial port that says that the guest is up.
    pub ready: Option<String>,
    /// How long the guest may take to be up.
    pub ready_within: Duration,
    /// The client that sees how the guest fares.
    pub probe: Option<Probe>,
}

/// A client of a service in the guest: connects, sends, and waits for an answer, over and over, a request at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The TCP port in the guest.
    pub port: u16,
    /// What is sent once connected; may be empty.
    pub send: String,
    /// What the answer must contain; empty: any byte is an answer.
    pub expect: String,
    /// From the beginning of a request to that of the next, at least.
    pub every: Duration,
}

/// What is wrong with a guest of the user's own: the key of `[guest.qemu]`, and why, with what would be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest.qemu.{key}: {why}")]
pub struct BroughtError {
    /// The key.
    pub key: &'static str,
    /// Why it can't be taken.
    pub why: String,
}

fn wrong(key: &'static str, why: impl Into<String>) -> BroughtError {
    BroughtError { key, why: why.into() }
}

/// Arguments of QEMU that would take from the harness what it needs, and what to write instead.
const OURS: [(&[&str], &str); 11] = [
    (&["-m"], "write guest.ram"),
    (&["-smp"], "write guest.vcpus"),
    (&["-accel", "-enable-kvm"], "the accelerator is chosen by what boots here, and rows say which"),
    (&["-kernel", "-initrd", "-append"], "write guest.qemu.kernel, guest.qemu.initrd and guest.qemu.append"),
    (&["-incoming", "-S", "-loadvm"], "how the guest begins is for the harness to say"),
    (&["-qmp", "-qmp-pretty", "-mon", "-monitor"], "the guest is driven over a monitor of the harness"),
    (&["-mem-path", "-mem-prealloc"], "the guest's RAM is shared memory of the harness"),
    (
        &["-nographic", "-daemonize", "-snapshot", "-runas", "-chroot"],
        "QEMU is a child of the harness, without a terminal",
    ),
    (&["-readconfig"], "what such a file holds can't be checked; write its options out"),
    (&["-hda", "-hdb", "-hdc", "-hdd", "-fda", "-fdb", "-sd", "-mtdblock", "-pflash"], DISK),
    (&["-virtfs", "-fsdev"], "a shared folder's state doesn't move"),
];

const DISK: &str = "a disk that is written here does not move; write guest.qemu.image, or -drive with readonly=on";

/// What an image begins with that is not raw.
const FORMATS: [(&[u8], &str); 4] =
    [(b"QFI\xfb", "qcow2"), (b"QED\0", "qed"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx")];

impl Brought {
    /// A path as this host has it.
    pub fn place(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Sees that the keys agree with one another and that no argument is one of the harness's.
    ///
    /// # Errors
    /// The first mistake.
    pub fn check(&self) -> Result<(), BroughtError> {
        if self.image.is_none() && self.kernel.is_none() && self.arguments.is_empty() {
            return Err(wrong("image", "there is nothing to boot; write an image, a kernel, or arguments that boot"));
        }
        let needs_kernel = [("initrd", self.initrd.is_some()), ("append", self.append.is_some())];
        if let Some((key, _)) = needs_kernel.iter().find(|(_, given)| *given && self.kernel.is_none()) {
            return Err(wrong(key, "it is for guest.qemu.kernel, which is missing; write that, or leave this out"));
        }
        if self.ready.is_none() && self.probe.is_none() {
            let why = "nothing says when the guest is up; write a text that its console shows then, or probe_port";
            return Err(wrong("ready", why));
        }
        if self.ready.as_ref().is_some_and(String::is_empty) {
            return Err(wrong(
                "ready",
                "an empty text is shown by any console; write one that says that the guest is up",
            ));
        }
        let plain =
            |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        for (key, device) in [("disk_device", &self.disk_device), ("network_device", &self.network_device)] {
            if !plain(device) {
                return Err(wrong(
                    key,
                    format!("{device:?} is not accepted; write a device's name, such as \"e1000\""),
                ));
            }
        }
        self.arguments.iter().enumerate().try_for_each(|(at, argument)| {
            let value = self.arguments.get(at + 1).map_or("", String::as_str);
            check_argument(argument, value)
        })
    }

    /// Sees that the files are here, and that the image is raw and of `disk_bytes`.
    ///
    /// # Errors
    /// The first that is missing or something else.
    pub fn check_files(&self, disk_bytes: u64) -> Result<(), BroughtError> {
        if !self.folder.is_dir() {
            return Err(wrong("folder", format!("{} is no folder here", self.folder.display())));
        }
        for (key, path) in [("kernel", &self.kernel), ("initrd", &self.initrd)] {
            if let Some(path) = path {
                let place = self.place(path);
                File::open(&place).map_err(|error| unreadable(key, &place, &error))?;
            }
        }
        let Some(bytes) = self.image_bytes()? else { return Ok(()) };
        if bytes != disk_bytes {
            return Err(wrong("image", format!("it has {bytes} bytes here, and the guest's disk {disk_bytes}")));
        }
        Ok(())
    }

    /// The size of the image, if there is one.
    ///
    /// # Errors
    /// It can't be read, or is not raw.
    pub fn image_bytes(&self) -> Result<Option<u64>, BroughtError> {
        let Some(path) = &self.image else { return Ok(None) };
        let place = self.place(path);
        let unreadable = |error: io::Error| unreadable("image", &place, &error);
        let found = fs::metadata(&place).map_err(unreadable)?;
        if !found.is_file() {
            return Err(wrong("image", format!("{} is no file; write a raw image's path", place.display())));
        }
        let mut first = Vec::new();
        File::open(&place).and_then(|file| file.take(8).read_to_end(&mut first)).map_err(unreadable)?;
        match FORMATS.iter().find(|(magic, _)| first.starts_with(magic)) {
            None => Ok(Some(found.len())),
            Some((_, format)) => {
                let raw = place.with_extension("raw");
                let how = format!("qemu-img convert -O raw {} {}", place.display(), raw.display());
                Err(wrong("image", format!("{} is {format}, and a raw image is needed: {how}", place.display())))
            }
        }
    }
}

fn unreadable(key: &'static str, path: &Path, error: &io::Error) -> BroughtError {
    wrong(key, format!("{}: {error}; write the path of a file that is there", path.display()))
}

fn check_argument(argument: &str, value: &str) -> Result<(), BroughtError> {
    let refuse = |shown: &str, why: &str| Err(wrong("arguments", format!("{shown} is not accepted: {why}")));
    // QEMU takes two dashes for one.
    let name = argument.strip_prefix('-').filter(|rest| rest.starts_with('-')).unwrap_or(argument);
    if let Some((_, why)) = OURS.iter().find(|(names, _)| names.contains(&name)) {
        return refuse(argument, why);
    }
    let squeezed: String = value.chars().filter(|c| !c.is_whitespace()).collect();
    let has = |part: &str| squeezed.contains(part);
    let shown = format!("{argument} {value}");
    match name {
        "-object" if has("memory-backend") => refuse(&shown, "the guest's RAM is shared memory of the harness"),
        "-machine" | "-M" if has("memory-backend=") || has("accel=") => {
            refuse(&shown, "the guest's RAM and its accelerator are the harness's; leave these out")
        }
        "-device" | "-chardev" | "-netdev" if has("vhost-user") => {
            refuse(&shown, "another process would write the guest's RAM, which nobody would see")
        }
        "-device" if has("free-page-reporting=on") => {
            refuse(&shown, "QEMU would take pages out of the guest's RAM, which nobody would see")
        }
        "-drive" | "-blockdev"
            if !["readonly=on", "read-only=on", "\"read-only\":true"].iter().any(|part| has(part)) =>
        {
            refuse(&shown, DISK)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brought(arguments: &[&str]) -> Brought {
        Brought {
            folder: std::env::temp_dir(),
            image: None,
            kernel: Some("vmlinuz".into()),
            initrd: None,
            append: None,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            disk_device: "virtio-blk-pci".to_owned(),
            network_device: "virtio-net-pci".to_owned(),
            ready: Some("login:".to_owned()),
            ready_within: Duration::from_secs(60),
            probe: None,
        }
    }

    #[test]
    fn arguments_that_take_what_is_the_harnesss_are_refused_and_others_are_not() {
        for (arguments, needle) in [
            (&["-m", "1G"][..], "guest.ram"),
            (&["--smp", "2"], "guest.vcpus"),
            (&["-device", "virtio-rng-pci", "-S"], "-S is not accepted"),
            (&["-qmp", "stdio"], "monitor"),
            (&["-object", "memory-backend-ram,id=x,size=1G"], "shared memory"),
            (&["-machine", "q35,accel=kvm"], "accelerator"),
            (&["-drive", "file=x.raw,format=raw"], "guest.qemu.image"),
            (&["-blockdev", "{\"driver\": \"file\", \"read-only\": false}"], "guest.qemu.image"),
            (&["-hda", "x.raw"], "guest.qemu.image"),
            (&["-chardev", "socket,id=c,path=s", "-netdev", "type=vhost-user,id=n,chardev=c"], "nobody would see"),
            (&["-device", "virtio-balloon,free-page-reporting=on"], "nobody would see"),
        ] {
            let error = brought(arguments).check().unwrap_err();
            assert!(error.key == "arguments" && error.why.contains(needle), "{error}");
        }
        for arguments in [
            &["-machine", "q35"][..],
            &["-cpu", "max"],
            &["-device", "virtio-rng-pci"],
            &["-drive", "file=seed.iso,readonly=on,format=raw"],
            &["-blockdev", "{\"driver\": \"file\", \"read-only\": true}"],
            &["-cdrom", "live.iso"],
        ] {
            assert_eq!(brought(arguments).check(), Ok(()));
        }
    }

    #[test]
    fn keys_that_do_nothing_and_a_guest_that_nobody_knows_to_be_up_are_refused() {
        let change = |by: fn(&mut Brought)| {
            let mut brought = brought(&[]);
            by(&mut brought);
            brought.check().unwrap_err().key
        };
        assert_eq!(change(|b| b.kernel = None), "image");
        assert_eq!(
            change(|b| (b.kernel, b.image, b.append) = (None, Some("x".into()), Some("quiet".into()))),
            "append"
        );
        assert_eq!(change(|b| b.ready = None), "ready");
        assert_eq!(change(|b| b.ready = Some(String::new())), "ready");
        assert_eq!(change(|b| b.disk_device = "ide-hd,drive=other".to_owned()), "disk_device");
    }

    #[test]
    fn files_that_are_missing_of_another_size_or_not_raw_are_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut guest = Brought { folder: folder.path().to_owned(), ..brought(&[]) };
        assert_eq!(guest.check_files(0).unwrap_err().key, "kernel");
        fs::write(folder.path().join("vmlinuz"), "x").unwrap();
        assert_eq!(guest.check_files(0), Ok(()));
        guest.image = Some("x.img".into());
        assert_eq!(guest.check_files(512).unwrap_err().key, "image");
        fs::write(folder.path().join("x.img"), [1; 512]).unwrap();
        assert_eq!((guest.image_bytes(), guest.check_files(512)), (Ok(Some(512)), Ok(())));
        assert!(guest.check_files(1024).unwrap_err().why.contains("512 bytes here"));
        fs::write(folder.path().join("x.img"), b"QFI\xfb and so on").unwrap();
        let why = guest.image_bytes().unwrap_err().why;
        assert!(why.contains("is qcow2") && why.contains("qemu-img convert -O raw"), "{why}");
    }
}
