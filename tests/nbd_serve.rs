//! The program's NBD server as a citizen: many exports, signals in the middle of things, a recorded disk that is killed.

#[path = "../crates/nbd/tests/certificates/mod.rs"]
mod certificates;

use certificates::Certificates;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use whimbrel_model::Rng;
use whimbrel_nbd::{Client, ClientOptions, NbdError};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 8192;

/// A server that has said that it serves.
struct Serving {
    child: Child,
    said: Vec<String>,
}

impl Serving {
    fn start(arguments: &[&str], socket: &Path) -> Serving {
        let listen = format!("unix:{}", socket.display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_whimbrel"))
            .args(["nbd", "serve"])
            .args(arguments)
            .args(["--listen", &listen])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            said.push(line.unwrap());
            if said.last().is_some_and(|line| line.starts_with("serving")) {
                break;
            }
        }
        // A child that another test forks holds this process's locks until it executes its program: try again.
        if said.last().is_some_and(|line| line.contains("is in use")) {
            child.wait().unwrap();
            return Serving::start(arguments, socket);
        }
        assert!(said.last().is_some_and(|line| line.starts_with("serving")), "it doesn't serve: {said:?}");
        // Its last words must not meet a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Serving { child, said }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn image(path: &Path) -> String {
    File::create(path).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
    path.display().to_string()
}

/// What a block holds after its write number `version`.
fn content(block: u64, version: u64) -> Vec<u8> {
    let word = (block << 20 | version).to_le_bytes();
    word.iter().copied().cycle().take(BLOCK).collect()
}

fn run(program: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {program}: {error}");
            None
        }
    }
}

