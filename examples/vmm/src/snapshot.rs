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

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kvm_vcpu::{Kvm, Snapshot, Vcpu, Vm};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cli::RestoreArgs;
use crate::config::{Machine, Mode};
use crate::error::Error;
use crate::files::Files;
use crate::machine::{Assembled, devices};
use crate::stats::{Clock, Stats};
use crate::store::{Store, is_name};
use crate::virtio::transport;
use crate::virtio::worker::lock;
use crate::{generation, jail, serial};

const VERSION: u32 = 2;

/// What is in `DIR/machine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    version: u32,
    machine: Machine,
    mode: Mode,
    /// The host's time, since 1970.
    saved_at: Duration,
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

    #[cfg(feature = "fuzzing")]
    pub(crate) fn devices(&self) -> &[transport::Saved] {
        &self.devices
    }
}

/// What a machine keeps for its next snapshot.
#[derive(Debug, Default)]
pub(crate) struct Saving {
    /// The directory that was handed in for snapshots.
    pub(crate) store: Option<Store>,
    /// The memory as it was when the log of changes began.
    base: Option<File>,
}

/// What a snapshot took, for whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Written {
    /// How long the machine stood still.
    stopped_us: u64,
    /// Pages that had changed since the snapshot before; all of the memory was written if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_pages: Option<u64>,
}

/// Opens the directory for snapshots.
pub(crate) fn store(path: &Path) -> Result<Store, Error> {
    Store::open(path).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

fn refuse<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Machine { what: what.into() })
}

/// Saves a machine. It stands still while its state is taken and its memory written; when there is a
/// log of changes, only for what changed.
pub(crate) fn save(machine: &Assembled, to: &Path) -> Result<Written, Error> {
    if machine.board.serial_line.is_none() {
        return refuse("a guest without a kernel's protocol cannot be saved");
    }
    let mut saving = machine
        .saving
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let Saving { store, base } = &mut *saving;
    let here;
    let (store, name) = match store {
        Some(store) if is_name(to) => (&*store, to.as_os_str().to_owned()),
        Some(store) => {
            return refuse(format!(
                "snapshots are saved in {}: give a name without directories",
                store.path(OsStr::new("")).display()
            ));
        }
        None if jail::is_inside() => {
            return refuse(
                "from the jail snapshots are saved only in a directory that was handed in: start the machine with --snapshots DIR",
            );
        }
        None => {
            let (store, name) = Store::of_path(to).map_err(|source| Error::Snapshot {
                what: "find a place for",
                path: to.to_owned(),
                source,
            })?;
            here = store;
            (&here, name)
        }
    };
    let path = store.path(&name);
    let error = |what| {
        let path = path.clone();
        move |source| Error::Snapshot { what, path, source }
    };
    let new = store.create(&name).map_err(error("make a directory for"))?;
    let file = |name| new.file(name).map_err(error("write"));
    let (memory, state, description) = (file("memory")?, file("state")?, file("machine")?);
    // What is not finished is no base for another.
    let before = base.take();
    if let Some(before) = &before {
        copy(before, &memory).map_err(error("copy the one before for"))?;
    }
    let begin = Instant::now();
    let mut vcpus = machine.processors.pause();
    let taken = take(machine, &mut vcpus, &memory, before.is_some());
    drop(vcpus);
    machine.continue_if_not_paused();
    let stopped = begin.elapsed();
    let taken = taken?;
    let json = serde_json::to_vec(&taken.description)
        .map_err(|e| error("describe the machine for")(e.into()))?;
    let write = |mut file: &File, bytes: &[u8]| file.write_all(bytes);
    write(&state, &taken.state.to_bytes()).map_err(error("write"))?;
    write(&description, &json).map_err(error("write"))?;
    for file in [&memory, &state, &description] {
        file.sync_all().map_err(error("write"))?;
    }
    new.put_in_place(&name).map_err(error("put in place"))?;
    if machine.machine.log_changes {
        *base = Some(memory);
    }
    Ok(Written {
        stopped_us: u64::try_from(stopped.as_micros()).unwrap_or(u64::MAX),
        changed_pages: taken.changed,
    })
}

