//! Control groups, beside libcgroups (of youki) and cgroups-rs (of kata-containers).
//!
//! Needs root, because it makes groups. Each library works in the way that it is meant to, on the
//! layout that it finds; the work is the same. Where one does less than the others, it says so.
//! `by hand` is the floor: nothing but the system calls that all of them must make.
//!
//! Measured is processor time, of the program and of the kernel for it: none of this waits, and a
//! machine with other work to do does not change it much.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cgroups::{Bytes, Cgroup, Controller, CpuQuota, Hierarchy, Limits, Version};
use cgroups_rs::fs::cgroup_builder::CgroupBuilder;
use cgroups_rs::fs::{self as peer, MaxValue, hierarchies};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, criterion_group, criterion_main};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager,
};
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder,
};
use rustix::time::{ClockId, clock_gettime};

fn limits() -> Limits {
    Limits::new()
        .memory_max(Bytes::mib(64))
        .pids_max(100)
        .cpu_max(CpuQuota::cpus(0.5).expect("in range"))
}

fn oci_limits() -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(64_i64 << 20).build();
    let cpu = LinuxCpuBuilder::default()
        .quota(50_000)
        .period(100_000_u64)
        .build();
    LinuxResourcesBuilder::default()
        .memory(memory.expect("complete"))
        .pids(
            LinuxPidsBuilder::default()
                .limit(100)
                .build()
                .expect("complete"),
        )
        .cpu(cpu.expect("complete"))
        .build()
        .expect("complete")
}

fn libcgroups(path: &Path) -> AnyCgroupManager {
    create_cgroup_manager(CgroupConfig {
        cgroup_path: Path::new("/").join(path),
        systemd_cgroup: false,
        container_name: String::new(),
    })
    .expect("a manager")
}

/// A group for a bench, with the controllers that the benches use passed on to what is below.
fn parent(name: &str) -> cgroups::Guard {
    let name = format!("bench-{name}-{}", std::process::id());
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let parent = hierarchy.create(name).expect("created").guard();
    let child = parent.create("enable").expect("created");
    for controller in [
        Controller::Memory,
        Controller::Pids,
        Controller::Cpu,
        Controller::Cpuset,
        Controller::Io,
        Controller::Hugetlb,
    ] {
        child.enable(controller).expect("enabled");
    }
    child.remove().expect("removed");
    parent
}

/// Removes what a peer made where we have nothing: it knows hierarchies without controllers, too.
fn remove_from_other_hierarchies(path: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        if let Some(point) = line.split(' ').nth(4) {
            // Most have nothing there.
            let _ = fs::remove_dir(Path::new(point).join(path));
        }
    }
}

/// Which files the same limits are written to here, and what a group of v1 needs besides before
/// a process can enter it.
fn writes_by_hand(parent: &Cgroup, directories: &[PathBuf]) -> Vec<(PathBuf, String)> {
    for directory in directories {
        fs::create_dir(directory).expect("created");
    }
    let memory = (64_u64 << 20).to_string();
    let quota = "50000".to_owned();
    let mut wanted = vec![
        ("memory.max", memory.clone()),
        ("memory.limit_in_bytes", memory.clone()),
        ("pids.max", "100".to_owned()),
        ("cpu.max", quota.clone()),
        ("cpu.cfs_quota_us", quota),
    ];
    if parent.hierarchy().version_of(Controller::Cpuset) == Some(Version::V1) {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let above = parent.directories().map(|directory| directory.join(file));
            let value = above
                .filter_map(|file| fs::read_to_string(file).ok())
                .next();
            wanted.push((file, value.expect("the parent has some").trim().to_owned()));
        }
    }
    let find = |(file, value)| {
        let mut files = directories.iter().map(|directory| directory.join(file));
        Some((files.find(|file| file.exists())?, value))
    };
    let writes = wanted.into_iter().filter_map(find).collect();
    for directory in directories {
        fs::remove_dir(directory).expect("removed");
    }
    writes
}

