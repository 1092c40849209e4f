//! A machine in a directory: its memory, the state of its vCPUs and interrupt controllers, and that of
//! its devices.
//!
//! ```text
//! DIR/memory    the guest's memory; mapped when it is restored, so that pages come as they are needed
//! DIR/state     the vCPUs and interrupt controllers, as kvm_vcpu has them
//! DIR/machine   the machine file and the devices' state, as JSON, with a version
//! ```
//!
//! A directory is written under another name, made durable and renamed: whatever happens, there is the
//! snapshot of before or the new one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use kvm_vcpu::{Kvm, Snapshot, Vcpu};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::cli::RestoreArgs;
use crate::config::{Machine, Mode};
use crate::error::Error;
use crate::files::Files;
use crate::machine::{Assembled, devices};
use crate::stats::{Clock, Stats};
use crate::virtio::transport;
use crate::virtio::worker::lock;
use crate::{generation, serial};

const VERSION: u32 = 1;

/// What is in `DIR/machine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    version: u32,
    machine: Machine,
    mode: Mode,
    serial: serial::Saved,
    devices: Vec<transport::Saved>,
}

impl Description {
    /// Reads what [`save`] wrote; the error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        // The version first: what another one holds need not be understood.
        let version: Version = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if version.version != VERSION {
            return Err(format!(
                "it has version {} and this program reads {VERSION}",
                version.version
            ));
        }
        let this: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        this.machine.check().map_err(|e| e.to_string())?;
        if this.devices.len() != this.machine.devices() {
            return Err("its devices are not those of its machine".to_owned());
        }
        Ok(this)
    }
}

/// Saves a machine, which is stopped meanwhile.
pub(crate) fn save(machine: &Assembled, to: &Path) -> Result<(), Error> {
    if machine.board.serial_line.is_none() {
        return Err(Error::Machine {
            what: "a guest without a kernel's protocol cannot be saved".to_owned(),
        });
    }
    let error = |what| {
        move |source| Error::Snapshot {
            what,
            path: to.to_owned(),
            source,
        }
    };
    let mut vcpus = machine.processors.pause();
    let saved = (|| {
        // While they are locked, no device is in the middle of anything.
        let devices: Vec<_> = machine.board.virtio.iter().map(|d| lock(d)).collect();
        let temporary = beside(to, "new");
        remove(&temporary).map_err(error("clear the way for"))?;
        fs::create_dir(&temporary).map_err(error("make a directory for"))?;
        let mut references: Vec<&mut Vcpu> = vcpus.iter_mut().map(|v| &mut **v).collect();
        for vcpu in &mut references {
            debug_assert!(vcpu.settle()?.is_none());
        }
        let state = Snapshot::take(&machine.kvm, &machine.vm, &references)?;
        let description = Description {
            version: VERSION,
            machine: machine.machine.clone(),
            mode: machine.mode,
            serial: machine.board.serial().save(),
            devices: devices.iter().map(|d| d.save()).collect(),
        };
        let description = serde_json::to_vec(&description)
            .map_err(|e| error("describe the machine for")(e.into()))?;
        let write = |name: &str, bytes: &[u8]| {
            fs::write(temporary.join(name), bytes)?;
            File::open(temporary.join(name))?.sync_all()
        };
        write("state", &state.to_bytes()).map_err(error("write"))?;
        write("machine", &description).map_err(error("write"))?;
        let memory = File::create(temporary.join("memory")).map_err(error("write"))?;
        machine.vm.memory().save(&memory)?;
        memory.sync_all().map_err(error("write"))?;
        replace(&temporary, to).map_err(error("put in place"))
    })();
    drop(vcpus);
    machine.continue_if_not_paused();
    saved
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Puts a directory in the place of another, which is then removed.
fn replace(new: &Path, to: &Path) -> io::Result<()> {
    File::open(new)?.sync_all()?;
    match renameat_with(CWD, new, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(rustix::io::Errno::NOENT) => fs::rename(new, to)?,
        Err(e) => return Err(e.into()),
    }
    let parent = match to.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()?;
    remove(new)
}

/// A snapshot that was read, and not yet brought to life.
pub(crate) struct Saved {
    path: PathBuf,
    pub(crate) description: Description,
    state: Snapshot,
    memory: File,
}

impl Saved {
    /// Reads a snapshot.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let error = |source| Error::Snapshot {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let bad = |problem| Error::BadSnapshot {
            path: path.to_owned(),
            problem,
        };
        let description = fs::read(path.join("machine")).map_err(error)?;
        let state = fs::read(path.join("state")).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            description: Description::parse(&description).map_err(bad)?,
            state: Snapshot::from_bytes(&state).map_err(|e| bad(e.to_string()))?,
            memory: File::open(path.join("memory")).map_err(error)?,
        })
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.description.machine
    }

    /// Makes the machine, ready to go on.
    pub(crate) fn restore(self, files: Files, clock: Clock) -> Result<Assembled, Error> {
        let Description {
            machine,
            mode,
            serial,
            devices: saved,
            ..
        } = self.description;
        let kvm = Kvm::open()?;
        let (vm, vcpus) = self.state.restore(&kvm, &self.memory)?;
        let made = devices(&machine, files, &vm)?;
        let restored = Assembled::wire(kvm, vm, machine, mode, vcpus, made, Stats::new(clock)?)?;
        for (device, saved) in restored.board.virtio.iter().zip(&saved) {
            lock(device)
                .restore(saved)
                .map_err(|problem| Error::BadSnapshot {
                    path: self.path.clone(),
                    problem: problem.to_owned(),
                })?;
        }
        {
            let mut port = restored.board.serial();
            port.restore(&serial);
            restored.board.interrupt_for(&mut port);
        }
        // The guest learns that time has passed and that it may not be alone.
        generation::write(restored.vm.memory())?;
        if let Some(line) = &restored.event_line {
            line.signal();
        }
        Ok(restored)
    }
}

/// Goes on with a saved machine; returns the exit status.
pub(crate) fn restore(args: &RestoreArgs, clock: Clock) -> Result<u8, Error> {
    let saved = Saved::open(&args.from)?;
    let files = Files::for_restore(saved.machine())?;
    saved.restore(files, clock)?.run(&args.run)
}
