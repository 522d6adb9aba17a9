//! Programs that we did not write against our server, and their servers against our client. What is not installed is
//! skipped, loudly.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread::JoinHandle,
};

use tempfile::TempDir;
use whimbrel_nbd::{
    Access, Backend, Client, ClientOptions, ErrorCode, Exports, Extents, FileBackend, MemoryBackend, NbdError, Server,
    ShutdownHandle, ZeroMode, protocol::CONTEXT_ALLOCATION,
};

const MIB: u64 = 1 << 20;

/// Whether all these programs are installed; says so if not.
fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path);
        !folders.any(|folder| folder.join(program).is_file())
    });
    if let Some(program) = missing {
        // Not through the test's captured output: a skip must be seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {program} is not installed");
    }
    missing.is_none()
}

/// Our server on a unix socket, on threads of its own, until it is dropped.
struct Served {
    folder: TempDir,
    handle: ShutdownHandle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Served {
    fn new(exports: Exports) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (handle, shutdown) = ShutdownHandle::new();
        let socket = folder.path().join("socket");
        let (bound, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(async {
                let server = Server::bind_unix(socket, Arc::new(exports))?;
                bound.send(()).unwrap();
                server.run(shutdown).await
            })
        });
        listening.recv().unwrap();
        Self { folder, handle, thread: Some(thread) }
    }

    fn image(path: &Path) -> Self {
        Self::new(Exports::single(Arc::new(FileBackend::open(path, Access::ReadWrite).unwrap())))
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.folder.path().join("socket").display())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.shut_down();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A folder with an image: some random data, the rest a hole.
struct Image {
    folder: TempDir,
    path: PathBuf,
}

impl Image {
    fn new(size: u64, data: &[(u64, usize)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in data {
            file.write_all_at(&noise(*offset, *length), *offset).unwrap();
        }
        Self { folder, path }
    }

    fn sibling(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Bytes without a pattern, from a seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", output.status);
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn same(left: &Path, right: &Path) {
    let equal = std::fs::read(left).unwrap() == std::fs::read(right).unwrap();
    assert!(equal, "{} and {} differ", left.display(), right.display());
}

#[test]
fn nbdinfo_sees_sizes_flags_maps_and_lists() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let image = Image::new(16 * MIB, &[(4 * MIB, 1 << 20)]);
    let memory = Arc::new(MemoryBackend::new(vec![1; 4096]).into_read_only());
    let file = Arc::new(FileBackend::open(&image.path, Access::ReadWrite).unwrap());
    let served = Served::new(Exports::new().with("disk", file).with("other", memory).with_default("disk"));
    let folder = image.folder.path();

    let info = text(&run("nbdinfo", folder, &[&served.uri("")]));
    for line in ["export-size: 16777216", "base:allocation", "can_multi_conn: true", "can_fast_zero: true"] {
        assert!(info.contains(line), "{line} in {info}");
    }
    let other = text(&run("nbdinfo", folder, &[&served.uri("other")]));
    assert!(other.contains("is_read_only: true") && other.contains("bytes in memory"), "{other}");
    let list = text(&run("nbdinfo", folder, &["--list", &served.uri("")]));
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"other\""), "{list}");
    let map = text(&run("nbdinfo", folder, &["--map", &served.uri("disk")]));
    let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(rows, [["0", "4194304", "3"], ["4194304", "1048576", "0"], ["5242880", "11534336", "3"]]);
}

#[test]
fn nbdcopy_both_ways_is_the_same_image() {
    if !installed(&["nbdcopy"]) {
        return;
    }
    let image = Image::new(48 * MIB, &[(0, 5 << 20), (20 * MIB + 512, 3_000_000), (47 * MIB, 1 << 20)]);
    let served = Served::image(&image.path);
    let out = image.sibling("out");
    run("nbdcopy", image.folder.path(), &[&served.uri(""), out.to_str().unwrap()]);
    same(&image.path, &out);
    let back = Image::new(48 * MIB, &[(9 * MIB, 4096)]);
    let into = Served::image(&back.path);
    run("nbdcopy", image.folder.path(), &[out.to_str().unwrap(), &into.uri("")]);
    drop(into);
    same(&image.path, &back.path);
    // From our server to our server, with what both can do.
    let third = Image::new(48 * MIB, &[]);
    let into = Served::image(&third.path);
    run("nbdcopy", image.folder.path(), &["--flush", &served.uri(""), &into.uri("")]);
    drop(into);
    same(&image.path, &third.path);
}

