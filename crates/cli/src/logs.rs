//! Log bytes on their way to the terminal: as they are for one job, line by line with its number for several.

use std::collections::BTreeMap;
use std::io;

use crate::links::Links;
use crate::printer::Printer;
use crate::ssh::Forward;

/// A line is printed in pieces when it gets longer than this.
const LINE_LIMIT: usize = 64 * 1024;

/// Writes the logs of one or several jobs.
#[derive(Debug)]
pub(crate) struct LogWriter {
    /// Lines that have not ended, by job; none where there is one job only.
    partial: Option<BTreeMap<u32, Vec<u8>>>,
    /// Collects whole lines, so that they are written in one piece.
    lines: Vec<u8>,
    /// The last byte was a newline, or there was none.
    at_start: bool,
    /// The job whose ports are forwarded, and its links.
    links: Option<(u32, Links)>,
}

impl LogWriter {
    /// A writer for one job, or for several.
    pub(crate) fn new(several: bool) -> LogWriter {
        LogWriter { partial: several.then(BTreeMap::new), lines: Vec::new(), at_start: true, links: None }
    }

    /// From now on, links to the forwarded ports of a job lead where the user can open them.
    pub(crate) fn rewrite_links(&mut self, job_num: u32, forwards: &[Forward]) {
        self.links = (!forwards.is_empty()).then(|| (job_num, Links::new(forwards)));
    }

    /// Writes bytes of a job's log.
    pub(crate) fn write(&mut self, printer: &mut Printer, job_num: u32, bytes: &[u8]) -> io::Result<()> {
        match &mut self.links {
            Some((linked, links)) if *linked == job_num => {
                let mut text = Vec::with_capacity(bytes.len());
                links.rewrite(bytes, &mut text);
                self.write_text(printer, job_num, &text)
            }
            _ => self.write_text(printer, job_num, bytes),
        }
    }

    fn write_text(&mut self, printer: &mut Printer, job_num: u32, bytes: &[u8]) -> io::Result<()> {
        let Some(partial) = &mut self.partial else {
            self.at_start = bytes.last().map_or(self.at_start, |byte| *byte == b'\n');
            return printer.raw(bytes);
        };
        let line = partial.entry(job_num).or_default();
        let mut rest = bytes;
        while let Some(end) = end_of_line(line, rest) {
            push_prefix(&mut self.lines, job_num);
            self.lines.append(line);
            self.lines.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
        }
        line.extend_from_slice(rest);
        if LINE_LIMIT < line.len() {
            push_prefix(&mut self.lines, job_num);
            self.lines.append(line);
            self.lines.push(b'\n');
        }
        printer.raw(&self.lines)?;
        self.lines.clear();
        Ok(())
    }

    /// Ends the line, so that something else can be printed.
    pub(crate) fn end_line(&mut self, printer: &mut Printer) -> io::Result<()> {
        self.finish(printer)?;
        if !self.at_start {
            self.at_start = true;
            printer.blank()?;
        }
        Ok(())
    }

    /// Writes what is left of links and of lines of several jobs that have not ended.
    pub(crate) fn finish(&mut self, printer: &mut Printer) -> io::Result<()> {
        if let Some((job_num, text)) = self.links.as_mut().map(|(job_num, links)| (*job_num, links.finish())) {
            self.write_text(printer, job_num, &text)?;
        }
        for (job_num, line) in self.partial.iter_mut().flatten() {
            if !line.is_empty() {
                push_prefix(&mut self.lines, *job_num);
                self.lines.append(line);
                self.lines.push(b'\n');
            }
        }
        printer.raw(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

fn push_prefix(lines: &mut Vec<u8>, job_num: u32) {
    lines.extend_from_slice(format!("[{job_num}] ").as_bytes());
}

/// Where in `bytes`, which follow `line`, the line ends. A carriage return ends it too, once it is known that no
/// newline follows: progress bars write no other.
fn end_of_line(line: &[u8], bytes: &[u8]) -> Option<usize> {
    if line.last() == Some(&b'\r') && bytes.first().is_some_and(|byte| *byte != b'\n') {
        return Some(0);
    }
    let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
    match (bytes[end], bytes.get(end + 1)) {
        (b'\n', _) => Some(end + 1),
        (_, Some(b'\n')) => Some(end + 2),
        (_, Some(_)) => Some(end + 1),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::printer::Terminal;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn check(several: bool, pieces: &[(u32, &str)], expected: &str) {
        let out = Shared::default();
        let mut printer =
            Printer::new(Box::new(out.clone()), Box::new(io::sink()), Box::new(io::empty()), Terminal::default());
        let mut writer = LogWriter::new(several);
        for (job_num, text) in pieces {
            writer.write(&mut printer, *job_num, text.as_bytes()).unwrap();
        }
        writer.finish(&mut printer).unwrap();
        printer.flush().unwrap();
        assert_eq!(String::from_utf8(out.0.lock().unwrap().clone()).unwrap(), expected);
    }

    #[test]
    fn one_job_is_written_as_it_is() {
        check(false, &[(0, "a\nb"), (0, "c\r"), (0, "\x1b[1m")], "a\nbc\r\x1b[1m");
    }

    #[test]
    fn lines_of_several_jobs_never_mix() {
        check(true, &[(0, "a"), (1, "b\n"), (0, "a\n"), (1, "c")], "[1] b\n[0] aa\n[1] c\n");
        check(true, &[(0, "a\r\nb\r"), (0, "\nc\n")], "[0] a\r\n[0] b\r\n[0] c\n");
        check(true, &[(0, "\n\n")], "[0] \n[0] \n");
    }

    #[test]
    fn links_of_the_job_whose_ports_are_forwarded_lead_there() {
        let out = Shared::default();
        let mut printer =
            Printer::new(Box::new(out.clone()), Box::new(io::sink()), Box::new(io::empty()), Terminal::default());
        let mut writer = LogWriter::new(true);
        writer.rewrite_links(0, &[Forward { host: "127.0.0.1".to_owned(), local: 8001, container: 8000 }]);
        for (job_num, text) in [(0, "http://0.0.0.0:80"), (1, "http://0.0.0.0:8000\n"), (0, "00\nhtt")] {
            writer.write(&mut printer, job_num, text.as_bytes()).unwrap();
        }
        writer.finish(&mut printer).unwrap();
        printer.flush().unwrap();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "[1] http://0.0.0.0:8000\n[0] http://127.0.0.1:8001\n[0] htt\n");
    }

    #[test]
    fn progress_bars_show_before_their_line_ends() {
        check(true, &[(0, "10%\r"), (0, "20%\r"), (0, "30%\n")], "[0] 10%\r[0] 20%\r[0] 30%\n");
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let long = "x".repeat(LINE_LIMIT + 1);
        check(true, &[(2, &long), (2, "y\n")], &format!("[2] {long}\n[2] y\n"));
    }
}