fn whole_life(c: &mut Criterion<ProcessorTime>) {
    let parent = parent("life");
    let own = parent.path().to_owned();
    let mut group = c.benchmark_group("cgroups/create, limit, remove");

    let directories: Vec<PathBuf> = parent.directories().map(|d| d.join("hand")).collect();
    let writes = writes_by_hand(&parent, &directories);
    group.bench_function("by hand", |b| {
        b.iter(|| {
            for directory in &directories {
                fs::create_dir(directory).expect("created");
            }
            for (file, value) in &writes {
                fs::OpenOptions::new()
                    .write(true)
                    .open(file)
                    .and_then(|mut file| file.write_all(value.as_bytes()))
                    .expect("written");
            }
            for directory in &directories {
                fs::remove_dir(directory).expect("removed");
            }
        });
    });

    let wanted = limits();
    group.bench_function("cofferdam", |b| {
        b.iter(|| {
            let child = parent.create("child").expect("created");
            child.apply(&wanted).expect("applied");
            child.remove().expect("removed");
        });
    });

    // It makes directories only together with a process to put there, and would kill that process
    // when it removes them. So they are made by hand, which is less work than it would do.
    let directories: Vec<PathBuf> = parent.directories().map(|d| d.join("libcgroups")).collect();
    let path = parent.path().join("libcgroups");
    let resources = oci_limits();
    group.bench_function("libcgroups", |b| {
        b.iter(|| {
            let manager = libcgroups(&path);
            for directory in &directories {
                fs::create_dir(directory).expect("created");
            }
            manager
                .apply(&ControllerOpt {
                    resources: &resources,
                    disable_oom_killer: false,
                    oom_score_adj: None,
                    freezer_state: None,
                })
                .expect("applied");
            manager.remove().expect("removed");
            // On a hybrid layout it does not know the hierarchy of v2.
            for directory in &directories {
                let _ = fs::remove_dir(directory);
            }
        });
    });

    // As many directories, though another one: it leaves out v2's and takes v1's with systemd's
    // name. What it changes it cannot put back.
    let path = parent.path().join("cgroups-rs");
    let path = path.to_str().expect("text");
    group.bench_function("cgroups-rs", |b| {
        b.iter(|| {
            let child = CgroupBuilder::new(path)
                .memory()
                .memory_hard_limit(64 << 20)
                .done()
                .pid()
                .maximum_number_of_processes(MaxValue::Value(100))
                .done()
                .cpu()
                .quota(50_000)
                .period(100_000)
                .done()
                .build(hierarchies::auto())
                .expect("built");
            child.delete().expect("deleted");
        });
    });
    group.finish();
    parent.close().expect("removed");
    remove_from_other_hierarchies(&own);
}

fn statistics(c: &mut Criterion<ProcessorTime>) {
    let parent = parent("stats");
    let child = parent.create("child").expect("created");
    child.apply(&limits()).expect("applied");
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000").stdin(Stdio::null());
    let crowd = Crowd {
        group: &child,
        children: vec![child.spawn(sleeper).expect("started")],
    };
    let mut group = c.benchmark_group("cgroups/read all statistics");
    // Not pressure, nor huge pages where v2 has them: the others do not read those there.
    group.bench_function("cofferdam", |b| {
        b.iter(|| {
            (
                child.cpu_stats().expect("read"),
                child.memory_stats().expect("read"),
                child.memory_counters().expect("read"),
                child.pids_stats().expect("read"),
                child.io_stats().expect("read"),
            )
        });
    });
    let manager = libcgroups(child.path());
    group.bench_function("libcgroups", |b| {
        b.iter(|| manager.stats().expect("read"));
    });
    let loaded = peer::Cgroup::load(hierarchies::auto(), child.path());
    group.bench_function("cgroups-rs", |b| {
        b.iter(|| {
            let cpu = loaded.controller_of::<peer::cpu::CpuController>();
            let cpuacct = loaded.controller_of::<peer::cpuacct::CpuAcctController>();
            let memory = loaded.controller_of::<peer::memory::MemController>();
            let pids = loaded.controller_of::<peer::pid::PidController>();
            let io = loaded.controller_of::<peer::blkio::BlkIoController>();
            let huge = loaded.controller_of::<peer::hugetlb::HugeTlbController>();
            (
                cpu.map(|c| c.cpu()),
                cpuacct.map(|c| c.cpuacct()),
                memory.map(|c| (c.memory_stat(), c.memswap())),
                pids.map(|c| (c.get_pid_current(), c.get_pid_events())),
                io.map(|c| c.blkio()),
                huge.map(|c| {
                    let sizes = c.get_sizes();
                    let used = sizes.iter().map(|size| c.usage_in_bytes(size).ok());
                    used.collect::<Vec<_>>()
                }),
            )
        });
    });
    group.finish();
    drop(crowd);
    parent.close().expect("removed");
}

/// Sleepers in a group; ended and reaped with it.
struct Crowd<'a> {
    group: &'a Cgroup,
    children: Vec<Child>,
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

fn processes(c: &mut Criterion<ProcessorTime>) {
    let parent = parent("crowd");
    let child = parent.create("child").expect("created");
    let children = (0..1_000).map(|_| {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        child.spawn(command).expect("started")
    });
    let crowd = Crowd {
        group: &child,
        children: children.collect(),
    };
    let mut group = c.benchmark_group("cgroups/list 1000 processes");
    let unified = child
        .directories()
        .next()
        .expect("there is one")
        .join("cgroup.procs");
    let mut buffer = vec![0; 1 << 16];
    group.bench_function("by hand", |b| {
        b.iter(|| {
            let mut file = fs::File::open(&unified).expect("opened");
            let mut lines = 0;
            loop {
                match file.read(&mut buffer).expect("read") {
                    0 => break lines,
                    n => lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count(),
                }
            }
        });
    });
    group.bench_function("cofferdam", |b| {
        b.iter(|| child.processes().expect("read"));
    });
    let manager = libcgroups(child.path());
    group.bench_function("libcgroups", |b| {
        b.iter(|| manager.get_all_pids().expect("read"));
    });
    let loaded = peer::Cgroup::load(hierarchies::auto(), child.path());
    group.bench_function("cgroups-rs", |b| {
        b.iter(|| loaded.procs());
    });
    group.finish();
    drop(crowd);
    parent.close().expect("removed");
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ProcessorTime);
    targets = whole_life, statistics, processes
}
criterion_main!(benches);

/// The processor time of this process.
struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ProcessCPUTime);
        Duration::try_from(now).expect("never negative")
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
