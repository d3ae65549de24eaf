//! Commands as words that every login shell reads the same, and the mark that tells our output from the shell's.
//!
//! `sshd` gives a command to the user's login shell, which may be bash, dash, fish or csh, and these disagree about
//! quotes, backslashes, exclamation marks and line ends. So the login shell sees one word in single quotes that has
//! none of them, and `exec`s `sh`, which unpacks the rest.

use std::borrow::Cow;

/// Printed before our own output begins, with the process that prints it and the end of a line after it. The login
/// shell may have printed something before.
pub(crate) const MARK: &str = "--dstack-tunnel-begins-- ";

/// How many digits a process may have.
const DIGITS: usize = 10;

/// How much a login shell may print before our command starts.
const MAX_NOISE: usize = 64 * 1024;

/// The command to send to the host, for a script of `sh`.
pub(crate) fn envelope(script: &str) -> String {
    let mut packed = String::with_capacity(script.len() * 2);
    for byte in script.bytes() {
        // What is special to none of the shells, neither in single nor in double quotes, goes as it is.
        let is_plain = byte.is_ascii_alphanumeric() || b" _-./,:;=+@%^~#&|<>()[]{}*?".contains(&byte);
        if is_plain {
            packed.push(char::from(byte));
        } else {
            // A backslash outside of quotes, doubled, is a backslash to all of them; inside it is not.
            packed.push_str(&format!("'\\\\'0{byte:03o}"));
        }
    }
    format!("exec sh -c 'eval \"$(printf %b \"{packed}\")\"'")
}

/// A script that prints the mark on both outputs before it does what it should.
pub(crate) fn marked(script: &str) -> String {
    // In two parts: a shell that prints the commands that it is given must not print the mark by that.
    let (first, rest) = MARK.split_at(8);
    format!("printf '%s%s%s\\n' '{first}' '{rest}' $$; printf '%s%s%s\\n' '{first}' '{rest}' $$ >&2\n{script}")
}

/// Where the mark begins, where what follows it begins, and the process that it names.
fn find_mark(bytes: &[u8]) -> Option<(usize, usize, u32)> {
    let begin = bytes.windows(MARK.len()).position(|window| window == MARK.as_bytes())?;
    let after = &bytes[begin + MARK.len()..];
    let length = after.iter().position(|byte| *byte == b'\n')?;
    let process = std::str::from_utf8(&after[..length]).ok()?.parse().ok()?;
    Some((begin, begin + MARK.len() + length + 1, process))
}

/// One word for `sh`, whatever is in it.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Leaves out what came before the mark.
#[derive(Debug, Default)]
pub(crate) struct MarkFinder {
    before: Vec<u8>,
    process: Option<u32>,
}

impl MarkFinder {
    /// The process that printed the mark, once it has come.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process
    }

    /// What was printed before the mark, or instead of it.
    pub(crate) fn noise(&self) -> &[u8] {
        &self.before
    }

    /// Whether so much came that the mark cannot be expected any more.
    pub(crate) fn is_overdue(&self) -> bool {
        self.process.is_none() && MAX_NOISE < self.before.len()
    }

    /// Takes the next bytes and gives back those that belong to us.
    pub(crate) fn feed<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.process.is_some() {
            return bytes.into();
        }
        let looked_at = self.before.len().saturating_sub(MARK.len() + DIGITS);
        self.before.extend_from_slice(bytes);
        let Some((begin, end, process)) = find_mark(&self.before[looked_at..]) else { return Vec::new().into() };
        self.process = Some(process);
        let ours = self.before.split_off(looked_at + end);
        self.before.truncate(looked_at + begin);
        ours.into()
    }
}

/// The end of something that may be long.
#[derive(Debug, Default, Clone)]
pub(crate) struct TailBytes {
    bytes: Vec<u8>,
}

/// How much of the end is kept.
const TAIL: usize = 16 * 1024;

impl TailBytes {
    pub(crate) fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        if 2 * TAIL < self.bytes.len() {
            self.bytes.drain(..self.bytes.len() - TAIL);
        }
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        // What a login shell printed before the mark is none of the command's words.
        if let Some((_, end, _)) = find_mark(&self.bytes) {
            self.bytes.drain(..end);
        }
        self.bytes.drain(..self.bytes.len().saturating_sub(TAIL));
        self.bytes
    }
}

/// The last lines of a text, joined into one line to put into a sentence.
pub(crate) fn last_lines(bytes: &[u8]) -> String {
    const LINES: usize = 5;
    const LONGEST: usize = 1000;
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined = lines[lines.len().saturating_sub(LINES)..].join("; ");
    let printable: String = joined.chars().filter(|letter| !letter.is_control()).collect();
    let skipped = printable.chars().count().saturating_sub(LONGEST);
    printable.chars().skip(skipped).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs an envelope in a shell as `sshd` does, where there is such a shell.
    fn check(shell: &str, script: &str, expected: &str) {
        let Ok(output) = Command::new(shell).arg("-c").arg(envelope(script)).output() else {
            eprintln!("SKIPPED: install `{shell}` to test with it");
            return;
        };
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell}: {output:?}");
    }

    #[test]
    fn every_shell_reads_an_envelope_the_same() {
        let text = "it's \"a\" $HOME `x` \\ \\n !! !x ~ * {a,b} # %s 100% é\ttab\n\nsecond; line | & <>";
        for shell in ["sh", "bash", "dash", "fish", "tcsh", "csh"] {
            check(shell, &format!("printf %s {}", quote(text)), text);
        }
    }

    #[test]
    fn the_mark_is_printed_by_the_script_and_stands_nowhere_in_it() {
        let script = marked("echo $$ ours");
        assert!(!script.contains(MARK.trim_end()));
        let output = Command::new("sh").arg("-c").arg(envelope(&script)).output().unwrap();
        let mut finder = MarkFinder::default();
        let ours = String::from_utf8(finder.feed(&output.stdout).into_owned()).unwrap();
        assert_eq!(ours, format!("{} ours\n", finder.process().unwrap()));
    }

    #[test]
    fn the_mark_is_found_wherever_the_pieces_end() {
        let whole = format!("Welcome!\nno line end{MARK}4194304\nours\n{MARK}1\n");
        for size in 1..whole.len() {
            let mut finder = MarkFinder::default();
            let ours: Vec<u8> =
                whole.as_bytes().chunks(size).flat_map(|piece| finder.feed(piece).into_owned()).collect();
            assert_eq!(String::from_utf8(ours).unwrap(), format!("ours\n{MARK}1\n"), "pieces of {size}");
            assert_eq!((finder.noise(), finder.process()), (&b"Welcome!\nno line end"[..], Some(4_194_304)));
        }
    }

    #[test]
    fn a_tail_forgets_what_came_before_the_mark_and_what_is_too_old() {
        let mut tail = TailBytes::default();
        tail.push(b"noise\n");
        tail.push(format!("{MARK}7\n").as_bytes());
        tail.push(b"sad\nbut true\n");
        assert_eq!(last_lines(&tail.clone().into_bytes()), "sad; but true");
        tail.push(&vec![b'x'; 10 * TAIL]);
        assert_eq!(tail.into_bytes().len(), TAIL);
    }
}