/// 128 writers, each on its own blocks, write, and flush now and then, until the connection ends. Returns for each block the
/// last version that was acknowledged, and the last one before a flush that was.
async fn write_until_the_end(socket: &Path, begun: tokio::sync::oneshot::Sender<()>) -> Vec<(u64, u64)> {
    let client = Client::connect_unix(socket, "", ClientOptions::default()).await.unwrap();
    let begun = std::sync::Arc::new(std::sync::Mutex::new(Some(begun)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..128_u64 {
        let (client, begun) = (client.clone(), begun.clone());
        writers.spawn(async move {
            let (mut acknowledged, mut flushed) = (0, 0);
            loop {
                let version = acknowledged + 1;
                match client.write(writer * BLOCK as u64, content(writer, version), false).await {
                    Ok(()) => acknowledged = version,
                    Err(NbdError::Lost(_) | NbdError::Disconnected | NbdError::Server { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
                if version % 16 == writer % 16 {
                    match client.flush().await {
                        Ok(()) => flushed = acknowledged,
                        Err(_) => break,
                    }
                }
                if version == 20
                    && let Some(begun) = begun.lock().unwrap().take()
                {
                    begun.send(()).unwrap();
                }
            }
            (writer, acknowledged, flushed)
        });
    }
    let mut versions = vec![(0, 0); 128];
    while let Some(done) = writers.join_next().await {
        let (writer, acknowledged, flushed) = done.unwrap();
        versions[writer as usize] = (acknowledged, flushed);
    }
    versions
}

#[test]
fn sigterm_with_128_requests_in_flight_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("disk.raw"), folder.path().join("socket"));
    let image = image(&path);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..4 {
        let mut serving = Serving::start(&[&image], &socket);
        let (begun, writing) = tokio::sync::oneshot::channel();
        let writers = runtime.spawn({
            let socket = socket.clone();
            async move { write_until_the_end(&socket, begun).await }
        });
        runtime.block_on(writing).unwrap();
        serving.signal(rustix::process::Signal::TERM);
        assert_eq!(serving.ended(), Some(0));
        assert!(!socket.exists());
        let disk = File::open(&path).unwrap();
        for (block, (acknowledged, flushed)) in runtime.block_on(writers).unwrap().into_iter().enumerate() {
            let mut found = vec![0; BLOCK];
            disk.read_exact_at(&mut found, (block * BLOCK) as u64).unwrap();
            // One more may have been written whose answer was lost; nothing older than what was acknowledged.
            let may = [acknowledged, acknowledged + 1];
            let fits = may.iter().any(|version| found == content(block as u64, *version));
            assert!(fits, "block {block}: acknowledged {acknowledged}, flushed {flushed}");
            assert!(acknowledged >= flushed);
        }
    }
}

#[test]
fn a_recorded_disk_killed_at_any_instant_misses_no_written_block() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket, bitmap) =
        (folder.path().join("disk.raw"), folder.path().join("socket"), folder.path().join("bitmap"));
    let image = image(&path);
    let bitmap_text = bitmap.display().to_string();
    let mut rng = Rng::new(std::process::id().into());
    eprintln!("seed {}", std::process::id());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut before = fs::read(&path).unwrap();
    for round in 1..=12_u64 {
        let _ = fs::remove_file(&socket);
        let mut serving = Serving::start(&[&image, "--bitmap", &bitmap_text], &socket);
        let (writes, width) = (rng.below(400) + 1, rng.below(BLOCKS - 1) + 1);
        runtime.block_on(async {
            let client = Client::connect_unix(&socket, "", ClientOptions::default()).await.unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            for write in 0..writes {
                let (client, block) = (client.clone(), rng.below(width));
                let data = content(block, round << 10 | write);
                tasks.spawn(async move { client.write(block * BLOCK as u64, data, false).await });
            }
            // As many answers as chance wants, then death.
            for _ in 0..rng.below(writes + 1) {
                tasks.join_next().await.unwrap().unwrap().unwrap();
            }
            serving.signal(rustix::process::Signal::KILL);
            while tasks.join_next().await.is_some() {}
        });
        assert_eq!(serving.ended(), None);
        let after = fs::read(&path).unwrap();
        let size = BLOCKS * BLOCK as u64;
        assert_eq!(after.len() as u64, size);
        let (file, set, _) = whimbrel_disk::BitmapFile::open(&bitmap, BLOCKS, BLOCK as u64).unwrap();
        let changed = (0..BLOCKS as usize).filter(|b| before[b * BLOCK..][..BLOCK] != after[b * BLOCK..][..BLOCK]);
        let missing: Vec<usize> = changed.filter(|block| !set.contains(*block as u64)).collect();
        assert!(missing.is_empty(), "round {round}: {missing:?} were written and are not in the bitmap");
        // What was found so far is known: the next round's blocks have to be found anew.
        file.checkpoint(true, || Ok(whimbrel_model::UnitSet::empty(BLOCKS))).unwrap();
        before = after;
    }
}

#[test]
fn what_was_written_is_seen_by_nbdinfo_and_qemu_and_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket, bitmap) =
        (folder.path().join("disk.raw"), folder.path().join("socket"), folder.path().join("bitmap"));
    let image = image(&path);
    let bitmap = bitmap.display().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut serving = Serving::start(&[&image, "--bitmap", &bitmap], &socket);
    assert!(serving.said[0].contains("new"), "{:?}", serving.said);
    runtime.block_on(async {
        let client = Client::connect_unix(&socket, "", ClientOptions::default()).await.unwrap();
        client.write(8 * BLOCK as u64, content(8, 1), false).await.unwrap();
        client.write(9 * BLOCK as u64, content(9, 1), true).await.unwrap();
        client.disconnect().await;
    });
    serving.signal(rustix::process::Signal::TERM);
    assert_eq!(serving.ended(), Some(0));
    let serving = Serving::start(&[&image, "--bitmap", &bitmap], &socket);
    assert!(serving.said[0].contains("as it was left; 2 blocks"), "{:?}", serving.said);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    if let Some(map) = run("nbdinfo", &["--map=whimbrel:dirty", &uri]) {
        let rows: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
        let rest = (BLOCKS * BLOCK as u64 - 40960).to_string();
        assert_eq!(rows, [vec!["0", "32768", "0"], vec!["32768", "8192", "1"], vec!["40960", &rest, "0"]]);
    }
    let options = format!("driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=whimbrel:dirty", socket.display());
    // QEMU reads a set bit as "no data here".
    if let Some(map) = run("qemu-img", &["map", "--output=json", "--image-opts", &options]) {
        let rows: serde_json::Value = serde_json::from_str(&map).unwrap();
        let dirty: Vec<(u64, u64)> = rows
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["data"] == false)
            .map(|row| (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap()))
            .collect();
        assert_eq!(dirty, [(32768, 8192)], "{map}");
    }
}

