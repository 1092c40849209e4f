//! Overlays beside raw system calls, mount(8), `diff -r` and `cp -a`.
//!
//! Needs root. The layers are on a tmpfs of their own.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use overlayfs::{CopyOptions, Durability, Merged, Mounted, Overlay, Upper};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_fd, fsmount, fsopen, mount, mount_change,
    move_mount, unmount,
};
use rustix::thread::UnshareFlags;

/// A tmpfs that goes away with the guard.
struct Scratch {
    _mounted: Mounted,
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        enter_private_namespace();
        let directory = tempfile::tempdir().expect("made");
        let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("opened");
        fsconfig_create(&fs).expect("created");
        let root = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let mounted = overlayfs::attach(root.expect("mounted"), directory.path());
        Scratch {
            _mounted: mounted.expect("attached"),
            directory,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("made");
        path
    }
}

/// Where no other process that makes a mount namespace meanwhile copies the mounts, and keeps them
/// in use after they are unmounted here.
fn enter_private_namespace() {
    static ENTER: Once = Once::new();
    ENTER.call_once(|| {
        // Deprecated because of what other threads may share; there are none yet.
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).expect("entered");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private");
    });
}

fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).expect("opened")
}

/// What is least needed for the same: no check, no diagnosis, no lock.
fn raw(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("opened");
    fsconfig_set_fd(&fs, "upperdir", open(upper)).expect("set");
    fsconfig_set_fd(&fs, "workdir", open(work)).expect("set");
    for layer in layers.iter().rev() {
        fsconfig_set_fd(&fs, "lowerdir+", open(layer)).expect("set");
    }
    fsconfig_create(&fs).expect("created");
    let root =
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).expect("mounted");
    drop(fs);
    move_mount(
        &root,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .expect("attached");
    drop(root);
    unmount(target, UnmountFlags::empty()).expect("unmounted");
}

/// The options as mount(2) and mount(8) want them; none if they do not fit into a page.
fn page(layers: &[PathBuf], upper: &Path, work: &Path) -> Option<String> {
    let names: Vec<_> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let page = format!(
        "lowerdir={},upperdir={},workdir={}",
        names.join(":"),
        upper.display(),
        work.display()
    );
    (page.len() < 4096).then_some(page)
}

fn mounting(c: &mut Criterion) {
    let mut group = c.benchmark_group("mount and unmount");
    let scratch = Scratch::new();
    let (upper, work, target) = (scratch.dir("u"), scratch.dir("w"), scratch.dir("m"));
    for count in [1, 10, 100, 500] {
        let layers: Vec<_> = (0..count)
            .map(|number| scratch.dir(&format!("l{number}")))
            .collect();
        group.bench_function(BenchmarkId::new("Overlay", count), |b| {
            b.iter(|| {
                Overlay::bottom_up(&layers)
                    .upper(&upper, &work)
                    .mount(&target)
                    .expect("mounted")
                    .close()
                    .expect("unmounted");
            });
        });
        group.bench_function(BenchmarkId::new("Overlay, exclusive", count), |b| {
            b.iter(|| {
                Overlay::bottom_up(&layers)
                    .upper(&upper, &work)
                    .exclusive()
                    .mount(&target)
                    .expect("mounted")
                    .close()
                    .expect("unmounted");
            });
        });
        group.bench_function(BenchmarkId::new("raw fsopen", count), |b| {
            b.iter(|| raw(&layers, &upper, &work, &target));
        });
        let Some(page) = page(&layers, &upper, &work) else {
            continue;
        };
        let data = std::ffi::CString::new(page.clone()).expect("no NUL");
        group.bench_function(BenchmarkId::new("raw mount(2)", count), |b| {
            b.iter(|| {
                mount(
                    "overlay",
                    &target,
                    "overlay",
                    MountFlags::empty(),
                    data.as_c_str(),
                )
                .expect("mounted");
                unmount(&target, UnmountFlags::empty()).expect("unmounted");
            });
        });
        group.bench_function(BenchmarkId::new("mount(8)", count), |b| {
            b.iter(|| {
                let mounted = Command::new("mount")
                    .args(["-t", "overlay", "overlay", "-o", &page])
                    .arg(&target)
                    .status();
                assert!(mounted.expect("started").success());
                let unmounted = Command::new("umount").arg(&target).status();
                assert!(unmounted.expect("started").success());
            });
        });
    }
    group.finish();
}

