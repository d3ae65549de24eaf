//! What the server is told by flags and environment.

use std::path::PathBuf;

use anyhow::bail;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{ArgAction, Parser};

use crate::config::Question;
use crate::logs::LogLimits;
use crate::settings::MOST_OFFERS_TRIED;
use crate::ssh_proxy::ProxyAddress;

/// Start a server.
#[derive(Parser, Clone)]
#[command(
    name = "dstack server",
    version,
    about = "Start a server",
    long_about = "Start a server: it takes what people submit, finds machines for it, and runs it there. \
                  On the first start it makes its folder, the user `admin` and the project `main`."
)]
pub struct ServerArgs {
    /// Bind the server to this host
    #[arg(long, env = "DSTACK_SERVER_HOST", default_value = "127.0.0.1")]
    pub host: String,

    /// Bind the server to this port
    #[arg(short, long, env = "DSTACK_SERVER_PORT", default_value_t = 3000)]
    pub port: u16,

    /// The level of the log: TRACE, DEBUG, INFO, WARNING, ERROR
    #[arg(short, long, env = "DSTACK_SERVER_LOG_LEVEL", default_value = "INFO", value_parser = level(),
          ignore_case = true)]
    pub log_level: String,

    /// Log everything, also what libraries do
    #[arg(short, long)]
    pub debug: bool,

    /// The token of the user `admin`; it counts on the first start only. Random if not set
    #[arg(long, env = "DSTACK_SERVER_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,

    /// Make `main` the CLI's default project without asking
    #[arg(short, long, conflicts_with = "no")]
    pub yes: bool,

    /// Leave the CLI's default project as it is without asking
    #[arg(short, long)]
    pub no: bool,

    /// The folder of the server's files [default: ~/.dstack/server]
    #[arg(long, env = "DSTACK_SERVER_DIR", hide = true)]
    pub server_dir: Option<PathBuf>,

    /// A Postgres database in place of the SQLite file
    #[arg(long, env = "DSTACK_DATABASE_URL", hide = true, hide_env_values = true)]
    pub database_url: Option<String>,

    /// The URL that clients use [default: http://HOST:PORT]
    #[arg(long, env = "DSTACK_SERVER_URL", hide = true)]
    pub server_url: Option<String>,

    /// Largest upload in bytes; 0: no limit
    #[arg(long, env = "DSTACK_SERVER_CODE_UPLOAD_LIMIT", default_value_t = 2 * 1024 * 1024, hide = true)]
    pub code_upload_limit: u64,

    /// Bytes that are kept of one job's output; 0: no limit
    #[arg(long, env = "DSTACK_SERVER_LOG_LIMIT", default_value_t = LogLimits::default().job_bytes, hide = true)]
    pub log_limit: u64,

    /// Seconds for which the logs of finished jobs are kept; 0: until their run is deleted
    #[arg(long, env = "DSTACK_SERVER_LOG_TTL_SECONDS", default_value_t = 0, hide = true)]
    pub log_ttl_seconds: u64,

    /// Leave `config.yml` alone
    #[arg(long, env = "DSTACK_SERVER_CONFIG_DISABLED", action = ArgAction::SetTrue, value_parser = flag(), hide = true)]
    pub config_disabled: bool,

    /// Give numbers to Prometheus at `/metrics`
    #[arg(
        long,
        env = "DSTACK_ENABLE_PROMETHEUS_METRICS",
        action = ArgAction::SetTrue,
        value_parser = flag(),
        hide = true
    )]
    pub prometheus_metrics: bool,

    /// The token that Prometheus must send
    #[arg(long, env = "DSTACK_PROMETHEUS_AUTH_TOKEN", hide = true, hide_env_values = true)]
    pub prometheus_token: Option<String>,

    /// Like `--yes`
    #[arg(
        long,
        env = "DSTACK_UPDATE_DEFAULT_PROJECT",
        action = ArgAction::SetTrue,
        value_parser = flag(),
        hide = true
    )]
    pub update_default_project: bool,

    /// Like `--no`
    #[arg(
        long,
        env = "DSTACK_DO_NOT_UPDATE_DEFAULT_PROJECT",
        action = ArgAction::SetTrue,
        value_parser = flag(),
        hide = true
    )]
    pub do_not_update_default_project: bool,

    /// Where users reach the server's SSH proxy: HOST or HOST:PORT. There is none unless this is set
    #[arg(long, env = "DSTACK_SERVER_SSHPROXY_ADDRESS", hide = true)]
    pub ssh_proxy_address: Option<String>,

    /// Where the SSH proxy listens [default: the server's host, and the port of the address]
    #[arg(long, env = "DSTACK_SERVER_SSHPROXY_LISTEN", hide = true)]
    pub ssh_proxy_listen: Option<String>,

    /// No keys of users on hosts. So it is wherever there is an SSH proxy
    #[arg(
        long,
        env = "DSTACK_SERVER_SSHPROXY_ENFORCED",
        action = ArgAction::SetTrue,
        value_parser = flag(),
        hide = true
    )]
    pub ssh_proxy_enforced: bool,

    /// The agent's executable
    #[arg(long, env = "DSTACK_AGENT_BINARY", hide = true)]
    pub agent_binary: Option<PathBuf>,

    /// The image of runs that name none
    #[arg(long, env = "DSTACK_DEFAULT_IMAGE", hide = true)]
    pub default_image: Option<String>,

    /// The image of such runs on machines with EFA
    #[arg(long, env = "DSTACK_DEFAULT_EFA_IMAGE", hide = true)]
    pub default_efa_image: Option<String>,

    /// How many offers are tried for the same machines before they are given up
    #[arg(
        long,
        env = "DSTACK_SERVER_MAX_OFFERS_TRIED",
        default_value_t = MOST_OFFERS_TRIED,
        value_parser = clap::value_parser!(u32).range(1..),
        hide = true
    )]
    pub max_offers_tried: u32,

    /// No backend may have `creds: {type: default}`
    #[arg(
        long,
        env = "DSTACK_DEFAULT_CREDS_DISABLED",
        action = ArgAction::SetTrue,
        value_parser = flag(),
        hide = true
    )]
    pub default_creds_disabled: bool,

    /// Backends that exist for tests may be configured
    #[arg(long, env = "DSTACK_TEST_BACKENDS", action = ArgAction::SetTrue, value_parser = flag(), hide = true)]
    pub test_backends: bool,
}