#[test]
fn qemu_img_converts_and_compares() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let image = Image::new(24 * MIB, &[(MIB, 2 << 20), (20 * MIB, 100_000)]);
    let served = Served::image(&image.path);
    let folder = image.folder.path();
    run("qemu-img", folder, &["convert", "-f", "raw", "-O", "qcow2", &served.uri(""), "copy.qcow2"]);
    run("qemu-img", folder, &["compare", "-f", "raw", "-F", "qcow2", &served.uri(""), "copy.qcow2"]);
    let back = Image::new(24 * MIB, &[(3 * MIB, 1 << 20)]);
    let into = Served::image(&back.path);
    run("qemu-img", folder, &["convert", "-n", "-f", "qcow2", "-O", "raw", "copy.qcow2", &into.uri("")]);
    drop(into);
    same(&image.path, &back.path);
}

#[test]
fn qemu_io_writes_zeroes_discards_and_reads_patterns() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let image = Image::new(16 * MIB, &[(0, 16 << 20)]);
    let served = Served::image(&image.path);
    let mut arguments = vec!["-f", "raw"];
    for command in [
        "write -P 0xab 0 4M",
        "read -P 0xab 0 4M",
        "write -f -P 0xcd 512 3584",
        "read -P 0xcd 512 3584",
        "write -z 1M 64k",
        "read -P 0 1M 64k",
        "write -z -u 2M 1M",
        "read -P 0 2M 1M",
        "discard 8M 1M",
        "aio_write -P 1 9M 1M",
        "aio_write -P 2 10M 1M",
        "aio_flush",
        "read -P 1 9M 1M",
        "read -P 2 10M 1M",
        "flush",
    ] {
        arguments.extend(["-c", command]);
    }
    let uri = served.uri("");
    arguments.push(&uri);
    let output = run("qemu-io", image.folder.path(), &arguments);
    let said = text(&output) + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("fail") && !said.contains("rror"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !installed(&["fio"]) {
        return;
    }
    let image = Image::new(32 * MIB, &[]);
    let served = Served::image(&image.path);
    for (pattern, block, depth) in
        [("randwrite", "4k", "32"), ("randrw", "4k-256k", "8"), ("write", "1m", "4"), ("randwrite", "512", "1")]
    {
        let uri = format!("--uri={}", served.uri(""));
        let (pattern, depth) = (format!("--rw={pattern}"), format!("--iodepth={depth}"));
        let block = if block.contains('-') { format!("--bsrange={block}") } else { format!("--bs={block}") };
        let size = if block.ends_with("512") { "--size=2M" } else { "--size=32M" };
        let fixed = ["--name=j", "--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", size];
        let mut arguments: Vec<&str> = fixed.to_vec();
        arguments.extend([uri.as_str(), &pattern, &depth, &block]);
        let output = Command::new("fio").args(&arguments).current_dir(image.folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &text(&output);
        if said.contains("engine nbd not loadable") {
            let _ = writeln!(std::io::stderr(), "SKIPPED: fio has no nbd engine");
            return;
        }
        assert!(output.status.success(), "{arguments:?}\n{said}");
    }
}

#[test]
fn nbdkits_checked_pattern_comes_back_as_it_was() {
    if !installed(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let image = Image::new(64 * MIB, &[]);
    let served = Served::image(&image.path);
    // The plugin rejects a write that differs from its pattern.
    let ours = served.uri("");
    let script = format!("nbdcopy \"$uri\" '{ours}' && nbdcopy '{ours}' \"$uri\"");
    let folder = image.folder.path();
    run("nbdkit", folder, &["-U", "-", "sparse-random", "size=64M", "seed=7", "percent=30", "--run", &script]);
}

#[test]
fn a_client_without_strictness_is_answered() {
    if !installed(&["nbdsh"]) {
        return;
    }
    let image = Image::new(MIB, &[(0, 4096)]);
    let served = Served::image(&image.path);
    let script = "\
import nbd, errno
h.set_strict_mode(0)
def code(f):
    try:
        f()
    except nbd.Error as e:
        return e.errno
    return 0
assert code(lambda: h.pread(512, 1 << 20)) == 'EINVAL', 'read'
assert code(lambda: h.trim(1, 1 << 60)) == 'EINVAL', 'trim'
assert code(lambda: h.pwrite(b'x', 1 << 20)) == 'ENOSPC', 'write'
assert code(lambda: h.pread(512, 0, 1 << 12)) == 'EINVAL', 'flag'
assert code(lambda: h.cache(512, 0)) == 'EINVAL', 'cache'
assert len(h.pread(512, 0, nbd.CMD_FLAG_DF)) == 512
";
    // Its module is of the distribution's Python, which need not be the first in PATH.
    let path = format!("PATH=/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
    let available = Command::new("env").args([&path, "nbdsh", "-c", "pass"]).output().unwrap();
    if !available.status.success() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: nbdsh does not run");
        return;
    }
    run("env", image.folder.path(), &[&path, "nbdsh", "-u", &served.uri(""), "-c", script]);
}

/// A server that we did not write; ended when dropped.
struct Foreign {
    child: Child,
    socket: PathBuf,
}

impl Foreign {
    fn start(program: &str, socket: PathBuf, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// Connects as soon as the server listens.
    async fn connect(&mut self, export: &str, options: ClientOptions) -> Result<Client, NbdError> {
        loop {
            match Client::connect_unix(&self.socket, export, options.clone()).await {
                Err(NbdError::Io(_)) => {
                    let ended = self.child.try_wait().unwrap();
                    assert!(ended.is_none(), "the server ended: {ended:?}");
                    tokio::task::yield_now().await;
                }
                other => return other,
            }
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn options(structured: bool, contexts: &[&str]) -> ClientOptions {
    let contexts = contexts.iter().map(|context| (*context).to_owned()).collect();
    ClientOptions { structured, contexts, ..ClientOptions::default() }
}

/// What a client can do, against a model; the export is writable, of 8 MiB, and reads as zeroes.
async fn exercise(client: &Client) {
    let mut model = vec![0; 8 << 20];
    for (step, (offset, length)) in
        [(0, 4096), (4096, 1 << 20), (700 * 512, 3 << 20), (7 << 20, 1 << 20), (8192, 512)].into_iter().enumerate()
    {
        let data = noise(step as u64 + 1, length);
        model[offset..offset + length].copy_from_slice(&data);
        client.write(offset as u64, data, step % 2 == 1).await.unwrap();
    }
    let mode = ZeroMode { may_trim: true, ..ZeroMode::default() };
    client.write_zeroes(MIB, MIB, mode).await.unwrap();
    model[1 << 20..2 << 20].fill(0);
    client.flush().await.unwrap();
    let mut tasks = Vec::new();
    for part in 0..64_usize {
        let client = client.clone();
        tasks.push(tokio::spawn(async move { (part, client.read(part as u64 * 128 * 1024, 128 * 1024).await) }));
    }
    for task in tasks {
        let (part, data) = task.await.unwrap();
        assert!(data.unwrap() == model[part << 17..][..1 << 17], "part {part}");
    }
    assert!(client.read(0, 8 << 20).await.unwrap() == model);
    client.trim(4 * MIB, MIB, false).await.unwrap();
}

#[tokio::test]
async fn our_client_uses_qemu_nbd_and_its_dirty_bitmap() {
    if !installed(&["qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    run("qemu-img", at, &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    run("qemu-img", at, &["bitmap", "--add", "-g", "64k", "disk.qcow2", "marks"]);
    run("qemu-io", at, &["-c", "write -P 7 1M 128k", "-c", "write -P 8 5M 64k", "disk.qcow2"]);
    let (image, socket) = (at.join("disk.qcow2"), at.join("socket"));
    let (image, name) = (image.to_str().unwrap(), socket.to_str().unwrap().to_owned());

    let list = ["-t", "-r", "-k", &name, "-f", "qcow2", "-B", "marks", "-x", "disk", "-e", "4", image];
    let mut server = Foreign::start("qemu-nbd", socket.clone(), &list);
    let context = "qemu:dirty-bitmap:marks";
    let client = server.connect("disk", options(true, &[CONTEXT_ALLOCATION, context])).await.unwrap();
    assert_eq!(client.info().contexts.len(), 2);
    let dirty = client.block_status_all(context, 0, 8 * MIB).await.unwrap();
    let dirty: Vec<_> = dirty.iter().map(|extent| (extent.length >> 16, extent.flags)).collect();
    assert_eq!(dirty, [(16, 0), (2, 1), (62, 0), (1, 1), (47, 0)]);
    let allocated = client.block_status_all(CONTEXT_ALLOCATION, 0, 8 * MIB).await.unwrap();
    assert_eq!(allocated.iter().map(|extent| extent.length).sum::<u64>(), 8 * MIB);
    assert_eq!(client.read(MIB, 4).await.unwrap(), [7; 4]);
    // Partly a hole, so that it comes in several chunks.
    let all = client.read(0, 8 << 20).await.unwrap();
    assert!(all[..1 << 20].iter().all(|b| *b == 0) && all[5 << 20..][..65536].iter().all(|b| *b == 8));
    let refused = client.write(0, vec![1; 512], false).await;
    // This server says EINVAL where the protocol suggests EPERM.
    assert!(matches!(refused, Err(NbdError::Server { .. })), "{refused:?}");
    assert!(client.info().read_only());
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let names: Vec<_> = Client::list(stream).await.unwrap().into_iter().map(|export| export.name).collect();
    assert_eq!(names, ["disk"]);
    let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let info = Client::query(stream, "disk").await.unwrap();
    assert!(info.contexts.iter().any(|(_, name)| name == context), "{info:?}");
    client.disconnect().await;
    drop(server);

    for structured in [true, false] {
        run("qemu-img", at, &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
        let _ = std::fs::remove_file(&socket);
        let list = ["-t", "-k", &name, "-f", "qcow2", "-e", "4", "--discard=unmap", image];
        let mut server = Foreign::start("qemu-nbd", socket.clone(), &list);
        let client = server.connect("", options(structured, &[])).await.unwrap();
        assert_eq!(client.info().structured, structured);
        exercise(&client).await;
        client.disconnect().await;
    }
}

#[tokio::test]
async fn our_client_uses_nbdkit_with_and_without_its_modern_ways() {
    if !installed(&["nbdkit"]) {
        return;
    }
    let variants: [&[&str]; 4] = [
        &["memory", "8M"],
        &["--no-sr", "memory", "8M"],
        &["--mask-handshake=0", "memory", "8M"],
        &["--filter=delay", "memory", "8M", "rdelay=1ms"],
    ];
    for variant in variants {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let mut arguments = vec!["-f", "-U", socket.to_str().unwrap()];
        arguments.extend(variant);
        let mut server = Foreign::start("nbdkit", socket.clone(), &arguments);
        let client = server.connect("", options(true, &[CONTEXT_ALLOCATION])).await.unwrap();
        assert_eq!(client.info().structured, !variant[0].starts_with("--no-sr") && !variant[0].starts_with("--mask"));
        exercise(&client).await;
        client.disconnect().await;
    }
}

#[tokio::test]
async fn errors_of_nbdkit_are_errors_of_the_request_alone() {
    if !installed(&["nbdkit"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, trigger) = (folder.path().join("socket"), folder.path().join("trigger"));
    let file = format!("error-file={}", trigger.display());
    let name = socket.to_str().unwrap();
    let list = ["-f", "-U", name, "--filter=error", "memory", "8M", "error=ENOSPC", "error-rate=100%", &file];
    let mut server = Foreign::start("nbdkit", socket.clone(), &list);
    let client = server.connect("", options(true, &[])).await.unwrap();
    client.write(0, vec![3; 4096], false).await.unwrap();
    File::create(&trigger).unwrap();
    for result in [
        client.read(0, 4096).await.map(|_| ()),
        client.write(0, vec![1; 4096], false).await,
        client.write_zeroes(0, 4096, ZeroMode::default()).await,
    ] {
        assert!(matches!(result, Err(NbdError::Server { code: ErrorCode::NoSpace, .. })), "{result:?}");
    }
    std::fs::remove_file(&trigger).unwrap();
    assert_eq!(client.read(0, 4096).await.unwrap(), [3; 4096]);
    // A server that dies with requests in flight.
    drop(server);
    assert!(matches!(client.read(0, 4096).await, Err(NbdError::Lost(_))));
}

#[test]
fn a_file_backend_is_what_the_file_is() {
    let image = Image::new(4 * MIB, &[(MIB, 4096)]);
    let backend = FileBackend::open(&image.path, Access::ReadWrite).unwrap();
    assert_eq!(backend.size_bytes(), 4 * MIB);
    assert!(backend.is_zero(2 * MIB, MIB) && !backend.is_zero(0, 2 * MIB));
    backend.write(3 * MIB, &[1; 512], true).unwrap();
    backend.write_zeroes(MIB, 4096, ZeroMode { may_trim: true, fua: true, fast: false }).unwrap();
    assert_eq!(backend.size_bytes(), std::fs::metadata(&image.path).unwrap().len());
    let mut bytes = vec![9; 4096];
    backend.read(MIB, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4096]);
    // What somebody has cut off is no hole.
    File::options().write(true).open(&image.path).unwrap().set_len(2 * MIB).unwrap();
    assert!(backend.is_zero(MIB, MIB) && !backend.is_zero(MIB, 2 * MIB) && !backend.is_zero(3 * MIB, MIB));
    let mut extents = Extents::new(MIB, 8);
    assert!(backend.block_status(CONTEXT_ALLOCATION, 3 * MIB, MIB, &mut extents).is_err());
}
