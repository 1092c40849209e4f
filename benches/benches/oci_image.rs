//! Unpacking a layer, beside what it cannot be faster than (inflating it) and what people use (GNU tar).

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use benches::entries;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use oci_image::{
    Compression, Devices, ImageBuilder, LayerWriter, LayoutWriter, Ownership, PackOptions,
    Platform, Reference, Store, UnpackOptions, Whiteouts, open,
};

/// Memory, where there is some, so that no disk is measured.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(base).expect("a temporary directory")
}

fn write_layout(path: &Path, files: usize, length: usize, compression: Compression) -> u64 {
    let mut layout = LayoutWriter::open(path).expect("a layout");
    let options = PackOptions::new().compression(compression);
    let layer = layout
        .layer(entries(0..files, length).map(Ok), &options)
        .expect("a layer");
    let size = layer.uncompressed_size;
    let image = ImageBuilder::new(&Platform::host())
        .layer(layer, "bench")
        .cmd(["/bin/true"]);
    layout.image(Some("latest"), image).expect("an image");
    size
}

fn blob(path: &Path) -> PathBuf {
    let image = open(path).expect("an image");
    let digest = image
        .layers()
        .next()
        .expect("a layer")
        .descriptor()
        .digest
        .clone();
    path.join("blobs/sha256").join(digest.hex())
}

/// Every user can unpack so.
fn options(whiteouts: Whiteouts) -> UnpackOptions {
    let me = fs::metadata("/proc/self").expect("our own directory");
    UnpackOptions::new(whiteouts)
        .ownership(Ownership::Squash {
            uid: me.uid(),
            gid: me.gid(),
        })
        .devices(Devices::Skip)
}

/// Runs `unpack` into a new directory each time; removing it is not measured.
fn into_new_directories(base: &Path, rounds: u64, unpack: impl Fn(&Path)) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        let directory = base.join("unpacked");
        fs::create_dir(&directory).expect("a directory");
        let start = Instant::now();
        unpack(&directory);
        total += start.elapsed();
        fs::remove_dir_all(&directory).expect("the directory is removed");
    }
    total
}

fn unpacking(criterion: &mut Criterion) {
    for (kind, files, length) in [("large files", 64, 1 << 20), ("small files", 8000, 1500)] {
        let dir = scratch();
        let mut group = criterion.benchmark_group(format!("oci-image/unpack {kind}"));
        group.sample_size(10);
        for (name, compression) in [
            ("gzip", Compression::Gzip),
            ("zstd", Compression::Zstd),
            ("plain", Compression::None),
        ] {
            let path = dir.path().join(name);
            group.throughput(Throughput::Bytes(write_layout(
                &path,
                files,
                length,
                compression,
            )));
            let image = open(&path).expect("an image");
            let options = options(Whiteouts::Apply);
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    into_new_directories(dir.path(), rounds, |directory| {
                        let root = File::open(directory).expect("the directory");
                        black_box(
                            image
                                .unpack_flat(&root, &options)
                                .expect("an unpacked image"),
                        );
                    })
                });
            });
        }
        let gzip = blob(&dir.path().join("gzip"));
        group.bench_function("inflate alone", |bencher| {
            bencher.iter(|| {
                let file =
                    io::BufReader::with_capacity(256 << 10, File::open(&gzip).expect("the blob"));
                let mut decoder = flate2::bufread::GzDecoder::new(file);
                let mut buffer = vec![0; 256 << 10];
                while decoder.read(&mut buffer).expect("good gzip") > 0 {}
            });
        });
        group.bench_function("GNU tar -xz", |bencher| {
            bencher.iter_custom(|rounds| {
                into_new_directories(dir.path(), rounds, |directory| {
                    let status = Command::new("tar")
                        .arg("-xzf")
                        .arg(&gzip)
                        .arg("-C")
                        .arg(directory)
                        .status();
                    assert!(status.expect("tar starts").success());
                })
            });
        });
        group.finish();
    }
}

fn packing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("oci-image/pack");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(16 << 20));
    for (name, compression) in [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("plain", Compression::None),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let options = PackOptions::new().compression(compression);
                let mut writer = LayerWriter::new(io::sink(), options).expect("a writer");
                writer
                    .append_all(entries(0..1024, 16 << 10).map(Ok))
                    .expect("entries");
                black_box(writer.finish().expect("a layer"))
            });
        });
    }
    group.finish();
}

fn looking_up(criterion: &mut Criterion) {
    let dir = scratch();
    write_layout(&dir.path().join("source"), 10, 1000, Compression::Gzip);
    let image = open(dir.path().join("source")).expect("an image");
    let store = Store::open(dir.path().join("store")).expect("a store");
    let name: Reference = "bench".parse().expect("a name");
    let stored = store.add(&image, &name).expect("a stored image");
    let options = options(Whiteouts::OverlayUser);
    drop(store.unpack(&stored, &options).expect("unpacked layers"));
    let mut group = criterion.benchmark_group("oci-image/store");
    group.bench_function("look up", |bencher| {
        bencher.iter(|| black_box(store.image(&name, &Platform::host()).expect("the image")));
    });
    group.bench_function("unpacked already", |bencher| {
        bencher.iter(|| black_box(store.unpack(&stored, &options).expect("unpacked layers")));
    });
    group.finish();
}

criterion_group!(benches, unpacking, packing, looking_up);
criterion_main!(benches);
