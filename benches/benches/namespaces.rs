//! Spawning `/bin/true` in namespaces, beside a floor in C, std's `Command`, and `unshare`; and in a
//! container, beside `hakoniwa` where that program is installed (`cargo install hakoniwa-cli`; its
//! licence keeps its library from being a dependency).
//!
//! Needs root, because it makes namespaces without a user namespace, and a C compiler.

use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use namespaces::{Command, Mount, Namespace, UserMapping};

const PROGRAM: &str = "/bin/true";

/// The namespaces of a bench, by how many they are.
fn kinds(count: usize) -> Vec<Namespace> {
    match count {
        0 => Vec::new(),
        1 => vec![Namespace::Uts],
        5 => vec![
            Namespace::Uts,
            Namespace::Mount,
            Namespace::Pid,
            Namespace::Ipc,
            Namespace::Net,
        ],
        _ => Namespace::ALL.to_vec(),
    }
}

/// Compiles the floor.
fn floor(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/spawn.c");
    let program = directory.join("spawn");
    let status = std::process::Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .expect("a C compiler (package gcc)");
    assert!(status.success(), "the floor does not compile");
    program
}

fn bench_floor(group: &mut BenchmarkGroup<'_, WallTime>, floor: &Path, count: usize) {
    group.bench_function("c-floor", |bencher| {
        bencher.iter_custom(|iterations| {
            let output = std::process::Command::new(floor)
                .args([count.to_string(), iterations.to_string()])
                .output()
                .expect("run the floor");
            let text = String::from_utf8_lossy(&output.stdout);
            let nanoseconds = text.trim().parse().expect("it needs root");
            Duration::from_nanos(nanoseconds)
        });
    });
}

/// The program in that many namespaces.
fn run(count: usize, change: impl FnOnce(&mut Command)) {
    let mut command = Command::new(PROGRAM);
    command.env_clear().unshare(kinds(count));
    if count == 8 {
        command.user_namespace(UserMapping::CallerAsRoot);
    }
    change(&mut command);
    assert!(command.status().expect("spawn").success());
}

fn bench_ours(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    group.bench_function("namespaces", |bencher| bencher.iter(|| run(count, |_| ())));
}

fn bench_std(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.bench_function("std", |bencher| {
        bencher.iter(|| {
            let status = std::process::Command::new(PROGRAM)
                .env_clear()
                .status()
                .expect("spawn");
            assert!(status.success());
        });
    });
}

/// The command of util-linux, which itself is spawned by std.
fn bench_unshare(group: &mut BenchmarkGroup<'_, WallTime>, options: &[&str]) {
    group.bench_function("unshare", |bencher| {
        bencher.iter(|| {
            let status = std::process::Command::new("unshare")
                .args(options)
                .args(["--", PROGRAM])
                .status()
                .expect("unshare (package util-linux)");
            assert!(status.success());
        });
    });
}

/// What `hakoniwa run` makes: six namespaces with one id, a new root with `/etc` and `/usr` read-only
/// in it, `/proc`, and a filter, here one of the same length.
fn contained(filter: &[u8]) {
    let root = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .unshare(kinds(5))
        .user_namespace(UserMapping::CallerAsRoot)
        .root(root.path())
        .root_read_only(true)
        .mount(Mount::bind("/etc", "/etc").read_only())
        .mount(Mount::bind("/usr", "/usr").read_only())
        .mount(Mount::proc("/proc"))
        .no_new_privs(true)
        .seccomp(filter);
    for directory in ["bin", "lib", "lib64", "sbin"] {
        let target = Path::new("usr").join(directory);
        command.link(Path::new("/").join(directory), target);
    }
    assert!(command.status().expect("spawn").success());
}

/// A seccomp program that allows everything, in so many instructions.
fn filter(length: usize) -> Vec<u8> {
    let load_call = [0x20, 0, 0, 0, 0, 0, 0, 0];
    let allow = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let mut program = load_call.repeat(length - 1);
    program.extend(allow);
    program
}

fn container(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spawn-container");
    let filter = filter(1_150);
    group.bench_function("namespaces", |bencher| bencher.iter(|| contained(&filter)));
    let command = || {
        let mut command = std::process::Command::new("hakoniwa");
        command
            .args(["run", "--unshare-uts", "--unshare-ipc"])
            .args(["--unshare-network", "--rootfs", "/", "--", PROGRAM])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        command
    };
    if !command().status().is_ok_and(|status| status.success()) {
        eprintln!("hakoniwa: left out, it is not installed or does not work here");
        return;
    }
    group.bench_function("hakoniwa", |bencher| {
        bencher.iter(|| {
            let status = command().status().expect("it worked before");
            assert!(status.success());
        });
    });
    group.finish();
}

fn spawn(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let floor = floor(directory.path());
    for count in [0, 1, 5, 8] {
        let mut group = criterion.benchmark_group(format!("spawn-{count}-namespaces"));
        bench_floor(&mut group, &floor, count);
        bench_ours(&mut group, count);
        match count {
            0 => bench_std(&mut group),
            1 => bench_unshare(&mut group, &["--uts"]),
            5 => bench_unshare(
                &mut group,
                &["--uts", "--mount", "--fork", "--pid", "--ipc", "--net"],
            ),
            _ => bench_unshare(
                &mut group,
                &[
                    "--uts",
                    "--mount",
                    "--fork",
                    "--pid",
                    "--ipc",
                    "--net",
                    "--cgroup",
                    "--time",
                    "--map-root-user",
                ],
            ),
        }
        group.finish();
    }
}

/// A process whose page tables take long to copy.
fn large_parent(criterion: &mut Criterion) {
    const SIZE: usize = 4 << 30;
    let memory = vec![1_u8; SIZE];
    let mut group = criterion.benchmark_group("spawn-from-4-gib");
    for count in [0, 5, 8] {
        group.bench_function(format!("namespaces-{count}"), |bencher| {
            bencher.iter(|| run(count, |_| ()));
        });
    }
    // What every plan would take if the process were a copy of its parent, as this one is.
    group.bench_function("copied", |bencher| {
        bencher.iter(|| {
            run(1, |command| {
                command.oom_score_adj(0);
            });
        });
    });
    bench_std(&mut group);
    group.finish();
    std::hint::black_box(&memory);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = spawn, container, large_parent
}
criterion_main!(benches);
