//! A live table of the groups below one: `cargo run --example top [GROUP [ROUNDS]]`

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cgroups::{Cgroup, Error as GroupError, Hierarchy};

struct Row {
    name: PathBuf,
    cpu: Duration,
    memory: String,
    pids: String,
}

fn row(parent: &Cgroup, name: PathBuf) -> cgroups::Result<Row> {
    let group = parent.open(&name)?;
    let cpu = group.cpu_stats()?.map_or(Duration::ZERO, |cpu| cpu.usage);
    let memory = group.memory_stats()?.map(|m| m.current.get() >> 10);
    let pids = group.pids_stats()?.map(|pids| pids.current);
    let [memory, pids] = [memory, pids].map(|n| n.map_or("-".to_owned(), |n| n.to_string()));
    Ok(Row {
        name,
        cpu,
        memory,
        pids,
    })
}

fn rows(parent: &Cgroup) -> cgroups::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in parent.children()? {
        match row(parent, name) {
            Ok(row) => rows.push(row),
            // They come and go while one looks.
            Err(GroupError::NotFound { .. } | GroupError::Vanished { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let hierarchy = Hierarchy::detect()?;
    let parent = match arguments.next() {
        Some(path) => hierarchy.open(path)?,
        None => hierarchy.root()?,
    };
    let rounds: u64 = arguments.next().map_or(Ok(u64::MAX), |n| n.parse())?;
    let mut before = rows(&parent)?;
    let mut since = Instant::now();
    for _ in 0..rounds {
        std::thread::sleep(Duration::from_secs(1));
        let now = rows(&parent)?;
        let elapsed = since.elapsed().as_secs_f64();
        since = Instant::now();
        println!(
            "\n{:<40} {:>6} {:>12} {:>6}",
            "group", "cpu %", "memory KiB", "pids"
        );
        for row in &now {
            let earlier = before.iter().find(|earlier| earlier.name == row.name);
            let earlier = earlier.map_or(row.cpu, |earlier| earlier.cpu);
            let cpu = row.cpu.saturating_sub(earlier).as_secs_f64() / elapsed * 100.0;
            let (name, memory, pids) = (row.name.display(), &row.memory, &row.pids);
            println!("{name:<40} {cpu:>6.1} {memory:>12} {pids:>6}");
        }
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}