/// What is taken of a machine while it stands still, beside its memory.
struct Taken {
    state: Snapshot,
    description: Description,
    changed: Option<u64>,
}

fn take(
    machine: &Assembled,
    vcpus: &mut [MutexGuard<'_, Vcpu>],
    memory: &File,
    only_changes: bool,
) -> Result<Taken, Error> {
    // While they are locked, no device is in the middle of anything.
    let devices: Vec<_> = machine.board.virtio.iter().map(|d| lock(d)).collect();
    let references: Vec<&mut Vcpu> = vcpus.iter_mut().map(|v| &mut **v).collect();
    let state = Snapshot::take(&machine.kvm, &machine.vm, &references)?;
    let description = Description {
        version: VERSION,
        machine: machine.machine.clone(),
        mode: machine.mode,
        saved_at: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
        serial: machine.board.serial().save(),
        devices: devices.iter().map(|d| d.save()).collect(),
    };
    let changed = if only_changes {
        Some(machine.vm.save_dirty(memory)?)
    } else {
        machine.vm.memory().save(memory)?;
        if machine.machine.log_changes {
            // From here on counts what changes.
            for region in machine.vm.memory().regions() {
                machine.vm.take_dirty(region.start())?;
            }
        }
        None
    };
    Ok(Taken {
        state,
        description,
        changed,
    })
}

/// Copies a file with its holes: at once where the filesystem shares blocks.
fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(at) => at,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX);
            let want = want.min(buffer.len());
            from.read_exact_at(&mut buffer[..want], at)?;
            to.write_all_at(&buffer[..want], at)?;
            at += want as u64;
        }
    }
}

/// Sets a restored machine's clocks to the present: the time that passed since it was saved has passed
/// for the guest, too.
fn catch_up(vm: &Vm, vcpus: &[Vcpu], saved_at: Duration) -> Result<(), Error> {
    /// The model-specific register of the time stamp counter.
    const TSC: u32 = 0x10;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // A host's clock that was set back stops the guest's at worst.
    let passed = now.saturating_sub(saved_at);
    for vcpu in vcpus {
        let ticks = passed.as_micros() * u128::from(vcpu.tsc_khz()?) / 1000;
        let before = vcpu.msrs(&[TSC])?;
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        for value in before {
            vcpu.set_msrs(&[(TSC, value.saturating_add(ticks))])?;
        }
    }
    vm.set_clock(vm.clock()?.elapsed + passed)?;
    for vcpu in vcpus {
        // A guest that has no such clock cannot be told, and need not be.
        vcpu.note_pause()?;
    }
    Ok(())
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
        let error = |source| Error::ReadSnapshot {
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
            saved_at,
            serial,
            devices: saved,
            ..
        } = self.description;
        let kvm = Kvm::open()?;
        let (vm, vcpus) = self.state.restore(&kvm, &self.memory)?;
        catch_up(&vm, &vcpus, saved_at)?;
        let made = devices(&machine, files, &vm)?;
        let mut restored =
            Assembled::wire(kvm, vm, machine, mode, vcpus, made, Stats::new(clock)?)?;
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
        if restored.machine.log_changes {
            restored.saving = Mutex::new(Saving {
                store: None,
                base: Some(self.memory),
            });
        }
        Ok(restored)
    }
}

/// Goes on with a saved machine; returns the exit status.
pub(crate) fn restore(args: &RestoreArgs, clock: Clock) -> Result<u8, Error> {
    let saved = Saved::open(&args.from)?;
    if jail::is_wanted(&args.run) && !jail::is_inside() {
        return jail::enter(saved.machine(), &args.run);
    }
    let files = Files::for_restore(saved.machine())?;
    saved.restore(files, clock)?.run(&args.run)
}
