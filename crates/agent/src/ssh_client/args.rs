//! The command line of a client for SSH, as launchers write it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Options of OpenSSH's client without a value that change nothing here: there are no agents, displays, terminals and
/// levels of talk to choose.
const WITHOUT_EFFECT: &[u8] = b"1246AaCgKkqTtvXxYy";
/// Options with a value that change nothing here: files of configuration and of logs, ciphers, addresses of ours.
const VALUE_WITHOUT_EFFECT: &[u8] = b"BbcEeFIm";

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// The node, as it was written.
    pub(super) host: String,
    /// Who logs in.
    pub(super) user: Option<String>,
    /// The port, where it is not the node's own.
    pub(super) port: Option<u16>,
    /// Files of private keys to try before the gang's.
    pub(super) identities: Vec<PathBuf>,
    /// Standard input is not read.
    pub(super) no_input: bool,
    /// How long connecting may take.
    pub(super) connect_timeout: Option<Duration>,
    /// The command; empty: a shell.
    pub(super) command: Vec<u8>,
}

impl Arguments {
    /// Reads what follows the program's name, or says what is wrong with it.
    pub(super) fn parse(arguments: &[OsString]) -> Result<Arguments, String> {
        let mut parsed = Arguments::default();
        let mut rest = arguments.iter();
        let mut host: Option<String> = None;
        // Options may stand before the host and after it; what begins the command ends them.
        let mut command: Vec<&OsStr> = Vec::new();
        while let Some(word) = rest.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                command.extend(rest.by_ref().map(OsString::as_os_str));
            } else if let (Some(flags), true) = (bytes.strip_prefix(b"-"), bytes.len() > 1) {
                parsed.take_flags(flags, || rest.next().map(OsString::as_os_str))?;
            } else if host.is_none() {
                host = Some(text(word)?);
            } else {
                command.push(word);
                command.extend(rest.by_ref().map(OsString::as_os_str));
            }
        }
        if host.is_none() && !command.is_empty() {
            host = Some(text(command.remove(0))?);
        }
        let host =
            host.ok_or("no node is named: ssh [-l USER] [-p PORT] [-i FILE] [-o OPTION] [-n] NODE COMMAND")?;
        parsed.take_destination(&host)?;
        parsed.command = command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().join(&b' ');
        Ok(parsed)
    }

    /// Takes the letters of one word, of which the last may have a value: the rest of the word, or the next one.
    fn take_flags<'a>(
        &mut self,
        flags: &'a [u8],
        mut next: impl FnMut() -> Option<&'a OsStr>,
    ) -> Result<(), String> {
        for (place, flag) in flags.iter().enumerate() {
            let mut value = || {
                let rest = &flags[place + 1..];
                let value = if rest.is_empty() { next() } else { Some(OsStr::from_bytes(rest)) };
                value.ok_or_else(|| format!("`-{}` needs a value", char::from(*flag)))
            };
            match flag {
                b'n' => self.no_input = true,
                b'p' => self.port = Some(port(&text(value()?)?)?),
                b'l' => self.user = Some(text(value()?)?),
                b'i' => self.identities.push(PathBuf::from(value()?)),
                b'o' => self.take_option(&text(value()?)?)?,
                flag if WITHOUT_EFFECT.contains(flag) => {}
                flag if VALUE_WITHOUT_EFFECT.contains(flag) => drop(value()?),
                flag => return Err(unknown(*flag)),
            }
            let has_value = b"plio".contains(flag) || VALUE_WITHOUT_EFFECT.contains(flag);
            if has_value {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes an option as it stands in a configuration. Those that are not known change nothing: a node's key, for
    /// instance, is checked whatever an option says.
    fn take_option(&mut self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once(['=', ' ', '\t']).unwrap_or((option, ""));
        let value = value.trim_start_matches(['=', ' ', '\t']).trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "port" => self.port = Some(port(value)?),
            "user" => self.user = Some(value.to_owned()),
            "identityfile" => self.identities.push(PathBuf::from(value)),
            "connecttimeout" => {
                let secs =
                    value.parse().map_err(|_| format!("`ConnectTimeout={value}` is no number of seconds"))?;
                self.connect_timeout = Some(Duration::from_secs(secs)).filter(|timeout| !timeout.is_zero());
            }
            "stdinnull" => self.no_input |= value.eq_ignore_ascii_case("yes"),
            _ => {}
        }
        Ok(())
    }

    /// Takes `host`, `user@host` or `ssh://user@host:port`. Options win.
    fn take_destination(&mut self, text: &str) -> Result<(), String> {
        let (text, url_port) = match text.strip_prefix("ssh://") {
            None => (text, None),
            Some(url) => {
                let url = url.trim_end_matches('/');
                let bracket = url.rfind(']').unwrap_or(0);
                match url[bracket..].rfind(':') {
                    Some(colon) => (&url[..bracket + colon], Some(port(&url[bracket + colon + 1..])?)),
                    None => (url, None),
                }
            }
        };
        let (user, host) = match text.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, text),
        };
        self.user = self.user.take().or(user);
        self.port = self.port.or(url_port);
        host.trim_start_matches('[').trim_end_matches(']').clone_into(&mut self.host);
        if self.host.is_empty() { Err(format!("`{text}` names no node")) } else { Ok(()) }
    }
}

