//! `cargo xtask test`: every test there is, on this machine and in the lab.
//!
//! A test says by `#[ignore = "needs root"]`, `"needs kvm"`, `"needs lab"` or
//! `"needs systemd"` what it needs beyond an ordinary user's account; libtest prints these words, and they are its class.

mod binary;
mod in_lab;
mod lab_itself;
mod left;
mod plan;
mod summary;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exec::{self, Interrupted};
use crate::places;
use crate::tools::{self, Tool};
pub(crate) use in_lab::run_inside;
use plan::{Class, Plan};
pub(crate) use summary::Totals;
use summary::{Outcome, Place, Summary};

/// What the tests compare with, and make their images with.
const TOOLS: &[Tool] = &[
    Tool::program("busybox", "busybox-static", "make small images in tests"),
    Tool::program("runc", "runc", "compare with another runtime in tests"),
    Tool::program("crun", "crun", "compare with another runtime in tests"),
    Tool::program(
        "podman",
        "podman",
        "drive the runtime and move images in tests",
    ),
    Tool::program("criu", "criu", "write containers to disk in tests"),
    Tool::program("dockerd", "docker.io", "drive the runtime in tests"),
    Tool::program("docker", "docker.io", "drive the runtime in tests"),
    Tool::program("ctr", "containerd", "drive the runtime in tests"),
    Tool::program("script", "bsdutils", "give programs a terminal in tests"),
    Tool::program("ps", "procps", "list processes in tests"),
    Tool::program("skopeo", "skopeo", "copy images in tests"),
    Tool::program("umoci", "umoci", "compare the unpacking of images in tests"),
    Tool::program("buildah", "buildah", "make images in tests"),
    Tool::program(
        "docker-registry",
        "docker-registry",
        "pull from and push to in tests",
    ),
    Tool::program("newuidmap", "uidmap", "map ranges of users in tests"),
    Tool::program("debootstrap", "debootstrap", "make a Debian image in tests"),
    Tool::program("dbus-daemon", "dbus", "speak to systemd in tests"),
    Tool::program("gdb", "gdb", "debug a guest in tests"),
    Tool::program("ip", "iproute2", "look at networks in tests"),
    Tool::program("apparmor_parser", "apparmor", "confine programs in tests"),
    Tool::program(
        "python3",
        "python3",
        "compare archives with another tar in tests",
    ),
    Tool::program("mkfs.ext4", "e2fsprogs", "make filesystems in tests"),
    Tool::program("strace", "strace", "make system calls fail in tests"),
    Tool::program("tar", "tar", "compare archives with another tar in tests"),
    Tool::program("iasl", "acpica-tools", "read ACPI tables in tests"),
    tools::CLOUD_KERNEL,
    Tool::program("xz", "xz-utils", "uncompress modules of kernels in tests"),
    Tool {
        name: "memtest86+ under /boot",
        package: "memtest86+",
        why: "boot it as a guest in tests",
        present: Some(|| Path::new("/boot/memtest86+x64.bin").exists()),
    },
];

/// Cases of each property in a quick run.
const FEW_CASES: &str = "8";

/// Run every test: on this machine, and in the lab on a second kernel
///
/// Unit, doc and property tests run here; tests that need root or /dev/kvm run here and once more
/// in the lab; tests that need the lab run there. The summary says how many ran of each class. A
/// class that cannot run is a failure, unless it is left out by name.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only unit, doc and property tests, with few cases of each property
    #[arg(long)]
    quick: bool,
    /// Only the tests of this package (its name, or its folder's)
    #[arg(long, short, value_name = "CRATE")]
    package: Vec<String>,
    /// Leave out the tests that need root or kvm here, or the whole lab
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_enum)]
    without: Vec<Needs>,
    /// End a test program that runs longer than this here; in the lab, twice this
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// What a class of tests needs.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Needs {
    Root,
    Kvm,
    Lab,
}

impl Needs {
    fn name(self) -> &'static str {
        match self {
            Needs::Root => "root",
            Needs::Kvm => "kvm",
            Needs::Lab => "lab",
        }
    }
}

