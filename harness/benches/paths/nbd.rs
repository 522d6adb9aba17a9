//! Our NBD server beside nbdkit's file plugin and qemu-nbd: the same file in the page cache, the same fio, in turns. Beside
//! them nbdkit's null plugin, which has no disk, for what fio itself can do; and what each server spends on a request. For
//! reads nbdcopy too, which does less for a request than fio does, and so waits more for the server.

use crate::agents::PROGRAM;
use crate::tally::{Figure, Limit, Tally, median};
use crate::{Options, Outcome};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FILE_MIB: usize = 256;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// What fio does.
#[derive(Clone, Copy)]
struct Job {
    /// fio's name for it (a mix is of 70 reads to 30 writes), or [`COPY`].
    kind: &'static str,
    /// Bytes a request.
    bytes: u64,
    /// Requests at once, a connection.
    depth: u32,
    connections: u32,
    /// The least ratio wanted.
    wanted: f64,
}

const fn job(kind: &'static str, bytes: u64, depth: u32, connections: u32, wanted: f64) -> Job {
    Job { kind, bytes, depth, connections, wanted }
}

/// The whole file read in order by nbdcopy, to nowhere.
const COPY: &str = "copy";
/// How often a turn does so.
const COPIES: u32 = 3;

const JOBS: [Job; 20] = [
    job("randread", 4096, 1, 1, 1.0),
    job("randwrite", 4096, 1, 1, 1.0),
    job("randrw", 4096, 1, 1, 1.0),
    job("randread", 4096, 32, 1, 1.5),
    job("randwrite", 4096, 32, 1, 1.5),
    job("randrw", 4096, 32, 1, 1.5),
    job("randread", 4096, 128, 1, 1.5),
    job("randwrite", 4096, 128, 1, 1.5),
    job("randrw", 4096, 128, 1, 1.5),
    job("randread", 4096, 32, 4, 1.5),
    job("randwrite", 4096, 32, 4, 1.5),
    job("randrw", 4096, 32, 4, 1.5),
    job("read", 1 << 20, 4, 1, 1.0),
    job("write", 1 << 20, 4, 1, 1.0),
    job("read", 1 << 20, 4, 4, 1.0),
    job("write", 1 << 20, 4, 4, 1.0),
    job(COPY, 4096, 32, 1, 1.5),
    job(COPY, 4096, 128, 1, 1.5),
    job(COPY, 4096, 32, 4, 1.5),
    job(COPY, 1 << 20, 4, 1, 1.0),
];

/// What one job did.
struct Measured {
    bytes_per_s: f64,
    /// The server's processor time a request.
    server_cpu_us: f64,
    /// How busy fio was with it; a job of one connection has one core.
    client_ratio: Option<f64>,
}

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
            // It answers without a disk: what is left is the client.
            "null" => {
                let mut command = Command::new("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&socket).args(["null", &format!("{FILE_MIB}M")]);
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

    /// Processor time of the server until now, in seconds.
    fn cpu_s(&self) -> Result<f64, String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_err(|e| e.to_string())?;
        // The name may hold spaces; the numbers follow its bracket, user and system time at 11 and 12.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).ok_or("a strange /proc/PID/stat")?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    fn measure(&self, job: Job, time: Duration) -> Result<Measured, String> {
        if job.kind == COPY { self.copied(job) } else { self.under_fio(job, time) }
    }

    fn copied(&self, job: Job) -> Result<Measured, String> {
        let (before_s, start) = (self.cpu_s()?, Instant::now());
        for _ in 0..COPIES {
            let status = Command::new("nbdcopy")
                .arg(format!("--connections={}", job.connections))
                .arg(format!("--requests={}", job.depth))
                .arg(format!("--request-size={}", job.bytes))
                .args([&format!("nbd+unix:///?socket={}", self.socket.display()), "null:"])
                .status()
                .map_err(|e| format!("nbdcopy can't be started: {e}"))?;
            if !status.success() {
                return Err(format!("nbdcopy on {} failed", self.name));
            }
        }
        let bytes = f64::from(COPIES) * (FILE_MIB << 20) as f64;
        let server_cpu_us = (self.cpu_s()? - before_s) * 1e6 / (bytes / job.bytes as f64);
        Ok(Measured { bytes_per_s: bytes / start.elapsed().as_secs_f64(), server_cpu_us, client_ratio: None })
    }

    fn under_fio(&self, job: Job, time: Duration) -> Result<Measured, String> {
        let before_s = self.cpu_s()?;
        let output = Command::new("fio")
            .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based", "--randrepeat=1"])
            .args(["--group_reporting", "--rwmixread=70"])
            .arg(format!("--uri=nbd+unix:///?socket={}", self.socket.display()))
            .arg(format!("--rw={}", job.kind))
            .arg(format!("--bs={}", job.bytes))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--numjobs={}", job.connections))
            .arg(format!("--runtime={}ms", time.as_millis()))
            .output()
            .map_err(|e| format!("fio can't be started: {e}"))?;
        // Some builds of fio say something before the JSON begins.
        let text = String::from_utf8_lossy(&output.stdout);
        let said: serde_json::Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())
            .map_err(|e| format!("fio on {}: {e}: {}", self.name, String::from_utf8_lossy(&output.stderr)))?;
        let said = &said["jobs"][0];
        let both = |key: &str| said["read"][key].as_f64().unwrap_or(0.0) + said["write"][key].as_f64().unwrap_or(0.0);
        let (bytes_per_s, requests) = (both("bw_bytes"), both("total_ios"));
        if bytes_per_s <= 0.0 {
            return Err(format!("fio on {} moved nothing: {}", self.name, said["error"]));
        }
        let client_ratio = said["usr_cpu"].as_f64().zip(said["sys_cpu"].as_f64()).map(|(user, system)| user + system);
        Ok(Measured { bytes_per_s, server_cpu_us: (self.cpu_s()? - before_s) * 1e6 / requests, client_ratio })
    }
}

