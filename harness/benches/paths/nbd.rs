//! Our NBD server beside nbdkit's file plugin and qemu-nbd: the same file in the page cache, the same fio, in turns.

use crate::agents::PROGRAM;
use crate::tally::{Figure, Limit, Tally};
use crate::{Options, Outcome};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FILE_MIB: usize = 256;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// What fio does: its name for it, bytes a request, requests at once, and the least ratio wanted.
const JOBS: [(&str, u64, u32, f64); 6] = [
    ("randread", 4096, 1, 1.0),
    ("randwrite", 4096, 1, 1.0),
    ("randread", 4096, 32, 1.5),
    ("randwrite", 4096, 32, 1.5),
    ("read", 1 << 20, 4, 1.0),
    ("write", 1 << 20, 4, 1.0),
];

/// A server of the file, ended when it is dropped.
struct Server {
    name: &'static str,
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(name: &'static str, image: &Path, folder: &Path) -> Result<Server, String> {
        let socket = folder.join(format!("{name}.sock"));
        let mut command = match name {
            "whimbrel" => {
                let mut command = Command::new(PROGRAM);
                command.args(["nbd", "serve"]).arg(image).arg("--listen").arg(format!("unix:{}", socket.display()));
                command
            }
            "nbdkit" => {
                let mut command = Command::new("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&socket).arg("file").arg(image);
                command
            }
            _ => {
                let mut command = Command::new("qemu-nbd");
                command.args(["--format=raw", "--persistent", "--shared=16", "--cache=writeback"]);
                command.arg("--socket").arg(&socket).arg(image);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|e| format!("{name} can't be started: {e}"))?;
        let server = Server { name, child, socket };
        let start = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            if start.elapsed() > PATIENCE {
                return Err(format!("{name} does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Bytes a second of one job.
    fn measure(&self, (kind, bytes, depth, _): (&str, u64, u32, f64), time: Duration) -> Result<f64, String> {
        let output = Command::new("fio")
            .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based", "--randrepeat=1"])
            .arg(format!("--uri=nbd+unix:///?socket={}", self.socket.display()))
            .arg(format!("--rw={kind}"))
            .arg(format!("--bs={bytes}"))
            .arg(format!("--iodepth={depth}"))
            .arg(format!("--runtime={}ms", time.as_millis()))
            .output()
            .map_err(|e| format!("fio can't be started: {e}"))?;
        // Some builds of fio say something before the JSON begins.
        let text = String::from_utf8_lossy(&output.stdout);
        let said: serde_json::Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())
            .map_err(|e| format!("fio on {}: {e}: {}", self.name, String::from_utf8_lossy(&output.stderr)))?;
        let direction = if kind.ends_with("read") { "read" } else { "write" };
        let rate = said["jobs"][0][direction]["bw_bytes"].as_f64().filter(|rate| *rate > 0.0);
        rate.ok_or_else(|| format!("fio on {} moved nothing: {}", self.name, said["jobs"][0]["error"]))
    }
}

/// Every job on all three servers.
pub fn nbd(options: &Options, tally: &mut Tally) -> Outcome {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let image = folder.path().join("disk.raw");
    fill(&image).map_err(|e| format!("{}: {e}", image.display()))?;
    let ours = Server::start("whimbrel", &image, folder.path())?;
    let mut rivals = Vec::new();
    for name in ["nbdkit", "qemu-nbd"] {
        match Server::start(name, &image, folder.path()) {
            Ok(server) => rivals.push(server),
            Err(why) => tally.skip(&format!("nbd / {name}"), &why),
        }
    }
    let time = Duration::from_millis(if options.quick { 200 } else { 400 });
    for job in JOBS {
        let mut pairs = vec![Vec::new(); rivals.len()];
        for turn in 0..options.pairs(5) {
            let own = ours.measure(job, time)?;
            // Who follows directly changes from turn to turn.
            for at in 0..rivals.len() {
                let at = (at + turn) % rivals.len();
                pairs[at].push((own / 1e6, rivals[at].measure(job, time)? / 1e6));
            }
        }
        let (kind, bytes, depth, wanted) = job;
        for (rival, pairs) in rivals.iter().zip(&pairs) {
            let name = format!("nbd {kind} {} KiB, depth {depth} / {}", bytes >> 10, rival.name);
            tally.enter(&Figure { name: &name, unit: "MB/s", pairs, limit: Limit::Least(wanted) });
        }
    }
    Ok(())
}

/// A file without holes, all of it in the page cache.
fn fill(image: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(image)?;
    let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..FILE_MIB {
        file.write_all(&chunk)?;
    }
    file.sync_all()
}