// The token must not be printed.
impl std::fmt::Debug for ServerArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerArgs").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

// The official names, and other common ones for the same.
fn level() -> PossibleValuesParser {
    let shown = ["TRACE", "DEBUG", "INFO", "WARNING", "ERROR"].map(PossibleValue::new);
    let others = ["WARN", "CRITICAL", "FATAL"].map(|name| PossibleValue::new(name).hide(true));
    PossibleValuesParser::new(shown.into_iter().chain(others))
}

// `1`, `true`, `yes` and `on` say yes; the empty text, `0`, `false`, `no` and `off` say no.
fn flag() -> clap::builder::FalseyValueParser {
    clap::builder::FalseyValueParser::new()
}

impl ServerArgs {
    /// Whether `main` may take the place of the CLI's default project.
    pub(super) fn question(&self) -> Question {
        if self.yes || (self.update_default_project && !self.no) {
            return Question::Yes;
        }
        if self.no || self.do_not_update_default_project {
            return Question::No;
        }
        Question::Ask
    }

    /// Where users reach the SSH proxy, and where it listens; none if there is to be none.
    pub(super) fn ssh_proxy(&self) -> anyhow::Result<Option<(ProxyAddress, String)>> {
        let Some(address) = self.ssh_proxy_address.as_deref().filter(|address| !address.is_empty()) else {
            if self.ssh_proxy_listen.as_deref().is_some_and(|listen| !listen.is_empty()) {
                bail!(
                    "DSTACK_SERVER_SSHPROXY_LISTEN needs DSTACK_SERVER_SSHPROXY_ADDRESS: where users reach the proxy"
                );
            }
            return Ok(None);
        };
        let address = ProxyAddress::parse(address)
            .map_err(|error| anyhow::anyhow!("DSTACK_SERVER_SSHPROXY_ADDRESS: {error}"))?;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = || format!("{host}:{}", address.port_or_usual());
        let listen = self.ssh_proxy_listen.clone().filter(|listen| !listen.is_empty()).unwrap_or_else(usual);
        Ok(Some((address, listen)))
    }

