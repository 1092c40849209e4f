//! The machine: put together from its description, and run until it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_vcpu::{Feature, Gsi, IoAddress, IoEvent, IrqChip, Kvm, Mode as CpuMode, Route, Vcpu, Vm};

use crate::acpi::Tables;
use crate::board::{Board, End};
use crate::boot::Entry;
use crate::cli::{BootArgs, RunArgs};
use crate::config::{self, Machine, Mode};
use crate::control::{self, Request, Socket};
use crate::error::Error;
use crate::event::Event;
use crate::files::Files;
use crate::filter::Work;
#[cfg(feature = "gdb")]
use crate::gdb::Gdb;
use crate::image;
use crate::input;
use crate::jail;
use crate::layout::{self, EVENT_LINE, LINES, SERIAL_LINE};
use crate::log;
use crate::processor::{Processors, place};
use crate::snapshot::{self, Saving};
use crate::stats::{Clock, Report, Stats};
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;
use crate::virtio::net::Net;
use crate::virtio::rate::{Limiter, Rate};
use crate::virtio::transport::{NOTIFY, Transport};
use crate::virtio::vsock::Vsock;
use crate::virtio::worker::{self, lock};

/// A machine that is ready to run.
pub(crate) struct Assembled {
    pub(crate) kvm: Kvm,
    pub(crate) vm: Vm,
    pub(crate) machine: Machine,
    /// How the guest was started, as the statistics have it.
    pub(crate) mode: Mode,
    pub(crate) processors: Processors,
    pub(crate) board: Board,
    /// Tells a restored guest that it was restored.
    pub(crate) event_line: Option<Event>,
    /// Someone outside has paused it.
    paused: AtomicBool,
    pub(crate) saving: Mutex<Saving>,
}

/// What happens to a running machine.
pub(crate) enum Happening {
    Ended(Result<Option<End>, Error>),
    Request(Request),
}

/// Boots a guest; returns the exit status.
pub(crate) fn boot(args: &BootArgs, clock: Clock) -> Result<u8, Error> {
    let machine = Machine::from_args(args)?;
    if jail::is_wanted(&args.run) && !jail::is_inside() {
        return jail::enter(&machine, &args.run);
    }
    let files = Files::for_boot(&machine)?;
    Assembled::boot(machine, files, Stats::new(clock)?)?.run(&args.run)
}

impl Assembled {
    fn boot(machine: Machine, mut files: Files, stats: Stats) -> Result<Self, Error> {
        let kernel = files.kernel.take().ok_or_else(|| Error::Machine {
            what: "it has no kernel".to_owned(),
        })?;
        let image = image::read(&machine, kernel)?;
        let mode = image::mode(machine.mode, &image.bytes);
        let kvm = Kvm::open()?;
        let whole = image::is_kernel(mode);
        let vm = kvm.create_vm(&layout::regions(
            machine.memory_mib << 20,
            machine.log_changes,
        ))?;
        let entry = image::load(&machine, &image, mode, files.initrd.as_mut(), vm.memory())?;
        drop(image);
        if !whole {
            let vcpu = first_cpu(&vm, &entry)?;
            return Ok(Self {
                processors: Processors::new(vec![vcpu])?,
                board: Board::new(None, Vec::new(), stats),
                event_line: None,
                paused: AtomicBool::new(false),
                saving: Mutex::default(),
                kvm,
                vm,
                machine,
                mode,
            });
        }
        warn_if_emulated(mode);
        vm.create_irqchip(IrqChip::InKernel)?;
        let devices = devices(&machine, files, &vm)?;
        let tables = Tables::new(machine.cpus, u32::try_from(devices.len()).unwrap_or(0));
        tables.write(vm.memory())?;
        crate::firmware::write(vm.memory())?;
        crate::generation::write(vm.memory())?;
        let mut vcpus = vec![first_cpu(&vm, &entry)?];
        for id in 1..machine.cpus.into() {
            // The others wait in the kernel until the first one starts them.
            vcpus.push(vm.create_vcpu(id, &CpuMode::Reset)?);
        }
        for vcpu in &vcpus {
            let mut cpuid = vcpu.cpuid()?;
            // The timer is the local interrupt controller's, which is in the kernel.
            cpuid.set(Feature::TSC_DEADLINE, true);
            vcpu.set_cpuid(&cpuid)?;
        }
        Self::wire(kvm, vm, machine, mode, vcpus, devices, stats)
    }

