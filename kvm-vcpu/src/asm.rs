use crate::{Error, Result};

/// How wide the code's default operands and addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// Real mode.
    B16,
    /// Protected mode.
    B32,
    /// Long mode.
    B64,
}

/// A general register, 32 bits wide unless an instruction says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reg {
    Ax = 0,
    Cx = 1,
    Dx = 2,
    Bx = 3,
    Sp = 4,
    Bp = 5,
    Si = 6,
    Di = 7,
}

impl Reg {
    fn bits(self) -> u8 {
        self as u8
    }
}

/// A condition of a jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cond {
    /// Unsigned less.
    Below = 0x2,
    /// Unsigned greater or equal.
    AboveOrEqual = 0x3,
    /// Equal, or zero.
    Equal = 0x4,
    /// Not equal, or not zero.
    NotEqual = 0x5,
}

/// A place in the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Writes small guests without an assembler.
///
/// It knows the few instructions that teaching guests need; anything else goes in as
/// [`Asm::bytes`]. Labels may be used before they are placed.
///
/// ```
/// use kvm_vcpu::{Asm, Bits, Reg};
///
/// let mut a = Asm::new(Bits::B16, 0x1000);
/// a.mov(Reg::Ax, 42).out_imm(0xf4).hlt();
/// assert_eq!(a.finish()?, [0x66, 0xb8, 42, 0, 0, 0, 0xe6, 0xf4, 0xf4]);
/// # Ok::<(), kvm_vcpu::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Asm {
    bits: Bits,
    origin: u64,
    code: Vec<u8>,
    labels: Vec<Option<usize>>,
    uses: Vec<Use>,
}

#[derive(Debug, Clone)]
struct Use {
    at: usize,
    label: Label,
    relative: bool,
    width: usize,
}

impl Asm {
    /// Code that will be loaded at `origin` (in real mode, an offset in its segment).
    pub fn new(bits: Bits, origin: u64) -> Self {
        Self {
            bits,
            origin,
            code: Vec::new(),
            labels: Vec::new(),
            uses: Vec::new(),
        }
    }

