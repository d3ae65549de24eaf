//! Addresses in a log that mean the job's own machine, turned into those that the user can open: their forwarded ports.

use std::collections::BTreeMap;

use memchr::memmem;

use crate::ssh::Forward;

/// How programs name the machine that they listen on.
const HOSTS: [&[u8]; 5] = [b"0.0.0.0", b"localhost", b"127.0.0.1", b"[::]", b"[::1]"];
const START: &[u8] = b"http";
const PORT_DIGITS: usize = 5;

/// Rewrites the links in one job's log. A link may come in pieces, so the end of a piece that may be the begin of one
/// waits for the next piece.
#[derive(Debug)]
pub(crate) struct Links {
    /// The address of each forwarded port.
    ports: BTreeMap<u16, String>,
    held: Vec<u8>,
}

/// What stands at a place in the text.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// No link that we know.
    Nothing,
    /// The text ends before that is known.
    Begin,
    /// The bytes up to the host, all bytes up to the end of the port, and the port.
    Link(usize, usize, u16),
}

impl Links {
    /// Links to these ports.
    pub(crate) fn new(forwards: &[Forward]) -> Links {
        let address = |forward: &Forward| (forward.container, format!("{}:{}", forward.host, forward.local));
        Links { ports: forwards.iter().map(address).collect(), held: Vec::new() }
    }

    /// Appends `bytes` to `text`, with their links rewritten.
    pub(crate) fn rewrite(&mut self, bytes: &[u8], text: &mut Vec<u8>) {
        let joined;
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.held);
            &joined
        };
        while let Some(place) = memmem::find(rest, START) {
            match look(&rest[place..]) {
                Found::Link(host, end, port) if self.ports.contains_key(&port) => {
                    text.extend_from_slice(&rest[..place + host]);
                    text.extend_from_slice(self.ports[&port].as_bytes());
                    rest = &rest[place + end..];
                }
                Found::Begin => {
                    text.extend_from_slice(&rest[..place]);
                    self.held = rest[place..].to_vec();
                    return;
                }
                Found::Link(..) | Found::Nothing => {
                    text.extend_from_slice(&rest[..place + START.len()]);
                    rest = &rest[place + START.len()..];
                }
            }
        }
        let begun = (1..START.len()).rev().find(|length| rest.ends_with(&START[..*length])).unwrap_or(0);
        let (known, begun) = rest.split_at(rest.len() - begun);
        text.extend_from_slice(known);
        self.held = begun.to_vec();
    }

    /// What waits for a piece that does not come.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// What `text`, which begins as a link, is.
fn look(text: &[u8]) -> Found {
    let after = &text[START.len()..];
    let scheme = after.strip_prefix(b"s").unwrap_or(after);
    let Some(place) = scheme.strip_prefix(b"://") else {
        return if b"://".starts_with(scheme) { Found::Begin } else { Found::Nothing };
    };
    let begin = text.len() - place.len();
    let Some(host) = HOSTS.into_iter().find(|host| place.starts_with(host)) else {
        return if HOSTS.iter().any(|host| host.starts_with(place)) { Found::Begin } else { Found::Nothing };
    };
    let Some(port) = place[host.len()..].strip_prefix(b":") else {
        return if place.len() == host.len() { Found::Begin } else { Found::Nothing };
    };
    let digits = port.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == port.len() && digits <= PORT_DIGITS {
        return Found::Begin;
    }
    let number = std::str::from_utf8(&port[..digits]).ok().and_then(|digits| digits.parse().ok());
    match number {
        Some(number) => Found::Link(begin, begin + host.len() + 1 + digits, number),
        None => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        let forward = |local, container| Forward { host: "127.0.0.1".to_owned(), local, container };
        Links::new(&[forward(8001, 8000), forward(80, 6006)])
    }

    fn rewritten(pieces: &[&str]) -> (String, String) {
        let (mut links, mut text) = (links(), Vec::new());
        for piece in pieces {
            links.rewrite(piece.as_bytes(), &mut text);
        }
        (String::from_utf8(text).unwrap(), String::from_utf8(links.finish()).unwrap())
    }

    #[test]
    fn links_to_forwarded_ports_lead_there() {
        let check = |text: &str, expected: &str| assert_eq!(rewritten(&[text]).0, expected);
        check("at http://0.0.0.0:8000/x?y=1.\n", "at http://127.0.0.1:8001/x?y=1.\n");
        check("https://localhost:6006 and http://[::]:8000\n", "https://127.0.0.1:80 and http://127.0.0.1:8001\n");
        check("\x1b[1mhttp://[::1]:8000\x1b[0m", "\x1b[1mhttp://127.0.0.1:8001\x1b[0m");
        check("http http:// httphttp://127.0.0.1:8000\n", "http http:// httphttp://127.0.0.1:8001\n");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in [
            "http://0.0.0.0:80001\n",
            "http://0.0.0.0:123456\n",
            "http://localhost:9000\n",
            "http://example.com:8000\n",
            "http://localhost\n",
            "http://localhost:\n",
            "0.0.0.0:8000\n",
            "https",
        ] {
            let (text_now, held) = rewritten(&[text]);
            assert_eq!(text_now + &held, text);
        }
    }

    #[test]
    fn pieces_make_no_difference() {
        let text = "ht http://0.0.0.0:8000/a h http://localhost:6006/\nhttps://[::1]:8000\n";
        let whole = rewritten(&[text]).0;
        for first in 0..text.len() {
            for second in first..text.len() {
                let (told, held) = rewritten(&[&text[..first], &text[first..second], &text[second..]]);
                assert_eq!((told.as_str(), held.as_str()), (whole.as_str(), ""), "{first} {second}");
            }
        }
    }

    #[test]
    fn what_cannot_become_a_link_does_not_wait() {
        assert_eq!(rewritten(&["password: "]), ("password: ".to_owned(), String::new()));
        assert_eq!(rewritten(&["see http://0.0.0.0:80"]), ("see ".to_owned(), "http://0.0.0.0:80".to_owned()));
    }
}