    /// Connects the devices of a machine with interrupts.
    pub(crate) fn wire(
        kvm: Kvm,
        vm: Vm,
        machine: Machine,
        mode: Mode,
        vcpus: Vec<Vcpu>,
        devices: Vec<Arc<Mutex<Transport>>>,
        stats: Stats,
    ) -> Result<Self, Error> {
        // Only to the I/O interrupt controller: the PICs of a PC are not described to the guest.
        let routes: Vec<_> = (0..LINES).map(|n| (Gsi(n), Route::Ioapic(n))).collect();
        vm.set_routes(&routes)?;
        let line = |number| -> Result<Event, Error> {
            let event = event()?;
            vm.connect_irqfd(&event, Gsi(number))?;
            Ok(event)
        };
        let board = Board::new(Some(line(SERIAL_LINE)?), devices, stats);
        let event_line = Some(line(EVENT_LINE)?);
        for (at, number, device) in board.placed() {
            let device = lock(device);
            vm.connect_irqfd(&device.interrupt, Gsi(number))?;
            let notify = IoEvent {
                at: IoAddress::Memory(at + NOTIFY),
                len: 4,
                value: None,
            };
            vm.connect_ioeventfd(&device.wake, notify)?;
        }
        Ok(Self {
            processors: Processors::new(vcpus)?,
            board,
            event_line,
            paused: AtomicBool::new(false),
            saving: Mutex::default(),
            kvm,
            vm,
            machine,
            mode,
        })
    }

    /// Runs the machine until it ends; returns the exit status.
    pub(crate) fn run(mut self, args: &RunArgs) -> Result<u8, Error> {
        let (happens, happenings) = mpsc::channel();
        // What is still to be opened, while there are files.
        args.log.as_deref().map(log::open).transpose()?;
        let report = args.stats.as_deref().map(Report::open).transpose()?;
        let control = args.control.as_deref().map(Socket::bind).transpose()?;
        #[cfg(feature = "gdb")]
        let gdb = args
            .gdb
            .as_deref()
            .map(|path| Ok::<_, Error>((Socket::bind(path)?, self.kvm.effective_debugging()?)))
            .transpose()?;
        let jailed = jail::is_inside();
        tracing::info!(
            kernel = %self.machine.kernel.display(),
            mode = self.mode_name(),
            memory_mib = self.machine.memory_mib,
            cpus = self.machine.cpus,
            devices = self.board.virtio.len(),
            jailed,
            "starting"
        );
        let mut store = args.snapshots.as_deref().map(snapshot::store).transpose()?;
        if jailed {
            let vsock = self.machine.vsock.as_ref();
            jail::confine(store.as_mut(), vsock.map(config::Vsock::directory))?;
        }
        self.saving
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .store = store;
        let this = Arc::new(self);
        // Before the terminal is changed, which has to be undone.
        input::catch_signals(happens.clone(), jailed)?;
        let raw = if this.board.serial_line.is_some() {
            crate::terminal::Raw::set().map_err(|source| Error::Host {
                what: "set the terminal",
                source,
            })?
        } else {
            None
        };
        if this.board.serial_line.is_some() {
            input::pass_to_serial(&this, happens.clone(), jailed);
        }
        let control = control.map(|socket| socket.serve(happens.clone(), jailed));
        #[cfg(feature = "gdb")]
        let mut gdb = gdb
            .map(|(socket, effective)| {
                let connection = socket.accept()?;
                Ok::<_, Error>(Gdb {
                    connection,
                    effective,
                })
            })
            .transpose()?;
        let mut threads = this.start_devices(jailed)?;
        this.board.stats.first_run();
        for index in 0..this.processors.vcpus.len() {
            let (this, happens) = (this.clone(), happens.clone());
            #[cfg(feature = "gdb")]
            let gdb = gdb.take();
            #[cfg(feature = "gdb")]
            let (has_all, gdb_has_all) = mpsc::channel();
            #[cfg(feature = "gdb")]
            let is_debugged = gdb.is_some();
            let thread = spawn(format!("vcpu{index}"), move || {
                #[cfg(feature = "gdb")]
                let work = if gdb.is_some() {
                    Work::Debugged
                } else {
                    Work::Processor
                };
                #[cfg(not(feature = "gdb"))]
                let work = Work::Processor;
                let held = if jailed { work.hold() } else { Ok(()) };
                let ended = held.and_then(|()| {
                    #[cfg(feature = "gdb")]
                    if let Some(gdb) = gdb {
                        return this.processors.run_under_gdb(gdb, &this.board, &has_all);
                    }
                    this.processors.run(index, &this.board)
                });
                // Nobody listens any more when the machine has ended.
                let _ = happens.send(Happening::Ended(ended));
            })?;
            threads.push(thread);
            #[cfg(feature = "gdb")]
            if is_debugged {
                // A thread that ends before it has them lets its end go.
                let _ = gdb_has_all.recv();
            }
        }
        drop(happens);
        if jailed {
            Work::Main.hold()?;
        }

        let ended = this.attend(args.timeout, &happenings);
        this.processors.stop();
        for device in &this.board.virtio {
            let mut device = lock(device);
            device.stopped = true;
            device.wake.signal();
        }
        for thread in threads {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        drop(raw);
        drop(control);
        if let Ok(end) = &ended {
            tracing::info!(status = end.status(), end = ?end, "ended");
        }
        if let Some(report) = report {
            // A guest that crashed was measured all the same.
            let written = this
                .board
                .stats
                .write(report, this.mode_name(), this.vm.memory());
            let end = ended?;
            return written.map(|()| end.status());
        }
        ended.map(End::status)
    }

    fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::Auto | Mode::Real => "real",
            Mode::Protected => "protected",
            Mode::Long => "long",
            Mode::Linux => "linux",
            Mode::Pvh => "pvh",
            Mode::Multiboot => "multiboot",
        }
    }

    fn start_devices(&self, jailed: bool) -> Result<Vec<JoinHandle<()>>, Error> {
        let start = |(index, device): (usize, &Arc<Mutex<Transport>>)| {
            let device = device.clone();
            let work = Work::Device(lock(&device).device.calls());
            spawn(format!("virtio{index}"), move || {
                // A device that cannot be held to its work does not do it.
                if !jailed || work.hold().is_ok() {
                    worker::run(&device);
                }
            })
        };
        self.board.virtio.iter().enumerate().map(start).collect()
    }

    /// Waits for what happens, until the machine has ended.
    fn attend(
        &self,
        timeout: Option<Duration>,
        happenings: &mpsc::Receiver<Happening>,
    ) -> Result<End, Error> {
        let deadline = timeout.map(|t| Instant::now() + t);
        loop {
            let happening = match deadline {
                None => happenings
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    happenings.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            match happening {
                Ok(Happening::Ended(Ok(Some(end)))) => return Ok(end),
                Ok(Happening::Ended(Ok(None))) => {}
                Ok(Happening::Ended(Err(e))) => return Err(e),
                Ok(Happening::Request(request)) => {
                    control::answer(self, request);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let vcpus = self.processors.pause();
                    return Err(Error::TimedOut {
                        after: timeout.unwrap_or_default(),
                        place: place(&vcpus[0])?,
                    });
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Stopped),
            }
        }
    }

    /// Stops the machine: nothing in it changes until [`Assembled::resume`].
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        drop(self.processors.pause());
        self.pause_devices(true);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.pause_devices(false);
        self.processors.resume();
    }

    /// Lets the vCPUs go on that were stopped for a moment, unless the machine is paused.
    pub(crate) fn continue_if_not_paused(&self) {
        if !self.paused.load(Ordering::SeqCst) {
            self.processors.resume();
        }
    }

    fn pause_devices(&self, paused: bool) {
        for device in &self.board.virtio {
            let mut device = lock(device);
            device.paused = paused;
            device.wake.signal();
        }
    }
}