    /// Puts bytes in as they are: instructions that this type does not know, or data.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// Puts a text in, with a zero byte after it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes()).bytes(&[0])
    }

    /// A label that is placed later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label here. Placing it again moves it.
    pub fn place(&mut self, label: Label) -> &mut Self {
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(self.code.len());
        }
        self
    }

    /// A label that is placed here.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// The prefix that makes operands 32 bits wide, where they are not by default.
    fn wide(&mut self) -> &mut Self {
        if self.bits == Bits::B16 {
            self.code.push(0x66);
        }
        self
    }

    /// `mov r32, imm32`; the upper half of a 64-bit register becomes zero.
    pub fn mov(&mut self, to: Reg, value: u32) -> &mut Self {
        self.wide()
            .bytes(&[0xb8 + to.bits()])
            .bytes(&value.to_le_bytes())
    }

    /// `mov r32, label`.
    pub fn mov_label(&mut self, to: Reg, label: Label) -> &mut Self {
        self.wide().bytes(&[0xb8 + to.bits()]);
        self.use_label(label, false, 4)
    }

    /// `mov r32, r32`.
    pub fn mov_reg(&mut self, to: Reg, from: Reg) -> &mut Self {
        self.wide().bytes(&[0x89, modrm(from.bits(), to)])
    }

    /// `mov reg, crN`: 64 bits wide in long mode, 32 in others.
    pub fn mov_from_cr(&mut self, to: Reg, cr: u8) -> &mut Self {
        self.bytes(&[0x0f, 0x20, modrm(cr & 7, to)])
    }

    /// `and r32, imm32`.
    pub fn and(&mut self, reg: Reg, value: u32) -> &mut Self {
        self.group1(4, reg, value)
    }

    /// `add r32, imm32`.
    pub fn add(&mut self, reg: Reg, value: u32) -> &mut Self {
        self.group1(0, reg, value)
    }

    /// `sub r32, imm32`.
    pub fn sub(&mut self, reg: Reg, value: u32) -> &mut Self {
        self.group1(5, reg, value)
    }

    /// `cmp r32, imm32`.
    pub fn cmp(&mut self, reg: Reg, value: u32) -> &mut Self {
        self.group1(7, reg, value)
    }

    fn group1(&mut self, operation: u8, reg: Reg, value: u32) -> &mut Self {
        self.wide()
            .bytes(&[0x81, modrm(operation, reg)])
            .bytes(&value.to_le_bytes())
    }

    /// `test r32, imm32`.
    pub fn test(&mut self, reg: Reg, value: u32) -> &mut Self {
        self.wide()
            .bytes(&[0xf7, modrm(0, reg)])
            .bytes(&value.to_le_bytes())
    }

    /// `cmp al, imm8`.
    pub fn cmp_al(&mut self, value: u8) -> &mut Self {
        self.bytes(&[0x3c, value])
    }

    /// `test al, imm8`.
    pub fn test_al(&mut self, value: u8) -> &mut Self {
        self.bytes(&[0xa8, value])
    }

    /// `shr r32, imm8`.
    pub fn shr(&mut self, reg: Reg, by: u8) -> &mut Self {
        self.wide().bytes(&[0xc1, modrm(5, reg), by])
    }

    /// `lodsb`: `al` becomes the byte at `[si]` (`[esi]`, `[rsi]`), which moves on.
    pub fn lodsb(&mut self) -> &mut Self {
        self.bytes(&[0xac])
    }

    /// `out imm8, al`.
    pub fn out_imm(&mut self, port: u8) -> &mut Self {
        self.bytes(&[0xe6, port])
    }

    /// `out dx, al`.
    pub fn out_dx(&mut self) -> &mut Self {
        self.bytes(&[0xee])
    }

    /// `in al, dx`.
    pub fn in_dx(&mut self) -> &mut Self {
        self.bytes(&[0xec])
    }

    /// `push reg`: 64 bits wide in long mode, 32 in others.
    pub fn push(&mut self, reg: Reg) -> &mut Self {
        self.wide().bytes(&[0x50 + reg.bits()])
    }

    /// `pop reg`: 64 bits wide in long mode, 32 in others.
    pub fn pop(&mut self, reg: Reg) -> &mut Self {
        self.wide().bytes(&[0x58 + reg.bits()])
    }

    /// `cpuid`.
    pub fn cpuid(&mut self) -> &mut Self {
        self.bytes(&[0x0f, 0xa2])
    }

    /// `rdmsr`.
    pub fn rdmsr(&mut self) -> &mut Self {
        self.bytes(&[0x0f, 0x32])
    }

    /// `cli`: interrupts off.
    pub fn cli(&mut self) -> &mut Self {
        self.bytes(&[0xfa])
    }

    /// `hlt`.
    pub fn hlt(&mut self) -> &mut Self {
        self.bytes(&[0xf4])
    }

    /// `ret`.
    pub fn ret(&mut self) -> &mut Self {
        self.bytes(&[0xc3])
    }

    /// `jmp label`.
    pub fn jmp(&mut self, label: Label) -> &mut Self {
        self.bytes(&[0xe9]).use_relative(label)
    }

    /// `call label`.
    pub fn call(&mut self, label: Label) -> &mut Self {
        self.bytes(&[0xe8]).use_relative(label)
    }

    /// A jump that is taken on a condition.
    pub fn jump_if(&mut self, condition: Cond, label: Label) -> &mut Self {
        self.bytes(&[0x0f, 0x80 + condition as u8])
            .use_relative(label)
    }

    fn use_relative(&mut self, label: Label) -> &mut Self {
        let width = if self.bits == Bits::B16 { 2 } else { 4 };
        self.use_label(label, true, width)
    }

    fn use_label(&mut self, label: Label, relative: bool, width: usize) -> &mut Self {
        self.uses.push(Use {
            at: self.code.len(),
            label,
            relative,
            width,
        });
        self.bytes(&[0; 4][..width])
    }

    /// The code, with all labels resolved.
    ///
    /// # Errors
    ///
    /// [`Error::Label`] when a label is used and never placed, or out of an operand's reach.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        for Use {
            at,
            label,
            relative,
            width,
        } in self.uses
        {
            let place = self.labels.get(label.0).copied().flatten();
            let refuse = || Error::Label { used_at: at };
            let place = place.ok_or_else(refuse)? as u64;
            let value = if relative {
                place.wrapping_sub((at + width) as u64).cast_signed()
            } else {
                (self.origin.wrapping_add(place)).cast_signed()
            };
            // Sign-extended operands for jumps, zero-extended ones for addresses.
            let fits = match (width, relative) {
                (2, _) => i16::try_from(value).is_ok(),
                (_, true) => i32::try_from(value).is_ok(),
                (_, false) => u32::try_from(value).is_ok(),
            };
            if !fits {
                return Err(refuse());
            }
            self.code[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        Ok(self.code)
    }
}

/// The byte that names two registers as operands.
fn modrm(reg: u8, rm: Reg) -> u8 {
    0xc0 | reg << 3 | rm.bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_reach_both_ways() {
        let mut a = Asm::new(Bits::B64, 0x1000);
        let end = a.label();
        let start = a.here();
        a.jmp(end).jmp(start).place(end).hlt();
        assert_eq!(
            a.finish().unwrap(),
            [0xe9, 5, 0, 0, 0, 0xe9, 0xf6, 0xff, 0xff, 0xff, 0xf4]
        );
    }

    #[test]
    fn a_label_that_is_nowhere_is_an_error() {
        let mut a = Asm::new(Bits::B16, 0);
        let nowhere = a.label();
        a.hlt().call(nowhere);
        assert_eq!(
            a.finish().unwrap_err().to_string(),
            "the code uses at byte 2 a label that is not placed or too far away: place it with Asm::place"
        );
    }
}
