//! What takes how much memory. The kernel says how much there was at most: nothing that a library or a thread takes
//! stays uncounted.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Arena, Head, Tar, assert_cause, gzip, layout, noise, open_with, options, unpack};
use oci_image::{Error, Limits, MediaType, Unpacker, Whiteouts, open};

const MIB: u64 = 1 << 20;

/// One at a time: it is the process's memory that is measured.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.unwrap().trim_matches([':', ' ', '\t', 'k', 'B']);
    kib.parse::<u64>().unwrap() * 1024
}

/// How many more bytes the process had at its peak while `work` ran than before.
fn growth(work: impl FnOnce()) -> u64 {
    // 5 makes the peak what there is now; see proc(5).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work();
    status("VmHWM").saturating_sub(before)
}

#[test]
fn what_is_measured_is_there() {
    let _alone = alone();
    let grown = growth(|| drop(std::hint::black_box(vec![1u8; 64 << 20])));
    assert!(grown >= 60 * MIB, "{grown}");
}

/// A layer of `files` small files, and one of `large` bytes that do not repeat soon.
fn large(files: usize, large: usize) -> Vec<u8> {
    let mut tar = Tar::new();
    for number in 0..files {
        if number % 100 == 0 {
            tar = tar.dir(format!("dir{}/", number / 100));
        }
        tar = tar.file(format!("dir{}/file{number}", number / 100), "contents");
    }
    tar.file("large", noise(large)).end()
}

#[test]
fn a_large_layer_takes_less_than_32_mib() {
    let _alone = alone();
    let arena = Arena::new();
    let path = arena.root().join("image");
    {
        let tar = large(20_000, 48 << 20);
        let compressed = gzip(&tar);
        layout(
            &path,
            "latest",
            &[(MediaType::OCI_LAYER_GZIP, tar, compressed)],
        );
    }
    let image = open(&path).unwrap();
    for (target, whiteouts) in [
        ("apply", Whiteouts::Apply),
        ("overlay", Whiteouts::OverlayUser),
    ] {
        let target = arena.root().join(target);
        fs::create_dir(&target).unwrap();
        let root = File::open(&target).unwrap();
        let grown = growth(|| {
            let layer = image.layers().next().unwrap();
            let report = layer.unpack(&root, &options(whiteouts)).unwrap();
            assert_eq!(report.entries, 20_201);
        });
        assert!(grown < 32 * MIB, "{grown}");
    }
}

/// Compressed so that it refers back as far as 2 to the power of `window` bytes.
fn far_zstd(bytes: &[u8], window: u32) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn layers_side_by_side_take_less_than_32_mib() {
    let _alone = alone();
    let arena = Arena::new();
    let path = arena.root().join("image");
    {
        let tar = large(0, 16 << 20);
        let layers: Vec<_> = (0..6u8)
            .map(|number| {
                // Each is another one.
                let mut tar = tar.clone();
                tar[512] = number;
                let (kind, compressed) = match number % 2 {
                    0 => (MediaType::OCI_LAYER_GZIP, gzip(&tar)),
                    _ => (MediaType::OCI_LAYER_ZSTD, far_zstd(&tar, 23)),
                };
                (kind, tar, compressed)
            })
            .collect();
        layout(&path, "latest", &layers);
    }
    let image = open(&path).unwrap();
    let roots: Vec<File> = (0..6)
        .map(|number| {
            let target = arena.root().join(format!("{number}"));
            fs::create_dir(&target).unwrap();
            File::open(target).unwrap()
        })
        .collect();
    let grown = growth(|| {
        image
            .unpack_layers(&roots, &options(Whiteouts::OverlayUser))
            .unwrap();
    });
    assert!(grown < 32 * MIB, "{grown}");
}

#[test]
fn archives_that_promise_much_take_little() {
    let _alone = alone();
    let huge = |flag| {
        let mut head = Head::new("huge", flag);
        head.size = 0o77_777_777_777;
        Tar::new().head(&head).data(&[b'x'; 4096]).end()
    };
    let global = (0..5000).fold(Tar::new(), |tar, number| {
        let key = format!("key{number}");
        let mut record = format!("{key}={}\n", "v".repeat(900));
        record = format!("{} {record}", record.len() + 4);
        tar.with_data("global", b'g', record)
    });
    let mut many_attributes = Vec::new();
    for number in 0..8000 {
        let record = format!(" SCHILY.xattr.user.{number:08}={}\n", "v".repeat(90));
        write!(many_attributes, "{}{record}", record.len() + 3).unwrap();
    }
    let archives = [
        huge(b'x'),
        huge(b'g'),
        huge(b'L'),
        huge(b'K'),
        huge(b'0'),
        global.file("f", "").end(),
        Tar::new()
            .with_data("x", b'x', many_attributes)
            .file("f", "")
            .end(),
    ];
    for (number, archive) in archives.iter().enumerate() {
        let arena = Arena::new();
        let grown = growth(|| {
            let _ = unpack(archive, &arena.root());
        });
        assert!(grown < 8 * MIB, "{number}: {grown}");
    }
}