/// Makes the vCPU that starts the guest.
fn first_cpu(vm: &Vm, entry: &Entry) -> Result<Vcpu, Error> {
    let vcpu = vm.create_vcpu(0, &entry.mode)?;
    entry.apply(&vcpu)?;
    Ok(vcpu)
}

/// The virtio devices of a machine, in the order in which the guest finds them.
pub(crate) fn devices(
    machine: &Machine,
    files: Files,
    vm: &Vm,
) -> Result<Vec<Arc<Mutex<Transport>>>, Error> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (disk, file) in machine.disks.iter().zip(files.disks) {
        let serial = disk.serial.as_deref().unwrap_or("");
        let block = Block::new(file, disk.read_only, serial, Limiter::new(disk.rate));
        devices.push(Box::new(block.map_err(|source| Error::OpenDisk {
            path: disk.path.clone(),
            read_only: disk.read_only,
            source,
        })?));
    }
    for (net, tap) in machine.networks.iter().zip(files.taps) {
        let limits = (Limiter::new(net.receive), Limiter::new(net.send));
        devices.push(Box::new(Net::new(tap, net.address(), net.mtu, limits)));
    }
    if let Some((vsock, listener)) = machine.vsock.as_ref().zip(files.vsock) {
        let socket = if jail::is_inside() {
            // Its directory will be the current one.
            vsock.socket.file_name().unwrap_or_default().into()
        } else {
            vsock.socket.clone()
        };
        devices.push(Box::new(Vsock::new(vsock.cid, socket, listener)));
    }
    if let Some(output) = files.console {
        let console = Console::new(None, output);
        devices.push(Box::new(console.map_err(host("make a console"))?));
    }
    if machine.entropy {
        devices.push(Box::new(Entropy::new(Limiter::new(Rate::default()))));
    }
    if machine.balloon {
        devices.push(Box::new(Balloon::new(vm.memory().clone())));
    }
    let transport = |device| {
        let transport =
            Transport::new(device, vm.memory().clone()).map_err(host("make a virtio device"))?;
        Ok(Arc::new(Mutex::new(transport)))
    };
    devices.into_iter().map(transport).collect()
}

fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Host { what, source }
}

fn event() -> Result<Event, Error> {
    Event::new().map_err(host("make an eventfd"))
}

/// Starts a thread of the machine.
pub(crate) fn spawn(
    name: String,
    f: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name)
        .stack_size(256 << 10)
        .spawn(f)
        .map_err(host("start a thread"))
}

/// Says before a distribution's kernel starts that it will take long, where it will.
fn warn_if_emulated(mode: Mode) {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| cpu.split_ascii_whitespace().any(|word| word == flag);
    if mode != Mode::Multiboot && !cpu.is_empty() && !has("svm") && !has("vmx") {
        eprintln!(
            "cofferdam-vmm: this host's CPU has neither VMX nor SVM: its KVM emulates the guest's kernel, and \
             Linux will take minutes or hours to boot; use a host with hardware virtualization"
        );
    }
}
