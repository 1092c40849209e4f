use kvm_bindings::{kvm_irqchip, kvm_lapic_state, kvm_xsave};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::SnapshotProblem;
use crate::snapshot::VcpuState;
use crate::{CpuidLeaf, CpuidTable, IrqChip, Result, Snapshot};

const MAGIC: &[u8] = b"cofferdam-vcpu\n";
const VERSION: u32 = 2;

impl Snapshot {
    /// The snapshot as bytes: a versioned format with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer(Vec::new());
        w.0.extend_from_slice(MAGIC);
        w.value(&VERSION);
        w.cpuid(&self.host);
        w.list(&self.regions, |w, (start, len, read_only, logged)| {
            w.value(start);
            w.value(len);
            w.value(&u8::from(*read_only));
            w.value(&u8::from(*logged));
        });
        let (kind, pins) = match self.irqchip {
            None => (0u8, 0),
            Some(IrqChip::InKernel) => (1, 0),
            Some(IrqChip::Split { pins }) => (2, pins),
        };
        w.value(&kind);
        w.value(&pins);
        w.list(&self.chips, |w, chip| w.bytes(chip));
        w.option(self.pit.as_ref());
        w.option(self.clock.as_ref());
        w.list(&self.vcpus, |w, v| {
            w.value(&v.id);
            w.cpuid(&v.cpuid);
            w.value(&v.regs);
            w.value(&v.sregs);
            w.value(&(v.xsave.len() as u32));
            w.bytes(&v.xsave);
            w.value(&v.xcrs);
            w.value(&v.debug);
            w.list(&v.msrs, |w, (index, value)| {
                w.value(index);
                w.value(value);
            });
            w.value(&v.events);
            w.value(&v.mp_state);
            w.value(&u8::from(v.lapic.is_some()));
            if let Some(lapic) = &v.lapic {
                w.bytes(lapic);
            }
        });
        let checksum = crc32fast::hash(&w.0);
        w.value(&checksum);
        w.0
    }

    /// Reads a snapshot that [`Snapshot::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`](crate::Error::Snapshot), which says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(SnapshotProblem::NotASnapshot)?;
        let (body, checksum) = bytes
            .split_last_chunk::<4>()
            .map(|(body, sum)| (body, u32::from_le_bytes(*sum)))
            .ok_or(SnapshotProblem::Damaged)?;
        // The version first: another one may have its checksum elsewhere.
        let found = Reader(rest).value::<u32>("version")?;
        if found != VERSION {
            return Err(SnapshotProblem::Version {
                found,
                expected: VERSION,
            }
            .into());
        }
        if crc32fast::hash(body) != checksum {
            return Err(SnapshotProblem::Damaged.into());
        }
        let mut r = Reader(&body[MAGIC.len() + 4..]);
        let host = r.cpuid()?;
        let regions = r.list("list of regions", |r| {
            let (start, len) = (r.value("region")?, r.value("region")?);
            Ok((start, len, r.flag("region")?, r.flag("region")?))
        })?;
        let (kind, pins) = (
            r.value::<u8>("interrupt controller")?,
            r.value::<u16>("interrupt controller")?,
        );
        let irqchip = match kind {
            0 => None,
            1 => Some(IrqChip::InKernel),
            2 => Some(IrqChip::Split { pins }),
            _ => return Err(SnapshotProblem::Invalid("interrupt controller").into()),
        };
        let chips = r.list("interrupt controller", |r| {
            r.bytes("interrupt controller", size_of::<kvm_irqchip>())
        })?;
        let pit = r.option("timer")?;
        let clock = r.option("clock")?;
        let vcpus = r.list("list of vCPUs", |r| {
            Ok(VcpuState {
                id: r.value("vCPU number")?,
                cpuid: r.cpuid()?,
                regs: r.value("registers")?,
                sregs: r.value("system registers")?,
                xsave: r.xsave()?,
                xcrs: r.value("extended control registers")?,
                debug: r.value("debug registers")?,
                msrs: r.list("list of MSRs", |r| Ok((r.value("MSR")?, r.value("MSR")?)))?,
                events: r.value("pending events")?,
                mp_state: r.value("run state")?,
                lapic: if r.flag("local interrupt controller")? {
                    let len = size_of::<kvm_lapic_state>();
                    Some(r.bytes("local interrupt controller", len)?)
                } else {
                    None
                },
            })
        })?;
        if !r.0.is_empty() {
            return Err(SnapshotProblem::Invalid("length").into());
        }
        Ok(Self {
            host,
            regions,
            irqchip,
            chips,
            pit,
            clock,
            vcpus,
        })
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn value<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn list<T>(&mut self, list: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.value(&(list.len() as u32));
        for item in list {
            each(self, item);
        }
    }

    fn option<T: IntoBytes + Immutable>(&mut self, value: Option<&T>) {
        self.value(&u8::from(value.is_some()));
        if let Some(value) = value {
            self.value(value);
        }
    }

    fn cpuid(&mut self, table: &CpuidTable) {
        self.list(table.leaves(), |w, l| {
            let subleaf = (u32::from(l.subleaf.is_some()), l.subleaf.unwrap_or(0));
            for n in [l.leaf, subleaf.0, subleaf.1, l.eax, l.ebx, l.ecx, l.edx] {
                w.value(&n);
            }
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn value<T: FromBytes>(&mut self, what: &'static str) -> Result<T> {
        let (value, rest) =
            T::read_from_prefix(self.0).map_err(|_| SnapshotProblem::Invalid(what))?;
        self.0 = rest;
        Ok(value)
    }

    fn bytes(&mut self, what: &'static str, len: usize) -> Result<Vec<u8>> {
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(SnapshotProblem::Invalid(what))?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }

    fn xsave(&mut self) -> Result<Vec<u8>> {
        let len = self.value::<u32>("extended registers")? as usize;
        if len < size_of::<kvm_xsave>() {
            return Err(SnapshotProblem::Invalid("extended registers").into());
        }
        self.bytes("extended registers", len)
    }

    fn flag(&mut self, what: &'static str) -> Result<bool> {
        match self.value::<u8>(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(SnapshotProblem::Invalid(what).into()),
        }
    }

    fn option<T: FromBytes>(&mut self, what: &'static str) -> Result<Option<T>> {
        if self.flag(what)? {
            self.value(what).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Nothing is set aside for what a length promises: every item is at least a byte of the file.
    fn list<T>(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let len = self.value::<u32>(what)?;
        (0..len).map(|_| each(self)).collect()
    }

    fn cpuid(&mut self) -> Result<CpuidTable> {
        let leaves = self.list("CPUID", |r| {
            let n = r.value::<[u32; 7]>("CPUID")?;
            Ok(CpuidLeaf {
                leaf: n[0],
                subleaf: (n[1] != 0).then_some(n[2]),
                eax: n[3],
                ebx: n[4],
                ecx: n[5],
                edx: n[6],
            })
        })?;
        Ok(CpuidTable::new(leaves))
    }
}
