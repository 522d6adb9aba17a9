//! Certificates for tests, made by gnutls' certtool.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const CERTTOOL: &str = "certtool";

/// Runs a program; `None`, said loudly, if it isn't installed.
pub fn run(program: &str, folder: &Path, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).current_dir(folder).stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            // Not through the test's captured output: a skip must be seen.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {program}: {error}");
            None
        }
    }
}

/// A folder with an authority and certificates from it, named as libnbd and nbdkit want them; another one, of nobody's.
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes them; `None`, said loudly, if certtool isn't installed.
    pub fn make() -> Option<Self> {
        let this = Self(tempfile::tempdir().unwrap());
        let folder = this.0.path();
        let templates = [
            ("ca", "cn = authority\nca\ncert_signing_key\n"),
            ("server", "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n"),
            ("client", "cn = somebody\ntls_www_client\nsigning_key\n"),
            ("other", "cn = stranger\nca\ncert_signing_key\n"),
        ];
        for (name, template) in templates {
            std::fs::write(folder.join(format!("{name}.info")), template).unwrap();
            let (key, certificate) = (format!("{name}-key.pem"), format!("{name}-cert.pem"));
            let info = format!("{name}.info");
            let privkey = ["--generate-privkey", "--key-type=ed25519", "--outfile", &key];
            let made = run(CERTTOOL, folder, &privkey)?;
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let mut arguments =
                vec!["--no-text", "--load-privkey", &key, "--template", &info, "--outfile", &certificate];
            match name {
                "ca" | "other" => arguments.push("--generate-self-signed"),
                _ => arguments.extend([
                    "--generate-certificate",
                    "--load-ca-certificate",
                    "ca-cert.pem",
                    "--load-ca-privkey",
                    "ca-key.pem",
                ]),
            }
            let made = run(CERTTOOL, folder, &arguments)?;
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        Some(this)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// One of the files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