/// 100,000 files in 1,000 directories.
fn large_tree(base: &Path) {
    for directory in 0..1000 {
        let directory = base.join(format!("directory{directory}"));
        fs::create_dir_all(&directory).expect("made");
        for file in 0..100 {
            fs::write(directory.join(format!("file{file}")), "some contents").expect("written");
        }
    }
}

fn changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("100 changes in 100,000 files");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    let scratch = Scratch::new();
    let (base, upper, target) = (
        scratch.dir("base"),
        scratch.dir("upper"),
        scratch.dir("merged"),
    );
    large_tree(&base);
    let mounted = Overlay::bottom_up([&base])
        .upper(&upper, scratch.dir("work"))
        .mount(&target)
        .expect("mounted");
    for number in 0..100 {
        let file = target.join(format!("directory{}/file{}", number * 7, number % 100));
        fs::write(file, "other").expect("written");
    }
    group.bench_function("Upper::changes", |b| {
        b.iter(|| {
            let upper = Upper::over_bottom_up([&base], &upper).expect("opened");
            assert_eq!(upper.changes().map(Result::unwrap).count(), 100);
        });
    });
    group.bench_function("diff -rq", |b| {
        b.iter(|| {
            let compared = Command::new("diff")
                .arg("-rq")
                .args([&base, &target])
                .stdout(Stdio::null())
                .status();
            assert_eq!(compared.expect("started").code(), Some(1));
        });
    });
    group.bench_function("a walk over both trees that compares metadata", |b| {
        b.iter(|| {
            let changed = compare(&base, &target);
            assert_eq!(changed, 100);
        });
    });
    group.finish();
    mounted.close().expect("unmounted");
}

/// The way of tools that know nothing of upper layers: size and time of every file.
fn compare(one: &Path, other: &Path) -> usize {
    let mut changed = 0;
    for entry in fs::read_dir(one).expect("read") {
        let entry = entry.expect("read");
        let other = other.join(entry.file_name());
        let (was, is) = (
            entry.metadata().expect("read"),
            fs::symlink_metadata(&other).expect("read"),
        );
        if was.is_dir() {
            changed += compare(&entry.path(), &other);
        } else if was.len() != is.len() || was.modified().ok() != is.modified().ok() {
            changed += 1;
        }
    }
    changed
}

fn flatten(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy 20,000 files out of 3 layers");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(10));
    let scratch = Scratch::new();
    let layers: Vec<_> = (0..3)
        .map(|number| scratch.dir(&format!("layer{number}")))
        .collect();
    for (number, layer) in layers.iter().enumerate() {
        for directory in 0..100 {
            let directory = layer.join(format!("directory{directory}"));
            fs::create_dir_all(&directory).expect("made");
            for file in 0..67 {
                let contents = vec![7; 4000 + 37 * file];
                fs::write(directory.join(format!("file{number}-{file}")), contents)
                    .expect("written");
            }
        }
    }
    let target = scratch.path("copy");
    let mounted = Overlay::bottom_up(&layers)
        .mount(scratch.dir("merged"))
        .expect("mounted");
    let remove = || drop(fs::remove_dir_all(&target));
    group.bench_function("Merged::flatten", |b| {
        b.iter_batched(
            remove,
            |()| {
                let options = CopyOptions::new().durability(Durability::ProcessDeath);
                Merged::bottom_up(&layers)
                    .expect("opened")
                    .flatten(&target, options)
                    .expect("copied");
            },
            criterion::BatchSize::PerIteration,
        );
    });
    group.bench_function("cp -a from the mount", |b| {
        b.iter_batched(
            remove,
            |()| {
                let copied = Command::new("cp")
                    .arg("-a")
                    .args([mounted.target(), &target])
                    .status();
                assert!(copied.expect("started").success());
            },
            criterion::BatchSize::PerIteration,
        );
    });
    group.finish();
    mounted.close().expect("unmounted");
}

criterion_group!(benches, mounting, changes, flatten);
criterion_main!(benches);
