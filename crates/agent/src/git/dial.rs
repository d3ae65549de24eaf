//! Connections to the machines of repositories: names, proxies, and TLS.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::Error;
use super::url::{Scheme, Url};
use crate::names;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the other side may be silent. Servers that pack a large repository say something every few seconds.
pub(super) const SILENCE: Duration = Duration::from_mins(2);
/// The longest answer of a proxy.
const PROXY_ANSWER: usize = 16 * 1024;

/// Where systems keep the certificates that they trust.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Bytes in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections. What the environment says of proxies and certificates is heeded.
pub(super) struct Dialer {
    env: BTreeMap<String, String>,
    tls: Option<TlsConnector>,
}

impl Dialer {
    /// A dialer for a job with this environment.
    pub(super) fn new(env: BTreeMap<String, String>) -> Dialer {
        Dialer { env, tls: None }
    }

    /// Connects to the machine of `url`; with TLS where that is asked for.
    pub(super) async fn connect(&mut self, url: &Url) -> Result<Box<dyn Stream>, Error> {
        let tcp = match self.proxy_for(url) {
            Some(proxy) => connect_through(&proxy, url).await?,
            None => connect_tcp(&url.host, url.port).await?,
        };
        if url.scheme != Scheme::Https {
            return Ok(Box::new(tcp));
        }
        let name = ServerName::try_from(url.host.clone())
            .map_err(|_| Error::Unreachable(format!("`{}` is not a name of a host", url.host)))?;
        let failed = |error: &dyn std::fmt::Display| {
            Error::Unreachable(format!("the TLS connection to `{}` failed: {error}", url.authority()))
        };
        let connecting = self.tls()?.connect(name, tcp);
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(failed(&"it took too long")),
        }
    }

    fn tls(&mut self) -> Result<TlsConnector, Error> {
        if let Some(tls) = &self.tls {
            return Ok(tls.clone());
        }
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let own =
            ["GIT_SSL_CAINFO", "SSL_CERT_FILE"].iter().filter_map(|name| self.env.get(*name)).map(PathBuf::from);
        let bundle = own.chain(BUNDLES.iter().map(PathBuf::from)).find(|path| path.is_file());
        for certificate in bundle.iter().flat_map(CertificateDer::pem_file_iter).flatten().flatten() {
            // What is no certificate does not make the others wrong.
            roots.add_parsable_certificates([certificate]);
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Other(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.tls.insert(TlsConnector::from(Arc::new(config))).clone())
    }

    /// The proxy that the environment names for an address.
    fn proxy_for(&self, url: &Url) -> Option<Url> {
        let names: &[&str] = match url.scheme {
            Scheme::Https => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            // In capitals a web server may have set it for a request.
            Scheme::Http => &["http_proxy", "all_proxy", "ALL_PROXY"],
            Scheme::Ssh => return None,
        };
        let first =
            |names: &[&str]| names.iter().find_map(|name| self.env.get(*name)).filter(|text| !text.is_empty());
        let proxy = first(names)?;
        if first(&["no_proxy", "NO_PROXY"]).is_some_and(|list| is_listed(&url.host, list)) {
            return None;
        }
        let proxy = if proxy.contains("://") { proxy.clone() } else { format!("http://{proxy}") };
        Url::parse(&proxy).ok().filter(|proxy| proxy.scheme == Scheme::Http)
    }
}

/// Whether a host, or a domain above it, stands in a list of hosts that need no proxy.
fn is_listed(host: &str, list: &str) -> bool {
    list.split(',').map(|entry| entry.trim().trim_start_matches('.').to_ascii_lowercase()).any(|entry| {
        let is_below = || host.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'));
        entry == "*" || !entry.is_empty() && (host == entry || is_below())
    })
}

async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses = names::resolve(host)
        .await
        .map_err(|error| Error::Unreachable(format!("the host name `{host}` cannot be resolved: {error}")))?;
    let mut reason = "the name has no address".to_owned();
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => reason = error.to_string(),
            Err(_) => reason = format!("it does not answer within {} seconds", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(Error::Unreachable(format!("the host `{host}` cannot be reached on port {port}: {reason}")))
}

/// Asks a proxy for a tunnel.
async fn connect_through(proxy: &Url, url: &Url) -> Result<TcpStream, Error> {
    let failed = |reason: String| Error::Unreachable(format!("the proxy `{proxy}` {reason}"));
    let mut stream = connect_tcp(&proxy.host, proxy.port).await?;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let target = format!("{host}:{}", url.port);
    let login = proxy.user.as_ref().map(|user| {
        let login = STANDARD.encode(format!("{user}:{}", proxy.password.as_deref().unwrap_or_default()));
        format!("Proxy-Authorization: Basic {login}\r\n")
    });
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", login.unwrap_or_default());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > PROXY_ANSWER {
            return Err(failed("gave an answer without an end".to_owned()));
        }
        let byte = timeout(CONNECT_TIMEOUT, stream.read_u8()).await;
        answer.push(byte.map_err(|_| failed("does not answer".to_owned()))??);
    }
    let status = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        return Ok(stream);
    }
    Err(failed(format!("does not connect to `{target}`: {status}")))
}

/// Reads from a connection where the caller waits, and not for ever.
pub(super) struct Waiting<R> {
    runtime: Handle,
    reader: R,
}

impl<R> Waiting<R> {
    pub(super) fn new(runtime: Handle, reader: R) -> Waiting<R> {
        Waiting { runtime, reader }
    }
}

impl<R: AsyncRead + Unpin> Read for Waiting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reading = async { timeout(SILENCE, self.reader.read(buffer)).await };
        self.runtime.block_on(reading).unwrap_or_else(|_| Err(io::Error::other(Error::Stalled(SILENCE.as_secs()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_taken_from_the_environment_unless_the_host_is_listed() {
        let env = [("https_proxy", "me:pw@proxy:3128"), ("no_proxy", "internal.example, .corp,10.0.0.1")];
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let dialer = Dialer::new(env);
        let check = |url: &str, expected: Option<&str>| {
            let proxy = dialer.proxy_for(&Url::parse(url).unwrap());
            assert_eq!(proxy.map(|proxy| proxy.authority()).as_deref(), expected, "{url}");
        };
        check("https://host.example/a", Some("proxy:3128"));
        check("http://host.example/a", None);
        check("https://internal.example/a", None);
        check("https://git.internal.example/a", None);
        check("https://notinternal.example/a", Some("proxy:3128"));
        check("https://git.corp/a", None);
        check("ssh://host.example/a", None);
    }
}
