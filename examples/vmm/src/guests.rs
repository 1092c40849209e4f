//! Small guests that say what they see, written byte by byte.

use std::fs;

use kvm_vcpu::{Asm, Bits, Cond, Label, Reg};

use crate::cli::{Format, GuestArgs, GuestMode};
use crate::error::Error;
use crate::kit;

const SERIAL: u32 = 0x3f8;
const LINE_STATUS: u32 = SERIAL + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
const EFER: u32 = 0xc000_0080;
const CR0_PAGING: u32 = 1 << 31;
const CR0_PROTECTED: u32 = 1;
const EFER_LONG_ACTIVE: u32 = 1 << 10;
const CPUID_HYPERVISOR: u32 = 1 << 31;
const HYPERVISOR_LEAF: u32 = 0x4000_0000;

/// Where the guests are loaded; as `boot` does for flat binaries.
const REAL_ORIGIN: u64 = 0x7c00;
const ORIGIN: u64 = 0x10_0000;

/// Writes a guest to a file.
pub(crate) fn write(args: &GuestArgs) -> Result<(), Error> {
    let Some(mode) = args.mode else {
        return kit::write(args);
    };
    let bytes = build(mode, args.format)?;
    fs::write(&args.output, bytes).map_err(|source| Error::Write {
        path: args.output.clone(),
        source,
    })
}

fn build(mode: GuestMode, format: Option<Format>) -> Result<Vec<u8>, Error> {
    let (bits, origin, usual) = match mode {
        GuestMode::Multiboot if format.is_some() => return Err(Error::NoFormat),
        GuestMode::Multiboot => return Ok(counter()?),
        GuestMode::Real => (Bits::B16, REAL_ORIGIN, Format::Flat),
        GuestMode::Protected => (Bits::B32, ORIGIN, Format::Flat),
        GuestMode::Long => (Bits::B64, ORIGIN, Format::Elf),
    };
    let code = hello(bits, origin)?;
    match format.unwrap_or(usual) {
        Format::Flat => Ok(code),
        Format::Elf if mode == GuestMode::Real => Err(Error::NoRealElf),
        Format::Elf => Ok(elf(&code, origin)),
    }
}

/// A guest that tells its mode, its CPU's vendor, its hypervisor, and whether paging is on. All of it
/// is read from the CPU when it runs.
fn hello(bits: Bits, origin: u64) -> Result<Vec<u8>, kvm_vcpu::Error> {
    let mut a = Asm::new(bits, origin);
    let mut texts = Vec::new();
    let print = a.label();
    let put = a.label();
    let put4 = a.label();

    a.cli();
    say(
        &mut a,
        &mut texts,
        print,
        "Hello from a bare-metal guest in ",
    );

    // The mode: CR0 says real or protected, and EFER whether that is long mode.
    let (protected, long, named) = (a.label(), a.label(), a.label());
    a.mov_from_cr(Reg::Ax, 0)
        .test(Reg::Ax, CR0_PROTECTED)
        .jump_if(Cond::NotEqual, protected);
    say(&mut a, &mut texts, print, "16-bit real mode");
    a.jmp(named).place(protected);
    a.mov(Reg::Cx, EFER)
        .rdmsr()
        .test(Reg::Ax, EFER_LONG_ACTIVE)
        .jump_if(Cond::NotEqual, long);
    say(&mut a, &mut texts, print, "32-bit protected mode");
    a.jmp(named).place(long);
    say(&mut a, &mut texts, print, "64-bit long mode");
    a.place(named);

    say(&mut a, &mut texts, print, ".\nCPU vendor: ");
    a.mov(Reg::Ax, 0).mov(Reg::Cx, 0).cpuid();
    a.push(Reg::Cx).push(Reg::Dx);
    a.call(put4).pop(Reg::Bx).call(put4).pop(Reg::Bx).call(put4);

    say(&mut a, &mut texts, print, "\nHypervisor: ");
    let (none, told) = (a.label(), a.label());
    a.mov(Reg::Ax, 1).mov(Reg::Cx, 0).cpuid();
    a.test(Reg::Cx, CPUID_HYPERVISOR).jump_if(Cond::Equal, none);
    a.mov(Reg::Ax, HYPERVISOR_LEAF).mov(Reg::Cx, 0).cpuid();
    a.push(Reg::Dx).push(Reg::Cx);
    a.call(put4).pop(Reg::Bx).call(put4).pop(Reg::Bx).call(put4);
    a.jmp(told).place(none);
    say(&mut a, &mut texts, print, "none");
    a.place(told);

    say(&mut a, &mut texts, print, "\nPaging: ");
    let (on, shown) = (a.label(), a.label());
    a.mov_from_cr(Reg::Ax, 0)
        .test(Reg::Ax, CR0_PAGING)
        .jump_if(Cond::NotEqual, on);
    say(&mut a, &mut texts, print, "off\n");
    a.jmp(shown).place(on);
    say(&mut a, &mut texts, print, "on\n");
    a.place(shown);

    let halt = a.here();
    a.cli().hlt().jmp(halt);

    // print: the text at si, up to a zero byte.
    let printed = a.label();
    a.place(print)
        .lodsb()
        .cmp_al(0)
        .jump_if(Cond::Equal, printed)
        .call(put)
        .jmp(print)
        .place(printed)
        .ret();

    // put: the byte in al, once the transmitter can take it.
    a.place(put).push(Reg::Ax).mov(Reg::Dx, LINE_STATUS);
    let wait = a.here();
    a.in_dx()
        .test_al(TRANSMITTER_EMPTY)
        .jump_if(Cond::Equal, wait)
        .pop(Reg::Ax)
        .mov(Reg::Dx, SERIAL)
        .out_dx()
        .ret();

    // put4: the bytes in bx, lowest first, without the zeros that pad a signature.
    a.place(put4).mov(Reg::Cx, 4);
    let (next, skip) = (a.here(), a.label());
    a.mov_reg(Reg::Ax, Reg::Bx)
        .cmp_al(0)
        .jump_if(Cond::Equal, skip)
        .call(put)
        .place(skip)
        .shr(Reg::Bx, 8)
        .sub(Reg::Cx, 1)
        .jump_if(Cond::NotEqual, next)
        .ret();

    for (label, text) in texts {
        a.place(label).text(text);
    }
    a.finish()
}

