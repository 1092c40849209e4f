//! Control groups beside the floor: the same system calls by hand.
//!
//! Needs root, because it makes groups.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cgroups::{Bytes, Cgroup, Controller, CpuQuota, Hierarchy, Limits};
use criterion::{Criterion, criterion_group, criterion_main};

fn limits() -> Limits {
    Limits::new()
        .memory_max(Bytes::mib(64))
        .pids_max(100)
        .cpu_max(CpuQuota::cpus(0.5).expect("in range"))
}

/// Makes the directories, writes the same limits and removes the directories.
fn by_hand(directories: &[PathBuf], writes: &[(PathBuf, String)]) {
    for directory in directories {
        fs::create_dir(directory).expect("created");
    }
    for (file, value) in writes {
        fs::write(file, value).expect("written");
    }
    for directory in directories {
        fs::remove_dir(directory).expect("removed");
    }
}

fn whole_life(c: &mut Criterion) {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let parent = hierarchy
        .create(format!("bench-{}", std::process::id()))
        .expect("created")
        .guard();
    for controller in [Controller::Memory, Controller::Pids, Controller::Cpu] {
        let child = parent.create("enable").expect("created");
        child.enable(controller).expect("enabled");
        child.remove().expect("removed");
    }
    let directories: Vec<_> = parent.directories().map(|d| d.join("hand")).collect();
    let writes: Vec<_> = [
        ("memory.max", "67108864"),
        ("memory.limit_in_bytes", "67108864"),
        ("pids.max", "100"),
        ("cpu.max", "50000 100000"),
        ("cpu.cfs_quota_us", "50000"),
    ]
    .into_iter()
    .filter_map(|(file, value)| {
        directories.iter().find_map(|directory| {
            fs::create_dir(directory).expect("created");
            let exists = directory.join(file).exists();
            fs::remove_dir(directory).expect("removed");
            exists.then(|| (directory.join(file), value.to_owned()))
        })
    })
    .collect();
    let limits = limits();
    let mut group = c.benchmark_group("cgroups/create, limit, remove");
    group.bench_function("by hand", |b| b.iter(|| by_hand(&directories, &writes)));
    group.bench_function("cofferdam", |b| {
        b.iter(|| {
            let child = parent.create("child").expect("created");
            child.apply(&limits).expect("applied");
            child.remove().expect("removed");
        });
    });
    group.finish();
    parent.close().expect("removed");
}

fn statistics(c: &mut Criterion) {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let group = hierarchy
        .create(format!("bench-stats-{}", std::process::id()))
        .expect("created")
        .guard();
    group.apply(&limits()).expect("applied");
    for controller in [Controller::Io, Controller::Hugetlb] {
        group.enable(controller).expect("enabled");
    }
    c.bench_function("cgroups/read all statistics", |b| {
        b.iter(|| {
            (
                group.cpu_stats().expect("read"),
                group.memory_stats().expect("read"),
                group.memory_counters().expect("read"),
                group.pids_stats().expect("read"),
                group.io_stats().expect("read"),
                group.hugetlb_stats().expect("read"),
            )
        });
    });
    group.close().expect("removed");
}

/// Sleepers in a group; ended and reaped with it.
struct Crowd<'a> {
    group: &'a Cgroup,
    children: Vec<Child>,
}

impl<'a> Crowd<'a> {
    fn new(group: &'a Cgroup, size: usize) -> Self {
        let mut crowd = Self {
            group,
            children: Vec::new(),
        };
        for _ in 0..size {
            let mut command = Command::new("sleep");
            command.arg("1000").stdin(Stdio::null());
            crowd.children.push(group.spawn(command).expect("started"));
        }
        crowd
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        // A bench that ends early still ends them.
        let _ = self.group.kill();
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

fn processes(c: &mut Criterion) {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let group = hierarchy
        .create(format!("bench-crowd-{}", std::process::id()))
        .expect("created")
        .guard();
    let crowd = Crowd::new(&group, 1_000);
    let file = group
        .directories()
        .next()
        .expect("there is one")
        .join("cgroup.procs");
    let mut benches = c.benchmark_group("cgroups/list 1000 processes");
    benches.bench_function("by hand", |b| {
        b.iter(|| {
            fs::read_to_string(&file)
                .expect("read")
                .lines()
                .map(|line| line.parse::<u32>().expect("a number"))
                .collect::<Vec<_>>()
        });
    });
    benches.bench_function("cofferdam", |b| {
        b.iter(|| group.processes().expect("read"));
    });
    benches.finish();
    drop(crowd);
    group.close().expect("removed");
}

criterion_group!(benches, whole_life, statistics, processes);
criterion_main!(benches);
