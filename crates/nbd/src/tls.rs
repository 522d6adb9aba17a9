//! TLS for both sides, by rustls: the certificates from files, and the handshake that follows STARTTLS.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Why TLS can't be had with what was given.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be used.
    #[error("{}: {why}; give {wanted} in PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        why: String,
        /// What would be accepted.
        wanted: &'static str,
    },
    /// The certificate and the key, or the authorities, don't go together.
    #[error("the certificates can't be used: {0}")]
    Unusable(String),
}

/// What a server shows to its clients, and what it asks of them.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    required: bool,
}

impl ServerTls {
    /// From PEM files: the server's certificate chain, its key, and, if clients have to show certificates, of which
    /// authorities. A client that doesn't ask for TLS is refused.
    pub fn from_files(certificate: &Path, key: &Path, authorities: Option<&Path>) -> Result<Self, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Unusable(e.to_string()))?;
        let builder = match authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider()).build();
                builder.with_client_cert_verifier(verifier.map_err(|e| TlsError::Unusable(e.to_string()))?)
            }
        };
        let config = builder.with_single_cert(chain(certificate)?, private_key(key)?);
        let config = config.map_err(|e| TlsError::Unusable(e.to_string()))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), required: true })
    }

    /// The same, but clients may do without TLS.
    pub fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// Whether clients must use TLS.
    pub(crate) fn required(&self) -> bool {
        self.required
    }

    /// The server's half of the handshake.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<server::TlsStream<S>> {
        self.acceptor.accept(stream).await
    }
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("required", &self.required).finish_non_exhaustive()
    }
}

/// Whom a client trusts, and what it shows.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    server: ServerName<'static>,
}

impl ClientTls {
    /// From PEM files: the authorities that the server's certificate has to come from and, if the server asks for one, the
    /// client's certificate chain and its key. `server` is the name or address that the server's certificate must be for.
    pub fn from_files(authorities: &Path, own: Option<(&Path, &Path)>, server: &str) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::Unusable(e.to_string()))?
            .with_root_certificates(roots(authorities)?);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(chain(certificate)?, private_key(key)?)
                .map_err(|e| TlsError::Unusable(e.to_string()))?,
        };
        let server = ServerName::try_from(server.to_owned()).map_err(|e| TlsError::Unusable(e.to_string()))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server })
    }

    /// The client's half of the handshake.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<client::TlsStream<S>> {
        self.connector.connect(self.server.clone(), stream).await
    }
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("server", &self.server).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |why: String| TlsError::File { path: path.to_owned(), why, wanted: "certificates" };
    let list: Result<Vec<_>, _> = match CertificateDer::pem_file_iter(path) {
        Ok(found) => found.collect(),
        Err(error) => Err(error),
    };
    match list {
        Ok(list) if list.is_empty() => Err(refuse("it holds no certificate".to_owned())),
        Ok(list) => Ok(list),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let refuse = |why: String| TlsError::File { path: path.to_owned(), why, wanted: "a private key" };
    PrivateKeyDer::from_pem_file(path).map_err(|error| refuse(error.to_string()))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).map_err(|e| TlsError::Unusable(format!("{}: {e}", path.display())))?;
    }
    Ok(roots)
}