/// A Multiboot kernel that counts for ever: it prints the count in hexadecimal, one a line, and keeps
/// it in many pages of memory, where it finds it each time; if not, it ends with status 3.
fn counter() -> Result<Vec<u8>, kvm_vcpu::Error> {
    const LOAD: u32 = 0x10_0000;
    const MAGIC: u32 = 0x1bad_b002;
    /// The header says where in memory it is to be loaded.
    const FLAGS: u32 = 1 << 16;
    const HEADER: u32 = 32;
    const PAGES: u32 = 100;
    const FIRST_PAGE: u32 = 0x20_0000;
    let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let entry = LOAD + HEADER;
    let mut image: Vec<u8> = [MAGIC, FLAGS, sum, LOAD, LOAD, 0, 0, entry]
        .map(u32::to_le_bytes)
        .concat();
    let mut a = Asm::new(Bits::B32, entry.into());
    let bad = a.label();
    a.mov(Reg::Bx, 0);
    let count = a.here();
    a.mov(Reg::Cx, PAGES).mov(Reg::Di, FIRST_PAGE);
    let page = a.here();
    // cmp [edi], ebx
    a.bytes(&[0x39, 0x1f]).jump_if(Cond::NotEqual, bad);
    // inc dword [edi]
    a.bytes(&[0xff, 0x07]).add(Reg::Di, 4096);
    a.sub(Reg::Cx, 1).jump_if(Cond::NotEqual, page);
    a.add(Reg::Bx, 1);
    a.mov(Reg::Cx, 8).mov_reg(Reg::Si, Reg::Bx);
    a.mov(Reg::Dx, SERIAL);
    let digit = a.here();
    let small = a.label();
    // rol esi, 4
    a.bytes(&[0xc1, 0xc6, 4]).mov_reg(Reg::Ax, Reg::Si);
    a.and(Reg::Ax, 15).cmp(Reg::Ax, 10);
    a.jump_if(Cond::Below, small);
    a.add(Reg::Ax, u32::from(b'a' - b'0' - 10));
    a.place(small).add(Reg::Ax, u32::from(b'0')).out_dx();
    a.sub(Reg::Cx, 1).jump_if(Cond::NotEqual, digit);
    a.mov(Reg::Ax, u32::from(b'\n')).out_dx();
    a.jmp(count);
    a.place(bad).mov(Reg::Ax, 1).out_imm(0xf4).hlt();
    image.extend(a.finish()?);
    Ok(image)
}

fn say(a: &mut Asm, texts: &mut Vec<(Label, &'static str)>, print: Label, text: &'static str) {
    let label = a.label();
    texts.push((label, text));
    a.mov_label(Reg::Si, label).call(print);
}

/// Wraps code in an ELF64 executable with one segment.
fn elf(code: &[u8], at: u64) -> Vec<u8> {
    const OFFSET: u16 = 0x1000;
    let mut file = Vec::new();
    file.extend(b"\x7fELF");
    // 64-bit, little-endian, version 1; System V.
    file.extend([2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable for x86-64.
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(at.to_le_bytes());
    // Program headers come after this header; there are no sections.
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for n in [64u16, 56, 1, 64, 0, 0] {
        file.extend(n.to_le_bytes());
    }
    // One segment, to be loaded, readable and executable.
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for n in [
        u64::from(OFFSET),
        at,
        at,
        code.len() as u64,
        code.len() as u64,
        0x1000,
    ] {
        file.extend(n.to_le_bytes());
    }
    file.resize(OFFSET.into(), 0);
    file.extend(code);
    file
}
