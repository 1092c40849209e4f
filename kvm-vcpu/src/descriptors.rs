use std::collections::BTreeMap;

use crate::{DescriptorTable, Error, GuestMemory, PAGE_SIZE, Result, Segment};

/// Builds the tables that long mode looks segments, interrupts and tasks up in: GDT, IDT and TSS.
///
/// The GDT has flat segments with these selectors: kernel code 0x08, kernel data 0x10, user data 0x1b,
/// user code 0x23 (in the order that `syscall` and `sysret` want), and the task state 0x28.
///
/// ```no_run
/// # fn f(vm: &kvm_vcpu::Vm, mode: kvm_vcpu::Mode) -> kvm_vcpu::Result<kvm_vcpu::Mode> {
/// use kvm_vcpu::DescriptorTables;
///
/// let tables = DescriptorTables::new(0x8000)
///     .handle(14, 0x2000)
///     // A stack of its own for double faults, which a bad stack causes.
///     .handle_on(8, 0x2100, 0x7000)
///     .install(vm.memory())?;
/// # Ok(
/// mode.with_descriptors(tables)
/// # )}
/// ```
#[doc(alias = "GDT")]
#[doc(alias = "IDT")]
#[doc(alias = "TSS")]
#[derive(Debug, Clone)]
pub struct DescriptorTables {
    base: u64,
    kernel_stack: u64,
    gates: BTreeMap<u8, Gate>,
    /// The interrupt stacks, numbered from 1.
    stacks: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Gate {
    handler: u64,
    /// The number of its interrupt stack; 0 for none.
    stack: usize,
    dpl: u8,
}

/// Tables in guest memory, for [`Mode::with_descriptors`](crate::Mode::with_descriptors).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// The global descriptor table.
    pub gdt: DescriptorTable,
    /// The interrupt descriptor table.
    pub idt: DescriptorTable,
    /// The task register.
    pub task: Segment,
}

const KERNEL_CODE: u16 = 0x08;
const TASK: u16 = 0x28;
/// Where the TSS begins in the first page.
const TSS: u64 = 0x100;
const TSS_LEN: u64 = 104;
/// How many interrupt stacks a TSS has.
const STACKS: usize = 7;

impl DescriptorTables {
    /// How many bytes they take.
    pub const LEN: u64 = 2 * PAGE_SIZE;

    /// Tables that go to `base`, whose guest-physical and virtual address are the same.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            kernel_stack: 0,
            gates: BTreeMap::new(),
            stacks: Vec::new(),
        }
    }

    /// Handles an interrupt or exception at a virtual address, with further interrupts off.
    pub fn handle(mut self, vector: u8, handler: u64) -> Self {
        let gate = self.gates.entry(vector).or_insert(Gate {
            handler,
            stack: 0,
            dpl: 0,
        });
        gate.handler = handler;
        self
    }

    /// As [`DescriptorTables::handle`], on a stack that grows down from `stack`. There can be seven
    /// different ones.
    pub fn handle_on(self, vector: u8, handler: u64, stack: u64) -> Self {
        let mut this = self.handle(vector, handler);
        let known = this.stacks.iter().position(|s| *s == stack);
        let index = known.unwrap_or_else(|| {
            this.stacks.push(stack);
            this.stacks.len() - 1
        });
        if let Some(gate) = this.gates.get_mut(&vector) {
            gate.stack = index + 1;
        }
        this
    }

    /// Lets programs of privilege level 3 raise this vector themselves (`int`).
    pub fn allow_user(mut self, vector: u8) -> Self {
        if let Some(gate) = self.gates.get_mut(&vector) {
            gate.dpl = 3;
        }
        self
    }

    /// The stack for what comes from privilege level 3.
    pub fn kernel_stack(mut self, stack: u64) -> Self {
        self.kernel_stack = stack;
        self
    }

    /// Writes the tables into guest memory.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more than seven interrupt stacks; [`Error::OutOfBounds`] when the guest
    /// has no memory where they go.
    pub fn install(&self, memory: &GuestMemory) -> Result<Descriptors> {
        if self.stacks.len() > STACKS {
            return Err(Error::TooMany {
                what: "interrupt stacks",
                given: self.stacks.len(),
                max: STACKS,
            });
        }
        let tss = self.base.wrapping_add(TSS);
        let idt = self.base.wrapping_add(PAGE_SIZE);
        memory.fill(self.base, Self::LEN as usize, 0)?;
        let gdt = [
            0,
            // Present, flat; the code 64 bits wide.
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            // The task state, busy (type 0xb) because the task register already holds it.
            (TSS_LEN - 1) | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56,
            tss >> 32,
        ];
        for (at, descriptor) in (self.base..).step_by(8).zip(gdt) {
            memory.write_value::<u64>(at, descriptor)?;
        }
        memory.write_value(tss + 4, self.kernel_stack)?;
        for (at, stack) in (tss + 36..).step_by(8).zip(&self.stacks) {
            memory.write_value(at, *stack)?;
        }
        // No map of ports: it begins at the limit.
        memory.write_value(tss + 102, TSS_LEN as u16)?;
        for (vector, gate) in &self.gates {
            let low = gate.handler & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | (gate.stack as u64) << 32
                | (0x8e | u64::from(gate.dpl) << 5) << 40
                | (gate.handler >> 16 & 0xffff) << 48;
            let at = idt + u64::from(*vector) * 16;
            memory.write_value(at, low)?;
            memory.write_value(at + 8, gate.handler >> 32)?;
        }
        Ok(Descriptors {
            gdt: DescriptorTable {
                base: self.base,
                limit: (gdt.len() * 8 - 1) as u16,
            },
            idt: DescriptorTable {
                base: idt,
                limit: 0xfff,
            },
            task: Segment {
                base: tss,
                limit: (TSS_LEN - 1) as u32,
                selector: TASK,
                kind: 0xb,
                present: true,
                ..Segment::default()
            },
        })
    }
}