impl Args {
    /// What `cargo xtask ci` runs.
    pub(crate) fn everything(without: Vec<Needs>) -> Self {
        Args {
            quick: false,
            package: Vec::new(),
            without,
            timeout: 300,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match run_all(args) {
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted");
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error),
        Ok(totals) => {
            totals.print();
            Ok(totals.exit_code())
        }
    }
}

/// Runs the tests and prints what came out, but for the closing line.
pub(crate) fn run_all(args: &Args) -> Result<Totals> {
    let leaves_out = |needs| args.quick || args.without.contains(&needs);
    let limit = Duration::from_secs(args.timeout);
    exec::catch_signals();
    exec::adopt_orphans()?;
    let plan = Plan::build(&args.package)?;
    // All that is missing is said at once, before anything runs.
    let mut problems = Vec::new();
    if !leaves_out(Needs::Root) && plan.count(Class::Root) > 0 {
        problems.extend(why_no_root());
    }
    if !leaves_out(Needs::Kvm) && plan.count(Class::Kvm) > 0 {
        problems.extend(why_no_kvm());
    }
    if !args.quick {
        tools::require(TOOLS)?;
    }
    if !problems.is_empty() {
        bail!("not all tests can run:\n  {}", problems.join("\n  "));
    }

    let temporary = tempfile::Builder::new()
        .prefix("cofferdam-test-")
        .tempdir()
        .context("cannot make a directory for the tests' temporary files")?;
    let before = left::Snapshot::take();
    let mut summary = Summary::default();
    let settings = binary::Settings {
        temporary: temporary.path().to_path_buf(),
        limit,
        cases: (args.quick && env::var_os("PROPTEST_CASES").is_none()).then_some(FEW_CASES),
    };
    let mut here = |class: Class| -> Result<()> {
        for binary in &plan.binaries {
            if let Some(outcome) = binary.run(class, Place::Here, &settings)? {
                summary.add(outcome);
            }
        }
        Ok(())
    };
    here(Class::Unit)?;
    here(Class::Property)?;
    if !leaves_out(Needs::Root) {
        here(Class::Root)?;
    }
    if !leaves_out(Needs::Kvm) {
        here(Class::Kvm)?;
    }
    if plan.has_docs {
        summary.add(doc_tests(&plan, &settings)?);
    }
    if !leaves_out(Needs::Lab) {
        in_lab::run(&plan, limit * 2, &mut summary)?;
    }
    if !leaves_out(Needs::Lab) && plan.has_package("xtask") {
        summary.add(lab_itself::run(temporary.path())?);
    }
    let left = left::after(&before, temporary.path());
    exec::end_all();
    Ok(summary.print(&args.without, args.quick, &left))
}

fn why_no_root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| {
        "tests need root and you are not root; run `sudo -E env PATH=\"$PATH\" cargo xtask test`, \
         or leave these tests to the lab with --without root"
            .to_owned()
    })
}

fn why_no_kvm() -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    let open = fs::File::options().read(true).write(true).open(kvm);
    open.err().map(|error| {
        format!(
            "tests need {}, which cannot be opened ({error}); load the module kvm_intel or \
             kvm_amd and join the group kvm, or leave these tests to the lab with --without kvm",
            kvm.display()
        )
    })
}

/// Runs the examples in the docs of all packages with one cargo, so that it finds the
/// dependencies as they were built for the tests: features depend on what is built together.
fn doc_tests(plan: &Plan, settings: &binary::Settings) -> Result<Outcome> {
    let mut command = Command::new(places::cargo());
    command
        .args(["test", "--doc", "--no-fail-fast", "--quiet"])
        .args(&plan.selection)
        // Quiet is for cargo; the names of the tests are what we read.
        .args(["--", "--format", "pretty"])
        .current_dir(places::workspace())
        .env("TMPDIR", &settings.temporary);
    // Compiling the examples takes its time too.
    let ran = exec::run(command, settings.limit * 4, exec::quiet)?;
    let mut outcome = Outcome::new(Class::Doc, Place::Here, "docs");
    outcome.time = ran.time;
    let mut ignored = BTreeSet::new();
    for (name, result) in binary::results(&ran.output) {
        match result {
            binary::TestResult::Passed => outcome.passed.push(name),
            binary::TestResult::Failed => outcome.failed.push(name),
            binary::TestResult::Ignored(_) => {
                ignored.insert(name);
            }
        }
    }
    if !ran.success() && outcome.failed.is_empty() {
        outcome.failed.push(format!("({})", ran.end()));
    }
    for name in ignored {
        outcome
            .failed
            .push(format!("{name} (an example in the docs marked `ignore`)"));
    }
    if !outcome.failed.is_empty() {
        outcome.output = ran.output;
    }
    outcome.say();
    Ok(outcome)
}
