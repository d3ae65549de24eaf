use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::*;

fn request(kind: u8, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.id = 7;
    writer.answer(kind);
    write(&mut writer);
    writer.take_packet()
}

/// The answers to all requests, each without its length.
fn ask(requests: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let input = requests.concat();
    let mut output = Vec::new();
    serve(BufReader::new(input.as_slice()), BufWriter::new(&mut output)).unwrap();
    let mut answers = Vec::new();
    let mut rest = output.as_slice();
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (answer, after) = more.split_at(u32::from_be_bytes(*length) as usize);
        answers.push(answer.to_vec());
        rest = after;
    }
    answers
}

/// The code of an answer that is a status.
fn status(answer: &[u8]) -> u32 {
    let mut reader = Reader::new(answer);
    assert_eq!(reader.byte(), Some(kind::STATUS));
    assert_eq!(reader.u32(), Some(7));
    reader.u32().unwrap()
}

fn path(writer: &mut Writer, path: &Path) {
    writer.bytes(path.as_os_str().as_bytes());
}

#[test]
fn versions_are_told_first() {
    let mut hello = Writer::default();
    hello.begin(kind::INIT);
    hello.u32(6);
    let answers = ask(&[hello.take_packet()]);
    let mut reader = Reader::new(&answers[0]);
    assert_eq!((reader.byte(), reader.u32()), (Some(kind::VERSION), Some(3)));
    assert_eq!(reader.bytes(), Some(&b"posix-rename@openssh.com"[..]));
}

#[test]
fn what_is_not_there_and_what_is_not_known_have_their_own_codes() {
    let answers = ask(&[
        request(kind::STAT, |writer| writer.bytes(b"/no/such/file")),
        request(99, |_| {}),
        request(kind::CLOSE, |writer| writer.bytes(b"\0\0\0\x2a")),
        request(kind::READ, |writer| {
            writer.bytes(b"garbage");
            writer.u64(0);
            writer.u32(1);
        }),
    ]);
    assert_eq!(answers.iter().map(|answer| status(answer)).collect::<Vec<_>>(), [2, 8, 2, 2]);
}

#[test]
fn a_rename_replaces_nothing_unless_it_is_the_posix_one() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::write(&from, "new").unwrap();
    std::fs::write(&to, "old").unwrap();
    let both = |writer: &mut Writer| {
        path(writer, &from);
        path(writer, &to);
    };
    let answers = ask(&[
        request(kind::RENAME, both),
        request(kind::EXTENDED, |writer| {
            writer.bytes(b"posix-rename@openssh.com");
            both(writer);
        }),
    ]);
    assert_eq!((status(&answers[0]), status(&answers[1])), (4, 0));
    assert_eq!(std::fs::read_to_string(to).unwrap(), "new");
}

#[test]
fn a_packet_that_is_not_whole_or_too_long_ends_the_conversation() {
    let check = |input: &[u8]| serve(BufReader::new(input), BufWriter::new(Vec::new())).is_err();
    assert!(check(&request(kind::STAT, |writer| writer.u32(100))));
    assert!(check(&u32::MAX.to_be_bytes()));
    assert!(check(&[0, 0, 0, 0]));
    assert!(check(&[0, 0, 0, 5, kind::STAT]));
}
