//! The machine that the lab is: QEMU with a CPU in software.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

use super::wire::PORT;
use crate::tools::Tool;

/// What starting the machine needs.
pub(crate) const TOOLS: [Tool; 2] = [
    Tool::program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "run the lab's machine",
    ),
    Tool::program(
        "setpriv",
        "util-linux",
        "end the lab together with this program",
    ),
];

/// What the machine is made of.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) command_line: &'a str,
    pub(crate) memory: u32,
    pub(crate) cpus: u32,
    /// The host directory that is `/lab/out`.
    pub(crate) out: &'a Path,
    /// Where the kernel's console goes, and what QEMU itself says.
    pub(crate) console: &'a Path,
}

/// The running machine. It ends when this is dropped, or with the thread that started it.
pub(crate) struct Qemu {
    child: Child,
}

impl Qemu {
    pub(crate) fn start(machine: &Machine) -> Result<(Qemu, ChildStdin, ChildStdout)> {
        let said = File::options()
            .append(true)
            .open(machine.console)
            .with_context(|| format!("cannot write {}", machine.console.display()))?;
        let mut command = Command::new("setpriv");
        command
            // Nothing that happens to this program, SIGKILL included, leaves a machine behind.
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            // Nested SVM in software: it is what gives the lab its /dev/kvm on any host.
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,+svm"])
            .args(["-m", &machine.memory.to_string()])
            .args(["-smp", &machine.cpus.to_string()])
            .arg("-kernel")
            .arg(machine.kernel)
            .arg("-initrd")
            .arg(machine.initramfs)
            .args(["-append", machine.command_line])
            .arg("-chardev")
            .arg(option("file,id=console,append=on,path=", machine.console))
            .args(["-serial", "chardev:console"])
            .args(["-chardev", "stdio,id=lab,signal=off"])
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-device",
                &format!("virtserialport,chardev=lab,name={PORT}"),
            ])
            .args(["-object", "rng-random,filename=/dev/urandom,id=rng"])
            .args(["-device", "virtio-rng-pci,rng=rng"])
            // remap: files of different file systems may have the same inode number.
            .arg("-virtfs")
            .arg("local,path=/,mount_tag=lab-root,security_model=none,readonly=on,multidevs=remap")
            .arg("-virtfs")
            .arg(option(
                "local,mount_tag=lab-out,security_model=none,multidevs=remap,path=",
                machine.out,
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            // Ctrl-C is for us to act on: the terminal must not signal QEMU too.
            .process_group(0);
        let mut child = command.spawn().context("cannot start setpriv and QEMU")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let qemu = Qemu { child };
        let (stdin, stdout) = pipes.context("QEMU was started without pipes")?;
        Ok((qemu, stdin, stdout))
    }

    /// Waits for a machine that has ended by itself.
    pub(crate) fn wait(&mut self) -> Option<ExitStatus> {
        self.child.wait().ok()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QEMU option that ends in a path, in which a comma must be doubled.
fn option(start: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = start.as_bytes().to_vec();
    for &byte in OsStr::as_bytes(path.as_os_str()) {
        if byte == b',' {
            bytes.push(byte);
        }
        bytes.push(byte);
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(option("a=b,path=", Path::new("/x,y z")), "a=b,path=/x,,y z");
    }
}
