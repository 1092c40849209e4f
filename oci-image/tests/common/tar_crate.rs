//! The crate `tar` as another reader of archives; shared with a fuzz target.
//!
//! Where it is known to differ by intent is said below; everything else is a finding.

use oci_image::{Limits, TarKind, TarReader};
use tar::EntryType;

/// Name without slashes at its end, kind, size of a regular file, target of a link.
pub type Seen = (Vec<u8>, char, u64, Vec<u8>);

fn trimmed(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |at| at + 1);
    path[..end].to_vec()
}

fn ours(data: &[u8]) -> Option<Vec<Seen>> {
    let mut limits = Limits::default();
    limits.extension_bytes = 64 << 10;
    limits.entries = 1000;
    let mut reader = TarReader::new(data, &limits);
    let mut seen = Vec::new();
    while let Some(entry) = reader.next_entry().ok()? {
        // The other reader does not know the sparse formats that are made of records.
        if entry.sparse.is_some() {
            return None;
        }
        let (kind, size) = match entry.kind {
            TarKind::Regular => ('-', entry.size),
            TarKind::Hardlink => ('h', 0),
            TarKind::Symlink => ('l', 0),
            TarKind::Char => ('c', 0),
            TarKind::Block => ('b', 0),
            TarKind::Directory => ('d', 0),
            TarKind::Fifo => ('p', 0),
        };
        let link = match entry.kind {
            TarKind::Hardlink | TarKind::Symlink => entry.link,
            _ => Vec::new(),
        };
        seen.push((trimmed(&entry.path), kind, size, link));
    }
    Some(seen)
}

/// It leaves in a long name what follows a zero byte; to GNU tar, Python and us the name ends there.
fn until_zero(name: &[u8]) -> Vec<u8> {
    name.split(|&b| b == 0).next().unwrap_or_default().to_vec()
}

fn theirs(data: &[u8]) -> Option<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in tar::Archive::new(data).entries().ok()? {
        let entry = entry.ok()?;
        let path = until_zero(&entry.path_bytes());
        let kind = match entry.header().entry_type() {
            // It gives out global headers as entries.
            EntryType::XGlobalHeader => continue,
            // It leaves it to its user that before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => 'd',
            EntryType::Regular | EntryType::Continuous => '-',
            // Where a hard link's header has a size, it looks for the next header after so many bytes. GNU tar, Go and
            // Python do not, and neither do we: it is the size of the file to which the link leads.
            EntryType::Link if entry.size() != 0 => return None,
            EntryType::Link => 'h',
            EntryType::Symlink => 'l',
            EntryType::Char => 'c',
            EntryType::Block => 'b',
            EntryType::Directory => 'd',
            EntryType::Fifo => 'p',
            _ => return None,
        };
        let size = if kind == '-' { entry.size() } else { 0 };
        let link = match kind {
            'h' | 'l' => until_zero(&entry.link_name_bytes().unwrap_or_default()),
            _ => Vec::new(),
        };
        seen.push((trimmed(&path), kind, size, link));
    }
    Some(seen)
}

/// What both readers see, where both read to the end and see different things.
pub fn disagreement(data: &[u8]) -> Option<(Vec<Seen>, Vec<Seen>)> {
    Some((ours(data)?, theirs(data)?)).filter(|(ours, theirs)| ours != theirs)
}

/// Whether both readers read to the end.
pub fn both_read(data: &[u8]) -> bool {
    ours(data).is_some() && theirs(data).is_some()
}