#[test]
fn bombs_take_little() {
    let _alone = alone();
    let arena = Arena::new();
    let path = arena.root().join("image");
    // A file of 256 MiB of zeros, compressed.
    let mut head = Head::new("zeros", b'0');
    head.size = 256 << 20;
    let compress = |out: &mut dyn Write| {
        out.write_all(&head.block()).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(256 << 20), out).unwrap();
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    compress(&mut gzip);
    let mut zstd = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    compress(&mut zstd);
    let stored = [
        (MediaType::OCI_LAYER_GZIP, gzip.finish().unwrap()),
        (MediaType::OCI_LAYER_ZSTD, zstd.finish().unwrap()),
    ];
    for (number, (kind, blob)) in stored.into_iter().enumerate() {
        let path = path.join(number.to_string());
        layout(&path, "latest", &[(kind, Vec::new(), blob)]);
        let image = open_with(&path, |limits| limits.layer_bytes = 16 << 20);
        let target = arena.root().join(format!("target{number}"));
        fs::create_dir(&target).unwrap();
        let root = File::open(&target).unwrap();
        let grown = growth(|| {
            let layer = image.layers().next().unwrap();
            let error = layer.unpack(&root, &options(Whiteouts::Apply)).unwrap_err();
            assert_cause!(error, Error::Limit { .. });
        });
        assert!(grown < 16 * MIB, "{grown}");
    }
}

/// A frame says how far back it refers, and the decoder keeps so much.
#[test]
fn a_zstandard_frame_that_refers_far_back_is_refused() {
    let _alone = alone();
    let arena = Arena::new();
    let tar = large(0, 9 << 20);
    let blob = far_zstd(&tar, 27);
    layout(
        &arena.root(),
        "latest",
        &[(MediaType::OCI_LAYER_ZSTD, tar, blob)],
    );
    let read = |set: fn(&mut Limits)| {
        let image = open_with(&arena.root(), set);
        let target = tempfile::tempdir().unwrap();
        image
            .layers()
            .next()
            .unwrap()
            .unpack(File::open(&target).unwrap(), &options(Whiteouts::Apply))
    };
    let error = read(|_| ()).unwrap_err();
    assert_cause!(
        error,
        Error::Limit {
            setting: "zstd_window_bytes",
            ..
        }
    );
    read(|limits| limits.zstd_window_bytes = 128 << 20).unwrap();
}

#[test]
fn names_without_number_take_little() {
    let _alone = alone();
    // Entries of one file with ever another name, and whiteouts for all: what was made must be remembered.
    let arena = Arena::new();
    fs::write(arena.root().join("there"), "").unwrap();
    let mut tar = Tar::new();
    for number in 0..20_000 {
        tar = tar.file(format!("file{number:090}"), "");
    }
    let archive = tar.end();
    let grown = growth(|| {
        Unpacker::new(options(Whiteouts::Apply), Limits::default())
            .unpack(&archive[..], File::open(arena.root()).unwrap())
            .unwrap();
    });
    assert!(grown < 4 * MIB, "{grown}");
}

/// An archive that is made while it is read, entry by entry.
struct Made<F> {
    entry: F,
    number: usize,
    bytes: Vec<u8>,
    position: usize,
}

impl<F: FnMut(usize) -> Vec<u8>> Made<F> {
    fn new(entry: F) -> Made<F> {
        Made {
            entry,
            number: 0,
            bytes: Vec::new(),
            position: 0,
        }
    }
}

impl<F: FnMut(usize) -> Vec<u8>> BufRead for Made<F> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.position == self.bytes.len() {
            self.bytes = (self.entry)(self.number);
            self.number += 1;
            self.position = 0;
        }
        Ok(&self.bytes[self.position..])
    }

    fn consume(&mut self, n: usize) {
        self.position += n;
    }
}

impl<F: FnMut(usize) -> Vec<u8>> Read for Made<F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

fn unpack_made(entry: impl FnMut(usize) -> Vec<u8>, whiteouts: Whiteouts) -> Result<(), Error> {
    let arena = Arena::new();
    let root = File::open(arena.root()).unwrap();
    Unpacker::new(options(whiteouts), Limits::default())
        .unpack(Made::new(entry), root)
        .map(drop)
}

#[test]
fn directories_without_number_take_little() {
    let _alone = alone();
    let long = "n".repeat(240);
    let down = [long.as_str(); 8].join("/");
    let grown = growth(|| {
        let entry = |number| match number {
            0..8_000 => {
                let name = format!("{down}/{number}/");
                Tar::new().pax(&[("path", name.as_bytes())]).dir("d/").0
            }
            _ => Vec::new(),
        };
        unpack_made(entry, Whiteouts::OverlayUser).unwrap();
    });
    assert!(grown < 12 * MIB, "{grown}");
    // The same one again and again.
    let grown = growth(|| {
        let entry = |number| match number {
            0..60_000 => Tar::new().dir("directory/").0,
            _ => Vec::new(),
        };
        unpack_made(entry, Whiteouts::OverlayUser).unwrap();
    });
    assert!(grown < 4 * MIB, "{grown}");
}

#[test]
fn what_is_left_out_takes_little() {
    let _alone = alone();
    let long = vec![b'n'; 500_000];
    let grown = growth(|| {
        let entry = |number| match number {
            0..200 => {
                let device = Tar::new().pax(&[("path", &long)]);
                device.head(&Head::new("device", b'3')).0
            }
            _ => Vec::new(),
        };
        unpack_made(entry, Whiteouts::OverlayUser).unwrap();
    });
    assert!(grown < 16 * MIB, "{grown}");
}

#[test]
fn an_archive_of_images_with_many_members_takes_little() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar.gz");
    let mut gzip =
        flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
    for number in 0..300_000 {
        let name = format!("{number}");
        gzip.write_all(&Head::new(name, b'0').block()).unwrap();
    }
    gzip.finish().unwrap();
    let grown = growth(|| {
        let error = open(&path).unwrap_err();
        assert_cause!(
            error,
            Error::Limit {
                setting: "document_bytes",
                ..
            }
        );
    });
    assert!(grown < 16 * MIB, "{grown}");
}