fn unknown(flag: u8) -> String {
    format!(
        "this client, which dstack brings, does not know `-{}`; an image with OpenSSH's client does",
        char::from(flag)
    )
}

fn text(word: &OsStr) -> Result<String, String> {
    String::from_utf8(word.to_owned().into_vec()).map_err(|_| format!("`{}` is no text", word.display()))
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("`{text}` is no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        let words: Vec<OsString> = line.split_ascii_whitespace().map(OsString::from).collect();
        Arguments::parse(&words)
    }

    fn check(line: &str, expected: &Arguments) {
        assert_eq!(parse(line).as_ref(), Ok(expected), "{line}");
    }

    #[test]
    fn what_launchers_write_is_understood() {
        let plain = Arguments { host: "10.0.0.2".to_owned(), command: b"orted -x".to_vec(), ..Default::default() };
        // Open MPI, Hydra, pdsh and DeepSpeed.
        check("-x 10.0.0.2 orted -x", &plain);
        check("-x -q -T 10.0.0.2 orted -x", &plain);
        check("-qTx 10.0.0.2 -a orted -x", &plain);
        check("-o PasswordAuthentication=no -oStrictHostKeyChecking=no -F /dev/null 10.0.0.2 orted -x", &plain);
        check("-2 -a -x 10.0.0.2 orted -x", &plain);
        let ann = Arguments { user: Some("ann".to_owned()), port: Some(7), no_input: true, ..plain.clone() };
        check("-n -l ann -p 7 10.0.0.2 orted -x", &ann);
        check("-nlann -p7 10.0.0.2 orted -x", &ann);
        check("10.0.0.2 -nl ann -p 7 orted -x", &ann);
        check("-n ann@10.0.0.2 -o Port=7 orted -x", &ann);
        check("-n ssh://ann@10.0.0.2:7/ orted -x", &ann);
        check("-n -p 7 -l ann bob@10.0.0.2 orted -x", &ann);
        check("-o StdinNull=yes -o Port=7 -o User=ann 10.0.0.2 orted -x", &ann);
    }

    #[test]
    fn addresses_may_stand_in_brackets() {
        let shell = |host: &str| Arguments { host: host.to_owned(), ..Default::default() };
        check("fd00::1", &shell("fd00::1"));
        check("[fd00::1]", &shell("fd00::1"));
        check("ssh://[fd00::1]", &shell("fd00::1"));
        check("ssh://[fd00::1]:7", &Arguments { port: Some(7), ..shell("fd00::1") });
    }

    #[test]
    fn options_may_take_time_and_keys() {
        let expected = Arguments {
            host: "n".to_owned(),
            identities: vec!["/k1".into(), "/k2".into()],
            connect_timeout: Some(Duration::from_secs(3)),
            ..Default::default()
        };
        check("-i /k1 -o IdentityFile=/k2 -o ConnectTimeout=3 n", &expected);
    }

    #[test]
    fn what_it_cannot_do_is_named() {
        let refused = |line: &str, told: &str| {
            let error = parse(line).unwrap_err();
            assert!(error.contains(told), "{line}: {error}");
        };
        refused("", "no node is named");
        refused("-L 1:h:2 n", "`-L`");
        refused("-N n", "`-N`");
        refused("-p", "`-p` needs a value");
        refused("-p 0 n", "`0` is no port");
        refused("-o ConnectTimeout=soon n", "ConnectTimeout=soon");
        refused("ann@", "names no node");
    }
}
