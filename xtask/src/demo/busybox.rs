//! The image that the demo runs unless it is told another: busybox, and little else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::programs::Programs;
use super::stage::Stage;
use crate::tools::{self, Tool};

const BUSYBOX: Tool = Tool::program(
    "busybox",
    "busybox-static",
    "make the demo's image (--image PATH takes another one)",
);

/// Packs an OCI layout with busybox in it, and returns how to name it.
pub(crate) fn pack(stage: &Stage, programs: &Programs) -> Result<String> {
    tools::require(&[BUSYBOX])?;
    let busybox = tools::find("busybox").context("busybox is gone again")?;
    let root = stage.scratch().join("busybox");
    fill(&root, &busybox).with_context(|| format!("cannot fill {}", root.display()))?;
    let image = stage.scratch().join("image");
    let packed = stage.show(
        Command::new(&programs.engine)
            .arg("pack")
            .args([&root, &image])
            .args(["--env", "PATH=/bin", "/bin/sh"]),
    )?;
    ensure!(
        packed.code() == 0,
        "cofferdam pack failed; its message is above"
    );
    Ok(image.display().to_string())
}

fn fill(root: &Path, busybox: &Path) -> Result<()> {
    for dir in ["bin", "etc", "root", "tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let program = fs::read(busybox)?;
    if is_dynamic(&program) {
        bail!(
            "{} needs libraries that the image would not have; install the static one: apt-get install busybox-static",
            busybox.display()
        );
    }
    fs::write(root.join("bin/busybox"), program)?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    let applets = Command::new(busybox)
        .arg("--list")
        .output()
        .context("cannot run busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout)
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// Whether the ELF file names a dynamic loader, which it does near its start.
fn is_dynamic(program: &[u8]) -> bool {
    let start = &program[..program.len().min(4096)];
    start
        .windows(4)
        .any(|window| window == b"/ld-" || window == b"ld.s")
}
