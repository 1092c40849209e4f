//! Whole commands in turn: the same work by a C program, by us and by others.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::contender::{Contender, Line, Once, Words};
use super::{bundle, directory, done, order, plot, write};
use crate::exec;
use crate::places;
use crate::tools::{self, Tool};

const TOOLS: [Tool; 4] = [
    Tool::program("cc", "gcc", "compile the C program that is the floor"),
    Tool::program(
        "busybox",
        "busybox-static",
        "be the command in the container",
    ),
    Tool::program("runc", "runc", "be compared with"),
    Tool::program("crun", "crun", "be compared with"),
];
/// Rounds whose times are not counted.
const WARM_UP: u32 = 2;
const FLOOR: &str = "C floor";
/// A container in steps: `$0` is a runtime, then come its state, a bundle and a name.
const STEPS: &str = r#""$0" --root "$1" create --bundle "$2" "$3" < /dev/null &&
    "$0" --root "$1" start "$3" && "$0" --root "$1" delete --force "$3""#;

/// All that comes out, as it is written to a file.
#[derive(Serialize)]
struct Results {
    kernel: String,
    cpus: usize,
    rounds: u32,
    lines: Vec<Line>,
    left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
pub(super) struct LeftOut {
    pub(super) name: &'static str,
    pub(super) reason: String,
}

pub(crate) fn run(rounds: u32) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the peers run containers as root; run `sudo -E env PATH=\"$PATH\" cargo xtask bench --peers`"
        );
    }
    tools::require(&TOOLS)?;
    exec::catch_signals();
    let out = directory()?;
    let scratch = tempfile::Builder::new()
        .prefix("cofferdam-bench-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let stage = Stage::set(scratch.path(), &out)?;
    let mut left_out = Vec::new();
    let mut contenders = Vec::new();
    for contender in stage.contenders() {
        // A first run tells who can do this here at all.
        match contender.once(u32::MAX)? {
            Once::Took(_) => contenders.push(contender),
            Once::Failed(why) if contender.is_ours() => {
                bail!("{} cannot do its work: {why}", contender.name)
            }
            Once::Failed(reason) => left_out.push(LeftOut {
                name: contender.name,
                reason,
            }),
        }
    }
    let measured = measure(&mut contenders, rounds);
    stage.clear_up(rounds);
    measured?;

    let floor = contenders
        .iter()
        .find(|c| c.name == FLOOR)
        .map_or(f64::NAN, |c| c.line(1.0).median_ms);
    let results = Results {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        rounds,
        lines: contenders.iter().map(|c| c.line(floor)).collect(),
        left_out,
    };
    print(&results);
    let (numbers, picture) = (write("peers", &results)?, out.join("peers.svg"));
    fs::write(&picture, plot::bars(&results.lines))
        .with_context(|| format!("cannot write {}", picture.display()))?;
    println!("\nwritten: {} and {}", numbers.display(), picture.display());
    Ok(())
}

