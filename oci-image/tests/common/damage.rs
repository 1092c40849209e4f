//! An archive of all formats, and what becomes of it when bytes of it change.

use proptest::sample::Index;

use super::{Head, Tar, checksum};

/// An archive of all formats.
pub fn sample() -> Vec<u8> {
    let mut gnu = Head::new("gnu", b'0');
    gnu.magic = b"ustar  \0";
    Tar::new()
        .dir("dir/")
        .file("dir/file", "contents")
        .symlink("dir/link", "../../outside/secret")
        .hardlink("hard", "dir/file")
        .pax(&[("path", b"dir/pax"), ("mtime", b"1.5"), ("size", b"3")])
        .file("short", "abc")
        .with_data("././@LongLink", b'L', [b'l'; 120])
        .file("cut", "long")
        .head(&gnu)
        .head(&Head::new("fifo", b'6'))
        .file("last", [7; 600])
        .end()
}

/// Changes bytes; where it says so, makes the header's sum right again, so that the change gets further.
pub fn damaged(damage: &[(Index, u8, bool)]) -> Vec<u8> {
    let mut archive = sample();
    for (at, byte, mend) in damage {
        let at = at.index(archive.len());
        archive[at] = *byte;
        let start = at / 512 * 512;
        if let (true, Ok(block)) = (
            *mend,
            <&mut [u8; 512]>::try_from(&mut archive[start..start + 512]),
        ) {
            checksum(block);
        }
    }
    archive
}