/// Every job on all servers.
pub fn nbd(options: &Options, tally: &mut Tally) -> Outcome {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let image = folder.path().join("disk.raw");
    fill(&image).map_err(|e| format!("{}: {e}", image.display()))?;
    let ours = Server::start("whimbrel", &image, folder.path())?;
    let mut rivals = Vec::new();
    for name in ["nbdkit", "qemu-nbd", "null"] {
        match Server::start(name, &image, folder.path()) {
            Ok(server) => rivals.push(server),
            Err(why) => tally.skip(&format!("nbd / {name}"), &why),
        }
    }
    let time = Duration::from_millis(if options.quick { 200 } else { 600 });
    for job in JOBS {
        let mut own = Vec::new();
        let mut theirs: Vec<Vec<Measured>> = rivals.iter().map(|_| Vec::new()).collect();
        for turn in 0..options.pairs(5) {
            own.push(ours.measure(job, time)?);
            // Who follows directly changes from turn to turn.
            for at in 0..rivals.len() {
                let at = (at + turn) % rivals.len();
                theirs[at].push(rivals[at].measure(job, time)?);
            }
        }
        enter(tally, job, &own, &rivals, &theirs);
    }
    Ok(())
}

fn enter(tally: &mut Tally, job: Job, own: &[Measured], rivals: &[Server], theirs: &[Vec<Measured>]) {
    let Job { kind, bytes, depth, connections, wanted } = job;
    let many = if connections > 1 { format!(" x {connections}") } else { String::new() };
    let title = format!("nbd {kind} {} KiB, depth {depth}{many}", bytes >> 10);
    let of = |list: &[Measured], figure: fn(&Measured) -> f64| median(&list.iter().map(figure).collect::<Vec<_>>());
    let told = |name: &str, list: &[Measured]| {
        let (rate, cpu) = (of(list, |m| m.bytes_per_s) / 1e6, of(list, |m| m.server_cpu_us));
        let fio = list[0].client_ratio.map(|_| format!(", fio {:.0} %", of(list, |m| m.client_ratio.unwrap_or(0.0))));
        format!("{name} {rate:.0} MB/s, {cpu:.1} us of CPU a request{}", fio.unwrap_or_default())
    };
    let mut notes = vec![told("ours", own)];
    for (rival, list) in rivals.iter().zip(theirs) {
        notes.push(told(rival.name, list));
        if rival.name == "null" {
            continue;
        }
        let pairs: Vec<(f64, f64)> =
            own.iter().zip(list).map(|(o, t)| (o.bytes_per_s / 1e6, t.bytes_per_s / 1e6)).collect();
        let name = format!("{title} / {}", rival.name);
        tally.enter(&Figure { name: &name, unit: "MB/s", pairs: &pairs, limit: Limit::Least(wanted) });
    }
    tally.note(&title, &notes.join("; "));
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