#[test]
fn several_exports_by_name_and_read_only_ones() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let (one, two) = (image(&folder.path().join("one.raw")), image(&folder.path().join("two.raw")));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut serving = Serving::start(&[&format!("first={one}"), &format!("second={two}")], &socket);
    runtime.block_on(async {
        let options = ClientOptions::default();
        let second = Client::connect_unix(&socket, "second", options.clone()).await.unwrap();
        second.write(0, content(0, 2), true).await.unwrap();
        let plain = ClientOptions { structured: false, ..options.clone() };
        let first = Client::connect_unix(&socket, "first", plain).await.unwrap();
        assert!(!first.info().structured);
        assert_eq!(first.read(0, BLOCK).await.unwrap(), vec![0; BLOCK]);
        assert!(Client::connect_unix(&socket, "", options).await.is_err(), "no default export was named");
    });
    serving.signal(rustix::process::Signal::TERM);
    assert_eq!(serving.ended(), Some(0));
    assert_eq!(fs::read(&two).unwrap()[..BLOCK], content(0, 2));

    let mut permissions = fs::metadata(&two).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&two, permissions).unwrap();
    let _serving = Serving::start(&[&two, "--read-only"], &socket);
    runtime.block_on(async {
        let client = Client::connect_unix(&socket, "", ClientOptions::default()).await.unwrap();
        assert!(client.info().read_only());
        assert_eq!(client.read(0, BLOCK).await.unwrap(), content(0, 2));
        assert!(client.write(0, content(0, 3), false).await.is_err());
    });
}

/// What a user types, with the clients that a user has: each gets in with its certificate, and not without TLS.
#[test]
fn an_image_has_one_writer_or_readers() {
    let folder = tempfile::tempdir().unwrap();
    let [disk, other] = ["disk.raw", "other.raw"].map(|name| image(&folder.path().join(name)));
    let bitmap = folder.path().join("bitmap").display().to_string();
    let socket = |name: &str| folder.path().join(name);
    let refused = |arguments: &[&str]| {
        let listen = format!("unix:{}", socket("refused").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_whimbrel"));
        let output = command.args(["nbd", "serve"]).args(arguments).args(["--listen", &listen]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("is in use"), "{arguments:?}: {said}");
    };
    let recorded = Serving::start(&[&disk, "--bitmap", &bitmap], &socket("recorded"));
    refused(&[&disk]);
    refused(&[&disk, "--read-only"]);
    drop(recorded);
    let reading = Serving::start(&[&disk, "--read-only"], &socket("reading"));
    let _too = Serving::start(&[&disk, "--read-only"], &socket("too"));
    refused(&[&disk]);
    drop(reading);
    refused(&[&format!("a={other}"), &format!("b={other}")]);
}

#[test]
fn qemu_img_nbdinfo_and_nbdcopy_come_in_by_tls_alone() {
    let Some(certificates) = Certificates::make() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("disk.raw"), folder.path().join("socket"));
    let image = image(&path);
    let file = |name: &str| certificates.path(name).display().to_string();
    let (certificate, key, authority) = (file("server-cert.pem"), file("server-key.pem"), file("ca-cert.pem"));
    let flags = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &authority];
    let mut serving = Serving::start(&[&[&*image][..], &flags].concat(), &socket);
    File::options().write(true).open(&path).unwrap().write_all_at(&content(3, 1), 3 * BLOCK as u64).unwrap();

    let own = certificates.folder().display();
    let credentials = format!("tls-creds-x509,id=own,dir={own},endpoint=client");
    let plain = format!("driver=nbd,server.type=unix,server.path={}", socket.display());
    let secure = format!("{plain},tls-creds=own,tls-hostname=localhost");
    let copy = folder.path().join("copy.raw").display().to_string();
    let convert = ["convert", "--object", &credentials, "--image-opts", &secure, "-O", "raw", &copy];
    if run("qemu-img", &convert).is_some() {
        assert!(fs::read(&copy).unwrap() == fs::read(&path).unwrap(), "qemu-img's copy differs");
        assert!(!is_let_in("qemu-img", &["info", "--image-opts", &plain]), "qemu-img came in without TLS");
    }
    let uri = format!("nbds+unix://localhost/?socket={}&tls-certificates={own}", socket.display());
    if let Some(told) = run("nbdinfo", &[&uri]) {
        assert!(told.contains("with TLS"), "{told}");
        let plain = format!("nbd+unix:///?socket={}", socket.display());
        assert!(!is_let_in("nbdinfo", &[&plain]), "nbdinfo came in without TLS");
    }
    let other = folder.path().join("other.raw").display().to_string();
    if run("nbdcopy", &[&uri, &other]).is_some() {
        assert!(fs::read(&other).unwrap() == fs::read(&path).unwrap(), "nbdcopy's copy differs");
    }
    serving.signal(rustix::process::Signal::TERM);
    assert_eq!(serving.ended(), Some(0));
}

/// Whether a program that is there succeeds.
fn is_let_in(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
}