/// Runs all in turn, round by round.
fn measure(contenders: &mut [Contender], rounds: u32) -> Result<()> {
    let bar = ProgressBar::new(u64::from(rounds + WARM_UP));
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} round {pos} of {len}") {
        bar.set_style(style);
    }
    for round in 0..rounds + WARM_UP {
        for at in order(round, contenders.len()) {
            let contender = &mut contenders[at];
            match contender.once(round)? {
                Once::Took(time) if round >= WARM_UP => contender.times.push(time),
                Once::Took(_) => {}
                Once::Failed(why) => {
                    bail!("{} failed in round {}: {why}", contender.name, round + 1)
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn print(results: &Results) {
    println!(
        "{:<32} {:>9} {:>9} {:>9} {:>8}",
        "", "median", "p10", "p90", "floor ×"
    );
    for line in &results.lines {
        println!(
            "{:<32} {:>6.1} ms {:>6.1} ms {:>6.1} ms {:>8.2}",
            line.name, line.median_ms, line.p10_ms, line.p90_ms, line.times_the_floor
        );
    }
    println!();
    for line in &results.lines {
        println!("{}: {}", line.name, line.includes);
    }
    for left in &results.left_out {
        println!(
            "{}: left out, it does not work here: {}",
            left.name, left.reason
        );
    }
    println!(
        "{} rounds on kernel {} with {} CPUs",
        results.rounds, results.kernel, results.cpus
    );
}

/// The files that the commands work on.
struct Stage {
    floor: PathBuf,
    engine: PathBuf,
    runtime: PathBuf,
    rootfs: PathBuf,
    bundle: PathBuf,
    /// The same container with limits and a seccomp profile.
    limited: PathBuf,
    image: PathBuf,
    scratch: PathBuf,
}

impl Stage {
    /// Builds the programs and lays out a root file system, a bundle and an image of the same
    /// busybox.
    fn set(scratch: &Path, out: &Path) -> Result<Stage> {
        for words in [
            &[
                "build",
                "--release",
                "--package",
                "engine",
                "--package",
                "container-runtime",
                "--bins",
            ][..],
            &[
                "build",
                "--release",
                "--package",
                "cofferdam-oci-image",
                "--example",
                "pack",
            ],
        ] {
            let mut cargo = Command::new(places::cargo());
            cargo.args(words).current_dir(places::workspace());
            done(cargo, exec::aloud)?;
        }
        let floor = out.join("floor");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-o"])
            .arg(&floor)
            .arg(places::workspace().join("benches/c/floor.c"));
        done(cc, exec::aloud)?;

        let rootfs = scratch.join("rootfs");
        for dir in ["bin", "dev", "etc", "proc", "sys"] {
            fs::create_dir_all(rootfs.join(dir)).context("cannot make the root file system")?;
        }
        let busybox = tools::find("busybox").context("there is no busybox")?;
        fs::copy(&busybox, rootfs.join("bin/busybox")).context("cannot copy busybox")?;
        symlink("busybox", rootfs.join("bin/true")).context("cannot make a link to busybox")?;

        let write = |name: &str, config: &serde_json::Value| -> Result<PathBuf> {
            let bundle = scratch.join(name);
            fs::create_dir_all(&bundle).context("cannot make the bundle")?;
            fs::write(
                bundle.join("config.json"),
                serde_json::to_vec_pretty(config)?,
            )
            .context("cannot write the bundle")?;
            Ok(bundle)
        };
        let bundle = write("bundle", &bundle::usual(&rootfs))?;
        let limited = write("limited", &bundle::limited(&rootfs)?)?;

        let release = places::target().join("release");
        let image = scratch.join("image");
        let mut pack = Command::new(release.join("examples/pack"));
        pack.arg(&rootfs).arg(&image).arg("/bin/true");
        done(pack, exec::quiet)?;
        Ok(Stage {
            floor,
            engine: release.join("cofferdam"),
            runtime: release.join("cofferdam-runtime"),
            rootfs,
            bundle,
            limited,
            image,
            scratch: scratch.to_path_buf(),
        })
    }

    fn contenders(&self) -> Vec<Contender> {
        let report = self.scratch.join("report.json");
        let engine = |report: Option<&Path>| {
            let mut words: Vec<OsString> = vec![
                self.engine.clone().into(),
                "--root".into(),
                self.scratch.join("engine").into(),
                "run".into(),
            ];
            if let Some(report) = report {
                words.extend(["--report".into(), report.into()]);
            }
            words.extend([self.image.clone().into(), "/bin/true".into()]);
            move |_| words.clone()
        };
        let floor: Vec<OsString> = vec![
            self.floor.clone().into(),
            self.rootfs.clone().into(),
            "/bin/true".into(),
        ];
        let state = |program: &Path| self.scratch.join(program.file_name().unwrap_or_default());
        let run = |program: &Path, bundle: &Path| {
            let words: [OsString; 5] = [
                program.into(),
                "--root".into(),
                state(program).into(),
                "run".into(),
                "--bundle".into(),
            ];
            let bundle = bundle.to_owned();
            move |number| {
                let last = [bundle.clone().into(), name(number).into()];
                words.iter().cloned().chain(last).collect()
            }
        };
        let steps = |program: &Path| {
            let words: [OsString; 6] = [
                "sh".into(),
                "-c".into(),
                STEPS.into(),
                program.into(),
                state(program).into(),
                self.bundle.clone().into(),
            ];
            move |number| words.iter().cloned().chain([name(number).into()]).collect()
        };
        let mut contenders = vec![
            Contender {
                name: FLOOR,
                includes: "clone3 with five namespaces, bind of the root, proc, pivot_root, exec, \
                           exit; nothing else",
                words: Box::new(move |_| floor.clone()),
                report: None,
                times: Vec::new(),
            },
            Contender {
                name: "cofferdam run",
                includes: "image verified and unpacked, overlay, cgroups, namespaces, /dev, exec, \
                           exit, all removed again",
                words: Box::new(engine(None)),
                report: None,
                times: Vec::new(),
            },
            Contender {
                name: "cofferdam run, unpacked",
                includes: "the same less the time it says it took to verify and unpack",
                words: Box::new(engine(Some(&report))),
                report: Some(report.clone()),
                times: Vec::new(),
            },
        ];
        let peers = [
            (
                self.runtime.clone(),
                [
                    "cofferdam-runtime run",
                    "cofferdam-runtime run, limited",
                    "cofferdam-runtime in steps",
                ],
            ),
            (
                PathBuf::from("runc"),
                ["runc run", "runc run, limited", "runc in steps"],
            ),
            (
                "crun".into(),
                ["crun run", "crun run, limited", "crun in steps"],
            ),
        ];
        for (program, names) in peers {
            let words: [(_, Words); 3] = [
                (
                    "bundle on disk, cgroups, namespaces, /dev, capabilities, masked paths, exec, \
                     exit, all removed again",
                    Box::new(run(&program, &self.bundle)),
                ),
                (
                    "the same with limits of memory, CPU and processes, and a seccomp profile",
                    Box::new(run(&program, &self.limited)),
                ),
                (
                    "create, start and delete of the first bundle, by a shell",
                    Box::new(steps(&program)),
                ),
            ];
            for (name, (includes, words)) in names.into_iter().zip(words) {
                contenders.push(Contender {
                    name,
                    includes,
                    words,
                    report: None,
                    times: Vec::new(),
                });
            }
        }
        contenders
    }

    /// Removes what an interrupted or failed run of a peer leaves; ours leaves nothing.
    fn clear_up(&self, rounds: u32) {
        for program in ["runc", "crun"] {
            let state = self.scratch.join(program);
            let known: BTreeSet<String> = fs::read_dir(&state)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            for number in (0..rounds + WARM_UP).chain([u32::MAX]) {
                if known.contains(&name(number)) {
                    // It is gone already if it has ended by itself meanwhile.
                    let _ = Command::new(program)
                        .arg("--root")
                        .arg(&state)
                        .args(["delete", "--force", &name(number)])
                        .output();
                }
            }
        }
    }
}

impl Contender {
    fn is_ours(&self) -> bool {
        self.name == FLOOR || self.name.starts_with("cofferdam")
    }
}

/// A container's name for the run with this number.
fn name(number: u32) -> String {
    format!("cofferdam-bench-{}-{number}", std::process::id())
}
