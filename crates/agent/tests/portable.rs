//! The agent as it is handed out: it runs on hosts and in images with any C library, or none.
//!
//! Skipped, and said so, where `DSTACK_TEST_AGENT_STATIC` does not name it.

#![cfg(test)]

use std::collections::BTreeSet;

/// Functions with which the C library loads code of the host or the image, which may be made for another one.
const LOADING: [&str; 8] = [
    "getaddrinfo",
    "gethostbyname_r",
    "getpwnam_r",
    "getpwuid_r",
    "getgrnam_r",
    "getgrgid_r",
    "initgroups",
    "iconv_open",
];

/// The type of the part of a program that names its loader.
const PT_INTERP: usize = 3;
/// The type of the section with the names of functions.
const SHT_SYMTAB: usize = 2;
/// How long the entry of a function is.
const SYMBOL: usize = 24;

#[test]
fn the_program_loads_nothing_and_could_not() {
    let Some(path) = std::env::var_os("DSTACK_TEST_AGENT_STATIC") else {
        eprintln!("SKIPPED: set DSTACK_TEST_AGENT_STATIC to look at the static agent");
        return;
    };
    let program = Program(std::fs::read(path).unwrap());
    assert!(!program.parts().contains(&PT_INTERP), "the program is not static");
    let functions = program.functions();
    assert!(functions.contains("main"), "the program has no names of functions to look at");
    let found: Vec<&str> = LOADING.into_iter().filter(|name| functions.contains(*name)).collect();
    assert!(found.is_empty(), "something in the program calls {found:?}");
}

/// A 64-bit program as it lies on the disk.
struct Program(Vec<u8>);

impl Program {
    fn number(&self, place: usize, length: usize) -> usize {
        let bytes = &self.0[place..place + length];
        bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    /// The types of the parts that the kernel maps or looks at.
    fn parts(&self) -> Vec<usize> {
        assert_eq!(self.0[..5], *b"\x7fELF\x02");
        let (table, size, count) = (self.number(0x20, 8), self.number(0x36, 2), self.number(0x38, 2));
        assert!(count > 0);
        (0..count).map(|index| self.number(table + index * size, 4)).collect()
    }

    /// The names of all functions and variables.
    fn functions(&self) -> BTreeSet<String> {
        let (table, size, count) = (self.number(0x28, 8), self.number(0x3a, 2), self.number(0x3c, 2));
        let section = |index: usize| table + index * size;
        let symbols = (0..count).map(section).filter(|section| self.number(section + 4, 4) == SHT_SYMTAB);
        symbols
            .flat_map(|symbols| {
                let names = self.number(section(self.number(symbols + 0x28, 4)) + 0x18, 8);
                let (start, length) = (self.number(symbols + 0x18, 8), self.number(symbols + 0x20, 8));
                (start..start + length)
                    .step_by(SYMBOL)
                    .map(move |symbol| self.name(names + self.number(symbol, 4)))
            })
            .collect()
    }

    fn name(&self, place: usize) -> String {
        let bytes = self.0[place..].split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}