    /// The URL that clients use.
    pub(super) fn url(&self, port: u16) -> String {
        match &self.server_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None if self.host.contains(':') => format!("http://[{}]:{port}", self.host),
            None => format!("http://{}:{port}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> ServerArgs {
        ServerArgs::parse_from(std::iter::once(&"dstack server").chain(args))
    }

    #[test]
    fn without_flags_the_official_defaults_hold() {
        let args = parse(&[]);
        assert_eq!((args.host.as_str(), args.port, args.log_level.as_str()), ("127.0.0.1", 3000, "INFO"));
        assert_eq!((args.url(3000).as_str(), args.question()), ("http://127.0.0.1:3000", Question::Ask));
        assert_eq!(args.code_upload_limit, 2_097_152);
        assert!(!args.config_disabled && !args.debug);
        assert_eq!(args.max_offers_tried, 25);
    }

    #[test]
    fn the_proxy_listens_where_it_is_reached_unless_told() {
        let check = |args: &[&str], expected: Option<&str>| {
            let proxy = parse(args).ssh_proxy().unwrap();
            assert_eq!(proxy.map(|(_, listen)| listen).as_deref(), expected);
        };
        check(&[], None);
        check(&["--ssh-proxy-address", ""], None);
        check(&["--ssh-proxy-address", "ssh.example.com:2222"], Some("127.0.0.1:2222"));
        check(&["--host", "::", "--ssh-proxy-address", "ssh.example.com"], Some("[::]:22"));
        check(&["--ssh-proxy-address", "a:22", "--ssh-proxy-listen", "0.0.0.0:2222"], Some("0.0.0.0:2222"));
        let refused = |args: &[&str]| parse(args).ssh_proxy().unwrap_err().to_string();
        assert!(
            refused(&["--ssh-proxy-address", "a:b"]).starts_with("DSTACK_SERVER_SSHPROXY_ADDRESS: `a:b` is not")
        );
        assert!(refused(&["--ssh-proxy-listen", ":1"]).contains("needs DSTACK_SERVER_SSHPROXY_ADDRESS"));
    }

    #[test]
    fn flags_are_read() {
        let args = parse(&["--host", "::1", "-p", "0", "-l", "debug", "-d", "--token", "secret-1", "-y"]);
        assert_eq!((args.url(4000).as_str(), args.question()), ("http://[::1]:4000", Question::Yes));
        assert_eq!((args.port, args.debug, args.token.as_deref()), (0, true, Some("secret-1")));
        assert!(!format!("{args:?}").contains("secret-1"));
        for level in ["trace", "Warn", "WARNING", "critical"] {
            assert_eq!(parse(&["-l", level]).log_level, level);
        }
        let refused = ServerArgs::try_parse_from(["dstack server", "-l", "INOF"]).unwrap_err().to_string();
        assert!(refused.contains("TRACE, DEBUG, INFO, WARNING, ERROR"), "{refused}");
        assert_eq!(parse(&["-n"]).question(), Question::No);
        assert_eq!(parse(&["--server-url", "https://x.y/"]).url(1), "https://x.y");
        assert!(ServerArgs::try_parse_from(["dstack server", "-y", "-n"]).is_err());
    }
}
